#!/usr/bin/env python3
"""Which figure chooses a checkpoint best: the held-out flow error, or the distance of its speech from the recordings?

Reads   runs whose checkpoints were all kept (train.py --keep 1000), and their cache.
Writes  --out, JSON: for every checkpoint the flow error, the speech score with its parts, and the error a recogniser finds in
        the test split; Spearman's rank correlation of each figure with that error, and what choosing by it loses.

    python measure/choice.py runs/base-0 runs/base-1 --scorer "python recogniser.py --list"
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pocket_arabic.audio import write_wav  # noqa: E402
from pocket_arabic.base import build_flow_lm, load_config, load_mimi, load_weights, tts_model  # noqa: E402
from pocket_arabic.cache import Cache  # noqa: E402
from pocket_arabic.evaluation import Judge  # noqa: E402
from pocket_arabic.rows import Draws, Latents, Utterances  # noqa: E402
from pocket_arabic.run import command, provenance, read_jsonl, use_all_cores, write_json  # noqa: E402
from pocket_arabic.speech import Request, speak_batch, voice_state  # noqa: E402

FIGURES = ("flow_error", "speech_score", "mcd_db")


def heard(model, rows: list[dict], voice: Path, folder: Path, scorer: str) -> float:
    """Median error without marks that the scorer finds in the rows' sentences, spoken by the model."""
    folder.mkdir(parents=True, exist_ok=True)
    state = voice_state(model, voice)
    pairs = []
    for row, spoken in zip(rows, speak_batch(model, [Request(row["text_model"], state, 0) for row in rows])):
        write_wav(folder / f"{row['id']}.wav", spoken.audio, model.sample_rate)
        pairs.append({"wav": str(folder / f"{row['id']}.wav"), "text": row["text"]})
    listing = folder / "pairs.jsonl"
    listing.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    out = subprocess.run([*shlex.split(scorer), str(listing)], capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])["cer_no_marks_mean"]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", type=Path, nargs="+")
    p.add_argument("--sentences", type=int, default=16, help="that the judge hears")
    p.add_argument("--scorer", required=True, help="command that scores a file of {wav, text} lines")
    p.add_argument("--out", type=Path, default=ROOT / "samples" / "choice.json")
    args = p.parse_args()
    use_all_cores()
    found, summary = [], {}
    for run in args.runs:
        recipe = json.loads((run / "args.json").read_text(encoding="utf-8"))
        config = load_config(str(run / "bundle" / "arabic.yaml"), bundled=True)
        weights, cache = load_weights(config), Cache(Path(recipe["data"]))
        mimi, flow_lm = load_mimi(config, weights), build_flow_lm(config, weights)
        latents = Latents(cache.folder / "latents.npy", torch.device("cpu"))
        judge = Judge(Utterances(cache, "valid", flow_lm.conditioner.tokenizer, config.mimi.frame_rate, Draws(), latents), mimi, args.sentences)
        errors = {r["step"]: r["valid_flow_error"] for r in read_jsonl(run / "progress.jsonl") if r["kind"] == "eval"}
        for path in sorted((run / "checkpoints").glob("step_*")):
            step = int(path.name[5:])
            if step not in errors:
                continue
            own = {name: tensor for name, tensor in load_file(path / "ema.safetensors").items() if name.startswith("flow_lm.")}
            model = tts_model(config, build_flow_lm(config, own), mimi)
            start = time.monotonic()
            row = {"run": run.name, "step": step, "flow_error": errors[step], **judge.score(model), "judge_sec": round(time.monotonic() - start, 2)}
            row["cer"] = heard(model, cache.split("test"), cache.folder / "voice.wav", run / "choice" / path.name, args.scorer)
            found.append(row)
            print(json.dumps(row), flush=True)
        mine = [row for row in found if row["run"] == run.name and row["step"] > 0]
        best = min(row["cer"] for row in mine)
        summary[run.name] = {
            name: {
                "rank_correlation": round(float(spearmanr([row[name] for row in mine], [row["cer"] for row in mine]).statistic), 3),
                "chosen_step": min(mine, key=lambda row: row[name])["step"],
                "loss_of_choice": round(min(mine, key=lambda row: row[name])["cer"] - best, 4),
            }
            for name in FIGURES
        }
    write_json(args.out, {"command": shlex.join(["python", "measure/choice.py", *sys.argv[1:]]), "summary": summary, "checkpoints": found, **provenance()})
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    command(main)
