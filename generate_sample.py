#!/usr/bin/env python3
"""Bundle and Arabic text in, speech out, through the wheel's own inference.

Reads   --text, --text-file (a text a line) or - (standard input);
        --model: a run (runs/NAME), a bundle, or a repository of the hub (OWNER/NAME) that --push made; default the newest run
        that has a bundle, else demo/bundle.
Writes  --out, a 24 kHz mono wav; if it is a folder, 0001.wav and so on, one for each line of the text.

    python generate_sample.py --text "الصَّبْرُ مِفْتَاحُ الْفَرَجِ."
    python generate_sample.py --text-file poems.txt --out poems/        # the folder exists: a wav a line
    echo "هَلْ أَنْتَ بِخَيْرٍ؟" | python generate_sample.py - --stream --out now.wav
    python generate_sample.py --text "ذهب الولد إلى المدرسة." --diacritize --pausal
    python generate_sample.py --text "AlS~aboru mifotaAHu Alofaraji." --romanized
    python generate_sample.py --text "الصَّبْرُ مِفْتَاحُ الْفَرَجِ." --dry-run                   # what would be read, no model run
    python generate_sample.py --model runs/clartts --push OWNER/NAME       # publish the bundle; then --model OWNER/NAME

Long texts are spoken in chunks, cut at the ends of sentences and clauses. A chunk that misses its end is spoken again with the
next seed. The same text, model, voice, options and --seed give the same file on the same machine.
"""

import argparse
import json
import os
import struct
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pocket_arabic import __version__
from pocket_arabic import text as arabic
from pocket_arabic.audio import AudioError, read_audio, write_wav
from pocket_arabic.checkpoint import find_bundle, push_bundle
from pocket_arabic.model import load_config, load_tokenizer, pieces
from pocket_arabic.run import ROOT, UserError, command
from pocket_arabic.speech import EosWatch, is_silent, join, load_bundle, pause_after, speak, split_text, stream, voice_state

STREAM_PAUSE_SEC = 0.2  # between chunks, on top of the model's own silence after a text
BARE_SHARE = 0.3  # warn above this share of letters without the mark they need; vocalised prose leaves out far fewer


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--version", action="version", version=__version__)
    g = p.add_argument_group("what")
    g.add_argument("stdin", nargs="?", choices=("-",), help="read the text from standard input")
    g.add_argument("--text", help="vocalised Arabic")
    g.add_argument("--text-file", type=Path, help="UTF-8 file, a text a line")
    g.add_argument("--romanized", action="store_true", help="the text is Buckwalter, not Arabic script")
    g.add_argument("--numbers", action=argparse.BooleanOptionalAction, default=True, help="read digits as words")
    g.add_argument("--diacritize", action="store_true", help="restore the marks of letters that have none, with a small model that works offline; it errs on some 6 in 100 letters")
    g.add_argument("--pausal", action="store_true", help="drop final short vowels and tanween before a stop, as a reader of Classical Arabic does")
    g.add_argument("--model", help="run or bundle folder, or OWNER/NAME on the hub")
    g.add_argument("--push", metavar="OWNER/NAME", help="upload the bundle to the hub and speak nothing")
    g.add_argument("--voice", type=Path, help="reference recording of the voice; default the bundle's voice.wav")
    g.add_argument("--out", type=Path, default=Path("sample.wav"), help="wav file to write, or a folder: one wav a line")
    g.add_argument("--stream", action="store_true", help="write the wav as it is spoken, playable at once; no second attempts then")
    g.add_argument("--plot", action="store_true", help="also draw a spectrogram, beside the wav")
    g.add_argument("--dry-run", action="store_true", help="show normalised Arabic, Buckwalter, tokens and chunks; speak nothing")
    g = p.add_argument_group("how")
    g.add_argument("--seed", type=int, default=0, help="fixes the noise")
    g.add_argument("--temperature", type=float, help="variance of the noise; default the bundle's")
    g.add_argument("--steps", type=int, default=1, help="LSD decoding steps a frame")
    g.add_argument("--eos-threshold", type=float, help="logit above which an utterance ends; default the bundle's")
    g.add_argument("--max-tokens", type=int, help="longest chunk of text, in tokens; default the longest text of training")
    g.add_argument("--retries", type=int, default=2, help="more attempts at a chunk that misses its end or is silent")
    args = p.parse_args()
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    sources = [s for s in (args.stdin, args.text, args.text_file) if s is not None]
    if args.push and sources:
        raise UserError("--push uploads and speaks nothing; give no text with it")
    if len(sources) != 1 and not args.push:
        raise UserError(f"{'no text' if not sources else 'more than one text'}; give one of --text, --text-file and -")
    for name, least, most in (("steps", 1, 1000), ("max_tokens", 1, 10**6), ("temperature", 0, 10), ("retries", 0, 100), ("seed", 0, 2**62), ("eos_threshold", -1000, 1000)):
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be from {least} to {most}")
    if args.romanized and args.diacritize:
        raise UserError("--diacritize restores the marks of Arabic script; leave --romanized out")
    if args.voice and not args.voice.is_file():
        raise UserError(f"--voice {args.voice}: no such file; leave the option out for the bundle's own voice")
    if args.out.is_dir() and args.text_file is None and args.stdin is None:
        raise UserError(f"--out {args.out}: is a folder; name a wav file in it")
    if args.out.is_dir() and args.stream:
        raise UserError(f"--out {args.out}: is a folder; --stream writes one wav, name it")
    if not args.out.is_dir() and args.out.suffix.lower() != ".wav":
        raise UserError(f"--out {args.out}: neither a .wav nor a folder; name it .wav, or mkdir -p {args.out} for a wav a line")
    folder = args.out if args.out.is_dir() else args.out.resolve().parent
    if not folder.is_dir():
        raise UserError(f"--out {args.out}: no such folder; mkdir -p {args.out.parent}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out {args.out}: may not be written; name another place")


