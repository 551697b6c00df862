#!/usr/bin/env python3
"""Make the English corpus that the nano base is trained on: phrases from Jane Austen's novels, spoken by espeak-ng.

    apt-get install espeak-ng r-cran-janeaustenr
    python demo/build_english.py --out data/english_corpus          # 8,000 clips, some 7 hours of audio, not committed
    python data_prep.py --corpus data/english_corpus --base demo --romanized --out data/english

The text is in the public domain: six novels, Project Gutenberg's editions as Debian's r-cran-janeaustenr (1.0.0) packs
them. Most phrases are short, because a row's cost grows faster than its length and an alignment is learnt from short
rows first. The voice has espeak-ng's default formants and the pitch of demo/corpus's.

Writes OUT/clips/NNNNN.wav and, last, metadata.csv (file_name,text,split); 40 phrases each for valid and test.
"""

import argparse
import csv
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile as sf

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build_corpus import SAMPLE_RATE, espeak

NOVELS = ("sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey", "persuasion")
HELD_OUT = 40
TITLES = {
    r"\bMr\b\.?": "Mister",
    r"\bMrs\b\.?": "Missis",
    r"\bDr\b\.?": "Doctor",
    r"\bSt\b\.?": "Saint",
}  # their full stop ends no sentence
LENGTHS = (12, 110)  # characters
MEAN_LENGTH = 42


def novels() -> str:
    """The six novels, their lines in order."""
    script = "; ".join(f"writeLines(janeaustenr::{name})" for name in NOVELS)
    return subprocess.run(["Rscript", "-e", script], check=True, capture_output=True, text=True).stdout


def phrases(text: str, rng: random.Random) -> list[str]:
    """Clauses of the text, neighbours joined until they reach a drawn length; each ends with . ! or ?, none occurs
    twice."""
    found: dict[str, None] = {}
    for title, word in TITLES.items():
        text = re.sub(title, word, text)
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.replace("--", ", ").replace("_", "").replace('"', "").replace("-", " ").split())
        clauses = re.findall(r"[^.,;:!?]+[.,;:!?]+", paragraph)
        phrase, wanted = "", LENGTHS[0]
        for clause in clauses:
            phrase = f"{phrase} {clause.strip()}".strip()
            if len(phrase) < wanted and phrase[-1] not in ".!?":
                continue
            phrase = re.sub(r"([.,;:!?])[.,;:!?]+", r"\1", phrase)
            plain = re.fullmatch(r"[A-Za-z][A-Za-z ',;:]*[.,;:!?]", phrase)
            if plain and LENGTHS[0] <= len(phrase) <= LENGTHS[1] and not re.search(r"\b[A-Z]{2,}", phrase):
                found[re.sub(r"[,;:]$", ".", phrase)] = None
            phrase, wanted = "", LENGTHS[0] + rng.expovariate(1 / (MEAN_LENGTH - LENGTHS[0]))
    return list(found)


def speak(job: tuple[str, Path]) -> None:
    text, wav = job
    sf.write(wav, espeak(text, "en"), SAMPLE_RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/english_corpus"), help="the corpus's folder")
    parser.add_argument("--clips", type=int, default=8000, help="how many phrases, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    found = phrases(novels(), rng)
    chosen = rng.sample(found, args.clips)
    # A phrase is held out only if no other shares more than half of its words: "I am sure." says nothing about reading.
    words = [set(re.findall(r"[a-z']+", c.lower())) for c in chosen]
    held_out: list[int] = []
    for i, own in enumerate(words):
        if (
            len(held_out) < 2 * HELD_OUT
            and len(own) > 3
            and all(len(own & other) <= len(own) / 2 for j, other in enumerate(words) if j != i)
        ):
            held_out.append(i)
    splits = ["train"] * len(chosen)
    for k, i in enumerate(held_out):
        splits[i] = "test" if k < HELD_OUT else "valid"
    (args.out / "clips").mkdir(parents=True, exist_ok=True)
    names = [f"clips/{i:05d}.wav" for i in range(len(chosen))]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(speak, [(c, args.out / n) for c, n in zip(chosen, names)]))
    with open(args.out / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file_name", "text", "split"])
        writer.writerows(zip(names, chosen, splits))
    print(
        f"{len(chosen)} of {len(found)} phrases, {sum(map(len, chosen)) / len(chosen):.0f} characters on average: "
        f"{args.out}"
    )


if __name__ == "__main__":
    main()
