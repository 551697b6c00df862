"""The objective against an independent float64 computation, rows against single rows, and what the loaders refuse."""

import copy
import math
import unicodedata
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from pocket_tts.models.text_chunking import split_into_best_sentences
from pocket_tts.modules.text_conditioner import JsonTokenizer
from safetensors.torch import load_file

from pocket_arabic.adapt import set_trainable
from pocket_arabic.base import (
    audit,
    build_flow_lm,
    encoder_hash,
    fresh_tokenizer,
    load_config,
    load_mimi,
    load_tokenizer,
    load_weights,
    pieces,
    student_of,
    use_tokenizer,
)
from pocket_arabic.model import LSD, Student, TrainableTTS, backbone
from pocket_arabic.rows import (
    NOISE,
    Batch,
    Draws,
    Latents,
    Utterances,
    draw_noise,
    draw_text,
    encode_all,
)
from pocket_arabic.run import UserError
from pocket_arabic.text import FROM_MODEL, deromanise


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12))


def weighting64(lsd: LSD, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The weighting net written out: three SiLU layers of 32 and a linear one."""
    h = torch.cat([s, t], -1)
    layers = [m for m in lsd.weighting if isinstance(m, torch.nn.Linear)]
    for layer in layers[:-1]:
        h = h @ layer.weight.T + layer.bias
        h = h / (1 + torch.exp(-h))
    return (h @ layers[-1].weight.T + layers[-1].bias)[:, 0]


@pytest.fixture
def problem(flow_lm):
    torch.manual_seed(2)
    lsd = LSD()
    # zero at the start of training, where it would test nothing
    torch.nn.init.normal_(lsd.weighting[-1].weight, std=0.3)
    z, x, e = torch.randn(24, 32), torch.randn(24, 32), torch.randn(24, 32)
    s, t = torch.sigmoid(torch.randn(24, 2)).sort(-1)[0].split(1, -1)
    return flow_lm.flow_net, lsd, z, x, e, s, t


def gradients(loss, *modules_and_tensors):
    leaves = [p for m in modules_and_tensors for p in (m.parameters() if isinstance(m, torch.nn.Module) else [m])]
    return torch.autograd.grad(loss, leaves, allow_unused=True)


def assert_same(ours, reference):
    for a, b in zip(ours, reference, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert relative(a, b) < 1e-4


def test_diagonal_term_matches_float64(problem):
    head, lsd, z, x, e, _, t = problem
    z.requires_grad_()
    loss, error = lsd.diagonal(head, z, x, e, t)
    head64, lsd64 = copy.deepcopy(head).double(), copy.deepcopy(lsd).double()
    z64, x64, e64, t64 = (v.detach().double().requires_grad_(v is z) for v in (z, x, e, t))
    error64 = ((head64(z64, t64, t64, t64 * x64 + (1 - t64) * e64) - (x64 - e64)) ** 2).sum(-1)
    w = weighting64(lsd64, t64, t64)
    loss64 = error64 * torch.exp(w) / 32 - w
    assert relative(error, error64) < 1e-4 and relative(loss, loss64) < 1e-4
    assert_same(gradients(loss.mean(), head, lsd, z), gradients(loss64.mean(), head64, lsd64, z64))


def test_distillation_term_matches_float64_with_finite_differences(problem):
    """du/dt by central differences instead of jvp, the frozen target by a copied network instead of functional_call."""
    head, lsd, z, x, e, s, t = problem
    z.requires_grad_()
    loss, error = lsd.distillation(head, z, x, e, s, t)
    head64, lsd64 = copy.deepcopy(head).double(), copy.deepcopy(lsd).double()
    frozen = copy.deepcopy(head64).requires_grad_(False)
    z64, x64, e64, s64, t64 = (v.detach().double().requires_grad_(v is z) for v in (z, x, e, s, t))
    h = 1e-5
    x_s = s64 * x64 + (1 - s64) * e64
    u = head64(z64, s64, t64, x_s)
    du_dt = (head64(z64, s64, t64 + h, x_s) - head64(z64, s64, t64 - h, x_s)) / (2 * h)
    end = x_s + (t64 - s64) * u
    error64 = ((u + (t64 - s64) * du_dt - frozen(z64.detach(), t64, t64, end)) ** 2).sum(-1)
    w = weighting64(lsd64, s64, t64)
    loss64 = error64 * torch.exp(w) / 32 - w
    assert relative(error, error64) < 1e-4 and relative(loss, loss64) < 1e-4
    assert_same(gradients(loss.mean(), head, lsd, z), gradients(loss64.mean(), head64, lsd64, z64))


def test_times_follow_the_logit_normal():
    """Median of t is sigmoid(0.4), and s is the smaller of two draws."""
    t = LSD().times(torch.randn(20001, 1, generator=torch.Generator().manual_seed(0)))
    assert abs(t.median().item() - 1 / (1 + math.exp(-0.4))) < 0.01
    pair = LSD().times(torch.randn(1000, 2))
    assert (pair[:, 0] <= pair[:, 1]).all()


CPU = torch.device("cpu")


def make_rows(
    lengths: list[tuple[int, int]],
    draws: Draws | None = None,
    prompts: tuple[int, int] = (20, 60),
) -> Utterances:
    """Utterances of (frames, tokens) of one speaker with random latents and texts of a token a letter and one before
    the word; in train as many more to be prompted with."""
    rng = np.random.default_rng(0)
    manifest, first = [], 0
    everyone = [("valid", *length) for length in lengths] + [("train", int(rng.integers(*prompts)), 5) for _ in lengths]
    for number, (split, frames, tokens) in enumerate(everyone):
        text = "".join(rng.choice(list("AbtvjHxd*rzs$SDTZEgfqklmnhwyauio~"), tokens - 1))
        row = {
            "id": str(number),
            "split": split,
            "speaker": "one",
            "text_model": text,
            "num_frames": frames,
            "first_frame": first,
        }
        manifest.append(row | {"speech_end_sec": frames / 12.5})
        first += frames
    latents = object.__new__(Latents)
    latents.table, latents.width = torch.from_numpy(rng.standard_normal((first, 32), dtype=np.float32)), 32
    split = lambda name: [row for row in manifest if row["split"] == name]  # noqa: E731
    cache = SimpleNamespace(split=split, info={"options": {"head_sec": 0.0, "trim": True}}, folder=None)
    tokenizer = JsonTokenizer(96, str(ROOT / "demo" / "tokenizer.json"))
    return Utterances(cache, "valid", tokenizer, 12.5, draws or Draws(), latents)


def whole_batch(utterances: Utterances, number: int = 1, **options) -> tuple[Batch, torch.Tensor]:
    """All of them as one batch of epoch `number`, and its noise."""
    batch = utterances.batch(np.arange(len(utterances)), utterances.epoch(number), **options)
    return batch, draw_noise(utterances.draws, NOISE, 0, int(utterances.frames.sum()), True, CPU)


TWO = Draws(per_frame=2, distill_per_frame=2)


def test_padded_batch_equals_single_rows(flow_lm):
    """Every row of a ragged batch, with and without text and voice, gives what it gives alone, and the parts of a batch
    add up to it: uneven ones, one that has no row, and one rounded up with empty rows and frames, as on a GPU."""
    rows = make_rows([(9, 5), (31, 20), (17, 3), (12, 8)], replace(TWO, text_dropout=0.5, voice_dropout=0.5, seed=17))
    model, epoch, every = TrainableTTS(flow_lm, TWO), rows.epoch(1), np.arange(4)
    assert (
        not epoch.keep_text.all()
        and epoch.keep_text.any()
        and (epoch.prompt_frames == 0).any()
        and epoch.prompt_frames.any()
    )
    batch, noise = whole_batch(rows)
    expected = model(batch, noise, 0.25)
    z = backbone(model.flow_lm, batch).flatten(0, 1)[batch.target[:, 0]].split(rows.frames.tolist())
    for row in every:
        alone = rows.batch(every, epoch, row, 4)
        single = backbone(model.flow_lm, alone).flatten(0, 1)[alone.target[:, 0]]
        torch.testing.assert_close(single, z[row], rtol=1e-5, atol=1e-5)
    for parts, options in (
        (4, {}),
        (3, {}),
        (5, {}),
        (1, {"size": 6, "bits": 4}),
        (2, {"size": 3, "bits": 3}),
        (1, {"most": 8}),
    ):
        model.most_rows = options.pop("most", math.inf)  # a draw at a time
        found = [model(rows.batch(every, epoch, part, parts, **options), noise, 0.25) for part in range(parts)]
        for name, value in expected.items():
            torch.testing.assert_close(sum(f[name] for f in found), value, rtol=1e-5, atol=1e-5)


def test_latents_beyond_the_limit_are_read_from_the_file(flow_lm, tmp_path):
    """A corpus too large for the device: the same batch, its frames read for it."""
    rows = make_rows([(9, 5), (31, 20), (17, 3)], TWO)
    batch, noise = whole_batch(rows)
    np.save(tmp_path / "latents.npy", rows.latents.table.numpy())
    model, expected = TrainableTTS(flow_lm, TWO), TrainableTTS(flow_lm, TWO)(batch, noise, 0.25)
    for limit, options in ((0, {}), (0, {"bits": 4, "size": 4}), (10**9, {})):
        rows.latents = Latents(tmp_path / "latents.npy", CPU, limit)
        assert (rows.latents.table is None) == (limit == 0)
        torch.testing.assert_close(
            model(whole_batch(rows, **options)[0], noise, 0.25)["loss"], expected["loss"], rtol=1e-5, atol=1e-6
        )


def test_every_row_has_its_eos_target(flow_lm):
    """Upstream labels the first invalid position, and the longest row of a batch has none: it never learns to end.
    Here each row has one position more than frames; a bias that says "end" only there must pay on all others."""
    model = TrainableTTS(flow_lm, TWO)
    with torch.no_grad():
        flow_lm.out_eos.weight.zero_()
        flow_lm.out_eos.bias.fill_(2.0)
    expected = (2 * math.log1p(math.exp(-2.0)) + 40 * math.log1p(math.exp(2.0))) / 42
    for options in ({}, {"size": 5, "bits": 4}):
        assert model(*whole_batch(make_rows([(9, 5), (31, 20)], TWO), **options), 0.0)["eos"].item() == pytest.approx(
            expected, rel=1e-5
        )


def test_training_positions_are_those_of_inference(flow_lm):
    """The stateless training row equals the wheel's streaming path: prompt, then text, then frames one by one."""
    from pocket_tts.models.tts_model import stamp_state_names
    from pocket_tts.modules.stateful_module import increment_steps, init_states

    rows = make_rows([(6, 7)])
    batch, epoch = whole_batch(rows)[0], rows.epoch(1)
    holder = torch.nn.Module()
    holder.flow_lm, holder.mimi = flow_lm, torch.nn.Module()
    stamp_state_names(holder)
    expected = backbone(flow_lm, batch)[0][-7:]
    state = init_states(flow_lm, 1, 200)

    def step(embedded: torch.Tensor) -> torch.Tensor:
        out = flow_lm.out_norm(flow_lm.transformer(embedded, state))
        increment_steps(flow_lm, state, embedded.shape[1])
        return out[0, -1]

    def frames(first: int, number: int) -> torch.Tensor:
        return rows.latents.table[first : first + number]

    prompt, latents = frames(epoch.prompt_first[0], epoch.prompt_frames[0]), frames(rows.first[0], 6)
    assert len(prompt) >= 20
    with torch.no_grad():
        step(torch.cat([flow_lm.bos_before_voice, (prompt @ flow_lm.speaker_proj_weight.T)[None]], 1))
        step(flow_lm.conditioner(torch.from_numpy(rows.tokens)[None]))
        for i, latent in enumerate([flow_lm.bos_emb, *((latents - flow_lm.emb_mean) / flow_lm.emb_std)]):
            torch.testing.assert_close(
                step(flow_lm.input_linear(latent)[None, None]), expected[i], rtol=1e-4, atol=1e-5
            )


def test_rows_are_pure_functions_of_their_seed():
    draws = Draws(text_dropout=0.3, voice_dropout=0.3, mark_dropout=0.5, nfc_share=0.5)
    a, b, other = (make_rows([(9, 5), (31, 20), (17, 3), (12, 8)] * 4, replace(draws, seed=seed)) for seed in (0, 0, 1))
    batch = whole_batch(a)[0]
    assert all(torch.equal(v, whole_batch(b)[0].tensors()[n]) for n, v in batch.tensors().items())
    assert batch.shapes() != whole_batch(other)[0].shapes() and batch.shapes() != whole_batch(a, 2)[0].shapes()
    noise = [
        draw_noise(d, NOISE, step, 20, distil, CPU)
        for d, step, distil in ((draws, 5, True), (draws, 5, True), (draws, 6, True), (other.draws, 5, True))
    ]
    assert (
        torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[3])
    )


