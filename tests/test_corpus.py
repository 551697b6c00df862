"""A table of folder corpora as people have them: what data_prep.py reads, prints, rejects and refuses. No traceback in
any.

A case is a folder's files, data_prep's extra flags and what must come of it. `a.wav` in `files` stands for two seconds
of a tone; "نَعَمْ نَعَمْ." (six letters) is a text that fits it.
"""

import io
import json
import sys
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data_prep
from pocket_arabic.audio import AudioError, decode, mono, resample
from pocket_arabic.cache import Cache
from pocket_arabic.corpus import Utterance, _hub_id, open_corpus
from pocket_arabic.run import UserError, command, read_jsonl

RATE = 24000
YES, NO = "نَعَمْ نَعَمْ.", "لَا لَا لَا."


def tone(seconds: float = 2, rate: int = RATE, peak: float = 0.3) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return peak * np.sin(2 * np.pi * 211 * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2


def write(folder: Path, files: dict) -> None:
    """Files by their paths: text, bytes, samples [n] or [n, channels], or True for the tone."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_bytes(content.encode())
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, dict):
            path.mkdir()
        else:
            kind = "FLAC" if path.suffix == ".flac" else "WAV"
            sf.write(path, tone() if content is True else content, RATE, format=kind)


@dataclass
class Case:
    files: dict
    kept: dict | None = None  # id -> text_norm; None: the run is refused
    rejects: dict = field(default_factory=dict)  # line, or id where there are no lines -> words of the reason
    says: tuple[str, ...] = ()  # words of what it prints, or of the one line that refuses
    flags: tuple[str, ...] = ()


def csv(*lines: str, header: str = "file_name,text", end: str = "\n") -> str:
    return end.join((header, *lines)) + end


def three(**more) -> dict:
    return {"a.wav": True, "b.wav": True, "c.wav": True} | more


CASES = {
    # --- metadata.csv with a header
    "commas, spaces around fields, empty lines": Case(
        three(**{"metadata.csv": csv(f" a.wav , {YES} ", "", f'"b.wav" , "{YES}" ', ",", f'c.wav, "{NO}, {YES}"')}),
        {"a": YES, "b": YES, "c": "لَا لَا لَا. نَعَمْ نَعَمْ."},
        says=("a header with commas, 3 rows",),
    ),
    "bars, columns in another order, one not read": Case(
        {
            "wav/a.wav": True,
            "wav/b.wav": True,
            "metadata.csv": csv(
                f"{YES}|7|2.0|wav/a.wav", f"{NO}|8|2.0|wav/b.wav", header="Text|speaker|Seconds|file_name"
            ),
        },
        {"a": YES, "b": NO},
        says=("a header with bars", "not read: seconds"),
    ),
    "semicolons as Excel writes them: byte order mark, CRLF": Case(
        three(**{"metadata.csv": "\ufeff" + csv(f"a.wav;{YES}", f"b.wav;{NO}", header="file_name;text", end="\r\n")}),
        {"a": YES, "b": NO},
        says=("semicolons",),
    ),
    "tabs, lines that end in CR alone": Case(
        three(**{"metadata.csv": csv(f"a.wav\t{YES}", f"b.wav\t{NO}", header="file_name\ttext", end="\r")}),
        {"a": YES, "b": NO},
        says=("tabs",),
    ),
    "too many fields, too few": Case(
        three(**{"metadata.csv": csv(f"a.wav,{YES}", "b.wav,نَعَمْ, نَعَمْ", "c.wav")}),
        {"a": YES},
        {3: "3 fields where the header has 2: a text with commas", 4: "1 field where"},
    ),
    "a quotation mark that nothing closes, before other quoted rows and at the end": Case(
        three(**{"metadata.csv": csv(f'a.wav,"{YES}', f'b.wav,"{NO}"', f'c.wav,"{YES}')}),
        {"b": NO},
        {2: "quotation mark", 4: "quotation mark"},
    ),
    "a quotation mark closed by the end of a later row": Case(
        three(**{"metadata.csv": csv(f'a.wav,"{YES}', f"b.wav,{NO}", f'c.wav,{YES}"')}),
        {"b": NO, "c": YES},
        {2: "quotation mark"},
    ),
    "a quotation mark closed by a later row, of files without suffix and after the text": Case(
        three(**{"metadata.csv": csv(f'"{YES},a', f"{NO},b", f'{NO}",c', header="text,file_name")}),
        {"b": NO, "c": NO},
        {2: "quotation mark"},
    ),
    "Excel's first line; a text of several lines before its file": Case(
        three(**{"metadata.csv": csv('"نَعَمْ\n\nنَعَمْ.";a.wav', f"{NO};b.wav", header="sep=;\r\ntext;file_name")}),
        {"a": YES, "b": NO},
    ),
    "quotation marks as they are typed": Case(
        three(**{"metadata.csv": csv('a.wav,"نَعَمْ" نَعَمْ.', 'b.wav,نَعَمْ "نَعَمْ"', 'c.wav,"نَعَمْ ""نَعَمْ"""')}),
        {"a": YES, "b": YES, "c": YES},
    ),
    "a line break and U+2028 inside a text": Case(
        three(**{"metadata.csv": csv('a.wav,"نَعَمْ\nنَعَمْ."', "b.wav,نَعَمْ\u2028نَعَمْ.", f"x.wav,{NO}")}),
        {"a": YES, "b": YES},
        {5: "audio missing"},
    ),
    "no text, no name, no file": Case(
        three(
            **{
                "metadata.csv": csv(
                    f"a.wav,{YES}", "b.wav,", f",{NO}", f"x.wav,{NO}", f"sub/x.wav,{NO}", f"{'n' * 300}.wav,{NO}"
                )
            }
        ),
        {"a": YES},
        {3: "no text", 4: "no file name", 5: "audio missing", 6: "audio missing", 7: "audio missing"},
    ),
    "a row twice, and a file with two texts": Case(
        three(**{"metadata.csv": csv(f"a.wav,{YES}", f"./a.wav,{YES}", f"b.wav,{YES}", f"b.wav,{NO}", f"c.wav,{NO}")}),
        {"a": YES, "c": NO},
        {
            3: "stands twice (line 2)",
            4: "another text for the same file (line 5)",
            5: "another text for the same file (line 4)",
        },
    ),
    "splits by other names, one unknown, one not given": Case(
        three(
            **{"d.wav": True, "e.wav": True},
            **{
                "metadata.csv": csv(
                    f"a.wav,{YES},Train",
                    f"b.wav,{YES},dev",
                    f"c.wav,{YES},tset",
                    f"d.wav,{YES},",
                    f"e.wav,{YES},test",
                    header="file_name,text,split",
                )
            },
        ),
        {"a": YES, "b": YES, "d": YES, "e": YES},
        {4: 'split "tset" is none of train, valid, test: --split-map tset=valid'},
    ),
    "a header with other names": Case(
        three(**{"metadata.csv": csv(f"a.wav\t{YES}", header="path\tsentence\tclient_id")}),
        says=(
            "line 1 has no column file_name or text (it has path, sentence, client_id)",
            "--audio-column and --text-column",
        ),
    ),
    "a header with other names, named": Case(
        {"clips/a.wav": True, "metadata.csv": csv(f"clips/a.wav\t{YES}\tx", header="path\tsentence\tclient_id")},
        {"a": YES},
        flags=("--audio-column", "path", "--text-column", "sentence", "--speaker-column", "client_id"),
    ),
    "bars with a header of other names is no LJSpeech": Case(
        three(**{"metadata.csv": csv(f"a.wav|{YES}|x", header="audio_file|text|speaker_name")}),
        says=("no column file_name", "--audio-column"),
    ),
    "no header": Case(
        three(**{"metadata.csv": f"a.wav,{YES}\nb.wav,{NO}\n"}),
        says=("line 1 is no header", "write file_name,text above it"),
    ),
    "a column twice": Case(
        three(**{"metadata.csv": csv(f"a.wav,{YES},{NO}", header="file_name,text,text")}), says=("two columns text",)
    ),
    "nothing but a header": Case(three(**{"metadata.csv": "file_name,text\n"}), says=("no rows",)),
    "nothing at all": Case(three(**{"metadata.csv": "\n \n"}), says=("no rows", "file_name,text")),
    # --- LJSpeech
    "LJSpeech: the third column is text if it is Arabic; columns too many and too few": Case(
        {
            **{f"wavs/{i}.wav": True for i in range(5)},
            "metadata.csv": f'0|٣|{YES}\n1|{YES}|\n2|{YES}|ahmad\n3|نَعَمْ|نَعَمْ|نَعَمْ\n4\n\n4|"{NO}"\n',
        },
        {"0": YES, "1": YES, "2": YES, "4": NO},
        {4: "4 columns where LJSpeech has 2 or 3", 5: "1 column where"},
        says=("1 with the text in the third column", "the third column of 1 is no text"),
    ),
    "LJSpeech: 1 is not 1.5, line separators are no lines, suffixes may stand": Case(
        {
            **{f"wavs/{n}.wav": True for n in ("1", "1.5", "1.5.2")},
            "metadata.csv": f"1.5|نَعَمْ\u2028نَعَمْ.\n1|نَعَمْ\x85نَعَمْ.\n1.5.2.wav|{NO}\n",
        },
        {"1.5": YES, "1": YES, "1.5.2": NO},
    ),
    "LJSpeech: the third column is the speaker": Case(
        {
            **{f"wavs/{i}.wav": True for i in range(4)},
            "metadata.csv": "".join(f"{i}|{'نَعَمْ ' * (i + 1)}|أحمد\n" for i in range(4)),
        },
        says=('the third column repeats ("أحمد")', "write a header above it, as file_name|text|speaker"),
    ),
    "LJSpeech: the second column is the speaker": Case(
        {
            **{f"wavs/{i}.wav": True for i in range(4)},
            "metadata.csv": "".join(f"{i}|0|{'نَعَمْ ' * (i + 1)}\n" for i in range(4)),
        },
        says=('the second column repeats ("0")',),
    ),
    "LJSpeech: the third column has lost the marks": Case(
        {"wavs/1.wav": True, "metadata.csv": f"1|{YES}|نعم نعم\n"},
        says=("the second column has its vowel marks", "write a header"),
    ),
    "LJSpeech in Latin letters: bars are letters too": Case(
        {"wavs/1.wav": True, "metadata.csv": "1|naEamo\n2|ra|aY\n"}, says=("Buckwalter's آ",), flags=("--romanized",)
    ),
    # --- ids and names
    "the same name in two folders": Case(
        {"x/1.wav": True, "y/1.wav": True, "metadata.csv": csv(f"x/1.wav,{YES}", f"y/1.wav,{NO}")},
        {"x/1": YES, "y/1": NO},
    ),
    "names as other systems write them": Case(
        {
            **{
                "clips/a.wav": True,
                "clips/B.WAV": True,
                unicodedata.normalize("NFD", "clips/آخر.wav"): True,
                "clips/1.wav": True,
                "clips/two words.wav": True,
            },
            "metadata.csv": csv(
                f"clips\\a.wav,{YES}",
                f"Clips/b.wav,{YES}",
                f"clips/آخر.wav,{YES}",
                f"\u200fclips/1.wav\u200e,{YES}",
                f"clips/two words,{YES}",
                f"C:\\clips\\1.wav,{YES}",
            ),
        },
        {"a": YES, "B": YES, unicodedata.normalize("NFD", "آخر"): YES, "1": YES, "two words": YES},
        {7: "audio missing"},
    ),
    "a name that fits two files, and two files of one id": Case(
        {
            **{"a.wav": True, "a.flac": True, "b.wav": True, "b.flac": True, "c.wav": True},
            "metadata.csv": csv(f"a,{YES}", f"b.wav,{YES}", f"b.flac,{NO}", f"c,{NO}"),
        },
        {"b": YES, "c": NO},
        {2: "fits several files (a.flac and a.wav)", 4: "its id is another utterance's too (line 3)"},
    ),
    # --- metadata.jsonl
    "jsonl: types": Case(
        three(
            **{
                "d.wav": True,
                "metadata.jsonl": "\n".join(
                    [
                        json.dumps({"file_name": "a.wav", "text": YES, "speaker": 7, "chapter": 1234567.0, "more": []}),
                        json.dumps(
                            {"file_name": "b.wav", "text": "نَعَمْ\u2028نَعَمْ.", "speaker": None, "chapter": float("nan")},
                            ensure_ascii=False,
                        ),
                        '{"file_name": "c.wav", "text": null}',
                        '{"file_name": "c.wav"}',
                        '{"file_name": "c.wav", "text": 5}',
                        '{"file_name": 5, "text": "نعم"}',
                        '{"file_name": "c.wav", "text": "نعم", "speaker": {}}',
                        '["c.wav", "نعم"]',
                        '{"file_name": "c.wav", "text": "نعم"',
                        '{"file_name": "c.wav", "text": "نعم", "text": "لا"}',
                        '{"file_name": "c.wav", "text": "\\ud83d نعم"}',
                        '{"file_name": "c\\u0000.wav", "text": "نَعَمْ"}',
                        "[" * 100_000,
                        '{"file_name": "c.wav", "text": "نعم", "speaker": ' + "1" * 5000 + "}",
                        '{"file_name": "c.wav", "text": "نعم", "split": true}',
                        "",
                        json.dumps({"file_name": "d.wav", "text": NO}),
                    ]
                ),
            }
        ),
        {"a": YES, "b": YES, "d": NO},
        {
            **{
                3: "no text",
                4: "no text",
                5: "text is a number",
                6: "file_name is a number",
                7: "speaker is an object",
                8: "a list where an object",
            },
            **{
                9: "not JSON",
                10: "the key text stands twice",
                11: "lone surrogate",
                12: "audio missing",
                13: "not JSON",
                14: "not JSON",
            },
            15: "split is true or false",
        },
    ),
    "jsonl: one array": Case(
        three(**{"metadata.jsonl": json.dumps([{"file_name": "a.wav", "text": YES}])}),
        says=("line 1 is a list where an object", "jq -c"),
    ),
    "jsonl: one array over many lines": Case(
        three(**{"metadata.jsonl": json.dumps([{"file_name": "a.wav", "text": YES}], indent=1)}),
        says=("line 1 is not JSON", "jq -c"),
    ),
    "two kinds of metadata": Case(
        three(**{"metadata.jsonl": "{}", "metadata.csv": csv(f"a.wav,{YES}")}),
        says=("metadata.csv and metadata.jsonl", "keep one"),
    ),
    # --- a text beside each file
    ".lab and .txt, speakers' folders, what is not a pair": Case(
        {
            **{
                "x/1.wav": True,
                "x/1.lab": f"\ufeff{YES}\r\n",
                "y/1.WAV": True,
                "y/1.TXT": f"نَعَمْ\n{NO}\n",
                "y/s/2.flac": True,
                "y/s/2.lab": YES,
            },
            **{
                "y/3.wav": True,
                "y/4.wav": True,
                "y/4.lab": YES,
                "y/4.txt": NO,
                "y/5.lab": YES,
                "y/6.wav": True,
                "y/6.flac": True,
                "y/6.lab": YES,
            },
            **{
                "y/7.wav": True,
                "y/7.lab": " \n",
                "y/8.wav": True,
                "y/8.lab": YES.encode("utf-16"),
                "y/._1.wav": b"",
                "y/._1.lab": "x",
                "y/9.m4a": b"",
                "y/9.lab": YES,
            },
            **{"y/10.wav": True, "y/10.txt": "\n\nنعم".encode("cp1256")},
        },
        {"x/1": YES, "y/1": "نَعَمْ لَا لَا لَا.", "y/s/2": YES},
        {
            **{
                "y/3": "no .lab or .txt beside it",
                "y/4": "both .lab and .txt",
                "y/5.lab": "no audio beside",
                "y/6": "several files (y/6.flac and y/6.wav)",
            },
            **{
                "y/7": "no text",
                "y/8": "its text is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 'FILE'",
                "y/9": "ffmpeg -i FILE.m4a",
            },
            "y/10": "its text is not UTF-8; if it is Windows' Arabic, convert it: iconv -f WINDOWS-1256",
        },
        says=("2 speakers",),
    ),
    "no text anywhere": Case(
        {"a.wav": True, "notes.csv": "x"}, says=("no metadata.csv in it; if notes.csv is it, rename it metadata.csv",)
    ),
    (
        "files in the places they usually have; the folder itself comes first, and elsewhere a name must be one file's"
    ): Case(
        {
            **{"wavs/a.wav": True, "a.wav": tone(3), "clips/b.mp3.wav": True, "audio/c.wav": True, "wav/c.wav": True},
            "metadata.csv": csv(f"a|{YES}", f"b.mp3|{YES}", f"c|{YES}", header="id|text"),
        },
        {"a": YES, "clips/b.mp3": YES},
        {4: "fits several files (wav/c.wav and audio/c.wav)"},
        flags=("--audio-column", "id"),
    ),
    "jsonl: other names": Case(
        three(**{"metadata.jsonl": json.dumps({"audio_filepath": "a.wav", "text": YES})}),
        says=("no object has file_name (they have audio_filepath, text)", "--audio-column"),
    ),
    "paths of another machine": Case(
        three(**{"metadata.csv": f"/home/somebody/a (1).wav|{YES}\n/home/somebody/b.wav|{NO}\n"}),
        says=("none of its 2 utterances", "audio missing (/home/somebody/a (1).wav), lines 1, 2"),
    ),
    "metadata in a folder of it": Case(
        {"in/a.wav": True, "in/metadata.csv": csv(f"a.wav,{YES}")}, says=("in/metadata.csv", "give --corpus", "/in")
    ),
    "metadata.csv is a folder": Case({"metadata.csv": {}, "a.wav": True}, says=("no metadata.csv in it",)),
    # --- encodings
    "UTF-16": Case(
        three(**{"metadata.csv": csv(f"a.wav,{YES}").encode("utf-16")}),
        says=("is UTF-16; convert it: iconv -f UTF-16 -t UTF-8",),
    ),
    "UTF-16 without its mark": Case(
        three(**{"metadata.csv": csv(f"a.wav,{YES}").encode("utf-16-le")}), says=("iconv -f UTF-16LE",)
    ),
    "Windows' Arabic": Case(
        three(**{"metadata.csv": csv("a.wav,نعم").encode("cp1256")}),
        says=("line 2 is not UTF-8", "iconv -f WINDOWS-1256"),
    ),
    "a spreadsheet by another name": Case(
        three(**{"metadata.csv": b"PK\3\4\0\0\0"}), says=("a spreadsheet's file", "save it as CSV")
    ),
    "what Git LFS has not fetched": Case(
        three(**{"metadata.csv": "version https://git-lfs.github.com/spec/v1\n"}), says=("git lfs pull",)
    ),
    "a zero byte": Case(
        three(**{"metadata.csv": csv(f"a.wav,{YES}", f"b.wav,{NO * 9}\0")}), says=("line 3 holds a zero byte", "tr -d")
    ),
    # --- audio
    "channels: antiphase, 5.1, one side, unlike ones": Case(
        {
            "antiphase.wav": np.stack([tone(), -tone()], 1),
            "five.wav": np.stack([tone() * (0.01, 0.01, 1, 0, 0.01, 0.01)[c] for c in range(6)], 1),
            "left.wav": np.stack([tone(), 0 * tone()], 1),
            "stereo.wav": np.stack([tone(), 0.7 * tone()], 1),
            "metadata.csv": csv(*(f"{n}.wav,{YES}" for n in ("antiphase", "five", "left", "stereo"))),
        },
        dict.fromkeys(("antiphase", "five", "left", "stereo"), YES),
        says=("'loudest of 2': 2", "'loudest of 6': 1", "'mean of 2': 1"),
    ),
    "audio that soundfile does not read": Case(
        {
            **{
                "a.wav": True,
                "b.m4a": b"\0\0\0\x20ftypM4A ",
                "c.wav": b"\0\0\0\x20ftypM4A ",
                "d.webm": b"\x1aE\xdf\xa3",
                "e.wav": {},
                "f.wav": b"",
                "g.wav": b"version https://git-lfs.github.com/spec/v1\n",
            },
            "metadata.csv": csv(
                *(f"{n},{YES}" for n in ("a.wav", "b.m4a", "c.wav", "d.webm", "e.wav", "f.wav", "b", "g.wav"))
            ),
        },
        {"a": YES},
        {
            **{
                3: "convert it: ffmpeg -i FILE.m4a NEW.wav",
                4: "convert it: ffmpeg -i FILE.wav NEW.wav",
                5: "ffmpeg -i FILE.webm",
            },
            **{6: "audio missing", 7: "audio unreadable", 8: "stands twice (line 3)", 9: "git lfs pull"},
        },
    ),
    "nothing but m4a": Case(
        {"a.m4a": b"", "b.m4a": b"", "metadata.csv": csv(f"a.m4a,{YES}", f"b.m4a,{NO}")},
        says=("none of its 2 utterances", "ffmpeg", "lines 2, 3"),
    ),
    "half of a text, half of a clip": Case(
        {
            **{f"{i}.wav": True for i in range(8)},
            "8.wav": tone(4),
            "9.wav": tone(1),
            "metadata.csv": csv(*(f"{i}.wav,نَعَمْ نَعَمْ نَعَمْ نَعَمْ." for i in range(10))),
        },
        {str(i): "نَعَمْ نَعَمْ نَعَمْ نَعَمْ." for i in range(10)},
        says=(
            "1 read over 1.6 times slower than their speaker's usual, perhaps another text's: line 10",
            "times faster",
            "line 11",
        ),
    ),
}


