"""Save, resume, choose; the bundle: export, check, publish."""

import errno
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import yaml
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from pocket_tts.utils.config import Config
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pocket_arabic.base import beside
from pocket_arabic.run import UserError, atomic_write, write_json

SCORES = {  # of an evaluation, the best judge first
    "speech_score": "lowest distance of free-running held-out speech from its recordings (EMA weights)",
    "valid_flow_error": "lowest held-out flow error (EMA weights)",
    "valid_z_error": "lowest held-out distance from its teacher's output (EMA weights)",
}


class EMA:
    """Exponential moving average of a module's parameters; the decay warms up so that early steps do not linger."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.values = module.state_dict(keep_vars=True)  # the module's own tensors: what changes there is seen here
        self.shadow = {k: v.detach().clone() for k, v in self.values.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.shadow[name] for name in self.values], list(self.values.values()), 1 - decay)


class Trained(NamedTuple):
    """What a checkpoint holds of a run, beside its place."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    ema: EMA
    scaler: torch.amp.GradScaler | None


def save_checkpoint(folder: Path, step: int, trained: Trained, state: dict) -> None:
    """Write checkpoints/step_NNNNNN whole or not at all; `state` (step, hours) goes into state.json."""
    final, (model, optimizers, ema, scaler) = folder / f"step_{step:06d}", trained
    assert not final.exists(), final
    with new_folder(final) as tmp:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp / "model.safetensors")
        save_file({k: v.contiguous() for k, v in ema.shadow.items()}, tmp / "ema.safetensors")
        torch.save(
            {"optimizers": [o.state_dict() for o in optimizers], "scaler": scaler.state_dict() if scaler else None},
            tmp / "optimizers.pt",
        )
        write_json(tmp / "state.json", {"step": step, **state})


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final` and rename it into place, old contents replaced, only if the block
    succeeds.

    Raises OSError for a full disk, of which safetensors and torch only tell by errors of their own.
    """
    tmp = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    try:
        yield tmp
        for file in tmp.iterdir():
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(tmp, final)
    except (SafetensorError, RuntimeError) as error:
        if re.search(r"os error (27|28|122)\b|writ", str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(final)) from None
        raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def load_checkpoint(path: Path, trained: Trained) -> dict:
    """Put everything back in place, strictly; returns state.json. Raises Damaged, naming the file, with all as it
    was."""
    model, optimizers, ema, scaler = trained
    weights, shadow = (read_weights(path / f"{name}.safetensors", ema.shadow) for name in ("model", "ema"))
    try:
        saved = torch.load(path / "optimizers.pt", map_location="cpu", weights_only=True)
        states = saved["optimizers"]
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)
            for parameter, values in optimizer.state.items():
                if any(isinstance(v, torch.Tensor) and v.ndim and v.shape != parameter.shape for v in values.values()):
                    raise ValueError("of another shape")
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise Damaged(path / "optimizers.pt", error) from None
    state = read_state(path)
    model.load_state_dict(weights, strict=True)
    ema.shadow = {k: v.to(ema.shadow[k].device) for k, v in shadow.items()}
    if scaler:
        scaler.load_state_dict(saved["scaler"])
    return state


class Damaged(Exception):
    """A file of a checkpoint that is missing or not what was written."""

    def __init__(self, file: Path, error: object):
        super().__init__(f"{file}: missing or damaged ({' '.join(str(error).split())[:100]})")


def read_weights(file: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, of the names and shapes of `like`, all finite. Raises Damaged."""
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise Damaged(file, error) from None
    wrong = found.keys() ^ like.keys() or {
        k for k, v in found.items() if v.shape != like[k].shape or not torch.isfinite(v).all()
    }
    if wrong:
        raise Damaged(file, f"{min(wrong)} missing, of another shape or not finite")
    return found


def read_state(path: Path) -> dict:
    """A checkpoint's state.json. Raises Damaged."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        found = {"step": int(state["step"]), "hours": float(state["hours"])}
        if found["step"] != int(path.name.removeprefix("step_")) or not 0 <= found["hours"] < math.inf:
            raise ValueError("another checkpoint's")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(path / "state.json", error) from None


def exported(bundle: Path) -> str | None:
    """The name of the checkpoint that a bundle holds; None for none or a damaged one."""
    try:
        return json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step_*"), default=None)


def resume(folder: Path, trained: Trained, main: bool) -> dict | None:
    """Continue from the newest whole checkpoint -> its state; None if there is none yet. Damaged ones are put aside,
    and named. Raises UserError if all are damaged."""
    damaged = None
    for path in sorted(folder.glob("step_*"), reverse=True):
        try:
            return load_checkpoint(path, trained)
        except Damaged as error:
            damaged = error
            if main:
                print(f"{error}; put aside as damaged_{path.name}, continuing from the one before", flush=True)
                os.replace(path, path.with_name(f"damaged_{path.name}"))
    if damaged or any(folder.glob("damaged_step_*")):
        raise UserError(
            f"{folder}: no whole checkpoint is left ({damaged or 'all were put aside'}); begin anew: rm -r "
            f"{folder.parent}, or give another --out"
        )
    return None


def update_hours(folder: Path, hours: float) -> None:
    """Note the time a finished run took to its end, evaluation included, so that it stays finished under
    --max-hours."""
    newest = newest_checkpoint(folder)
    write_json(newest / "state.json", read_state(newest) | {"hours": hours})


def scores(progress: list[dict]) -> tuple[str, dict[int, float]]:
    """What a run's checkpoints are judged by, and each evaluated step's value, lower is better: what they say, where
    that was scored, else a held-out error."""
    found = [r for r in progress if r["kind"] == "eval"]
    name = next((name for name in SCORES if any(name in r for r in found)), "")
    return name, {r["step"]: r[name] for r in found if name in r and math.isfinite(r[name])}


def best_checkpoint(folder: Path, progress: list[dict]) -> tuple[Path, str, float] | None:
    """The checkpoint with the lowest score among those still there, what that is and its value; None before the first
    evaluation."""
    name, values = scores(progress)
    there = [(values[s], p) for p in folder.glob("step_*") if (s := int(p.name[5:])) in values]
    score, path = min(there, default=(0.0, None))
    return (path, name, score) if path else None


def prune(folder: Path, keep: int, best: Path | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one. Only called once the newer one is safe."""
    for path in sorted(folder.glob("step_*"))[:-keep]:
        if path != best:
            shutil.rmtree(path)
    for leftover in folder.glob(".step_*.tmp"):
        shutil.rmtree(leftover)


# --- the bundle -------------------------------------------------------------------------------------------------------

MODEL_CARD = """---
language: ar
library_name: pocket-tts
pipeline_tag: text-to-speech
license: other
license_name: as-the-base
---
# Pocket TTS, speaking Classical Arabic

Reads vocalised Arabic script in any Pocket TTS tool. Inside this folder (paths in `arabic.yaml` are relative to it):

    pocket-tts generate --config arabic.yaml --voice voice.wav --text "هَلْ أَنْتَ بِخَيْرٍ؟"

Sentences longer than about 50 tokens: add `--max-tokens {max_tokens}`, the longest text it was trained on.

- **Made from** the base `{base}`, adapted (`--tune {tune}`) to the corpus `{corpus}`, {hours:.2f} h of training
  speech{taught}; checkpoint {checkpoint}, {chosen_by}. `bundle.json` has versions, commit, score and
  the SHA-256 of each file.
- **Licence**: the base's and the corpus's terms both hold. Kyutai's weights: see
  https://huggingface.co/kyutai/pocket-tts. ClArTTS is CC-BY-4.0.
- **Meant for** reading Arabic text aloud, and for research. Speech made with it is synthetic: say so where you publish
  it, and do not use it to pass for the reader of the corpus or for anyone else.
- **Limits**: it pronounces the marks it is given; bare text is guessed at. One voice is trained; others come
  from a recording of a few seconds, less faithfully.
"""
BUNDLE_FILES = ("arabic.yaml", "model.safetensors", "voice.wav", "bundle.json")
PATHS = ("weights_path", "weights_path_without_voice_cloning", "tokenizer_path")  # wherever they stand in arabic.yaml


def model_card(template: str, info: dict) -> str:
    """The README of a bundle, from `info` as bundle.json has it."""
    taught = f", as a student of `{info['teacher']}` with guidance {info['guidance']:g}" if info.get("teacher") else ""
    return template.format(**info, taught=taught)


class BundleInfo(BaseModel):
    """What speaking needs of a bundle.json; the rest is provenance."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    max_tokens: Annotated[int, Field(ge=1, le=10**6)]
    slowest_sec_per_token: Annotated[float, Field(gt=0, le=60)]
    eos_threshold: float = 0.0
    phonemes: Literal["espeak"] | None
    substitute: dict[str, str] | None
    checkpoint: str
    sha256: dict[str, str]


def sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def seal(folder: Path, info: dict) -> None:
    """Write bundle.json: `info`, and the SHA-256 of every other file."""
    files = sorted(p for p in folder.iterdir() if p.name != "bundle.json")
    write_json(folder / "bundle.json", {**info, "sha256": {p.name: sha256(p) for p in files}})


def copy_bundle(bundle: Path, to: Path) -> dict:
    """Copy the bundle's own files, not what else lies beside them, into the new folder `to`; returns bundle.json's
    contents."""
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    to.mkdir()
    for name in ("bundle.json", *info["sha256"]):
        shutil.copyfile(bundle / name, to / name)
    return info


def write_yaml(path: Path, value: dict) -> None:
    with atomic_write(path) as file:
        file.write_text(yaml.safe_dump(value, allow_unicode=True, sort_keys=False), encoding="utf-8")


def export_bundle(folder: Path, config: Config, state: dict[str, torch.Tensor], voice: Path, info: dict) -> None:
    """Write a Pocket TTS model that stock tools load and that reads Arabic script.

    `state`: flow_lm.* and mimi.* tensors. `info`: provenance, goes into bundle.json and the model card.
    The folder appears whole: it is written beside its place and renamed.
    """
    config = config.model_copy(deep=True)  # of an `arabic_config`
    tokenizer = Path(config.flow_lm.lookup_table.tokenizer_path)
    config.flow_lm.lookup_table.tokenizer_path = f"tokenizer{tokenizer.suffix}"
    config.flow_lm.weights_path = config.mimi.weights_path = config.weights_path_without_voice_cloning = None
    config.weights_path = "model.safetensors"
    with new_folder(folder) as tmp:
        shutil.copyfile(tokenizer, tmp / f"tokenizer{tokenizer.suffix}")
        shutil.copyfile(voice, tmp / "voice.wav")
        write_yaml(tmp / "arabic.yaml", config.model_dump(mode="json", exclude_none=True))
        save_file({k: v.contiguous() for k, v in state.items()}, tmp / "model.safetensors")
        (tmp / "README.md").write_text(model_card(MODEL_CARD, info), encoding="utf-8")
        seal(tmp, info)


def find_bundle(model: str | Path, flag: str = "--model") -> Path:
    """A bundle, a run holding one, or a hub repository (OWNER/NAME, downloaded once) -> the bundle's folder, checked.

    Raises UserError if a file is missing or not as exported, or if `arabic.yaml` names anything but files beside it,
    hub files of safetensors weights, or a tokenizer.
    """
    folder = Path(model)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) or folder.parent.is_dir():
            raise UserError(f"{flag} {model}: no such folder; train one: make demo")
        folder = pull_bundle(str(model), flag)
    bundle = folder / "bundle" if (folder / "args.json").exists() else folder
    if not bundle.is_dir():
        raise UserError(f"{folder} has no bundle yet; finish the run: the same train.py command continues it")
    again = "export it again: delete it and run the same train.py command"
    missing = [name for name in BUNDLE_FILES if not (bundle / name).is_file()]
    if missing:
        raise UserError(f"{bundle} is not a whole bundle, {', '.join(missing)} missing; {again}")
    try:
        info = BundleInfo.model_validate_json((bundle / "bundle.json").read_bytes())
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(
            f"{bundle / 'bundle.json'}: not what an export writes ({'.'.join(map(str, wrong['loc']))}: "
            f"{wrong['msg']}); {again}"
        ) from None
    if missing := set(BUNDLE_FILES) - {"bundle.json", *info.sha256}:
        raise UserError(f"{bundle / 'bundle.json'}: not what an export writes (no SHA-256 of {min(missing)}); {again}")
    check_paths(bundle / "arabic.yaml", info.sha256)  # before any name of the bundle is followed
    homes = (bundle.resolve(), bundle.resolve().parent.parent / "blobs")  # the hub's cache keeps its files there
    for name, digest in info.sha256.items():
        if Path(name).name != name or not (bundle / name).is_file():
            raise UserError(f"{bundle} is not a whole bundle, {name} missing; {again}")
        if (bundle / name).resolve().parent not in homes:
            raise UserError(f"{bundle / name}: a link that leads out of the bundle; only its own files are read")
        if sha256(bundle / name) != digest:
            raise UserError(
                f"{bundle / name} is not the file that was exported (SHA-256); {again}, or update bundle.json if you "
                "changed it"
            )
    return bundle


def check_paths(config: Path, names: Iterable[str]) -> None:
    """Raises UserError if the YAML names weights that are not safetensors, or anything but the bundle's files `names`,
    as they lie here or on the hub."""

    def walk(node: object) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            if key in PATHS and isinstance(value, str):
                if key != "tokenizer_path" and not value.split("@")[0].endswith(".safetensors"):
                    raise UserError(
                        f"{config}: {key} {value} is no safetensors file; other formats can run code when loaded"
                    )
                if (beside(value) if value.startswith("hf://") else value) not in names:
                    raise UserError(f"{config}: {key} {value} leads out of the bundle; only its own files are read")
            walk(value)

    try:
        walk(yaml.safe_load(config.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{config}: not a Pocket TTS config ({str(error).splitlines()[0]})") from None


def push_bundle(bundle: Path, repository: str) -> None:
    """Upload a bundle to OWNER/NAME, which is created if need be; in it paths are hf:// ones, so that
    `pocket-tts generate --config hf://OWNER/NAME/arabic.yaml` works anywhere. Raises UserError."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"--push {repository}: not a repository; give OWNER/NAME")
    with tempfile.TemporaryDirectory() as tmp:
        staged = Path(tmp) / "bundle"
        info = copy_bundle(bundle, staged)
        config = yaml.safe_load((staged / "arabic.yaml").read_text(encoding="utf-8"))
        table = config["flow_lm"]["lookup_table"]
        config["weights_path"] = f"hf://{repository}/model.safetensors"
        table["tokenizer_path"] = f"hf://{repository}/{beside(table['tokenizer_path'])}"
        write_yaml(staged / "arabic.yaml", config)
        card = MODEL_CARD.replace("Inside this folder (paths in `arabic.yaml` are relative to it):", "From anywhere:")
        card = card.replace(
            "--config arabic.yaml --voice voice.wav",
            f"--config hf://{repository}/arabic.yaml --voice hf://{repository}/voice.wav",
        )
        (staged / "README.md").write_text(model_card(card, info), encoding="utf-8")
        seal(staged, info)
        api = HfApi()
        try:
            api.create_repo(repository, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=staged, commit_message="Pocket TTS bundle for Arabic")
        except (HfHubHTTPError, OSError, ValueError) as error:  # ValueError: not a name, or a card the hub refuses
            raise UserError(
                f"--push {repository}: {str(error).strip().splitlines()[-1][:160]}; log in with a token that may write "
                "there: hf auth login"
            ) from None


def pull_bundle(repository: str, flag: str) -> Path:
    """OWNER/NAME on the hub -> a local folder with its files, downloaded once. Raises UserError."""
    try:
        return Path(snapshot_download(repository, allow_patterns=[*BUNDLE_FILES, "tokenizer.*", "README.md"]))
    except (GatedRepoError, RepositoryNotFoundError):
        raise UserError(
            f"{flag} {repository}: no such folder, and no such repository for you; check the name, or log in: hf auth "
            "login"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, HFValidationError) as error:
        raise UserError(
            f"{flag} {repository}: no such folder, and the hub gives no repository of that name "
            f"({type(error).__name__}); check name and network"
        ) from None
