"""Speaking with a bundle through the wheel's own inference: long texts in chunks, runaways caught, joins without
clicks."""

import logging
import math
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pocket_tts import TTSModel
from pocket_tts.data.audio_utils import end_on_pause
from pocket_tts.models.flow_lm import FlowLMModel
from pocket_tts.models.text_chunking import prepare_text_prompt, split_into_best_sentences
from pocket_tts.modules.stateful_module import ModelState, increment_steps, init_states
from pocket_tts.modules.text_conditioner import Tokenizer

from pocket_arabic.audio import AudioError, read_audio, speech_bounds, write_wav
from pocket_arabic.base import build_flow_lm, load_config, load_mimi, load_weights, tts_model
from pocket_arabic.batch import Sentence, SpeechBatch, default_size, null_state, run
from pocket_arabic.run import UserError

SENTENCE_PAUSE, CLAUSE_PAUSE = 0.5, 0.2  # seconds of silence after a chunk that ends a sentence, or not
HEAD_SEC = 0.1  # silence kept before a chunk's first word, as in training
FADE_SEC = 0.005  # at joins: a step of background noise clicks
DECODE_FRAMES = 8  # decoded in one call; more hardly helps and delays the first audio
NOT_FINITE = (
    "the model gives audio that is not finite; try another --temperature, --guidance or --voice, or a model "
    "trained with a lower --lr"
)
# of a voice's recording read, and of sound wanted in it; prompts in training have 10 s at most
VOICE_SEC, LEAST_VOICE_SEC = 30.0, 0.3
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


def load_bundle(
    bundle: Path,
    temperature: float | None = None,
    steps: int = 1,
    eos_threshold: float | None = None,
    guidance: float = 1.0,
) -> TTSModel:
    """A bundle -> the wheel's model, strictly loaded. Raises UserError."""
    config = load_config(str(bundle / "arabic.yaml"), bundled=True)
    weights = load_weights(config)
    return tts_model(
        config, build_flow_lm(config, weights), load_mimi(config, weights), temperature, steps, eos_threshold, guidance
    )


class Blocks:
    """The decoder's end of the wheel's queue of latents, which hands them out in blocks of `size`, the last one
    shorter.

    The wheel decodes as many frames as happen to be queued, so the last bits depend on timing; one frame at a time they
    do not, but that takes 1.3 times as long. In fixed blocks it is both fast and the same to the byte.
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

    A chunk is a sentence, or several while they stay under a quarter of `max_tokens`: a lone word is read badly. A
    longer sentence is cut at clause ends, and a longer clause between words; a word is never cut.
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


@torch.no_grad()
def voice_state(model: TTSModel, voice: Path) -> ModelState:
    """The model's state after the first `VOICE_SEC` of a recording of the voice, as the wheel makes it. Raises
    AudioError for one that cannot be used or has no speech in it."""
    samples = read_audio(voice, model.sample_rate, VOICE_SEC)
    start, end = speech_bounds(samples, model.sample_rate, FLOOR_DB)
    if end - start < LEAST_VOICE_SEC * model.sample_rate:
        raise AudioError(f"only {(end - start) / model.sample_rate:.2f} s of sound in its first {VOICE_SEC:.0f} s")
    audio = end_on_pause(torch.from_numpy(samples)[None], model.sample_rate)
    device = next(model.mimi.parameters()).device
    return prompt_state(model, model.mimi.encode_to_latent(audio[None].to(device))[0])


@torch.no_grad()
def prompt_state(model: TTSModel, latents: torch.Tensor) -> ModelState:
    """The model's state after a voice prompt given as raw latents [V, C], as a cache has them."""
    lm = model.flow_lm
    prompt = F.linear(latents.to(lm.bos_emb), lm.speaker_proj_weight)[None]
    if lm.insert_bos_before_voice:
        prompt = torch.cat([lm.bos_before_voice, prompt], 1)
    state = init_states(lm, 1, prompt.shape[1])
    model._run_flow_lm_and_increment_step(state, audio_conditioning=prompt)
    return state


def stream(
    model: TTSModel, state: dict, chunk: str, seed: int, stop: threading.Event | None = None, frames: int = 1
) -> Iterator[np.ndarray]:
    """One chunk of model text -> its audio, `frames` of 80 ms [1920] at a time as they come. `stop` ends it early, and
    so does leaving it, by a signal too: the wheel's threads, which abort a process that exits before them, are waited
    for."""
    stop, others = stop or threading.Event(), set(threading.enumerate())
    if model.guidance != 1:
        guide(model, 1 + as_sentence(model, Request(chunk, state, seed), None).max_frames)
    torch.manual_seed(seed)
    model.max_decoder_frames_per_call = 0  # all that `Blocks` hands out
    model._decode_audio_worker = lambda latents, *rest: TTSModel._decode_audio_worker(
        model, Blocks(latents, frames), *rest
    )
    try:
        for audio in model.generate_audio_stream(state, chunk, max_tokens=10**6, stop=stop):
            if not torch.isfinite(audio).all():
                raise UserError(NOT_FINITE)
            yield audio.numpy()
    except BaseException:  # Ctrl-C, or a caller that leaves
        stop.set()
        raise
    finally:
        for thread in set(threading.enumerate()) - others:
            thread.join()


