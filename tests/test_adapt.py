"""What trains and what stays, adapters, and one batch divided over parts and processes."""

import json
import math
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from bench import LiveLatents
from conftest import MUTE, RECIPE, fails
from pocket_tts import TTSModel
from safetensors.torch import load_file
from scripts import ended, fork, run, start
from test_model import TWO, make_rows, whole_batch
from test_pipeline import assert_same_weights

from pocket_arabic.adapt import Muon, build_optimizers, merged, orthogonalised, set_trainable
from pocket_arabic.model import LSD, TrainableTTS, backbone
from pocket_arabic.rows import Draws, Epoch, Utterances
from pocket_arabic.run import read_jsonl

HEAD = ("flow_lm.flow_net.", "flow_lm.out_eos.")
LAYER = "flow_lm.transformer.layers."
LINEAR = tuple(
    f"{LAYER}{i}.{name}.weight"
    for i in (0, 1)
    for name in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
)
EXPECTED = {
    "full": ("flow_lm.",),
    "last:1": ("flow_lm.conditioner.", "flow_lm.out_norm.", f"{LAYER}1.", *HEAD),
    "last:1 --freeze-head": ("flow_lm.conditioner.", "flow_lm.out_norm.", f"{LAYER}1."),
    "lora:2": ("flow_lm.conditioner.", *LINEAR),
    "lora:2 --no-freeze-head": ("flow_lm.conditioner.", *LINEAR, *HEAD),
    "text": ("flow_lm.conditioner.",),
}


@pytest.mark.parametrize("tune", EXPECTED)
def test_a_step_changes_exactly_what_it_names(tune, finished_run, cache, tmp_path, monkeypatch):
    base = finished_run / "bundle"
    result = run(
        f"train.py {RECIPE} --data {cache} --out {tmp_path / 'r'} --init base --base {base}/arabic.yaml --tune {tune} "
        "--max-steps 1 --sample-every 0 --lr 0.01 --warmup-steps 0 --weight-decay 0.1"
    )
    assert result.returncode == 0, result.stderr
    # The bundle may hold the untrained step 0, if that scored better; the averages after the step are what is asked
    # about.
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "r" / "bundle" / "model.safetensors")
    assert before.keys() == after.keys()
    if json.loads((tmp_path / "r" / "bundle" / "bundle.json").read_text())["checkpoint"] == "step_000000":
        assert all(torch.equal(before[k], after[k]) for k in before)
    state = load_file(tmp_path / "r" / "checkpoints" / "step_000001" / "model.safetensors")
    adapters = {k.split(".lora_")[0] + ".weight" for k in state if ".lora_B" in k and state[k].any()}
    state = {
        k.replace(".base_layer.", "."): v for k, v in state.items() if k.startswith("flow_lm.") and ".lora_" not in k
    }
    changed = {k for k in state if not torch.equal(state[k], before[k])} | adapters
    assert changed == {
        k for k in state if k.startswith(EXPECTED[tune]) and not k.endswith(("emb_mean", "emb_std", "freqs"))
    }
    monkeypatch.chdir(tmp_path / "r" / "bundle")
    TTSModel.load_model(config="arabic.yaml")  # strict


def test_merged_adapters_equal_unmerged(flow_lm):
    set_trainable(flow_lm, "lora:4")
    with torch.no_grad():
        for name, parameter in flow_lm.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.1)
    batch = whole_batch(make_rows([(12, 7)] * 3))[0]
    adapted = backbone(flow_lm, batch)
    state = merged(flow_lm)
    for module in list(flow_lm.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "lora_A"):
                setattr(module, name, child.base_layer)
    plain = backbone(flow_lm, batch)
    assert (plain - adapted).abs().max() > 0.01  # the adapters do something
    flow_lm.load_state_dict(state, strict=True)
    torch.testing.assert_close(backbone(flow_lm, batch), adapted, rtol=1e-5, atol=1e-5)


def test_muon_takes_the_hidden_matrices(flow_lm):
    model = TrainableTTS(flow_lm)
    adamw, muon = build_optimizers(model, "muon", 1e-3, 0.0, "no")
    groups = [{id(p) for g in optimizer.param_groups for p in g["params"]} for optimizer in (adamw, muon)]
    assert not groups[0] & groups[1] and groups[0] | groups[1] == {id(p) for p in model.parameters()}
    names = {n for n, p in model.named_parameters() if id(p) in groups[1]}
    assert set(LINEAR) <= names and all(
        n.startswith(("flow_lm.transformer.layers.", "flow_lm.flow_net.res_blocks.")) for n in names
    )
    assert len(build_optimizers(model, "adamw", 1e-3, 0.0, "no")) == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.06)])
