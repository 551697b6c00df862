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

Long texts are spoken in chunks, cut at the ends of sentences and clauses, and many chunks or lines as a batch, on a GPU
where there is one. What a chunk sounds like depends on --seed and its own text, not on its neighbours. One that misses
its end is spoken again with the next seed. The same text, model, voice, options and --seed give the same file on the
same machine.
"""

import argparse
import inspect
import json
import os
import shlex
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pocket_tts import TTSModel
from tqdm import tqdm

from pocket_arabic import text as arabic
from pocket_arabic.audio import AudioError, read_audio, write_wav
from pocket_arabic.base import decode_latents, load_config, load_tokenizer, pieces
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import find_bundle, push_bundle, sha256
from pocket_arabic.run import (
    ROOT,
    Parser,
    UserError,
    atomic_write,
    command,
    differences,
    filled,
    location,
    provenance,
    read_json,
    real,
    use_all_cores,
    whole,
    write_json,
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
    speak_texts,
    split_text,
    stream,
    voice_state,
)

STREAM_PAUSE_SEC = 0.2  # between chunks, on top of the model's own silence after a text
BARE_SHARE = 0.3  # warn above this share of letters without the mark they need; vocalised prose leaves out far fewer


def build_parser() -> Parser:
    p = Parser(__doc__)
    g = p.add_argument_group("what")
    g.add_argument("stdin", nargs="?", choices=("-",), help="read the text from standard input")
    g.add_argument("--text", type=filled, help="vocalised Arabic")
    g.add_argument("--text-file", type=location, help="UTF-8 file, a text a line")
    g.add_argument("--romanized", action="store_true", help="the text is Buckwalter, not Arabic script")
    g.add_argument("--numbers", action=argparse.BooleanOptionalAction, default=True, help="read digits as words")
    g.add_argument(
        "--diacritize",
        action="store_true",
        help=(
            "restore the marks of letters that have none, with a small model that works offline; it errs on some "
            "6 in 100 letters"
        ),
    )
    g.add_argument(
        "--pausal",
        action="store_true",
        help="drop final short vowels and tanween before a stop, as a reader of Classical Arabic does",
    )
    g.add_argument("--model", type=filled, help="run or bundle folder, or OWNER/NAME on the hub")
    g.add_argument("--push", type=filled, metavar="OWNER/NAME", help="upload the bundle to the hub and speak nothing")
    g.add_argument("--voice", type=location, help="reference recording of the voice; default the bundle's voice.wav")
    g.add_argument("--out", type=location, help="wav file to write, default sample.wav; or a folder: one wav a line")
    g.add_argument(
        "--stream", action="store_true", help="write the wav as it is spoken, playable at once; no second attempts then"
    )
    g.add_argument("--plot", action="store_true", help="also draw a spectrogram, beside the wav")
    g.add_argument(
        "--dry-run", action="store_true", help="show normalised Arabic, Buckwalter, tokens and chunks; speak nothing"
    )
    g = p.add_argument_group("how")
    g.add_argument("--seed", type=whole(0, 2**62), default=0, help="fixes the noise")
    g.add_argument("--temperature", type=real(0, 10), help="variance of the noise; default the bundle's")
    g.add_argument(
        "--guidance",
        type=real(0, 100),
        default=1.0,
        metavar="W",
        help="follow text and voice W times as much as the model does by itself, at twice the work; 1 is off",
    )
    g.add_argument("--steps", type=whole(1, 1000), default=1, help="LSD decoding steps a frame")
    g.add_argument(
        "--eos-threshold", type=real(-1000, 1000), help="logit above which an utterance ends; default the bundle's"
    )
    g.add_argument(
        "--max-tokens",
        type=whole(1, 10**6),
        help="longest chunk of text, in tokens; default the longest text of training",
    )
    g.add_argument(
        "--retries", type=whole(0, 100), default=2, help="more attempts at a chunk that misses its end or is silent"
    )
    g.add_argument(
        "--batch-size",
        type=whole(1, 4096),
        metavar="N",
        help=(
            "chunks spoken at once; default 64 on a GPU, 16 else. One takes some 30 MB in the released size, 5 "
            "MB in the embedded one"
        ),
    )
    g = p.add_argument_group("evaluation")
    g.add_argument(
        "--evaluate",
        action="store_true",
        help="speak the test split of a cache and measure it, beside its recordings and the codec",
    )
    g.add_argument(
        "--data",
        type=location,
        default=Path("data/clartts"),
        help="the cache, made by data_prep.py; default data/clartts",
    )
    g.add_argument(
        "--seeds", type=whole(1, 1000), default=3, help="times each sentence is spoken, with --seed and those after it"
    )
    g.add_argument("--sentences", type=whole(1, 10**6), help="only the first so many")
    g.add_argument(
        "--asr",
        action="append",
        default=[],
        type=named,
        metavar="[LABEL=]NAME",
        help="recogniser whose errors are counted, may be repeated: OWNER/NAME of the hub, for transformers, as "
        "openai/whisper-large-v3; "
        'or "program:COMMAND", which reads a file of {"wav"} lines and prints {"hyp"} lines',
    )
    g.add_argument(
        "--speaker-model",
        type=filled,
        metavar="NAME",
        help="x-vector model of the hub that compares voices, as microsoft/wavlm-base-plus-sv",
    )
    return p


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
        for flag in ("push", "stream", "dry_run", "plot", "diacritize", "pausal", "romanized"):
            if getattr(args, flag):
                raise UserError(
                    f"--{flag.replace('_', '-')} does not go with --evaluate, which speaks the cache's texts as they "
                    "are; leave it out"
                )
        if len({label for label, _ in args.asr}) < len(args.asr):
            raise UserError("--asr: two of the same name; give one a label, --asr label=name")
        if args.out.is_file():
            raise UserError(f"--out {args.out}: a file; --evaluate writes a folder")
        return
    if args.asr or args.speaker_model:
        raise UserError("--asr and --speaker-model judge speech; give --evaluate --data CACHE with them")
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


class StreamedWav:
    """A wav that grows: its header says it is as long as can be until it is left, by an error or a signal too, and the
    true length is put in."""

    def __init__(self, path: Path, rate: int):
        # what a full disk refused is not tried again
        self.file, self.rate, self.size = (open(path, "wb", buffering=0), rate, 0)
        self._header(2**32 - 1 - 36)

    def _header(self, size: int) -> None:
        self.file.seek(0)
        fields = (b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, self.rate, 2 * self.rate, 2, 16, b"data", size)
        self.file.write(struct.pack("<4sI4s4sIHHIIHH4sI", *fields))

    def write(self, samples: np.ndarray) -> None:
        self.file.seek(44 + self.size)
        # as libsndfile rounds, to the bit
        data = np.clip(np.floor(samples * 32768), -32768, 32767).astype("<i2").tobytes()
        while data:
            written = self.file.write(data)
            self.size, data = self.size + written, data[written:]

    def __enter__(self) -> "StreamedWav":
        return self

    def __exit__(self, *_) -> None:
        self._header(self.size - self.size % 2)
        self.file.close()


def write(path: Path, pieces: Iterable[np.ndarray], rate: int, plotted: bool) -> float:
    """Write a wav as its pieces [samples] come, whole or not at all, and its spectrogram if `plotted`; warn if it is
    silent or clipped. Returns its seconds."""
    peak, silent = 0.0, True
    with atomic_write(path) as tmp, StreamedWav(tmp, rate) as wav:
        for piece in pieces:
            wav.write(piece)
            peak, silent = max(peak, float(np.abs(piece).max())), silent and is_silent(piece, rate)
    if silent:
        print(f"warning: {path}: silent; the model has not learnt to speak, or --voice is empty")
    if peak > 1:
        print(
            f"warning: {path}: louder than a wav holds by {20 * np.log10(peak):.1f} dB, so its peaks are cut; a "
            "quieter --voice helps"
        )
    if plotted:
        plot(path, read_audio(path, rate), rate)
    return wav.size / 2 / rate


def plot(path: Path, samples: np.ndarray, rate: int) -> None:
    """A spectrogram, beside the wav."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(max(6, min(30, 2 * len(samples) / rate)), 4), layout="constrained")
    axis.specgram(samples + 1e-9, NFFT=1024, noverlap=768, Fs=rate, vmin=-140, vmax=-30, cmap="magma")
    axis.set(ylim=(0, 6000), xlabel="seconds", ylabel="Hz", title=path.name)
    with atomic_write(path.with_suffix(".png")) as tmp:
        figure.savefig(tmp, dpi=90)
    plt.close(figure)