def guide(model: TTSModel, positions: int) -> None:
    """Make the wheel's own loop speak its next chunk with guidance, beside a row without text and voice of at most
    `positions`."""
    lm, null = model.flow_lm, null_state(model)
    model._expand_kv_cache(null, positions)

    def backbone(
        input_: torch.Tensor, text_embeddings: torch.Tensor, sequence: torch.Tensor, model_state: ModelState
    ) -> torch.Tensor:
        z = FlowLMModel.backbone(lm, input_, text_embeddings, sequence, model_state)
        if sequence.shape[1] == 0:  # text is read, no frame
            return z
        z_null = FlowLMModel.backbone(lm, input_, text_embeddings, sequence, null)
        increment_steps(lm, null, 1)
        return torch.lerp(z_null, z, model.guidance)

    lm.backbone = backbone


@dataclass
class Spoken:
    audio: np.ndarray  # [samples]
    seed: int  # of the attempt that was kept
    ended: bool  # whether it reached its end in time
    first_sec: float  # until its first audio was there


def longest_sec(model: TTSModel, chunk: str, slowest: float | None) -> float:
    """Seconds after which a chunk has missed its end. `slowest`: seconds a token that the slowest training text took;
    half as much again and a second may pass. The wheel's own cap, a third of a second a token and 2 s, is for word
    pieces and too long for letters."""
    return math.inf if slowest is None else 1.5 * slowest * len(model.flow_lm.conditioner.tokenizer.encode(chunk)) + 1


def speak(
    model: TTSModel,
    state: ModelState,
    chunk: str,
    seed: int,
    watch: EosWatch,
    retries: int = 0,
    slowest: float | None = None,
) -> Spoken:
    """One chunk of model text, spoken by the wheel's own loop. An attempt that misses its end, runs on beyond
    `longest_sec` or is silent is made again with the next seed, up to `retries` times; if all fail, the shortest that
    is not silent counts."""
    limit = longest_sec(model, chunk, slowest)
    attempts: list[Spoken] = []
    for attempt in range(seed, seed + retries + 1):
        missed, start, pieces, first, stop = watch.missed, time.monotonic(), [], 0.0, threading.Event()
        with closing(stream(model, state, chunk, attempt, stop, DECODE_FRAMES)) as blocks:
            for piece in blocks:
                if not stop.is_set():
                    pieces.append(piece)
                first = first or time.monotonic() - start
                if sum(map(len, pieces)) > limit * model.sample_rate:
                    stop.set()
        attempts.append(Spoken(np.concatenate(pieces), attempt, watch.missed == missed and not stop.is_set(), first))
        if good(attempts[-1], model.sample_rate):
            break
    return best(attempts, model.sample_rate)


@dataclass
class Request:
    """A chunk of model text that a batch shall speak."""

    chunk: str
    voice: ModelState  # of `voice_state` or `prompt_state`
    seed: int
    most_frames: int | None = None  # it is cut off there, and has missed its end


def speak_each(
    model: TTSModel,
    requests: Iterable[Request],
    retries: int = 0,
    slowest: float | None = None,
    size: int | None = None,
) -> Iterator[Spoken]:
    """Requests, spoken `size` at a time, in their order, each as soon as it and those before it are done.

    As `speak` does each alone: the same noise, cap and end, latents equal to 1e-4. `requests` may be a generator: only
    what is being spoken, and what waits for its turn in the order, is in memory.
    """
    batch = SpeechBatch(model, size or default_size(model.flow_lm.bos_emb.device))
    start, waiting, again = time.monotonic(), enumerate(requests), deque()
    numbers: dict[Sentence, int] = {}
    attempts: dict[int, list[Spoken]] = {}
    done: dict[int, Spoken] = {}
    following = 0

    def take() -> Sentence | None:
        number, sentence = again.popleft() if again else (None, None)
        if sentence is None:
            number, request = next(waiting, (None, None))
            sentence = None if request is None else as_sentence(model, request, slowest)
        if sentence is not None:
            numbers[sentence] = number
        return sentence

    for finished, audio in run(batch, take):
        if not torch.isfinite(audio).all():
            raise UserError(NOT_FINITE)
        number, sentence = numbers.pop(finished.sentence), finished.sentence
        tries = attempts.setdefault(number, [])
        tries.append(Spoken(audio.numpy(), sentence.seed, finished.ended, time.monotonic() - start))
        if not good(tries[-1], model.sample_rate) and len(tries) <= retries:
            again.append((number, replace(sentence, seed=sentence.seed + 1)))
            continue
        done[number] = best(attempts.pop(number), model.sample_rate)
        while following in done:
            yield done.pop(following)
            following += 1


