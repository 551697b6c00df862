#!/usr/bin/env python3
"""Rebuild the embedded corpus: demo/sentences.txt spoken by espeak-ng, one voice.

Reads   demo/sentences.txt (our own vocalised sentences, one a line).
Writes  demo/corpus/clips/NNNN.ogg (Opus, 24 kHz), metadata.csv (file_name,text,split, Arabic script), coverage.json.

    python demo/build_corpus.py            # needs espeak-ng (apt-get install espeak-ng); 1.51 made the committed clips
    python demo/build_corpus.py --check    # only checks the sentences and rewrites coverage.json

40 sentences are held out for validation and 40 for test, chosen by hash among those that share at most half of their
words with any other sentence, so nothing near a held-out sentence is trained on.
"""

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import soundfile as sf
import torch
import torchaudio

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from pocket_arabic.text import (  # noqa: E402
    ARABIC_TO_BUCKWALTER,
    FROM_MODEL,
    LETTERS,
    MARKS,
    SHADDA,
    missing_marks,
    model_text,
)

SAMPLE_RATE = 24000
HELD_OUT = 40
# libsndfile's 0..1 scale from 256 down to 6 kbit/s: about 28; 0.9 adds 0.012 to a recogniser's error, Vorbis at 45 adds
# 0.08
OPUS_LEVEL = 0.91
# 12.5 Hz, to which the codec brings a voice's pitch, are less of a higher one; espeak-ng's own is 50.
PITCH = 60
# Per cent of the voice's own range of pitch, whose standard deviation is 1.6 semitones: a drone. At 150 it is 2.8, as
# when a man reads, and recognisers of the plain voice err by 0.003 and 0.010 more; at 200, 3.6 and 0.005 and 0.013.
MELODY = 150


def check(sentences: list[str]) -> list[str]:
    """Reasons why the file cannot be used, one a line; empty if it can."""
    problems = [f"line {i}: repeated" for i, s in enumerate(sentences, 1) if s in sentences[: i - 1]]
    for i, sentence in enumerate(sentences, 1):
        text_norm, _ = model_text(sentence)  # raises TextError
        letters = sum(c in LETTERS for c in sentence)
        if text_norm != sentence:
            problems.append(f"line {i}: not in normal form, write {text_norm}")
        if not 20 <= letters <= 100:
            problems.append(f"line {i}: {letters} letters, want 20 to 100")
        if missing_marks(text_norm) > 0:
            problems.append(f"line {i}: a letter lacks its mark")
    return problems


def shared_words(a: set[str], b: set[str]) -> float:
    return len(a & b) / min(len(a), len(b))


def split(sentences: list[str]) -> list[str]:
    """train/valid/test per sentence, a pure function of the sentences."""
    words = [set("".join(c for c in s if c in LETTERS or c == " ").split()) for s in sentences]
    order = sorted(range(len(sentences)), key=lambda i: hashlib.sha256(sentences[i].encode()).hexdigest())
    apart = [i for i in order if all(shared_words(words[i], w) <= 0.5 for j, w in enumerate(words) if j != i)]
    splits = ["train"] * len(sentences)
    for i in apart[:HELD_OUT]:
        splits[i] = "test"
    for i in apart[HELD_OUT : 2 * HELD_OUT]:
        splits[i] = "valid"
    return splits


def coverage(sentences: list[str]) -> dict:
    """How often each letter, mark, doubled letter with its vowel, and punctuation mark occurs."""
    text = " ".join(sentences)
    characters = Counter(text)
    first = [model_text(s)[1][0] for s in sentences]
    capital = Counter(
        c if c.upper() == c else "another symbol" if c.upper() in FROM_MODEL else "no symbol" for c in first
    )
    doubled = Counter(text[i - 1] + SHADDA + text[i + 1] for i, c in enumerate(text[:-1]) if c == SHADDA)
    return {
        "sentences": len(sentences),
        "letters_per_sentence": [f(sum(c in LETTERS for c in s) for s in sentences) for f in (min, max)],
        "characters": {c: characters[c] for c in ARABIC_TO_BUCKWALTER if c not in "پچڤگ"},
        # What the wheel's capitalize_first_letter would do to the first Buckwalter symbol of each sentence.
        "capitalised_first_symbol": {k: capital[k] for k in ("another symbol", "no symbol")},
        "punctuation": {c: characters[c] for c in ".،؟!؛:"},
        "shadda_with": {m: sum(n for k, n in doubled.items() if k[2] == m) for m in MARKS if m not in (SHADDA, "ْ")},
        "letters_doubled": {c: sum(n for k, n in doubled.items() if k[0] == c) for c in "بتثجحخدذرزسشصضطظعغفقكلمنهوي"},
    }


def espeak(text: str, voice: str = "ar", speed: int = 150, pitch: int = PITCH, melody: int = MELODY) -> np.ndarray:
    """What espeak-ng says [samples] at 24 kHz, by default as the corpus's voice: words a minute, pitch of 0 to 99,
    range of pitch in per cent of the voice's own."""
    how = ["-v", voice, "-s", str(speed), "-p", str(pitch)]
    if melody != 100:
        how, text = [*how, "-m"], f'<prosody range="{melody}%">{escape(text)}</prosody>'
    with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
        subprocess.run(["espeak-ng", *how, "-w", wav.name, text], check=True)
        samples, rate = sf.read(wav.name, dtype="float32")
    return torchaudio.functional.resample(torch.from_numpy(samples), rate, SAMPLE_RATE).clamp(-1, 1).numpy()


def speak(job: tuple[str, Path]) -> None:
    text, ogg = job
    sf.write(ogg, espeak(text), SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the sentences, speak nothing")
    args = parser.parse_args()
    sentences = (HERE / "sentences.txt").read_text(encoding="utf-8").splitlines()
    problems = check(sentences)
    if problems:
        raise SystemExit("demo/sentences.txt: " + "; ".join(problems[:10]))
    corpus = HERE / "corpus"
    (corpus / "clips").mkdir(parents=True, exist_ok=True)
    report = coverage(sentences)
    (corpus / "coverage.json").write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    absent = [k for table in report.values() if isinstance(table, dict) for k, n in table.items() if n == 0]
    if absent:
        raise SystemExit(f"demo/sentences.txt: nothing with {' '.join(absent)}")
    if args.check:
        return
    names = [f"clips/{i:04d}.ogg" for i in range(len(sentences))]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(speak, [(s, corpus / n) for s, n in zip(sentences, names)]))
    with open(corpus / "metadata.csv", "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["file_name", "text", "split"])
        writer.writerows(zip(names, sentences, split(sentences)))


if __name__ == "__main__":
    main()