def prep(capsys, monkeypatch, *args: object) -> tuple[int, str, str]:
    """data_prep.py in this process: exit status, what it prints, what it prints as an error."""
    monkeypatch.setattr(sys, "argv", ["data_prep.py", *map(str, args), "--device", "cpu"])
    capsys.readouterr()
    code = 0
    try:
        command(data_prep.main)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", CASES)
def test_folder_corpora(name, tiny_base, tmp_path, capsys, monkeypatch):
    case, folder = CASES[name], tmp_path / "corpus"
    write(folder, case.files)
    code, out, err = prep(
        capsys, monkeypatch, "--corpus", folder, "--base", tiny_base, "--out", tmp_path / "c", *case.flags
    )
    if case.kept is None:
        assert code == 2 and err.count("\n") == 1 and not (tmp_path / "c").exists(), out + err
        assert all(words in err for words in case.says), err
        return
    assert code == 0, err
    assert {row["id"]: row["text_norm"] for row in Cache(tmp_path / "c").rows} == case.kept
    rejects = {r.get("line", r["id"]): r["reason"] for r in read_jsonl(tmp_path / "c" / "rejects.jsonl")}
    assert rejects.keys() == case.rejects.keys() and all(words in rejects[k] for k, words in case.rejects.items()), (
        rejects
    )
    assert all(words in out for words in case.says), out
    stats = json.loads((tmp_path / "c" / "stats.json").read_text(encoding="utf-8"))
    assert sum(stats["rejects"].values()) == len(case.rejects) and (tmp_path / "c" / "stats.png").exists()


