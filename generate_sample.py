#!/usr/bin/env python3
"""Bundle and Arabic text in, speech out, through the wheel's own inference.

Reads   --model: a run (runs/NAME), a bundle, or any folder with arabic.yaml, model.safetensors, voice.wav, bundle.json;
        default the newest run that has a bundle, else demo/bundle.
Writes  --out, a 24 kHz mono wav.

    python generate_sample.py --text "الصَّبْرُ مِفْتَاحُ الْفَرَجِ."
    python generate_sample.py --text "AlS~aboru mifotaAHu Alofaraji." --romanized
    python generate_sample.py --text "الصَّبْرُ مِفْتَاحُ الْفَرَجِ." --dry-run                   # what would be read, no model run

The same text, model, voice, options and --seed give the same file on the same machine.
"""

import argparse
import json
import time
from pathlib import Path

from pocket_tts.models.text_chunking import split_into_best_sentences

from pocket_arabic import __version__
from pocket_arabic import text as arabic
from pocket_arabic.audio import AudioError, write_wav
from pocket_arabic.checkpoint import find_bundle
from pocket_arabic.model import load_config, load_tokenizer, pieces
from pocket_arabic.run import ROOT, UserError, command
from pocket_arabic.speech import EosWatch, load_bundle, speak

BARE_SHARE = 0.3  # warn above this share of letters without the mark they need; vocalised prose leaves out far fewer


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--version", action="version", version=__version__)
    g = p.add_argument_group("what")
    g.add_argument("--text", required=True, help="vocalised Arabic")
    g.add_argument("--romanized", action="store_true", help="--text is Buckwalter, not Arabic script")
    g.add_argument("--numbers", action=argparse.BooleanOptionalAction, default=True, help="read digits as words")
    g.add_argument("--model", type=Path, help="run or bundle folder")
    g.add_argument("--voice", type=Path, help="reference recording of the voice; default the bundle's voice.wav")
    g.add_argument("--out", type=Path, default=Path("sample.wav"), help="wav file to write")
    g.add_argument("--dry-run", action="store_true", help="show normalised Arabic, Buckwalter, tokens and chunks; speak nothing")
    g = p.add_argument_group("how")
    g.add_argument("--seed", type=int, default=0, help="fixes the noise")
    g.add_argument("--temperature", type=float, help="variance of the noise; default the bundle's")
    g.add_argument("--steps", type=int, default=1, help="LSD decoding steps a frame")
    g.add_argument("--eos-threshold", type=float, help="logit above which an utterance ends; default the bundle's")
    g.add_argument("--max-tokens", type=int, help="longest chunk of text, in tokens; default the longest text of training")
    args = p.parse_args()
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    if args.max_tokens is not None and args.max_tokens < 1:
        raise UserError(f"--max-tokens {args.max_tokens}: must be at least 1")
    if args.temperature is not None and args.temperature < 0:
        raise UserError(f"--temperature {args.temperature}: must not be negative")
    if args.voice and not args.voice.is_file():
        raise UserError(f"--voice {args.voice}: no such file; leave the option out for the bundle's own voice")
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a wav file in it")
    if not args.out.resolve().parent.is_dir():
        raise UserError(f"--out {args.out}: no such folder; mkdir -p {args.out.parent}")
    return args


def default_model() -> Path:
    """The newest run that has a bundle, else demo/bundle. Raises UserError."""
    bundles = [b for b in Path("runs").glob("*/bundle") if (b / "bundle.json").is_file()]
    if bundles:
        return max(bundles, key=lambda b: (b / "bundle.json").stat().st_mtime)
    if (ROOT / "demo" / "bundle").is_dir():
        return ROOT / "demo" / "bundle"
    raise UserError("no trained model here yet; train the embedded one: make demo")


def main() -> None:
    args = parse_args()

    # 1. Text, as the model was taught to read it.
    bundle = find_bundle(args.model or default_model())
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    try:
        text_norm, text_model = arabic.model_text(args.text, args.romanized, args.numbers, info["phonemes"], info["substitute"])
    except arabic.TextError as error:
        raise UserError(f"--text: {error}") from None
    bare = arabic.missing_marks(text_norm)
    if bare > BARE_SHARE:
        print(f"warning: {bare:.0%} of the letters lack their mark; the model reads what is written, so vocalise the text", flush=True)

    # 2. Model.
    max_tokens = args.max_tokens or info["max_tokens"]
    if args.dry_run:
        config = load_config(str(bundle / "arabic.yaml"))
        tokenizer = load_tokenizer(config)
        chunks = split_into_best_sentences(tokenizer, text_model, max_tokens, False, False, True, config.capitalize_first_letter, config.replace_characters)
        print(f"Arabic      {text_norm}\nBuckwalter  {text_model}")
        for chunk in chunks:
            print(f"chunk       {chunk}\n  {len(pieces(tokenizer, chunk))} tokens  {' '.join(pieces(tokenizer, chunk))}")
        return
    model = load_bundle(bundle, args.temperature, args.steps, args.eos_threshold)

    # 3. Speak.
    watch, start = EosWatch(), time.monotonic()
    voice = args.voice or bundle / "voice.wav"
    try:
        audio = speak(model, voice, text_model, max_tokens, args.seed)
    except AudioError as error:
        raise UserError(f"{voice}: {error}; give --voice a recording of a few seconds") from None
    elapsed, seconds = time.monotonic() - start, len(audio) / model.sample_rate
    write_wav(args.out, audio, model.sample_rate)
    eos = "end reached" if not watch.missed else f"the end was NOT reached in {watch.missed} chunk(s): try another --seed"
    print(f"{args.out}: {seconds:.2f} s of speech in {elapsed:.2f} s ({seconds / elapsed:.1f}x real time), {eos}; model {bundle}")


if __name__ == "__main__":
    command(main)
