"""The objective against an independent float64 computation, rows against single rows, and what the loaders refuse."""

import copy
import math
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from pocket_tts.models.text_chunking import split_into_best_sentences
from safetensors.torch import load_file

from pocket_arabic.model import (
    LSD,
    TrainableTTS,
    audit,
    draw_prefix,
    draw_row,
    draw_text,
    encoder_hash,
    fresh_tokenizer,
    guided_mask,
    load_config,
    load_mimi,
    load_tokenizer,
    load_weights,
    pieces,
    token_durations,
    use_tokenizer,
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
    torch.nn.init.normal_(lsd.weighting[-1].weight, std=0.3)  # zero at the start of training, where it would test nothing
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


def make_row(seed: int, frames: int, tokens: int, text_dropout: float = 0.0, voice_dropout: float = 0.0):
    rng = np.random.default_rng(seed)
    latents, prompt = rng.standard_normal((frames, 32), dtype=np.float32), rng.standard_normal((60, 32), dtype=np.float32)
    draws = np.random.default_rng([seed, 1])
    prefix = draw_prefix(draws, list(rng.integers(2, 90, tokens)), prompt, 12.5, text_dropout, voice_dropout)
    return draw_row(draws, latents, *prefix, (2, 2))


def test_padded_batch_equals_single_rows(flow_lm):
    """Every row of a ragged batch, with and without text and voice, gives what it gives alone."""
    model = TrainableTTS(flow_lm)
    rows = [make_row(0, 9, 5), make_row(1, 31, 20), make_row(2, 17, 3, text_dropout=1.0), make_row(3, 12, 8, voice_dropout=1.0)]
    assert len(rows[2].tokens) == 0 and len(rows[3].prompt) == 0
    for together, row in zip(model.backbone(rows), rows):
        torch.testing.assert_close(together, model.backbone([row])[0], rtol=1e-5, atol=1e-5)
    frames = sum(len(r.latents) for r in rows)
    batch, singles = model(rows, 0.25), [model([r], 0.25) for r in rows]
    for name in ("diagonal", "distillation", "flow_error"):
        mean = sum(s[name] * len(r.latents) for s, r in zip(singles, rows)) / frames
        torch.testing.assert_close(batch[name], mean, rtol=1e-5, atol=1e-5)
    eos = sum(s["eos"] * (len(r.latents) + 1) for s, r in zip(singles, rows)) / (frames + len(rows))
    torch.testing.assert_close(batch["eos"], eos, rtol=1e-5, atol=1e-6)


def test_every_row_has_its_eos_target(flow_lm):
    """Upstream labels the first invalid position, and the longest row of a batch has none: it never learns to end.
    Here each row has one position more than frames; a bias that says "end" only there must pay on all others."""
    model = TrainableTTS(flow_lm)
    with torch.no_grad():
        flow_lm.out_eos.weight.zero_()
        flow_lm.out_eos.bias.fill_(2.0)
    rows = [make_row(0, 9, 5), make_row(1, 31, 20)]
    expected = (2 * math.log1p(math.exp(-2.0)) + 40 * math.log1p(math.exp(2.0))) / 42
    assert model(rows, 0.0)["eos"].item() == pytest.approx(expected, rel=1e-5)


def test_training_positions_are_those_of_inference(flow_lm):
    """The stateless training row equals the wheel's streaming path: prompt, then text, then frames one by one."""
    from pocket_tts.modules.stateful_module import increment_steps, init_states

    from pocket_arabic.model import stamp_state_names

    model, row = TrainableTTS(flow_lm), make_row(4, 6, 7)
    holder = torch.nn.Module()
    holder.flow_lm, holder.mimi = flow_lm, torch.nn.Module()
    stamp_state_names(holder)
    expected = model.backbone([row])[0]
    state = init_states(flow_lm, 1, 200)

    def step(embedded: torch.Tensor) -> torch.Tensor:
        out = flow_lm.out_norm(flow_lm.transformer(embedded, state))
        increment_steps(flow_lm, state, embedded.shape[1])
        return out[0, -1]

    with torch.no_grad():
        step(torch.cat([flow_lm.bos_before_voice, (row.prompt @ flow_lm.speaker_proj_weight.T)[None]], 1))
        step(flow_lm.conditioner(row.tokens[None]))
        for i, latent in enumerate([flow_lm.bos_emb, *((row.latents - flow_lm.emb_mean) / flow_lm.emb_std)]):
            torch.testing.assert_close(step(flow_lm.input_linear(latent)[None, None]), expected[i], rtol=1e-4, atol=1e-5)


def test_rows_are_pure_functions_of_their_seed():
    a, b, c = make_row(7, 20, 5), make_row(7, 20, 5), make_row(8, 20, 5)
    assert all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("noise", "time_logits", "distill_noise", "prompt", "tokens"))
    assert not torch.equal(a.noise, c.noise)