def utterances(folder: Path, **options) -> list[Utterance]:
    return [u for shard in open_corpus(str(folder), **options).open()[0] for u in shard()]


# --- the readers, on generated files ----------------------------------------------------------------------------------

CELLS = [*',|;\t"\n \u2028\x85\0\u200f\\/', "\r\n", "..", "a.wav", "b.wav", "text", "file_name", YES, "نعم"]
OBJECT = '{"file_name": "a.wav", "text": "نعم"}\n'
JSON = [*'{}[]":,\n1', "null", "true", "NaN", '"file_name"', '"text"', '"a.wav"', '"\\ud800"', OBJECT]


def of(pieces: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces)).map("".join)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(["file_name,text\n", "text|file_name|split\n", "a|نعم\n", "\ufefffile_name;text\r\n", ""]),
    body=of(CELLS),
)
def test_any_csv_is_read_or_refused(tmp_path, head, body):
    """Every line is of some row, kept or with its problem, or empty; or the file is refused in one line."""
    (tmp_path / "a.wav").touch()
    (tmp_path / "metadata.csv").write_bytes((head + body).encode())
    try:
        found = utterances(tmp_path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    lines = list(io.StringIO((head + body), newline=""))
    at = [u.line for u in found]
    assert at == sorted(set(at))
    if '"' not in body:  # then no field holds a line
        blank = [i for i, line in enumerate(lines, 1) if not line.strip(" ,;|\t\r\n\x85\u2028\ufeff")]
        assert set(range(1, len(lines) + 1)) - set(at) <= {
            *blank,
            1 + next(i for i, line in enumerate(lines) if line.strip()),
        }
    assert all(u.problem or (u.audio == tmp_path / "a.wav" and u.text) for u in found)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=of(JSON))
