#!/usr/bin/env python3
"""What each part of the codec's recipe contributes: demo/train_codec.py without it, or with another, for equal time.

    apt-get install espeak-ng
    python measure/codec_parts.py                                        # 40 minutes a part on one CPU core
    python measure/codec_parts.py --minutes 0.2 --clips 2 --sentences 1 --out runs/codec_parts.json    # does it run?

Writes  --work, a folder a part with checkpoint and progress; --out, JSON: of each part the steps it made and how its
        round trips of test clips differ from the recordings, and what a scorer hears. What is there is not made again.
"""

import argparse
import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import yaml
from codec import departures, kept, round_trips, voices
from harness import ROOT, parser, score, write
from pocket_tts.models.mimi import MimiModel

sys.path.insert(0, str(ROOT / "demo"))
import train_codec
from train_codec import SAMPLE_RATE

from pocket_arabic.evaluation import Sound
from pocket_arabic.run import command, location, real, whole, write_json


def wide_decoder(args: argparse.Namespace) -> None:
    config = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    config["mimi"]["decoder_seanet"] |= {"n_filters": 36}
    args.config = args.work / "wide.yaml"
    args.config.write_text(yaml.safe_dump(config), encoding="utf-8")


def nothing(*_: object) -> None:
    """In the place of `scale_layers`, and where a part does nothing."""


# Of the time each part takes: the encoder's, and of the decoder's. A voice in step takes some 1,000 steps.
ENCODER_SHARE, SHARES = 0.3, {"melody_share": 0.3, "ramp_share": 0.3, "critic_share": 0.8}
# A part: what stands in the module for it, what in the arguments, and what it does to the arguments.
PARTS: dict[str, dict] = {
    "recipe": {},
    "no pitch in the sketch": {"module": {"PERIODS_WEIGHT": 0.0, "VOICING_WEIGHT": 0.0}},
    "sketch without replays": {"module": {"REPLAYS": 0}},
    "latents not asked to stay": {"module": {"STILL_WEIGHT": 0.0}},
    "without the low waveform": {"module": {"MELODY_WEIGHT": 0.0}},
    "low waveform and spectra at once": {"args": {"melody_share": 0.0, "ramp_share": 0.0}},
    "speech as it was heard": {"module": {"in_step": lambda audio: audio}},
    "layers as PyTorch starts them": {"module": {"scale_layers": nothing}},
    "AdamW for all": {"module": {"MUON_LEAST": 10**9}},
    "without discriminators": {"args": {"critic_share": 1.0}},
    "discriminators early": {"args": {"critic_share": 0.4}},
    "decoder half as wide again": {"before": wide_decoder},
}


def trained(work: Path, audio: np.ndarray, minutes: float, part: dict) -> tuple[MimiModel, int]:
    """A codec of so many minutes, its averaged weights, and the steps of its decoder."""
    work.mkdir(parents=True, exist_ok=True)
    args = train_codec.parse_args(["--work", str(work), "--threads", "1"])
    hours = {"encoder_hours": ENCODER_SHARE * minutes / 60, "decoder_hours": (1 - ENCODER_SHARE) * minutes / 60}
    vars(args).update(SHARES | hours | part.get("args", {}))
    part.get("before", nothing)(args)
    torch.manual_seed(args.seed)
    with patch.multiple(train_codec, **{"MUON_LEAST": train_codec.MUON_LEAST} | part.get("module", {})):
        return train_codec.train(args, audio)


def main() -> None:
    p = parser(__doc__, ROOT / "samples" / "codec_parts.json")
    p.add_argument("--minutes", type=real(0.01, 600), default=40.0, help="of one core, a part")
    p.add_argument("--clips", type=whole(1), default=4000, help="espeak-ng clips to train on")
    p.add_argument("--sentences", type=whole(1), default=20, help="of the corpus's test split, to compare")
    p.add_argument("--work", type=location, default=Path("runs/codec_parts"))
    args = p.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "audio.npy").exists():
        train_codec.synthesise(args.work, args.clips, 0)
    audio = np.load(args.work / "audio.npy", mmap_mode="r")
    rows, recorded = zip(*next(voices(args.sentences))[1])
    originals, parts = [Sound.of(samples, SAMPLE_RATE) for samples in recorded], {}
    for name, part in PARTS.items():
        work = args.work / name.replace(" ", "_")
        if not (done := work / "result.json").exists():
            mimi, steps = trained(work, audio, args.minutes, part)
            spoken = round_trips(mimi, list(recorded), 0.0)
            heard = score(kept(work / "heard", rows, spoken), args.scorer)[1]
            write_json(done, {"steps": steps, **departures(originals, spoken), **heard})
        parts[name] = json.loads(done.read_text(encoding="utf-8"))
        print(name, parts[name], flush=True)
    write(args.out, {"minutes": args.minutes, "parts": parts})


if __name__ == "__main__":
    command(main)
