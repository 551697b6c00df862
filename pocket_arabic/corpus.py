"""Where utterances come from: ClArTTS, any dataset of the Hugging Face hub, a folder, the embedded corpus.

A corpus is a list of shards, which processes share; a shard yields its utterances in order, one in memory at a time.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow

from pocket_arabic.run import ROOT, UserError

SPLITS = ("train", "valid", "test")
CLARTTS = "MBZUAI/ClArTTS"  # named clartts; CC-BY-4.0 on its card
HUB_SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "dev": "valid", "test": "test"}
SHARD = 32  # utterances of a folder that one process takes at a time
NETWORK = "check the network; the same command continues"


@dataclass(frozen=True)
class Utterance:
    """`audio`: a file, a file's bytes, samples with their rate, or None if the row has none."""

    id: str
    audio: Path | bytes | tuple[np.ndarray, int] | None
    text: str  # as given
    split: str  # "" if the corpus has no splits
    speaker: str = "0"
    chapter: str = ""


Shard = Callable[[], Iterator[Utterance]]


@dataclass(frozen=True)
class Columns:
    """How a dataset of the hub names things; `splits` maps its splits to train, valid and test."""

    text: str = "text"
    audio: str = "audio"
    speaker: str | None = None
    rate: str = "sampling_rate"  # where audio is a list of samples
    file: str = "file"  # where ids come from, if there is such a column
    splits: dict[str, str] = field(default_factory=lambda: dict(HUB_SPLITS))


@dataclass(frozen=True)
class Corpus:
    name: str
    revision: str  # commit on the hub, or SHA-256 of the metadata file
    open: Callable[[], tuple[list[Shard], int | None]]  # its shards, and how many utterances if it says so


def open_corpus(name: str, limit: int | None = None, columns: Columns | None = None, revision: str | None = None, first: str = "") -> Corpus:
    """`clartts`, a hub dataset's `owner/name`, `demo`, or a folder; `limit`: the first so many utterances of each split;
    `first`: the split of a hub dataset whose shards come before the others'.

    A folder holds one of
        metadata.csv    columns file_name and text, if wanted split, speaker and chapter
        metadata.jsonl  objects with the same keys
        metadata.csv    LJSpeech's: id|text lines without a header, audio in wavs/

    Raises UserError.
    """
    if name == "clartts" or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()):
        return _hub(CLARTTS if name == "clartts" else name, limit, columns or Columns(), revision, first)
    return _folder(name, limit)


# --- a folder ---------------------------------------------------------------------------------------------------------


def _folder(name: str, limit: int | None) -> Corpus:
    folder = ROOT / "demo" / "corpus" if name == "demo" else Path(name)
    if not folder.is_dir():
        raise UserError(f"--corpus {name}: no such folder; give a folder with metadata.csv, a dataset of the hub (owner/name), clartts or demo")
    metadata = next((folder / f for f in ("metadata.csv", "metadata.jsonl") if (folder / f).is_file()), None)
    if not metadata:
        raise UserError(f"--corpus {name}: no metadata.csv in it; write one with the columns file_name,text (audio paths relative to the folder)")
    raw = metadata.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{metadata}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if metadata.suffix == ".jsonl":
        rows = _read_jsonl(text, metadata)
    elif "|" in text.partition("\n")[0]:
        rows = _read_ljspeech(text, folder)
    else:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    missing = {"file_name", "text"} - set(rows[0] if rows else ())
    if missing:
        raise UserError(f"{metadata}: {'no rows' if not rows else 'no column ' + ' or '.join(sorted(missing))}; the first line must be file_name,text")
    ids = [Path(row["file_name"] or "").stem for row in rows]
    repeated = next((i for i in ids if ids.count(i) > 1), None) if len(set(ids)) < len(ids) else None
    if repeated is not None:
        raise UserError(f"{metadata}: {repeated} stands twice; every file_name must be its own utterance")
    splits = [row.get("split") or "" for row in rows]
    unknown = next((s for s in splits if s not in SPLITS), None) if "split" in rows[0] else None
    if unknown is not None:
        raise UserError(f'{metadata}: split "{unknown}"; use {", ".join(SPLITS)}')
    utterances = [
        Utterance(i, folder / (row["file_name"] or ""), row["text"] or "", split, row.get("speaker") or "0", row.get("chapter") or "") for i, row, split in zip(ids, rows, splits)
    ]
    if limit:
        utterances = [u for s in dict.fromkeys(splits) for u in islice((u for u in utterances if u.split == s), limit)]
    shards = [partial(iter, utterances[first : first + SHARD]) for first in range(0, len(utterances), SHARD)]
    return Corpus("demo" if name == "demo" else folder.resolve().name, hashlib.sha256(raw).hexdigest(), lambda: (shards, len(utterances)))


def _read_jsonl(text: str, path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(filter(str.strip, text.split("\n")), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error.msg}); one object a line, with file_name and text") from None
    return rows


def _read_ljspeech(text: str, folder: Path) -> list[dict]:
    rows = []
    for line in filter(str.strip, text.splitlines()):
        name, _, rest = line.partition("|")
        audio = next((p for base in (folder / "wavs" / name, folder / name) for p in sorted(base.parent.glob(f"{base.name}.*"))), folder / "wavs" / f"{name}.wav")
        rows.append({"file_name": str(audio.relative_to(folder)), "text": rest.rsplit("|", 1)[-1]})  # the last column is the normalised text
    return rows


# --- the hub ----------------------------------------------------------------------------------------------------------


