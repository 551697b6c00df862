"""The rows of a folder corpus: metadata.csv, metadata.jsonl, or a .lab or .txt beside each audio file.

Each format is read by its own rules, and nothing is guessed: a row that breaks them keeps its line number and says what
is wrong with it; a file that breaks them as a whole is one UserError.
"""

import codecs
import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pocket_arabic.run import UserError

DELIMITERS = {",": "commas", "|": "bars", ";": "semicolons", "\t": "tabs"}
READABLE = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64")
CONVERTIBLE = (".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".3gp", ".mka", ".mkv", ".mov", ".ape", ".wv", ".ac3")
TEXTS = (".lab", ".txt")
PLACES = ("", "wavs", "wav", "clips", "audio")  # where the files that rows name may lie, below the corpus's folder
LFS = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched
# Words that make a first line with bars a header rather than LJSpeech's first utterance.
HEADER_WORDS = {
    *(
        "file_name",
        "filename",
        "file",
        "path",
        "audio",
        "audio_file",
        "audio_path",
        "audio_filepath",
        "wav",
        "wav_file",
    ),
    *("wav_filename", "id", "text", "sentence", "transcript", "transcription", "normalized_text", "speaker", "split"),
    *("speaker_id", "speaker_name"),
}
# What an editor of right-to-left text puts around names: it shows nowhere and belongs to no name.
INVISIBLE = re.compile("[\u061c\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
ARABIC = re.compile("[\u0621-\u064a\u066e-\u06d3\ufb50-\ufdff\ufe70-\ufefc]")


@dataclass
class Row:
    """`file` as the row names it; `problem`: why the row cannot be used."""

    line: int | None  # from 1; None for an audio file with its text beside it
    file: str = ""
    text: str = ""
    split: str = ""
    speaker: str = ""
    chapter: str = ""
    problem: str = ""


@dataclass
class Rows:
    rows: list[Row]
    raw: bytes  # what the corpus's revision is the SHA-256 of
    notes: list[str] = field(default_factory=list)  # how it was read, a line each
    place: str = ""  # which of PLACES comes first by the format's rules


def read_rows(folder: Path, name: str, columns: dict[str, tuple[str, ...]], romanized: bool) -> Rows:
    """A folder -> its rows in order. `columns`: what a header or an object may call a Row's file, text, split, speaker
    and chapter. `romanized`: texts are in Latin letters. Raises UserError, where `name` is the corpus's."""
    found = [folder / f for f in ("metadata.csv", "metadata.jsonl") if os.path.isfile(folder / f)]
    if len(found) == 2:
        raise UserError(f"--corpus {name}: has metadata.csv and metadata.jsonl; keep one of them")
    if not found:
        beside = _read_beside(folder)
        if not beside:
            raise UserError(f"--corpus {name}: no metadata.csv in it{_elsewhere(folder)}")
        return beside
    try:
        raw = found[0].read_bytes()
    except OSError as error:
        raise UserError(f"{found[0]}: cannot be read ({error.strerror}); chmod u+r {found[0]}") from None
    lines = list(io.StringIO(decode(raw, found[0]), newline=""))  # ends of lines only: U+2028 belongs to a text
    if not any(map(str.strip, lines)):
        raise UserError(f"{found[0]}: no rows; write the line file_name,text and below it an utterance a line")
    read = _read_jsonl if found[0].suffix == ".jsonl" else _read_csv
    rows = read(lines, found[0], columns, romanized)
    if not rows.rows:
        raise UserError(f"{found[0]}: no rows below its header; write an utterance a line")
    rows.raw = raw
    return rows


def decode(raw: bytes, path: Path) -> str:
    """UTF-8, with a byte order mark or without. Raises UserError with the command that converts."""
    convert = f"convert it: iconv -f {{}} -t UTF-8 '{path}' > utf8 && mv utf8 '{path}'"
    if raw.startswith(LFS):
        raise UserError(f"{path}: a Git LFS pointer, not the file; fetch it: git lfs pull")
    if raw.startswith(b"PK\3\4"):
        raise UserError(f"{path}: a spreadsheet's file or a zip archive, not text; save it as CSV in UTF-8")
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UserError(f"{path}: is UTF-32; {convert.format('UTF-32')}")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: is UTF-16; {convert.format('UTF-16')}")
    # UTF-16 without its mark: spaces, commas and ends of lines have a zero byte; Arabic in UTF-16 may pass for UTF-8.
    if raw.count(0) > len(raw) // 50:
        order = "LE" if raw[1::2].count(0) > raw[::2].count(0) else "BE"
        raise UserError(f"{path}: is UTF-16 without a byte order mark; {convert.format('UTF-16' + order)}")
    if 0 in raw:
        raise UserError(
            f"{path}: line {_line_at(raw, raw.index(0))} holds a zero byte; take it out: tr -d '\\000' < '{path}'"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"line {_line_at(raw, error.start)} is not UTF-8 (byte 0x{raw[error.start]:02X})"
        raise UserError(f"{path}: {place}; if it is Windows' Arabic, {convert.format('WINDOWS-1256')}") from None


def _line_at(raw: bytes, place: int) -> int:
    return raw[:place].count(b"\n") + 1


def _name(value: str) -> str:
    """A name without what shows nowhere: '\u200f a.wav ' -> 'a.wav'."""
    return INVISIBLE.sub("", value).strip()


# --- metadata.csv -----------------------------------------------------------------------------------------------------


def _read_csv(lines: list[str], path: Path, columns: dict[str, tuple[str, ...]], romanized: bool) -> Rows:
    # Excel's "sep=;" says only which delimiter follows, and the header shows that.
    first = next((i for i, line in enumerate(lines) if line.strip() and not re.fullmatch("sep=.\\s*", line)), 0)
    headers = {d: [_name(f).lower() for f in _fields(lines[first], d)] for d in DELIMITERS}
    wanted = {role: [_name(column).lower() for column in names] for role, names in columns.items()}
    delimiter = next((d for d, h in headers.items() if all(set(wanted[r]) & set(h) for r in ("file", "text"))), None)
    if delimiter is not None:
        return _read_table(lines, first, path, wanted, delimiter)
    names = max(headers.values(), key=len)
    if not any(HEADER_WORDS.intersection(header) for header in headers.values()):
        if "|" in lines[first]:
            return _read_ljspeech(lines, path, romanized)
        fix = "write file_name,text above it, with its own delimiter"
        raise UserError(
            f"{path}: line {first + 1} is no header, and only LJSpeech's id|text is read without one; {fix}"
        )
    missing = [role for role in ("file", "text") if not set(wanted[role]) & set(names)] or ["file", "text"]
    flags = " and ".join({"file": "--audio-column", "text": "--text-column"}[role] for role in missing)
    what = " or ".join(wanted[role][0] for role in missing)
    raise UserError(f"{path}: line {first + 1} has no column {what} (it has {', '.join(names)}); name it with {flags}")


def _read_table(lines: list[str], first: int, path: Path, wanted: dict[str, list[str]], delimiter: str) -> Rows:
    """Rows under a header, by Python's csv with its defaults: a field in quotation marks may hold anything."""
    names = [_name(f).lower() for f in _fields(lines[first], delimiter)]
    roles = {role: names.index(c) for role, choice in wanted.items() for c in choice[::-1] if c in names}
    if "speaker" not in roles and wanted["speaker"] != ["speaker"]:
        raise UserError(f"{path}: no column {wanted['speaker'][0]} (it has {', '.join(names)}); see --speaker-column")
    twice = next((names[i] for i in roles.values() if names.count(names[i]) > 1), None)
    if twice:
        raise UserError(f"{path}: line {first + 1} names two columns {twice}; rename one of them")

    files = Files(path.parent, "")

    def is_row(line: str) -> bool:
        fields = _fields(line, delimiter)
        file = fields[roles["file"]].strip() if len(fields) == len(names) else ""
        return bool(file) and (file.lower().endswith(READABLE + CONVERTIBLE) or bool(files.find(file)))

    rows = []
    for line, fields in _records(lines, first + 1, delimiter, is_row):
        if fields is None:
            rows.append(
                Row(line, problem="a quotation mark opens a field and none closes it (within 131,072 characters)")
            )
        elif len(fields) != len(names) and any(f.strip() for f in fields):
            few = f"{len(fields)} field{'s' * (len(fields) > 1)} where the header has {len(names)}"
            quote = "" if len(fields) < len(names) else f": a text with {DELIMITERS[delimiter]} goes in quotation marks"
            file = next((f.strip() for f in fields if f.strip().lower().endswith(READABLE + CONVERTIBLE)), "")
            rows.append(Row(line, file, problem=few + quote))
        elif any(f.strip() for f in fields):
            rows.append(_row(line, {role: fields[i] for role, i in roles.items()}))
    unread = [n for i, n in enumerate(names) if i not in roles.values() and n]
    note = f"{path}: a header with {DELIMITERS[delimiter]}, {len(rows)} rows"
    return Rows(rows, b"", [note + (f"; not read: {', '.join(unread)}" if unread else "")])


def _fields(line: str, delimiter: str) -> list[str]:
    """One line as csv reads it by itself; [] for what it cannot."""
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []


def _records(lines: list[str], at: int, delimiter: str, is_row) -> Iterator[tuple[int, list[str] | None]]:
    """(line number, fields) of each record; None for one whose quotation mark never closes, and the next line is a
    record again. A mark that closes only in a later row (`is_row`) swallowed rows, and counts as never closed."""
    while at < len(lines):
        below = (lines[i] for i in range(at, len(lines)))
        reader = csv.reader(below, delimiter=delimiter, skipinitialspace=True, strict=True)
        length = 1
        try:
            fields, length = next(reader), reader.line_num
        except csv.Error:
            # Marks inside a field, as in: 1.wav,"قال" ثم ذهب. csv's default takes them as they stand; strict does not.
            fields = _fields(lines[at], delimiter) or None if lines[at].count('"') % 2 == 0 else None
        if length > 1 and any(is_row(line) for field in fields if "\n" in field for line in field.split("\n")):
            fields, length = None, 1
        yield at + 1, fields
        at += length


def _read_ljspeech(lines: list[str], path: Path, romanized: bool) -> Rows:
    """id|text or id|text|normalised text, no header, no quoting; audio in wavs/. The third column is the text if it has
    Arabic letters (any letters, if `romanized`)."""
    split = [(i, [f.strip() for f in line.split("|")]) for i, line in enumerate(lines, 1) if line.strip()]
    whole = [fields for _, fields in split if len(fields) in (2, 3)]
    header = "write a header above it, as file_name|text|speaker or whatever the columns are"
    is_text = (lambda f: any(map(str.isalpha, f))) if romanized else (lambda f: bool(ARABIC.search(f)))
    third = [fields for fields in whole if len(fields) == 3 and is_text(fields[2])]
    if romanized and len({len(fields) for _, fields in split}) > 1:
        raise UserError(
            f"{path}: rows of different length, and | is Buckwalter's آ too; {header}, with another delimiter"
        )
    if len(third) >= 4 and len({f[2] for f in third}) <= len(third) // 2 < len({f[1] for f in third}):
        raise UserError(f'{path}: the third column repeats ("{third[0][2]}") and so is no text; {header}')
    numbers = {f[1] for f in third} if not any(is_text(f[1]) for f in whole) else ()
    if third and len(third) == len(whole) and len(numbers) <= len(whole) // 2 and numbers:
        raise UserError(f'{path}: the second column repeats ("{whole[0][1]}") and so is no text; {header}')
    marks = [sum(unicodedata.combining(c) > 0 for f in third for c in f[i]) for i in (1, 2)]
    if marks[0] > 2 * marks[1] and marks[0] > sum(len(f[1]) for f in third) // 4:
        raise UserError(
            f"{path}: the second column has its vowel marks and the third, LJSpeech's text, has not; {header}"
        )
    rows = []
    for line, fields in split:
        if len(fields) in (2, 3):
            text = fields[2] if len(fields) == 3 and is_text(fields[2]) else fields[1]
            rows.append(_row(line, {"file": fields[0], "text": text}))
        else:
            rows.append(
                Row(line, fields[0], problem=f"{len(fields)} column{'s' * (len(fields) > 1)} where LJSpeech has 2 or 3")
            )
    unread = sum(len(f) == 3 and bool(f[2]) and not is_text(f[2]) for f in whole)
    note = f"{path}: LJSpeech, {len(rows)} rows"
    note += f", {len(third)} with the text in the third column" if third else ""
    note += f"; the third column of {unread} is no text and not read: if it is the speaker, {header}" if unread else ""
    return Rows(rows, b"", [note], "wavs")


def _row(line: int, fields: dict[str, str]) -> Row:
    """A row of strings, checked for what it must have; names and text without the space around them."""
    row = Row(line, fields["file"].strip(), fields["text"].strip())
    for role in ("split", "speaker", "chapter"):
        setattr(row, role, _name(fields.get(role, "")))
    row.problem = "no file name" if not _name(row.file) else "no text" if not row.text else ""
    return row


# --- metadata.jsonl ---------------------------------------------------------------------------------------------------


def _read_jsonl(lines: list[str], path: Path, columns: dict[str, tuple[str, ...]], romanized: bool) -> Rows:
    """An object a line: strings, or numbers for speaker, chapter and split."""
    rows, objects, keys = [], 0, set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.lstrip("\ufeff"), object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
            rows.append(
                Row(number, problem=f"not JSON ({error.msg if isinstance(error, json.JSONDecodeError) else error})")
            )
            continue
        if isinstance(value, dict):
            objects, keys = objects + 1, keys | value.keys()
        rows.append(_json_row(number, value, columns))
    if not objects:
        each = "'.[]'" if "".join(lines).lstrip().startswith("[") else "."
        raise UserError(
            f"{path}: line {rows[0].line} is {rows[0].problem}; write one object a line: jq -c {each} '{path}'"
        )
    for role, flag in (("file", "--audio-column"), ("text", "--text-column")):
        if not keys & set(columns[role]):
            what = f"no object has {columns[role][0]} (they have {', '.join(sorted(keys))})"
            raise UserError(f"{path}: {what}; name it with {flag}")
    return Rows(rows, b"", [f"{path}: {len(rows)} objects"])


def _object(pairs: list[tuple[str, object]]) -> dict:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"the key {twice} stands twice in it")
    return dict(pairs)


def _json_row(line: int, value: object, columns: dict[str, tuple[str, ...]]) -> Row:
    if not isinstance(value, dict):
        return Row(line, problem=f"{_kind(value)} where an object with file_name and text must be")
    fields = {}
    for role, keys in columns.items():
        key = next((k for k in keys if k in value), keys[0])
        given = value.get(key)
        number = isinstance(given, int | float) and not isinstance(given, bool) and role not in ("file", "text")
        if given is None or (number and given != given):  # null, or pandas' NaN
            given = ""
        elif number:
            given = str(int(given)) if isinstance(given, float) and given.is_integer() else str(given)
        elif not isinstance(given, str):
            return Row(line, fields.get("file", ""), problem=f"{key} is {_kind(given)}, not a string")
        fields[role] = given
    return _row(line, fields)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# --- a text beside each audio file ------------------------------------------------------------------------------------


def _read_beside(folder: Path) -> Rows | None:
    """a.wav with a.lab or a.txt beside it, at any depth; a folder in it is a speaker, as the Montreal aligner has it,
    and a folder in that a chapter. None if no audio file has a text."""
    audio: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    for path in _walk(folder):
        stem, suffix = os.path.splitext(path)
        place = audio if suffix.lower() in READABLE + CONVERTIBLE else texts if suffix.lower() in TEXTS else {}
        place.setdefault(stem, []).append(path)
    if not audio.keys() & texts.keys():
        return None
    rows, raw = [], b""
    for stem in sorted(audio.keys() | texts.keys()):
        row = Row(None, audio.get(stem, texts.get(stem))[0])
        rows.append(row)
        if len(audio.get(stem, ())) != 1:
            several = f"its name fits several files ({' and '.join(sorted(audio.get(stem, ())))})"
            row.problem = several if stem in audio else "no audio beside the text"
        elif len(texts.get(stem, ())) != 1:
            row.problem = "both .lab and .txt beside it; keep one" if stem in texts else "no .lab or .txt beside it"
        else:
            file = folder / texts[stem][0]
            try:
                content = file.read_bytes()
                raw += f"{row.file}\0".encode("utf-8", "surrogateescape") + content + b"\0"
                row.text = " ".join(decode(content, Path("FILE")).split())
                row.problem = "" if row.text else "no text"
            except OSError as error:
                row.problem = f"its text cannot be read ({error.strerror})"
            except UserError as error:
                # Without line and byte, so that alike ones count as one reason.
                row.problem = "its text " + re.sub(r"^FILE: (line \d+ )?| \(byte 0x..\)", "", str(error))
    shared = os.path.commonpath([os.path.dirname(row.file) for row in rows if not row.problem] or [""])
    for row in rows:
        below = PurePosixPath(row.file).parts[len(PurePosixPath(shared).parts) : -1]
        row.speaker = below[0] if below else ""
        row.chapter = "/".join(below) if len(below) > 1 else ""
    speakers = len({row.speaker for row in rows if not row.problem})
    note = f"{folder}: {len(rows)} audio files or texts beside them, {speakers} speaker{'s' * (speakers > 1)}"
    return Rows(rows, raw, [note])


def _walk(folder: Path) -> Iterator[str]:
    """Files below a folder, by their paths there, hidden ones (macOS's ._a.wav) left out; a folder's folder once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and real not in seen)
        if real not in seen:
            yield from (os.path.relpath(os.path.join(place, f), folder) for f in sorted(files) if not f.startswith("."))
        seen.add(real)


def _elsewhere(folder: Path) -> str:
    """What the folder has instead, and what to do about it."""
    files = sorted(f for f in _walk(folder) if os.path.isfile(folder / f))
    below = [f for f in files if os.path.basename(f) in ("metadata.csv", "metadata.jsonl")]
    if below:
        return f"; {below[0]} lies in a folder of it: give --corpus {(folder / below[0]).parent}"
    other = [f for f in files if f.lower().endswith((".csv", ".tsv", ".jsonl", ".txt", ".json")) and "/" not in f]
    if other:
        new = "metadata.jsonl" if other[0].lower().endswith((".json", ".jsonl")) else "metadata.csv"
        first = "with file_name,text for its first line, or LJSpeech's id|text"
        return f"; if {other[0]} is it, rename it {new}" + (f", {first}" if new.endswith("csv") else "")
    return (
        "; write one with the columns file_name,text (paths relative to the folder), or a .lab or .txt beside each wav"
    )


# --- the files that rows name -----------------------------------------------------------------------------------------


class Files:
    """Finds the files that rows name, each folder listed once: below `place`, or in just one of the other PLACES.

    A name counts as the file system of Windows and macOS takes it: / or backslash, in any Unicode form, in upper or
    lower case, if just one file answers to it; an exact name comes first. Without its suffix it is any audio file of
    that name.
    """

    def __init__(self, folder: Path, place: str):
        self.folder, self.place = folder, place
        self.roots = dict.fromkeys((Path(os.path.abspath(folder)), folder.resolve()))
        self.listings: dict[Path, _Listing] = {}

    def find(self, name: str) -> list[Path]:
        """The files that answer to a name: none, one, or those it does not tell apart."""
        if "\0" in name:
            return []
        for given in dict.fromkeys((name, _name(name), _name(name).replace("\\", "/"))):
            found = self._find(self.place, given)
            if not found and not given.startswith("/"):
                found = [path for place in PLACES if place != self.place for path in self._find(place, given)]
            if found:
                return found
        return []

    def _find(self, place: str, name: str) -> list[Path]:
        path = PurePosixPath(name)
        at = self.folder
        if path.is_absolute():
            if not any(map(path.is_relative_to, self.roots)):  # perhaps by a link
                path = PurePosixPath(os.path.realpath(path.parent), path.name)
            root = next((root for root in self.roots if path.is_relative_to(root)), None)
            if root is None:
                at, path = Path("/").joinpath(*path.parts[:-1]), PurePosixPath(path.name)
            else:
                path = path.relative_to(root)
        else:
            path = place / path
        for part in path.parts[:-1]:
            at = at / (part if part == ".." else self._listing(at).folder(part) or part)
        return [at / found for found in self._listing(at).files(path.name)]

    def _listing(self, folder: Path) -> "_Listing":
        if folder not in self.listings:
            self.listings[folder] = _Listing(folder)
        return self.listings[folder]


class _Listing:
    def __init__(self, folder: Path):
        self.names: tuple[set, set] = (set(), set())  # folders, files
        self.alike: tuple[dict, dict] = ({}, {})  # by the name's folded form
        self.stems: dict[str, list[str]] = {}
        try:
            entries = sorted((entry.name, entry.is_file(), entry.is_dir()) for entry in os.scandir(folder))
        except OSError:  # not there, or too long a name
            entries = []
        for name, is_file, is_dir in entries:
            if is_file or is_dir:
                self.names[is_file].add(name)
                self.alike[is_file].setdefault(_folded(name), []).append(name)
            if is_file and name.lower().endswith(READABLE + CONVERTIBLE) and not name.startswith("."):
                self.stems.setdefault(_folded(without_suffix(name)), []).append(name)

    def folder(self, name: str) -> str | None:
        alike = [name] if name in self.names[0] else self.alike[0].get(_folded(name), [])
        return alike[0] if len(alike) == 1 else None

    def files(self, name: str) -> list[str]:
        if name in self.names[1]:
            return [name]
        alike = self.alike[1].get(_folded(name)) or self.stems.get(_folded(name), [])
        return [n for n in alike if n.lower().endswith(READABLE)] or alike


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def without_suffix(name: str) -> str:
    """A path without an audio file's suffix: 'a/1.5.wav' -> 'a/1.5', 'a/1.5' -> 'a/1.5'."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in READABLE + CONVERTIBLE else name
