#!/usr/bin/env python3
"""Run the experiments of demo/experiments.txt: each a fine-tuning of the nano base at equal wall-clock time, spoken and scored.

Reads   data/demo (python data_prep.py --corpus demo).
Writes  runs/experiments/NAME-SEED/ and NAME-SEED.json beside it, and --out: every result, and mean and spread by experiment.

    python demo/run_experiments.py --scorer "python recogniser.py --list"                          # all, two seeds: hours
    python demo/run_experiments.py --scorer "python recogniser.py --list" --only base scratch --seeds 3

The same command again continues: finished results stay, an interrupted run resumes. The scorer is any command that takes a
file of {"wav", "text"} lines and prints a JSON summary last. Each result holds the command line that made it.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pocket_arabic.run import UserError, command, provenance, read_jsonl, write_json  # noqa: E402

COMMON = (
    "--data data/demo --batch-size 16 --optimizer muon --lr 1e-3 --schedule cosine --warmup-steps 100 --text-dropout 0.1 "
    "--distill-draws 2 --distill-head-only --guide-steps 300 --epochs 1000 --eval-every 200 --sample-every 0"
)


def read_experiments(file: Path) -> dict[str, list[str]]:
    """Name -> its flags."""
    lines = [line.split("#")[0].split() for line in file.read_text(encoding="utf-8").splitlines()]
    return {words[0]: words[1:] for words in lines if words}


def run(name: str, flags: list[str], seed: int, args: argparse.Namespace) -> dict:
    """Train, speak the test split, score: one result."""
    out = args.runs / f"{name}-{seed}"
    train = ["train.py", *shlex.split(COMMON), "--max-steps", str(args.steps), "--max-hours", str(args.minutes / 60), "--seed", str(seed), *flags, "--out", str(out)]
    start = time.monotonic()
    subprocess.run([sys.executable, *train], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    render = ["demo/render_heldout.py", "--model", str(out), "--out", str(out / "heldout"), "--scorer", args.scorer]
    subprocess.run([sys.executable, *render], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    held_out = json.loads((out / "heldout" / "heldout.json").read_text(encoding="utf-8"))
    log = read_jsonl(out / "progress.jsonl")
    return {
        "experiment": name,
        "seed": seed,
        "command": shlex.join(["python", *train]),
        "steps": max(r["step"] for r in log if r["kind"] == "eval"),
        "held_out_flow_error": min(r["valid_flow_error"] for r in log if r["kind"] == "eval"),
        **{key: held_out["scores"]["generated"][key] for key in ("cer_no_marks_median", "cer_no_marks_mean", "cer_median", "cer_mean", "above_1")},
        "eos_reached": held_out["eos_reached"],
        "duration_ratio_0.7_to_1.4": held_out["duration_ratio_0.7_to_1.4"],
        "train_sec": round(seconds),  # of the last continuation, if there were several
        "memory_gib": max(r["memory_gib"] for r in log if r["kind"] == "train"),
        **provenance(),
    }


def summary(results: list[dict]) -> dict:
    """Mean over seeds, and the largest less the smallest, of what is compared."""
    keys = ("held_out_flow_error", "cer_no_marks_mean", "cer_no_marks_median", "cer_mean", "cer_median", "eos_reached", "steps", "train_sec", "memory_gib")
    table: dict[str, dict] = {}
    for name in dict.fromkeys(r["experiment"] for r in results):
        table[name] = {"seeds": sum(r["experiment"] == name for r in results)}
        for key in keys:
            values = [r[key] for r in results if r["experiment"] == name]
            table[name][key] = {"mean": round(statistics.mean(values), 4), "spread": round(max(values) - min(values), 4)}
    return table


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--list", type=Path, default=ROOT / "demo" / "experiments.txt", help="the experiments")
    p.add_argument("--only", nargs="+", help="names, default all")
    p.add_argument("--seeds", type=int, default=2, help="runs of each")
    p.add_argument("--minutes", type=float, default=6.0, help="wall clock of each training")
    p.add_argument("--steps", type=int, default=900, help="most steps of each, over which the rate falls to 0")
    p.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="where the runs go")
    p.add_argument("--out", type=Path, default=ROOT / "samples" / "experiments.json")
    p.add_argument("--scorer", required=True, help="command that scores a pairs.jsonl")
    args = p.parse_args()
    experiments = read_experiments(args.list)
    unknown = set(args.only or ()) - experiments.keys()
    if unknown:
        raise UserError(f"--only {' '.join(sorted(unknown))}: not in {args.list}; it has {', '.join(experiments)}")
    args.runs.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in range(args.seeds):
        for name in args.only or experiments:
            file = args.runs / f"{name}-{seed}.json"
            if not file.exists():
                write_json(file, run(name, experiments[name], seed, args))
            results.append(json.loads(file.read_text(encoding="utf-8")))
            print(name, seed, {k: results[-1][k] for k in ("held_out_flow_error", "cer_no_marks_median", "cer_median", "eos_reached")}, flush=True)
    write_json(args.out, {"command": shlex.join(["python", "demo/run_experiments.py", *sys.argv[1:]]), "summary": summary(results), "results": results})


if __name__ == "__main__":
    command(main)