def progress(items: Iterable, unit: str, total: int | None = None) -> tqdm:
    """A bar over `items`, from three on; without a terminal, a line now and then."""
    total = len(items) if total is None else total
    return tqdm(
        items, total=total, unit=f" {unit}", disable=total < 3, delay=1, mininterval=0.1 if sys.stderr.isatty() else 30
    )


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def clip_of(wav: Path, rate: int) -> np.ndarray:
    """A wav of an evaluation [samples]. Raises UserError."""
    try:
        return read_audio(wav, rate)
    except AudioError as error:
        raise UserError(f"{wav}: {error}; delete it, and the same command makes it again") from None


def voice_of(model: TTSModel, voice: Path) -> dict:
    """The model's state after the voice prompt. Raises UserError."""
    try:
        return voice_state(model, voice)
    except AudioError as error:
        raise UserError(f"{voice}: {error}; give --voice a recording of a few seconds") from None


# --- evaluation -------------------------------------------------------------------------------------------------------


def begin_evaluation(args: argparse.Namespace, info: dict, voice: Path) -> tuple[Cache, list[dict], dict]:
    """The cache, the rows to speak and what the folder args.out is for, all checked. Raises UserError."""
    cache = Cache(args.data)
    rows = cache.split("test")[: args.sentences]
    if not rows:
        raise UserError(f"{args.data}: no test split; prepare a corpus with more utterances")
    if cache.info["options"]["romanized"] and args.asr:
        raise UserError(
            f"{args.data}: its text is romanised, and recognisers write Arabic script; leave --asr out, or prepare the "
            "corpus from Arabic text"
        )
    for key in ("phonemes", "substitute"):
        if cache.info["options"][key] != info[key]:
            raise UserError(
                f"{args.data}: prepared with {key} {cache.info['options'][key]}, but the bundle reads {key} "
                f"{info[key]}; give the cache it was trained on"
            )
    options = {
        "model_sha256": info["sha256"]["model.safetensors"],
        "voice_sha256": sha256(voice),
        "manifest_sha256": sha256(args.data / "manifest.jsonl"),
    }
    options |= {
        name: getattr(args, name)
        for name in ("temperature", "guidance", "steps", "eos_threshold", "max_tokens", "retries")
    }
    saved = args.out / "options.json"
    if saved.exists() and (changed := differences(read_json(saved, f"measure anew: rm -r {args.out}"), options)):
        raise UserError(
            f"{args.out} holds another evaluation ({changed}); give another --out, or delete it: rm -r {args.out}"
        )
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(saved, options)
    except OSError as error:
        raise UserError(f"--out {args.out}: may not be written ({error.strerror}); name another place") from None
    return cache, rows, options