def test_any_jsonl_is_read_or_refused(tmp_path, body):
    (tmp_path / "a.wav").touch()
    (tmp_path / "metadata.jsonl").write_bytes(body.encode())
    try:
        found = utterances(tmp_path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert [u.line for u in found] == [i for i, line in enumerate(body.split("\n"), 1) if line.strip()]
    assert all(u.problem or (u.audio == tmp_path / "a.wav" and u.text) for u in found)
    json.dumps([vars(u) | {"audio": None} for u in found], ensure_ascii=False).encode()  # as the manifest is written


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["metadata.csv", "metadata.jsonl", "a.lab"]), content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path, name, content):
    folder = tmp_path / name
    write(folder, {"a.wav": b"", name: content})
    try:
        utterances(folder)
    except UserError as error:
        assert "\n" not in str(error)


def test_paths_of_every_form_give_one_id(tmp_path, monkeypatch):
    """Relative, absolute, through a link, with dots: one file, one id, found; a link in a circle ends nothing."""
    write(
        tmp_path / "real",
        {"clips/a.wav": b"", "clips/b.wav": b"", "clips/c.wav": b"", "clips/d.wav": b"", "metadata.csv": ""},
    )
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "clips" / "circle").symlink_to(tmp_path / "real")
    names = [
        "clips/a.wav",
        tmp_path / "real" / "clips" / "b.wav",
        tmp_path / "link" / "clips" / "c.wav",
        "clips/../clips/./d.wav",
    ]
    (tmp_path / "real" / "metadata.csv").write_text(csv(*(f"{n},{YES}" for n in names)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for folder in ("real", "link", "./real/", tmp_path / "link"):
        found = utterances(folder)
        assert [(u.id, u.problem) for u in found] == [(i, "") for i in "abcd"] and all(u.audio.exists() for u in found)
    write(tmp_path / "real" / "clips", {"a.lab": YES})
    (tmp_path / "real" / "metadata.csv").unlink()
    assert [u.id for u in utterances("link") if not u.problem] == ["a"]


def test_a_text_folder_is_another_corpus_when_a_text_changes(tmp_path):
    write(tmp_path, {"a.wav": b"", "a.lab": YES, "b.wav": b"", "b.lab": NO})
    before = open_corpus(str(tmp_path)).revision
    (tmp_path / "b.lab").write_text(YES, encoding="utf-8")
    assert open_corpus(str(tmp_path)).revision != before


def test_large_metadata_is_read_in_seconds(tmp_path):
    """100,000 quoted rows, one in ten with a quotation mark that nothing closes: each costs its own line only."""
    write(
        tmp_path,
        {
            "a.wav": b"",
            "metadata.csv": csv(*(f'{i}.wav,"{YES}{"" if i % 10 == 0 else chr(34)}' for i in range(100_000))),
        },
    )
    start = time.monotonic()
    found = utterances(tmp_path)
    assert len(found) == 100_000 and sum("quotation" in u.problem for u in found) == 10_000
    assert time.monotonic() - start < 60


def test_files_of_the_hub_keep_their_folders():
    """ClArTTS's names are ids as ever; two folders may hold one name; a path of the owner's machine is not an id."""
    assert _hub_id("ch_20_arabic_tts_dataset_48.wav") == "ch_20_arabic_tts_dataset_48" and _hub_id("1.5.flac") == "1.5"
    assert _hub_id("x/1.wav") == "x/1" and _hub_id("y\\1.wav") == "y/1"
    assert (
        _hub_id("/root/x/1.wav")
        == _hub_id("hf://datasets/x/1.wav")
        == _hub_id("../1.wav")
        == _hub_id("C:\\x\\1.wav")
        == "1"
    )


# --- audio ------------------------------------------------------------------------------------------------------------


def test_channels_that_cancel_give_way_to_the_loudest():
    """One channel stays as it is; alike and unlike ones are mixed; where the mean would lose the voice, the loudest is
    taken."""
    voice, noise = tone().astype(np.float32), np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)
    for channels, how, expected in (
        ([voice], "", voice),
        ([voice, voice], "mean of 2", voice),
        ([noise, noise[::-1]], "mean of 2", (noise + noise[::-1]) / 2),  # 3 dB down
        ([voice, -voice], "loudest of 2", voice),
        ([voice, -0.9 * voice], "loudest of 2", voice),
        ([0 * voice, voice], "loudest of 2", voice),  # 6 dB down
        ([0.01 * noise, 0.01 * noise, voice, 0 * voice, 0.01 * noise, 0.01 * noise], "loudest of 6", voice),
    ):
        found, said = mono(np.stack(channels, 1))
        assert said == how and found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, atol=1e-7)