def test_dropout_shares():
    rows = [make_row(i, 4, 3, 0.2, 0.5) for i in range(600)]
    assert abs(np.mean([len(r.tokens) == 0 for r in rows]) - 0.2) < 0.05
    assert abs(np.mean([len(r.prompt) == 0 for r in rows]) - 0.5) < 0.07


def test_zero_encoder_is_refused(tiny_base):
    """The open weights have an encoder of zeros: training on them "works" and learns silence; a user lost 47,000 steps."""
    config = load_config(str(tiny_base))
    weights = {k: torch.zeros_like(v) if "encoder" in k and "decoder" not in k else v for k, v in load_weights(config).items()}
    with pytest.raises(UserError, match="hf auth login"):
        load_mimi(config, weights)


def test_encoder_hash_sees_the_encoder_only(tiny_base):
    config = load_config(str(tiny_base))
    weights = load_file(config.mimi.weights_path)
    before = encoder_hash(load_mimi(config, weights))
    assert encoder_hash(load_mimi(config, weights | {"mimi.quantizer.output_proj.weight": weights["mimi.quantizer.output_proj.weight"] + 1})) == before
    assert encoder_hash(load_mimi(config, weights | {"mimi.downsample.conv.conv.weight": weights["mimi.downsample.conv.conv.weight"] + 1})) != before