def test_shares_and_prompts_of_an_epoch():
    """Text and voice go as often as asked; prompts are another utterance's own frames, 2.5 to 10 s, three in ten
    cropped and, in training, three in ten shorter by up to 0.5 s at one end; never the target's, whichever place it has
    among its speaker's."""
    rows = make_rows([(9, 5)] * 2000, Draws(text_dropout=0.2, voice_dropout=0.5), prompts=(40, 200))
    epoch = rows.epoch(1)
    assert abs(epoch.keep_text.mean() - 0.8) < 0.03 and abs((epoch.prompt_frames > 0).mean() - 0.5) < 0.03
    plain = rows.epoch(0)
    assert plain.keep_text.all() and (plain.prompt_frames >= 31).all() and (plain.prompt_frames <= 125).all()
    source = np.searchsorted(rows.pool_first, plain.prompt_first, "right") - 1
    whole = rows.pool_frames[source]
    assert (plain.prompt_first + plain.prompt_frames <= rows.pool_first[source] + whole).all()
    assert abs((plain.prompt_frames < whole).mean() - 0.3) < 0.04
    first, size = epoch.prompt_first[epoch.prompt_frames > 0], epoch.prompt_frames[epoch.prompt_frames > 0]
    source = np.searchsorted(rows.pool_first, first, "right") - 1
    before, after = first - rows.pool_first[source], rows.pool_first[source] + rows.pool_frames[source] - first - size
    assert (before >= 0).all() and (after >= 0).all()
    at_an_end = (np.minimum(before, after) == 0) & (np.maximum(before, after) > 0) & (np.maximum(before, after) <= 6)
    # of those not cropped at random, 6 in 7 of which lose a frame or more
    assert abs(at_an_end.mean() - 0.7 * 0.26) < 0.04
    rows.own = np.arange(len(rows)) % len(rows.pool_first)  # as if they were the training utterances
    source = np.searchsorted(rows.pool_first, rows.epoch(0).prompt_first, "right") - 1
    assert (source != rows.own).all() and len(set(source)) > 1000 and {source.min(), source.max()} == {0, 1999}


