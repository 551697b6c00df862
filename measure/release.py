"""The released layout with random weights, as a base that scripts load: for what needs its size, not its speech.

To be imported after `harness`, which finds tests/hub.py.
"""

from pathlib import Path

import yaml
from hub import random_release, release_config
from pocket_tts.utils.config import Config

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
