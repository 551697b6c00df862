#!/usr/bin/env python3
"""train.py for the English nano base, which does not learn to read by itself: with guided attention.

A small model does not find out by itself which letter a frame belongs to. For the first `GUIDE_STEPS` steps a frame
sees only the text expected near it (as Tachibana et al., arXiv 1710.08969, but as a mask), in a window that opens until
it holds the whole utterance. The distillation term's gradient stops at the head: its noise drowned what the text has to
teach. Once a base reads, training needs neither (samples/experiments.json, `unguided` and `distill-whole`).

    python demo/train_base.py --data data/english --init scratch --batch-size 16 --optimizer muon --lr 1e-3 \\
        --schedule cosine --warmup-steps 200 --text-dropout 0.1 --distill-draws 2 --epochs 1000 --max-steps 11000
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pocket_tts.modules.text_conditioner import JsonTokenizer
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
from pocket_arabic.cache import Cache
from pocket_arabic.model import LSD
from pocket_arabic.rows import AUDIO_START, TEXT, Batch, Epoch, Utterances, ragged
from pocket_arabic.run import command
from pocket_arabic.step import Steps

GUIDE_STEPS = 3000


def guide_window(step: int) -> float | None:
    """Half-width in frames of the text that a frame sees: 1.5 for three tenths of the guided steps, then doubling until
    it holds a whole utterance. None once unguided."""
    if step >= GUIDE_STEPS:
        return None
    return 1.5 * 64 ** max(0.0, (step / GUIDE_STEPS - 0.3) / 0.7)


def token_durations(tokens: np.ndarray, starts: np.ndarray, frames: np.ndarray, vocabulary: int) -> np.ndarray:
    """Frames that each token of the vocabulary lasts, by non-negative least squares over utterances.

    `tokens`, `starts` as `rows.encode_all` gives them, `frames` [U]. A poor man's aligner: one number a symbol and no
    context. It leaves 1.4 frames of the deviation of 16.8 between the embedded corpus's utterances unexplained.
    """
    counts = np.zeros((len(frames), vocabulary))
    np.add.at(counts, (np.repeat(np.arange(len(frames)), np.diff(starts)), tokens), 1)
    return nnls(counts, np.asarray(frames, float))[0] + 0.02  # a symbol that lasts nothing still has a place


class Guided:
    """Utterances whose batches tell what each frame sees, in a `window` of frames around it, while that is set."""

    def __init__(self, utterances: Utterances, cache: Cache):
        self.utterances, self.window = utterances, None
        options, ends = cache.info["options"], {row["id"]: row["speech_end_sec"] for row in cache.rows}
        self.head = utterances.frame_rate * (options["head_sec"] if options["trim"] else 0.0)  # before the first word
        ends = np.array([ends[i] for i in utterances.ids]) * utterances.frame_rate
        self.spoken = ends - self.head  # frames from the first word to the end of the last
        tokenizer = utterances.tokenizer
        table = tokenizer.tokenizer if isinstance(tokenizer, JsonTokenizer) else tokenizer.sp
        self.durations = token_durations(utterances.tokens, utterances.token_start, self.spoken, table.get_vocab_size())

    def __getattr__(self, name: str) -> object:
        return getattr(self.utterances, name)

    def __len__(self) -> int:
        return len(self.utterances)

    def batch(self, rows: np.ndarray, epoch: Epoch, part: int = 0, parts: int = 1, *options) -> Batch:
        batch = self.utterances.batch(rows, epoch, part, parts, *options)
        if self.window is None:
            return batch
        mine = rows[part::parts] if len(rows[part::parts]) else rows[:1]
        kind, index = batch.kind.numpy(), batch.index.numpy()
        return replace(batch, seen=torch.from_numpy(near(kind, self.expected(kind, index, mine), self.window)))

    def expected(self, kind: np.ndarray, index: np.ndarray, mine: np.ndarray) -> np.ndarray:
        """[B, L, 2] the frames a text token is expected from and to, and for an audio position its own frame twice, at
        most that of the last word's end."""
        table = np.zeros((*kind.shape, 2), np.float32)
        row, column = np.nonzero(kind == TEXT)
        lasting = self.durations[index[row, column]]
        total = np.bincount(row, lasting, len(mine))
        lasting *= (self.spoken[mine] / np.where(total > 0, total, 1))[row]  # in all, what the utterance lasts
        ends = np.cumsum(lasting) - np.append(0.0, np.cumsum(np.bincount(row, lasting, len(mine))))[row]
        table[row, column] = self.head + np.stack([ends - lasting, ends], 1)
        row, column = np.nonzero(kind >= AUDIO_START)
        _, now = ragged(np.bincount(row, minlength=len(mine)))
        table[row, column] = np.minimum(now, np.floor(self.head + self.spoken[mine])[row])[:, None]
        return table


def near(kind: np.ndarray, expected: np.ndarray, window: float) -> np.ndarray:
    """[B, L, L], False from audio to text that is expected more than `window` frames from the position's own frame
    (after the last word: from the last word)."""
    first, last = expected[..., 0], expected[..., 1]
    now = first[:, :, None]  # of audio positions
    close = (first[:, None] < now + 1 + window) & (last[:, None] > now - window)
    from_audio, to_text = (kind >= AUDIO_START)[:, :, None], (kind == TEXT)[:, None]
    return close | ~(from_audio & to_text)


def to_head_only(lsd: LSD, head: torch.nn.Module, z: torch.Tensor, *rest: torch.Tensor) -> tuple:
    """LSD's distillation, without its gradient to the transformer."""
    return LSD.distillation(lsd, head, z.detach(), *rest)


class GuidedSteps(Steps):
    def __init__(self, *start: object):
        super().__init__(*start)
        self.tts.lsd.distillation = partial(to_head_only, self.tts.lsd)

    def utterances(self, cache: Cache, split: str, *model: object) -> Utterances | Guided:
        found = super().utterances(cache, split, *model)
        return Guided(found, cache) if split == "train" else found

    def take(self, time_share: float) -> None:
        self.train.window = guide_window(self.done)
        super().take(time_share)


if __name__ == "__main__":
    train.Steps = GuidedSteps
    command(train.main)
