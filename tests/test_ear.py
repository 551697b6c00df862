"""The measuring instrument: the ear hears, its command keeps its interface, planted errors are counted as by hand."""

import csv
import doctest
import json
import random
import sys
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import fails
from scripts import ROOT, run

sys.path.insert(0, str(ROOT / "measure"))
import ear
import planted
import train_ear

from pocket_arabic.audio import load_audio, write_wav
from pocket_arabic.evaluation import error_rates, load_recogniser
from pocket_arabic.text import normalise, romanise

CLIPS = ROOT / "demo" / "corpus"
TEXT = "كَتَبَ الْوَلَدُ"


def some_clips() -> list[dict]:
    with open(CLIPS / "metadata.csv", encoding="utf-8") as file:
        return list(islice((row for row in csv.DictReader(file) if row["split"] == "test"), 3))


@pytest.mark.parametrize("module", [ear, train_ear, planted])
def test_worked_examples_of_the_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted >= 1 and found.failed == 0


def test_hears_the_corpus():
    """Another set of symbols, another front end or other weights would leave noise: error rates near 1."""
    hearing = ear.Ear()
    for row in some_clips():
        rates = error_rates(row["text"], hearing.transcribe(*load_audio(CLIPS / row["file_name"])))
        assert rates["cer"] < 0.2 and rates["cer_marks"] < 0.2, (row, rates)
    assert ear.WEIGHTS.stat().st_size < 2.1e6
    assert (
        hearing.transcribe(np.zeros(0, np.float32), 24000) == hearing.transcribe(np.zeros(9000, np.float32), 8000) == ""
    )


def test_its_command(tmp_path):
    """A clip without a text has no rates and no part in the means; --evaluate's recognisers take the same output."""
    rows = some_clips()
    write_wav(tmp_path / "silence.wav", np.zeros(24000), 24000)
    wavs = [CLIPS / row["file_name"] for row in rows] + [tmp_path / "silence.wav"]
    pairs = [
        {"wav": str(wav), "text": text}
        for wav, text in zip(wavs, [rows[0]["text"], rows[1]["text"], "", rows[2]["text"]])
    ]
    listing = tmp_path / "pairs.jsonl"
    listing.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    result = run("measure/ear.py", listing)
    assert result.returncode == 0, result.stderr
    *each, total = map(json.loads, result.stdout.splitlines())
    assert [set(row) for row in each] == [{"wav", "hyp", "cer_no_marks", "cer"}] * 4
    assert each[2]["cer"] is each[2]["cer_no_marks"] is None and each[3]["hyp"] == "" and each[3]["cer"] == 1
    assert total["clips"] == 4 and total["above_1"] == 0
    assert total["cer_mean"] == pytest.approx(np.mean([each[i]["cer"] for i in (0, 1, 3)]))
    heard = load_recogniser(f"program:{sys.executable} {ROOT / 'measure' / 'ear.py'}")(wavs)
    assert list(heard) == [row["hyp"] for row in each]
    fails(run("measure/ear.py", tmp_path / "none.jsonl"), "none.jsonl", "no such file")


def test_learns_from_no_sentence_of_the_corpus():
    """An ear that knew the corpus's sentences would forgive a model what it mumbles of them."""
    rng = random.Random(0)
    known = set().union(
        *map(train_ear.triples, (ROOT / "demo" / "sentences.txt").read_text(encoding="utf-8").splitlines())
    )
    assert len(known) > 5000 and train_ear.triples(some_clips()[0]["text"]) <= known
    for _ in range(500):
        text = train_ear.line(rng)
        assert normalise(text) == text and set(ear.spelled(text)) <= set(ear.SYMBOLS)
        assert not train_ear.triples(text) & known


def test_training_continues_exactly(tmp_path, monkeypatch):
    """Four steps are two, and two more from the checkpoint; the average, dropout and the order of batches with them."""
    noise = torch.Generator().manual_seed(0)
    corpus = [(torch.randn(60, ear.MELS, generator=noise).half(), "ba bi") for _ in range(train_ear.HELD_OUT + 6)]
    batches = train_ear.batches

    def trained(folder: str, most: int) -> torch.Tensor:
        monkeypatch.setattr(train_ear, "batches", lambda *args: islice(batches(*args), most))
        (tmp_path / folder).mkdir(exist_ok=True)
        args = SimpleNamespace(work=tmp_path / folder, lr=1e-3, steps=4, seed=0, batch_size=2, save_every=2)
        return torch.nn.utils.parameters_to_vector(train_ear.train(corpus, args).parameters())

    whole, half = trained("whole", 5), trained("halves", 2)
    assert torch.equal(trained("halves", 5), whole) and not torch.equal(half, whole)


def test_planted_errors_by_hand():
    """كَتَبَ الْوَلَدُ is k a t a b a A l w a l a d u, 8 letters and 6 marks. Said with a kasra for its second mark,
    that place is the error's, and the t and b beside it count for nothing: 6 letters and 5 marks are left.
    Heard as it was said, the error is found; heard as written, it is missed; a t heard for the d, or a kasra
    for the fatha after w, is a false alarm."""
    said = "كَتِبَ الْوَلَدُ"
    cases = ((said, 1, 0, 0), (TEXT, 0, 0, 0), ("كَتِبَ الْوَلَتُ", 1, 1, 0), ("كَتُبَ الْوِلَدُ", 1, 0, 1))
    for heard, found, letters, marks in cases:
        score = planted.Score()
        score.add("mark swapped", *map(planted.sounds, (TEXT, said, heard)))
        result = score.summary()
        assert [result["marks"][k] for k in ("planted", "found", "places", "false_alarms")] == [1, found, 5, marks]
        assert [result["letters"][k] for k in ("planted", "places", "false_alarms")] == [0, 6, letters]
        assert result["marks"]["share_false"] == marks / 5 and result["kinds"]["mark swapped"]["share_found"] == found


def test_each_kind_of_error_is_planted_at_one_place():
    """What is planted is one change of one sound or syllable, in a text that still is one."""
    kinds = dict(planted.planted(normalise(TEXT), random.Random(0)))
    assert set(kinds) == set(planted.INSTEAD)
    for kind, text in kinds.items():
        assert normalise(text) == text, kind
        assert 1 <= len(planted.flagged(*map(planted.sounds, (TEXT, text)))) <= 2, (kind, romanise(text))
