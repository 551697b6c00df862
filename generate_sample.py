#!/usr/bin/env python3
"""Bundle and Arabic text in, speech out, through the wheel's own inference.

Reads   --text, --text-file (a text a line) or - (standard input);
        --model: a run (runs/NAME), a bundle, or a repository of the hub (OWNER/NAME) that --push made; default the
        newest run that has a bundle, else demo/bundle.
Writes  --out, a 24 kHz mono wav; if it is a folder, 0001.wav and so on, one for each line of the text.
        With --evaluate the folder --out: evaluation.json, the same as a table in evaluation.md, and every wav that was
        judged.

    python generate_sample.py --text "الصَّبْرُ مِفْتَاحُ الْفَرَجِ."
    python generate_sample.py --text-file poems.txt --out poems/        # the folder exists: a wav a line
    echo "هَلْ أَنْتَ بِخَيْرٍ؟" | python generate_sample.py - --stream --out now.wav
    python generate_sample.py --text "ذهب الولد إلى المدرسة." --diacritize --pausal
    python generate_sample.py --text "AlS~aboru mifotaAHu Alofaraji." --romanized
    python generate_sample.py --text "الصَّبْرُ مِفْتَاحُ الْفَرَجِ." --dry-run       # what would be read, no model run
    python generate_sample.py --model runs/clartts --push OWNER/NAME   # publish the bundle; then --model OWNER/NAME
    python generate_sample.py --evaluate --data data/demo              # how good is it, on the test split? offline
    python generate_sample.py --evaluate --data data/clartts --model runs/clartts --asr openai/whisper-large-v3

Digits are read whole with what touches them, as the one form that they have (1,250; 3/4; 50 %; 12/5/2024; 10:30;
450هـ), or refused with their place. A comma parts thousands, a single dot begins decimals; dates are day, month, year.
A number is nominative and counts masculine things, unless a preposition before it or a counted noun with its ending
after it decides. (ص), د. and م go by their neighbours. Spelling is brought to one form; pause signs of the Quran,
footnote marks and verse numbers are dropped with a warning. Latin letters and emoji are refused.

Long texts are spoken in chunks, cut at the ends of sentences and clauses, and many chunks or lines as a batch, on a GPU
where there is one. What a chunk sounds like depends on --seed and its own text, not on its neighbours. One that misses
its end is spoken again with the next seed. The same text, model, voice, options and --seed give the same file on the
same machine.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pocket_tts import TTSModel
from pocket_tts.modules.stateful_module import ModelState
from pocket_tts.modules.text_conditioner import Tokenizer
from tqdm import tqdm

from pocket_arabic import text as arabic
from pocket_arabic.audio import AudioError, StreamedWav, plot_spectrogram, read_audio
from pocket_arabic.base import load_config, load_tokenizer, pieces
from pocket_arabic.checkpoint import find_bundle, push_bundle
from pocket_arabic.run import (
    ROOT,
    Parser,
    UserError,
    atomic_write,
    command,
    filled,
    location,
    real,
    use_all_cores,
    whole,
)
from pocket_arabic.speech import (
    EosWatch,
    Request,
    Spoken,
    is_silent,
    joined,
    load_bundle,
    pause_after,
    speak,
    speak_each,
    split_text,
    stream,
    voice_state,
)

STREAM_PAUSE_SEC = 0.2  # between chunks, on top of the model's own silence after a text
BARE_SHARE = 0.3  # warn above this share of letters without the mark they need; vocalised prose leaves out far fewer


def build_parser() -> Parser:
    p = Parser(__doc__)
    text_options(p.add_argument_group("what"))
    speech_options(p.add_argument_group("how"))
    evaluation_options(p.add_argument_group("evaluation"))
    return p


def text_options(g: argparse._ArgumentGroup) -> None:
    g.add_argument("stdin", nargs="?", choices=("-",), help="read the text from standard input")
    g.add_argument("--text", type=filled, help="vocalised Arabic")
    g.add_argument("--text-file", type=location, help="UTF-8 file, a text a line")
    g.add_argument("--romanized", action="store_true", help="the text is Buckwalter, not Arabic script")
    g.add_argument("--numbers", action=argparse.BooleanOptionalAction, default=True, help="read digits as words")
    more = "restore the marks of letters that have none, with a small model that works offline; it errs on some 6 in "
    more += "100 letters"
    g.add_argument("--diacritize", action="store_true", help=more)
    more = "drop final short vowels and tanween before a stop, as a reader of Classical Arabic does"
    g.add_argument("--pausal", action="store_true", help=more)
    g.add_argument("--model", type=filled, help="run or bundle folder, or OWNER/NAME on the hub")
    g.add_argument("--push", type=filled, metavar="OWNER/NAME", help="upload the bundle to the hub and speak nothing")
    g.add_argument("--voice", type=location, help="reference recording of the voice; default the bundle's voice.wav")
    g.add_argument("--out", type=location, help="wav file to write, default sample.wav; or a folder: one wav a line")
    more = "write the wav as it is spoken, playable at once; no second attempts then"
    g.add_argument("--stream", action="store_true", help=more)
    g.add_argument("--plot", action="store_true", help="also draw a spectrogram, beside the wav")
    more = "show normalised Arabic, Buckwalter, tokens and chunks; speak nothing"
    g.add_argument("--dry-run", action="store_true", help=more)


def speech_options(g: argparse._ArgumentGroup) -> None:
    g.add_argument("--seed", type=whole(0, 2**62), default=0, help="fixes the noise")
    g.add_argument("--temperature", type=real(0, 10), help="variance of the noise; default the bundle's")
    more = (
        "follow text and voice W times as much as the model does by itself, at twice the work; 1 is off; 1.25 helped "
    )
    more += "the demo's model, 2 did not"
    g.add_argument("--guidance", type=real(0, 100), default=1.0, metavar="W", help=more)
    g.add_argument("--steps", type=whole(1, 1000), default=1, help="LSD decoding steps a frame")
    more = "logit above which an utterance ends; default the bundle's"
    g.add_argument("--eos-threshold", type=real(-1000, 1000), help=more)
    more = "longest chunk of text, in tokens; default the longest text of training"
    g.add_argument("--max-tokens", type=whole(1, 10**6), help=more)
    more = "more attempts at a chunk that misses its end or is silent"
    g.add_argument("--retries", type=whole(0, 100), default=2, help=more)
    more = (
        "chunks spoken at once; default 64 on a GPU, 16 else. One takes some 30 MB in the released size, 5 MB in the "
    )
    more += "embedded one"
    g.add_argument("--batch-size", type=whole(1, 4096), metavar="N", help=more)


def evaluation_options(g: argparse._ArgumentGroup) -> None:
    more = "speak the test split of a cache and measure it, beside its recordings and the codec: distance of spectrum, "
    more += (
        "pitch and length, whether wrong vowels would be heard, ends, speed, and with --asr errors; else offline, but "
    )
    more += "for the recordings of a hub's dataset"
    g.add_argument("--evaluate", action="store_true", help=more)
    more = "the cache, made by data_prep.py; default data/clartts"
    g.add_argument("--data", type=location, default=Path("data/clartts"), help=more)
    more = "times each sentence is spoken, with --seed and those after it"
    g.add_argument("--seeds", type=whole(1, 1000), default=3, help=more)
    g.add_argument("--sentences", type=whole(1, 10**6), help="only the first so many")
    more = "recogniser whose errors are counted, may be repeated: OWNER/NAME of the hub, for transformers, as "
    more += (
        'openai/whisper-large-v3; or "program:COMMAND", which reads a file of {"wav"} lines and prints {"hyp"} lines'
    )
    g.add_argument("--asr", action="append", default=[], type=named, metavar="[LABEL=]NAME", help=more)
    more = "x-vector model of the hub that compares voices, as microsoft/wavlm-base-plus-sv"
    g.add_argument("--speaker-model", type=filled, metavar="NAME", help=more)


def parse_args() -> argparse.Namespace:
    args = build_parser().parse_args()
    args.out = args.out or Path("runs/evaluation" if args.evaluate else "sample.wav")
    check_args(args)
    return args


def named(text: str) -> tuple[str, str]:
    """ "label=name" -> its parts; a name alone is its own label."""
    label, equals, name = text.partition("=")
    label, name = (label, name) if equals and "program:" not in label else (text, text)
    return filled(label), filled(name)


def check_args(args: argparse.Namespace) -> None:
    sources = [s for s in (args.stdin, args.text, args.text_file) if s is not None]
    for flag, given, what in (
        ("--push", args.push, "uploads and speaks nothing"),
        ("--evaluate", args.evaluate, "speaks the sentences of --data"),
    ):
        if given and sources:
            raise UserError(f"{flag} {what}; give no text with it")
    if len(sources) != 1 and not args.push and not args.evaluate:
        raise UserError(f"{'no text' if not sources else 'more than one text'}; give one of --text, --text-file and -")
    if args.romanized and args.diacritize:
        raise UserError("--diacritize restores the marks of Arabic script; leave --romanized out")
    if args.voice and not args.voice.is_file():
        raise UserError(f"--voice {args.voice}: no such file; leave the option out for the bundle's own voice")
    if args.evaluate:
        check_evaluation(args)
        return
    if args.asr or args.speaker_model:
        raise UserError("--asr and --speaker-model judge speech; give --evaluate --data CACHE with them")
    check_out(args)


def check_evaluation(args: argparse.Namespace) -> None:
    for flag in ("push", "stream", "dry_run", "plot", "diacritize", "pausal", "romanized"):
        if getattr(args, flag):
            raise UserError(
                f"--{flag.replace('_', '-')} does not go with --evaluate, which speaks the cache's texts as they are; "
                "leave it out"
            )
    if len({label for label, _ in args.asr}) < len(args.asr):
        raise UserError("--asr: two of the same name; give one a label, --asr label=name")
    if args.out.is_file():
        raise UserError(f"--out {args.out}: a file; --evaluate writes a folder")


def check_out(args: argparse.Namespace) -> None:
    if args.out.is_dir() and args.text_file is None and args.stdin is None:
        raise UserError(f"--out {args.out}: is a folder; name a wav file in it")
    if args.out.is_dir() and args.stream:
        raise UserError(f"--out {args.out}: is a folder; --stream writes one wav, name it")
    if not args.out.is_dir() and args.out.suffix.lower() != ".wav":
        raise UserError(
            f"--out {args.out}: neither a .wav nor a folder; name it .wav, or mkdir -p {args.out} for a wav a line"
        )
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
    lines = [(f"{name}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
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


class Level:
    """How loud the pieces [samples] of an audio are, which pass through `of`."""

    def __init__(self, rate: int):
        self.rate, self.peak, self.silent = rate, 0.0, True

    def of(self, piece: np.ndarray) -> np.ndarray:
        self.peak = max(self.peak, float(np.abs(piece).max()))
        self.silent = self.silent and is_silent(piece, self.rate)
        return piece

    def check(self, path: Path) -> None:
        """Warn of what was cut; raises UserError if all was silence."""
        if self.silent:
            raise UserError(f"{path}: silence; the model has not learnt to speak, or --voice is empty: try another")
        if self.peak > 1:
            print(
                f"warning: {path}: louder than a wav holds by {20 * np.log10(self.peak):.1f} dB, so its peaks are cut; "
                "a quieter --voice helps"
            )


def write(path: Path, pieces: Iterable[np.ndarray], rate: int, plotted: bool) -> float:
    """Write a wav as its pieces [samples] come, whole or not at all, and its spectrogram if `plotted`. Returns its
    seconds. Raises UserError for silence."""
    level = Level(rate)
    with atomic_write(path) as tmp:
        with StreamedWav(tmp, rate) as wav:
            for piece in pieces:
                wav.write(level.of(piece))
        level.check(path)
    if plotted:
        plot_spectrogram(path, read_audio(path, rate), rate)
    return wav.size / 2 / rate


def progress(items: Iterable, unit: str, total: int | None = None) -> tqdm:
    """A bar over `items`, from three on; without a terminal, a line now and then."""
    total = len(items) if total is None else total
    return tqdm(
        items, total=total, unit=f" {unit}", disable=total < 3, delay=1, mininterval=0.1 if sys.stderr.isatty() else 30
    )


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def voice_of(model: TTSModel, voice: Path) -> dict:
    """The model's state after the voice prompt. Raises UserError."""
    try:
        return voice_state(model, voice)
    except AudioError as error:
        raise UserError(f"{voice}: {error}; give --voice a recording of a few seconds") from None


