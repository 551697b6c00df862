#!/usr/bin/env python3
"""How fast a batch speaks: the released `english` size with random weights, sentences as long as ClArTTS's test split
has them.

Reads   nothing. Needs torch, numpy and pocket-tts only.
Writes  a JSON line a measurement; with --out all of them to a file.

    python measure/gpu_speaking.py --out samples/bench_gpu.json     # a GPU; some 2 minutes
    python measure/gpu_speaking.py --tiny                           # does it run? any CPU

615 sentences of 1.8 to 12.8 s, 44 minutes in all. Random weights never end, so every sentence has its number of
frames. Measured: the batch with decoding, its parts apart, frames launched kernel by kernel, a batch of one row, and
the wheel's own loop, which speaks one sentence after another; and whether a sentence is the same alone and among
others.
"""

import argparse
import json
import logging
import platform
import shlex
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pocket_tts.modules.text_conditioner as conditioner
import torch
import yaml
from pocket_tts import TTSModel
from pocket_tts.models.flow_lm import FlowLMModel
from pocket_tts.models.mimi import build_mimi
from pocket_tts.models.tts_model import stamp_state_names
from pocket_tts.modules.stateful_module import ModelState, init_states
from pocket_tts.utils.config import CONFIGS_DIR, Config
from torch import nn

logging.getLogger("pocket_tts").setLevel(logging.ERROR)  # the stock loop says of every sentence that it did not end
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pocket_arabic.batch import Finished, Sentence, SpeechBatch, decode, run  # noqa: E402

T = TypeVar("T")
FRAME_SEC = 0.08
PROMPT_FRAMES = 63  # 5 s of voice


class Tokens:
    """A tokenizer that needs no file: a text of n characters has n tokens."""

    def __init__(self, bins: int):
        self.bins = bins

    def __call__(self, text: str) -> torch.Tensor:
        return (torch.arange(len(text)) * 7919 % self.bins)[None]


def build(tiny: bool, device: str) -> TTSModel:
    """The wheel's model of the released size (or a small one), never ending."""
    raw = yaml.safe_load((CONFIGS_DIR / "english.yaml").read_text(encoding="utf-8"))
    if tiny:
        raw["flow_lm"]["transformer"] |= {"d_model": 64, "num_heads": 2, "num_layers": 2}
        raw["flow_lm"]["flow"] |= {"dim": 64, "depth": 2}
        raw["flow_lm"]["lookup_table"]["dim"] = 64
        raw["mimi"]["seanet"] |= {"n_filters": 4}
    config = Config(**raw)
    conditioner.build_tokenizer = lambda bins, *_: Tokens(bins)
    torch.manual_seed(0)
    lm = FlowLMModel.from_pydantic_config(config.flow_lm, config.mimi.quantizer.dimension, True)
    lm.speaker_proj_weight = nn.Parameter(torch.randn(config.flow_lm.transformer.d_model, 32) * 32**-0.5)
    model = TTSModel(lm, config.default_temperature, 1, None, float("inf"), config)
    model.mimi = build_mimi(config.mimi)
    model.guidance = 1.0  # none, as pocket_arabic.base.tts_model leaves it where nothing is said
    stamp_state_names(model)
    return model.eval().requires_grad_(False).to(device)


@torch.no_grad()
def voice(model: TTSModel) -> ModelState:
    state = init_states(model.flow_lm, 1, PROMPT_FRAMES)
    prompt = torch.randn(
        1, PROMPT_FRAMES, model.flow_lm.dim, device=model.device, generator=torch.Generator(model.device).manual_seed(0)
    )
    model._run_flow_lm_and_increment_step(state, audio_conditioning=prompt)
    return state


def sentences(model: TTSModel, count: int) -> list[Sentence]:
    """Gamma-distributed lengths, mean 4.3 s, cut to 1.8 to 12.8 s; some 12 tokens a second, as Buckwalter in the
    released pieces."""
    rng, state = np.random.default_rng(0), voice(model)
    seconds = np.clip(rng.gamma(4.0, 4.3 / 4, count), 1.8, 12.8)
    tokens = [model.flow_lm.conditioner.tokenizer("x" * int(12 * s))[0].tolist() for s in seconds]
    return [
        Sentence(state, t, i, 2, int(s / FRAME_SEC), int(s / FRAME_SEC))
        for i, (t, s) in enumerate(zip(tokens, seconds))
    ]


def timed(model: TTSModel, work: Callable[[], T]) -> tuple[T, float]:
    """What a piece of work gives, and its seconds."""

    def now() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    start = now()
    done = work()
    return done, now() - start


def note(found: list[dict], what: str, **row: object) -> None:
    found.append({"what": what, **row})
    print(json.dumps(found[-1]), flush=True)


def report(found: list[dict], what: str, audio_sec: float, seconds: float, **more: object) -> None:
    times = round(audio_sec / seconds, 1)
    note(found, what, audio_sec=round(audio_sec, 1), seconds=round(seconds, 3), times_real_time=times, **more)


