"""Utterances -> batches of tensors: what is drawn for an epoch, the order of its rows, and the tensors of a step.

A row is [bos_before_voice | prompt | text | bos | frames 0..T-1]. Everything drawn for it is a pure function of (seed,
epoch, utterance), and noise and times of a step are one of (seed, step) for the step's whole batch: a resumed run,
another division of the batch into parts or another number of processes on the same kind of device takes the same steps.

Shapes: U utterances of a split, B rows, L positions, N frames of the B rows, R frames of the whole step, C = 32 latent
dimensions, K draws per frame (K' for the distillation term).
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from pocket_tts.modules.text_conditioner import JsonTokenizer, Tokenizer

from pocket_arabic import text
from pocket_arabic.cache import Cache
from pocket_arabic.run import UserError

PAD, VOICE_START, PROMPT, TEXT, AUDIO_START, FRAME = range(6)  # what stands at a position
ROW, ORDER, WHICH_STEPS, TEXT_MARKS, NOISE, EVAL_NOISE = range(6)  # separate streams of random numbers under one seed
EVAL_EPOCH = 0  # training counts from 1; evaluation always uses the same noise, so its curve is smooth
# of the steps compute the distillation term, divided by this share (kyutai-labs/pocket-tts training): 9 % faster
DISTILL_SHARE = 0.25
PROMPT_SEC = (2.5, 10.0)  # a voice prompt's shortest crop and longest length
CROP_SHARE = 0.3  # of prompts are cropped (kyutai-labs/pocket-tts, `small_voices_finetune`)
# Of prompts lose up to so much at one end, in mid-word, as people cut them, and texts their last stop, as people forget
# it: upstream's word error on cut prompts fell from 1.17 to 0.89 % (kyutai-labs/pocket-tts#311).
CUT_SHARE, CUT_SEC, STOP_DROPOUT = 0.3, 0.5, 0.3
NFC_SHARE = 0.1  # of texts have shadda behind its vowel, Unicode's order, which stock tools pass on as it is
# of latents kept on the device, 370 h of speech; a step of a larger corpus reads its own, some 2 MB
RESIDENT_BYTES = 2 * 2**30


# --- latents ----------------------------------------------------------------------------------------------------------


class Latents:
    """A cache's latents [F, C] where a step can index them: on the device, or, beyond `limit` bytes, in the file.
    Raises UserError if they are not finite there."""

    def __init__(self, file: Path, device: torch.device, limit: int = RESIDENT_BYTES):
        mapped = np.load(file, mmap_mode="r")
        self.width, self.start, self.device = mapped.shape[1], mapped.offset, device
        self.table = torch.from_numpy(np.array(mapped)).to(device) if mapped.nbytes <= limit else None
        if self.table is not None and not torch.isfinite(self.table).all():
            raise UserError(f"{file}: damaged, some values are not finite; build it again: rm -r {file.parent}")
        self.file = None if self.table is not None else os.open(file, os.O_RDONLY)

    def slice(self, first: int, count: int) -> torch.Tensor:
        """[count, C] frames from `first` on."""
        if self.table is not None:
            return self.table[first : first + count]
        return torch.from_numpy(self.read(np.array([first]), np.array([count])))

    def read(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Frames of the ranges [first, first + count) from the file, end to end [sum(count), C].

        Reads, not a memory map: mapped pages count as this process's memory until they are needed elsewhere.
        """
        parts, size = [], 4 * self.width
        for start, number in zip(first.tolist(), count.tolist()):
            parts.append(os.pread(self.file, number * size, self.start + start * size))
        return np.frombuffer(bytearray().join(parts), np.float32).reshape(-1, self.width)


def latent_statistics(cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [C] of the training split's latents, for a model that has none of its own."""
    edges = np.zeros(len(cache.latents) + 1, np.int8)
    for row in cache.split("train"):
        edges[row["first_frame"]] += 1
        edges[row["first_frame"] + row["num_frames"]] -= 1
    used = np.cumsum(edges[:-1], dtype=np.int8) > 0
    total, squares = np.zeros(cache.latents.shape[1]), np.zeros(cache.latents.shape[1])
    for start in range(0, len(used), 1 << 20):  # a block at a time: 1,000 h are 12 GB in float64
        block = cache.latents[start : start + (1 << 20)][used[start : start + (1 << 20)]].astype("float64")
        total, squares = total + block.sum(0), squares + np.square(block).sum(0)
    mean = total / used.sum()
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(squares / used.sum() - mean**2)).float()