# --- text -------------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """A text as given, as the model reads it, and in chunks to be spoken in one go."""

    norm: str
    model: str
    chunks: list[str]

    def pauses(self) -> list[float]:
        """Seconds after each chunk."""
        return [pause_after(chunk) for chunk in self.chunks[:-1]] + [pause_after(".")]


def prepare_texts(args: argparse.Namespace, info: dict, tokenizer: Tokenizer) -> list[Line]:
    """Every line, warned of what was dropped or is missing. Raises UserError."""
    rewrite = [arabic.diacritize] * args.diacritize + [arabic.pausal] * args.pausal
    lines = []
    for where, text in read_texts(args):
        try:
            notes: Counter[str] = Counter()
            norm, model = arabic.model_text(
                text, args.romanized, args.numbers, info["phonemes"], info["substitute"], rewrite, notes
            )
        except arabic.TextError as error:
            raise UserError(f"{where}: {error}") from None
        for note, count in notes.items():
            print(f"warning: {where}: {note}{f' ({count} times)' if count > 1 else ''}", flush=True)
        if (bare := arabic.missing_marks(norm)) > BARE_SHARE:
            print(
                f"warning: {where}: {bare:.0%} of the letters lack their mark; the model reads what is written: "
                "vocalise it, or --diacritize",
                flush=True,
            )
        lines.append(Line(norm, model, split_text(model, tokenizer, args.max_tokens or info["max_tokens"])))
    return lines


