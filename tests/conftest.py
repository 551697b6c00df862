"""A tiny base with random weights in the wheel's own format, a small corpus, and what the scripts make of them."""

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import yaml
from safetensors.torch import save_file
from scripts import ROOT, run  # before the module: it sets the environment, and where that lies

from pocket_arabic.base import build_flow_lm, build_mimi, load_config

torch.set_num_threads(1)

TEXTS = [
    "ذَهَبَ الْوَلَدُ إِلَى السُّوقِ.",
    "هَلْ أَنْتَ بِخَيْرٍ؟",
    "مَا أَجْمَلَ هٰذَا الْبُسْتَانَ!",
    "الصَّبْرُ مِفْتَاحُ الْفَرَجِ.",
    "قَالَ: نَعَمْ، سَأَذْهَبُ غَدًا.",
    "كَتَبَ الطَّالِبُ رِسَالَةً طَوِيلَةً.",
    "جَاءَ الشِّتَاءُ وَٱشْتَدَّ الْبَرْدُ.",
    "لَا تُؤَجِّلْ عَمَلَ الْيَوْمِ.",
]


def fails(result: subprocess.CompletedProcess, *words: str) -> None:
    """The contract for a user's mistake: exit 2, one line, no traceback, and the words that tell what and where."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0], lines[0]


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, hidden ones too."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """base.yaml + codec.safetensors (no FlowLM): 24 kHz, 12.5 latents a second, 32 dimensions, a few thousand
    weights."""
    folder = tmp_path_factory.mktemp("base")
    config = yaml.safe_load((ROOT / "demo" / "base.yaml").read_text(encoding="utf-8"))
    del config["weights_path"]
    config["flow_lm"]["flow"] = {"depth": 2, "dim": 32}
    config["flow_lm"]["transformer"] |= {"d_model": 32, "num_heads": 2, "num_layers": 2}
    config["flow_lm"]["lookup_table"]["dim"] = 32
    mimi = config["mimi"]
    mimi["outer_dim"] = mimi["quantizer"]["output_dimension"] = 16
    for part in ("seanet", "decoder_seanet"):
        mimi[part] = mimi[part] | {"dimension": 16, "n_filters": 2}
    for part in ("transformer", "decoder_transformer"):
        mimi[part] = mimi[part] | {
            "d_model": 16,
            "num_heads": 2,
            "num_layers": 1,
            "dim_feedforward": 32,
            "input_dimension": 16,
            "output_dimensions": [16],
        }
    (folder / "tokenizer.json").write_bytes((ROOT / "demo" / "tokenizer.json").read_bytes())
    (folder / "codec.safetensors").touch()
    (folder / "base.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    torch.manual_seed(0)
    codec = build_mimi(load_config(str(folder / "base.yaml")).mimi)
    with torch.no_grad():
        # random weights give latents near zero; make them vary like real ones
        codec.downsample.conv.conv.weight.mul_(30)
    save_file({f"mimi.{k}": v for k, v in codec.state_dict().items()}, folder / "codec.safetensors")
    return folder / "base.yaml"


@pytest.fixture
def flow_lm(tiny_base):
    """The tiny FlowLM with every weight random, so that no gate of the initialisation hides a path."""
    torch.manual_seed(1)
    model = build_flow_lm(load_config(str(tiny_base)), None)
    with torch.no_grad():
        for p in model.flow_net.parameters():
            p.normal_(std=0.2)
    return model


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder corpus: 8 sentences over tones of 3 s, 44.1 kHz stereo, split given."""
    folder = tmp_path_factory.mktemp("corpus")
    time = np.arange(3 * 44100) / 44100
    lines = ["file_name,text,split"]
    for i, text in enumerate(TEXTS):
        tone = 0.3 * np.sin(2 * np.pi * (150 + 40 * i) * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2
        sf.write(folder / f"{i}.wav", np.stack([tone, tone], 1), 44100)
        lines.append(f'{i}.wav,"{text}",{"valid" if i == 6 else "test" if i == 7 else "train"}')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def cache(corpus, tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "c"
    result = run(f"data_prep.py --corpus {corpus} --base {tiny_base} --out {folder}")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def finished_run(cache, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "r"
    result = run(f"train.py {RECIPE} --data {cache} --out {folder} --max-steps 4")
    assert result.returncode == 0, result.stderr
    return folder


RECIPE = (
    "--init scratch --weight-decay 0 --batch-size 3 --lr 1e-3 --warmup-steps 2 --eval-every 2 --sample-every 4 "
    "--log-every 1 --epochs 9 --precision no"
)
# Where speaking is not what is asked about: an interpreter of its own takes 5 s to load what it needs.
MUTE = "--sample-every 0 --judge-sentences 0"
