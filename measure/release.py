"""The released layout with random weights, as a base that scripts load: for what needs its size, not its speech."""

import sys
from pathlib import Path

import yaml
from harness import ROOT
from pocket_tts.utils.config import Config

sys.path.insert(0, str(ROOT / "tests"))
from hub import random_release, release_config

from pocket_arabic.base import build_flow_lm


def random_base(folder: Path, config: Config | None = None) -> Path:
    """The released `english`, or another `config`, with random weights -> its YAML, all in `folder`."""
    config = config or release_config()
    random_release(folder, build_flow_lm, config=config)
    release = folder / "languages" / "english"
    config.weights_path, config.weights_path_without_voice_cloning = str(release / "model.safetensors"), None
    config.flow_lm.lookup_table.tokenizer_path = str(release / "tokenizer.json")
    return write_config(folder / "english.yaml", config)


def write_config(file: Path, config: Config) -> Path:
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return file