# --- text -------------------------------------------------------------------------------------------------------------

NFC_ORDER = re.compile("(~)([FNKaui])")


def draw_text(
    rng: np.random.Generator, text_model: str, mark_dropout: float, stop_dropout: float, nfc_share: float
) -> str:
    """The text as a careless writer might give it: without marks, with some of them, without its last stop, or with
    marks in Unicode's order.

    With probability `mark_dropout` marks go: all of them in half of these rows, a random share in the others. With
    probability `nfc_share` shadda stands behind its vowel, as in NFC: stock tools give such text to the model as it is.

    >>> draw_text(np.random.default_rng(0), "*ahaba Alowaladu.", 1.0, 1.0, 0.0)
    '*hb Alwld'
    >>> draw_text(np.random.default_rng(0), "AlS~aboru.", 0.0, 0.0, 1.0)
    'AlSa~boru.'
    """
    share, kind, part, stop, nfc = rng.random(5)
    if nfc < nfc_share:
        text_model = NFC_ORDER.sub(r"\2\1", text_model)
    if share < mark_dropout:
        lost = rng.random(len(text_model)) < (1.0 if kind < 0.5 else part)
        text_model = "".join(c for c, gone in zip(text_model, lost) if not (gone and c in text.MARKS_MODEL))
    return text_model.rstrip(".,;:!?") if stop < stop_dropout else text_model


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all texts end to end, and [U + 1] where each text's begin."""
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), 10_000):  # a block at a time: the tokenizer's own results are large
        block = texts[start : start + 10_000]
        if isinstance(tokenizer, JsonTokenizer):
            ids += [np.asarray(e.ids, np.int64) for e in tokenizer.tokenizer.encode_batch_fast(block)]
        else:
            ids += [np.asarray(i, np.int64) for i in tokenizer.sp.encode(block, out_type=int)]
    return np.concatenate([*ids, np.zeros(0, np.int64)]), np.cumsum([0, *map(len, ids)])


# --- utterances -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """What is drawn for a row: shares of rows that lose something, and draws of noise and times per frame."""

    seed: int = 0
    text_dropout: float = 0.0
    voice_dropout: float = 0.0
    mark_dropout: float = 0.0
    stop_dropout: float = 0.0
    nfc_share: float = 0.0
    per_frame: int = 4  # K
    distill_per_frame: int = 4  # K'


@dataclass
class Epoch:
    """An epoch's choices for every utterance [U] of a split."""

    number: int
    keep_text: np.ndarray
    prompt_first: np.ndarray  # first frame of the voice prompt, another utterance of the speaker
    prompt_frames: np.ndarray  # its length; 0 if the voice is dropped

    def null(self) -> "Epoch":
        """The same with neither text nor voice in any row."""
        return replace(self, keep_text=np.zeros_like(self.keep_text), prompt_frames=np.zeros_like(self.prompt_frames))


