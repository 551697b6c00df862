#!/usr/bin/env python3
"""Which figure chooses a checkpoint best: the held-out flow error, or the distance of its speech from the recordings?

Reads   runs whose checkpoints were all kept (train.py --keep 1000), and their cache.
Writes  --out, JSON: for every checkpoint the flow error, the speech score with its parts, and the error a recogniser
finds in
        the test split; Spearman's rank correlation of each figure with that error, and what choosing by it loses.

    python measure/choice.py runs/base-0 runs/base-1
"""

import json
import time
from pathlib import Path

import torch
from harness import ROOT, parser, score, speak, write
from safetensors.torch import load_file
from scipy.stats import spearmanr

from pocket_arabic.base import build_flow_lm, load_config, load_mimi, load_weights, tts_model
from pocket_arabic.cache import Cache
from pocket_arabic.evaluation import Judge
from pocket_arabic.rows import Draws, Latents, Utterances
from pocket_arabic.run import command, read_jsonl, use_all_cores
from pocket_arabic.speech import voice_state

FIGURES = ("flow_error", "speech_score", "mcd_db")


def heard(model, rows: list[dict], voice: Path, folder: Path, scorer: str) -> float:
    """Mean error without marks that the scorer finds in the rows' sentences, spoken by the model."""
    clips = list(speak(model, voice_state(model, voice), rows, folder))
    return score(clips, scorer)[1]["cer_no_marks_mean"]


def main() -> None:
    p = parser(__doc__, ROOT / "samples" / "choice.json")
    p.add_argument("runs", type=Path, nargs="+")
    p.add_argument("--sentences", type=int, default=16, help="that the judge hears")
    args = p.parse_args()
    use_all_cores()
    found, summary = [], {}
    for run in args.runs:
        recipe = json.loads((run / "args.json").read_text(encoding="utf-8"))
        config = load_config(str(run / "bundle" / "arabic.yaml"), bundled=True)
        weights, cache = load_weights(config), Cache(Path(recipe["data"]))
        mimi, flow_lm = load_mimi(config, weights), build_flow_lm(config, weights)
        latents = Latents(cache.folder / "latents.npy", torch.device("cpu"))
        judge = Judge(
            Utterances(cache, "valid", flow_lm.conditioner.tokenizer, config.mimi.frame_rate, Draws(), latents),
            mimi,
            args.sentences,
        )
        errors = {r["step"]: r["valid_flow_error"] for r in read_jsonl(run / "progress.jsonl") if r["kind"] == "eval"}
        for path in sorted((run / "checkpoints").glob("step_*")):
            step = int(path.name[5:])
            if step not in errors:
                continue
            own = {
                name: tensor
                for name, tensor in load_file(path / "ema.safetensors").items()
                if name.startswith("flow_lm.")
            }
            model = tts_model(config, build_flow_lm(config, own), mimi)
            start = time.monotonic()
            row = {
                "run": run.name,
                "step": step,
                "flow_error": errors[step],
                **judge.score(model),
                "judge_sec": round(time.monotonic() - start, 2),
            }
            row["cer"] = heard(
                model, cache.split("test"), cache.folder / "voice.wav", run / "choice" / path.name, args.scorer
            )
            found.append(row)
            print(json.dumps(row), flush=True)
        mine = [row for row in found if row["run"] == run.name and row["step"] > 0]
        best = min(row["cer"] for row in mine)
        summary[run.name] = {
            name: {
                "rank_correlation": round(
                    float(spearmanr([row[name] for row in mine], [row["cer"] for row in mine]).statistic), 3
                ),
                "chosen_step": min(mine, key=lambda row: row[name])["step"],
                "loss_of_choice": round(min(mine, key=lambda row: row[name])["cer"] - best, 4),
            }
            for name in FIGURES
        }
    write(args.out, {"summary": summary, "checkpoints": found})
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    command(main)
