"""A training step: how much work it gives Python, where its limit of time leads, and that nothing grows with the
corpus."""

import json
import shutil
import sys
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import MUTE, RECIPE, fails
from scripts import run, words
from test_adapt import many
from torch.utils._python_dispatch import TorchDispatchMode

import train
from pocket_arabic.adapt import Schedule
from pocket_arabic.audio import write_wav
from pocket_arabic.base import LATENT_DIM, encoder_hash, load_config, load_mimi, load_weights
from pocket_arabic.progress import Pace
from pocket_arabic.rows import distils
from pocket_arabic.run import Clock, read_jsonl
from pocket_arabic.step import Steps


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


class Counted(Steps):
    """Notes operations and tensors made from arrays in each step, by whether it distils."""

    operations: list = []  # noqa: RUF012
    tensors: list = []  # noqa: RUF012

    def take(self, time_share):
        made = []
        with pytest.MonkeyPatch.context() as patch, Operations() as operations:
            for name in ("from_numpy", "tensor", "as_tensor"):
                original = getattr(torch, name)
                patch.setattr(torch, name, lambda *a, f=original, **k: made.append(f(*a, **k)) or made[-1])
            super().take(time_share)
        self.operations.append((distils(self.args.seed, self.done - 1), operations.count))
        self.tensors.append(len(made))


@pytest.mark.parametrize("flags", ["--optimizer muon", "--precision no --tune lora:4"])
def test_a_step_dispatches_as_much_for_64_rows_as_for_16(flags, nano_cache, tmp_path, monkeypatch):
    """Per-row tensors once made a step of 16 rows 4,247 operations, 6,651 with the distillation term, one of 64 7,981
    and 10,405: a GPU was busy a sixth of the time. Counted: everything from the rows to the averages, in a step of the
    nano model."""
    monkeypatch.setattr(train, "Steps", Counted)
    found = {}
    for rows in (16, 64):
        Counted.operations, Counted.tensors = [], []
        AcceleratorState._reset_state(reset_partial_state=True)  # another precision than the run before
        line = (
            f"train.py --data {nano_cache} --out {tmp_path / str(rows)} --batch-size {rows} --max-steps 3 --epochs 99"
        )
        line += f" --seed 1 --eval-every 0 --init scratch {MUTE} {flags}"
        monkeypatch.setattr(sys, "argv", words(line))
        train.main()
        assert {d for d, _ in Counted.operations[1:]} == {True, False}
        found[rows] = {d: max(n for distil, n in Counted.operations[1:] if distil == d) for d in (True, False)}
        assert max(Counted.tensors) <= 10
    for distil, limit in ((False, 2000), (True, 4200)):
        assert found[64][distil] <= limit and found[64][distil] == pytest.approx(found[16][distil], rel=0.02), found


@pytest.fixture(scope="module")
def nano_cache(tmp_path_factory):
    """A cache of the nano base with random latents."""
    folder = tmp_path_factory.mktemp("nano") / "c"
    random_cache(folder, 140, "demo")
    return folder


def random_cache(folder, utterances: int, base: str) -> None:
    """What data_prep.py would write, of random latents and texts, the first tenth valid."""
    config = load_config(base)
    mimi = load_mimi(config, load_weights(config))
    rng = np.random.default_rng(0)
    folder.mkdir()
    frames = np.clip(rng.gamma(4.0, 13.2, utterances), 22, 160).astype(int)
    first = np.cumsum(frames) - frames
    with open(folder / "latents.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (int(frames.sum()), LATENT_DIM)}
        )
        block = rng.standard_normal((10**5, LATENT_DIM), dtype=np.float32)
        for start in range(0, int(frames.sum()), len(block)):
            file.write(block[: int(frames.sum()) - start].tobytes())
    letters = np.array(list("AbtvjHxdrzsSDTZEgfqklmnhwyauio "))
    with open(folder / "manifest.jsonl", "w", encoding="utf-8") as file:
        for i, (n, start) in enumerate(zip(frames.tolist(), first.tolist())):
            row = {
                "id": str(i),
                "split": "valid" if i < utterances // 10 else "train",
                "speaker": "one",
                "duration_sec": n / 12.5,
            }
            row |= {
                "text_model": "".join(rng.choice(letters, int(n * 1.1))),
                "first_frame": start,
                "num_frames": n,
                "speech_end_sec": n / 12.5,
            }
            file.write(json.dumps(row) + "\n")
    options = {
        "corpus": "random",
        "base": base,
        "encoder_sha256": encoder_hash(mimi),
        "head_sec": 0.1,
        "trim": True,
    }
    write_wav(folder / "voice.wav", 0.1 * rng.standard_normal(48000).astype(np.float32), 24000)
    (folder / "cache.json").write_text(json.dumps({"format_version": 1, "options": options, "hours": {"train": 1.0}}))