def test_whole_loss_has_the_gradient_of_its_finite_differences(flow_lm, monkeypatch):
    """In float64, along random directions through all parameters at once: rows with and without text and voice, the
    guided mask, the head, EOS, both terms. The distillation target's network is held still, as the objective wants it."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the wheel turns positions in fp32, always
    model = TrainableTTS(flow_lm).double()
    torch.nn.init.normal_(model.lsd.weighting[-1].weight, std=0.3)
    rows = [make_row(0, 9, 5), make_row(1, 14, 20), make_row(2, 7, 3, text_dropout=1.0), make_row(3, 12, 8, voice_dropout=1.0)]
    rows = [replace(r, **{k: v.double() for k, v in vars(r).items() if v.is_floating_point()}) for r in rows]
    rows[0].token_times = torch.stack([torch.arange(5) * 1.8, torch.arange(5) * 1.8 + 1.8], 1).double()
    start = copy.deepcopy(model).requires_grad_(False)
    still = torch.cat([z[:-1] for z in start.backbone(rows, 3.0)]).repeat(2, 1)

    def distillation(head, z, x, e, s, t):
        """As LSD's, but with the target's network and condition where the differences start from, and without autograd."""
        x_s, h = s * x + (1 - s) * e, 1e-5
        u, du_dt = head(z, s, t, x_s), (head(z, s, t + h, x_s) - head(z, s, t - h, x_s)) / (2 * h)
        error = (u + (t - s) * du_dt - start.flow_lm.flow_net(still, t, t, x_s + (t - s) * u)).square().sum(-1)
        return model.lsd.weighted(error, s, t, x.shape[-1]), error

    model(rows, 1.0, window=3.0)["loss"].backward()
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
                losses.append(model(rows, 1.0, window=3.0)["loss"])
            for p, d in zip(parameters, direction):
                p += 1e-5 * d
        slope = (losses[0] - losses[1]) / 2e-5
        torch.testing.assert_close(sum((g * d).sum() for g, d in zip(gradient, direction)), slope, rtol=1e-5, atol=1e-8)


def test_bf16_loss_is_the_fp32_loss_within_two_percent(flow_lm):
    model, rows = TrainableTTS(flow_lm), [make_row(i, 20 + 3 * i, 9) for i in range(8)]
    exact = model(rows, LSD.DISTILL_WEIGHT)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(rows, LSD.DISTILL_WEIGHT)
    for name in ("diagonal", "flow_error", "distillation", "distill_error", "eos", "loss"):
        assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.02), name


def test_fresh_tokenizer_means_a_fresh_embedding(tiny_base, tmp_path):
    """Even where shapes match: a row of the old table would stand for another piece."""
    texts = ["*ahaba Alowaladu <ilaY Als~uwqi.", "halo >anota bixayorK?", "qaAla: naEamo, sa>a*ohabu gadFA."] * 4
    fresh_tokenizer(texts, 96, tmp_path / "tokenizer.json")
    config = load_config(str(tiny_base))
    old = torch.randn(config.flow_lm.lookup_table.n_bins + 1, 32) * 0.1
    config, weights = use_tokenizer(config, {"flow_lm.conditioner.embed.weight": old}, tmp_path / "tokenizer.json", seed=0)
    new = weights["flow_lm.conditioner.embed.weight"]
    assert len(new) == config.flow_lm.lookup_table.n_bins + 1 and new.std().item() == pytest.approx(old.std().item(), rel=0.1)
    assert not any(torch.equal(a, b) for a, b in zip(old, new))
    tokenizer = load_tokenizer(config)
    assert all(entry["known"] for entry in audit(tokenizer, "".join(c for c in FROM_MODEL if c != " ")).values())
    assert all(tokenizer.decode(tokenizer.encode(t)) == t for t in texts)
    assert any("~" in p and len(p) > 1 for p in pieces(tokenizer, texts[0]))  # marks and letters join
    chunks = split_into_best_sentences(tokenizer, "naEamo, naEamo. halo naEamo? naEamo.", 4, False, False, True, False, {})
    assert len(chunks) > 2  # stock tools still find the ends of sentences and clauses


def test_token_durations_are_recovered():
    """Utterances whose lengths are sums of known durations give these durations back."""
    rng = np.random.default_rng(0)
    true = np.array([0.0, 1.5, 0.7, 3.0, 0.0])
    tokens = [list(rng.integers(1, 5, rng.integers(5, 30))) for _ in range(50)]
    frames = [sum(true[t] for t in row) for row in tokens]
    np.testing.assert_allclose(token_durations(tokens, frames, 5), true + 0.02, atol=1e-6)


def test_guided_positions_see_only_the_text_near_them(flow_lm):
    """What a frame predicts depends on the tokens in its window and on no other; an open window is no window."""
    row = make_row(0, 20, 10)
    row.token_times = torch.stack([torch.arange(10) * 2.0, torch.arange(10) * 2.0 + 2], 1)
    mask = guided_mask([row], [71], 71 + 21, 1.5)[0, 0]
    text, audio = slice(61, 71), slice(71, 92)
    assert mask[audio, text][0].nonzero().flatten().tolist() == [0, 1]  # frame 0 lasts to 1; tokens that begin before 2.5
    assert mask[audio, text][10].nonzero().flatten().tolist() == [4, 5, 6]
    assert mask[audio, text][19].nonzero().flatten().tolist() == [8, 9] and mask[audio, text][20].nonzero().flatten().tolist() == [9]
    causal = torch.ones(92, 92, dtype=torch.bool).tril()
    assert torch.equal(mask[:71], causal[:71]) and torch.equal(mask[audio, audio], causal[audio, audio])
    model = TrainableTTS(flow_lm)
    torch.testing.assert_close(model.backbone([row], 1e6)[0], model.backbone([row])[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model.backbone([row], 1.5)[0], model.backbone([row])[0], atol=1e-3)


def test_distillation_can_leave_the_transformer_alone(flow_lm):
    model, rows = TrainableTTS(flow_lm, distill_head_only=True), [make_row(0, 9, 5)]
    grads = []
    for weight in (0.0, 1.0):
        model.zero_grad()
        model(rows, weight)["loss"].backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    same = {n for n in grads[0] if torch.equal(grads[0][n], grads[1][n])}
    assert {n for n in grads[0] if "transformer" in n} <= same and not any("flow_net" in n for n in same)


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
    assert unicodedata.normalize("NFC", deromanise(text)) == deromanise(draw_text(np.random.default_rng(0), text, 0.0, 0.0, 1.0))