def speak_texts(
    model: TTSModel,
    requests: Iterable[Request],
    max_tokens: int | None = None,
    retries: int = 0,
    slowest: float | None = None,
    size: int | None = None,
) -> Iterator[tuple[np.ndarray, list[Spoken]]]:
    """`speak_each` of texts of any length, in chunks of at most `max_tokens` tokens, or whole: the audio [samples] of
    each, and its chunks as they were spoken."""
    tokenizer = model.flow_lm.conditioner.tokenizer
    texts = [(r, split_text(r.chunk, tokenizer, max_tokens) if max_tokens else [r.chunk]) for r in requests]
    results = speak_each(
        model, (replace(r, chunk=chunk) for r, chunks in texts for chunk in chunks), retries, slowest, size
    )
    for _, chunks in texts:
        parts = [next(results) for _ in chunks]
        yield join([part.audio for part in parts], [pause_after(chunk) for chunk in chunks], model.sample_rate), parts


def as_sentence(model: TTSModel, request: Request, slowest: float | None) -> Sentence:
    """What the wheel would make of a request: its tokens, the frames after its end and its length cap."""
    lm = model.flow_lm
    options = (
        model.remove_semicolons,
        model.append_terminal_punctuation,
        model.capitalize_first_letter,
        model.replace_characters,
    )
    spaces = model.pad_with_spaces_for_short_inputs
    (text,) = split_into_best_sentences(lm.conditioner.tokenizer, request.chunk, 10**6, spaces, *options)
    prepared, guess = prepare_text_prompt(text, spaces, *options)
    tokens = lm.conditioner.tokenizer.encode(prepared)
    after = guess + 2 if model.model_recommended_frames_after_eos is None else model.model_recommended_frames_after_eos
    deadline = max_frames = model._estimate_max_gen_len(len(tokens))
    deadline -= 1  # the wheel counts one that needs all its frames as missed
    limit = longest_sec(model, request.chunk, slowest) * model.mimi.frame_rate
    if limit < deadline:
        deadline = int(limit)
        # `speak` sees it at the end of a block
        max_frames = min(max_frames, DECODE_FRAMES * (deadline // DECODE_FRAMES + 1))
    if request.most_frames is not None:
        deadline, max_frames = min(deadline, request.most_frames), min(max_frames, request.most_frames)
    return Sentence(request.voice, tokens, request.seed, after, max_frames, deadline)


def good(spoken: Spoken, rate: int) -> bool:
    return spoken.ended and not is_silent(spoken.audio, rate)


def best(attempts: list[Spoken], rate: int) -> Spoken:
    return min(attempts, key=lambda a: (is_silent(a.audio, rate), not a.ended, len(a.audio)))


def speak_samples(stem: Path, model: TTSModel, voice: Path, texts: list[str]) -> None:
    """STEM_0.wav and so on, each text with a seed of its own."""
    stem.parent.mkdir(exist_ok=True)
    state = voice_state(model, voice)
    for index, spoken in enumerate(speak_each(model, [Request(text, state, seed) for seed, text in enumerate(texts)])):
        write_wav(stem.with_name(f"{stem.name}_{index}.wav"), spoken.audio, model.sample_rate)


def is_silent(audio: np.ndarray, rate: int) -> bool:
    try:
        speech_bounds(audio, rate, FLOOR_DB)
    except AudioError:
        return True
    return False


def joined(parts: Iterable[tuple[np.ndarray, float]], rate: int) -> Iterator[np.ndarray]:
    """Chunks [samples] and the seconds of silence after each -> the pieces [samples] of one audio, faded at the joins.

    The last keeps its own end, and a single chunk stays as it is.
    """
    fade, ramp = int(FADE_SEC * rate), np.linspace(0, 1, int(FADE_SEC * rate), dtype=np.float32)
    waiting = iter(parts)
    current, first = next(waiting, None), True
    while current is not None:
        following = next(waiting, None)
        audio, pause = current
        start, end = (0, len(audio)) if is_silent(audio, rate) else speech_bounds(audio, rate, FLOOR_DB)
        stop = len(audio) if following is None else end + int(pause * rate)
        piece = audio[0 if first else max(0, start - int(HEAD_SEC * rate)) : stop].copy()
        if not first:
            piece[:fade] *= ramp
        if following is not None:
            piece[-fade:] *= ramp[::-1]
        yield np.pad(piece, (0, max(0, stop - len(audio))))
        current, first = following, False


def join(parts: list[np.ndarray], pauses: list[float], rate: int) -> np.ndarray:
    """`joined` in one array [samples]."""
    return np.concatenate(list(joined(zip(parts, pauses), rate)))
