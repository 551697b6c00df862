#!/usr/bin/env python3
"""Inside a base: what it is made of, how it reads text, how its codec and its head work, how fast stock inference is.

Reads   --base: demo, english (gated weights: hf auth login), a CONFIG.yaml, or `random`: the released layout with
        random weights.
Writes  --out, JSON: an entry a base.

    python measure/audit.py                              # demo and random, offline: samples/audit.json
    python measure/audit.py --base english --out audit.json      # the released weights
"""

import tempfile
from pathlib import Path

import torch
from harness import ROOT, stock, write
from huggingface_hub import HfApi
from pocket_tts.models.flow_lm import FlowLMModel
from pocket_tts.models.text_chunking import prepare_text_prompt
from pocket_tts.utils.config import CONFIGS_DIR
from release import random_base
from torch import nn

from pocket_arabic import text as arabic
from pocket_arabic.base import audit, build_flow_lm, load_config, load_mimi, load_tokenizer, load_weights, pieces
from pocket_arabic.run import Parser, command, location

ENGLISH = "Emma had barely seen him, but just enough to feel that the first meeting was over."
VOICE = ROOT / "demo" / "bundle" / "voice.wav"
ARABIC = "سَلَامٌ عَلَيْكُمْ."


def parameters(module: nn.Module) -> dict[str, int]:
    """Parameters by child module, and in all."""
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()}
    total = sum(p.numel() for p in module.parameters())
    own = total - sum(parts.values())
    return {name: count for name, count in (*parts.items(), ("own", own), ("all", total)) if count}


@torch.no_grad()
def is_causal(flow_lm: FlowLMModel) -> bool:
    """Whether what comes from the tenth position on leaves what the transformer makes of those before as it was."""
    x = torch.randn(1, 20, flow_lm.dim, generator=torch.Generator().manual_seed(0))
    one, other = (flow_lm.transformer(given, None) for given in (x, torch.cat([x[:, :10], -x[:, 10:]], 1)))
    same, changed = torch.allclose(one[:, :10], other[:, :10], atol=1e-5), not torch.allclose(one, other, atol=1e-3)
    return same and changed


@torch.no_grad()
def look(base: str, config_file: Path, folder: Path) -> dict:
    config = load_config(base)
    weights, tokenizer = load_weights(config), load_tokenizer(config)
    flow_lm, mimi = build_flow_lm(config, weights), load_mimi(config, weights)
    symbols = audit(tokenizer, "".join(c for c in arabic.FROM_MODEL if c != " "))
    buckwalter = arabic.model_text(ARABIC)[1]
    capitals = {"stock": True, "ours": False}
    prepared = {who: prepare_text_prompt(buckwalter, False, False, True, on, {})[0] for who, on in capitals.items()}
    noise = torch.randn(1, 1, mimi.sample_rate, generator=torch.Generator().manual_seed(0))
    second = mimi.encode_to_latent(0.1 * noise)
    transformer = config.flow_lm.transformer
    return {
        "tensors": len(weights),
        "parameters": {
            "flow_lm": parameters(flow_lm),
            "mimi": parameters(mimi),
            "together": sum(t.numel() for t in weights.values()),
        },
        "transformer": {
            "layers": transformer.num_layers,
            "width": transformer.d_model,
            "heads": transformer.num_heads,
            "causal": is_causal(flow_lm),
        },
        "head": {
            "type": config.flow_lm.flow.type,
            "depth": config.flow_lm.flow.depth,
            "width": config.flow_lm.flow.dim,
            "steps_a_frame": 1,
        },
        "codec": {
            "sample_rate": mimi.sample_rate,
            "frame_rate": mimi.frame_rate,
            "latents_of_a_second": list(second.shape[1:]),
        },
        "tokenizer": {
            "kind": type(tokenizer.tokenizer if hasattr(tokenizer, "tokenizer") else tokenizer).__name__,
            "pieces": config.flow_lm.lookup_table.n_bins,
            "english": len(pieces(tokenizer, ENGLISH)),
            "buckwalter": pieces(tokenizer, buckwalter),
            "arabic_script_unknown": sum(p == "<unk>" for p in pieces(tokenizer, ARABIC)),
            "symbols_unknown": [s for s, entry in symbols.items() if not entry["known"]],
        },
        "stock_text": prepared,
        "stock_times_real_time": round(1 / stock(config_file, ENGLISH, folder / "stock.wav", voice=str(VOICE)), 2),
    }


def gated(repository: str) -> str:
    """Whether the hub asks for terms to be accepted, or why it cannot be asked."""
    try:
        return str(HfApi().model_info(repository).gated)
    except Exception as error:  # no network, a proxy, a renamed repository: the audit goes on
        return f"not asked: {type(error).__name__}"


def config_of(base: str, folder: Path) -> Path:
    """The YAML that stock tools and ours load it by; of `random`, with its weights, in `folder`."""
    if base == "demo":
        return ROOT / "demo" / "base.yaml"
    if base != "random":
        return Path(base) if base.endswith((".yaml", ".yml")) else CONFIGS_DIR / f"{base}.yaml"
    return random_base(folder)


def main() -> None:
    p = Parser(__doc__)
    p.add_argument("--base", nargs="+", default=["demo", "random"])
    p.add_argument("--out", type=location, default=ROOT / "samples" / "audit.json")
    args = p.parse_args()
    found = {"gated": gated("kyutai/pocket-tts")}
    for base in args.base:
        with tempfile.TemporaryDirectory() as name:
            file = config_of(base, Path(name))
            found[base] = look(str(file), file, Path(name))
    write(args.out, found)


if __name__ == "__main__":
    command(main)
