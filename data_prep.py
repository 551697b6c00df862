#!/usr/bin/env python3
"""Corpus in, cache out: romanised text and Mimi latents, ready for train.py.

Reads   --corpus: clartts, any audio dataset of the Hugging Face hub, demo, the embedded corpus, or a folder with one of
          metadata.csv    a header with file_name and text, if wanted split, speaker, chapter; with commas, bars,
                          semicolons or tabs, by Python's csv
          metadata.csv    LJSpeech's: id|text or id|text|normalised text, no header, audio in wavs/
          metadata.jsonl  objects with the same names
          a .lab or .txt  beside each audio file; a folder in it is a speaker, a folder in that a chapter
          all in UTF-8; a row that breaks its format's rules is a reject with its line, never guessed at. An id is the
          file's path below the folder that all files share, without its suffix. Of several channels the mean is taken,
          or where they cancel or only some speak, the loudest;
        --base:   the Pocket TTS model whose codec encodes the audio (`english`, `demo`, a CONFIG.yaml).
Writes  data/NAME/: manifest.jsonl (one utterance a line), latents.npy (float32 [frames, 32]), codes.npy with --codes,
        rejects.jsonl (id, reason, line), voice.wav (a reference prompt), stats.json, stats.png (look at it: rejects by
        reason, and the pairs most likely wrong), and last cache.json, which makes the cache whole.

    python data_prep.py                                               # ClArTTS and the released English base
    python data_prep.py --corpus demo                                 # the embedded corpus, a minute on 2 cores
    python data_prep.py --corpus my_recordings                        # your folder
    accelerate launch --num_processes 4 data_prep.py                  # the same cache, the work shared
    python data_prep.py --corpus demo --limit 20 --out data/small     # a quick look

Rows name files relative to the folder, or to its wavs/, wav/, clips/ or audio/. Audio is what soundfile reads (wav,
flac, ogg, opus, mp3); of others, as m4a, a line says how to convert them. A missing validation or test split is taken
from train: a whole chapter where there are chapters, else 2 % of the utterances.

The same command again continues where it stopped, and does nothing when nothing is left. A finished cache does not see
that the rules of text are others: delete it then.
"""

import argparse
import re
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
import torch
from accelerate import PartialState
from matplotlib import pyplot as plt
from pocket_tts.modules.text_conditioner import Tokenizer
from tqdm import tqdm

from pocket_arabic import text as arabic
from pocket_arabic.audio import AudioError, clipped_share, decode, level_db, mono, read_audio, resample, trimmed
from pocket_arabic.base import (
    GATED,
    audit,
    decode_latents,
    encoder_hash,
    load_config,
    load_mimi,
    load_moshi_mimi,
    load_tokenizer,
    load_weights,
)
from pocket_arabic.cache import Cache, CacheWriter, recorded_options
from pocket_arabic.corpus import HUB_SPLITS, SPLITS, Columns, Corpus, Utterance, open_corpus
from pocket_arabic.run import (
    Parser,
    UserError,
    atomic_write,
    command,
    filled,
    location,
    real,
    shortened,
    use_all_cores,
    whole,
    write_json,
)

matplotlib.use("Agg")

BLOCK = 32  # utterances encoded and written at a time; what a kill can cost: half a minute on 2 cores
REVIEW = 20  # random before/after pairs printed at the end
SUSPECTS = 6  # pairs of each kind to look at in stats.png
REASONS = 12  # and reasons of rejects
# A clip cut in half, or with half its text, is read at twice or half its speaker's usual rate. The embedded corpus's
# clips lie between 0.83 and 1.20 of it.
FAR = 1.6
# Options that change nothing in a cache, or that it records otherwise.
NO_PART = ("out", "device", "corpus", "revision", "workers", "batch_sec")


