"""train.py and generate_sample.py as a user runs them: what they write, that they continue exactly, and what they
refuse."""

import fcntl
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from conftest import MUTE, RECIPE, TEXTS, digest, fails
from safetensors.torch import load_file, save_file
from scripts import ended, run, start

from pocket_arabic.base import load_config
from pocket_arabic.cache import Cache
from pocket_arabic.run import read_jsonl

BUNDLE = {"arabic.yaml", "model.safetensors", "tokenizer.json", "voice.wav", "bundle.json", "README.md"}


# --- train ------------------------------------------------------------------------------------------------------------


def test_run_folder_is_whole(finished_run):
    assert {p.name for p in (finished_run / "bundle").iterdir()} == BUNDLE
    assert {"args.json", "progress.jsonl", "loss.png"} <= {p.name for p in finished_run.iterdir()}
    assert len(list((finished_run / "samples").glob("step_000004_*.wav"))) >= 1
    progress = read_jsonl(finished_run / "progress.jsonl")
    assert progress[0]["kind"] == "start" and progress[0]["args"]["lr"] == 1e-3
    assert [r["step"] for r in progress if r["kind"] == "eval"] == [0, 2, 4]
    assert [r["step"] for r in progress if r["kind"] == "train"] == [1, 2, 3, 4]
    assert all(r["valid_flow_error"] > 0 for r in progress if r["kind"] == "eval")
    scores = {r["step"]: r["speech_score"] for r in progress if "speech_score" in r}
    assert {0, 4} <= scores.keys()
    info = json.loads((finished_run / "bundle" / "bundle.json").read_text())
    assert info["score"] == min(scores.values()) and scores[int(info["checkpoint"][5:])] == min(scores.values())


def assert_same_weights(a: Path, b: Path) -> None:
    """Two checkpoints, to the bit, the averages too."""
    for name in ("model.safetensors", "ema.safetensors"):
        one, other = (load_file(folder / name) for folder in (a, b))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_four_steps_equal_two_and_resume_and_two(finished_run, cache, tmp_path):
    """Weights, averages, optimiser and losses bit for bit, with the break in the middle of an epoch's order; the last
    steps by an interpreter of their own."""
    line = f"train.py {RECIPE} --data {cache} --out {tmp_path / 'r'} --max-steps"
    for result in (run(f"{line} 1"), run(f"{line} 3"), ended(start(f"{line} 4"))):
        assert result.returncode == 0, result.stderr
    runs = finished_run, tmp_path / "r"
    assert_same_weights(*(r / "checkpoints" / "step_000004" for r in runs))
    a, b = (
        torch.load(r / "checkpoints" / "step_000004" / "optimizers.pt", weights_only=True)["optimizers"][0]["state"]
        for r in runs
    )
    assert all(torch.equal(a[i][k], b[i][k]) for i in a for k in ("exp_avg", "exp_avg_sq"))
    a, b = ([r["loss"] for r in read_jsonl(f / "progress.jsonl") if r["kind"] == "train"] for f in runs)
    assert a == b


def test_twelve_steps_equal_five_and_a_kill_and_seven(cache, tmp_path):
    """SIGKILL after some steps beyond the checkpoint of step 5: these are taken again, and the end is the same to the
    bit."""
    line = f"train.py {RECIPE} --data {cache} --eval-every 5 --max-steps 12 --epochs 99 --keep 9 {MUTE} --out"
    process = start(line, tmp_path / "killed", env={"PYTHONUNBUFFERED": "1"})
    for printed in process.stdout:
        if printed.startswith("step 7/"):
            process.kill()
            break
    process.communicate(timeout=60)
    for out in ("killed", "whole"):
        result = run(line, tmp_path / out)
        assert result.returncode == 0 and ("continuing at step" in result.stdout) == (out == "killed"), result.stderr
    assert_same_weights(*(tmp_path / out / "checkpoints" / "step_000012" for out in ("killed", "whole")))


def test_sigterm_saves_and_the_same_command_continues(cache, tmp_path):
    line = f"train.py {RECIPE} --data {cache} --out {tmp_path / 'r'} --eval-every 0 {MUTE}"
    process = start(f"{line} --epochs 100000")
    for printed in process.stdout:
        if printed.startswith("step 5/"):
            process.send_signal(signal.SIGTERM)
            break
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "continues" in out
    step = max(int(p.name[5:]) for p in (tmp_path / "r" / "checkpoints").glob("step_*"))
    assert step >= 5
    result = run(f"{line} --max-steps {step + 1}")
    assert result.returncode == 0 and f"continuing at step {step}" in result.stdout, result.stderr
    assert {p.name for p in (tmp_path / "r" / "bundle").iterdir()} == BUNDLE


