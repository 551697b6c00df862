#!/usr/bin/env python3
"""Run the experiments of demo/experiments.txt: each a fine-tuning of the nano base for about the same CPU time, spoken and scored.

Reads   data/demo (python data_prep.py --corpus demo).
Writes  data/demo-bare, the same without vowel marks; runs/experiments/NAME-SEED/ and NAME-SEED.json beside it; --out: every
        result, and mean and spread by experiment.

    python demo/run_experiments.py --scorer "python recogniser.py --list"                          # all, two seeds: hours
    python demo/run_experiments.py --scorer "python recogniser.py --list" --only base scratch --seeds 0 1 2

Wall clock depends on what else the machine does, so limits are in steps and CPU seconds are in the result. One thread a training is
the best use of few cores: OMP_NUM_THREADS=1, and one process of this a core, each with seeds and an --out of its own; a last run with
all seeds puts the results together.

The same command again continues: finished results stay, an interrupted run resumes. The scorer is any command that takes a
file of {"wav", "text"} lines and prints a JSON summary last. Each result holds the command line that made it.
"""

import argparse
import json
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pocket_arabic.run import UserError, command, provenance, read_jsonl, write_json  # noqa: E402
from pocket_arabic.text import MARKS_MODEL  # noqa: E402

COMMON = (
    "--data data/demo --batch-size 16 --optimizer muon --lr 1e-3 --schedule cosine --warmup-steps 40 --text-dropout 0.1 "
    "--distill-draws 2 --distill-head-only --guide-steps 90 --epochs 1000 --eval-every 125 --sample-every 0"
)
READ_BARE = ("base", "mark-dropout", "stripped")  # spoken from bare text too


def read_experiments(file: Path) -> dict[str, list[str]]:
    """Name -> its flags."""
    lines = [line.split("#")[0].split() for line in file.read_text(encoding="utf-8").splitlines()]
    return {words[0]: words[1:] for words in lines if words}


def bare_cache(full: Path, bare: Path) -> None:
    """A cache like another, of the same audio, whose texts have lost their marks."""
    if (bare / "cache.json").exists():
        return
    shutil.copytree(full, bare, ignore=shutil.ignore_patterns("cache.json"), dirs_exist_ok=True)
    rows = read_jsonl(full / "manifest.jsonl")
    for row in rows:
        row["text_model"] = "".join(c for c in row["text_model"] if c not in MARKS_MODEL)
    (bare / "manifest.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    shutil.copyfile(full / "cache.json", bare / "cache.json")  # last: a folder that has it is complete


def run(name: str, flags: list[str], seed: int, args: argparse.Namespace) -> dict:
    """Train, speak the test split, score: one result."""
    out = args.runs / f"{name}-{seed}"
    train = ["train.py", *shlex.split(COMMON), "--max-steps", str(args.steps), "--seed", str(seed), *flags, "--out", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *train], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after, clock = resource.getrusage(resource.RUSAGE_CHILDREN), out / "cpu_sec.json"
    before_that = json.loads(clock.read_text()) if clock.exists() else 0.0  # of a run that was interrupted
    cpu_sec = before_that + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    write_json(clock, cpu_sec)
    log = read_jsonl(out / "progress.jsonl")
    result = {
        "experiment": name,
        "seed": seed,
        "command": shlex.join(["python", *train]),
        "steps": max(r["step"] for r in log if r["kind"] == "eval"),
        "valid_flow_error": min(r["valid_flow_error"] for r in log if r["kind"] == "eval"),
        "train_cpu_sec": round(cpu_sec),
        "memory_gib": max(r["memory_gib"] for r in log if r["kind"] == "train"),
    }
    for suffix, more in (("", []), ("_bare", ["--bare"])):
        if more and name not in READ_BARE:
            continue
        folder = out / f"heldout{suffix}"
        render = ["demo/render_heldout.py", "--only-generated", "--model", str(out), "--out", str(folder), "--scorer", args.scorer, "--seed", str(seed), *more]
        render += ["--no-voice"] if name == "no-voice" else []
        subprocess.run([sys.executable, *render], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        held_out = json.loads((folder / "heldout.json").read_text(encoding="utf-8"))
        found = {key: held_out["scores"]["generated"][key] for key in ("cer_no_marks_mean", "cer_no_marks_median", "cer_mean", "cer_median", "above_1")}
        found |= {key: held_out[key] for key in ("eos_reached", "duration_ratio_0.7_to_1.4")}
        result |= {f"{key}{suffix}": value for key, value in found.items()}
    return result | provenance()


def summary(results: list[dict]) -> dict:
    """Of each experiment's figures the mean over seeds, and the largest less the smallest."""
    table: dict[str, dict] = {}
    for name in dict.fromkeys(r["experiment"] for r in results):
        mine = [r for r in results if r["experiment"] == name]
        table[name] = {"seeds": [r["seed"] for r in mine]}
        for key, value in mine[0].items():
            if isinstance(value, (int, float)) and key != "seed":
                values = [r[key] for r in mine]
                table[name][key] = {"mean": round(statistics.mean(values), 4), "spread": round(max(values) - min(values), 4)}
    return table


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--list", type=Path, default=ROOT / "demo" / "experiments.txt", help="the experiments")
    p.add_argument("--only", nargs="+", help="names, default all")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="a run of each experiment with each")
    p.add_argument("--steps", type=int, default=250, help="of an experiment that does not say, over which the rate falls to 0")
    p.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="where the runs go")
    p.add_argument("--out", type=Path, default=ROOT / "samples" / "experiments.json")
    p.add_argument("--scorer", required=True, help="command that scores a pairs.jsonl")
    args = p.parse_args()
    experiments = read_experiments(args.list)
    unknown = set(args.only or ()) - experiments.keys()
    if unknown:
        raise UserError(f"--only {' '.join(sorted(unknown))}: not in {args.list}; it has {', '.join(experiments)}")
    args.runs.mkdir(parents=True, exist_ok=True)
    bare_cache(ROOT / "data" / "demo", ROOT / "data" / "demo-bare")
    results = []
    for seed in args.seeds:
        for name in args.only or experiments:
            file = args.runs / f"{name}-{seed}.json"
            if not file.exists():
                write_json(file, run(name, experiments[name], seed, args))
            results.append(json.loads(file.read_text(encoding="utf-8")))
            print(name, seed, {k: results[-1][k] for k in ("valid_flow_error", "cer_no_marks_median", "cer_median", "eos_reached")}, flush=True)
    write_json(args.out, {"command": shlex.join(["python", "demo/run_experiments.py", *sys.argv[1:]]), "summary": summary(results), "results": results})


if __name__ == "__main__":
    command(main)