def test_order_of_a_large_corpus_takes_no_time():
    """9,500 utterances in under 0.1 s and a million in under 10 s; it was a Python loop over rows."""
    for number, limit in ((9500, 0.1), (10**6, 10.0)):
        rows = many(number)
        epoch = rows.epoch(1)
        taken = []
        for _ in range(2):
            start = time.process_time()
            rows.order(epoch, 64)
            taken.append(time.process_time() - start)
        assert min(taken) < limit


def test_a_cosine_is_down_whichever_limit_ends_the_run():
    """On a slow machine the time ended runs whose rate was still at its peak: 150 of 900 steps in the quarter of an
    hour."""
    rate = Schedule(lr=1.0, cosine=True, warmup_steps=10, last_step=100).rate
    assert rate(0, 0.0) == 0.1 and rate(9, 0.05) == 1.0 and rate(10, 0.0) == 1.0
    assert rate(55, 0.5) == rate(55, 0.0) == pytest.approx(0.5)  # time that is not short changes nothing
    assert rate(30, 0.99) < 0.001 and rate(99, 0.0) < 0.001  # each end
    assert rate(30, 0.5) == rate(50, 0.0)
    shares = [rate(10 + i, i / 20) for i in range(20)]
    assert shares == sorted(shares, reverse=True)


def test_a_run_that_its_time_ends_has_come_down(cache, tmp_path):
    """With the real clock: the last rate is at most 3 % of the peak, and the printed time left is right within a
    fifth."""
    line = f"train.py {RECIPE} --data {cache} --out {tmp_path / 'r'} --schedule cosine"
    result = run(f"{line} --max-hours 0.006 --epochs 1000000 --eval-every 0")
    assert result.returncode == 0, result.stderr
    log = [r for r in read_jsonl(tmp_path / "r" / "progress.jsonl") if r["kind"] == "train"]
    assert len(log) > 40 and max(r["lr"] for r in log) > 9e-4 and log[-1]["lr"] < 0.03 * 1e-3
    left = [
        float(line.split("left ")[1].split()[0]) for line in result.stdout.splitlines() if line.startswith("step 30/")
    ]
    assert left[0] == pytest.approx((0.006 - log[29]["hours"]) * 60, abs=0.2 * 0.006 * 60)
    fails(run(f"{line} --patience 3"), "--patience")


def test_pace_leaves_out_what_is_no_step():
    pace, clock = Pace(), Clock(2.0)
    pace.since -= 100.0  # the first steps compile
    for _ in range(Pace.WARM_UP):
        pace.step()
    for _ in range(3):
        pace.since -= 1.0
        pace.step()
        pace.since -= 50.0  # an evaluation
        pace.pause(50.0)
    assert pace.mean() == pytest.approx(1.0, rel=0.01)
    clock.start -= 3600
    clock.closing = 0.5
    assert clock.hours() == pytest.approx(1.0, rel=1e-3) and clock.share() == pytest.approx(2 / 3, rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_with_its_inputs(cache, finished_run, tmp_path):
    """The step's rows, tensors and losses are saved; no later checkpoint is."""
    shutil.copytree(cache, tmp_path / "c")
    latents = np.load(tmp_path / "c" / "latents.npy")
    rows = read_jsonl(tmp_path / "c" / "manifest.jsonl")
    latents[[r["first_frame"] + 3 for r in rows if r["split"] == "train"]] = 1e30  # a square of it is not finite
    np.save(tmp_path / "c" / "latents.npy", latents)
    result = run(
        f"train.py {RECIPE} --init base --base {finished_run}/bundle/arabic.yaml --data {tmp_path / 'c'} "
        f"--out {tmp_path / 'r'} --max-steps 3 --eval-every 0 {MUTE}"
    )
    fails(result, "gradient not finite at step 0", "--lr")
    saved = torch.load(tmp_path / "r" / "not_finite_step_000000.pt", weights_only=True)
    assert len(saved["ids"]) == 3 and {"kind", "target"} <= saved["last_part"].keys()
    assert not torch.isfinite(saved["losses"]["loss"])
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step_000000"]