def test_finished_run_says_so_and_a_changed_recipe_is_refused(finished_run, cache):
    before = digest(finished_run / "bundle")
    line = f"train.py {RECIPE} --data {cache} --out {finished_run} --max-steps 4"
    result = run(line)
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert digest(finished_run / "bundle") == before
    fails(run(f"{line} --lr 0.1"), "lr: 0.001 -> 0.1")


def test_two_trainings_do_not_share_a_folder(finished_run, cache):
    """Two at once once interleaved their logs and broke on each other's checkpoint."""
    with open(finished_run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = run(f"train.py {RECIPE} --data {cache} --out {finished_run} --max-steps 4")
    fails(second, "another train.py is at work", "--out")


def test_one_step_moves_every_flow_lm_tensor_and_leaves_mimi(finished_run, tiny_base):
    exported = load_file(finished_run / "bundle" / "model.safetensors")
    codec = load_file(load_config(str(tiny_base)).mimi.weights_path)
    assert all(torch.equal(exported[k], codec[k]) for k in codec)
    start, later = (
        load_file(finished_run / "checkpoints" / step / "model.safetensors") for step in ("step_000002", "step_000004")
    )
    still = {k for k in later if k.startswith("flow_lm.") and torch.equal(start[k], later[k])}
    assert still == {k for k in later if k.endswith(("emb_mean", "emb_std", "freqs"))}


def test_fine_tuning_starts_from_the_bases_weights(finished_run, cache, tmp_path):
    """A bundle is a base like any other; with a learning rate of almost nothing its FlowLM stays what it was."""
    result = run(
        f"train.py --data {cache} --base {finished_run}/bundle/arabic.yaml --out {tmp_path / 'r'} "
        "--lr 1e-9 --weight-decay 0 --batch-size 3 --max-steps 1"
    )
    assert result.returncode == 0, result.stderr
    before, after = (load_file(r / "bundle" / "model.safetensors") for r in (finished_run, tmp_path / "r"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)


def test_train_refuses(cache, tiny_base, tmp_path):
    line = f"train.py --out {tmp_path / 'r'} --data"
    fails(run(line, tmp_path / "none"), "no cache at", "data_prep.py")
    fails(run(f"{line} {cache}"), "--init scratch")
    fails(run(f"{line} {cache} --init scratch --lr -1"), "--lr")
    other = tmp_path / "other"
    shutil.copytree(tiny_base.parent, other)
    weights = load_file(other / "codec.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, other / "codec.safetensors")
    another = f"{line} {cache} --init scratch --base {other}/base.yaml"
    fails(run(another), "another codec", "data_prep.py")
    fails(run(f"{line} {cache} --base klingon"), "klingon", "demo")
    (other / "codec.safetensors").write_bytes(b"version https://git-lfs")
    fails(run(another), "codec.safetensors", "safetensors file")
    assert not (tmp_path / "r").exists()


def test_demo_assets_run_through_all_three_scripts(tmp_path):
    """`make demo` in small: the committed corpus, codec and base, from audio to audible Arabic. Each script in an
    interpreter of its own, as from a shell."""
    data, out = tmp_path / "data", tmp_path / "run"
    result = ended(start(f"data_prep.py --corpus demo --limit 30 --out {data}"))
    assert result.returncode == 0, result.stderr
    assert abs(float(np.std(Cache(data).latents)) - 1) < 0.25  # unit variance, as the codec promises
    flags = f"--init scratch --batch-size 8 --lr 1e-3 --warmup-steps 5 --max-steps 8 --eval-every 8 {MUTE}"
    result = ended(start(f"train.py --data {data} --out {out} {flags}"))
    assert result.returncode == 0, result.stderr
    errors = [r["valid_flow_error"] for r in read_jsonl(out / "progress.jsonl") if r["kind"] == "eval"]
    assert errors[-1] < errors[0]
    result = ended(start(f"generate_sample.py --model {out} --out {tmp_path}/a.wav --text", TEXTS[3]))
    assert result.returncode == 0 and "x real time" in result.stdout, result.stderr
    assert sf.info(tmp_path / "a.wav").duration > 0.4
