"""Where utterances come from: ClArTTS, any dataset of the Hugging Face hub, a folder, the embedded corpus.

A corpus is a list of shards, which processes share; a shard yields its utterances in order, one in memory at a time.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow

from pocket_arabic.metadata import Files, Row, read_rows, without_suffix
from pocket_arabic.run import ROOT, UserError

SPLITS = ("train", "valid", "test")
CLARTTS = "MBZUAI/ClArTTS"  # named clartts; CC-BY-4.0 on its card
HUB_SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "dev": "valid", "test": "test"}
SHARD = 32  # utterances of a folder that one process takes at a time
NETWORK = "check the network; the same command continues"


@dataclass(frozen=True)
class Utterance:
    """`audio`: a file, a file's bytes, samples with their rate, or None if the row has none. `problem`: why its row
    cannot be used at all."""

    id: str
    audio: Path | bytes | tuple[np.ndarray, int] | None
    text: str  # as given
    split: str  # "" if the corpus has no splits
    speaker: str = "0"
    chapter: str = ""
    line: int | None = None  # of the metadata file
    problem: str = ""


Shard = Callable[[], Iterator[Utterance]]


@dataclass(frozen=True)
class Columns:
    """How a dataset of the hub, or a folder's metadata, names things; `splits` maps its splits to train, valid and
    test."""

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
    notes: tuple[str, ...] = ()  # how a folder was read
    lines: dict[str, int] = field(default_factory=dict)  # id -> line of a folder's metadata


def open_corpus(
    name: str,
    limit: int | None = None,
    columns: Columns | None = None,
    revision: str | None = None,
    first: str = "",
    romanized: bool = False,
) -> Corpus:
    """`clartts`, a hub dataset's `owner/name`, `demo`, or a folder; `limit`: the first so many utterances of each
    split; `first`: the split of a hub dataset whose shards come before the others'; `romanized`: texts are in Latin
    letters.

    A folder holds one of
        metadata.csv    a header with file_name and text, if wanted split, speaker and chapter; by Python's csv, with
                        commas, bars, semicolons or tabs
        metadata.csv    LJSpeech's, without a header: id|text or id|text|normalised text, audio in wavs/
        metadata.jsonl  objects with the header's keys
        a .lab or .txt  beside each audio file

    Raises UserError.
    """
    if name == "clartts" or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not os.path.exists(name)):
        return _hub(CLARTTS if name == "clartts" else name, limit, columns or Columns(), revision, first)
    return _folder(name, limit, columns or Columns(), romanized)


# --- a folder ---------------------------------------------------------------------------------------------------------


def _folder(name: str, limit: int | None, columns: Columns, romanized: bool) -> Corpus:
    folder = ROOT / "demo" / "corpus" if name == "demo" else Path(name)
    if not os.path.isdir(folder):
        what = "is a file (an archive: unpack it);" if os.path.isfile(folder) else "no such folder;"
        give = "give a folder with metadata.csv, a dataset of the hub (owner/name), clartts or demo"
        raise UserError(f"--corpus {name}: {what} {give}")
    names = {"file": ("file_name", "audio"), "text": (columns.text,), "speaker": (columns.speaker or "speaker",)}
    names |= {"split": ("split",), "chapter": ("chapter",)}
    if columns.audio != Columns.audio:
        names["file"] = (columns.audio,)
    read = read_rows(folder, name, names, romanized)
    utterances = _utterances(folder, read.rows, Files(folder, read.place), columns.splits)
    if limit:
        splits = dict.fromkeys(u.split for u in utterances)
        utterances = [u for s in splits for u in islice((u for u in utterances if u.split == s), limit)]
    shards = [partial(iter, utterances[first : first + SHARD]) for first in range(0, len(utterances), SHARD)]
    return Corpus(
        "demo" if name == "demo" else folder.resolve().name,
        hashlib.sha256(read.raw).hexdigest(),
        lambda: (shards, len(utterances)),
        tuple(read.notes),
        {u.id: u.line for u in utterances if u.line and not u.problem},
    )


def _utterances(folder: Path, rows: list[Row], files: Files, splits: dict[str, str]) -> list[Utterance]:
    """Rows -> utterances. An id is the file's path below the folder that all files share, without its suffix: if all
    lie in clips/, 'clips/7.ogg' is 7, but 'a/7.wav' and 'b/7.wav' keep their folders. A second row of an id is a
    problem."""
    found = [files.find(row.file) if row.file and not row.problem else [] for row in rows]
    paths = [os.path.abspath(f[0]) if len(f) == 1 else None for f in found]
    shared = os.path.commonpath([os.path.dirname(p) for p in paths if p] or [os.path.abspath(folder)])
    utterances: list[Utterance] = []
    kept: dict[str, int] = {}  # id -> its first row
    for row, answers, path in zip(rows, found, paths):
        named = PurePosixPath(row.file.replace("\\", "/"))
        identity = os.path.relpath(path or os.path.join(os.path.abspath(folder), named), shared)
        identity = without_suffix(str(named) if identity.startswith("..") else identity)
        identity = identity if row.file else f"line {row.line}"
        split = next((splits.get(s, s) for s in (row.split, row.split.lower()) if s in ("", *SPLITS, *splits)), None)
        problem = row.problem
        if not problem and not path:
            names = " and ".join(os.path.relpath(f, folder) for f in answers)
            problem = f"its name fits several files ({names})" if answers else f"audio missing ({row.file})"
        if not problem and split is None:
            problem = f'split "{row.split}" is none of {", ".join(SPLITS)}: --split-map {row.split}=valid, say'
        if not problem and not all(map(_is_unicode, (identity, row.text, row.speaker, row.chapter))):
            problem = "half a character (a lone surrogate) in its text or name"
        if not problem:
            other = utterances[kept[identity]] if identity in kept else None
            if other and os.path.abspath(other.audio) != path:
                problem = f"its id is another utterance's too (line {other.line})"
            elif other and other.text == row.text:
                problem = f"stands twice (line {other.line})"
            elif other:  # which of the texts is the clip's nobody knows
                problem = f"another text for the same file (line {other.line})"
                utterances[kept[identity]] = replace(other, problem=f"another text for the same file (line {row.line})")
            else:
                kept[identity] = len(utterances)
        texts = (identity, row.text, row.speaker or "0", row.chapter, problem)
        identity, text, speaker, chapter, problem = (t.encode("utf-8", "backslashreplace").decode() for t in texts)
        audio = answers[0] if path else None
        utterances.append(Utterance(identity, audio, text, split or "", speaker, chapter, row.line, problem))
    return utterances


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


# --- the hub ----------------------------------------------------------------------------------------------------------


def _hub(name: str, limit: int | None, columns: Columns, revision: str | None, first: str) -> Corpus:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from requests.exceptions import RequestException

    if not re.fullmatch("[0-9a-f]{40}", revision or ""):
        try:
            revision = HfApi().dataset_info(name, revision=revision).sha
        except GatedRepoError:
            raise UserError(
                f"--corpus {name} is gated: accept its terms at https://huggingface.co/datasets/{name}, then log in: "
                "hf auth login"
            ) from None
        except RevisionNotFoundError:
            raise UserError(f"--corpus {name}: no revision {revision}; leave --revision out for the newest") from None
        except RepositoryNotFoundError:
            what = "no such dataset on the hub, and no such folder here; if it is a private one"
            raise UserError(f"--corpus {name}: {what}: hf auth login") from None
        except (HfHubHTTPError, RequestException, OSError) as error:
            what = f"no such folder here, and the hub does not answer ({type(error).__name__})"
            raise UserError(f"--corpus {name}: {what}; {NETWORK}") from None
    return Corpus(name, revision, partial(_hub_shards, name, limit, columns, revision, first))


def _hub_shards(
    name: str, limit: int | None, columns: Columns, revision: str, first: str
) -> tuple[list[Shard], int | None]:
    """Each parquet (or other) file of each split is a shard. Audio stays undecoded; a list of samples stays in
    Arrow."""
    import datasets

    with _hub_errors(name):
        splits = datasets.load_dataset(name, revision=revision, streaming=True)
    used = {s: columns.splits[s] for s in splits if s in columns.splits}
    if not used:
        raise UserError(
            f"--corpus {name}: has the splits {', '.join(splits)}; say which is which: --split-map "
            f"{next(iter(splits))}=train"
        )
    shards, total = [], 0
    for split, role in sorted(used.items(), key=lambda item: item[1] != first):
        data = splits[split]
        have = data.column_names or []
        missing = [c for c in (columns.text, columns.audio, columns.speaker) if c and c not in have]
        if missing:
            raise UserError(
                f"--corpus {name}: no column {' or '.join(missing)} (it has {', '.join(have)}); name them with "
                "--text-column, --audio-column, --speaker-column"
            )
        data = data.select_columns(
            [c for c in (columns.text, columns.audio, columns.speaker, columns.rate, columns.file) if c in have]
        ).with_format("arrow")
        parts = (
            [data.take(limit)]
            if limit
            else [data.shard(num_shards=data.num_shards, index=i) for i in range(data.num_shards)]
        )
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
            identity = _hub_id(path) if path else f"{stem}_{index:06d}"
            yield Utterance(
                identity, audio, row[columns.text].as_py() or "", split, speaker, chapter[0] if chapter else ""
            )


def _hub_id(path: str) -> str:
    """A file's path without its suffix; only its name if it is a path of somebody's machine."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    own = parts[:1] == ("/",) or ".." in parts or ":" in parts[0]
    return without_suffix("/".join(parts[-1:] if own else parts))


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
                f"--corpus {self.name}: not there, gated or private; accept its terms at "
                f"https://huggingface.co/datasets/{self.name}, then log in: hf auth login"
            ) from None
        if isinstance(error, pyarrow.ArrowInvalid):
            raise UserError(
                f"--corpus {self.name}: a file of it is damaged ({str(error).splitlines()[0][:120]}); give another "
                "--revision, or tell its owner"
            ) from None
        if isinstance(error, (HfHubHTTPError, RequestException, ConnectionError, OSError)):
            raise UserError(
                f"--corpus {self.name}: reading from the hub broke off ({type(error).__name__}); {NETWORK}"
            ) from None


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
