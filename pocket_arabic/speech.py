"""Speaking with a bundle through the wheel's own inference: long texts in chunks, runaways caught, joins without clicks."""

import logging
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pocket_tts import TTSModel
from pocket_tts.modules.text_conditioner import Tokenizer

from pocket_arabic.audio import AudioError, read_audio, speech_bounds
from pocket_arabic.base import build_flow_lm, load_config, load_mimi, load_weights, tts_model

SENTENCE_PAUSE, CLAUSE_PAUSE = 0.5, 0.2  # seconds of silence after a chunk that ends a sentence, or not
HEAD_SEC = 0.1  # silence kept before a chunk's first word, as in training
FADE_SEC = 0.005  # at joins: a step of background noise clicks
DECODE_FRAMES = 8  # decoded in one call; more hardly helps and delays the first audio
FLOOR_DB = 40.0  # silence is this far below a chunk's loudest 20 ms


class EosWatch(logging.Handler):
    """Counts the chunks that ran into the wheel's length cap; it only says so in its log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.missed = 0
        logger = logging.getLogger("pocket_tts.models.tts_model")
        logger.handlers = [self]
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.missed += "without EOS" in record.getMessage()


def load_bundle(bundle: Path, temperature: float | None = None, steps: int = 1, eos_threshold: float | None = None) -> TTSModel:
    """A bundle -> the wheel's model, strictly loaded. Raises UserError."""
    config = load_config(str(bundle / "arabic.yaml"), bundled=True)
    weights = load_weights(config)
    return tts_model(config, build_flow_lm(config, weights), load_mimi(config, weights), temperature, steps, eos_threshold)


class Blocks:
    """The decoder's end of the wheel's queue of latents, which hands them out in blocks of `size`, the last one shorter.

    The wheel decodes as many frames as happen to be queued, so the last bits depend on timing; one frame at a time they do
    not, but that takes 1.3 times as long. In fixed blocks it is both fast and the same to the byte.
    """

    def __init__(self, latents: queue.Queue, size: int):
        self.latents, self.size, self.block = latents, size, deque()

    def get(self) -> torch.Tensor | None:
        """The first latent of the next block, once the block is whole; None after the last."""
        while len(self.block) < self.size and (not self.block or self.block[-1] is not None):
            self.block.append(self.latents.get())
        return self.block.popleft()

    def get_nowait(self) -> torch.Tensor | None:
        if not self.block:
            raise queue.Empty
        return self.block.popleft()

    def task_done(self) -> None:
        pass


# --- chunks -----------------------------------------------------------------------------------------------------------


