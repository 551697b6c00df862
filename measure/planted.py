#!/usr/bin/env python3
"""The worth of the ear: errors planted in sentences that espeak-ng speaks anew, and how many of them it finds.

Reads   demo/corpus/metadata.csv (its 80 held-out sentences), measure/ear.safetensors.
Writes  --out, JSON: for each kind of error how many were planted and found; false alarms, of letters and of marks.

    apt-get install espeak-ng
    python measure/planted.py

A reading has one error. What the ear writes is aligned with the *intended* text by Levenshtein's operations
(jiwer), both without spaces and in one sign a sound (`sounds`). The signs of the intended text are the places. A
place is flagged if its sign is replaced or missing, or if something stands after it that the text lacks. The places
of the error are those that what was *said* flags; it counts as found when the ear flags one of them. Every flagged
place elsewhere is a false alarm; only the neighbours of an error count for neither. What espeak-ng says with the
same phonemes is no error, and not planted. Each reading is heard as it was spoken, and again after the nano codec.
"""

import argparse
import csv
import random
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import jiwer
import numpy as np
import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from ear import WEIGHTS, Ear  # noqa: E402
from train_ear import LETTERS, SPEECH_RATE, espeak, load_codec, through_codec  # noqa: E402

from pocket_arabic.run import ROOT, command, provenance, write_json  # noqa: E402
from pocket_arabic.text import MARKS, deromanise, scored  # noqa: E402

CONSONANTS = "".join(sorted(set(LETTERS) - set("ءوي")))  # those whose letter is always their sound
# What a learner takes one for another.
NEAR = {letter: set(group) - {letter} for group in ("سصث", "تط", "دض", "ذظز", "حهخ", "قك", "غخ") for letter in group}
LONG = {"َ": "ا", "ُ": "و", "ِ": "ي"}
TANWEEN = "ًٌٍ"
# a consonant with a mark that is heard alone
SYLLABLE = re.compile(f"([{CONSONANTS}])(ّ?)([َُِ](?![اىوي])|[ٌٍ]|ً(?![اى]))")


def sounds(text: str) -> str:
    """Arabic -> one sign a sound, without spaces: one hamza, one t, one long a; no alef that only carries tanween.

    >>> sounds("رَأَيْتُ مَدْرَسَةً، وَفَتًى آخَرَ")
    'رَءَيتُمَدرَسَتًوَفَتًءَاخَرَ'
    """
    text = re.sub("ً[اى]", "ً", scored(text, marks=True).replace(" ", ""))
    text = re.sub("َ?ٰ", "َا", text.replace("آ", "ءَا"))
    return text.translate(str.maketrans("أإؤئٱىة", "ءءءءاات"))


def flagged(intended: str, heard: str) -> set[int]:
    """The places of `intended` where `heard` departs from it, both as `sounds`.

    >>> flagged("كَتَبَ", "كِتَبَ"), flagged("كَتَبَ", "كَتّبَ"), flagged("كَتَبَ", "كَبَ")
    ({1}, {3}, {2, 3})
    """
    places: set[int] = set()
    for op in jiwer.process_characters(intended, heard).alignments[0]:
        if op.type == "insert":
            places.add(max(0, op.ref_start_idx - 1))
        elif op.type != "equal":
            places.update(range(op.ref_start_idx, op.ref_end_idx))
    return places


