#!/usr/bin/env python3
"""The two-step recipe at its real size, with random weights from a stand-in for the hub: prepare, teach, distil, speak.

Writes  --out, JSON: seconds a step and peak memory of teacher (24 layers) and student (6), the file sizes, and the
commands.

    python measure/rehearse_teacher.py                  # CPU: some 20 GB of disk, 12 GiB of memory
    python measure/rehearse_teacher.py --width 32       # does it run?
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from pocket_tts.utils.config import Config

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from hub import Hub, Repository, clartts_lookalike, random_release, release_config  # noqa: E402

from pocket_arabic.base import build_flow_lm  # noqa: E402
from pocket_arabic.run import command, provenance, read_jsonl, write_json  # noqa: E402

TEACHER, STUDENT = "english_2026-04_24l", "english"


def narrowed(config: Config, width: int) -> Config:
    """The same model with every width a small one: 24 layers stay 24."""
    lm, mimi = config.flow_lm, config.mimi
    lm.flow.dim = lm.lookup_table.dim = lm.transformer.d_model = width
    lm.transformer.num_heads = 2
    mimi.outer_dim = mimi.quantizer.output_dimension = mimi.seanet.dimension = 16
    mimi.seanet.n_filters = 2
    part = mimi.transformer
    part.d_model, part.num_heads, part.dim_feedforward, part.input_dimension, part.output_dimensions = (
        16,
        2,
        32,
        16,
        (16,),
    )
    return config


def rehearse(folder: Path, width: int | None, rows: int, steps: int, batch: int) -> dict:
    """All four scripts' runs in `folder`, from a hub of its own. Raises CalledProcessError."""
    bases = {}
    for name in (TEACHER, STUDENT):
        config = release_config(name)
        if width:
            config = narrowed(config, width)
            (folder / f"{name}.yaml").write_text(
                yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8"
            )
        bases[name] = f"{name}.yaml" if width else name
        random_release(folder / "hub", build_flow_lm, config=config, name=name)
    clartts_lookalike(folder / "clartts", rows, 4, 1, seconds=(4.0, 7.0))
    release, found = Repository(folder / "hub"), {}
    with Hub(
        {
            "models/kyutai/pocket-tts": release,
            "models/kyutai/pocket-tts-without-voice-cloning": release,
            "datasets/MBZUAI/ClArTTS": Repository(folder / "clartts"),
        }
    ) as hub:

        def run(what: str, line: str) -> str:
            env = os.environ | hub.environment(folder / "hf") | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, ROOT / line.split()[0], *shlex.split(line)[1:]],
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(f"{line}: {done.stdout[-500:]}{done.stderr[-2000:]}")
            found[what] = {"command": f"python {line}"}
            return done.stdout

        run("prepare", f"data_prep.py --base {bases[TEACHER]} --out data/clartts")
        common = (
            f"--data data/clartts --batch-size {batch} --max-steps {steps} --log-every 1 --eval-every 0 "
            "--sample-every 0 --keep 1 --warmup-steps 1"
        )
        run("teach", f"train.py {common} --out runs/teacher")
        run(
            "distil",
            f"train.py {common} --out runs/student --base {bases[STUDENT]} --teacher runs/teacher --guidance 2",
        )
        for what, out in (("teach", "teacher"), ("distil", "student")):
            logged = [r for r in read_jsonl(folder / "runs" / out / "progress.jsonl") if r["kind"] == "train"]
            found[what] |= {
                "step_sec": min(r["step_sec"] for r in logged),
                "memory_gib": logged[-1]["memory_gib"],
                "batch": batch,
            }
            found[what]["bundle_bytes"] = (folder / "runs" / out / "bundle" / "model.safetensors").stat().st_size
        text = run(
            "speak",
            "generate_sample.py --model runs/student --romanized --text 'AlS~aboru mifotaAHu.' --out said.wav",
        )
        found["speak"]["sec_of_speech"] = float(re.search(r"([\d.]+) s of speech", text)[1])
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--width", type=int, help="narrow every layer to so much")
    p.add_argument("--rows", type=int, default=16, help="utterances of the corpus, 4 to 7 s each")
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--batch-size", type=int, default=4)
    p.add_argument("--out", type=Path, default=ROOT / "samples" / "rehearsal.json")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = rehearse(Path(folder), args.width, args.rows, args.steps, args.batch_size)
    write_json(
        args.out,
        {"command": shlex.join(["python", "measure/rehearse_teacher.py", *sys.argv[1:]]), **found, **provenance()},
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    command(main)
