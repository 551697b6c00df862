#!/usr/bin/env python3
"""What a codec keeps of speech: clips beside their round trips, without and with noise in the latents.

    apt-get install espeak-ng
    python measure/codec.py                                                 # demo's: samples/codec.json
    python measure/codec.py --weights runs/codec/new.safetensors --clips 8 --out runs/codec.json

Reads   demo/corpus, whose test sentences it hears as recorded and, by espeak-ng, in the voice that demo/train_codec.py
        trains for and in another; English lines of that script. The codec was trained on none of these sentences.
Writes  --out, JSON: for each voice, of round trips with and without noise and of the codec's target (`in step`), what
        differs (distortion, pitch, voicing) and, of Arabic, what a scorer hears; how much of the corpus's latents
        changes when its audio moves by some ms; --wavs, VOICE/KIND/ID.wav.
"""

import csv
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, Clip, clip, parser, score, write
from pocket_tts.models.mimi import MimiModel
from safetensors.torch import load_file

sys.path.insert(0, str(ROOT / "demo"))
from build_corpus import espeak
from train_codec import FRAME, SAMPLE_RATE, english_lines, in_step

from pocket_arabic.audio import read_audio
from pocket_arabic.base import decode_latents, load_config, load_mimi
from pocket_arabic.checkpoint import sha256
from pocket_arabic.evaluation import Sound, distances
from pocket_arabic.run import command, location, whole

NOISES = (0.0, 0.1, 0.5)  # in deviations of the latents
MOVES_MS = (1, 2.5, 5, 10, 20, 80)
OTHER_VOICE, ENGLISH_VOICE = "ar+f2", "en"


def voices(number: int) -> Iterator[tuple[str, list[tuple[dict, np.ndarray]]]]:
    """(voice, what is known of each clip and its samples), whole frames each."""
    with open(ROOT / "demo" / "corpus" / "metadata.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"][:number]
    texts = [row["text"] for row in rows]
    lines = english_lines()
    english = [f"{line}." for line in lines[:: len(lines) // number][:number]]
    recorded = [read_audio(ROOT / "demo" / "corpus" / row["file_name"], SAMPLE_RATE) for row in rows]
    yield "corpus", described(texts, recorded)
    yield "its own", described(texts, [espeak(text) for text in texts])
    yield "another Arabic voice", described(texts, [espeak(text, OTHER_VOICE) for text in texts])
    yield "English", described(english, [espeak(text, ENGLISH_VOICE) for text in english])


def described(texts: list[str], audio: list[np.ndarray]) -> list[tuple[dict, np.ndarray]]:
    whole_frames = [samples[: len(samples) // FRAME * FRAME] for samples in audio]
    return [
        ({"id": f"{i:02d}", "text": text, "duration_sec": len(samples) / SAMPLE_RATE}, samples)
        for i, (text, samples) in enumerate(zip(texts, whole_frames))
    ]


@torch.no_grad()
def round_trips(mimi: MimiModel, audio: list[np.ndarray], noise: float) -> list[np.ndarray]:
    latents = [mimi.encode_to_latent(torch.from_numpy(samples)[None, None])[0] for samples in audio]
    deviation, generator = torch.cat(latents).std(0), torch.Generator().manual_seed(0)
    return [decode_latents(mimi, x + noise * deviation * torch.randn(x.shape, generator=generator)) for x in latents]


def phase_share(latents: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Of latents [B, T, C], what changes when the audio is `moved`: the mean over dimensions of the change's variance
    over that of two that know nothing of each other, 0 to 1."""
    change, variance = (latents - moved).square().mean((0, 1)), latents.var((0, 1))
    return (change / (2 * variance + 1e-6)).mean()


@torch.no_grad()
def moved(mimi: MimiModel, audio: list[np.ndarray]) -> dict[str, float]:
    """What part of the latents changes when the audio begins some ms later. Content changes in tens of ms; what changes
    in 5 is phase."""

    def latents(shift: int) -> list[torch.Tensor]:
        cut = [samples[shift:][: (len(samples) - shift) // FRAME * FRAME] for samples in audio]
        return [mimi.encode_to_latent(torch.from_numpy(samples)[None, None])[0] for samples in cut]

    first, found = latents(0), {}
    for ms in MOVES_MS:
        pairs = [(a[: len(b)], b) for a, b in zip(first, latents(round(ms * SAMPLE_RATE / 1000)))]
        found[str(ms)] = round(phase_share(*(torch.cat(part)[None] for part in zip(*pairs))).item(), 3)
    return found


def kept(folder: Path, rows: list[dict], spoken: list[np.ndarray]) -> list[Clip]:
    return [clip(folder, row, samples, SAMPLE_RATE) for row, samples in zip(rows, spoken)]


def departures(recorded: list[Sound], spoken: list[np.ndarray]) -> dict[str, float]:
    """The mean of each of `distances` over the clips; one without measurable pitch counts as a correlation of 0."""
    found = [distances(real, Sound.of(samples, SAMPLE_RATE)) for real, samples in zip(recorded, spoken)]
    return {key: round(statistics.fmean(clip[key] or 0.0 for clip in found), 4) for key in found[0]}


def main() -> None:
    p = parser(__doc__, ROOT / "samples" / "codec.json")
    p.add_argument("--config", type=location, default=ROOT / "demo" / "base.yaml", help="whose mimi section it is")
    p.add_argument("--weights", type=location, default=ROOT / "demo" / "codec.safetensors", help="codec")
    p.add_argument("--clips", type=whole(1), default=40, help="of each voice")
    p.add_argument("--wavs", type=location, default=Path("runs/codec_heard"), help="where what is scored can be heard")
    args = p.parse_args()
    torch.set_num_threads(1)
    mimi = load_mimi(load_config(str(args.config)), load_file(args.weights))
    found: dict[str, dict] = {}
    for voice, clips in voices(args.clips):
        rows, audio = zip(*clips)
        real = [Sound.of(samples, SAMPLE_RATE) for samples in audio]
        target = [in_step(torch.from_numpy(samples)[None])[0].numpy() for samples in audio]
        kinds = {"recording": audio, "in step": target}
        kinds |= {f"noise {noise}": round_trips(mimi, audio, noise) for noise in NOISES}
        for kind, spoken in kinds.items():
            clips = kept(args.wavs / voice / kind, rows, spoken)
            figures = {} if voice == "English" else score(clips, args.scorer)[1]
            if kind != "recording":
                figures |= departures(real, spoken)
            found.setdefault(voice, {})[kind] = figures
            print(voice, kind, figures, flush=True)
        if voice == "corpus":
            changes = moved(mimi, list(audio))
    write(
        args.out,
        {"weights": args.weights.name, "weights_sha256": sha256(args.weights), "moved_ms": changes, "voices": found},
    )


if __name__ == "__main__":
    command(main)
