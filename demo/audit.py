#!/usr/bin/env python3
"""Look inside a base: what it is made of, how it reads text, how its codec and its head work, how fast stock inference is.

Reads   --base: demo, english (gated weights: hf auth login), a CONFIG.yaml, or `random`: the released layout with random weights.
Writes  --out, JSON: an entry a base.

    python demo/audit.py                              # demo and random, offline: samples/audit.json
    python demo/audit.py --base english --out audit.json      # the released weights
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from huggingface_hub import HfApi
from pocket_tts.models.text_chunking import prepare_text_prompt
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from hub import random_release, release_config  # noqa: E402

from pocket_arabic import text as arabic  # noqa: E402
from pocket_arabic.model import Row, TrainableTTS, audit, build_flow_lm, load_config, load_mimi, load_tokenizer, load_weights, pieces  # noqa: E402
from pocket_arabic.run import command, provenance, write_json  # noqa: E402

ENGLISH = "Emma had barely seen him, but just enough to feel that the first meeting was over."
ARABIC = "سَلَامٌ عَلَيْكُمْ."


def parameters(module: nn.Module) -> dict[str, int]:
    """Parameters by child module, and in all."""
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()}
    total = sum(p.numel() for p in module.parameters())
    own = total - sum(parts.values())
    return {name: count for name, count in (*parts.items(), ("own", own), ("all", total)) if count}


@torch.no_grad()
def is_causal(model: TrainableTTS) -> bool:
    """Whether changing the frames from the tenth on leaves what is predicted for the first ten as it was."""
    draw = torch.Generator().manual_seed(0)
    latents, prompt = torch.randn(20, 32, generator=draw), torch.randn(12, 32, generator=draw)
    none, tokens = torch.empty(0), torch.arange(1, 8)
    z = [model.backbone([Row(x, tokens, none, prompt, none, none, none, none)])[0] for x in (latents, torch.cat([latents[:10], -latents[10:]]))]
    # Position t predicts frame t from the frames before it: positions 0 to 10 may not change, those after must.
    return torch.allclose(z[0][:11], z[1][:11], atol=1e-5) and not torch.allclose(z[0][11:], z[1][11:], atol=1e-3)


def stock_speed(config: Path, voice: Path, folder: Path) -> float:
    """Seconds of English speech a second, by the stock command line's own log, one thread an operation."""
    line = [Path(sys.executable).with_name("pocket-tts"), "generate", "--config", config, "--voice", voice, "--text", ENGLISH, "--output-path", folder / "stock.wav"]
    log = subprocess.run(line, capture_output=True, text=True, cwd=config.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}).stderr
    chunks = re.findall(r"Generated: (\d+) ms of audio in (\d+) ms", log)
    if not chunks:
        raise RuntimeError(log)
    return round(sum(int(audio) for audio, _ in chunks) / sum(int(took) for _, took in chunks), 2)


@torch.no_grad()
def look(base: str, config_file: Path, folder: Path) -> dict:
    config = load_config(base)
    weights, tokenizer = load_weights(config), load_tokenizer(config)
    flow_lm, mimi = build_flow_lm(config, weights), load_mimi(config, weights)
    symbols = audit(tokenizer, "".join(c for c in arabic.FROM_MODEL if c != " "))
    buckwalter = arabic.model_text(ARABIC)[1]
    prepared = {name: prepare_text_prompt(buckwalter, False, False, True, capital, {})[0] for name, capital in (("stock", True), ("ours", False))}
    second = mimi.encode_to_latent(torch.randn(1, 1, mimi.sample_rate, generator=torch.Generator().manual_seed(0)) * 0.1)
    transformer = config.flow_lm.transformer
    return {
        "tensors": len(weights),
        "parameters": {"flow_lm": parameters(flow_lm), "mimi": parameters(mimi), "together": sum(t.numel() for t in weights.values())},
        "transformer": {"layers": transformer.num_layers, "width": transformer.d_model, "heads": transformer.num_heads, "causal": is_causal(TrainableTTS(flow_lm))},
        "head": {"type": config.flow_lm.flow.type, "depth": config.flow_lm.flow.depth, "width": config.flow_lm.flow.dim, "steps_a_frame": 1},
        "codec": {"sample_rate": mimi.sample_rate, "frame_rate": mimi.frame_rate, "latents_of_a_second": list(second.shape[1:])},
        "tokenizer": {
            "kind": type(tokenizer.tokenizer if hasattr(tokenizer, "tokenizer") else tokenizer).__name__,
            "pieces": config.flow_lm.lookup_table.n_bins,
            "english": len(pieces(tokenizer, ENGLISH)),
            "buckwalter": pieces(tokenizer, buckwalter),
            "arabic_script_unknown": sum(p == "<unk>" for p in pieces(tokenizer, ARABIC)),
            "symbols_unknown": [s for s, entry in symbols.items() if not entry["known"]],
        },
        "stock_text": prepared,
        "stock_times_real_time": stock_speed(config_file, ROOT / "demo" / "bundle" / "voice.wav", folder),
    }


def gated(repository: str) -> str:
    """Whether the hub asks for terms to be accepted, or why it cannot be asked."""
    try:
        return str(HfApi().model_info(repository).gated)
    except Exception as error:  # no network, a proxy, a renamed repository: the audit goes on
        return f"not asked: {type(error).__name__}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", nargs="+", default=["demo", "random"])
    p.add_argument("--out", type=Path, default=ROOT / "samples" / "audit.json")
    args = p.parse_args()
    result = {"command": shlex.join(["python", "demo/audit.py", *sys.argv[1:]]), **provenance(), "gated": gated("kyutai/pocket-tts")}
    for base in args.base:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if base == "random":
                random_release(folder, build_flow_lm)
                config = release_config()
                release = folder / "languages" / "english"
                config.weights_path, config.weights_path_without_voice_cloning = str(release / "model.safetensors"), None
                config.flow_lm.lookup_table.tokenizer_path = str(release / "tokenizer.json")
                file = folder / "random.yaml"
                file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
            else:
                file = ROOT / "demo" / "base.yaml" if base == "demo" else Path(base) if base.endswith((".yaml", ".yml")) else release_file(base)
            result[base] = look(str(file), file, folder)
    write_json(args.out, result)
    print(json.dumps(result, indent=1, ensure_ascii=False))


def release_file(language: str) -> Path:
    from pocket_tts.utils.config import CONFIGS_DIR

    return CONFIGS_DIR / f"{language}.yaml"


if __name__ == "__main__":
    command(main)
