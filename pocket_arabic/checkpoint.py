"""Save, resume, choose, export."""

import json
import os
import shutil
from pathlib import Path

import torch
import yaml
from pocket_tts.utils.config import Config
from safetensors.torch import load_file, save_file
from torch import nn

from pocket_arabic.run import UserError, atomic_write, write_json


class EMA:
    """Exponential moving average of a module's parameters; the decay warms up so that early steps do not linger."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            self.shadow[name].lerp_(value, 1 - decay)


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA, scaler: torch.amp.GradScaler | None, state: dict) -> None:
    """Write checkpoints/step_NNNNNN whole or not at all; `state` (step, hours) goes into state.json."""
    final = folder / f"step_{step:06d}"
    tmp = folder / f".step_{step:06d}.tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp / "model.safetensors")
    save_file({k: v.contiguous() for k, v in ema.shadow.items()}, tmp / "ema.safetensors")
    torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None}, tmp / "optimizer.pt")
    write_json(tmp / "state.json", {"step": step, **state})
    for file in tmp.iterdir():
        with open(file, "rb") as f:
            os.fsync(f.fileno())
    assert not final.exists(), final
    os.replace(tmp, final)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA, scaler: torch.amp.GradScaler | None) -> dict:
    """Put everything back in place, strictly; returns state.json."""
    model.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    shadow = load_file(path / "ema.safetensors")
    assert shadow.keys() == ema.shadow.keys(), shadow.keys() ^ ema.shadow.keys()
    ema.shadow = {k: v.to(ema.shadow[k].device) for k, v in shadow.items()}
    saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    if scaler:
        scaler.load_state_dict(saved["scaler"])
    return json.loads((path / "state.json").read_text())


def newest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step_*"), default=None)


def update_hours(folder: Path, hours: float) -> None:
    """Note the time a finished run took to its end, evaluation included, so that it stays finished under --max-hours."""
    state = newest_checkpoint(folder) / "state.json"
    write_json(state, json.loads(state.read_text()) | {"hours": hours})


def best_checkpoint(folder: Path, progress: list[dict]) -> tuple[Path, float] | None:
    """The checkpoint with the lowest held-out score among those still there; None before the first evaluation."""
    scores = {r["step"]: r["valid_flow_error"] for r in progress if r["kind"] == "eval"}
    there = [(scores[s], p) for p in folder.glob("step_*") if (s := int(p.name[5:])) in scores]
    score, path = min(there, default=(0.0, None))
    return (path, score) if path else None


def prune(folder: Path, keep: int, best: Path | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one. Only called once the newer one is safe."""
    for path in sorted(folder.glob("step_*"))[:-keep]:
        if path != best:
            shutil.rmtree(path)
    for leftover in folder.glob(".step_*.tmp"):
        shutil.rmtree(leftover)


MODEL_CARD = """---
language: ar
library_name: pocket-tts
pipeline_tag: text-to-speech
---
# Pocket TTS, speaking Classical Arabic

Adapted from `{base}` on the corpus `{corpus}` ({hours:.2f} h of training speech). Reads vocalised Arabic script:

    pocket-tts generate --config arabic.yaml --voice voice.wav --text "هَلْ أَنْتَ بِخَيْرٍ؟"

Run it inside this folder: paths in `arabic.yaml` are relative to the working directory. Sentences longer than about
50 tokens: add `--max-tokens {max_tokens}`, the longest text it was trained on. `bundle.json` says how it was made.
Speech made with it is synthetic: say so where you publish it, and do not use it to pass for the reader of the corpus.
"""


def export_bundle(folder: Path, config: Config, state: dict[str, torch.Tensor], voice: Path, info: dict) -> None:
    """Write a Pocket TTS model that stock tools load and that reads Arabic script.

    `state`: flow_lm.* and mimi.* tensors. `info`: provenance, goes into bundle.json with max_tokens, base, corpus, hours.
    The folder appears whole: it is written beside its place and renamed.
    """
    tmp = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    config = config.model_copy(deep=True)  # of an `arabic_config`
    tokenizer = Path(config.flow_lm.lookup_table.tokenizer_path)
    shutil.copyfile(tokenizer, tmp / f"tokenizer{tokenizer.suffix}")
    shutil.copyfile(voice, tmp / "voice.wav")
    config.flow_lm.lookup_table.tokenizer_path = f"tokenizer{tokenizer.suffix}"
    config.flow_lm.weights_path = config.mimi.weights_path = config.weights_path_without_voice_cloning = None
    config.weights_path = "model.safetensors"
    with atomic_write(tmp / "arabic.yaml") as file:
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), allow_unicode=True, sort_keys=False), encoding="utf-8")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp / "model.safetensors")
    write_json(tmp / "bundle.json", info)
    (tmp / "README.md").write_text(MODEL_CARD.format(**info), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(tmp, folder)


BUNDLE_FILES = ("arabic.yaml", "model.safetensors", "voice.wav", "bundle.json")


def find_bundle(model: Path) -> Path:
    """A bundle folder, or a run's folder holding bundle/ -> the bundle, all files there. Raises UserError."""
    if not model.is_dir():
        raise UserError(f"--model {model}: no such folder; train one: make demo")
    bundle = model / "bundle" if (model / "args.json").exists() else model
    if not bundle.is_dir():
        raise UserError(f"{model} has no bundle yet; finish the run: the same train.py command continues it")
    missing = [name for name in BUNDLE_FILES if not (bundle / name).is_file()]
    if missing:
        raise UserError(f"{bundle} is not a whole bundle, {', '.join(missing)} missing; export it again: delete it and run the same train.py command")
    return bundle
