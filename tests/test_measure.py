"""measure/harness.py and its lists of what to compare: a tiny model speaks, a parrot of a program scores."""

import doctest
import json
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import fails
from scripts import ROOT, run

from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import find_bundle
from pocket_arabic.run import append_jsonl, read_jsonl

sys.path.insert(0, str(ROOT / "measure"))
import experiments
import harness

PARROT = """
import json, os, sys
rows = [json.loads(row) for row in open(sys.argv[-1], encoding="utf-8")]
for row in rows:
    print(json.dumps({"hyp": row["text"], "bytes": os.path.getsize(row["wav"])}, ensure_ascii=False))
print(json.dumps({"clips": len(rows), "wavs": [row["wav"] for row in rows]}))
"""


@pytest.fixture
def parrot(tmp_path) -> str:
    """A scorer that hears what was to be said."""
    (tmp_path / "parrot.py").write_text(PARROT, encoding="utf-8")
    return shlex.join([sys.executable, str(tmp_path / "parrot.py")])


def test_every_kind_of_heldout_speech_is_scored(finished_run, cache, parrot, tmp_path):
    """heldout.py hands the scorer each kind's own clips, and one that fails ends it in one line."""
    line = f"measure/heldout.py --data {cache} --model {finished_run} --wavs {tmp_path}/w --out {tmp_path}/o.json"
    result = run(f"{line} --scorer", parrot)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    ids = [row["id"] for row in Cache(cache).split("test")]
    assert list(found["scores"]) == ["generated", "original", "codec", "codec_noise_0.1", "codec_noise_0.3"]
    for kind, scores in found["scores"].items():
        assert scores == {"clips": len(ids), "wavs": [str(tmp_path / "w" / kind / f"{i}.wav") for i in ids]}
    assert found["sentences"] == len(ids) and 0 <= found["eos_reached"] <= len(ids)
    assert found["command"].startswith("python measure/heldout.py --data")
    read = {kind: (tmp_path / "w" / kind / f"{ids[0]}.wav").read_bytes() for kind in found["scores"]}
    assert len(set(read.values())) == len(read), "two kinds of speech are the same"
    wrong = {"no-such-program": "No such file", f"{sys.executable} -c print(1)": "lines of JSON objects"}
    for scorer, words in wrong.items():
        fails(run(f"{line} --sentences 1 --scorer", scorer), scorer, words)


def test_bare_text_is_judged_by_the_text_with_its_marks(finished_run, cache, parrot, tmp_path):
    """What loses its marks is what the model reads, else bare text would seem to be read without an error. The same
    seed says the same; no voice says something else."""
    bundle, ways = find_bundle(finished_run), ({}, {}, {"bare": True}, {"voiced": False})
    full, again, bare, mute = (
        harness.speak_split(bundle, Cache(cache), tmp_path / str(number), sentences=1, **way)[0]
        for number, way in enumerate(ways)
    )  # fmt: skip
    assert full.text == bare.text == Cache(cache).split("test")[0]["text"]
    assert full.audio.tobytes() == again.audio.tobytes()
    assert full.audio.tobytes() not in (bare.audio.tobytes(), mute.audio.tobytes())
    records, summary = harness.score([full, bare], parrot)
    assert [record["hyp"] for record in records] == [full.text] * 2 and summary["clips"] == 2


def test_an_interrupted_training_counts_all_its_seconds(tmp_path, monkeypatch):
    """CPU seconds of both attempts are in the result, and a finished one is not trained again."""
    spent, calls = [10.0, 13.0, 20.0, 25.0], []  # before and after each attempt

    def attempt(line, **_):
        calls.append(line)
        out = tmp_path / "r"
        out.mkdir(exist_ok=True)
        append_jsonl(out / "progress.jsonl", {"kind": "train", "step": len(calls), "step_sec": 0.5, "memory_gib": 1.5})
        if len(calls) == 1:
            raise subprocess.CalledProcessError(1, line)

    monkeypatch.setattr(harness.subprocess, "run", attempt)
    monkeypatch.setattr(harness.resource, "getrusage", lambda _: SimpleNamespace(ru_utime=spent.pop(0), ru_stime=0.0))
    with pytest.raises(subprocess.CalledProcessError):
        harness.train(tmp_path / "r", ["--seed", "1"])
    for _ in range(2):
        found = harness.train(tmp_path / "r", ["--seed", "1"])
    assert found["cpu_sec"] == 8 and found["steps"] == 2 and len(calls) == 2
    assert found["command"] == f"python train.py --seed 1 --out {tmp_path / 'r'}"


def test_the_bare_cache_is_the_same_but_for_its_marks(cache, tmp_path):
    experiments.bare_cache(cache, tmp_path / "bare")
    full, bare = (read_jsonl(folder / "manifest.jsonl") for folder in (cache, tmp_path / "bare"))
    assert [row | {"text_model": ""} for row in full] == [row | {"text_model": ""} for row in bare]
    assert {c for row in bare for c in row["text_model"]}.isdisjoint("FNKaui~o`")
    assert Cache(tmp_path / "bare").split("test")


def test_worked_examples_of_the_docstrings():
    found = doctest.testmod(harness)
    assert found.attempted >= 1 and found.failed == 0


def test_experiments_are_summed_up_over_their_seeds():
    results = [{"experiment": "base", "seed": s, "command": "x", "cer": c} for s, c in ((0, 0.1), (1, 0.4))]
    assert experiments.summary(results) == {"base": {"seeds": [0, 1], "cer": {"mean": 0.25, "spread": 0.3}}}