def read_texts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(where it stands, text) for every line that has any. Raises UserError."""
    if args.text is not None:
        return [("--text", args.text)]
    name = "standard input" if args.stdin else f"--text-file {args.text_file}"
    try:
        text = sys.stdin.read() if args.stdin else args.text_file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    lines = [(f"{name}, line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{name}: no text in it")
    return lines


def default_model() -> Path:
    """The newest run that has a bundle, else demo/bundle. Raises UserError."""
    bundles = [b for b in Path("runs").glob("*/bundle") if (b / "bundle.json").is_file()]
    if bundles:
        return max(bundles, key=lambda b: (b / "bundle.json").stat().st_mtime)
    if (ROOT / "demo" / "bundle").is_dir():
        return ROOT / "demo" / "bundle"
    raise UserError("no trained model here yet; train the embedded one: make demo")


class StreamedWav:
    """A wav that grows: its header says it is as long as can be until it is left and the true length is put in."""

    def __init__(self, path: Path, rate: int):
        self.file, self.rate, self.size = open(path, "wb"), rate, 0
        self._header(2**32 - 1 - 36)

    def _header(self, size: int) -> None:
        self.file.seek(0)
        fields = (b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, self.rate, 2 * self.rate, 2, 16, b"data", size)
        self.file.write(struct.pack("<4sI4s4sIHHIIHH4sI", *fields))
        self.file.flush()

    def write(self, samples: np.ndarray) -> None:
        self.file.seek(44 + self.size)
        data = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        self.file.write(data)
        self.file.flush()
        self.size += len(data)

    def __enter__(self) -> "StreamedWav":
        return self

    def __exit__(self, *_) -> None:
        """Also after an error or Ctrl-C: what was spoken until then is a whole wav."""
        self._header(self.size)
        self.file.close()


def write(path: Path, audio: np.ndarray, rate: int, plotted: bool) -> float:
    """Write a wav, and its spectrogram if `plotted`; warn if it is silent or clipped. Returns its seconds."""
    if is_silent(audio, rate):
        print(f"warning: {path}: silent; the model has not learnt to speak, or --voice is empty")
    if np.abs(audio).max() > 1:
        print(f"warning: {path}: louder than a wav holds by {20 * np.log10(np.abs(audio).max()):.1f} dB, so its peaks are cut; a quieter --voice helps")
    write_wav(path, audio, rate)
    if plotted:
        plot(path, audio, rate)
    return len(audio) / rate


def plot(path: Path, samples: np.ndarray, rate: int) -> None:
    """A spectrogram, beside the wav."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(max(6, min(30, 2 * len(samples) / rate)), 4), layout="constrained")
    axis.specgram(samples + 1e-9, NFFT=1024, noverlap=768, Fs=rate, vmin=-140, vmax=-30, cmap="magma")
    axis.set(ylim=(0, 6000), xlabel="seconds", ylabel="Hz", title=path.name)
    figure.savefig(path.with_suffix(".png"), dpi=90)
    plt.close(figure)