def build_parser() -> Parser:
    p = Parser(__doc__)
    g = p.add_argument_group("what")
    more = "clartts, a dataset of the hub (owner/name), a folder, or demo"
    g.add_argument("--corpus", type=filled, default="clartts", help=more)
    more = "whose codec encodes: demo, a language (english), or a CONFIG.yaml; demo if the corpus is demo, else english"
    g.add_argument("--base", type=filled, help=more)
    g.add_argument("--out", type=location, help="the cache's folder; default data/NAME after the corpus")
    g.add_argument("--limit", type=whole(1), help="use only the first N utterances of each split")
    corpus_options(p.add_argument_group("a dataset of the hub, or a folder's header"))
    text_options(p.add_argument_group("text"))
    audio_options(p.add_argument_group("audio"))
    g = p.add_argument_group("codes")
    more = "also cache K discrete Mimi codes a frame, 1 to 32, with moshi; no part of training, whose model has none"
    g.add_argument("--codes", type=whole(1, 32), metavar="K", help=more)
    more = "moshi's Mimi weights; default from the hub (kyutai/moshiko-pytorch-bf16)"
    g.add_argument("--codes-weights", type=filled, help=more)
    g = p.add_argument_group("machine")
    more = "where the codec runs; default the GPU of the process, else cpu"
    g.add_argument("--device", type=filled, help=more)
    more = "seconds of audio, padding included, encoded at a time; default 120 on a GPU, one clip on a CPU, where "
    more += "batches do not pay"
    g.add_argument("--batch-sec", type=real(0, 1e5), help=more)
    more = "threads that read, resample and trim while the codec encodes"
    g.add_argument("--workers", type=whole(1, 256), default=2, help=more)
    return p


def corpus_options(g: argparse._ArgumentGroup) -> None:
    more = "branch, tag or commit; default the newest, whose commit is recorded"
    g.add_argument("--revision", type=filled, help=more)
    g.add_argument("--text-column", type=filled, default="text", help="the transcript; default %(default)s")
    more = "an Audio feature, or a list of samples with a sampling_rate column beside it; of a folder the files, "
    more += "default file_name"
    g.add_argument("--audio-column", type=filled, default="audio", help=more)
    more = "the speaker's name; default one speaker, or a folder's column speaker"
    g.add_argument("--speaker-column", type=filled, help=more)
    splits = ",".join(f"{k}={v}" for k, v in HUB_SPLITS.items())
    more = "the dataset's splits and what they are here, as train=train,dev=valid"
    g.add_argument("--split-map", default=splits, help=more)


def text_options(g: argparse._ArgumentGroup) -> None:
    more = "the corpus's text is what the model reads already (Buckwalter, or a base's own language): take it as it is"
    g.add_argument("--romanized", action="store_true", help=more)
    more = "IPA instead of Buckwalter, for a base whose tokenizer cannot take that; stock tools then read IPA only"
    g.add_argument("--phonemes", choices=("espeak",), help=more)
    more = "Buckwalter symbols the tokenizer does not know and what to write for them, in bundles too: '{=W,|=X'"
    g.add_argument("--substitute", default="", help=more)
    style = {"nargs": 2, "default": (2.0, 25.0), "metavar": ("MIN", "MAX")}
    more = "reject what is read slower or faster: text of another clip"
    g.add_argument("--letters-per-sec", type=real(0, 1000), help=more, **style)


def audio_options(g: argparse._ArgumentGroup) -> None:
    more = "reject shorter utterances, in seconds after trimming"
    g.add_argument("--min-sec", type=real(0.05, 3600), default=1.0, help=more)
    more = "reject longer utterances, in seconds after trimming"
    g.add_argument("--max-sec", type=real(0.05, 3600), default=20.0, help=more)
    more = "cut silence from both ends, keeping --head-sec and --tail-sec of it"
    g.add_argument("--trim", action=argparse.BooleanOptionalAction, default=True, help=more)
    more = "silence is this far below the loudest 20 ms, in dB"
    g.add_argument("--floor-db", type=real(1, 200), default=40.0, help=more)
    g.add_argument("--head-sec", type=real(0, 60), default=0.1, help="silence kept before the first word")
    more = "silence kept after the last word; 0.6 s against 0.2 s cut Indonesian word errors from 24.4 to 13.5 %% "
    more += "(kyutai-labs/pocket-tts#306)"
    g.add_argument("--tail-sec", type=real(0, 60), default=0.6, help=more)
    more = "reject quieter speech: root mean square after trimming, in dB of full scale"
    g.add_argument("--min-level-db", type=real(-200, 0), default=-45.0, help=more)
    more = "reject a larger share of samples in flat tops"
    g.add_argument("--max-clipped", type=real(0, 1), default=1e-3, help=more)


