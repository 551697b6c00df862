#!/usr/bin/env python3
"""Corpus in, cache out: romanised text and Mimi latents, ready for train.py.

Reads   --corpus: `demo` (the embedded corpus) or a folder with metadata.csv (file_name,text[,split,speaker]);
        --base:   the Pocket TTS model whose codec encodes the audio (`demo`, `english`, a CONFIG.yaml).
Writes  data/NAME/: manifest.jsonl (one utterance a line), latents.npy (float32 [frames, 32]), rejects.jsonl (id,
        reason), voice.wav (a reference prompt), stats.json, and last cache.json, which makes the cache whole.

    python data_prep.py --corpus demo                                 # the embedded corpus, a minute on 2 cores
    python data_prep.py --corpus my_recordings --base english         # your folder, the released English base
    python data_prep.py --corpus demo --limit 20 --out data/small     # a quick look

The same command again continues where it stopped, and does nothing when nothing is left.
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pocket_arabic import __version__
from pocket_arabic import text as arabic
from pocket_arabic.audio import AudioError, read_audio, speech_bounds, write_wav
from pocket_arabic.cache import CacheWriter
from pocket_arabic.corpus import Corpus, Utterance, open_corpus
from pocket_arabic.model import audit, encoder_hash, load_config, load_mimi, load_tokenizer, load_weights
from pocket_arabic.run import UserError, command, use_all_cores, write_json

PROMPT_SEC = 6.0  # voice.wav is the training utterance nearest to this length; prompts in training have 2.5 to 10 s


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--version", action="version", version=__version__)
    g = p.add_argument_group("what")
    g.add_argument("--corpus", required=True, help="demo, or a folder with metadata.csv")
    g.add_argument("--base", help="whose codec encodes: demo, a language (english), or a CONFIG.yaml; demo if the corpus is demo, else english")
    g.add_argument("--out", type=Path, help="the cache's folder; default data/NAME after the corpus")
    g.add_argument("--romanized", action="store_true", help="the corpus's text is what the model reads already (Buckwalter, or a base's own language): take it as it is")
    g.add_argument("--limit", type=int, help="use only the first N utterances")
    g = p.add_argument_group("audio")
    g.add_argument("--min-sec", type=float, default=1.0, help="reject shorter utterances, in seconds after trimming")
    g.add_argument("--max-sec", type=float, default=20.0, help="reject longer utterances, in seconds after trimming")
    g.add_argument("--trim", action=argparse.BooleanOptionalAction, default=True, help="cut silence from both ends, keeping --head-sec and --tail-sec of it")
    g.add_argument("--floor-db", type=float, default=40.0, help="silence is this far below the loudest 20 ms, in dB")
    g.add_argument("--head-sec", type=float, default=0.1, help="silence kept before the first word")
    g.add_argument(
        "--tail-sec",
        type=float,
        default=0.6,
        help="silence kept after the last word; 0.6 s against 0.2 s cut Indonesian word errors from 24.4 to 13.5 %% (kyutai-labs/pocket-tts#306)",
    )
    g = p.add_argument_group("machine")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where the codec runs")
    args = p.parse_args()
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: must be at least 1")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device}: not usable here ({str(error).splitlines()[0]}); use --device cpu") from None
    if not 0 < args.min_sec < args.max_sec:
        raise UserError(f"--min-sec {args.min_sec} --max-sec {args.max_sec}: the first must be positive and smaller")
    args.base = args.base or ("demo" if args.corpus == "demo" else "english")
    args.out = args.out or Path("data") / Path(args.corpus).resolve().name
    return args


def utterance_text(text: str, tokenizer, romanized: bool) -> tuple[str, str]:
    """Text as given -> (text_norm, text_model). Raises TextError."""
    if not romanized:
        return arabic.model_text(text)
    text = " ".join(text.split())
    if not text or tokenizer.decode(tokenizer.encode(text)) != text:
        raise arabic.TextError("the tokenizer cannot spell this text" if text else "no text")
    return text, text


def utterance_audio(utterance: Utterance, args: argparse.Namespace, rate: int) -> tuple[np.ndarray, float]:
    """Read, resample and trim -> [samples] at `rate`, and the second at which speech ends. Raises AudioError."""
    samples = read_audio(utterance.audio, rate)
    start, end = speech_bounds(samples, rate, args.floor_db)
    if args.trim:
        first = max(0, start - int(args.head_sec * rate))
        samples, end = samples[first : end + int(args.tail_sec * rate)], end - first
    seconds = len(samples) / rate
    if seconds < args.min_sec:
        raise AudioError("too short")
    if seconds > args.max_sec:
        raise AudioError("too long")
    return samples, end / rate


@torch.no_grad()
def encode(mimi, samples: np.ndarray, device: str) -> np.ndarray:
    """[samples] -> latents float32 [frames, 32]; the codec pads the last frame with zeros."""
    return mimi.encode_to_latent(torch.from_numpy(samples).to(device)[None, None])[0].float().cpu().numpy()


def prepare(corpus: Corpus, writer: CacheWriter, tokenizer, mimi, args: argparse.Namespace) -> None:
    """Append every utterance of the corpus to the cache, or its reject, continuing after those already there."""
    rate, done = mimi.sample_rate, writer.done_ids()
    nearest = min((abs(r["duration_sec"] - PROMPT_SEC) for r in writer.rows if r["split"] == "train"), default=np.inf)
    hours, start = 0.0, time.monotonic()
    said = start
    bar = tqdm(corpus.utterances, unit=" clips", disable=None)
    for utterance in bar:
        if utterance.id in done:
            continue
        try:
            text_norm, text_model = utterance_text(utterance.text, tokenizer, args.romanized)
            samples, speech_end = utterance_audio(utterance, args, rate)
            latents = encode(mimi, samples, args.device)
            if np.ptp(latents, axis=0).max() < 1e-6:
                raise AudioError("constant latents")
        except (arabic.TextError, AudioError) as error:
            writer.reject(utterance.id, str(error))
            continue
        duration = round(len(samples) / rate, 3)
        if utterance.split == "train" and abs(duration - PROMPT_SEC) < nearest:
            nearest = abs(duration - PROMPT_SEC)
            write_wav(args.out / "voice.wav", samples, rate)
        row = {"id": utterance.id, "split": utterance.split, "speaker": utterance.speaker, "text": utterance.text}
        writer.add(row | {"text_norm": text_norm, "text_model": text_model, "duration_sec": duration, "speech_end_sec": round(speech_end, 3)}, latents)
        hours += duration / 3600
        progress = f"{hours:.2f} h, {hours * 3600 / (time.monotonic() - start):.1f}x real time"
        bar.set_postfix_str(progress)
        if bar.disable and time.monotonic() - said > 15:  # no terminal: a line now and then
            print(f"{len(writer.rows)} of {len(corpus.utterances)} clips, {progress}", flush=True)
            said = time.monotonic()
    if not writer.rows:
        writer.discard()
        reasons = "; ".join(f"{r['reason']} ({r['id']})" for r in writer.rejects[:3])
        raise UserError(f"{args.corpus}: none of its {len(writer.rejects)} utterances can be used: {reasons}")


def statistics(writer: CacheWriter, tokenizer, symbols: dict) -> dict:
    """What a researcher checks first: counts, hours, rejects by reason, tokens per word, latent mean and deviation."""
    reasons: dict[str, int] = {}
    for reject in writer.rejects:
        reason = re.sub(r" at position \d+", "", reject["reason"])
        reasons[reason] = reasons.get(reason, 0) + 1
    latents = writer.latents()
    tokens = sum(len(tokenizer.encode(r["text_model"])) for r in writer.rows)
    words = sum(len(r["text_model"].split()) for r in writer.rows)
    return {
        "utterances": {s: sum(r["split"] == s for r in writer.rows) for s in ("train", "valid", "test")},
        "hours": {s: round(sum(r["duration_sec"] for r in writer.rows if r["split"] == s) / 3600, 4) for s in ("train", "valid", "test")},
        "rejects": reasons,
        "missing_marks": round(float(np.mean([arabic.missing_marks(r["text_norm"]) for r in writer.rows])), 4),
        "tokens_per_word": round(tokens / words, 3),
        "tokenizer_audit": {s: entry["pieces"] for s, entry in symbols.items()},
        "latent_mean": round(float(latents.mean()), 4),
        "latent_std": round(float(latents.std(0).mean()), 4),
    }


def main() -> None:
    args = parse_args()
    use_all_cores()

    # 1. The corpus and the base, checked before anything slow.
    corpus = open_corpus(args.corpus)
    if args.limit:
        del corpus.utterances[args.limit :]
    config = load_config(args.base)
    weights = load_weights(config)
    tokenizer = load_tokenizer(config)
    symbols = audit(tokenizer, "".join(c for c in arabic.FROM_MODEL if c != " "))
    unknown = " ".join(s for s, entry in symbols.items() if not entry["known"])
    if unknown:
        raise UserError(f"base {args.base}: its tokenizer does not know {unknown}; give a base whose tokenizer does")
    mimi = load_mimi(config, weights)

    # 2. The cache: new, to be continued, or done.
    options = {k: v for k, v in vars(args).items() if k not in ("out", "device", "corpus")}
    options |= {"corpus": corpus.name, "corpus_revision": corpus.revision, "encoder_sha256": encoder_hash(mimi)}
    writer = CacheWriter(args.out, options)
    if writer.complete:
        print(f"{args.out} is complete; nothing to do")
        return

    # 3. Encode.
    prepare(corpus, writer, tokenizer, mimi.to(args.device), args)

    # 4. Finish: statistics, then the cache as a whole.
    stats = statistics(writer, tokenizer, symbols)
    write_json(args.out / "stats.json", stats)
    writer.finish({"counts": stats["utterances"], "hours": stats["hours"], "speakers": sorted({r["speaker"] for r in writer.rows})})
    for name in ("utterances", "hours", "rejects", "missing_marks", "tokens_per_word", "latent_mean", "latent_std"):
        print(f"{name:16} {stats[name]}")
    print(f"cache: {args.out}")


if __name__ == "__main__":
    command(main)