def evaluate(args: argparse.Namespace, bundle: Path, info: dict) -> None:
    """Speak the test split with several seeds, and once with its vowels swapped; measure that beside the recordings and
    their codec round trips. args.out gets KIND/ID.wav, spoken.jsonl, measured.jsonl, heard.jsonl, evaluation.json,
    evaluation.md; what is there already is not done again."""
    from pocket_arabic import evaluation  # librosa takes a second to load

    # 1. What is compared. Recognisers come before the work, so that a wrong name costs no time.
    voice = args.voice or bundle / "voice.wav"
    cache, rows, options = begin_evaluation(args, info, voice)
    recognisers = {name: evaluation.load_recogniser(source) for name, source in args.asr}
    similarity = evaluation.load_speaker_model(args.speaker_model, voice) if args.speaker_model else None
    model = load_bundle(bundle, args.temperature, args.steps, args.eos_threshold, args.guidance).to(device())
    state, rate = voice_of(model, voice), model.sample_rate
    # A second attempt takes the next seed, so seeds stand apart by what they may need.
    seeds = {
        f"seed_{seed}": seed for seed in range(args.seed, args.seed + args.seeds * (args.retries + 1), args.retries + 1)
    }
    texts = {(kind, row["id"]): row["text_model"] for kind in seeds for row in rows}
    swapped = f"swapped_{args.seed}"
    if not info["phonemes"] and not cache.info["options"]["romanized"]:
        wrong = {row["id"]: arabic.swap_vowels(row["text_norm"]) for row in rows}
        texts |= {
            (swapped, row["id"]): arabic.model_text(wrong[row["id"]], substitutes=info["substitute"])[1]
            for row in rows
            if wrong[row["id"]] != row["text_norm"]
        }
    wavs = {(kind, row["id"]): args.out / kind / f"{row['id']}.wav" for kind in ("recording", "codec") for row in rows}
    wavs |= {key: args.out / key[0] / f"{key[1]}.wav" for key in texts}
    for wav in wavs.values():
        wav.parent.mkdir(parents=True, exist_ok=True)

    # 2. Recordings, round trips, speech.
    for row in rows:
        if not wavs["codec", row["id"]].exists():
            write_wav(
                wavs["codec", row["id"]],
                decode_latents(model.mimi, torch.from_numpy(np.array(cache.row_latents(row))).to(device())),
                rate,
            )
    for identity, samples in evaluation.recordings(
        cache, [row for row in rows if not wavs["recording", row["id"]].exists()], rate
    ):
        write_wav(wavs["recording", identity], samples, rate)
    spoken = evaluation.Log(args.out / "spoken.jsonl", "kind", "id")
    seed_of = {key: seeds.get(key[0], args.seed) for key in texts}
    missing = [key for key in texts if key not in spoken or not wavs[key].exists()]
    requests = [Request(texts[key], state, seed_of[key]) for key in missing]
    results = speak_texts(
        model,
        requests,
        args.max_tokens or info["max_tokens"],
        args.retries,
        info["slowest_sec_per_token"],
        args.batch_size,
    )
    start = time.monotonic()
    for key, (audio, parts) in zip(progress(missing, "sentences"), results):
        write_wav(wavs[key], audio, rate)
        # Since the sentence before: in a batch a sentence has no time of its own, but they add up.
        took, start = time.monotonic() - start, time.monotonic()
        row = {"kind": key[0], "id": key[1], "sec": round(len(audio) / rate, 3), "took_sec": round(took, 4)}
        spoken.add(row | {"ended": all(p.ended for p in parts), "retried": sum(p.seed != seed_of[key] for p in parts)})

    # 3. Measures: of sound, then of what recognisers and the speaker model make of it.
    use_all_cores()
    measured = evaluation.Log(args.out / "measured.jsonl", "kind", "id")
    for row in progress(rows, "sentences measured"):
        keys = [key for key in wavs if key[1] == row["id"] and key not in measured]
        real = evaluation.Sound.of(clip_of(wavs["recording", row["id"]], rate), rate) if keys else None
        for key in keys:
            measured.add(
                {
                    "kind": key[0],
                    "id": key[1],
                    **evaluation.distances(real, evaluation.Sound.of(clip_of(wavs[key], rate), rate)),
                }
            )
    heard = evaluation.Log(args.out / "heard.jsonl", "source", "kind", "id")
    judged = [key for key in wavs if key[0] != swapped]
    for (name, source), recognise in zip(args.asr, recognisers.values()):
        if missing := [key for key in judged if (source, *key) not in heard]:
            for text, key in zip(
                recognise([wavs[key] for key in missing]), progress(missing, f"clips heard by {name}")
            ):
                heard.add({"source": source, "kind": key[0], "id": key[1], "text": text})
    for key in (
        progress([key for key in judged if (args.speaker_model, *key) not in heard], "voices") if similarity else []
    ):
        heard.add({"source": args.speaker_model, "kind": key[0], "id": key[1], "similarity": similarity(wavs[key])})

    # 4. Figures.
    norm = {row["id"]: row["text_norm"] for row in rows}
    found = {key: {"kind": key[0], "text": norm[key[1]], **spoken.get(key, {}), **measured[key]} for key in wavs}
    for key in judged:
        said = {name: heard[source, *key]["text"] for name, source in args.asr}
        found[key] |= {
            "asr": {name: {"text": text, **evaluation.error_rates(norm[key[1]], text)} for name, text in said.items()}
        }
        found[key] |= {"similarity": heard[args.speaker_model, *key]["similarity"]} if similarity else {}
    groups = {"recording": ["recording"], "codec round trip": ["codec"], f"generated, {len(seeds)} seeds": list(seeds)}
    summary = {
        title: evaluation.summarise([[found[kind, row["id"]] for kind in kinds] for row in rows], list(recognisers))
        for title, kinds in groups.items()
    }
    margins = [
        found[swapped, i]["mcd_db"] - float(np.mean([found[kind, i]["mcd_db"] for kind in seeds]))
        for i in norm
        if (swapped, i) in found
    ]
    if margins:
        marks = {
            "marks_asked": len(margins),
            "marks_heard": sum(bool(m > 0) for m in margins),
            "marks_margin_db": evaluation.spread(margins),
        }
        summary[f"generated, {len(seeds)} seeds"] |= marks
    normaliser = " ".join(inspect.getdoc(arabic.scored).split("\n\n")[1].split())
    result = {
        "command": shlex.join(["python", "generate_sample.py", *sys.argv[1:]]),
        "checkpoint": info["checkpoint"],
        **options,
        **provenance(),
    }
    result |= {
        "versions": {p: version(p) for p in ("transformers", "jiwer", "librosa", "scipy")},
        "normaliser": normaliser,
        "summary": summary,
        "sentences": list(found.values()),
    }
    write_json(args.out / "evaluation.json", result)
    report = evaluation.table(summary) + (
        f"\nErrors are counted on normalised text. {normaliser}\n" if recognisers else ""
    )
    with atomic_write(args.out / "evaluation.md") as tmp:
        tmp.write_text(report, encoding="utf-8")
    print(f"{report}{args.out / 'evaluation.json'}")


