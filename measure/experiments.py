#!/usr/bin/env python3
"""The fine-tunings of the nano base in measure/experiments.txt, each for about the same CPU time, spoken and scored.

Reads   data/demo (python data_prep.py --corpus demo).
Writes  data/demo-bare, the same without vowel marks; --runs/NAME-SEED/ and NAME-SEED.json beside it; --out: every
        result, and mean and spread by experiment.

    python measure/experiments.py                                       # all, two seeds: hours
    python measure/experiments.py --only base scratch --seeds 0 1 2

Wall clock depends on what else the machine does, so limits are in steps and CPU seconds are in the result. One thread a
training is the best use of few cores: OMP_NUM_THREADS=1, and one process of this a core, each with seeds and an --out
of its own; a last run with all seeds puts the results together.

The same command again continues: finished results stay, an interrupted run resumes. Each result has its command.
"""

import json
import shlex
import shutil
import statistics
from argparse import Namespace
from pathlib import Path

from harness import ROOT, parser, score, speak_split, summarise, train, without_marks, write

from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import find_bundle
from pocket_arabic.run import UserError, command, location, provenance, read_jsonl, whole, write_json

DATA = ROOT / "data" / "demo"
LIST = Path(__file__).with_name("experiments.txt")
COMMON = (
    "--data data/demo --batch-size 16 --optimizer muon --lr 1e-3 --schedule cosine --warmup-steps 40 "
    "--text-dropout 0.1 --distill-draws 2 --epochs 1000 --eval-every 125 --sample-every 0"
)
READ_BARE = ("base", "mark-dropout", "stripped")  # spoken from bare text too
SPOKEN = (
    "cer_no_marks_mean", "cer_no_marks_median", "cer_mean", "cer_median", "above_1",
    "eos_reached", "duration_ratio_0.7_to_1.4",
)  # fmt: skip


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
        row["text_model"] = without_marks(row["text_model"])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (bare / "manifest.jsonl").write_text(lines, encoding="utf-8")
    shutil.copyfile(full / "cache.json", bare / "cache.json")  # last: a folder that has it is complete


def run(name: str, flags: list[str], seed: int, args: Namespace) -> dict:
    """Train, speak the test split, score: one result."""
    out = args.runs / f"{name}-{seed}"
    trained = train(out, [*shlex.split(COMMON), "--max-steps", str(args.steps), "--seed", str(seed), *flags])
    errors = [r["valid_flow_error"] for r in read_jsonl(out / "progress.jsonl") if r["kind"] == "eval"]
    result = {"experiment": name, "seed": seed, "valid_flow_error": min(errors), "train_cpu_sec": trained["cpu_sec"]}
    result |= {key: trained[key] for key in ("command", "steps", "memory_gib")}
    for suffix in ("", "_bare") if name in READ_BARE else ("",):
        folder, how = out / f"heldout{suffix}", {"bare": bool(suffix), "voiced": name != "no-voice"}
        clips = speak_split(find_bundle(out), Cache(DATA), folder, seed=seed, **how)
        found = score(clips, args.scorer)[1] | summarise(clips)
        result |= {f"{key}{suffix}": found[key] for key in SPOKEN}
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
                mean, spread = statistics.mean(values), max(values) - min(values)
                table[name][key] = {"mean": round(mean, 4), "spread": round(spread, 4)}
    return table


def main() -> None:
    p = parser(__doc__, ROOT / "samples" / "experiments.json")
    p.add_argument("--only", nargs="+", help="names, default all")
    p.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1], help="a run of each experiment with each")
    p.add_argument("--steps", type=whole(1), default=250, help="of an experiment that does not say")
    p.add_argument("--runs", type=location, default=Path("runs/experiments"), help="where the runs go")
    args = p.parse_args()
    experiments = read_experiments(LIST)
    if unknown := set(args.only or ()) - experiments.keys():
        raise UserError(f"--only {' '.join(sorted(unknown))}: not in {LIST}; it has {', '.join(experiments)}")
    args.runs.mkdir(parents=True, exist_ok=True)
    bare_cache(DATA, DATA.with_name("demo-bare"))
    results = []
    for seed in args.seeds:
        for name in args.only or experiments:
            file = args.runs / f"{name}-{seed}.json"
            if not file.exists():
                write_json(file, run(name, experiments[name], seed, args))
            results.append(json.loads(file.read_text(encoding="utf-8")))
            shown = ("valid_flow_error", "cer_no_marks_median", "cer_median", "eos_reached")
            print(name, seed, {key: results[-1][key] for key in shown}, flush=True)
    write(args.out, {"summary": summary(results), "results": results})


if __name__ == "__main__":
    command(main)
