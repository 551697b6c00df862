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

import librosa
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from codec import departures, kept, round_trips, voices
from harness import ROOT, parser, score, write
from torch import nn

sys.path.insert(0, str(ROOT / "demo"))
import train_codec
from train_codec import FRAME, SAMPLE_RATE, Training

from pocket_arabic.evaluation import PITCH_HZ, Sound
from pocket_arabic.run import command, location, real, whole, write_json


class PitchHead(nn.Module):
    """In the place of `MelodyDistance`: how well a linear layer reads log pitch and voicing from the disturbed latents,
    frame by frame. It hears the latents where `train_codec.decode` gets them."""

    def __init__(self, training: Training):
        super().__init__()
        self.head, decode = nn.Linear(32, 2), train_codec.decode
        training.optimiser.add_param_group({"params": self.head.parameters(), "scale": 1.0})

        def listening(mimi, latents):
            self.latents = latents
            return decode(mimi, latents)

        train_codec.decode = listening

    def forward(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Absolute error of log2 pitch over a third of an octave, where voiced, and cross-entropy of voicing."""
        hop = FRAME // 4
        pitch = librosa.yin(
            real[:, 0].numpy(), fmin=PITCH_HZ[0], fmax=PITCH_HZ[1], sr=SAMPLE_RATE, frame_length=2048, hop_length=hop
        )[:, :-1]
        frames = librosa.util.frame(np.pad(real[:, 0].numpy(), ((0, 0), (0, 2048))), frame_length=2048, hop_length=hop)
        frames = frames[..., : pitch.shape[1]]
        lag = np.round(SAMPLE_RATE / pitch).astype(int)
        first, later = frames[:, :1024], np.take_along_axis(frames, lag[:, None] + np.arange(1024)[:, None], 1)
        sure = (first * later).sum(1) / np.sqrt((first**2).sum(1) * (later**2).sum(1) + 1e-6)
        voiced = torch.from_numpy(sure > 0.7).unflatten(1, (-1, 4)).float().mean(2)
        octaves = torch.from_numpy(np.log2(pitch / 110)).unflatten(1, (-1, 4)).float().median(2).values
        guess = self.head(self.latents)
        miss = ((guess[..., 0] - 3 * octaves).abs() * voiced).sum() / (voiced.sum() + 1)
        return miss + F.binary_cross_entropy_with_logits(guess[..., 1], voiced)


def wide_decoder(args: argparse.Namespace) -> None:
    config = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    config["mimi"]["decoder_seanet"] |= {"n_filters": 36}
    args.config = args.work / "wide.yaml"
    args.config.write_text(yaml.safe_dump(config), encoding="utf-8")


def nothing(*_: object) -> None:
    """In the place of `scale_layers`, and where a part does nothing."""


# Of the time each part takes: a voice in step takes some 1,000 steps of the low waveform.
SHARES = {"melody_share": 0.4, "ramp_share": 0.3, "still_share": 0.7, "critic_share": 0.85}
# A part: what stands in the module for it, what in the arguments, and what it does to arguments and training.
PARTS: dict[str, dict] = {
    "recipe": {},
    "without the low waveform": {"module": {"MELODY_WEIGHT": 0.0}},
    "low waveform and spectra at once": {"args": {"melody_share": 0.0, "ramp_share": 0.0}},
    "spectra with all their weight": {"args": {"ramp_share": 0.0}},
    "speech as it was heard": {"module": {"in_step": lambda audio: audio}},
    "latents not asked to stay": {"args": {"still_share": 1.0}},
    "layers as PyTorch starts them": {"module": {"scale_layers": nothing}},
    "AdamW for all": {"module": {"MUON_LEAST": 10**9}},
    "without discriminators": {"args": {"critic_share": 1.0}},
    "discriminators early": {"args": {"critic_share": 0.4}},
    "pitch head for the low waveform": {
        "args": {"melody_share": 0.0, "ramp_share": 0.0},  # the head alone would leave the decoder without a gradient
        "after": lambda training: setattr(training, "melody", PitchHead(training)),
    },
    "decoder half as wide again": {"before": wide_decoder},
}


def trained(work: Path, audio: np.ndarray, minutes: float, part: dict) -> Training:
    """A codec of so many minutes, its averaged weights."""
    work.mkdir(parents=True, exist_ok=True)
    args = train_codec.parse_args(["--work", str(work), "--hours", str(minutes / 60), "--threads", "1"])
    vars(args).update(SHARES | part.get("args", {}))
    part.get("before", nothing)(args)
    torch.manual_seed(args.seed)
    with patch.multiple(train_codec, **{"decode": train_codec.decode} | part.get("module", {})):
        training = Training(args, audio)
        part.get("after", nothing)(training)
        training.run()
    training.mimi.load_state_dict(training.ema)
    return training


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
            training = trained(work, audio, args.minutes, part)
            spoken = round_trips(training.mimi, list(recorded), 0.0)
            heard = score(kept(work / "heard", rows, spoken), args.scorer)[1]
            write_json(done, {"steps": training.step, **departures(originals, spoken), **heard})
        parts[name] = json.loads(done.read_text(encoding="utf-8"))
        print(name, parts[name], flush=True)
    write(args.out, {"minutes": args.minutes, "parts": parts})


if __name__ == "__main__":
    command(main)
