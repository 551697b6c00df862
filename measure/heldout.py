#!/usr/bin/env python3
"""Render the held-out sentences for listening and measuring: as recorded, through the codec, and spoken by a model.

Reads   a cache of the embedded corpus (made without --limit) or of another folder, its clips, and a run or bundle.
Writes  OUT/{original,codec,codec_noise_0.1,codec_noise_0.3,generated}/ID.wav, each with pairs.jsonl ({"wav", "text"}),
        which any recogniser can score, and OUT/heldout.json: duration ratios, EOS, real-time factor, scores.

    python demo/render_heldout.py
    python demo/render_heldout.py --data data/english --clips data/english_corpus/clips --model runs/english --out runs/english_heldout
    python demo/render_heldout.py --stock 20 --scorer "python recogniser.py --list"

The scorer is any command that takes a pairs.jsonl and prints a JSON summary as its last line. --stock N also speaks the
first N sentences with the stock `pocket-tts generate`, from Arabic script, inside the bundle's folder. --bare speaks the
sentences stripped of their marks, scored against the text with them.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pocket_tts.modules.stateful_module import init_states
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pocket_arabic.audio import read_audio, write_wav  # noqa: E402
from pocket_arabic.base import decode_latents  # noqa: E402
from pocket_arabic.cache import Cache  # noqa: E402
from pocket_arabic.checkpoint import find_bundle  # noqa: E402
from pocket_arabic.run import command, write_json  # noqa: E402
from pocket_arabic.speech import Request, load_bundle, speak_batch, voice_state  # noqa: E402
from pocket_arabic.text import MARKS_MODEL  # noqa: E402


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("data/demo"))
    p.add_argument("--model", type=Path, default=Path("runs/demo"), help="run or bundle")
    p.add_argument("--clips", type=Path, default=ROOT / "demo" / "corpus" / "clips", help="where the corpus has its audio")
    p.add_argument("--out", type=Path, default=Path("runs/heldout"))
    p.add_argument("--seed", type=int, default=0, help="fixes the latent noise and the speech")
    p.add_argument("--only-generated", action="store_true", help="nothing of the originals and the codec")
    p.add_argument("--bare", action="store_true", help="speak the texts without their marks")
    p.add_argument("--voice", action=argparse.BooleanOptionalAction, default=True, help="with the bundle's voice prompt, or with none")
    p.add_argument("--stock", type=int, default=0, help="sentences to speak with the stock command line too")
    p.add_argument("--scorer", help="command that scores a pairs.jsonl")
    args = p.parse_args()
    cache, bundle = Cache(args.data), find_bundle(args.model)
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    model, rows = load_bundle(bundle), cache.split("test")
    voice = voice_state(model, bundle / "voice.wav") if args.voice else init_states(model.flow_lm, 1, 1)
    deviation = np.asarray(cache.latents).std(0)
    noise = np.random.default_rng(args.seed)
    pairs: dict[str, list[dict]] = {}
    ratios, missed, start = {}, [], time.monotonic()
    texts = [row["text_model"] for row in rows]
    if args.bare:
        texts = ["".join(c for c in text if c not in MARKS_MODEL) for text in texts]
    every = speak_batch(model, [Request(text, voice, args.seed) for text in texts])
    elapsed, speech = time.monotonic() - start, sum(len(spoken.audio) for spoken in every) / model.sample_rate
    for index, (row, spoken) in enumerate(zip(tqdm(rows, disable=None), every)):
        latents = np.array(cache.row_latents(row))
        draw = noise.standard_normal(latents.shape).astype("float32") * deviation
        generated = spoken.audio
        if not spoken.ended:
            missed.append(row["id"])
        ratios[row["id"]] = round(len(generated) / model.sample_rate / row["duration_sec"], 3)
        audio = {"generated": generated}
        if not args.only_generated:
            audio |= {
                "original": read_audio(next(args.clips.glob(f"{row['id']}.*")), model.sample_rate),
                "codec": decode_latents(model.mimi, torch.from_numpy(latents)),
                "codec_noise_0.1": decode_latents(model.mimi, torch.from_numpy(latents + 0.1 * draw)),
                "codec_noise_0.3": decode_latents(model.mimi, torch.from_numpy(latents + 0.3 * draw)),
            }
        if index < args.stock:
            audio |= {"generated_as_stock": generated, "stock": stock_speech(bundle, row["text"], model.sample_rate)}
        for kind, samples in audio.items():
            wav = args.out / kind / f"{row['id']}.wav"
            wav.parent.mkdir(parents=True, exist_ok=True)
            write_wav(wav, samples, model.sample_rate)
            pairs.setdefault(kind, []).append({"wav": str(wav), "text": row["text"]})
    values = list(ratios.values())
    report = {
        "command": shlex.join(["python", "demo/render_heldout.py", *sys.argv[1:]]),
        "checkpoint": info["checkpoint"],
        "sentences": len(values),
        "eos_reached": len(values) - len(missed),
        "eos_missed": missed,
        "duration_ratio_median": float(np.median(values)),
        "duration_ratio_0.7_to_1.4": sum(0.7 <= v <= 1.4 for v in values),
        "duration_ratios": ratios,
        "real_time_factor": round(elapsed / speech, 4),
        "scores": {},
    }
    for kind, rows in pairs.items():
        listing = args.out / kind / "pairs.jsonl"
        listing.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        if args.scorer:
            scored = subprocess.run([*shlex.split(args.scorer), str(listing)], capture_output=True, text=True, check=True)
            report["scores"][kind] = json.loads(scored.stdout.splitlines()[-1])
    write_json(args.out / "heldout.json", report)
    print(json.dumps({k: v for k, v in report.items() if k != "duration_ratios"}, indent=1))


def stock_speech(bundle: Path, text: str, rate: int) -> np.ndarray:
    """Arabic script -> audio [samples] by the wheel's own command line, run where a user would run it."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "stock.wav"
        command = [Path(sys.executable).with_name("pocket-tts"), "generate", "--config", "arabic.yaml", "--voice", "voice.wav"]
        # Its exit status says nothing: the wheel's threads may abort the interpreter on its way out, after the wav is written.
        subprocess.run([*command, "--text", text, "--output-path", wav], cwd=bundle, capture_output=True)
        return read_audio(wav, rate)


if __name__ == "__main__":
    command(main)