def show(lines: list[Line], tokenizer: Tokenizer) -> None:
    for line in lines:
        print(f"Arabic      {line.norm}\nBuckwalter  {line.model}")
        for chunk in line.chunks:
            found = pieces(tokenizer, chunk)
            print(f"chunk       {chunk}\n  {len(found)} tokens  {' '.join(found)}")


# --- speech -----------------------------------------------------------------------------------------------------------


@dataclass
class Said:
    """What was spoken, for the last line."""

    start: float
    first: float | None = None  # seconds to the first audio
    seconds: float = 0.0
    missed: int = 0
    retried: int = 0

    def summary(self, out: Path, bundle: Path) -> str:
        elapsed = time.monotonic() - self.start
        end = f"the end was NOT reached in {self.missed} chunk(s): try another --seed" if self.missed else "end reached"
        again = f", {self.retried} chunk(s) with another seed" if self.retried else ""
        return (
            f"{out}: {self.seconds:.2f} s of speech in {elapsed:.2f} s ({self.seconds / elapsed:.1f}x real time), "
            f"first audio after {self.first:.2f} s, {end}{again}; model {bundle}"
        )


def speak_stream(args: argparse.Namespace, model: TTSModel, state: ModelState, chunks: list[str]) -> Said:
    """Into --out as it comes."""
    rate, watch, said = model.sample_rate, EosWatch(), Said(time.monotonic())
    level = Level(rate)
    with StreamedWav(args.out, rate) as wav:
        for chunk in chunks:
            if wav.size:
                wav.write(np.zeros(int(STREAM_PAUSE_SEC * rate), np.float32))
            with closing(stream(model, state, chunk, args.seed)) as blocks:
                for audio in blocks:
                    wav.write(level.of(audio))
                    said.first = said.first or time.monotonic() - said.start
    level.check(args.out)
    if args.plot:
        plot_spectrogram(args.out, read_audio(args.out, rate), rate)
    said.seconds, said.missed = wav.size / 2 / rate, watch.missed
    return said