def test_newton_schulz_keeps_singular_vectors_and_evens_singular_values(dtype, tolerance):
    """Against a float64 SVD: U S V^T becomes U p(S) V^T, p five times the quintic; whatever the scale, several at a
    time."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 24, 60, generator=generator) * torch.tensor([1.0, 1e-3, 1e3])[:, None, None]
    matrices[1, :, 5:] *= 0.05  # one of uneven singular values
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    found = orthogonalised(matrices, dtype).double()
    assert ((found - u @ torch.diag_embed(s) @ vh).abs().amax((1, 2)) < tolerance).all()
    assert torch.linalg.svdvals(found).min() > 0.6 and torch.linalg.svdvals(found).max() < 1.25


def test_newton_schulz_takes_tf32_products(monkeypatch):
    """Where train.py allows them, operands of 10 bits change an update by less than 1 %."""

    def rounded(x):
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    bmm, generator = torch.bmm, torch.Generator().manual_seed(0)
    matrices = torch.randn(2, 96, 384, generator=generator) * torch.logspace(0, -4, 96)[None, :, None]
    matrices = torch.linalg.qr(torch.randn(2, 96, 96, generator=generator))[0] @ matrices
    wanted = orthogonalised(matrices.double(), torch.float64)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    monkeypatch.setattr(torch, "bmm", lambda a, b: bmm(rounded(a), rounded(b)))
    monkeypatch.setattr(torch, "baddbmm", lambda x, a, b, beta=1, alpha=1: beta * x + alpha * torch.bmm(a, b))
    found = orthogonalised(matrices, torch.float32).double()
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_muon_is_torchs_in_float32(flow_lm, monkeypatch):
    """Three steps beside torch.optim.Muon made to iterate in fp32: momentum, weight decay, the rate of wide and tall
    matrices."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    shapes = [(24, 60), (60, 24), (30, 30), (24, 60), (8, 9)]
    ours, theirs = (
        [torch.nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(i))) for i, s in enumerate(shapes)]
        for _ in range(2)
    )
    optimizers = (
        Muon([{"params": ours}], 0.02, 0.1, torch.float32),
        torch.optim.Muon(theirs, 0.02, 0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(3):
        for i, pair in enumerate(zip(ours, theirs)):
            for p in pair:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_parts_add_up_to_the_batch(flow_lm):
    """Gradients of four rows at once equal the sums over uneven parts of them."""
    model, rows = TrainableTTS(flow_lm, TWO), make_rows([(frames, 6) for frames in (5, 30, 11, 18)], TWO)
    batch, noise = whole_batch(rows)
    model(batch, noise, LSD.DISTILL_WEIGHT)["loss"].backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for most_rows in (math.inf, 8):  # the head's at once, or a draw at a time
        model.most_rows = most_rows
        model.zero_grad()
        for part in range(3):
            model(rows.batch(np.arange(4), rows.epoch(1), part, 3), noise, LSD.DISTILL_WEIGHT)["loss"].backward()
        for name, p in model.named_parameters():
            scale = expected[name].abs().max().clamp(min=1e-12)
            torch.testing.assert_close(p.grad / scale, expected[name] / scale, rtol=1e-5, atol=1e-5)


# What `accelerate launch` runs for several GPUs; it has no such mode for CPUs without MPI.
ON_TWO = "-m torch.distributed.run --standalone --nproc_per_node 2"
ON_CPUS = {"ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"}


def test_two_processes_equal_one_equal_accumulation(cache, tmp_path):
    """Three steps of four utterances: at once, in two parts, on two processes; the epoch's last batch is a short
    one."""
    line = f"train.py {RECIPE} --data {cache} --max-steps 3 {MUTE}"
    ways = {"whole": "--batch-size 4", "accumulated": "--batch-size 2 --grad-accum 2", "processes": "--batch-size 2"}
    results = {name: run(f"{line} {ways[name]} --out {tmp_path / name}") for name in ("whole", "accumulated")}
    results["processes"] = ended(start(f"{ON_TWO} {line} {ways['processes']} --out {tmp_path}/processes", env=ON_CPUS))
    for result in results.values():
        assert result.returncode == 0, result.stderr[-2000:]
    assert "2 x cpu" in results["processes"].stdout
    logs = {n: [r for r in read_jsonl(tmp_path / n / "progress.jsonl") if r["kind"] == "train"] for n in ways}
    weights = {n: load_file(tmp_path / n / "checkpoints" / "step_000003" / "model.safetensors") for n in ways}
    for name in ("accumulated", "processes"):
        for a, b in zip(logs["whole"], logs[name], strict=True):
            for key in ("loss", "flow_error", "eos", "grad_norm"):
                assert a[key] == pytest.approx(b[key], rel=1e-5), (name, key)
        for key, value in weights["whole"].items():
            torch.testing.assert_close(
                weights[name][key], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name, k=key: f"{n} {k}: {m}"
            )
    # A run goes on on another machine if a step stays the same.
    line = f"train.py {RECIPE} --data {cache} --out {tmp_path}/processes {MUTE}"
    result = run(f"{line} --max-steps 4 --batch-size 1 --grad-accum 4")
    assert result.returncode == 0 and "continuing at step 3" in result.stdout, result.stderr
    fails(run(f"{line} --max-steps 3 --batch-size 3"), "effective_batch: 4 -> 3")


def test_two_processes_stop_on_a_signal_and_continue_exactly(cache, tmp_path):
    """SIGTERM in the middle of an epoch, to the launcher; the rest of the steps as if nothing had happened."""
    line = f"{ON_TWO} train.py {RECIPE} --data {cache} --batch-size 1 --eval-every 0 --epochs 20 --max-steps 40"
    line += f" --optimizer muon {MUTE} --out"
    for wanted in (4, 11, 19, 28):  # until it stops inside an epoch of three steps
        process = start(line, tmp_path / "stopped", env=ON_CPUS, stderr=subprocess.DEVNULL)
        for printed in process.stdout:
            if printed.startswith(f"step {wanted}/"):
                process.send_signal(signal.SIGTERM)
                break
        ended(process)
        step = max(int(p.name[5:]) for p in (tmp_path / "stopped" / "checkpoints").glob("step_*"))
        if step % 3:
            break
    assert 4 <= step < 40 and step % 3
    for out in ("stopped", "whole"):
        result = ended(start(line, tmp_path / out, env=ON_CPUS))
        assert result.returncode == 0, result.stderr
    assert_same_weights(*(tmp_path / out / "checkpoints" / "step_000040" for out in ("stopped", "whole")))


def test_kill_during_a_save_leaves_a_run_that_continues(finished_run, cache, tmp_path):
    """SIGKILL at the worst moments: a checkpoint half written, and one whole but not yet pruned after."""
    shutil.copytree(finished_run, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "bundle")
    checkpoints = tmp_path / "r" / "checkpoints"
    half = checkpoints / ".step_000005.tmp"
    shutil.copytree(checkpoints / "step_000004", half)
    (half / "optimizers.pt").write_bytes((half / "optimizers.pt").read_bytes()[:100])
    (half / "state.json").unlink()
    line = f"train.py {RECIPE} --data {cache} --out {tmp_path / 'r'} --eval-every 1 --epochs 100000 {MUTE}"
    for seed in range(3):
        seen = len(read_jsonl(tmp_path / "r" / "progress.jsonl"))
        process = fork(f"{line} --max-steps 100000")
        while len(read_jsonl(tmp_path / "r" / "progress.jsonl")) < seen + 3:
            assert process.is_alive()
            time.sleep(0.01)
        while process.is_alive() and not list(checkpoints.glob(".step_*.tmp")):
            time.sleep(0.0005)
        time.sleep(0.002 * seed)
        process.kill()
        process.join()
    step = max(int(p.name[5:]) for p in checkpoints.glob("step_*"))
    result = run(f"{line} --max-steps {step + 1}")
    assert result.returncode == 0 and f"continuing at step {step}" in result.stdout, result.stderr
    assert not list(checkpoints.glob(".step_*.tmp"))


def test_a_fresh_tokenizer_trains_exports_and_continues(finished_run, cache, tmp_path, monkeypatch):
    """It must end in a bundle which stock tools load."""
    line = f"train.py {RECIPE} --init base --base {finished_run}/bundle/arabic.yaml --data {cache} --sample-every 0"
    for steps in (1, 2):
        result = run(f"{line} --tokenizer fresh:120 --out {tmp_path / 'fresh'} --max-steps {steps}")
        assert result.returncode == 0, result.stderr
    monkeypatch.chdir(tmp_path / "fresh" / "bundle")
    model = TTSModel.load_model(config="arabic.yaml")
    assert model.flow_lm.conditioner.embed.weight.shape[0] <= 121


def test_latents_encoded_at_each_use_are_the_cached_ones(cache):
    """What the bench measures against the cache does the same work."""
    stored = np.load(cache / "latents.npy")
    rows = read_jsonl(cache / "manifest.jsonl")[:2]
    first, count = np.array([rows[0]["first_frame"], rows[1]["first_frame"] + 5]), np.array([rows[0]["num_frames"], 12])
    found = LiveLatents(cache / "latents.npy", torch.device("cpu")).read(first, count)
    expected = np.concatenate([stored[f : f + n] for f, n in zip(first, count)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def many(number: int) -> Utterances:
    """Utterances of lengths like ClArTTS's, as far as their order needs them."""
    rng = np.random.default_rng(0)
    sec = np.clip(rng.gamma(6, 0.72, number), 1.79, 12.8)  # 9,500: 11.5 h between ClArTTS's shortest and longest
    rows = object.__new__(Utterances)
    rows.draws, rows.frames = Draws(), np.ceil(sec * 12.5).astype(int)
    # 17 characters a second, 2.85 tokens a word
    rows.token_start = np.cumsum([0, *np.round(sec * 17 / 5.5 * 2.85).astype(int)])
    rows.epoch = lambda n: Epoch(
        n,
        np.ones(number, bool),
        None,
        np.where(rng.random(number) < 0.5, 0, np.minimum(125, rng.permutation(rows.frames))),
    )
    return rows


def test_rows_of_a_batch_are_of_like_length():
    """Padding under 5 % of positions on lengths like ClArTTS's, whatever the batch; every row once an epoch."""
    rows = many(9500)
    epoch, other = rows.epoch(1), rows.epoch(2)
    lengths = rows.lengths(epoch) + 2
    for size in (8, 16, 64):
        batches = rows.order(epoch, size)
        assert (
            sorted(np.concatenate(batches)) == list(range(9500))
            and [len(b) for b in batches].count(size) == 9500 // size
        )
        again = np.concatenate(rows.order(epoch, size))
        assert (again == np.concatenate(batches)).all() and (again != np.concatenate(rows.order(other, size))).any()
        padded = sum(len(b) * lengths[b].max() for b in batches)
        assert 1 - lengths.sum() / padded < 0.05


def test_max_hours_leaves_time_to_close(cache, tmp_path):
    """The run ends, exported, about when it was told to, and the same command finds nothing left to do."""
    line = f"train.py {RECIPE} --data {cache} --out {tmp_path / 'r'} --epochs 100000 --eval-every 5 --max-hours 0.003"
    result = run(line)
    assert result.returncode == 0 and "bundle: " in result.stdout, result.stderr
    last = read_jsonl(tmp_path / "r" / "progress.jsonl")[-1]
    assert last["step"] > 5 and last["hours"] < 0.0035
    result = run(line)
    assert result.returncode == 0 and "nothing to do" in result.stdout, result.stderr


def test_subset_trains_on_what_it_evaluates(cache, tmp_path):
    flags = "--subset 2 --max-steps 30 --eval-every 30 --sample-every 0 --lr 3e-3"
    result = run(f"train.py {RECIPE} {flags} --data {cache} --out {tmp_path / 'r'}")
    assert result.returncode == 0 and "2 utterances" in result.stdout, result.stderr
    scores = [r["valid_flow_error"] for r in read_jsonl(tmp_path / "r" / "progress.jsonl") if r["kind"] == "eval"]
    assert scores[-1] < 0.9 * scores[0]


def test_patience_stops_and_keeps_the_best(cache, tmp_path):
    """With no learning rate to speak of, later scores are not better than the first."""
    flags = f"--patience 2 --eval-every 1 --max-steps 50 --lr 1e-9 {MUTE}"
    result = run(f"train.py {RECIPE} {flags} --data {cache} --out {tmp_path / 'r'}")
    assert result.returncode == 0 and "no better than step 0 for 2 evaluations" in result.stdout, result.stderr
    assert json.loads((tmp_path / "r" / "bundle" / "bundle.json").read_text())["checkpoint"] == "step_000000"


def test_wandb_offline_needs_no_login(cache, tmp_path):
    line = f"train.py {RECIPE} --data {cache} --out {tmp_path / 'r'} --max-steps 2 --wandb test {MUTE}"
    result = ended(start(line, env={"HOME": f"{tmp_path}", "WANDB_API_KEY": ""}))
    assert result.returncode == 0 and "offline" in result.stdout, result.stderr[-2000:]
    assert list((tmp_path / "r" / "wandb").glob("offline-run-*"))


def test_adaptation_refuses(cache, finished_run, tmp_path):
    line = f"train.py --data {cache} --out {tmp_path / 'r'}"
    for tune in ("lora", "lora:0", "last:x", "everything"):
        fails(run(f"{line} --tune {tune}"), f"--tune {tune}", "last:N")
    fails(run(f"{line} --base {finished_run}/bundle/arabic.yaml --tune last:9"), "has 2 layers")
    fails(run(f"{line} --mark-dropout 1.5"), "--mark-dropout")
    assert not (tmp_path / "r").exists()