class Utterances:
    """A split as arrays, with its choices of voice prompts from the training split.

    Left out is who has no other utterance of its speaker in train to be prompted with. `subset`: the first so many of
    train. `voice_start`: rows begin with bos_before_voice, as the model wants it. `null`: batches come with the same
    rows without text and voice. Raises UserError if nothing is left.
    """

    def __init__(
        self,
        cache: Cache,
        split: str,
        tokenizer: Tokenizer,
        frame_rate: float,
        draws: Draws,
        latents: Latents,
        subset: int | None = None,
        voice_start: bool = True,
        null: bool = False,
    ):
        self.voice_start, self.null = voice_start, null
        self.draws, self.tokenizer, self.latents, self.frame_rate = draws, tokenizer, latents, frame_rate
        train = cache.split("train")
        every = train[:subset] if subset else cache.split(split)
        speakers = {name: i for i, name in enumerate(dict.fromkeys(row["speaker"] for row in train))}

        # Prompts: the training utterances, those of a speaker end to end.
        speaker = np.array([speakers[row["speaker"]] for row in train], np.int64)
        pool = np.argsort(speaker, kind="stable")
        self.pool_size = np.bincount(speaker, minlength=len(speakers))
        self.pool_start = np.cumsum(self.pool_size) - self.pool_size
        place = np.empty(len(train), np.int64)
        place[pool] = np.arange(len(train)) - self.pool_start[speaker[pool]]
        # Up to 80 ms after the last word, where the wheel ends a voice prompt too (its `end_on_pause`), and 10 s.
        ends = np.ceil((np.array([row["speech_end_sec"] for row in train]) + 0.08) * frame_rate).astype(np.int64)
        frames = np.array([row["num_frames"] for row in train], np.int64)
        self.pool_first = np.array([row["first_frame"] for row in train], np.int64)[pool]
        self.pool_frames = np.minimum(np.minimum(ends, frames), int(PROMPT_SEC[1] * frame_rate))[pool]

        places = dict(zip((row["id"] for row in train), place.tolist()))
        own = np.array([places.get(row["id"], -1) for row in every], np.int64)
        speaker = np.array([speakers.get(row["speaker"], -1) for row in every], np.int64)
        usable = (speaker >= 0) & (np.append(self.pool_size, 0)[speaker] > (own >= 0))
        if not usable.all():
            left_out = int((~usable).sum())
            print(
                f"{split}: {left_out} of {len(every)} utterances left out, no other of their speaker in train to "
                "prompt with"
            )
        if not usable.any():
            raise UserError(
                f"{cache.folder}: no {split} utterance can be used; every speaker needs two utterances in train, and "
                f"{split} needs one of theirs"
            )
        rows = [row for row, use in zip(every, usable) if use]
        self.speaker, self.own = speaker[usable], own[usable]
        self.ids = [row["id"] for row in rows]
        self.texts = [row["text_model"] for row in rows]
        self.first = np.array([row["first_frame"] for row in rows], np.int64)
        self.frames = np.array([row["num_frames"] for row in rows], np.int64)
        self.tokens, self.token_start = encode_all(tokenizer, self.texts)

    def __len__(self) -> int:
        return len(self.frames)

    def num_tokens(self) -> np.ndarray:
        """[U] tokens of each text."""
        return np.diff(self.token_start)

    def slowest(self) -> float:
        """Seconds a token of all but the slowest hundredth of the utterances."""
        return float(np.percentile(self.frames / self.frame_rate / self.num_tokens(), 99))

    def epoch(self, number: int) -> Epoch:
        """The choices of one epoch. A prompt is never cut from the target itself, which would leak it."""
        rng = np.random.default_rng([ROW, self.draws.seed, number])
        pick, text_kept, voice_kept, crop, length, place, cut, lost = rng.random((8, len(self)))
        has_own = self.own >= 0
        other = (pick * (self.pool_size[self.speaker] - has_own)).astype(np.int64)
        other += self.pool_start[self.speaker] + (has_own & (other >= self.own))
        frames, shortest = self.pool_frames[other], int(PROMPT_SEC[0] * self.frame_rate)
        size = np.where(
            (crop < CROP_SHARE) & (frames > shortest),
            shortest + (length * (frames - shortest + 1)).astype(np.int64),
            frames,
        )
        first = self.pool_first[other] + (place * (frames - size + 1)).astype(np.int64)
        if number != EVAL_EPOCH:
            gone = np.where(cut < CUT_SHARE, (lost * (CUT_SEC * self.frame_rate + 1)).astype(np.int64), 0)
            gone = np.minimum(gone, size // 2)
            first, size = first + gone * (cut < CUT_SHARE / 2), size - gone
        dropout = (0.0, 0.0) if number == EVAL_EPOCH else (self.draws.text_dropout, self.draws.voice_dropout)
        return Epoch(number, text_kept >= dropout[0], first, np.where(voice_kept >= dropout[1], size, 0))

    def lengths(self, epoch: Epoch) -> np.ndarray:
        """[U] positions of the rows, but for the two or three that every row has."""
        return self.num_tokens() * epoch.keep_text + epoch.prompt_frames + self.frames

    def order(self, epoch: Epoch, batch_size: int) -> list[np.ndarray]:
        """Batches of one epoch: shuffled, then sorted by length within pools of 32 batches so that rows of a batch are
        of like length, then the batches shuffled. On lengths like ClArTTS's, batches of 64, 4.4 % of positions are
        padding (pools of 16: 7.8 %)."""
        rng = np.random.default_rng([ORDER, self.draws.seed, epoch.number])
        shuffled = rng.permutation(len(self))
        pool = np.arange(len(self)) // (32 * batch_size)
        shuffled = shuffled[np.lexsort((self.lengths(epoch)[shuffled], pool))]
        starts = rng.permutation(-(-len(self) // batch_size)) * batch_size
        return [shuffled[start : start + batch_size] for start in starts]

    def row_tokens(self, epoch: Epoch, row: int) -> np.ndarray:
        """[L] token ids of one row in this epoch; none if its text is dropped."""
        if not epoch.keep_text[row]:
            return self.tokens[:0]
        d = self.draws
        if epoch.number != EVAL_EPOCH and (d.mark_dropout or d.stop_dropout or d.nfc_share):
            rng = np.random.default_rng([TEXT_MARKS, d.seed, epoch.number, row])
            drawn = draw_text(rng, self.texts[row], d.mark_dropout, d.stop_dropout, d.nfc_share)
            if drawn != self.texts[row]:
                return np.asarray(self.tokenizer.encode(drawn), np.int64)
        return self.tokens[self.token_start[row] : self.token_start[row + 1]]

    def batch(
        self,
        rows: np.ndarray,
        epoch: Epoch,
        part: int = 0,
        parts: int = 1,
        size: int | None = None,
        bits: int | None = None,
        null: bool = True,
    ) -> "Batch":
        """Every `parts`-th of a step's `rows` from `part` on, as tensors on the host.

        `size`: rows of the result, filled up with empty ones; `bits`: round lengths up (`rounded`); None leaves both as
        they are.
        """
        mine = rows[part::parts]
        lent = len(mine) == 0  # nothing for this part: a row without weight keeps it in step with the others
        mine = rows[:1] if lent else mine
        tokens = [self.row_tokens(epoch, row) for row in mine]
        num_tokens, frames, prompt = np.array([len(t) for t in tokens]), self.frames[mine], epoch.prompt_frames[mine]
        first, prompt_first = self.first[mine], epoch.prompt_first[mine]
        own_table = None
        if self.latents.table is None:
            starts, counts = np.concatenate([first, prompt_first]), np.concatenate([frames, prompt])
            own_table = filled(self.latents.read(starts, counts), rounded(int(counts.sum()), bits))
            starts = np.cumsum(counts) - counts
            first, prompt_first = starts[: len(mine)], starts[len(mine) :]

        # Segments of all rows end to end: what stands there, from which place of its table on, how many.
        one = np.ones_like(frames)
        counts = np.stack([one * self.voice_start, prompt, num_tokens, one, frames], 1)
        starts = np.stack([0 * one, prompt_first, np.cumsum(num_tokens) - num_tokens, 0 * one, first], 1)
        kinds = np.broadcast_to([VOICE_START, PROMPT, TEXT, AUDIO_START, FRAME], counts.shape)
        length = counts.sum(1)
        row, column = ragged(length)
        kind = np.repeat(kinds.ravel(), counts.ravel())
        index = np.repeat(starts.ravel(), counts.ravel()) + ragged(counts.ravel())[1]
        index[kind == TEXT] = np.concatenate(tokens)[index[kind == TEXT]]
        shape = size or len(mine), rounded(int(length.max()), bits)
        grid = np.zeros((2, *shape), np.int64)
        grid[0, row, column], grid[1, row, column] = kind, index

        of, place = ragged(frames)  # the frames of the rows: each is predicted one position earlier
        at = (np.arange(len(mine)) * shape[1] + length - frames - 1)[of] + place
        before = (np.cumsum(self.frames[rows]) - self.frames[rows])[part::parts] if not lent else np.zeros(1, np.int64)
        valid = np.full(len(of), not lent)
        targets = filled(np.stack([at, first[of] + place, before[of] + place], 1), rounded(len(of), bits))
        ends = filled((np.arange(len(mine)) * shape[1] + length - 1)[:, None], shape[0])[:, 0]
        return Batch(
            kind=torch.from_numpy(grid[0]),
            index=torch.from_numpy(grid[1]),
            target=torch.from_numpy(targets),
            valid=torch.from_numpy(filled(valid.astype(np.float32)[:, None], len(targets))[:, 0]),
            end_at=torch.from_numpy(ends),
            end_valid=torch.from_numpy(filled(np.full((len(mine), 1), not lent, np.float32), shape[0])[:, 0]),
            size=torch.tensor([self.frames[rows].sum(), len(rows)], dtype=torch.float32),
            latents=self.latents.table if own_table is None else torch.from_numpy(own_table),
            null=self.batch(rows, epoch.null(), part, parts, size, bits, null=False) if self.null and null else None,
        )


def ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows of `counts` items end to end, each item's row and its place in it.

    >>> ragged(np.array([2, 0, 3]))
    (array([0, 0, 2, 2, 2]), array([0, 1, 0, 1, 2]))
    """
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - (np.cumsum(counts) - counts)[row]


def rounded(number: int, bits: int | None) -> int:
    """Up to the next number of `bits` significant bits (a multiple of 16 at least): few shapes, 4 % of padding with 4
    bits.

    >>> rounded(131, 4), rounded(3324, 4), rounded(3324, None)
    (144, 3328, 3324)
    """
    if bits is None:
        return number
    unit = max(16, 1 << max(0, number.bit_length() - bits))
    return -(-number // unit) * unit


def filled(array: np.ndarray, rows: int) -> np.ndarray:
    """[n, ...] with rows of zeros up to `rows` of them."""
    return (
        array
        if len(array) == rows
        else np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
    )


# --- the tensors of a step --------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Rows as one set of tensors. With empty rows and frames in it whose weight is 0, shapes are a few rounded
    sizes."""

    kind: torch.Tensor  # [B, L] what stands at each position, PAD .. FRAME
    index: torch.Tensor  # [B, L] the token, or the frame in `latents`
    # [N, 3] the position in B x L that predicts a frame, that frame in `latents`, its row of the step's noise
    target: torch.Tensor
    valid: torch.Tensor  # [N] 1, or 0 for padding
    end_at: torch.Tensor  # [B] the position in B x L after the last frame
    end_valid: torch.Tensor  # [B]
    size: torch.Tensor  # [2] frames and rows of the whole step, whose mean the loss is
    latents: torch.Tensor  # [F, C] of the whole corpus, or of this batch
    seen: torch.Tensor | None = None  # [B, L, L] True where a position may look, of what stands before it; None: all
    null: "Batch | None" = None  # the same frames of rows with neither text nor voice, which a teacher's guidance needs

    def tensors(self) -> dict[str, torch.Tensor]:
        own = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}
        return own | ({f"null.{name}": value for name, value in self.null.tensors().items()} if self.null else {})

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """With every tensor changed."""
        own = {f.name: change(value) for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}
        return replace(self, **own, null=self.null.map(change) if self.null else None)

    def shapes(self) -> tuple:
        return tuple((name, tuple(value.shape)) for name, value in self.tensors().items())

    def to(self, device: torch.device) -> "Batch":
        """On the device; from pinned memory and without waiting, so that the copy runs beside the step before."""
        if device.type == "cpu":
            return self
        return self.map(lambda t: t if t.is_cuda else t.pin_memory().to(device, non_blocking=True))


def distils(seed: int, step: int) -> bool:
    """Whether this step computes the distillation term; the same on every process."""
    return bool(np.random.default_rng([WHICH_STEPS, seed, step]).random() < DISTILL_SHARE)


def draw_noise(
    draws: Draws, stream: int, step: int, frames: int, distil: bool, device: torch.device, width: int = 32
) -> torch.Tensor:
    """[R, K (C + 1) + K' (C + 2)] standard normal numbers of a step: for each of `frames` noise and time of every draw,
    and, with the distillation term, noise and two times. A pure function of (seed, stream, step) on one kind of
    device."""
    seed = int(np.random.default_rng([stream, draws.seed, step]).integers(2**63))
    columns = draws.per_frame * (width + 1) + (draws.distill_per_frame * (width + 2) if distil else 0)
    if device.type == "cuda":
        frames = rounded(frames, 4)  # as a batch's are
    return torch.randn(frames, columns, device=device, generator=torch.Generator(device).manual_seed(seed))
