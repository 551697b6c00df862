#!/usr/bin/env python3
"""What each part of the codec's recipe contributes: demo/train_codec.py without it, or with another, for equal time.

    apt-get install espeak-ng
    python measure/codec_parts.py                                        # 12 minutes a part on one CPU core
    python measure/codec_parts.py --minutes 0.2 --sentences 1 --work /tmp/parts --out /tmp/codec_parts.json \
        --parts recipe "AdamW for all"                                   # does it run?

Every part is a decoder from random weights on the same code (stage 2 of that script), which is also what it then speaks
test sentences from: what it is worth is not hidden behind an encoder.

Reads   --work, frames and code as demo/train_codec.py keeps them, made there if it has none.
Writes  --work/parts, a folder a part with checkpoint and progress; --out, JSON: of each part the steps it made, how
        what it says differs from the recordings, and what a scorer hears. What is there is not made again.
"""

import argparse
import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from codec import departures, kept, voices
from harness import ROOT, parser, score, write
from pocket_tts.models.mimi import MimiModel

sys.path.insert(0, str(ROOT / "demo"))
import train_codec
from train_codec import FRAME, MEL_FLOOR, SAMPLE_RATE, Code, Frames

from pocket_arabic.base import decode_latents
from pocket_arabic.evaluation import Sound
from pocket_arabic.run import command, location, real, whole, write_json


def nothing(*_: object) -> None:
    """In the place of `scale_layers`."""


# Shares of the few minutes, and what stands in their place: in the module, in the arguments, in the config's `mimi`.
SHARES = {"floor_share": 0.4, "critic_share": 0.85}
SLOW = {"ratios": [20, 12, 8]}
PARTS: dict[str, dict] = {
    "recipe": {},
    "speech as it was heard": {"speech": lambda frames: frames.heard[:, FRAME:-FRAME]},
    "without the low waveform": {"module": {"MELODY_WEIGHT": 0.0}},
    "without discriminators": {"args": {"critic_share": 1.0}},
    "discriminators from the start": {"args": {"critic_share": 0.0}},
    "a third fewer channels": {"mimi": {"decoder_seanet": {"n_filters": 16}}},
    "transformers at 12.5 Hz": {
        "mimi": {"seanet": SLOW, "decoder_seanet": SLOW, "transformer": {"output_dimensions": [32]}}
    },
    "faint sounds from the start": {"module": {"HIGH_FLOOR": MEL_FLOOR}},
    "AdamW for all": {"module": {"MUON_LEAST": 10**9}},
    "layers as PyTorch starts them": {"module": {"scale_layers": nothing}},
}


def trained(
    args: argparse.Namespace, part: dict, work: Path, codes: np.ndarray, frames: Frames
) -> tuple[MimiModel, int]:
    """A decoder of so many minutes, its averaged weights, and the steps it made."""
    work.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    for name, sizes in part.get("mimi", {}).items():
        config["mimi"][name] = config["mimi"][name] | sizes
    (work / "base.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    settings = train_codec.parse_args(["--config", str(work / "base.yaml"), "--work", str(args.work)])
    vars(settings).update(SHARES | part.get("args", {}))
    torch.manual_seed(settings.seed)
    speech = part.get("speech", lambda frames: frames.speech)(frames)
    with patch.multiple(train_codec, **{"MUON_LEAST": train_codec.MUON_LEAST} | part.get("module", {})):
        mimi, settings.work = train_codec.start(settings), work
        training = train_codec.DecoderTraining(settings, mimi, codes, speech)
        training.run(args.minutes / 60, args.minutes / 60)
    return training.mimi, training.step


@torch.no_grad()
def spoken(mimi: MimiModel, code: Code, audio: list[np.ndarray]) -> list[np.ndarray]:
    """Clips [samples] as the decoder says them from their code."""
    longer = (F.pad(torch.from_numpy(samples)[None], (FRAME, FRAME)) for samples in audio)
    heard = (train_codec.tensors(train_codec.frames_of(each), slice(None)) for each in longer)
    return [decode_latents(mimi, code(*each)[0]) for each in heard]


def main() -> None:
    p = parser(__doc__, ROOT / "samples" / "codec_parts.json")
    p.add_argument("--config", type=location, default=ROOT / "demo" / "next" / "base.yaml", help="of the codec")
    p.add_argument("--minutes", type=real(0.01, 600), default=12.0, help="of one core, a part")
    p.add_argument("--sentences", type=whole(1), default=20, help="of the corpus's test split, to compare")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="which; all")
    p.add_argument("--work", type=location, default=Path("runs/codec"))
    args = p.parse_args()
    torch.set_num_threads(1)
    settings = train_codec.parse_args(["--config", str(args.config), "--work", str(args.work)])
    train_codec.hear(settings)
    frames = train_codec.load_frames(args.work)
    code, codes = train_codec.learn_code(settings, frames), np.load(args.work / "codes.npy")
    rows, recorded = zip(*dict(voices(args.sentences))["its own"])
    originals, parts = [Sound.of(samples, SAMPLE_RATE) for samples in recorded], {}
    for name in args.parts:
        work = args.work / "parts" / name.replace(" ", "_")
        if not (done := work / "result.json").exists():
            mimi, steps = trained(args, PARTS[name], work, codes, frames)
            clips = spoken(mimi, code, list(recorded))
            heard = score(kept(work / "heard", rows, clips), args.scorer)[1]
            write_json(done, {"steps": steps, **departures(originals, clips), **heard})
        parts[name] = json.loads(done.read_text(encoding="utf-8"))
        print(name, parts[name], flush=True)
    write(args.out, {"minutes": args.minutes, "parts": parts})


if __name__ == "__main__":
    command(main)
