#!/usr/bin/env python3
"""Keep the result of a run in demo/: its FlowLM as the nano base, or its bundle as demo/bundle.

    python demo/keep.py base runs/english      # -> demo/flow_lm.safetensors, demo/base_progress.jsonl
    python demo/keep.py bundle runs/arabic     # -> demo/bundle/, demo/bundle_progress.jsonl

The FlowLM's matrices are stored in fp16, which halves them; loading makes them fp32 again.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from pocket_arabic.checkpoint import copy_bundle, find_bundle, seal  # noqa: E402
from pocket_arabic.run import command  # noqa: E402


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.half() if k.startswith("flow_lm.") and v.ndim == 2 else v for k, v in state.items()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("base", "bundle"))
    p.add_argument("run", type=Path, help="a finished run of train.py")
    args = p.parse_args()
    bundle = find_bundle(args.run)
    state = halved(load_file(bundle / "model.safetensors"))
    if args.what == "base":
        save_file({k: v for k, v in state.items() if k.startswith("flow_lm.")}, HERE / "flow_lm.safetensors")
    else:
        shutil.rmtree(HERE / "bundle", ignore_errors=True)
        info = copy_bundle(bundle, HERE / "bundle")
        save_file(state, HERE / "bundle" / "model.safetensors")
        seal(HERE / "bundle", info)
    shutil.copyfile(args.run / "progress.jsonl", HERE / f"{args.what}_progress.jsonl")


if __name__ == "__main__":
    command(main)