def parse_args() -> argparse.Namespace:
    args = build_parser().parse_args()
    check_args(args)
    args.base = args.base or ("demo" if args.corpus == "demo" else "english")
    args.out = args.out or Path("data") / Path(args.corpus).resolve().name
    return args


def check_args(args: argparse.Namespace) -> None:
    if args.min_sec >= args.max_sec:
        raise UserError(f"--min-sec {args.min_sec} --max-sec {args.max_sec}: the first must be smaller")
    if args.letters_per_sec[0] >= args.letters_per_sec[1]:
        raise UserError("--letters-per-sec {} {}: the first must be smaller".format(*args.letters_per_sec))
    if args.phonemes and args.romanized:
        raise UserError("--phonemes, --romanized: give one of them; phonemes are made from Arabic script")
    args.substitute = pairs(args.substitute, "--substitute")
    for symbol, other in args.substitute.items():
        if symbol not in arabic.FROM_MODEL or len(other) != 1 or other in arabic.FROM_MODEL or other.isspace():
            raise UserError(
                f"--substitute {symbol}={other}: a Buckwalter symbol on the left, on the right one that Buckwalter "
                "does not use"
            )
    if len(set(args.substitute.values())) < len(args.substitute):
        raise UserError("--substitute: one symbol stands for two; romanisation would not be reversible")
    args.split_map = pairs(args.split_map, "--split-map")
    unknown = [v for v in args.split_map.values() if v not in SPLITS]
    if unknown:
        raise UserError(f"--split-map: {unknown[0]} is none of {', '.join(SPLITS)}")


def pairs(text: str, flag: str) -> dict[str, str]:
    """'a=b,c=d' -> {"a": "b", "c": "d"}. Raises UserError."""
    found = [p.partition("=") for p in text.split(",") if p]
    if any(not key or not value for key, _, value in found):
        raise UserError(f"{flag} {shortened(text)}: write pairs, left=right, with commas between them")
    return {key: value for key, _, value in found}


# --- one utterance ----------------------------------------------------------------------------------------------------


@dataclass
class Prepared:
    row: dict  # of the manifest, but for its place
    samples: np.ndarray  # [n] at the codec's rate


def utterance_text(text: str, tokenizer, args: argparse.Namespace) -> tuple[str, str, Counter[str]]:
    """Text as given -> (text_norm, text_model, what was dropped or guessed on the way). Raises TextError."""
    notes: Counter[str] = Counter()
    if args.romanized:
        text_norm = text_model = " ".join(text.split())
        if not text_norm:
            raise arabic.TextError("no text")
    else:
        text_norm, text_model = arabic.model_text(
            text, phonemes=args.phonemes, substitutes=args.substitute, notes=notes
        )
    if (args.romanized or args.phonemes) and tokenizer.decode(tokenizer.encode(text_model)) != text_model:
        raise arabic.TextError("the tokenizer cannot spell this text")
    return text_norm, text_model, notes


