"""What trains (the whole FlowLM, its last layers, low-rank adapters, or the text embedding alone), and by which optimiser."""

import copy
import logging
import re

import torch
from pocket_tts.models.flow_lm import FlowLMModel
from torch import nn

from pocket_arabic.run import UserError

HEAD = ("flow_net.", "out_eos.")
ADAPTED = ["in_proj", "out_proj", "linear1", "linear2"]  # the linear layers of a transformer layer
BETAS = (0.9, 0.95)  # kyutai-labs/pocket-tts training
MUON_SCALE = 2.0  # of the rate on matrices, whose updates Muon scales to the size of AdamW's
CHOICES = "full, last:N (layers), lora:R (rank) or text"


def parse_tune(tune: str) -> tuple[str, int]:
    """`last:2` -> ("last", 2), `full` -> ("full", 0). Raises UserError."""
    match = re.fullmatch(r"(full|text)|(last|lora):([1-9]\d*)", tune)
    if not match:
        raise UserError(f"--tune {tune}: not known; give {CHOICES}")
    return (match[1], 0) if match[1] else (match[2], int(match[3]))


def freezes_head(tune: str, freeze_head: bool | None) -> bool:
    """By default the head (flow_net, out_eos) is frozen with `lora` and always with `text`, and trains otherwise."""
    kind, _ = parse_tune(tune)
    return kind == "text" or (kind == "lora" if freeze_head is None else freeze_head)


def set_trainable(flow_lm: FlowLMModel, tune: str, freeze_head: bool | None, lora_alpha: float | None, lora_dropout: float) -> None:
    """Set `requires_grad` on every parameter; with `lora:R` first put adapters into the transformer's linear layers.

    last:N  the last N layers, text embedding, output norm, head
    lora:R  adapters of rank R (scale alpha / R, alpha 2 R by default), text embedding
    text    the text embedding
    Raises UserError if the model has fewer than N layers.
    """
    kind, number = parse_tune(tune)
    num_layers = len(flow_lm.transformer.layers)
    if kind == "last" and number > num_layers:
        raise UserError(f"--tune {tune}: the base has {num_layers} layers")
    if kind == "lora":
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # moshi brings it, peft imports it; on newer CPUs it asks for a package that nothing here needs
        from peft import LoraConfig, inject_adapter_in_model  # here, because it imports transformers: seconds

        alpha = 2 * number if lora_alpha is None else lora_alpha
        inject_adapter_in_model(LoraConfig(r=number, lora_alpha=alpha, lora_dropout=lora_dropout, target_modules=ADAPTED), flow_lm)
    layers = [f"transformer.layers.{i}." for i in range(num_layers - number, num_layers)]
    chosen = {"full": [""], "text": ["conditioner."], "lora": ["conditioner."], "last": ["conditioner.", "out_norm.", *layers]}[kind]
    frozen = HEAD if freezes_head(tune, freeze_head) else ()
    chosen = tuple(chosen) if frozen else (*chosen, *HEAD)
    for name, parameter in flow_lm.named_parameters():
        parameter.requires_grad_((name.startswith(chosen) and not name.startswith(frozen)) or ".lora_" in name)


def build_optimizers(model: nn.Module, kind: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """AdamW over all that trains; with kind "muon" the hidden matrices of transformer layers and head get Muon instead.

    Muon (Jordan et al. 2024) makes a matrix's update orthogonal: every direction of it is learnt at one speed. Embeddings,
    input and output layers, norms and adapters stay with AdamW. Each group's `scale` times the schedule is its rate.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in trainable if kind == "muon" and p.ndim == 2 and (".layers." in name or ".res_blocks." in name) and ".lora_" not in name]
    rest = [p for _, p in trainable if not any(p is h for h in hidden)]
    adamw = torch.optim.AdamW([{"params": rest, "scale": 1.0}], lr, betas=BETAS, weight_decay=weight_decay)
    if not hidden:
        return [adamw]
    return [adamw, torch.optim.Muon([{"params": hidden, "scale": MUON_SCALE}], lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")]


def merged(flow_lm: FlowLMModel) -> dict[str, torch.Tensor]:
    """The FlowLM's tensors under the names of a release, adapters merged into the layers they sit on."""
    if not any(".lora_" in name for name, _ in flow_lm.named_parameters()):
        return flow_lm.state_dict()
    flow_lm = copy.deepcopy(flow_lm)
    for module in flow_lm.modules():
        if hasattr(module, "lora_A"):
            module.merge()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in flow_lm.state_dict().items() if ".lora_" not in name}
