#!/usr/bin/env python3
"""What a step of train.py costs on a GPU, at the released size: random weights and latents, lengths like ClArTTS's.

Reads   nothing; a base and a cache are made for it. data_prep.py is timed on the embedded corpus.
Writes  --out, JSON: for each way of running a step its steps a second, memory and evaluation, and data_prep's seconds.

    make bench                                             # runs it where there is a GPU, some 6 minutes
    python measure/gpu_training.py --tiny --out try.json   # does it run? any CPU
    python measure/gpu_training.py --beside "python step_speed.py"   # and what that command prints, in JSON lines

The first steps launch, record and compile; what counts is the median of the later ones, each of 20 steps, beside their
mean.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, made_by
from hub import release_config
from release import random_base

from pocket_arabic.audio import write_wav
from pocket_arabic.base import encoder_hash, load_config, load_mimi, load_tokenizer, load_weights
from pocket_arabic.cache import FORMAT_VERSION
from pocket_arabic.run import command, read_jsonl, write_json

FRAME_RATE, TOKENS_A_SEC = 12.5, 8
STEP = "import train; train.main()"
LAUNCHED = f"from pocket_arabic import step; step.Replayed = lambda work, *rest: step.Launched(work); {STEP}"
WAYS = {  # code, flags, steps, of them the last so many count
    "launched": (LAUNCHED, [], 80, 40),
    "graphs": (STEP, [], 600, 200),
    "compiled graphs": (STEP, ["--compile"], 600, 200),
}


def make_base(folder: Path, tiny: bool) -> Path:
    """The released `english`, or a narrow one, with random weights -> its YAML."""
    config = release_config()
    if tiny:
        config.flow_lm.transformer.d_model, config.flow_lm.transformer.num_heads = 64, 2
        config.flow_lm.lookup_table.dim = config.flow_lm.flow.dim = 64
    return random_base(folder, config)


def make_cache(folder: Path, base: Path, utterances: int) -> None:
    """A cache as data_prep.py writes it, of random latents: 9,500 utterances are 11.2 h."""
    folder.mkdir(parents=True)
    rng, config = np.random.default_rng(0), load_config(str(base))
    tokenizer, mimi = load_tokenizer(config), load_mimi(config, load_weights(config))
    seconds = np.clip(rng.gamma(4.0, 4.23 / 4, utterances), 1.79, 12.8)
    frames = (seconds * FRAME_RATE).astype(int)
    first = np.cumsum(frames) - frames
    np.save(folder / "latents.npy", rng.standard_normal((frames.sum(), 32), dtype=np.float32))
    vocabulary = config.flow_lm.lookup_table.n_bins
    with open(folder / "manifest.jsonl", "w", encoding="utf-8") as file:
        for i in range(utterances):
            text = tokenizer.decode(rng.integers(1, vocabulary, int(seconds[i] * TOKENS_A_SEC)).tolist())
            split = "train" if i >= utterances // 50 else "valid"
            row = {"id": str(i), "split": split, "speaker": "one", "text_model": text}
            row |= {"first_frame": int(first[i]), "num_frames": int(frames[i])}
            row |= {"speech_end_sec": float(seconds[i]) - 0.3, "duration_sec": float(seconds[i])}
            file.write(json.dumps(row) + "\n")
    write_wav(folder / "voice.wav", rng.standard_normal(6 * 24000).astype(np.float32) * 0.1, 24000)
    options = {"corpus": "random", "base": str(base), "encoder_sha256": encoder_hash(mimi)}
    info = {"format_version": FORMAT_VERSION, "options": options | {"head_sec": 0.1, "trim": True}}
    write_json(folder / "cache.json", info | {"hours": {"train": float(frames.sum() / FRAME_RATE / 3600)}})


def measure(way: str, data: Path, out: Path, rows: int, shrink: int) -> dict:
    """One run of train.py."""
    code, flags, steps, counted = WAYS[way]
    steps, counted = steps // shrink, counted // shrink
    every = max(1, 20 // shrink)
    line = ["--data", data, "--out", out, "--batch-size", rows, "--max-steps", steps, "--log-every", every, *flags]
    line += ["--eval-every", steps, "--sample-every", 0]
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code, *map(str, line)], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        return {"failed": result.stderr[-1500:]}
    log = read_jsonl(out / "progress.jsonl")
    train, evals = ([r for r in log if r["kind"] == kind] for kind in ("train", "eval"))
    later = [r["step_sec"] for r in train if r["step"] > steps - counted]
    return {
        "step_sec_median": round(statistics.median(later), 4),
        "steps_per_sec": round(1 / statistics.median(later), 2),
        "steps_per_sec_mean": round(1 / statistics.mean(later), 2),
        "steps_per_sec_all": round(steps / sum(r["step_sec"] * every for r in train), 2),
        "memory_gib": train[-1]["memory_gib"],
        "evaluation_sec": evals[-1]["eval_sec"],
        "process_sec": round(time.monotonic() - start, 1),
        "steps": steps,
        "padding": round(statistics.mean(r["padding"] for r in train), 4),
        "losses": {r["step"]: r["loss"] for r in train if r["step"] in (20, 40, 60, 80)},
        "how": next(line for line in result.stdout.splitlines() if "precision" in line),
    }


def prepare(base: Path, out: Path, more: list[str]) -> dict:
    """One run of data_prep.py."""
    line = [sys.executable, "data_prep.py", "--corpus", "demo", "--base", str(base), "--out", str(out), *more]
    start = time.monotonic()
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    hours = json.loads((out / "cache.json").read_text(encoding="utf-8"))["hours"]
    return {"process_sec": round(time.monotonic() - start, 1), "hours": hours}


def beside(line: str) -> dict:
    """What another instrument prints."""
    printed = subprocess.run(line, shell=True, capture_output=True, text=True)
    print("beside", printed.stdout, printed.stderr[-300:], flush=True)
    return {"command": line, "printed": [json.loads(x) for x in printed.stdout.splitlines() if x.startswith("{")]}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT / "samples" / "bench_gpu.json")
    p.add_argument("--ways", default=",".join(WAYS), help="which, by comma")
    p.add_argument("--beside", metavar="COMMAND", help="another instrument, whose JSON lines are kept")
    p.add_argument("--no-data", action="store_true", help="leave data_prep.py out")
    p.add_argument("--tiny", action="store_true", help="small, for a CPU")
    args = p.parse_args()
    saved = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    result = saved.get("training", {}) | made_by()
    result["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_base(folder, args.tiny)
        make_cache(folder / "data", base, 500 if args.tiny else 9700)
        for way in filter(None, args.ways.split(",")):
            result[way] = measure(way, folder / "data", folder / way, 8 if args.tiny else 64, 20 if args.tiny else 1)
            print(way, json.dumps(result[way]), flush=True)
            write_json(args.out, saved | {"training": result})  # as it comes: a machine may be taken away
        if not args.no_data:
            result["data_prep"] = prepare(base, folder / "demo", ["--limit", "20"] if args.tiny else [])
            print("data_prep", result["data_prep"], flush=True)
    if args.beside:
        result["beside"] = beside(args.beside)
    write_json(args.out, saved | {"training": result})


if __name__ == "__main__":
    command(main)
