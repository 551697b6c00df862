"""The objectives, and the FlowLM that trains on them: on speech, or as a student on its teacher's guided output.

Shapes: B rows, L positions, N valid audio frames of the batch (80 ms each), C = 32 latent dimensions, D model width, H
heads, K draws per frame (K' for the distillation term).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from pocket_tts.models.flow_lm import FlowLMModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from pocket_arabic.batch import frequencies
from pocket_arabic.rows import AUDIO_START, PROMPT, TEXT, Batch, Draws

# cuDNN's is left out: its bf16 gradient gave NaN at a large batch (kyutai-labs/pocket-tts training).
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# On a CPU fused attention and its gradient take 1.2 to 1.4 (fp32) or 1.5 to 2.3 times (bf16) as long as plain products;
# without a gradient, in an evaluation or a teacher, they take three quarters of their time.
PLAIN = [SDPBackend.MATH]


class LSD(nn.Module):
    """Lagrangian Self Distillation (arXiv 2505.18825) on one head, as Pocket TTS is trained (CALM, arXiv 2509.06926).

    x: target latent, e: noise, x_t = t x + (1 - t) e. The head u(z, s, t, x_s) is the mean velocity from s to t.
    Diagonal: |u(t, t, x_t) - (x - e)|^2.  Distillation: with X(t) = x_s + (t - s) u(s, t, x_s), |dX/dt - u(t, t, X)|^2.
    Each is weighted by a learned w(s, t): q exp(w) / C - w, the negative log-likelihood of a Gaussian; it can be
    negative.
    """

    DIAGONAL_WEIGHT, DISTILL_WEIGHT = 0.75, 0.25
    TIME_MEAN, TIME_STD = 0.4, 1.0  # t = sigmoid(N(mean, std)): more draws near the data than uniform ones

    def __init__(self) -> None:
        super().__init__()
        hidden = [layer for size in (2, 32, 32) for layer in (nn.Linear(size, 32), nn.SiLU())]
        self.weighting = nn.Sequential(*hidden, nn.Linear(32, 1))
        nn.init.zeros_(self.weighting[-1].weight)
        nn.init.zeros_(self.weighting[-1].bias)

    def times(self, logits: torch.Tensor) -> torch.Tensor:
        """Standard normal draws [..., k] -> times in (0, 1), sorted along k."""
        return torch.sigmoid(logits * self.TIME_STD + self.TIME_MEAN).sort(-1)[0]

    def weighted(self, error: torch.Tensor, s: torch.Tensor, t: torch.Tensor, dims: int) -> torch.Tensor:
        w = self.weighting(torch.cat([s, t], -1)).squeeze(-1).to(error.dtype)
        return error * w.exp() / dims - w

    def diagonal(
        self, head: nn.Module, z: torch.Tensor, x: torch.Tensor, e: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z [M, D], x and e [M, C], t [M, 1] -> (weighted loss [M], squared error [M])."""
        error = (head(z, t, t, t * x + (1 - t) * e).to(x.dtype) - (x - e)).square().sum(-1)
        return self.weighted(error, t, t, x.shape[-1]), error

    def distillation(
        self, head: nn.Module, z: torch.Tensor, x: torch.Tensor, e: torch.Tensor, s: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z [M, D], x and e [M, C], s <= t [M, 1] -> (weighted loss [M], squared error [M]).

        The target u(t, t, X) passes gradient to X but not to its own parameters or z.
        """
        x_s = s * x + (1 - s) * e
        u, du_dt = torch.func.jvp(lambda time: head(z, s, time, x_s), (t,), (torch.ones_like(t),))
        end = x_s + (t - s) * u
        frozen = {name: p.detach() for name, p in head.named_parameters()}
        target = torch.func.functional_call(head, frozen, (z.detach(), t, t, end))
        error = (u + (t - s) * du_dt - target).square().sum(-1)
        return self.weighted(error, s, t, x.shape[-1]), error


def rotation(
    length: int, attention: nn.Module, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [1, L, 1, width / 2] of the rotary embedding's angles."""
    angle = torch.arange(length, device=device, dtype=dtype)[:, None] * frequencies(attention).to(device, dtype)
    return angle.cos()[None, :, None], angle.sin()[None, :, None]


def layer_forward(
    layer: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """One of the wheel's transformer layers on whole rows [B, L, D], causal unless there is a `mask` (additive).

    As the wheel's own stateless path, but angles are computed once for all layers, queries and keys are turned
    together, and without a mask a GPU takes its fastest kernel.
    """
    attention = layer.self_attn
    heads, kv_heads, width = attention.num_heads, attention.num_kv_heads, attention.dim_per_head
    projected = attention.in_proj(layer.norm1(x)).unflatten(-1, (heads + 2 * kv_heads, width))
    real, imaginary = projected[:, :, : heads + kv_heads].unflatten(-1, (-1, 2)).to(cos.dtype).unbind(-1)
    turned = (
        torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1).flatten(-2).to(projected.dtype)
    )
    q, k = turned.transpose(1, 2).split((heads, kv_heads), 1)
    v = projected[:, :, heads + kv_heads :].transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=heads != kv_heads)
    update = attention.out_proj(out.transpose(1, 2).flatten(2))
    x = x.to(update) + layer.layer_scale_1(update)
    update = layer.linear2(F.gelu(layer.linear1(layer.norm2(x)), approximate="tanh"))
    return x.to(update) + layer.layer_scale_2(update)