def test_zero_encoder_is_refused(tiny_base):
    """The open weights have an encoder of zeros: training on them "works" and learns silence; a user lost 47,000
    steps."""
    config = load_config(str(tiny_base))
    weights = {
        k: torch.zeros_like(v) if "encoder" in k and "decoder" not in k else v for k, v in load_weights(config).items()
    }
    with pytest.raises(UserError, match="hf auth login"):
        load_mimi(config, weights)


def test_encoder_hash_sees_the_encoder_only(tiny_base):
    config = load_config(str(tiny_base))
    weights = load_file(config.mimi.weights_path)
    before = encoder_hash(load_mimi(config, weights))
    assert (
        encoder_hash(
            load_mimi(
                config,
                weights | {"mimi.quantizer.output_proj.weight": weights["mimi.quantizer.output_proj.weight"] + 1},
            )
        )
        == before
    )
    assert (
        encoder_hash(
            load_mimi(
                config, weights | {"mimi.downsample.conv.conv.weight": weights["mimi.downsample.conv.conv.weight"] + 1}
            )
        )
        != before
    )


def test_whole_loss_has_the_gradient_of_its_finite_differences(flow_lm, monkeypatch):
    """In float64, along random directions through all parameters at once: rows with and without text and voice, a mask
    of what is seen, the head, EOS, both terms. The distillation target's network is held still, as the objective wants
    it."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the wheel turns positions in fp32, always
    model = TrainableTTS(flow_lm, TWO).double()
    torch.nn.init.normal_(model.lsd.weighting[-1].weight, std=0.3)
    rows = make_rows([(9, 5), (14, 8), (11, 3)], replace(TWO, text_dropout=0.4, voice_dropout=0.4, seed=19))
    assert set(rows.epoch(1).keep_text) == {True, False} and set(rows.epoch(1).prompt_frames > 0) == {True, False}
    batch, noise = whole_batch(rows)
    length = batch.kind.shape[1]
    batch.seen = (torch.rand(3, length, length) < 0.7) | torch.eye(length, dtype=torch.bool)
    doubled = {name: t.double() for name, t in batch.tensors().items() if t.is_floating_point()}
    batch, noise = replace(batch, **doubled), noise.double()
    start = copy.deepcopy(model).requires_grad_(False)
    still = backbone(start.flow_lm, batch).flatten(0, 1)[batch.target[:, 0]].repeat(2, 1)

    def distillation(head, z, x, e, s, t):
        """As LSD's, but with the target's network and condition where the differences start from, and without
        autograd."""
        x_s, h = s * x + (1 - s) * e, 1e-5
        u, du_dt = head(z, s, t, x_s), (head(z, s, t + h, x_s) - head(z, s, t - h, x_s)) / (2 * h)
        error = (u + (t - s) * du_dt - start.flow_lm.flow_net(still, t, t, x_s + (t - s) * u)).square().sum(-1)
        return model.lsd.weighted(error, s, t, x.shape[-1]), error

    model(batch, noise, 1.0)["loss"].backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradient = [p.grad.clone() for p in parameters]
    model.lsd.distillation = distillation
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        losses = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                for p, d in zip(parameters, direction):
                    p += step * d
                losses.append(model(batch, noise, 1.0)["loss"])
            for p, d in zip(parameters, direction):
                p += 1e-5 * d
        slope = (losses[0] - losses[1]) / 2e-5
        torch.testing.assert_close(sum((g * d).sum() for g, d in zip(gradient, direction)), slope, rtol=1e-5, atol=1e-8)


def z64(lm: torch.nn.Module, rows: Utterances, row: int, prompt: torch.Tensor | None) -> torch.Tensor:
    """[T + 1, D] of one utterance by the wheel's stateless path in float64: with its text and a prompt, or with
    neither."""
    parts = [lm.bos_before_voice[0]]
    if prompt is not None:
        parts += [
            prompt @ lm.speaker_proj_weight.T,
            lm.conditioner.embed(torch.from_numpy(rows.row_tokens(rows.epoch(1), row))),
        ]
    latents = (rows.latents.table[rows.first[row] :][: rows.frames[row]].double() - lm.emb_mean) / lm.emb_std
    x = torch.cat([*parts, lm.input_linear(torch.cat([lm.bos_emb[None], latents]))])
    return lm.out_norm(lm.transformer(x[None], None))[0, -len(latents) - 1 :]


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_student_regresses_on_its_teachers_guided_output(flow_lm, weight):
    """Loss and gradients against float64, row by row: 2 |z - (z_null + w (z_T - z_null))|^2, the mean over dimensions
    and over frames and ends; the parts of a batch add up to it, rounded up or not; head and teacher have no
    gradient."""
    rows = make_rows([(9, 5), (31, 20), (17, 3)], Draws(nfc_share=0.5, per_frame=0, distill_per_frame=0))
    rows.null = weight != 1
    teacher = copy.deepcopy(flow_lm)
    with torch.no_grad():
        for p in (*teacher.transformer.parameters(), teacher.conditioner.embed.weight):
            p.add_(torch.randn_like(p) * 0.1)
    set_trainable(flow_lm, "full", True)
    student = Student(flow_lm, teacher.requires_grad_(False), weight)
    batch, noise = whole_batch(rows)
    assert noise.numel() == 0
    loss = student(batch, noise, 0.0)["loss"]
    names, parameters = zip(*((n, p) for n, p in flow_lm.named_parameters() if p.requires_grad))
    assert not any(n.startswith(("flow_net.", "out_eos.")) for n in names)
    found = torch.autograd.grad(loss, parameters)

    own, taught, epoch = copy.deepcopy(flow_lm).double(), copy.deepcopy(teacher).double(), rows.epoch(1)
    total = 0.0
    for row in range(3):
        prompt = rows.latents.table[epoch.prompt_first[row] :][: epoch.prompt_frames[row]].double()
        z_null = z64(taught, rows, row, None)
        target = z_null + weight * (z64(taught, rows, row, prompt) - z_null)
        total = total + (z64(own, rows, row, prompt) - target).square().mean(-1).sum()
    reference = 2 * total / (rows.frames.sum() + 3)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    wanted = dict(own.named_parameters())
    for name, gradient, expected in zip(names, found, torch.autograd.grad(reference, [wanted[n] for n in names])):
        assert relative(gradient, expected) < 1e-3, name
    for parts, options in ((3, {}), (2, {"size": 3, "bits": 3}), (5, {})):
        some = [
            student(rows.batch(np.arange(3), epoch, part, parts, **options), noise, 0.0)["loss"]
            for part in range(parts)
        ]
        torch.testing.assert_close(sum(some), loss, rtol=1e-5, atol=1e-6)


def test_a_student_that_is_its_unguided_teacher_has_no_loss(flow_lm):
    rows = make_rows([(9, 5), (31, 20)], Draws(per_frame=0, distill_per_frame=0))
    # two kernels of attention
    assert Student(flow_lm, copy.deepcopy(flow_lm), 1.0)(*whole_batch(rows), 0.0)["loss"].item() < 1e-11


def test_a_shallow_student_has_its_teachers_lowest_and_highest_layers(tiny_base):
    config = load_config(str(tiny_base))
    teacher, shape = config.model_copy(deep=True), config.model_copy(deep=True)
    teacher.flow_lm.transformer.num_layers, shape.flow_lm.transformer.num_layers = 6, 3
    weights = {f"flow_lm.{name}": tensor for name, tensor in build_flow_lm(teacher, None).state_dict().items()}
    found_config, found = student_of(shape, teacher, weights)
    student = build_flow_lm(found_config, found)
    for layer, source in zip(student.transformer.layers, (0, 1, 5)):
        assert torch.equal(layer.linear1.weight, weights[f"flow_lm.transformer.layers.{source}.linear1.weight"])
    with pytest.raises(UserError, match="has 3 layers"):
        student_of(teacher, shape, weights)


def test_bf16_loss_is_the_fp32_loss_within_two_percent(flow_lm):
    model, (batch, noise) = TrainableTTS(flow_lm, TWO), whole_batch(make_rows([(20 + 3 * i, 9) for i in range(8)], TWO))
    exact = model(batch, noise, LSD.DISTILL_WEIGHT)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch, noise, LSD.DISTILL_WEIGHT)
    for name in ("diagonal", "flow_error", "distillation", "distill_error", "eos", "loss"):
        assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.02), name


def test_fresh_tokenizer_means_a_fresh_embedding(tiny_base, tmp_path):
    """Even where shapes match: a row of the old table would stand for another piece."""
    texts = ["*ahaba Alowaladu <ilaY Als~uwqi.", "halo >anota bixayorK?", "qaAla: naEamo, sa>a*ohabu gadFA."] * 4
    fresh_tokenizer(texts, 96, tmp_path / "tokenizer.json")
    config = load_config(str(tiny_base))
    old = torch.randn(config.flow_lm.lookup_table.n_bins + 1, 32) * 0.1
    config, weights = use_tokenizer(
        config, {"flow_lm.conditioner.embed.weight": old}, tmp_path / "tokenizer.json", seed=0
    )
    new = weights["flow_lm.conditioner.embed.weight"]
    assert len(new) == config.flow_lm.lookup_table.n_bins + 1 and new.std().item() == pytest.approx(
        old.std().item(), rel=0.1
    )
    assert not any(torch.equal(a, b) for a, b in zip(old, new))
    tokenizer = load_tokenizer(config)
    assert all(entry["known"] for entry in audit(tokenizer, "".join(c for c in FROM_MODEL if c != " ")).values())
    assert all(tokenizer.decode(tokenizer.encode(t)) == t for t in texts)
    assert any("~" in p and len(p) > 1 for p in pieces(tokenizer, texts[0]))  # marks and letters join
    chunks = split_into_best_sentences(
        tokenizer, "naEamo, naEamo. halo naEamo? naEamo.", 4, False, False, True, False, {}
    )
    assert len(chunks) > 2  # stock tools still find the ends of sentences and clauses


def test_all_texts_are_encoded_as_each_is():
    tokenizer = JsonTokenizer(96, str(ROOT / "demo" / "tokenizer.json"))
    texts = ["halo >anota bixayorK?", "", "qaAla: naEamo."]
    ids, starts = encode_all(tokenizer, texts)
    assert [ids[a:b].tolist() for a, b in pairwise(starts)] == [tokenizer.encode(t) for t in texts]


def test_careless_text():
    """Marks go from as many rows as asked, all of them from half of these; letters never."""
    text = "*ahaba Alowaladu <ilaY Als~uwqi."
    assert draw_text(np.random.default_rng(0), text, 0.0, 0.0, 0.0) == text
    assert draw_text(np.random.default_rng(0), text, 0.0, 1.0, 0.0) == text[:-1]
    drawn = [draw_text(np.random.default_rng(i), text, 0.6, 0.0, 0.0) for i in range(2000)]
    bare = "*hb Alwld <lY Alswq."
    assert {"".join(c for c in d if c not in "aiuo~") for d in drawn} == {bare}
    # A random part of 11 marks is all or none of them in one case of 12 each.
    assert abs(sum(d == bare for d in drawn) / 2000 - (0.3 + 0.3 / 12)) < 0.03
    assert abs(sum(d == text for d in drawn) / 2000 - (0.4 + 0.3 / 12)) < 0.03
    assert unicodedata.normalize("NFC", deromanise(text)) == deromanise(
        draw_text(np.random.default_rng(0), text, 0.0, 0.0, 1.0)
    )