def split_text(text_model: str, tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Model text -> chunks of at most `max_tokens` tokens, each to be spoken in one go.

    A chunk is a sentence, or several while they stay under a quarter of `max_tokens`: a lone word is read badly. A longer
    sentence is cut at clause ends, and a longer clause between words; a word is never cut.
    """

    def size(text: str) -> int:
        return len(tokenizer.encode(text))

    def pack(parts: list[str], enough: int) -> list[str]:
        chunks: list[str] = []
        for part in parts:
            if chunks and size(chunks[-1]) < enough and size(f"{chunks[-1]} {part}") <= max_tokens:
                chunks[-1] += f" {part}"
            else:
                chunks.append(part)
        return chunks

    chunks = []
    for sentence in pack(re.findall(r"[^\s.!?][^.!?]*[.!?]*", text_model), max_tokens // 4):
        if size(sentence) <= max_tokens:
            chunks.append(sentence)
            continue
        clauses = re.findall(r"[^\s,;:][^,;:]*[,;:]*", sentence)
        words = [w for c in clauses for w in ([c] if size(c) <= max_tokens else pack(c.split(), max_tokens))]
        chunks += pack(words, max_tokens)
    return chunks


def pause_after(chunk: str) -> float:
    """Seconds of silence after a chunk."""
    return SENTENCE_PAUSE if chunk[-1] in ".!?" else CLAUSE_PAUSE


# --- speaking ---------------------------------------------------------------------------------------------------------


def voice_state(model: TTSModel, voice: Path) -> dict:
    """The model's state after a recording of the voice. Raises AudioError for an unusable one."""
    return model.get_state_for_audio_prompt(torch.from_numpy(read_audio(voice, model.sample_rate))[None])


def stream(model: TTSModel, state: dict, chunk: str, seed: int, stop: threading.Event | None = None, frames: int = 1) -> Iterator[np.ndarray]:
    """One chunk of model text -> its audio, `frames` of 80 ms [1920] at a time as they come. `stop` ends it early, but is to be
    read to its end all the same: the wheel's threads abort a process that exits before them."""
    torch.manual_seed(seed)
    model.max_decoder_frames_per_call = 0  # all that `Blocks` hands out
    model._decode_audio_worker = lambda latents, *rest: TTSModel._decode_audio_worker(model, Blocks(latents, frames), *rest)
    for audio in model.generate_audio_stream(state, chunk, max_tokens=10**6, stop=stop):
        yield audio.numpy()


@dataclass
class Spoken:
    audio: np.ndarray  # [samples]
    seed: int  # of the attempt that was kept
    ended: bool  # whether it reached its end in time
    first_sec: float  # until its first audio was there


def speak(model: TTSModel, state: dict, chunk: str, seed: int, watch: EosWatch, retries: int = 0, slowest: float | None = None) -> Spoken:
    """One chunk of model text, spoken. An attempt that misses its end, runs on or is silent is made again with the next
    seed, up to `retries` times; if all fail, the shortest that is not silent counts.

    `slowest`: seconds a token that the slowest training text took. An attempt is cut off a second beyond half as much
    again; the wheel's own cap, a third of a second a token and 2 s, is for word pieces and too long for letters.
    """
    limit = None if slowest is None else 1.5 * slowest * len(model.flow_lm.conditioner.tokenizer.encode(chunk)) + 1
    attempts: list[Spoken] = []
    for attempt in range(seed, seed + retries + 1):
        missed, start, pieces, first, stop = watch.missed, time.monotonic(), [], 0.0, threading.Event()
        for piece in stream(model, state, chunk, attempt, stop, DECODE_FRAMES):
            if not stop.is_set():
                pieces.append(piece)
            first = first or time.monotonic() - start
            if limit is not None and sum(map(len, pieces)) > limit * model.sample_rate:
                stop.set()
        attempts.append(Spoken(np.concatenate(pieces), attempt, watch.missed == missed and not stop.is_set(), first))
        if attempts[-1].ended and not is_silent(attempts[-1].audio, model.sample_rate):
            return attempts[-1]
    return min(attempts, key=lambda a: (is_silent(a.audio, model.sample_rate), not a.ended, len(a.audio)))


def is_silent(audio: np.ndarray, rate: int) -> bool:
    try:
        speech_bounds(audio, rate, FLOOR_DB)
    except AudioError:
        return True
    return False


def join(parts: list[np.ndarray], pauses: list[float], rate: int) -> np.ndarray:
    """Chunks [samples] and the seconds of silence after each -> one audio [samples], faded at the joins.

    The last keeps its own end, and a single chunk stays as it is.
    """
    if len(parts) == 1:
        return parts[0]
    joined, fade = [], int(FADE_SEC * rate)
    for number, (audio, pause) in enumerate(zip(parts, pauses)):
        start, end = (0, len(audio)) if is_silent(audio, rate) else speech_bounds(audio, rate, FLOOR_DB)
        last = number == len(parts) - 1
        stop = len(audio) if last else end + int(pause * rate)
        piece = audio[max(0, start - int(HEAD_SEC * rate)) if number else 0 : stop].copy()
        ramp = np.linspace(0, 1, fade, dtype=np.float32)
        if number:
            piece[:fade] *= ramp
        if not last:
            piece[-fade:] *= ramp[::-1]
        joined.append(np.pad(piece, (0, max(0, stop - len(audio)))))
    return np.concatenate(joined)