def test_rates_that_would_take_gigabytes_are_told(tmp_path):
    for rate in (8000, 11025, 16000, 22050, 22255, 40100, 44056, 44100, 48000, 96000):
        assert len(resample(tone(0.1, rate).astype(np.float32), rate, RATE)) == pytest.approx(0.1 * RATE, abs=2)
    for rate in (44101, 47999):
        with pytest.raises(AudioError, match=f"{rate} Hz, an odd rate; convert it: ffmpeg -i FILE -ar 24000"):
            resample(tone(0.1, rate).astype(np.float32), rate, RATE)


def test_a_chapter_in_one_file_is_not_read(tmp_path):
    """An hour of stereo would be 1.3 GB; its header says enough."""
    sf.write(tmp_path / "a.wav", np.zeros(8000 * 60, np.int16), 8000)
    with pytest.raises(AudioError, match="too long"):
        decode(tmp_path / "a.wav", 59)
    assert len(decode(tmp_path / "a.wav", 60)[0]) == 8000 * 60


# --- the page to look at ----------------------------------------------------------------------------------------------


def pair(i: int, rate: float, level: float = -20, speaker: str = "0") -> dict:
    row = {"id": str(i), "speaker": speaker, "letters_per_sec": rate, "level_db": level, "duration_sec": 2.0}
    return row | {"raw_level_db": level, "text_norm": "هَلْ $شَرِبَ$؟ $x_$"}


