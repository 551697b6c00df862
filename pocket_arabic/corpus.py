"""Where utterances come from: the embedded corpus or a folder with a metadata.csv."""

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from pocket_arabic.run import ROOT, UserError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Utterance:
    id: str  # the file's stem
    audio: Path
    text: str  # as given
    split: str
    speaker: str


@dataclass(frozen=True)
class Corpus:
    name: str
    revision: str  # SHA-256 of the metadata file
    utterances: list[Utterance]


def open_corpus(name: str) -> Corpus:
    """`demo` or a folder holding metadata.csv: columns file_name and text, and if wanted split and speaker.

    Without a split column, 2 % of the utterances (1 to 40) go to valid and as many to test, by hash of their ids.
    Raises UserError.
    """
    folder = ROOT / "demo" / "corpus" if name == "demo" else Path(name)
    metadata = folder / "metadata.csv"
    if not folder.is_dir():
        raise UserError(f"--corpus {name}: no such folder; give a folder with metadata.csv, or --corpus demo")
    if not metadata.is_file():
        raise UserError(f"--corpus {name}: no metadata.csv in it; write one with the columns file_name,text (audio paths relative to the folder)")
    raw = metadata.read_bytes()
    try:
        rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline="")))
    except UnicodeDecodeError as error:
        raise UserError(f"{metadata}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    missing = {"file_name", "text"} - set(rows[0] if rows else ())
    if missing:
        raise UserError(f"{metadata}: {'no rows' if not rows else 'no column ' + ' or '.join(sorted(missing))}; the first line must be file_name,text")
    ids = [Path(row["file_name"] or "").stem for row in rows]
    repeated = next((i for i in ids if ids.count(i) > 1), None) if len(set(ids)) < len(ids) else None
    if repeated is not None:
        raise UserError(f"{metadata}: {repeated} stands twice; every file_name must be its own utterance")
    splits = [row["split"] or "" for row in rows] if "split" in rows[0] else _hash_split(ids)
    unknown = next((s for s in splits if s not in SPLITS), None) if "split" in rows[0] else None
    if unknown is not None:
        raise UserError(f'{metadata}: split "{unknown}"; use {", ".join(SPLITS)}')
    utterances = [Utterance(i, folder / (row["file_name"] or ""), row["text"] or "", split, row.get("speaker") or "0") for i, row, split in zip(ids, rows, splits)]
    return Corpus("demo" if name == "demo" else folder.resolve().name, hashlib.sha256(raw).hexdigest(), utterances)


def _hash_split(ids: list[str]) -> list[str]:
    held_out = max(1, min(40, len(ids) // 50))
    order = sorted(ids, key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    role = dict.fromkeys(order[:held_out], "test") | dict.fromkeys(order[held_out : 2 * held_out], "valid")
    return [role.get(i, "train") for i in ids]