def generate(batch: SpeechBatch, chosen: list[Sentence]) -> list[Finished]:
    """Latents alone, in the order of `chosen`."""
    waiting, finished = list(reversed(chosen)), {}
    while waiting or batch.sentences:
        if room := [waiting.pop() for _ in range(min(batch.free, len(waiting)))]:
            batch.add(room)
        finished |= {id(f.sentence): f for f in batch.advance()}
    return [finished[id(u)] for u in chosen]


def stock(model: TTSModel, sentence: Sentence) -> int:
    """The wheel's own loop on one sentence. Returns its samples."""
    model._estimate_max_gen_len = lambda _: sentence.max_frames
    text, stop = "x" * len(sentence.tokens), threading.Event()
    return sum(len(piece) for piece in model._generate_audio_stream_short_text(sentence.voice, text, 2, True, stop))


# --- what is measured -------------------------------------------------------------------------------------------------


def wheel_alone(model: TTSModel, some: list[Sentence], found: list[dict]) -> None:
    stock(model, some[0])
    samples, seconds = timed(model, lambda: sum(stock(model, sentence) for sentence in some))
    report(found, "the wheel's own loop, one by one", samples / model.sample_rate, seconds, sentences=len(some))


def latents_alone(model: TTSModel, chosen: list[Sentence], few: int, rows: int, found: list[dict]) -> list[Finished]:
    """The second of two rounds counts: the first captures graphs. Returns what the last way made of `chosen`."""
    for name, size, graphs, some in (
        ("a batch of one row, latents alone, frames launched kernel by kernel", 1, False, chosen[:few]),
        ("batch, latents alone, frames launched kernel by kernel", rows, False, chosen[: 2 * rows]),
        ("a batch of one row, latents alone", 1, True, chosen[:few]),
        ("batch, latents alone", rows, True, chosen),
    ):
        batch = SpeechBatch(model, size, graphs)  # the one before is freed
        for _ in range(2):
            made, seconds = timed(model, partial(generate, batch, some))
        report(found, name, FRAME_SEC * sum(len(f.latents) for f in made), seconds, rows=size, sentences=len(some))
    return made


def same_alone(model: TTSModel, together: list[Finished], found: list[dict]) -> None:
    """Alone, launched, and among others, by graphs: the same, but for rounding that each frame hands to the next."""
    alone = generate(SpeechBatch(model, 1, graphs=False), [f.sentence for f in together[:4]])
    differences = [float((a.latents - b.latents).abs().max()) for a, b in zip(alone, together)]
    largest = max(float(a.latents.abs().max()) for a in alone)
    note(found, "alone and in the batch", largest_differences=differences, largest_latent=largest)


def decoding_alone(model: TTSModel, together: list[Finished], found: list[dict]) -> None:
    latents, most = [f.latents for f in together], 1024 if model.device.type == "cuda" else 32
    for _ in range(2):
        seconds = timed(model, lambda: decode(model, latents, most))[1]
    report(found, "decoding alone, one group", FRAME_SEC * sum(map(len, latents)), seconds, rows=len(latents))


def with_decoding(model: TTSModel, chosen: list[Sentence], rows: int, found: list[dict]) -> None:
    """In all, as generate_sample.py speaks a file."""
    batch = SpeechBatch(model, rows)

    def speak() -> tuple[int, float]:
        """Samples, and the seconds to the first of them."""
        start, samples, first = time.monotonic(), 0, None
        for _, audio in run(batch, partial(next, iter(chosen), None)):
            first = first or time.monotonic() - start
            samples += len(audio)
        return samples, first

    for round_ in ("first round", "second round"):
        (samples, first), seconds = timed(model, speak)
        more = {"first_audio_sec": round(first, 3), "rows": rows, "sentences": len(chosen)}
        if model.device.type == "cuda":
            more |= {"memory_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2)}
        report(found, f"batch with decoding, {round_}", samples / model.sample_rate, seconds, **more)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=64, help="rows of the batch")
    p.add_argument("--sentences", type=int, default=615)
    p.add_argument("--stock", type=int, default=6, help="sentences spoken by the wheel's own loop")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--tiny", action="store_true", help="a small model, 12 sentences, 4 rows")
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    if args.tiny:
        args.sentences, args.rows, args.stock = 12, 4, 2
    model, found = build(args.tiny, args.device), []
    chosen = sentences(model, args.sentences)

    wheel_alone(model, chosen[: args.stock], found)
    together = latents_alone(model, chosen, args.stock, args.rows, found)
    same_alone(model, together, found)
    decoding_alone(model, together[: args.rows], found)
    with_decoding(model, chosen, args.rows, found)

    result = {
        "command": shlex.join(["python", "measure/gpu_speaking.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(result), flush=True)
    if args.out:
        saved = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        saved["speaking"] = result | {"measurements": found}
        args.out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
