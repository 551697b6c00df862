"""train.py and generate_sample.py as a user runs them: what they write, that they continue exactly, and what they
refuse."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import soundfile as sf
import torch
from conftest import ROOT, TEXTS, TRAIN, digest, fails, run
from safetensors.torch import load_file, save_file

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


def test_four_steps_equal_two_and_resume_and_two(finished_run, cache, tmp_path):
    """Weights, averages, optimiser and losses bit for bit, with the break in the middle of an epoch's order."""
    for steps in (1, 3, 4):
        result = run("train.py", *TRAIN, "--data", cache, "--out", tmp_path / "r", "--max-steps", steps)
        assert result.returncode == 0, result.stderr
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(r / "checkpoints" / "step_000004" / name) for r in (finished_run, tmp_path / "r"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    a, b = (
        torch.load(r / "checkpoints" / "step_000004" / "optimizers.pt", weights_only=True)["optimizers"][0]["state"]
        for r in (finished_run, tmp_path / "r")
    )
    assert all(torch.equal(a[i][k], b[i][k]) for i in a for k in ("exp_avg", "exp_avg_sq"))
    a, b = (
        [r["loss"] for r in read_jsonl(f / "progress.jsonl") if r["kind"] == "train"]
        for f in (finished_run, tmp_path / "r")
    )
    assert a == b


def test_twelve_steps_equal_five_and_a_kill_and_seven(cache, tmp_path):
    """SIGKILL after some steps beyond the checkpoint of step 5: these are taken again, and the end is the same to the
    bit."""
    flags = ["--data", cache, "--eval-every", 5, "--sample-every", 0, "--max-steps", 12]
    command = [sys.executable, ROOT / "train.py", *TRAIN, *flags, "--epochs", 99, "--keep", 9, "--out"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [str(a) for a in (*command, tmp_path / "killed")], env=env, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step 7/"):
            process.kill()
            break
    process.communicate(timeout=60)
    for out in ("killed", "whole"):
        result = subprocess.run([str(a) for a in (*command, tmp_path / out)], env=env, capture_output=True, text=True)
        assert result.returncode == 0 and ("continuing at step" in result.stdout) == (out == "killed"), result.stderr
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(tmp_path / out / "checkpoints" / "step_000012" / name) for out in ("killed", "whole"))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_sigterm_saves_and_the_same_command_continues(finished_run, cache, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *map(str, TRAIN),
        "--data",
        str(cache),
        "--out",
        str(tmp_path / "r"),
        "--eval-every",
        "0",
    ]
    command += ["--epochs", "100000"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.send_signal(signal.SIGTERM)
            break
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "continues" in out
    step = max(int(p.name[5:]) for p in (tmp_path / "r" / "checkpoints").glob("step_*"))
    assert step >= 5
    result = run(
        "train.py", *TRAIN, "--data", cache, "--out", tmp_path / "r", "--max-steps", step + 1, "--eval-every", 0
    )
    assert result.returncode == 0 and f"continuing at step {step}" in result.stdout, result.stderr
    assert {p.name for p in (tmp_path / "r" / "bundle").iterdir()} == BUNDLE


def test_finished_run_says_so_and_a_changed_recipe_is_refused(finished_run, cache):
    before = digest(finished_run / "bundle")
    result = run("train.py", *TRAIN, "--data", cache, "--out", finished_run, "--max-steps", 4)
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert digest(finished_run / "bundle") == before
    fails(
        run("train.py", *TRAIN, "--data", cache, "--out", finished_run, "--max-steps", 4, "--lr", 0.1),
        "lr: 0.001 -> 0.1",
    )


def test_two_trainings_do_not_share_a_folder(finished_run, cache):
    """Two at once once interleaved their logs and broke on each other's checkpoint."""
    with open(finished_run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fails(
            run("train.py", *TRAIN, "--data", cache, "--out", finished_run, "--max-steps", 4),
            "another train.py is at work",
            "--out",
        )


def test_one_step_moves_every_flow_lm_tensor_and_leaves_mimi(finished_run, tiny_base):
    exported = load_file(finished_run / "bundle" / "model.safetensors")
    start = (
        load_file(finished_run / "checkpoints" / "step_000002" / "model.safetensors")
        if (finished_run / "checkpoints" / "step_000002").exists()
        else None
    )
    codec = load_file(load_config(str(tiny_base)).mimi.weights_path)
    assert all(torch.equal(exported[k], codec[k]) for k in codec)
    later = load_file(finished_run / "checkpoints" / "step_000004" / "model.safetensors")
    assert start is not None
    still = [
        k
        for k in later
        if k.startswith("flow_lm.")
        and not k.endswith(("emb_mean", "emb_std", "freqs"))
        and torch.equal(start[k], later[k])
    ]
    assert still == []


def test_fine_tuning_starts_from_the_bases_weights(finished_run, cache, tmp_path):
    """A bundle is a base like any other; with a learning rate of almost nothing its FlowLM stays what it was."""
    result = run(
        "train.py",
        "--data",
        cache,
        "--base",
        finished_run / "bundle" / "arabic.yaml",
        "--out",
        tmp_path / "r",
        "--lr",
        1e-9,
        "--weight-decay",
        0,
        "--batch-size",
        3,
        "--max-steps",
        1,
    )
    assert result.returncode == 0, result.stderr
    before, after = (load_file(r / "bundle" / "model.safetensors") for r in (finished_run, tmp_path / "r"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)


def test_train_refuses(cache, tiny_base, finished_run, tmp_path):
    args = ["--out", tmp_path / "r"]
    fails(run("train.py", "--data", tmp_path / "none", *args), "no cache at", "data_prep.py")
    fails(run("train.py", "--data", cache, *args), "--init scratch")
    fails(run("train.py", "--data", cache, *args, "--init", "scratch", "--lr", -1), "--lr")
    other = tmp_path / "other"
    shutil.copytree(tiny_base.parent, other)
    weights = load_file(other / "codec.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, other / "codec.safetensors")
    fails(
        run("train.py", "--data", cache, "--base", other / "base.yaml", "--init", "scratch", *args),
        "another codec",
        "data_prep.py",
    )
    fails(run("train.py", "--data", cache, "--base", "klingon", *args), "klingon", "demo")
    (other / "codec.safetensors").write_bytes(b"version https://git-lfs")
    fails(
        run("train.py", "--data", cache, "--base", other / "base.yaml", "--init", "scratch", *args),
        "codec.safetensors",
        "safetensors file",
    )
    assert not (tmp_path / "r").exists()


def test_demo_assets_run_through_all_three_scripts(tmp_path):
    """`make demo` in small: the committed corpus, codec and base, from audio to audible Arabic."""
    data, out = tmp_path / "data", tmp_path / "run"
    result = run("data_prep.py", "--corpus", "demo", "--limit", 60, "--out", data)
    assert result.returncode == 0, result.stderr
    cache = Cache(data)
    assert abs(float(np.std(cache.latents)) - 1) < 0.25  # unit variance, as the codec promises
    result = run(
        "train.py",
        "--data",
        data,
        "--init",
        "scratch",
        "--out",
        out,
        "--batch-size",
        8,
        "--lr",
        1e-3,
        "--warmup-steps",
        5,
        "--max-steps",
        8,
        "--eval-every",
        8,
        "--sample-every",
        0,
    )
    assert result.returncode == 0, result.stderr
    errors = [r["valid_flow_error"] for r in read_jsonl(out / "progress.jsonl") if r["kind"] == "eval"]
    assert errors[-1] < errors[0]
    result = run("generate_sample.py", "--text", TEXTS[3], "--model", out, "--out", tmp_path / "a.wav")
    assert result.returncode == 0 and "x real time" in result.stdout, result.stderr
    assert sf.info(tmp_path / "a.wav").duration > 0.4
