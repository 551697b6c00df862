"""What trains (the whole FlowLM, its last layers, low-rank adapters, or the text embedding alone), and by which
optimiser."""

import copy
import logging
import math
import re
from dataclasses import dataclass

import torch
from pocket_tts.models.flow_lm import FlowLMModel
from torch import nn

from pocket_arabic.run import UserError, shortened

HEAD = ("flow_net.", "out_eos.")
ADAPTED = ["in_proj", "out_proj", "linear1", "linear2"]  # the linear layers of a transformer layer
BETAS = (0.9, 0.95)  # kyutai-labs/pocket-tts training
MUON_SCALE = 2.0  # of the rate on matrices, whose updates Muon scales to the size of AdamW's
CHOICES = "full, last:N (layers), lora:R (rank) or text"


def parse_tune(tune: str) -> tuple[str, int]:
    """`last:2` -> ("last", 2), `full` -> ("full", 0). Raises UserError."""
    match = re.fullmatch(r"(full|text)|(last|lora):([1-9]\d{0,5})", tune)
    if not match:
        raise UserError(f"--tune {shortened(tune)}: not known; give {CHOICES}")
    return (match[1], 0) if match[1] else (match[2], int(match[3]))


def freezes_head(tune: str, freeze_head: bool | None) -> bool:
    """By default the head (flow_net, out_eos) is frozen with `lora` and always with `text`, and trains otherwise."""
    kind, _ = parse_tune(tune)
    return kind == "text" or (kind == "lora" if freeze_head is None else freeze_head)


def set_trainable(flow_lm: FlowLMModel, tune: str, freeze_head: bool | None = None) -> None:
    """Set `requires_grad` on every parameter; with `lora:R` first put adapters into the transformer's linear layers.

    last:N  the last N layers, text embedding, output norm, head
    lora:R  adapters of rank R (scale 2, alpha being 2 R, and no dropout), text embedding
    text    the text embedding
    Raises UserError if the model has fewer than N layers, or is narrower than R.
    """
    kind, number = parse_tune(tune)
    num_layers = len(flow_lm.transformer.layers)
    if kind == "last" and number > num_layers:
        raise UserError(f"--tune {tune}: the base has {num_layers} layers")
    if kind == "lora" and number > (width := len(flow_lm.out_norm.weight)):
        raise UserError(f"--tune {tune}: the base is {width} wide, and no rank is greater; 8 to 64 are usual")
    if kind == "lora":
        # moshi brings it, peft imports it; on newer CPUs it asks for a package that nothing here needs
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from peft import LoraConfig, inject_adapter_in_model  # here, because it imports transformers: seconds

        inject_adapter_in_model(LoraConfig(r=number, lora_alpha=2 * number, target_modules=ADAPTED), flow_lm)
    layers = [f"transformer.layers.{i}." for i in range(num_layers - number, num_layers)]
    chosen = {
        "full": [""],
        "text": ["conditioner."],
        "lora": ["conditioner."],
        "last": ["conditioner.", "out_norm.", *layers],
    }[kind]
    frozen = HEAD if freezes_head(tune, freeze_head) else ()
    chosen = tuple(chosen) if frozen else (*chosen, *HEAD)
    for name, parameter in flow_lm.named_parameters():
        parameter.requires_grad_((name.startswith(chosen) and not name.startswith(frozen)) or ".lora_" in name)


def parts_table(flow_lm: FlowLMModel) -> str:
    """What trains, by parts of the model."""
    parts: dict[str, list[int]] = {}
    for name, parameter in flow_lm.named_parameters():
        depth = 3 if name.startswith("transformer.layers.") else 1
        part = ".".join(name.split(".")[:depth]) if "." in name else "bos, speaker_proj"
        sizes = parts.setdefault(part, [0, 0])
        sizes[0] += parameter.numel()
        sizes[1] += parameter.numel() * parameter.requires_grad
    parts["all"] = [sum(column) for column in zip(*parts.values())]
    lines = [f"{part:24}{size:14,}{trainable:14,}" for part, (size, trainable) in parts.items()]
    return "\n".join(
        [f"{'module':24}{'parameters':>14}{'trainable':>14}", *lines, "mimi: frozen, encoded in the cache"]
    )


