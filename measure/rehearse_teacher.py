#!/usr/bin/env python3
"""The two-step recipe at its real size, with random weights from a stand-in for the hub: prepare, teach, distil, speak.

Writes  --out, JSON: seconds a step and peak memory of teacher (24 layers) and student (6), the file sizes, and the
commands.

    python measure/rehearse_teacher.py                  # CPU: some 20 GB of disk, 12 GiB of memory
    python measure/rehearse_teacher.py --width 32       # does it run?
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import ROOT, write
from hub import Hub, Repository, clartts_lookalike, random_release, release_config
from pocket_tts.utils.config import Config
from release import write_config

from pocket_arabic.base import build_flow_lm
from pocket_arabic.run import Parser, command, location, read_jsonl

TEACHER, STUDENT = "english_2026-04_24l", "english"


def narrowed(config: Config, width: int) -> Config:
    """The same model with every width a small one: 24 layers stay 24."""
    lm, mimi = config.flow_lm, config.mimi
    lm.flow.dim = lm.lookup_table.dim = lm.transformer.d_model = width
    lm.transformer.num_heads = 2
    mimi.outer_dim = mimi.quantizer.output_dimension = mimi.seanet.dimension = 16
    mimi.seanet.n_filters = 2
    part = mimi.transformer
    part.d_model = part.input_dimension = 16
    part.num_heads, part.dim_feedforward, part.output_dimensions = 2, 32, (16,)
    return config


def make_hub(folder: Path, width: int | None, rows: int) -> tuple[Hub, dict[str, str]]:
    """A stand-in with both models and a corpus, and what --base says for each model."""
    bases = {}
    for name in (TEACHER, STUDENT):
        config = release_config(name)
        if width:
            write_config(folder / f"{name}.yaml", config := narrowed(config, width))
        bases[name] = f"{name}.yaml" if width else name
        random_release(folder / "hub", build_flow_lm, config=config, name=name)
    clartts_lookalike(folder / "clartts", rows, 4, 1, seconds=(4.0, 7.0))
    models = ("kyutai/pocket-tts", "kyutai/pocket-tts-without-voice-cloning")
    release = {f"models/{name}": Repository(folder / "hub") for name in models}
    return Hub(release | {"datasets/MBZUAI/ClArTTS": Repository(folder / "clartts")}), bases


def run(line: str, folder: Path, hub: Hub) -> str:
    """A script's run in `folder` -> what it printed."""
    script, *args = shlex.split(line)
    env = os.environ | hub.environment(folder / "hf") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, ROOT / script, *args], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{line}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return done.stdout


def rehearse(folder: Path, width: int | None, rows: int, steps: int, batch: int) -> dict:
    """All three scripts' runs in `folder`, from a hub of its own. Raises RuntimeError."""
    stand_in, bases = make_hub(folder, width, rows)
    train = (
        f"train.py --data data/clartts --batch-size {batch} --max-steps {steps} --log-every 1 --eval-every 0 "
        "--sample-every 0 --keep 1 --warmup-steps 1"
    )
    lines = {
        "prepare": f"data_prep.py --base {bases[TEACHER]} --out data/clartts",
        "teach": f"{train} --out runs/teacher",
        "distil": f"{train} --out runs/student --base {bases[STUDENT]} --teacher runs/teacher --guidance 2",
        "speak": "generate_sample.py --model runs/student --romanized --text 'AlS~aboru mifotaAHu.' --out said.wav",
    }
    with stand_in as hub:
        printed = {what: run(line, folder, hub) for what, line in lines.items()}
    found: dict[str, dict] = {what: {"command": f"python {line}"} for what, line in lines.items()}
    for what, name in (("teach", "teacher"), ("distil", "student")):
        out = folder / "runs" / name
        logged = [r for r in read_jsonl(out / "progress.jsonl") if r["kind"] == "train"]
        found[what] |= {"step_sec": min(r["step_sec"] for r in logged), "memory_gib": logged[-1]["memory_gib"]}
        found[what] |= {"batch": batch, "bundle_bytes": (out / "bundle" / "model.safetensors").stat().st_size}
    found["speak"]["sec_of_speech"] = float(re.search(r"([\d.]+) s of speech", printed["speak"])[1])
    return found


def main() -> None:
    p = Parser(__doc__)
    p.add_argument("--width", type=int, help="narrow every layer to so much")
    p.add_argument("--rows", type=int, default=16, help="utterances of the corpus, 4 to 7 s each")
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--batch-size", type=int, default=4)
    p.add_argument("--out", type=location, default=ROOT / "samples" / "rehearsal.json")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = rehearse(Path(folder), args.width, args.rows, args.steps, args.batch_size)
    write(args.out, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    command(main)