def _hub(name: str, limit: int | None, columns: Columns, revision: str | None, first: str) -> Corpus:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from requests.exceptions import RequestException

    if not re.fullmatch("[0-9a-f]{40}", revision or ""):
        try:
            revision = HfApi().dataset_info(name, revision=revision).sha
        except GatedRepoError:
            raise UserError(f"--corpus {name} is gated: accept its terms at https://huggingface.co/datasets/{name}, then log in: hf auth login") from None
        except RevisionNotFoundError:
            raise UserError(f"--corpus {name}: no revision {revision}; leave --revision out for the newest") from None
        except RepositoryNotFoundError:
            raise UserError(f"--corpus {name}: no such dataset on the hub, or a private one: hf auth login") from None
        except (HfHubHTTPError, RequestException, OSError) as error:
            raise UserError(f"--corpus {name}: the hub does not answer ({type(error).__name__}); {NETWORK}") from None
    return Corpus(name, revision, partial(_hub_shards, name, limit, columns, revision, first))


def _hub_shards(name: str, limit: int | None, columns: Columns, revision: str, first: str) -> tuple[list[Shard], int | None]:
    """Each parquet (or other) file of each split is a shard. Audio stays undecoded; a list of samples stays in Arrow."""
    import datasets

    with _hub_errors(name):
        splits = datasets.load_dataset(name, revision=revision, streaming=True)
    used = {s: columns.splits[s] for s in splits if s in columns.splits}
    if not used:
        raise UserError(f"--corpus {name}: has the splits {', '.join(splits)}; say which is which: --split-map {next(iter(splits))}=train")
    shards, total = [], 0
    for split, role in sorted(used.items(), key=lambda item: item[1] != first):
        data = splits[split]
        have = data.column_names or []
        missing = [c for c in (columns.text, columns.audio, columns.speaker) if c and c not in have]
        if missing:
            raise UserError(f"--corpus {name}: no column {' or '.join(missing)} (it has {', '.join(have)}); name them with --text-column, --audio-column, --speaker-column")
        data = data.select_columns([c for c in (columns.text, columns.audio, columns.speaker, columns.rate, columns.file) if c in have]).with_format("arrow")
        parts = [data.take(limit)] if limit else [data.shard(num_shards=data.num_shards, index=i) for i in range(data.num_shards)]
        shards += [partial(_hub_rows, name, part, f"{split}_{i:05d}", role, columns) for i, part in enumerate(parts)]
        rows = data.info.splits[split].num_examples if data.info.splits and split in data.info.splits else None
        total = None if total is None or rows is None else total + min(rows, limit or rows)
    return shards, total


def _hub_rows(name: str, rows, stem: str, split: str, columns: Columns) -> Iterator[Utterance]:
    with _hub_errors(name):
        for index, table in enumerate(rows):
            row = {c: table[c][0] for c in table.column_names}  # Arrow scalars: 12 s as Python floats would be 30 MB
            audio, path = row[columns.audio], None
            if not audio.is_valid:
                audio = None
            elif isinstance(audio, pyarrow.ListScalar):  # a list of samples, as ClArTTS has
                rate = row[columns.rate].as_py() if columns.rate in row else None
                audio = (audio.values.to_numpy(zero_copy_only=False).astype(np.float32), int(rate)) if rate else None
            else:  # an Audio feature: the file's bytes
                audio = audio.as_py()
                path, audio = audio.get("path"), audio.get("bytes")
            path = row[columns.file].as_py() if columns.file in row else path
            chapter = re.match(r"ch_\d+(?=_)", Path(path or "").name)  # ClArTTS: ch_20_arabic_tts_dataset_48.wav
            speaker = str(row[columns.speaker].as_py()) if columns.speaker else "0"
            identity = Path(path).stem if path else f"{stem}_{index:06d}"
            yield Utterance(identity, audio, row[columns.text].as_py() or "", split, speaker, chapter[0] if chapter else "")


class _hub_errors:
    """Turns what breaks while reading from the hub into one line."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        import datasets
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
        from requests.exceptions import RequestException

        if isinstance(error, (GatedRepoError, datasets.exceptions.DatasetNotFoundError)):
            raise UserError(
                f"--corpus {self.name}: not there, gated or private; accept its terms at https://huggingface.co/datasets/{self.name}, then log in: hf auth login"
            ) from None
        if isinstance(error, pyarrow.ArrowInvalid):
            raise UserError(f"--corpus {self.name}: a file of it is damaged ({str(error).splitlines()[0][:120]}); give another --revision, or tell its owner") from None
        if isinstance(error, (HfHubHTTPError, RequestException, ConnectionError, OSError)):
            raise UserError(f"--corpus {self.name}: reading from the hub broke off ({type(error).__name__}); {NETWORK}") from None


# --- splits -----------------------------------------------------------------------------------------------------------


def assign_splits(rows: list[dict]) -> None:
    """Give every row (id, split, chapter) its split, in place: splits the corpus has stay; a missing valid or test is
    taken from train.

    With at least three chapters it is a whole one, so that no reading session stands on both sides: the smallest of 20
    or more rows, else the largest. Else 2 % of the rows (1 to 40), by hash of their ids.
    """
    for row in rows:
        row["split"] = row["split"] or "train"
    for held_out in ("test", "valid"):
        if any(row["split"] == held_out for row in rows):
            continue
        train = [row for row in rows if row["split"] == "train"]
        sizes: dict[str, int] = {}
        for row in train:
            sizes[row["chapter"]] = sizes.get(row["chapter"], 0) + 1
        if len(sizes) >= 3:
            enough = {c: n for c, n in sizes.items() if n >= 20}
            chapter = min(enough or sizes, key=lambda c: (sizes[c] if enough else -sizes[c], c))
            chosen = [row for row in train if row["chapter"] == chapter]
        else:
            order = sorted(train, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
            chosen = order[: max(1, min(40, len(train) // 50))]
        for row in chosen:
            row["split"] = held_out