def main() -> None:
    args = parse_args()

    # 1. Text, as the model was taught to read it.
    bundle = find_bundle(args.model or default_model())
    if args.push:
        push_bundle(bundle, args.push)
        print(f"{args.push}: uploaded; pocket-tts generate --config hf://{args.push}/arabic.yaml --voice hf://{args.push}/voice.wav --text ...")
        return
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    config = load_config(str(bundle / "arabic.yaml"), bundled=True)
    tokenizer = load_tokenizer(config)
    max_tokens = args.max_tokens or info["max_tokens"]
    rewrite = [arabic.diacritize] * args.diacritize + [arabic.pausal] * args.pausal
    texts = []
    for where, text in read_texts(args):
        try:
            text_norm, text_model = arabic.model_text(text, args.romanized, args.numbers, info["phonemes"], info["substitute"], rewrite)
        except arabic.TextError as error:
            raise UserError(f"{where}: {error}") from None
        bare = arabic.missing_marks(text_norm)
        if bare > BARE_SHARE:
            print(f"warning: {where}: {bare:.0%} of the letters lack their mark; the model reads what is written: vocalise it, or --diacritize", flush=True)
        texts.append((text_norm, text_model, split_text(text_model, tokenizer, max_tokens)))
    if args.dry_run:
        for text_norm, text_model, chunks in texts:
            print(f"Arabic      {text_norm}\nBuckwalter  {text_model}")
            for chunk in chunks:
                print(f"chunk       {chunk}\n  {len(pieces(tokenizer, chunk))} tokens  {' '.join(pieces(tokenizer, chunk))}")
        return

    # 2. Model and voice.
    model = load_bundle(bundle, args.temperature, args.steps, args.eos_threshold)
    rate, watch, voice = model.sample_rate, EosWatch(), args.voice or bundle / "voice.wav"
    try:
        state = voice_state(model, voice)
    except AudioError as error:
        raise UserError(f"{voice}: {error}; give --voice a recording of a few seconds") from None

    # 3. Speak.
    start, first, seconds, missed, retried = time.monotonic(), None, 0.0, 0, 0
    if args.stream:
        with StreamedWav(args.out, rate) as wav:
            for chunk in (c for _, _, chunks in texts for c in chunks):
                if wav.size:
                    wav.write(np.zeros(int(STREAM_PAUSE_SEC * rate), np.float32))
                for audio in stream(model, state, chunk, args.seed):
                    wav.write(audio)
                    first = first or time.monotonic() - start
        seconds, missed = wav.size / 2 / rate, watch.missed
        if args.plot:
            plot(args.out, read_audio(args.out, rate), rate)
    else:
        lines, number = [], sum(len(chunks) for _, _, chunks in texts)
        bar = tqdm(total=number, unit=" chunks", disable=number < 3, mininterval=0.1 if sys.stderr.isatty() else 30)
        for line, (_, _, chunks) in enumerate(texts, 1):
            parts = []
            for chunk in chunks:
                parts.append(speak(model, state, chunk, args.seed, watch, args.retries, info["slowest_sec_per_token"]))
                first = first or parts[-1].first_sec
                missed, retried = missed + (not parts[-1].ended), retried + (parts[-1].seed != args.seed)
                bar.update()
            audio = join([p.audio for p in parts], [pause_after(c) for c in chunks], rate)
            if args.out.is_dir():
                seconds += write(args.out / f"{line:04d}.wav", audio, rate, args.plot)
            else:
                lines.append(audio)
        bar.close()
        if lines:
            seconds = write(args.out, join(lines, [pause_after(".")] * len(lines), rate), rate, args.plot)
    elapsed = time.monotonic() - start
    end = "end reached" if not missed else f"the end was NOT reached in {missed} chunk(s): try another --seed"
    again = f", {retried} chunk(s) with another seed" if retried else ""
    print(f"{args.out}: {seconds:.2f} s of speech in {elapsed:.2f} s ({seconds / elapsed:.1f}x real time), first audio after {first:.2f} s, {end}{again}; model {bundle}")


if __name__ == "__main__":
    command(main)