def planted(text: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, the text with one error of it) for each kind that the text has a place for; place and error are drawn."""
    for kind, instead in INSTEAD.items():
        if chosen := [(m, new) for m in SYLLABLE.finditer(text) for new in instead(m)]:
            match, new = rng.choice(chosen)
            yield kind, text[: match.start()] + new + text[match.end() :]


def inside(match: re.Match) -> bool:
    """Whether the syllable is not the first of its word."""
    return match.string[: match.start()][-1:] not in ("", " ")


def vowels(match: re.Match) -> set[str]:
    return set(TANWEEN if match[3] in TANWEEN else LONG) - {match[3], "ً" if match[3] in TANWEEN else ""}


# Kind of error -> what may stand instead of a syllable, which is a letter, perhaps shadda, and a mark.
INSTEAD = {
    "letter swapped": lambda m: [c + m[2] + m[3] for c in sorted(set(CONSONANTS) - {m[1]})],
    "letter swapped for a near one": lambda m: [c + m[2] + m[3] for c in sorted(NEAR.get(m[1], ()))],
    "letter dropped": lambda m: [""] if inside(m) and not m[2] else [],
    "letter doubled": lambda m: [m[1] + "ّ" + m[3]] if inside(m) and not m[2] else [],
    "mark swapped": lambda m: [m[1] + m[2] + v for v in sorted(vowels(m))],
    "mark dropped": lambda m: [m[1] + (m[2] or "ْ")] if inside(m) else [],
    "mark doubled": lambda m: [m[0] + LONG[m[3]]] if m[3] in LONG else [],
}


def phonemes(text: str) -> str:
    argv = ["espeak-ng", "-v", "ar", "-q", "-x", text]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


class Score:
    """Errors planted and found by kind; places flagged and in all, of letters and of marks."""

    def __init__(self) -> None:
        self.planted, self.found, self.places, self.alarms = Counter(), Counter(), Counter(), Counter()

    def add(self, kind: str, intended: str, said: str, heard: str) -> None:
        """One reading: the `sounds` of the intended text, of what was said, and of what the ear wrote."""
        errors, departures = flagged(intended, said), flagged(intended, heard)
        self.planted[kind] += 1
        self.found[kind] += not errors.isdisjoint(departures)
        for place, sound in enumerate(intended):
            if errors.isdisjoint(range(place - 1, place + 2)):
                of = "marks" if sound in MARKS else "letters"
                self.places[of] += 1
                self.alarms[of] += place in departures

    def summary(self) -> dict:
        kinds = {of: [k for k in self.planted if of.startswith(k.split()[0])] for of in ("letters", "marks")}
        return {of: self._of(of, mine) for of, mine in kinds.items()} | {
            "kinds": {kind: self._found([kind]) for kind in self.planted}
        }

    def _found(self, kinds: list[str]) -> dict:
        planted, found = (sum(counts[kind] for kind in kinds) for counts in (self.planted, self.found))
        return {"planted": planted, "found": found, "share_found": round(found / max(1, planted), 4)}

    def _of(self, of: str, kinds: list[str]) -> dict:
        share = round(self.alarms[of] / max(1, self.places[of]), 4)
        return self._found(kinds) | {"places": self.places[of], "false_alarms": self.alarms[of], "share_false": share}


def held_out() -> list[str]:
    with open(ROOT / "demo" / "corpus" / "metadata.csv", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file) if row["split"] != "train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of the ear")
    parser.add_argument("--rounds", type=int, default=1, help="draws of an error of each kind for each sentence")
    parser.add_argument(
        "--codec", action=argparse.BooleanOptionalAction, default=True, help="hear each through the codec too"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "samples" / "ear.json")
    parser.add_argument("--seed", type=int, default=0, help="of the errors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, noise = random.Random(args.seed), np.random.default_rng(args.seed)
    ear, codec = Ear(args.weights), load_codec() if args.codec else None
    scores, silent = defaultdict(Score), Counter()
    texts = held_out()
    for text in tqdm(texts * args.rounds, disable=None):
        for kind, wrong in planted(text, rng):
            if phonemes(wrong) == phonemes(text):
                silent[kind] += 1
                continue
            copies = {"spoken": espeak(wrong)}
            if codec:
                copies["through the codec"] = through_codec(codec, copies["spoken"], 0.0, noise)
            for name, copy in copies.items():
                heard = deromanise(ear.transcribe(copy, SPEECH_RATE))
                scores[name].add(kind, *map(sounds, (text, wrong, heard)))
    result = {"command": shlex.join(["python", "measure/planted.py", *sys.argv[1:]]), **provenance()}
    result |= {"sentences": len(texts), "not_rendered": silent, **{name: s.summary() for name, s in scores.items()}}
    write_json(args.out, result)
    for name, score in scores.items():
        for of in ("letters", "marks"):
            print(name, of, score.summary()[of])


if __name__ == "__main__":
    command(main)
