#!/usr/bin/env python3
"""What guidance and students are worth on the embedded corpus: the adapted base, alone and guided; a student of its
depth and a shallow one that learnt its guided output; and as shallow a model trained plainly for the same CPU time.

Reads   data/demo, and an adapted base of each seed, RUNS/base-SEED (make demo's recipe with --seed SEED --out
        RUNS/base-SEED).
Writes  RUNS/{same,shallow,plain}-SEED, and --out, JSON: errors of each model by the recogniser, CPU seconds, and the
        commands.

    python measure/teacher_student.py

The same command again continues.
"""

import json
import shlex
import statistics
from pathlib import Path

import yaml
from harness import ROOT, parser, score, speak_split, train, write
from safetensors.torch import save_file

from pocket_arabic.base import load_config, load_weights, student_of
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import find_bundle
from pocket_arabic.run import command, use_all_cores, write_json

DATA = ROOT / "data" / "demo"
LAYERS = 3  # of the shallow models; the nano base has five
COMMON = (
    "--data data/demo --batch-size 16 --optimizer muon --schedule cosine --warmup-steps 40 --epochs 1000 "
    "--sample-every 0 --eval-every 150"
)
# as in make demo, from layers that read already
PLAIN = "--lr 1e-3 --text-dropout 0.1 --distill-draws 2"


def shallow_base(folder: Path, teacher: Path | None) -> Path:
    """The nano base with LAYERS layers: its shape alone, or with weights, the lowest and highest layers of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((ROOT / "demo" / "base.yaml").read_text(encoding="utf-8"))
    config["flow_lm"]["transformer"]["num_layers"] = LAYERS
    config["flow_lm"]["lookup_table"]["tokenizer_path"] = str(ROOT / "demo" / "tokenizer.json")
    config["mimi"]["weights_path"] = str(ROOT / "demo" / "codec.safetensors")
    config["weights_path"] = "flow_lm.safetensors"
    if teacher:
        theirs = load_config(str(find_bundle(teacher) / "arabic.yaml"), bundled=True)
        shape = theirs.model_copy(deep=True)
        shape.flow_lm.transformer.num_layers = LAYERS
        weights = student_of(shape, theirs, load_weights(theirs))[1]
        save_file(
            {name: tensor for name, tensor in weights.items() if name.startswith("flow_lm.")},
            folder / "flow_lm.safetensors",
        )
    else:
        del config["weights_path"]
    (folder / "base.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "base.yaml"


def trained(out: Path, flags: str) -> dict:
    return train(out, [*shlex.split(COMMON), *shlex.split(flags)])


def heard(run: Path, guidance: float, seed: int, scorer: str) -> dict:
    """Errors in the test split's sentences as a run speaks them, unless they are known already."""
    folder = run / f"heard_{guidance:g}"
    folder.mkdir(exist_ok=True)
    if (folder / "heard.json").exists():
        return json.loads((folder / "heard.json").read_text(encoding="utf-8"))
    clips = speak_split(find_bundle(run), Cache(DATA), folder, seed=seed, guidance=guidance)
    found = score(clips, scorer)[1]
    found = {key: found[key] for key in ("cer_no_marks_mean", "cer_no_marks_median", "cer_mean")} | {
        "ends": sum(c.ended for c in clips)
    }
    write_json(folder / "heard.json", found)
    return found


def main() -> None:
    p = parser(__doc__, ROOT / "samples" / "teacher_student.json")
    p.add_argument("--runs", type=Path, default=Path("runs"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    p.add_argument("--weights", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0], help="of guidance")
    p.add_argument("--steps", type=int, default=400, help="of a student")
    p.add_argument("--lr", type=float, default=1e-3, help="of a student")
    p.add_argument(
        "--plain-steps",
        type=int,
        default=560,
        help="of the plain model, which take the CPU time of the shallow student's",
    )
    args = p.parse_args()
    use_all_cores()
    rows = []

    def note(name: str, run: Path, seed: int, guidance: float = 1.0, **more: object) -> None:
        rows.append(
            {"model": name, "seed": seed, "guidance": guidance, **heard(run, guidance, seed, args.scorer), **more}
        )
        print(json.dumps(rows[-1]), flush=True)

    for seed in args.seeds:
        for weight in args.weights:
            note("adapted base" if weight == 1 else "adapted base, guided", args.runs / f"base-{seed}", seed, weight)
    guided = {
        weight: statistics.mean(r["cer_no_marks_mean"] for r in rows if r["guidance"] == weight)
        for weight in args.weights
        if weight != 1
    }
    best = min(guided, key=guided.get)
    for seed in args.seeds:
        base = args.runs / f"base-{seed}"
        flags = f"--teacher {base} --guidance {best:g} --lr {args.lr:g} --max-steps {args.steps} --seed {seed}"
        same = trained(args.runs / f"same-{seed}", flags)
        note("student, five layers", args.runs / f"same-{seed}", seed, **same)
        shape = shallow_base(args.runs / "shape", None)
        note(
            "student, three layers",
            args.runs / f"shallow-{seed}",
            seed,
            **trained(args.runs / f"shallow-{seed}", f"{flags} --base {shape}"),
        )
        start = shallow_base(args.runs / f"start-{seed}", base)
        plain = trained(
            args.runs / f"plain-{seed}", f"{PLAIN} --base {start} --max-steps {args.plain_steps} --seed {seed}"
        )
        note("plain, three layers", args.runs / f"plain-{seed}", seed, **plain)
    write(args.out, {"guidance": best, "rows": rows})


if __name__ == "__main__":
    command(main)