def orthogonalised(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[n, r, c], r <= c -> the same with singular values near 1: five quintic Newton-Schulz iterations (Jordan et al.
    2024).

    U S V^T becomes U p(S) V^T, where p takes all of (0.01, 1) into (0.68, 1.14): not exactly 1, which does not matter
    to training. Where products are truly float32 what is iterated is the factor [r, r] before x, as the next gram
    follows from this one: a quarter of the time for 192 x 3840. For that 16 bits are too few, and so are TF32's, which
    "high" products may have on a GPU: 12 % off, the matrices themselves 0.1 %.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]  # no singular value above 1
    if dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest":
        for _ in range(5):
            gram = torch.bmm(x, x.mT)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x
    gram = torch.bmm(x, x.mT)
    product = factor = polynomial(gram, a, b, c)
    for _ in range(4):
        gram = torch.bmm(factor, torch.bmm(gram, factor))
        factor = polynomial(gram, a, b, c)
        product = torch.bmm(factor, product)
    return torch.bmm(product, x)


def polynomial(gram: torch.Tensor, a: float, b: float, c: float) -> torch.Tensor:
    """a + b gram + c gram^2"""
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` (match_rms_adamw, momentum 0.95, Nesterov) in a precision of choice, matrices of one shape at
    a time.

    torch's iterates in bf16 whatever the hardware. Where a CPU has no bf16 products they fall to a scalar loop: 63 % of
    a step.
    """

    def __init__(self, params: list[dict], lr: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        assert closure is None, "no loss is computed again"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            grads, momentum = [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(momentum, grads, 1 - group["momentum"])
            ahead = torch._foreach_lerp(grads, momentum, group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            shapes: dict[tuple[int, int], list[int]] = {}  # a tall matrix counts as the wide one that it is transposed
            for i, p in enumerate(params):
                shapes.setdefault((min(p.shape), max(p.shape)), []).append(i)
            for (rows, columns), members in shapes.items():
                tall = [params[i].shape[0] > rows for i in members]
                updates = orthogonalised(
                    torch.stack([ahead[i].T if t else ahead[i] for i, t in zip(members, tall)]), self.dtype
                )
                updates = [u.T if t else u for u, t in zip(updates.to(torch.float32).unbind(), tall)]
                torch._foreach_add_([params[i] for i in members], updates, alpha=-group["lr"] * 0.2 * columns**0.5)


@dataclass(frozen=True)
class Schedule:
    """The rate of each update: linear warm-up, then constant, or a cosine down to 0."""

    lr: float
    cosine: bool
    warmup_steps: int
    last_step: int

    def rate(self, step: int, time_share: float) -> float:
        """Of the update that follows `step` updates. A cosine comes down with the steps or, if these are not all there
        is time for, with the time (`time_share`, 0 to 1), so that it is down whichever limit ends the run."""
        rate = self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.cosine:
            done = max(step, time_share * self.last_step) - self.warmup_steps
            rate *= 0.5 * (1 + math.cos(math.pi * max(0.0, done / max(1, self.last_step - self.warmup_steps))))
        return rate


def build_optimizers(
    model: nn.Module, kind: str, lr: float, weight_decay: float, precision: str
) -> list[torch.optim.Optimizer]:
    """AdamW over all that trains; with kind "muon" the hidden matrices of transformer layers and head get Muon instead.

    Muon (Jordan et al. 2024) makes a matrix's update orthogonal: every direction of it is learnt at one speed.
    Embeddings, input and output layers, norms and adapters stay with AdamW. Each group's `scale` times the schedule is
    its rate. `precision`: of the run's products, bf16 or no (fp32), and so of Muon's.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [
        p
        for name, p in trainable
        if kind == "muon" and p.ndim == 2 and (".layers." in name or ".res_blocks." in name) and ".lora_" not in name
    ]
    rest = [p for _, p in trainable if not any(p is h for h in hidden)]
    adamw = torch.optim.AdamW([{"params": rest, "scale": 1.0}], lr, betas=BETAS, weight_decay=weight_decay, fused=True)
    if not hidden:
        return [adamw]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return [adamw, Muon([{"params": hidden, "scale": MUON_SCALE}], lr, weight_decay, dtype)]


def merged(flow_lm: FlowLMModel) -> dict[str, torch.Tensor]:
    """The FlowLM's tensors under the names of a release, adapters merged into the layers they sit on."""
    if not any(".lora_" in name for name, _ in flow_lm.named_parameters()):
        return flow_lm.state_dict()
    flow_lm = copy.deepcopy(flow_lm)
    for module in flow_lm.modules():
        if hasattr(module, "lora_A"):
            module.merge()
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in flow_lm.state_dict().items()
        if ".lora_" not in name
    }
