#!/usr/bin/env python3
"""Which offline diacritiser? Held-out sentences of the embedded corpus, bare, get their marks back from two packages.

    pip install dengjen-tashkeel-py==3.0.2              # the one that was not chosen; it brings onnxruntime
    python measure/diacritizers.py

Reads   demo/corpus/metadata.csv, all but its training split. Writes samples/diacritizers.json.
Counted is every letter; sukun counts as no mark, since the packages and the corpus write it by different rules.
"""

import csv
import re
import time
from collections.abc import Callable
from importlib.metadata import version

from dengjen_tashkeel_py import tashkeel
from harness import ROOT, write

from pocket_arabic.text import LETTERS, MARKS, diacritize, normalise


def marked(text: str) -> list[tuple[str, bool]]:
    """Of each letter its marks without sukun, and whether it is the last of its word."""
    found = re.finditer(f"[{LETTERS}]([{MARKS}]*)", text)
    return [(m[1].replace("ْ", ""), text[m.end() : m.end() + 1] not in tuple(LETTERS)) for m in found]


def compare(restore: Callable[[str], str], sentences: list[str]) -> dict:
    wrong, last, letters = 0, 0, 0
    start = time.monotonic()
    for sentence in sentences:
        restored = normalise(restore("".join(c for c in sentence if c not in MARKS)))
        for (own, end), (other, _) in zip(marked(sentence), marked(restored), strict=True):
            letters, wrong, last = letters + 1, wrong + (own != other), last + (own != other and end)
    seconds = time.monotonic() - start
    return {
        "letters": letters,
        "wrong": round(wrong / letters, 4),
        "of_these_at_word_ends": round(last / max(1, wrong), 4),
        "sec": round(seconds, 2),
    }


def main() -> None:
    with open(ROOT / "demo" / "corpus" / "metadata.csv", encoding="utf-8") as file:
        sentences = [normalise(row["text"]) for row in csv.DictReader(file) if row["split"] != "train"]
    result = {"sentences": len(sentences)}
    for package, restore in (("arabic-diacritizer", diacritize), ("dengjen-tashkeel-py", tashkeel)):
        restore(sentences[0])  # loads it
        result[f"{package} {version(package)}"] = compare(restore, sentences)
    write(ROOT / "samples" / "diacritizers.json", result)


if __name__ == "__main__":
    main()
