#!/usr/bin/env python3
"""Which figure chooses a checkpoint best: the held-out flow error, or the distance of its speech from the recordings?

Reads   runs whose checkpoints were all kept (train.py --keep 1000), and their cache.
Writes  --out, JSON: for every checkpoint the flow error, the speech score with its parts, and the error a recogniser
        finds in the test split; Spearman's rank correlation of each figure with that error, and what choosing by it
        loses.

    python measure/choice.py runs/base-0 runs/base-1
"""

import json
import time
from collections.abc import Iterator
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


def checkpoints(run: Path, sentences: int, scorer: str) -> Iterator[dict]:
    """Each checkpoint of a run that was evaluated, judged and heard."""
    recipe = json.loads((run / "args.json").read_text(encoding="utf-8"))
    config = load_config(str(run / "bundle" / "arabic.yaml"), bundled=True)
    weights, cache = load_weights(config), Cache(Path(recipe["data"]))
    mimi, tokenizer = load_mimi(config, weights), build_flow_lm(config, weights).conditioner.tokenizer
    latents = Latents(cache.folder / "latents.npy", torch.device("cpu"))
    valid = Utterances(cache, "valid", tokenizer, config.mimi.frame_rate, Draws(), latents)
    judge, voice, test = Judge(valid, mimi, sentences), cache.folder / "voice.wav", cache.split("test")
    errors = {r["step"]: r["valid_flow_error"] for r in read_jsonl(run / "progress.jsonl") if r["kind"] == "eval"}
    for step, error in errors.items():
        folder = run / "checkpoints" / f"step_{step:06d}"
        if not folder.exists():
            continue
        averaged = load_file(folder / "ema.safetensors")
        own = {name: tensor for name, tensor in averaged.items() if name.startswith("flow_lm.")}
        model, start = tts_model(config, build_flow_lm(config, own), mimi), time.monotonic()
        row = {"run": run.name, "step": step, "flow_error": error, **judge.score(model)}
        row["judge_sec"] = round(time.monotonic() - start, 2)
        yield row | {"cer": heard(model, test, voice, run / "choice" / folder.name, scorer)}


def worth(rows: list[dict], figure: str) -> dict:
    """Of a figure, how it ranks and chooses among a run's checkpoints."""
    values, errors = ([row[key] for row in rows] for key in (figure, "cer"))
    chosen = min(rows, key=lambda row: row[figure])
    return {
        "rank_correlation": round(float(spearmanr(values, errors).statistic), 3),
        "chosen_step": chosen["step"],
        "loss_of_choice": round(chosen["cer"] - min(errors), 4),
    }


def main() -> None:
    p = parser(__doc__, ROOT / "samples" / "choice.json")
    p.add_argument("runs", type=Path, nargs="+")
    p.add_argument("--sentences", type=int, default=16, help="that the judge hears")
    args = p.parse_args()
    use_all_cores()
    found = []
    for run in args.runs:
        for row in checkpoints(run, args.sentences, args.scorer):
            found.append(row)
            print(json.dumps(row), flush=True)
    summary = {}
    for run in args.runs:
        trained = [row for row in found if row["run"] == run.name and row["step"] > 0]
        summary[run.name] = {figure: worth(trained, figure) for figure in FIGURES}
    write(args.out, {"summary": summary, "checkpoints": found})
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    command(main)