def prepare(utterance: Utterance, tokenizer, rate: int, args: argparse.Namespace) -> Prepared | str:
    """Text and audio of one utterance, checked, resampled and trimmed; or the reason to leave it out."""
    if utterance.problem:
        return utterance.problem
    try:
        text_norm, text_model, notes = utterance_text(utterance.text, tokenizer, args)
        channels, raw_rate = decode(utterance.audio, 10 * args.max_sec)  # a whole chapter in one file is not read
        raw, mixed = mono(channels)
        if clipped_share(raw) > args.max_clipped:
            raise AudioError("audio clipped")
        samples, start, end = trimmed(resample(raw, raw_rate, rate), rate, vars(args))
        if level_db(samples[start:end]) < args.min_level_db:
            raise AudioError("audio too quiet")
        letters = sum(c.isalpha() for c in text_norm) * rate / (end - start)
        if letters < args.letters_per_sec[0]:
            raise AudioError("read too slowly for its text")
        if letters > args.letters_per_sec[1]:
            raise AudioError("read too fast for its text")
        seconds = len(samples) / rate
        if seconds < args.min_sec:
            raise AudioError("too short")
        if seconds > args.max_sec:
            raise AudioError("too long")
    except (arabic.TextError, AudioError) as error:
        return str(error)
    row = {"id": utterance.id, "split": utterance.split, "speaker": utterance.speaker, "chapter": utterance.chapter}
    row |= {
        "text": utterance.text,
        "text_norm": text_norm,
        "text_model": text_model,
        "duration_sec": round(seconds, 3),
        "speech_end_sec": round(end / rate, 3),
    }
    row |= {
        "raw_sec": round(len(raw) / raw_rate, 3),
        "raw_level_db": round(level_db(raw), 2),
        "level_db": round(level_db(samples), 2),
        "letters_per_sec": round(letters, 2),
    }
    row |= {"mixed": mixed} if mixed else {}
    if notes:
        row["text_notes"] = dict(notes)
    if isinstance(utterance.audio, Path):
        row["source"] = str(utterance.audio)
    return Prepared(row, samples)


def rejected(utterance: Utterance, reason: str) -> dict:
    """A line of rejects.jsonl."""
    return {"id": utterance.id, "reason": reason} | ({"line": utterance.line} if utterance.line else {})


# --- encoding ---------------------------------------------------------------------------------------------------------


def batches(samples: list[np.ndarray], most: float) -> list[list[int]]:
    """Clips sorted by length into batches of at most `most` samples, padding included; 0: one clip each."""
    order, found = sorted(range(len(samples)), key=lambda i: len(samples[i])), []
    for i in order:
        if found and (len(found[-1]) + 1) * len(samples[i]) <= most:
            found[-1].append(i)
        else:
            found.append([i])
    return found