def main() -> None:
    args = parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # end as Ctrl-C does: threads waited for, headers true
        signal.signal(number, lambda number, _: sys.exit(128 + number))

    # 1. Text, as the model was taught to read it.
    bundle = find_bundle(args.model or default_model())
    if args.push:
        push_bundle(bundle, args.push)
        print(
            f"{args.push}: uploaded; pocket-tts generate --config hf://{args.push}/arabic.yaml --voice "
            f"hf://{args.push}/voice.wav --text ..."
        )
        return
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    if args.evaluate:
        evaluate(args, bundle, info)
        return
    config = load_config(str(bundle / "arabic.yaml"), bundled=True)
    tokenizer = load_tokenizer(config)
    max_tokens = args.max_tokens or info["max_tokens"]
    rewrite = [arabic.diacritize] * args.diacritize + [arabic.pausal] * args.pausal
    texts = []
    for where, text in read_texts(args):
        try:
            notes: Counter[str] = Counter()
            text_norm, text_model = arabic.model_text(
                text, args.romanized, args.numbers, info["phonemes"], info["substitute"], rewrite, notes
            )
        except arabic.TextError as error:
            raise UserError(f"{where}: {error}") from None
        for note, count in notes.items():
            print(f"warning: {where}: {note}{f' ({count} times)' if count > 1 else ''}", flush=True)
        bare = arabic.missing_marks(text_norm)
        if bare > BARE_SHARE:
            print(
                f"warning: {where}: {bare:.0%} of the letters lack their mark; the model reads what is written: "
                "vocalise it, or --diacritize",
                flush=True,
            )
        texts.append((text_norm, text_model, split_text(text_model, tokenizer, max_tokens)))
    if args.dry_run:
        for text_norm, text_model, chunks in texts:
            print(f"Arabic      {text_norm}\nBuckwalter  {text_model}")
            for chunk in chunks:
                print(
                    f"chunk       {chunk}\n  {len(pieces(tokenizer, chunk))} tokens  "
                    f"{' '.join(pieces(tokenizer, chunk))}"
                )
        return

    # 2. Model and voice. A single chunk is spoken by the wheel's own loop, more by the batch.
    chunks = [c for _, _, line in texts for c in line]
    pauses = [[pause_after(c) for c in line[:-1]] + [pause_after(".")] for _, _, line in texts]
    alone = args.stream or len(chunks) == 1
    model = load_bundle(bundle, args.temperature, args.steps, args.eos_threshold, args.guidance).to(
        "cpu" if alone else device()
    )
    rate, watch, state = model.sample_rate, EosWatch(), voice_of(model, args.voice or bundle / "voice.wav")

    # 3. Speak.
    start, first, seconds, missed, retried = time.monotonic(), None, 0.0, 0, 0
    if args.stream:
        with StreamedWav(args.out, rate) as wav:
            for chunk in chunks:
                if wav.size:
                    wav.write(np.zeros(int(STREAM_PAUSE_SEC * rate), np.float32))
                with closing(stream(model, state, chunk, args.seed)) as blocks:
                    for audio in blocks:
                        wav.write(audio)
                        first = first or time.monotonic() - start
        seconds, missed = wav.size / 2 / rate, watch.missed
        if args.plot:
            plot(args.out, read_audio(args.out, rate), rate)
    else:
        attempts = (args.retries, info["slowest_sec_per_token"])
        if alone:
            results = iter([speak(model, state, chunks[0], args.seed, watch, *attempts)])
        else:
            requests = (Request(chunk, state, args.seed) for chunk in chunks)
            results = iter(progress(speak_each(model, requests, *attempts, args.batch_size), "chunks", len(chunks)))

        def following() -> np.ndarray:
            nonlocal first, missed, retried
            spoken: Spoken = next(results)
            first = first or spoken.first_sec
            missed, retried = missed + (not spoken.ended), retried + (spoken.seed != args.seed)
            return spoken.audio

        lines = {args.out / f"{line:04d}.wav": own for line, own in enumerate(pauses, 1)}
        files = lines if args.out.is_dir() else {args.out: [pause for own in pauses for pause in own]}
        for path, own in files.items():
            seconds += write(path, joined(((following(), pause) for pause in own), rate), rate, args.plot)
    elapsed = time.monotonic() - start
    end = "end reached" if not missed else f"the end was NOT reached in {missed} chunk(s): try another --seed"
    again = f", {retried} chunk(s) with another seed" if retried else ""
    print(
        f"{args.out}: {seconds:.2f} s of speech in {elapsed:.2f} s ({seconds / elapsed:.1f}x real time), first audio "
        f"after {first:.2f} s, {end}{again}; model {bundle}"
    )


if __name__ == "__main__":
    command(main, again="starts anew")