def test_suspects_are_measured_against_their_speaker():
    """A fast speaker's usual pair is no suspect, a slow one's of the same rate is; all that are far are kept, not
    six."""
    rows = [pair(i, 8) for i in range(40)] + [pair(i, 16, speaker="fast") for i in range(40, 80)]
    rows[3]["letters_per_sec"], rows[50]["letters_per_sec"], rows[7]["level_db"] = 16.0, 8.0, -40.0
    found = data_prep.suspects(rows, {"3": 5})
    assert [(p["id"], p["line"], p["far"]) for p in found["fastest"][:2]] == [("3", 5, True), ("0", None, False)]
    assert [(p["id"], p["rate"]) for p in found["slowest"] if p["far"]] == [("50", 0.5)] and found["quietest"][0][
        "id"
    ] == "7"
    for i in range(20, 40):
        rows[i]["letters_per_sec"] = 4.9
    assert sum(p["far"] for p in data_prep.suspects(rows + [pair(i, 8) for i in range(80, 120)], {})["slowest"]) == 21


def test_the_page_draws_what_texts_and_reasons_hold(tmp_path):
    """Dollars are Buckwalter's ش, not the start of a formula; a name may be long; no reject is no error."""
    figure, axes = data_prep.plt.subplots(2)
    data_prep.plot_pairs(
        axes[0], "slowest", data_prep.suspects([pair(i, i + 1) for i in range(9)], {"0": 7})["slowest"]
    )
    data_prep.plot_rejects(
        axes[1],
        data_prep.by_reason(
            [{"id": "$a$_{", "reason": '"$" $x_ cannot be said'}] * 3 + [{"id": "b", "reason": "no text", "line": 9}]
        ),
        20,
    )
    figure.savefig(tmp_path / "page.png")
    shown = [text.get_text() for text in axes[0].texts]
    assert (
        shown[0] == "line 7" and "1.0 letters/s, 0.20 of the usual" in shown[1] and len(shown) == 3 * data_prep.SUSPECTS
    )
    assert [t.get_text() for t in axes[1].texts] == [
        ' 3  "$" $x_ cannot be said: $a$_{, $a$_{, $a$_{',
        " 1  no text: line 9",
    ]
    axes[1].clear()
    data_prep.plot_rejects(axes[1], {}, 9)
    figure.savefig(tmp_path / "page.png")
