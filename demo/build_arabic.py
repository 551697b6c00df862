#!/usr/bin/env python3
"""Make more speech of the corpus's voice, for demo/bundle: the embedded corpus and some thousand word lists beside it.

    apt-get install espeak-ng
    python demo/build_arabic.py --out data/arabic_corpus       # 4,000 clips more, some 6 hours, not committed
    python data_prep.py --corpus data/arabic_corpus --base demo --out data/arabic

A word list has no sense, but every sound in every neighbourhood: six words in ten are drawn from the corpus's training
sentences, the others are pseudo-words from roots and patterns, as demo/train_codec.py hears them. No list holds a
held-out sentence's words in their order, and validation and test stay the embedded corpus's.

Writes OUT/clips/ and, last, metadata.csv (file_name,text,split).
"""

import argparse
import csv
import random
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from build_corpus import speak  # noqa: E402
from train_codec import pseudo_arabic  # noqa: E402

from pocket_arabic.text import normalise  # noqa: E402

CORPUS = HERE / "corpus"
REAL_WORDS = 0.6
WORDS = (2, 13)  # a list's length


def word_list(rng: random.Random, words: list[str]) -> str:
    """A line of real and pseudo-words with a comma or two and an end."""
    line = [
        rng.choice(words) if rng.random() < REAL_WORDS else rng.choice(pseudo_arabic(rng).split()).strip(".؟!،")
        for _ in range(rng.randint(*WORDS))
    ]
    for place in range(2, len(line) - 2):
        if rng.random() < 0.12:
            line[place] += rng.choice("،،،؛:")
    return normalise(" ".join(line) + rng.choice("...؟!"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/arabic_corpus"), help="the corpus's folder")
    parser.add_argument("--clips", type=int, default=4000, help="word lists beside the corpus's sentences")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with open(CORPUS / "metadata.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    words = sorted({w for row in rows if row["split"] == "train" for w in re.sub("[.،؟!؛:]", "", row["text"]).split()})
    lists = {f"clips/list_{i:05d}.ogg": word_list(rng, words) for i in range(args.clips)}
    shutil.copytree(CORPUS / "clips", args.out / "clips", dirs_exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(speak, [(text, args.out / name) for name, text in lists.items()]))
    with open(args.out / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", "text", "split"])
        writer.writerows([row["file_name"], row["text"], row["split"]] for row in rows)
        writer.writerows([name, text, "train"] for name, text in lists.items())
    print(f"{len(rows)} sentences and {len(lists)} lists of {len(words)} words and pseudo-words: {args.out}")


if __name__ == "__main__":
    main()