def speak_lines(
    args: argparse.Namespace, model: TTSModel, state: ModelState, lines: list[Line], slowest: float
) -> Said:
    """Into --out, one wav with pauses, or in a folder a wav a line. A single chunk is spoken by the wheel's own loop,
    more by the batch."""
    chunks, said = [chunk for line in lines for chunk in line.chunks], Said(time.monotonic())
    if len(chunks) == 1:
        results = iter([speak(model, state, chunks[0], args.seed, EosWatch(), args.retries, slowest)])
    else:
        requests = (Request(chunk, state, args.seed) for chunk in chunks)
        spoken = speak_each(model, requests, args.retries, slowest, args.batch_size)
        results = iter(progress(spoken, "chunks", len(chunks)))

    def following() -> np.ndarray:
        spoken: Spoken = next(results)
        said.first = said.first or spoken.first_sec
        said.missed += not spoken.ended
        said.retried += spoken.seed != args.seed
        return spoken.audio

    pauses = [line.pauses() for line in lines]
    files = {args.out / f"{number:04d}.wav": own for number, own in enumerate(pauses, 1)}
    if not args.out.is_dir():
        files = {args.out: [pause for own in pauses for pause in own]}
    for path, own in files.items():
        audio = joined(((following(), pause) for pause in own), model.sample_rate)
        said.seconds += write(path, audio, model.sample_rate, args.plot)
    return said


