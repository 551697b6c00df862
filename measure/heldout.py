#!/usr/bin/env python3
"""The held-out sentences as recorded, through the codec, also with noise in its latents, and as a model says them.

Reads   a cache, the recordings it was made of, and a run or bundle.
Writes  --out, JSON: ends, durations, what a scorer makes of each kind of speech; --wavs, KIND/ID.wav of what it heard.

    python measure/heldout.py --model runs/demo
    python measure/heldout.py --model demo/bundle --sentences 2 --out runs/heldout.json       # does it run?

The English base (samples/english.json), heard by Whisper; measure/whisper_ear.py says how to set that up:

    python measure/heldout.py --data data/english --model runs/english --wavs runs/english_heldout \\
        --out samples/english.json --scorer ".venv-whisper/bin/python measure/whisper_ear.py"
"""

import json
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, Clip, clip, parser, score, speak_split, summarise, write
from pocket_tts.models.mimi import MimiModel

from pocket_arabic.base import decode_latents, load_config, load_mimi, load_weights
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import find_bundle
from pocket_arabic.evaluation import recordings
from pocket_arabic.run import command, location, whole

NOISES = (0.0, 0.1, 0.3)  # in deviations of the latents


def through_codec(mimi: MimiModel, cache: Cache, rows: list[dict], seed: int, wavs: Path) -> dict[str, list[Clip]]:
    """Rows decoded from the cache, by the noise in their latents."""
    deviation, generator = np.asarray(cache.latents).std(0), np.random.default_rng(seed)
    clips: dict[str, list[Clip]] = {}
    for row in rows:
        latents = np.array(cache.row_latents(row))
        noise = generator.standard_normal(latents.shape).astype("float32") * deviation
        for share in NOISES:
            kind = f"codec_noise_{share}" if share else "codec"
            audio = decode_latents(mimi, torch.from_numpy(latents + share * noise))
            clips.setdefault(kind, []).append(clip(wavs / kind, row, audio, mimi.sample_rate))
    return clips


def main() -> None:
    p = parser(__doc__, ROOT / "samples" / "heldout.json")
    p.add_argument("--data", type=location, default=Path("data/demo"), help="cache")
    p.add_argument("--model", type=location, default=Path("runs/demo"), help="run or bundle")
    p.add_argument("--sentences", type=whole(1), help="of the test split; default all")
    p.add_argument("--seed", type=whole(0), default=0, help="fixes the noise in the latents and in the speech")
    p.add_argument("--wavs", type=location, default=Path("runs/heldout"), help="where what is scored can be heard")
    args = p.parse_args()
    cache, bundle = Cache(args.data), find_bundle(args.model)
    config = load_config(str(bundle / "arabic.yaml"), bundled=True)
    mimi, rows = load_mimi(config, load_weights(config)), cache.split("test")[: args.sentences]
    by_id = {row["id"]: row for row in rows}

    generated = speak_split(bundle, cache, args.wavs / "generated", seed=args.seed, sentences=args.sentences)
    recorded = recordings(cache, rows, mimi.sample_rate)
    original = [clip(args.wavs / "original", by_id[i], audio, mimi.sample_rate) for i, audio in recorded]
    kinds = {"generated": generated, "original": original, **through_codec(mimi, cache, rows, args.seed, args.wavs)}

    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    scores = {kind: score(clips, args.scorer)[1] for kind, clips in kinds.items()}
    write(args.out, {"checkpoint": info["checkpoint"], **summarise(generated), "scores": scores})


if __name__ == "__main__":
    command(main)
