"""A student from its teacher's run to a bundle of its own, and the judge that chooses checkpoints."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import RECIPE, digest, fails
from safetensors.torch import load_file
from scripts import ROOT, run

sys.path.append(str(ROOT / "measure"))
from rehearse_teacher import rehearse

from pocket_arabic.base import decode_latents, load_config, load_mimi, load_weights
from pocket_arabic.evaluation import Judge
from pocket_arabic.run import read_jsonl


@pytest.fixture(scope="module")
def shallow(tiny_base, tmp_path_factory):
    """The tiny base's shape, of one layer."""
    folder = tmp_path_factory.mktemp("shallow")
    config = yaml.safe_load(tiny_base.read_text(encoding="utf-8"))
    config["flow_lm"]["transformer"]["num_layers"] = 1
    config["mimi"]["weights_path"] = str(tiny_base.with_name("codec.safetensors"))
    config["flow_lm"]["lookup_table"]["tokenizer_path"] = str(tiny_base.with_name("tokenizer.json"))
    (folder / "shallow.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "shallow.yaml"


def student(shallow, teacher, cache, out, more=""):
    plain = RECIPE.replace("--init scratch", "")
    return run(f"train.py {plain} --data {cache} --out {out} --base {shallow} --teacher {teacher} {more}")


def test_a_student_learns_stops_continues_and_speaks(finished_run, shallow, cache, tmp_path):
    """Half the teacher's layers and all of its head; two steps and two are four; its bundle is one like any other."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for out, steps in ((whole, 4), (halves, 2), (halves, 4)):
        result = student(shallow, finished_run, cache, out, f"--max-steps {steps}")
        assert result.returncode == 0, result.stderr
    assert digest(whole / "checkpoints") == digest(halves / "checkpoints") | {
        name: sha for name, sha in digest(whole / "checkpoints").items() if name.endswith("state.json")
    }
    records = read_jsonl(whole / "progress.jsonl")
    errors = [r["valid_z_error"] for r in records if r["kind"] == "eval"]
    assert len(errors) == 3 and errors[-1] < errors[0] and all("z_error" in r for r in records if r["kind"] == "train")
    info = json.loads((whole / "bundle" / "bundle.json").read_text())
    assert (info["teacher"], info["guidance"]) == (finished_run.name, 2)
    taught, found = (load_file(folder / "bundle" / "model.safetensors") for folder in (finished_run, whole))
    assert {n.split(".")[3] for n in found if n.startswith("flow_lm.transformer.layers.")} == {"0"}
    same = [n for n in found if n.startswith(("flow_lm.flow_net.", "flow_lm.out_eos.", "mimi."))]
    assert len(same) > 20 and all(torch.equal(found[n], taught[n]) for n in same)
    result = run(f"generate_sample.py --model {whole} --out {tmp_path}/a.wav --guidance 1.5 --text 'هَلْ أَنْتَ بِخَيْرٍ؟'")
    assert result.returncode == 0, result.stderr


def test_the_released_teacher_and_student_from_the_hub(tmp_path):
    """english_2026-04_24l and english from a stand-in for the hub, with all their layers and narrow ones: prepare,
    teach, distil, speak."""
    found = rehearse(tmp_path, width=32, rows=8, steps=2, batch=2)
    teacher, student = (
        load_file(tmp_path / "runs" / name / "bundle" / "model.safetensors") for name in ("teacher", "student")
    )
    depth = [
        1 + max(int(n.split(".")[3]) for n in state if n.startswith("flow_lm.transformer.layers."))
        for state in (teacher, student)
    ]
    assert depth == [24, 6] and found["speak"]["sec_of_speech"] > 0.3


def test_what_does_not_go_with_a_teacher(finished_run, shallow, tiny_base, cache, tmp_path):
    """Refused in one line, before a run folder is there."""
    out = tmp_path / "r"
    wide = yaml.safe_load(shallow.read_text(encoding="utf-8"))
    wide["flow_lm"]["transformer"]["d_model"] = 64
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(wide), encoding="utf-8")
    deep = yaml.safe_load(shallow.read_text(encoding="utf-8"))
    deep["flow_lm"]["transformer"]["num_layers"] = 5
    (tmp_path / "deep.yaml").write_text(yaml.safe_dump(deep), encoding="utf-8")
    fails(student(tmp_path / "wide.yaml", finished_run, cache, out), "--teacher", "transformer.d_model: 64 -> 32")
    fails(student(tmp_path / "deep.yaml", finished_run, cache, out), "--teacher", "2 layers", "5")
    fails(student(shallow, finished_run, cache, out, "--init scratch"), "--init scratch", "--teacher")
    fails(student(shallow, finished_run, cache, out, "--text-dropout 0.1"), "--text-dropout", "--teacher")
    fails(student(shallow, tmp_path / "none", cache, out), "--teacher", "no such folder")
    fails(student(shallow, "demo", cache, out), "--teacher", "d_model")
    fails(run(f"train.py {RECIPE} --data {cache} --out {out} --guidance 2"), "--guidance", "--teacher")
    assert not out.exists()


def test_the_judge_prefers_the_recording(cache, tiny_base, flow_lm, monkeypatch):
    """Its score is next to 0 for the recordings through the codec, and grows with what is done to them: cut, missed, of
    other sound."""
    from pocket_arabic import evaluation, speech
    from pocket_arabic.base import tts_model
    from pocket_arabic.cache import Cache
    from pocket_arabic.rows import Draws, Latents, Utterances

    config = load_config(str(tiny_base))
    mimi = load_mimi(config, load_weights(config))
    latents = Latents(cache / "latents.npy", torch.device("cpu"))
    valid = Utterances(Cache(cache), "train", flow_lm.conditioner.tokenizer, 12.5, Draws(), latents)
    judge, model = Judge(valid, mimi, 3), tts_model(config, flow_lm, mimi)
    rows = [valid.texts.index(text) for text in judge.texts]
    recordings = [decode_latents(mimi, latents.slice(valid.first[r], valid.frames[r])) for r in rows]

    def scored(change, ended=True):
        monkeypatch.setattr(
            evaluation, "speak_each", lambda *_: [speech.Spoken(change(a), 0, ended, 0.0) for a in recordings]
        )
        return judge.score(model)

    same = scored(lambda a: a)
    assert same["speech_score"] < 0.02 and (same["duration_ratio"], same["spoken"], same["ends"]) == (1, 3, 3)
    assert scored(lambda a: a, ended=False)["speech_score"] == pytest.approx(10 + same["speech_score"], abs=1e-3)
    half = scored(lambda a: a[: len(a) // 2])
    assert half["speech_score"] > 3 and half["duration_ratio"] == pytest.approx(0.5, abs=0.02)
    assert scored(lambda a: np.random.default_rng(0).standard_normal(len(a)).astype("f"))["mcd_db"] > 2
