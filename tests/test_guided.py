"""Guided attention, by which the English base learnt to read (demo/train_base.py)."""

import sys
from types import SimpleNamespace

import numpy as np
import torch
from conftest import RECIPE
from scripts import ROOT, run
from test_model import make_rows, whole_batch

from pocket_arabic.model import backbone

sys.path.append(str(ROOT / "demo"))
from train_base import Guided, near, token_durations


def test_token_durations_are_recovered():
    """Utterances whose lengths are sums of known durations give these durations back."""
    rng = np.random.default_rng(0)
    true = np.array([0.0, 1.5, 0.7, 3.0, 0.0])
    tokens = [rng.integers(1, 5, rng.integers(5, 30)) for _ in range(50)]
    starts, frames = np.cumsum([0, *map(len, tokens)]), [true[t].sum() for t in tokens]
    found = token_durations(np.concatenate(tokens), starts, frames, 5)
    np.testing.assert_allclose(found, true + 0.02, atol=1e-6)


def test_guided_positions_see_only_the_text_near_them(flow_lm):
    """What a frame predicts depends on the tokens in its window and on no other; an open window is no window."""
    rows = make_rows([(20, 10)], prompts=(31, 32))
    ends = [{"id": i, "speech_end_sec": 20 / 12.5} for i in rows.ids]
    guided = Guided(rows, SimpleNamespace(rows=ends, info={"options": {"head_sec": 0.0, "trim": True}}))
    guided.durations[:] = 2.0  # all alike: ten tokens in twenty frames
    guided.window = 1.5
    batch = whole_batch(guided)[0]
    text, audio = slice(32, 42), slice(42, 63)
    seen = [batch.seen[0, audio, text][frame].nonzero().flatten().tolist() for frame in (0, 10, 19, 20)]
    # Frame 0 lasts to 1, and sees tokens that begin before 2.5; the last predicts no frame, but the end.
    assert seen == [[0, 1], [4, 5, 6], [8, 9], [9]]
    assert batch.seen[0, :42].all() and batch.seen[0, audio, audio].all()
    plain = backbone(flow_lm, whole_batch(rows)[0])
    assert not torch.allclose(backbone(flow_lm, batch), plain, atol=1e-3)
    guided.window = 1e6
    torch.testing.assert_close(backbone(flow_lm, whole_batch(guided)[0]), plain, rtol=1e-5, atol=1e-6)


def test_rows_without_their_text_are_guided_nowhere():
    kind, expected = np.array([[1, 4, 5, 5]]), np.zeros((1, 4, 2), np.float32)
    assert near(kind, expected, 1.5).all()


def test_the_distillation_leaves_the_transformer_alone(cache, tmp_path):
    """One guided step from scratch, as train.py's, whose own steps go on from it."""
    result = run(f"demo/train_base.py {RECIPE} --data {cache} --out {tmp_path / 'r'} --max-steps 2")
    assert result.returncode == 0 and (tmp_path / "r" / "bundle" / "bundle.json").is_file(), result.stderr