def causal_mask(length: int, device: torch.device) -> torch.Tensor:
    """[L, L], True where a position may look: at itself and before."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def embed(lm: FlowLMModel, batch: Batch) -> torch.Tensor:
    """What stands at each position [B, L, D]. The prompt enters raw, the frames normalised."""
    kind = batch.kind[..., None]
    latents = batch.latents[batch.index * ((kind == PROMPT) | (kind > AUDIO_START))[..., 0]]
    frames = torch.where(kind == AUDIO_START, lm.bos_emb, (latents - lm.emb_mean) / lm.emb_std)
    audio = lm.input_linear(frames)
    prompt = F.linear(latents, lm.speaker_proj_weight).to(audio.dtype)
    text = lm.conditioner(batch.index * (batch.kind == TEXT)).to(audio.dtype)
    start = lm.bos_before_voice.to(audio.dtype) if lm.insert_bos_before_voice else torch.zeros_like(audio[:1, :1])
    return torch.where(
        kind >= AUDIO_START, audio, torch.where(kind == TEXT, text, torch.where(kind == PROMPT, prompt, start))
    )


def backbone(lm: FlowLMModel, batch: Batch, layer: Callable = layer_forward) -> torch.Tensor:
    """z [B, L, D]; at an audio position it predicts the frame that follows, at the last one that the utterance is over.

    Row: [bos_before_voice | prompt x speaker_proj^T | text | bos_emb, frames 0..T-1], right-padded under a plain causal
    mask, so padding never reaches a valid position; `batch.seen` may narrow it.
    `layer`: `layer_forward`, or that compiled; an evaluation is not worth compiling for.
    """
    z = embed(lm, batch)
    angles = rotation(z.shape[1], lm.transformer.layers[0].self_attn, z.device, batch.size.dtype)
    mask = None
    if batch.seen is not None or z.device.type == "cpu":  # there each layer would build a mask of its own
        seen = causal_mask(z.shape[1], z.device)
        seen = seen if batch.seen is None else seen & batch.seen[:, None]
        mask = torch.zeros((), dtype=z.dtype, device=z.device).masked_fill(~seen, float("-inf"))
    # bf16 products stay bf16: by default PyTorch's plain attention makes fp32 of them, 4 times slower each, 11 % of a
    # step.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(PLAIN if z.device.type == "cpu" and torch.is_grad_enabled() else FUSED):
        forward = layer if torch.is_grad_enabled() else layer_forward
        for block in lm.transformer.layers:
            z = forward(block, z, *angles, mask)
    z = lm.out_norm(z)
    return z if lm.z_proj is None else lm.z_proj(z)


def predicting(lm: FlowLMModel, batch: Batch, layer: Callable = layer_forward) -> torch.Tensor:
    """z [N + B, D] of the positions that predict a frame, then of each row's last one."""
    places = torch.cat([batch.target[:, 0], batch.end_at])
    return backbone(lm, batch, layer).flatten(0, 1).index_select(0, places)