def evaluate(args: argparse.Namespace, bundle: Path, info: dict) -> None:
    from pocket_arabic.evaluation import Evaluation  # librosa takes a second to load

    evaluation = Evaluation(args, bundle, info, progress)
    model = load_bundle(bundle, args.temperature, args.steps, args.eos_threshold, args.guidance).to(device())
    evaluation.speak(model, voice_of(model, evaluation.voice))
    use_all_cores()
    evaluation.measure(model.sample_rate)
    evaluation.listen()
    table = evaluation.write({"command": shlex.join(["python", "generate_sample.py", *sys.argv[1:]])})
    print(f"{table}{args.out / 'evaluation.json'}")


def main() -> None:
    args = parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # end as Ctrl-C does: threads waited for, headers true
        signal.signal(number, lambda number, _: sys.exit(128 + number))

    # 1. The bundle, and what is not speaking.
    bundle = find_bundle(args.model or default_model())
    if args.push:
        push_bundle(bundle, args.push)
        home = f"hf://{args.push}"
        print(f"{args.push}: uploaded; pocket-tts generate --config {home}/arabic.yaml --voice {home}/voice.wav ...")
        return
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    if args.evaluate:
        evaluate(args, bundle, info)
        return

    # 2. Text, as the model was taught to read it.
    tokenizer = load_tokenizer(load_config(str(bundle / "arabic.yaml"), bundled=True))
    lines = prepare_texts(args, info, tokenizer)
    if args.dry_run:
        show(lines, tokenizer)
        return

    # 3. Model and voice; speak. One row at a time is fastest on a CPU.
    chunks = [chunk for line in lines for chunk in line.chunks]
    where = "cpu" if args.stream or len(chunks) == 1 else device()
    model = load_bundle(bundle, args.temperature, args.steps, args.eos_threshold, args.guidance).to(where)
    state = voice_of(model, args.voice or bundle / "voice.wav")
    if args.stream:
        said = speak_stream(args, model, state, chunks)
    else:
        said = speak_lines(args, model, state, lines, info["slowest_sec_per_token"])
    print(said.summary(args.out, bundle))


if __name__ == "__main__":
    command(main, again="starts anew")