@torch.no_grad()
def encode(codec, samples: list[np.ndarray], frame: int, device: torch.device, most: float = 0) -> list[np.ndarray]:
    """Clips [n] -> what `codec` makes of each, [ceil(n / frame), width].

    The codec pads the last frame with zeros, as batches do, and is causal: padding reaches no frame that is kept.
    """
    found: list[np.ndarray] = [None] * len(samples)
    for batch in batches(samples, most):
        counts = [-(-len(samples[i]) // frame) for i in batch]
        padded = np.zeros((len(batch), 1, max(counts) * frame), np.float32)
        for row, i in enumerate(batch):
            padded[row, 0, : len(samples[i])] = samples[i]
        encoded = codec(torch.from_numpy(padded).to(device)).cpu().numpy()  # [B, frames, width]
        for row, i in enumerate(batch):
            found[i] = encoded[row, : counts[row]]
    return found


def blocks(corpus_shards: list, mine: range, writer: CacheWriter) -> Iterator[tuple[int, Path, list[Utterance]]]:
    """This process's share of the corpus in blocks not yet written; the last of a shard is [], with its number."""
    for shard in mine:
        if writer.shard_done(shard):
            continue
        utterances, index = corpus_shards[shard](), 0
        while block := list(islice(utterances, BLOCK)):
            path = writer.block(shard, index)
            if not path.exists():
                yield shard, path, block
            index += 1
        yield shard, writer.block(shard, index), []


def ahead(
    work: Iterator[tuple[int, Path, list[Utterance]]], pool: ThreadPoolExecutor, prepared: partial
) -> Iterator[tuple[int, Path, list[Utterance], list[Future]]]:
    """The blocks with their utterances' preparation under way: of the next one too, while this one is encoded."""
    waiting: deque = deque()
    for shard, path, block in work:
        waiting.append((shard, path, block, [pool.submit(prepared, u) for u in block]))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def encode_corpus(
    shards: list,
    total: int | None,
    writer: CacheWriter,
    state: PartialState,
    tokenizer,
    mimi,
    moshi,
    args: argparse.Namespace,
) -> None:
    """Write every block of this process's shards that is not there yet."""
    rate, frame = mimi.sample_rate, int(mimi.sample_rate / mimi.frame_rate)
    device = torch.device(args.device)
    batch_sec = args.batch_sec if args.batch_sec is not None else (120.0 if device.type == "cuda" else 0.0)
    seconds, clips, start = 0.0, 0, time.monotonic()
    said = start
    mine = range(state.process_index, len(shards), state.num_processes)
    share = total and -(-total // state.num_processes)
    before = writer.num_blocks() * BLOCK // state.num_processes
    bar = tqdm(total=share, initial=before, unit=" clips", disable=None if state.is_main_process else True)
    with ThreadPoolExecutor(args.workers) as pool:
        for shard, path, block, futures in ahead(
            blocks(shards, mine, writer), pool, partial(prepare, tokenizer=tokenizer, rate=rate, args=args)
        ):
            if not block:
                writer.finish_shard(shard)
                continue
            results = [f.result() for f in futures]
            rejects = [rejected(u, r) for u, r in zip(block, results) if isinstance(r, str)]
            of = [u for u, r in zip(block, results) if isinstance(r, Prepared)]
            good = [r for r in results if isinstance(r, Prepared)]
            latents = encode(mimi.encode_to_latent, [g.samples for g in good], frame, device, batch_sec * rate)
            kept = [i for i, found in enumerate(latents) if np.ptp(found, axis=0).max() >= 1e-6]
            rejects += [rejected(of[i], "constant latents") for i in range(len(good)) if i not in kept]
            if good and not kept:
                raise UserError(
                    f"base {args.base}: its codec gives constant latents (weights without voice cloning?); {GATED}"
                )
            samples = [good[i].samples for i in kept]
            rows = [good[i].row | {"num_frames": len(latents[i])} for i in kept]
            arrays = {"latents": np.concatenate([np.zeros((0, 32), np.float32), *(latents[i] for i in kept)])}
            if moshi:
                codes = encode(lambda x: moshi.encode(x).transpose(1, 2), samples, frame, device, batch_sec * rate)
                arrays["codes"] = np.concatenate([np.zeros((0, args.codes)), *codes]).astype(np.uint16)
            writer.add_block(path, rows, rejects, arrays, samples, rate)
            seconds, clips = seconds + sum(row["duration_sec"] for row in rows), clips + len(block)
            progress = f"{seconds / 3600:.2f} h, {seconds / (time.monotonic() - start):.1f}x real time"
            bar.update(len(block))
            bar.set_postfix_str(progress)
            if (
                state.is_main_process and bar.disable and time.monotonic() - said > 15
            ):  # no terminal: a line now and then
                left = (
                    f", {(share - before - clips) * (time.monotonic() - start) / clips / 60:.1f} min left"
                    if share
                    else ""
                )
                print(f"{before + clips} clips, {progress}{left}", flush=True)
                said = time.monotonic()
    bar.close()


# --- what a researcher checks first -----------------------------------------------------------------------------------


def by_reason(rejects: list[dict]) -> dict[str, list[dict]]:
    """Rejects by their reasons, places left out: {"stands twice": [...]}, the most frequent first."""
    reasons: dict[str, list[dict]] = {}
    for reject in rejects:
        reason = re.sub(r" at position \d+|, in .*| \((?:[^()]|\([^()]*\))*\)$", "", reject["reason"])
        reasons.setdefault(reason, []).append(reject)
    return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))


def suspects(rows: list[dict], lines: dict[str, int]) -> dict[str, list[dict]]:
    """The pairs most likely wrong, each kind with the worst first: read slowest and fastest for their speaker, and
    quietest.

    `rate`: letters a second over the median of the speaker; `far` tells those of a clip cut short or with half its
    text.
    """
    speakers: dict[str, list[float]] = {}
    for row in rows:
        speakers.setdefault(row["speaker"], []).append(row["letters_per_sec"])
    usual = {speaker: float(np.median(rates)) for speaker, rates in speakers.items()}
    rate = [row["letters_per_sec"] / usual[row["speaker"]] for row in rows]
    order = {
        "slowest": sorted(range(len(rows)), key=lambda i: rate[i]),
        "fastest": sorted(range(len(rows)), key=lambda i: -rate[i]),
        "quietest": sorted(range(len(rows)), key=lambda i: rows[i]["level_db"]),
    }
    most = {kind: max(SUSPECTS, sum(far(rate[i], kind) for i in found)) for kind, found in order.items()}
    return {
        kind: [
            {k: rows[i][k] for k in ("id", "letters_per_sec", "level_db", "duration_sec", "text_norm")}
            | {"line": lines.get(rows[i]["id"]), "rate": round(rate[i], 2), "far": far(rate[i], kind)}
            for i in found[: most[kind]]
        ]
        for kind, found in order.items()
    }


def far(rate: float, kind: str) -> bool:
    return rate * FAR < 1 if kind == "slowest" else rate > FAR if kind == "fastest" else False


def statistics(
    rows: list[dict],
    rejects: list[dict],
    latents: np.ndarray,
    tokenizer,
    symbols: dict,
    lines: dict[str, int] | None = None,
) -> dict:
    """Counts, hours, rejects by reason, marks, tokens per word, latent mean and deviation, suspects; latents [frames,
    32]."""
    total, square = np.zeros(32), np.zeros(32)
    for first in range(0, len(latents), 1 << 16):  # in pieces: memory does not grow with the corpus
        part = latents[first : first + (1 << 16)].astype(np.float64)
        total, square = total + part.sum(0), square + (part**2).sum(0)
    mean = total / len(latents)
    pieces = [len(tokenizer.encode(r["text_model"])) for r in rows]
    return {
        "utterances": {s: sum(r["split"] == s for r in rows) for s in SPLITS},
        "hours": {s: round(sum(r["duration_sec"] for r in rows if r["split"] == s) / 3600, 4) for s in SPLITS},
        "hours_of_silence_trimmed": round(sum(r["raw_sec"] - r["duration_sec"] for r in rows) / 3600, 4),
        "rejects": {reason: len(found) for reason, found in by_reason(rejects).items()},
        "channels": dict(Counter(r["mixed"] for r in rows if "mixed" in r)),
        "text_notes": dict(sum((Counter(r.get("text_notes", {})) for r in rows), Counter()).most_common()),
        "characters": sum(len(r["text_norm"]) for r in rows),
        "missing_marks": round(float(np.mean([arabic.missing_marks(r["text_norm"]) for r in rows])), 4),
        "tokens_per_word": round(sum(pieces) / sum(len(r["text_model"].split()) for r in rows), 3),
        "longest_text_tokens": max(pieces),
        "unknown_pieces": [s for s, entry in symbols.items() if not entry["known"]],
        "tokenizer_audit": symbols,
        "letters_per_sec": [
            round(float(q), 2) for q in np.percentile([r["letters_per_sec"] for r in rows], (1, 50, 99))
        ],
        "level_db": [round(float(q), 2) for q in np.percentile([r["level_db"] for r in rows], (1, 50, 99))],
        "latent_mean": round(float(mean.mean()), 4),
        "latent_std": round(float(np.sqrt(np.maximum(square / len(latents) - mean**2, 0)).mean()), 4),
        "suspects": suspects(rows, lines or {}),
    }


@torch.no_grad()
def plot_statistics(
    path: Path, rows: list[dict], rejects: list[dict], stats: dict, voice: Path, mimi, device: str
) -> None:
    """stats.png: durations, reading rate, level before and after trimming; rejects by reason; the pairs most likely
    wrong; and the voice prompt through the codec."""
    tables = list(stats["suspects"])
    layout = [["sec", "rate", "level"], *([name] * 3 for name in ("rejects", *tables, "voice", "codec"))]
    heights = [3, max(1.2, 0.6 + 0.3 * min(len(stats["rejects"]), REASONS)), *[0.5 + 0.28 * SUSPECTS] * 3, 2.4, 2.4]
    figure, axes = plt.subplot_mosaic(
        layout, figsize=(13, sum(heights) + 1), height_ratios=heights, layout="constrained"
    )
    axes["sec"].hist([r["duration_sec"] for r in rows], 40)
    axes["sec"].set(title="duration after trimming", xlabel="seconds", ylabel="utterances")
    axes["rate"].hist([r["letters_per_sec"] for r in rows], 40)
    axes["rate"].set(title="letters a second of speech", xlabel="letters/s")
    axes["level"].hist(
        [[r["raw_level_db"] for r in rows], [r["level_db"] for r in rows]],
        40,
        label=["as given", "trimmed"],
        histtype="step",
    )
    axes["level"].set(title="level", xlabel="dB of full scale")
    axes["level"].legend()
    plot_rejects(axes["rejects"], by_reason(rejects), len(rows) + len(rejects))
    for kind in tables:
        plot_pairs(axes[kind], kind, stats["suspects"][kind])
    rate = mimi.sample_rate
    samples = read_audio(voice, rate)
    latents = mimi.encode_to_latent(torch.from_numpy(samples).to(device)[None, None])[0]
    for name, audio in (("voice", samples), ("codec", decode_latents(mimi, latents)[: len(samples)])):
        # 43 ms windows resolve harmonics about 100 Hz apart.
        axes[name].specgram(audio + 1e-9, NFFT=1024, noverlap=768, Fs=rate, vmin=-140, vmax=-30, cmap="magma")
        axes[name].set(
            title={"voice": "voice.wav", "codec": "voice.wav through the codec"}[name],
            ylim=(0, 6000),
            ylabel="Hz",
            xlabel="seconds",
        )
    with warnings.catch_warnings():  # a text may have characters the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with atomic_write(path) as tmp:
            figure.savefig(tmp, dpi=80)
    plt.close(figure)


def plot_rejects(axes, reasons: dict[str, list[dict]], total: int) -> None:
    """Bars of how many were rejected for what, the most frequent on top, with the places of the first."""
    counts = [len(found) for found in reasons.values()][:REASONS]
    labels = [f" {len(found)}  {short(reason)}: {places(found)}" for reason, found in reasons.items()][:REASONS]
    axes.set_title(f"rejected: {sum(map(len, reasons.values()))} of {total}", loc="left")
    axes.bar_label(axes.barh(range(len(counts)), counts, color="tab:red"), labels, parse_math=False)
    axes.set(ylim=(max(1, len(counts)) - 0.5, -0.5), xlim=(0, 3 * max([1, *counts])), yticks=[])
    axes.xaxis.get_major_locator().set_params(integer=True)


def plot_pairs(axes, kind: str, pairs: list[dict]) -> None:
    """A table: where the pair stands, what is odd about it, its text (which the font sets from right to left)."""
    axes.axis("off")
    axes.set_title(f"{kind}: listen to these", loc="left")
    for i, pair in enumerate(pairs[:SUSPECTS]):
        place = f"line {pair['line']}" if pair["line"] else short(pair["id"], 28)
        rate = f"{pair['letters_per_sec']:.1f} letters/s, {pair['rate']:.2f} of the usual"
        odd = f"{pair['level_db']:.1f} dB" if kind == "quietest" else rate
        style = {"transform": axes.transAxes, "va": "center", "parse_math": False}
        style["color"] = "tab:red" if pair["far"] else "black"
        y = 1 - (i + 0.5) / SUSPECTS
        axes.text(0, y, place, **style)
        axes.text(0.17, y, f"{odd}, {pair['duration_sec']:.1f} s", **style)
        axes.text(1, y, short(pair["text_norm"]), ha="right", **style)


def short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def report(args: argparse.Namespace, rows: list[dict], rejects: list[dict], stats: dict) -> None:
    """The closing table, and pairs of texts to read with one's own eyes."""
    print(f"\n{min(REVIEW, len(rows))} texts, as given and as the model reads them:")
    for i in sorted(np.random.default_rng(0).permutation(len(rows))[:REVIEW]):
        print(f"  {rows[i]['id']}\n    {rows[i]['text']}\n    {rows[i]['text_model']}")
    print()
    for name, value in stats.items():
        if name not in ("tokenizer_audit", "suspects", "rejects"):
            print(f"{name:24} {value}")
    print(f"rejects                  {len(rejects)} of {len(rows) + len(rejects)}")
    for reason, found in by_reason(rejects).items():
        print(f"  {len(found)} {reason}: {places(found)}")
    for kind in ("slowest", "fastest"):
        odd = [pair for pair in stats["suspects"][kind] if pair["far"]]
        if odd:
            usual = f"read over {FAR} times {kind.replace('est', 'er')} than their speaker's usual"
            print(f"{len(odd)} {usual}, perhaps another text's: {places(odd)}")
    print(f"cache: {args.out}; look at {args.out / 'stats.png'} before you train")


def places(found: list[dict]) -> str:
    """'lines 3, 7, 9', or ids where there are no lines; the first five."""
    names = [str(f.get("line") or f["id"]) for f in found[:5]]
    what = ("line " if len(found) == 1 else "lines ") if found[0].get("line") else ""
    return what + ", ".join(names) + (", ..." if len(found) > 5 else "")


def spelt(args: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, dict]:
    """How the tokenizer spells every symbol of romanised text. Raises UserError if it cannot spell one."""
    symbols = audit(tokenizer, "".join(args.substitute.get(c, c) for c in arabic.FROM_MODEL if c != " "))
    if unknown := " ".join(s for s, entry in symbols.items() if not entry["known"]):
        raise UserError(
            f"base {args.base}: its tokenizer does not know {unknown}; write others for them (--substitute "
            f"'{unknown[0]}=W'), or use --phonemes espeak"
        )
    return symbols


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device}: not usable here ({str(error).splitlines()[0]}); use --device cpu"
        ) from None