class TrainableTTS(nn.Module):
    """The FlowLM with its training loss; `flow_lm` is what gets exported, `lsd` holds the loss's own weighting net."""

    EOS_WEIGHT = 0.1

    def __init__(
        self,
        flow_lm: FlowLMModel,
        draws: Draws | None = None,
        most_rows: float = math.inf,
    ):
        """`most_rows` of the head are computed at once; of a step that has more, a draw at a time, and again in the
        backward pass."""
        super().__init__()
        self.most_rows = most_rows
        self.flow_lm, self.draws = flow_lm, draws or Draws()
        self.lsd = LSD()
        self.layer: Callable = layer_forward
        self.head: Callable = flow_lm.flow_net.__call__  # a method, not a module: that would be there twice

    def compile_parts(self) -> None:
        """Compile layers and head, once for all shapes: anew for each they took over 200 s on an H100."""
        self.layer = torch.compile(layer_forward, dynamic=True)
        self.head = torch.compile(self.flow_lm.flow_net.forward, dynamic=True)

    def forward(self, batch: Batch, noise: torch.Tensor, distill_weight: float) -> dict[str, torch.Tensor]:
        """The loss of some rows and its parts: means over the frames of the whole step (EOS: over these and each row's
        end), so that the parts of a step, in turn or on several processes, add up to its loss and gradients.

        `noise` as `draw_noise` gives it for the step. `distill_weight` 0 leaves the distillation term out, which saves
        two passes of the head and a jvp.
        """
        lm, lsd, draws = self.flow_lm, self.lsd, self.draws
        z = predicting(lm, batch, self.layer)
        _, frame, of = batch.target.unbind(-1)
        condition, (frames, count) = z[: len(of)], batch.size
        x = (batch.latents[frame] - lm.emb_mean) / lm.emb_std
        going_on, over = lm.out_eos(z).squeeze(-1).to(x.dtype).split((len(of), len(batch.end_at)))
        eos = ((F.softplus(going_on) * batch.valid).sum() + (F.softplus(-over) * batch.end_valid).sum()) / (
            frames + count
        )

        head = self.head if torch.is_grad_enabled() else lm.flow_net
        noise, (k, distill_k), width = noise[of], (draws.per_frame, draws.distill_per_frame), x.shape[-1]
        split = k * (width + 1)

        def means(term: Callable, condition: torch.Tensor, numbers: torch.Tensor, count: int) -> list[torch.Tensor]:
            """A term's weighted loss and squared error over `count` draws a frame, from their `numbers` [N, K (C +
            w)]."""
            numbers = numbers.unflatten(1, (count, -1)).transpose(0, 1)

            def some(condition: torch.Tensor, numbers: torch.Tensor) -> list[torch.Tensor]:
                """Sums over draws [k, N, C + w], each draw's rows one after another."""
                k, flat = len(numbers), numbers.flatten(0, 1)
                values = term(
                    condition.repeat(k, 1), x.repeat(k, 1), flat[:, :width], *lsd.times(flat[:, width:]).split(1, -1)
                )
                return [(value.unflatten(0, (k, -1)) * batch.valid).sum() for value in values]

            if count * len(x) <= self.most_rows:
                sums = some(condition, numbers)
            else:
                again = partial(checkpoint, some, condition, use_reentrant=False, preserve_rng_state=False)
                sums = [sum(each) for each in zip(*map(again, numbers.split(1)))]
            return [value / (count * frames) for value in sums]

        diagonal, flow_error = means(partial(lsd.diagonal, head), condition, noise[:, :split], k)
        parts = {"diagonal": diagonal, "flow_error": flow_error, "eos": eos}
        total = lsd.DIAGONAL_WEIGHT * diagonal + self.EOS_WEIGHT * eos
        if distill_weight:
            # In fp32: a bf16 time derivative is mostly rounding.
            with torch.autocast(z.device.type, enabled=False):
                found = means(
                    partial(lsd.distillation, lm.flow_net), condition.to(x.dtype), noise[:, split:], distill_k
                )
            parts |= dict(zip(("distillation", "distill_error"), found))
            total = total + distill_weight * parts["distillation"]
        return parts | {"loss": total}


class Student(nn.Module):
    """A FlowLM that learns the guided output of its teacher, whose head it has (kyutai-labs/pocket-tts
    training/depth_distill)."""

    Z_WEIGHT = 2.0  # upstream's

    def __init__(self, flow_lm: FlowLMModel, teacher: FlowLMModel, guidance: float):
        super().__init__()
        self.flow_lm, self.guidance = flow_lm, guidance
        self.teachers = (teacher,)  # a tuple hides it: it is neither trained nor averaged nor saved with this module
        self.layer: Callable = layer_forward

    def compile_parts(self) -> None:
        self.layer = torch.compile(layer_forward, dynamic=True)

    def forward(self, batch: Batch, _noise: torch.Tensor, _distill_weight: float) -> dict[str, torch.Tensor]:
        """The mean square of z less the teacher's, over dimensions and the positions of the whole step that predict a
        frame or an end; the parts of a step add up to its loss and gradients."""
        z, weight = predicting(self.flow_lm, batch, self.layer).float(), torch.cat([batch.valid, batch.end_valid])
        error = ((z - self.target(batch)).square().mean(-1) * weight).sum() / batch.size.sum()
        return {"z_error": error, "loss": self.Z_WEIGHT * error}

    @torch.no_grad()
    def target(self, batch: Batch) -> torch.Tensor:
        """The teacher's guided z [N + B, D]: z_null + w (z - z_null), z_null that of rows with neither text nor
        voice."""
        (teacher,) = self.teachers
        z = predicting(teacher, batch).float()
        return z if batch.null is None else torch.lerp(predicting(teacher, batch.null).float(), z, self.guidance)