def main() -> None:
    args = parse_args()
    use_all_cores()
    state = PartialState(cpu=args.device == "cpu")
    args.device = str(args.device or state.device)
    check_device(args.device)

    # 1. The base and the corpus, checked before anything slow.
    recorded = recorded_options(args.out) or {}
    if args.revision is None and recorded.get("corpus_revision"):
        args.revision = recorded["corpus_revision"]  # what the cache was begun with, whatever is newest by now
    columns = Columns(args.text_column, args.audio_column, args.speaker_column, splits=args.split_map)
    corpus: Corpus = open_corpus(args.corpus, args.limit, columns, args.revision, romanized=args.romanized)
    config = load_config(args.base)
    weights = load_weights(config)
    tokenizer = load_tokenizer(config)
    symbols = {} if args.phonemes else spelt(args, tokenizer)
    mimi = load_mimi(config, weights)

    # 2. The cache: new, to be continued, or done.
    options = {k: v for k, v in vars(args).items() if k not in NO_PART}
    options |= {"corpus": corpus.name, "corpus_revision": corpus.revision, "encoder_sha256": encoder_hash(mimi)}
    options["letters_per_sec"] = list(args.letters_per_sec)
    writer = CacheWriter(args.out, options)
    if writer.complete:
        Cache(args.out)  # raises UserError for one that has been damaged since
        print(f"{args.out} is complete; nothing to do")
        return
    for note in corpus.notes if state.is_main_process else ():
        print(note, flush=True)

    # 3. Encode, each process its shards.
    moshi = load_moshi_mimi(args.codes, args.codes_weights, args.device) if args.codes else None
    shards, total = corpus.open()
    with state.main_process_first():
        writer.begin()
    encode_corpus(shards, total, writer, state, tokenizer, mimi.to(args.device), moshi, args)
    state.wait_for_everyone()
    if not state.is_main_process:
        return

    # 4. Finish: one array, splits, statistics, then the cache as a whole.
    rows, rejects = writer.collect()
    if not rows:
        writer.discard()
        reasons = "; ".join(f"{found[0]['reason']}, {places(found)}" for found in list(by_reason(rejects).values())[:3])
        raise UserError(f"{args.corpus}: none of its {len(rejects)} utterances can be used: {reasons}")
    latents = np.load(args.out / "latents.npy", mmap_mode="r")
    stats = statistics(rows, rejects, latents, tokenizer, symbols, corpus.lines)
    write_json(args.out / "stats.json", stats)
    plot_statistics(args.out / "stats.png", rows, rejects, stats, args.out / "voice.wav", mimi, args.device)
    speakers = sorted({row["speaker"] for row in rows})
    writer.finish(rows, rejects, {"counts": stats["utterances"], "hours": stats["hours"], "speakers": speakers})
    report(args, rows, rejects, stats)


if __name__ == "__main__":
    command(main)
