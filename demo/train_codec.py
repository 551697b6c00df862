#!/usr/bin/env python3
"""Train the nano codec of the embedded default: a small Mimi in the wheel's own modules.

Reads   demo/base.yaml (its `mimi` section) and espeak-ng's voices; no corpus: the Arabic it hears is pseudo-words
        drawn from roots and patterns, the English is the manual text inside the Python interpreter, so no sentence
        of demo/corpus is ever seen.
Writes  runs/codec/ (synthesised audio, what is heard and to be said, checkpoints, progress.jsonl) and, at the end,
        demo/codec.safetensors.

    python demo/train_codec.py                                                                  # 5 h on two CPU cores
    python demo/train_codec.py --code-hours 0.01 --both-hours 0.03 --decoder-hours 0.03 --clips 200 --work /tmp/codec \
        --out /tmp/codec.safetensors                                                            # does it run?
    python demo/train_codec.py --init demo/codec.safetensors --code-hours 0 --both-hours 0 --floor-share 0 \
        --work runs/further                                     # trains its decoder further; latents stay as they are
    python demo/train_codec.py --init demo/codec.safetensors --init-code runs/codec/code.pt --seed 1 --floor-share 0 \
        --work runs/round                                       # trains all of it further, on other speech

The same command again continues from the checkpoints. Every schedule is a function of the share of the hours spent, so
a slower machine takes fewer steps, never longer.

What is to be decoded is not what was heard but the same speech with its periods in step with the frames: each frame
holds whole periods and begins with one (`in_step`). A FlowLM cannot know at which point of its period the voice will
be, 12.5 times a second; spectral distances see no phase, so they teach a decoder to say vowels as shaped noise; and a
waveform to be met puts the phase into every latent. In step, the waveform follows from what a FlowLM does know. The
price: a frame's pitch moves to a multiple of 12.5 Hz, by 6.25 Hz at most.

1. The code, without audio: a small network writes log-mel spectrum, voicing and number of periods of a frame and of the
   one before as a latent, another reads them from it and the two before, under noise of up to --noise standard
   deviations, since what a FlowLM predicts is never exact. Both are dropped afterwards. What an encoder learns to say
   in an hour by way of a decoder, these learn in minutes (report, section 3).
2. Encoder and decoder side by side, a core each. The encoder hears audio and shall give the code, and what is read from
   it; the decoder is given the code and shall say the frame.
3. The decoder alone, from what the encoder gives, kept frame by frame; where the encoder has taken a frame's number of
   periods for the next one, so shall the decoder.

A decoder that only has spectra to meet learns to whisper, so it also hears the waveform below 200, 400, 800, 1600 and
3200 Hz; of log-mel and magnitude distances of several windows at first what is loud, and quiet frames weigh less, as
most of their gradient is of pauses otherwise. After --critic-share come discriminators (multi-period and
multi-resolution, HiFi-GAN arXiv 2010.05646 and UnivNet arXiv 2106.07889, a few channels each) with feature matching,
for the fine structure of the upper bands.

Layers start at unit variance (Mishkin and Matas, arXiv 1511.06422) and convolutions train with Muon: without the one
the latents hardly move for hundreds of steps, without the other each part takes longer (report, section 3).
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
import yaml
from pocket_tts.models.mimi import MimiModel, build_mimi
from pocket_tts.modules.seanet import SEANetResnetBlock
from pocket_tts.modules.stateful_module import StatefulModule, init_states
from pocket_tts.utils.config import MimiConfig
from safetensors.torch import load_file, save_file
from scipy.ndimage import median_filter
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from build_corpus import SAMPLE_RATE, espeak  # noqa: E402

from pocket_arabic.adapt import Muon  # noqa: E402

FRAME = 1920  # samples per latent: 24000 / 12.5
MUON_SCALE = 2.5  # its rate to AdamW's
ENCODER = ("encoder", "encoder_transformer", "downsample")  # the parts of a codec; one whose transformers run at the
DECODER = ("quantizer", "upsample", "decoder_transformer", "decoder")  # latents' rate has no downsample and upsample
MUON_LEAST = 16  # rows and columns of what it trains
OUTPUT_SCALE = 0.02  # the last layer's rate to AdamW's: its weights are some 0.003, as audio is faint
MELODY_WEIGHT = 1.0  # with 2 the waveform has twice the gradient of the spectra, halfway
MEL_MEAN, MEL_STD = -2.5, 2.0  # of log-mel spectra of speech
MEL_FLOOR = 1e-4  # speech is some 0.1: at 1e-3 pauses could hiss 40 dB below it, which alone is a distortion of 2.5 dB
VOICING_WEIGHT, PERIODS_WEIGHT, MOMENTS_WEIGHT = 0.3, 0.5, 0.05  # beside the spectrum that is read from latents
READ_WEIGHT = 0.5  # at last, of what is read from the encoder's latents, beside their distance from the code
ENCODER_PERIODS = 0.1  # instead of 0.5, with which numbers of periods would have most of the gradient: 2.8, of the
# code's distance 0.9, of the spectrum 0.6; the wrong ones are one off, and certain
CODE_LR, CODE_CROPS = 2e-3, 24  # of the code's networks: peak rate, crops per step
ENCODER_CROPS, DECODER_CROPS = 6, 3  # per step; with 3 and 6 both learn less in the same time
READER_STEPS = 600
SILENCE, RISE = 2 * FRAME, 240  # samples: most of a crop's own that are silent at first, and how fast it sets in then
QUIET = 0.3  # at this share of the mean loudness the square of a frame's weight is a half
HIGH_FLOOR = 0.1  # of spectral distances at first: with a low one their gradient is nearly all of pauses
LAGS = np.arange(60, 401)  # samples, the periods of 400 to 60 Hz
WINDOW, HOP = 1536, 240  # samples in which a period is looked for, and between two looks
MOST_PERIODS = 40  # of a frame, for the code
VOICED = 0.45  # autocorrelation at the period

STYLE = {"betas": (0.8, 0.99), "weight_decay": 0.01}  # AdamW's

# --- what the codec hears ---------------------------------------------------------------------------------------------

CONSONANTS = "ءبتثجحخدذرزسشصضطظعغفقكلمنهوي"
# Patterns over the root letters 1, 2, 3: verbs, participles, verbal nouns, plurals, with and without the article.
PATTERNS = [
    "1َ2َ3َ",
    "يَ1ْ2ُ3ُ",
    "1ِ2َا3ٌ",
    "1َا2ِ3ٌ",
    "مَ1ْ2ُو3ٍ",
    "تَ1ْ2ِي3ًا",
    "مُ1َ2ِّ3ٌ",
    "اسْتَ1ْ2َ3َ",
    "1َ2ِي3َةٌ",
    "الْ1ُ2ُو3ِ",
    "أَ1ْ2َا3ٍ",
    "تَ1َ2َّ3َ",
    "1َ2ْ3َى",
    "مُ1ْتَ2ِ3َةً",
    "1ُ2َيْ3ٌ",
    "1َ2َّا3ُونَ",
    "نَ1ْ2ِ3ُ",
    "1ِ2ْ3ِيٌّ",
    "1َوْ2َ3ٌ",
    "مِ1ْ2َا3ٌ",
    "إِ1ْ2َا3َ",
    "انْ1َ2َ3َتْ",
    "1ُ2ِّ3َ",
    "آ1ِ2َ3ٌ",
    "لِ1َ2ْ3ِهِمْ",
    "وَ1َ2ُ3َ",
    "بِ1ُ2ْ3ٍ",
]
ARABIC_ENDS, ENGLISH_ENDS = [".", "؟", "!", "،"], [".", "?", "!", ","]


def pseudo_arabic(rng: random.Random) -> str:
    """A vocalised line of 3-8 words drawn from random roots: every consonant meets every vowel."""
    words = []
    for _ in range(rng.randint(3, 8)):
        root = rng.choices(CONSONANTS, k=3)
        words.append("".join(root[int(c) - 1] if c in "123" else c for c in rng.choice(PATTERNS)))
    return " ".join(words) + rng.choice(ARABIC_ENDS)


def english_lines() -> list[str]:
    words = [w for text in topics.values() for w in text.split() if w.isalpha()]
    return [" ".join(words[i : i + 8]) for i in range(0, len(words) - 8, 8)]


def synthesise(folder: Path, num_clips: int, seed: int) -> None:
    """Write `num_clips` espeak-ng clips to one int16 array: seven of eight in the corpus's voice, three of four of them
    Arabic and one English, the others in other voices, Arabic and English."""
    rng, english = random.Random(seed), english_lines()
    variants = [f"m{i}" for i in range(1, 9)] + [f"f{i}" for i in range(1, 6)] + ["klatt", "klatt2", "steph", "adam"]
    jobs = []
    for i in range(num_clips):
        if i % 8:
            how: dict = {"voice": rng.choice(["ar", "ar", "ar", "en"])}
        else:
            how = {
                "voice": f"{rng.choice(['ar', 'ar', 'en-us', 'en-gb'])}+{rng.choice(variants)}",
                "speed": rng.randint(120, 210),
                "pitch": rng.randint(30, 90),
                "melody": rng.randint(100, 200),
            }
        is_english = how["voice"].startswith("en")
        jobs.append((rng.choice(english) + rng.choice(ENGLISH_ENDS) if is_english else pseudo_arabic(rng), how))

    def speak(job: tuple[str, dict]) -> np.ndarray:
        text, how = job
        return (espeak(text, **how) * 32767).astype(np.int16)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        audio = np.concatenate(list(pool.map(speak, jobs)))
    torch.set_num_threads(threads)
    save(folder / "audio.npy", audio)


def draw_batch(audio: np.ndarray, batch_size: int, frames: int, rng: np.random.Generator) -> torch.Tensor:
    """Random crops [B, 1, frames * FRAME], each with its own gain of -12 to +3 dB."""
    starts = rng.integers(0, len(audio) - frames * FRAME, batch_size)
    batch = np.stack([audio[s : s + frames * FRAME] for s in starts]).astype("float32") / 32768
    gain = 10 ** (rng.uniform(-12, 3, (batch_size, 1)) / 20)
    return torch.from_numpy((batch * gain).astype("float32")).clamp(-1, 1)[:, None]


def begun(longer: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Audio [B, N] as a clip begins: silent for a frame and up to SILENCE more. A codec whose crops all begin within
    speech gives and makes of a clip's first latents, which have no past, anything: theirs had a deviation of 4, and
    their sound was a burst."""
    silence = torch.from_numpy(rng.integers(FRAME, FRAME + SILENCE, (len(longer), 1)))
    return longer * ((torch.arange(longer.shape[1]) - silence) / RISE).clamp(0, 1)


# --- speech in step with the frames -----------------------------------------------------------------------------------


def periods(audio: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitch in Hz, where in its period the fundamental is (0 to 1, 0 at its crest) and whether there is one, every HOP
    samples of audio [B, N]: [B, 1 + N // HOP] each. By autocorrelation below 1 kHz, long lags a little against."""
    window = torch.hann_window(WINDOW)
    looks = F.pad(audio, (WINDOW // 2, WINDOW // 2)).unfold(-1, WINDOW, HOP) * window
    low = torch.fft.rfftfreq(4096, 1 / SAMPLE_RATE) < 1000
    of_window = torch.fft.irfft(torch.fft.rfft(window, 4096).abs().square())[: LAGS[-1] + 1]
    correlation = torch.fft.irfft(torch.fft.rfft(looks, 4096).abs().square() * low)[..., : LAGS[-1] + 1]
    energy = correlation[..., :1]
    correlation = (correlation / (energy + 1e-9) * of_window[0] / of_window)[..., LAGS[0] :]
    best = (correlation * (1 - 0.15 * torch.from_numpy(LAGS) / LAGS[-1])).argmax(-1, keepdim=True)
    hz = SAMPLE_RATE / (best + LAGS[0])
    seconds = torch.arange(-WINDOW // 2, WINDOW // 2) / SAMPLE_RATE
    phase = (looks * torch.exp(-2j * torch.pi * hz * seconds)).sum(-1).angle() / (2 * torch.pi)
    voiced = (correlation.gather(-1, best) > VOICED) & (energy > 1e-3 * energy.amax(1, keepdim=True))
    return hz[..., 0].numpy(), phase.numpy(), voiced[..., 0].numpy()


def in_step(audio: torch.Tensor, counts: np.ndarray | None = None) -> torch.Tensor:
    """Audio [B, N] with the periods of its voice moved so that each FRAME from the start on begins with one and holds a
    whole number of them, all equally long: TD-PSOLA (Moulines and Charpentier 1990). What has no voice keeps its place
    within part of a period, and so does every sound. Periods that go on to follow the melody within a frame leave 48 %
    of a voice's energy between 800 and 1600 Hz within 12.5 Hz of the frame's harmonics, equal ones 72 %: what no latent
    tells, no decoder can say. How many is the number nearest to what was heard, or in `counts` [B, N / FRAME], where
    that is not 0."""
    counts = [None] * len(audio) if counts is None else counts
    return torch.from_numpy(np.stack([crop_in_step(*crop) for crop in zip(audio.numpy(), *periods(audio), counts)]))


def pitch_track(hz: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Hz every HOP samples, smoothed, and where there is no voice on the line between its neighbours."""
    looks = np.arange(len(hz))
    return np.interp(looks, looks[voiced], median_filter(hz[voiced], 5))


def whole_periods(pitch: np.ndarray, samples: int) -> np.ndarray:
    """How many periods each frame holds, rounded, at least 1."""
    time = np.arange(samples)
    passed = np.cumsum(np.interp(time, np.arange(len(pitch)) * HOP, pitch)) / SAMPLE_RATE
    return np.maximum(np.round(np.diff(np.append(passed[::FRAME], passed[-1]))), 1).astype(int)


def crop_in_step(
    samples: np.ndarray, hz: np.ndarray, phase: np.ndarray, voiced: np.ndarray, counts: np.ndarray | None = None
) -> np.ndarray:
    """One crop of `in_step`: what stands at each new period's beginning is what stood at the nearest old one's; between
    two they are crossfaded."""
    if voiced.sum() < 3:
        return samples
    time, pitch = np.arange(len(samples)), pitch_track(hz, voiced)
    frame, whole = time // FRAME, whole_periods(pitch, len(samples))
    if counts is not None:
        whole = np.where(counts, counts, whole)
    place = (np.cumsum(whole) - whole)[frame] + whole[frame] * (time % FRAME) / FRAME
    starts = np.interp(np.arange(int(place[-1]) + 2), place, time)
    near = np.minimum(np.round(starts / HOP).astype(int), len(hz) - 1)
    old = phase[near] + hz[near] * (starts - near * HOP) / SAMPLE_RATE
    shift = (np.round(old) - old) / pitch[near] * SAMPLE_RATE
    known = np.flatnonzero(voiced[near])
    shift = np.round(np.interp(np.arange(len(shift)), known, shift[known])).astype(int) if len(known) else 0 * near
    period = place.astype(int)
    fade = 0.5 - 0.5 * np.cos(np.pi * (place - period))
    one, next_one = (samples[np.clip(time + shift[period + i], 0, len(samples) - 1)] for i in (0, 1))
    return ((1 - fade) * one + fade * next_one).astype("float32")


# --- the codec --------------------------------------------------------------------------------------------------------


def load_mimi(config_path: Path) -> MimiModel:
    mimi = build_mimi(MimiConfig(**yaml.safe_load(config_path.read_text())["mimi"]))
    for name, module in mimi.named_modules():
        if isinstance(module, StatefulModule):
            module._module_absolute_name = name
    return mimi


def decode(mimi: MimiModel, latents: torch.Tensor) -> torch.Tensor:
    """[B, T, 32] -> [B, 1, T * FRAME]: MimiModel.decode_from_latent with the transformer on its stateless path,
    since writing a key-value cache in place has no gradient."""
    state = init_states(mimi, latents.shape[0], 1)
    x = mimi._to_encoder_framerate(mimi.quantizer(latents.transpose(1, 2)), state)
    (x,) = mimi.decoder_transformer(x, None)
    return mimi.decoder(x, state)


def scale_layers(mimi: MimiModel, audio: torch.Tensor) -> None:
    """Orthogonal convolutions of zero bias, each scaled so that on `audio` [B, 1, N] what it gives has a standard
    deviation of 1; a residual branch's 0.3, the waveform's 0.1. By their defaults a few layers shrink the signal below
    the biases."""
    convs = [m for m in mimi.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    for conv in convs:
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        if conv.groups == 1:
            nn.init.orthogonal_(conv.weight)
    branches = [block.block[-1].conv for block in mimi.modules() if isinstance(block, SEANetResnetBlock)]

    def hear(hook) -> None:
        handles = [conv.register_forward_hook(hook) for conv in convs]
        with torch.no_grad():
            decode(mimi, mimi.encode_to_latent(audio))
        for handle in handles:
            handle.remove()

    order: list[nn.Module] = []
    hear(lambda conv, inputs, output: order.append(conv))
    targets = {conv: 0.3 if conv in branches else 1.0 for conv in order} | {order[-1]: 0.1}

    def scale(conv: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        ratio = targets[conv] / output.std()
        conv.weight.data *= ratio
        return output * ratio

    hear(scale)


def disturbed(latents: torch.Tensor, std: torch.Tensor, most: float) -> torch.Tensor:
    """Latents [B, T, C] with noise of 0 to `most` times their deviations `std` [C], drawn for each of the B."""
    return latents + torch.rand(len(latents), 1, 1) * most * std * torch.randn_like(latents)


# --- the code ---------------------------------------------------------------------------------------------------------


class Frames(NamedTuple):
    """What the codec trains on, crops side by side, each with its own gain."""

    heard: np.ndarray  # [crops, (frames + 2) * FRAME] int16, audio, a frame more on both sides, silent before
    speech: np.ndarray  # [crops, frames * FRAME] int16, what is to be said
    sound: np.ndarray  # [crops, 1 + frames, SOUND] float16, log-mel spectrum of each 120 samples, voicing of each HOP
    counts: np.ndarray  # [crops, 1 + frames] uint8, periods in step, 0 in a frame that is less than half voiced


MELS, LOOKS = 64, FRAME // 120
SOUND = LOOKS * MELS + FRAME // HOP


def frames_of(longer: torch.Tensor) -> Frames:
    """Of audio [B, N] with a frame more on both sides."""
    window = torch.hann_window(512)
    bank = torchaudio.functional.melscale_fbanks(513, 0.0, 12000.0, MELS, SAMPLE_RATE, mel_scale="slaney")
    looks = F.pad(longer, (256, 256 - FRAME)).unfold(-1, 512, 120)[:, :-1] * window
    mel = (torch.log(torch.fft.rfft(looks, 1024).abs() @ bank + 1e-3) - MEL_MEAN) / MEL_STD
    hz, phase, voiced = periods(longer)
    counts = np.zeros((len(longer), longer.shape[1] // FRAME), np.uint8)
    for count, track, known in zip(counts, hz, voiced):
        if known.any():
            count[:] = whole_periods(pitch_track(track, known), longer.shape[1]).clip(0, MOST_PERIODS)
    by_frame = voiced[:, :-1].reshape(*counts.shape, -1)
    counts *= by_frame.mean(2) >= 0.5
    speech = np.stack([crop_in_step(*crop) for crop in zip(longer.numpy(), hz, phase, voiced)])
    heard, speech = ((x * 32767).astype(np.int16) for x in (longer.numpy(), speech[:, FRAME:-FRAME].clip(-1, 1)))
    sound = np.concatenate([mel.unflatten(1, (-1, LOOKS)).flatten(2).numpy(), by_frame[:, :-1]], -1)
    return Frames(heard, speech, sound.astype(np.float16), counts[:, :-1])


def context(latents: torch.Tensor) -> torch.Tensor:
    """Each latent and the two before: [B, T, C] -> [B, T - 2, 3 C]"""
    return torch.cat([latents[:, 2:], latents[:, 1:-1], latents[:, :-2]], -1)


def hidden_layer(inputs: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU()


class Code(nn.Module):
    """Latents of what a frame sounds like: `write` makes one of a frame and the one before, `read` reads the frame from
    it and the two before. They teach the encoder and are dropped."""

    def __init__(self, dimensions: int, width: int = 768):
        super().__init__()
        sizes = (2 * (SOUND + MOST_PERIODS + 1), 3 * dimensions), (dimensions, SOUND + MOST_PERIODS + 1)
        self.write, self.read = (
            nn.Sequential(*hidden_layer(i, width), *hidden_layer(width, width), nn.Linear(width, o))
            for i, o in zip(*sizes)
        )

    def forward(self, sound: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """[B, T, SOUND], [B, T] -> [B, T - 1, C]"""
        x = torch.cat([sound, F.one_hot(counts, MOST_PERIODS + 1).float()], -1)
        return self.write(torch.cat([x[:, 1:], x[:, :-1]], -1))

    def errors(self, latents: torch.Tensor, sound: torch.Tensor, counts: torch.Tensor) -> dict[str, torch.Tensor]:
        """How far what is read from latents [B, T, C] is from the last T - 2 frames of what was heard: the spectrum's
        mean absolute error, and cross-entropies."""
        mel, voicing, periods = self.read(context(latents)).split((LOOKS * MELS, FRAME // HOP, MOST_PERIODS + 1), -1)
        wanted, voiced = sound[:, -mel.shape[1] :].split((LOOKS * MELS, FRAME // HOP), -1)
        return {
            "mel": MEL_STD * F.l1_loss(mel, wanted),
            "voicing": F.binary_cross_entropy_with_logits(voicing, voiced),
            "periods": F.cross_entropy(periods.flatten(0, 1), counts[:, -mel.shape[1] :].flatten()),
        }

    def fold(self, latents: torch.Tensor) -> None:
        """From now on write with mean 0 and standard deviation 1 what is now `latents` [B, T, C], and read it so."""
        mean, std = latents.mean((0, 1)), latents.std((0, 1))
        last, first = self.write[-1], self.read[0]
        with torch.no_grad():
            last.weight /= std[:, None]
            last.bias.copy_((last.bias - mean) / std)
            first.bias += first.weight @ mean.repeat(3)
            first.weight *= std.repeat(3)


def error_sum(errors: dict[str, torch.Tensor], periods: float) -> torch.Tensor:
    return errors["mel"] + VOICING_WEIGHT * errors["voicing"] + periods * errors["periods"]


# --- what teaches the decoder -----------------------------------------------------------------------------------------


class MelodyDistance(nn.Module):
    """Log of 1 + the error's energy over the signal's, below each of some frequencies, mean over crops and bands. It is
    log 2 for silence and more for a wrong phase: what it pulls at is the waveform of the voice and of its first
    harmonics."""

    def __init__(self, samples: int, bands: tuple[float, ...] = (200.0, 400.0, 800.0, 1600.0, 3200.0)):
        super().__init__()
        hz = torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
        self.register_buffer("masks", torch.stack([torch.sigmoid((band - hz) / (0.05 * band)) for band in bands]))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """[B, 1, samples] each -> scalar"""
        error, signal = (torch.fft.rfft(part) for part in (x - y, y))
        error, signal = ((part * self.masks).abs().square().sum(-1) for part in (error, signal))  # [B, bands]
        return torch.log1p(error / (signal + 1e-3 * signal.mean(0) + 1e-6)).mean()


class SpectralDistance(nn.Module):
    """Mean over window sizes of L1 log-mel + L1 on compressed magnitudes, both blind below `floor`; long windows see
    the single harmonics. Quiet frames weigh less: a logarithm's gradient is the greater the less there is, and pauses,
    a quarter of all, had two to eight times that of speech, which then hardly counted in a clipped step."""

    def __init__(self, windows: tuple[int, ...] = (256, 512, 1024, 2048), mels: tuple[int, ...] = (32, 64, 80, 128)):
        super().__init__()
        self.windows, self.floor = windows, MEL_FLOOR
        for n, m in zip(windows, mels):
            self.register_buffer(f"window_{n}", torch.hann_window(n))
            bank = torchaudio.functional.melscale_fbanks(n // 2 + 1, 0.0, 12000.0, m, SAMPLE_RATE, mel_scale="slaney")
            self.register_buffer(f"mel_{n}", bank)

    def spectra(self, x: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 1, N] -> log-mel and compressed magnitudes."""
        weights = getattr(self, f"window_{window}")
        spectrum = torch.stft(x[:, 0], window, window // 4, window=weights, return_complex=True)
        power = spectrum.real**2 + spectrum.imag**2 + self.floor**2
        mel = torch.sqrt(power).transpose(1, 2) @ getattr(self, f"mel_{window}")
        return torch.log(mel + self.floor), power**0.15

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        total = x.new_zeros(())
        for window in self.windows:
            mel, magnitude = self.spectra(x, window)
            with torch.no_grad():
                real_mel, real_magnitude = self.spectra(real, window)
                loud = real_mel.exp().mean(-1)  # [B, looks]
                weight = (loud / (loud + QUIET * loud.mean())).sqrt()[..., None]
            errors = (mel - real_mel).abs(), 2 * (magnitude - real_magnitude).abs().transpose(1, 2)
            total = total + sum((error * weight).mean() for error in errors)
        return total / len(self.windows)


def feature_maps(convs: nn.ModuleList, out: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What each layer makes of x, the last one's score at the end."""
    maps = []
    for conv in convs:
        x = F.leaky_relu(conv(x), 0.1)
        maps.append(x)
    return [*maps, out(x)]


class PeriodDiscriminator(nn.Module):
    def __init__(self, period: int, widths: tuple[int, ...] = (8, 16, 32, 64)):
        super().__init__()
        self.period = period
        ins = (1, *widths[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(i, o, (5, 1), (3, 1), (2, 0)) for i, o in zip(ins, widths))
        self.out = nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.pad(x, (0, -x.shape[-1] % self.period), "reflect").unflatten(-1, (-1, self.period))
        return feature_maps(self.convs, self.out, x)


class SpectrumDiscriminator(nn.Module):
    def __init__(self, window: int, width: int = 12):
        super().__init__()
        self.size = window
        self.register_buffer("window", torch.hann_window(window))
        self.convs = nn.ModuleList(
            nn.Conv2d(i, width, (5, 3), (s, 1), (2, 1)) for i, s in ((2, 2), (width, 2), (width, 2), (width, 2))
        )
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        s = torch.stft(x[:, 0], self.size, self.size // 4, window=self.window, return_complex=True)
        x = torch.stack([s.real, s.imag], 1)
        x = x / (x.square().sum(1, keepdim=True) + 1e-6) ** 0.3  # magnitude to the power 0.4, phase kept
        return feature_maps(self.convs, self.out, x)


class Discriminators(nn.ModuleList):
    def __init__(self) -> None:
        super().__init__(
            [PeriodDiscriminator(p) for p in (2, 3, 5, 7, 11)] + [SpectrumDiscriminator(n) for n in (512, 1024, 2048)]
        )

    def forward(self, x: torch.Tensor) -> list[list[torch.Tensor]]:
        return [d(x) for d in self]


def generator_terms(
    fake: list[list[torch.Tensor]], real: list[list[torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hinge generator loss and feature matching (L1 relative to the real map's mean magnitude), means over
    discriminators."""
    adversarial = torch.stack([-maps[-1].mean() for maps in fake]).mean()
    features = torch.stack(
        [F.l1_loss(f, r) / (r.abs().mean() + 1e-4) for fs, rs in zip(fake, real) for f, r in zip(fs[:-1], rs[:-1])]
    ).mean()
    return adversarial, features


# --- the run ----------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", type=Path, default=HERE / "base.yaml", help="model config whose mimi section is built")
    p.add_argument("--out", type=Path, default=HERE / "codec.safetensors", help="weights file written at the end")
    p.add_argument("--work", type=Path, default=Path("runs/codec"), help="synthesised audio, checkpoint, progress")
    p.add_argument("--init", type=Path, help="weights of a codec to train further")
    p.add_argument("--init-code", type=Path, help="code.pt of another run's --work, to train it further")
    p.add_argument("--code-hours", type=float, default=0.75, help="of the code's networks")
    p.add_argument("--both-hours", type=float, default=1.5, help="of encoder and decoder, over all continuations")
    p.add_argument("--decoder-hours", type=float, default=2.5, help="of the decoder alone after that")
    p.add_argument("--clips", type=int, default=4000, help="espeak-ng clips to synthesise (about 4 s each)")
    p.add_argument("--frames", type=int, default=14, help="latent frames per crop (80 ms each)")
    p.add_argument(
        "--lr",
        type=float,
        default=1.2e-3,
        help="peak AdamW learning rate, Muon's 2.5 times it, cosine to 2 %%; discriminators 0.4 of the peak",
    )
    p.add_argument("--floor-share", type=float, default=0.4, help="share until the spectra hear what is faint, too")
    p.add_argument("--critic-share", type=float, default=0.8, help="share before the discriminators start")
    p.add_argument(
        "--noise", type=float, default=0.4, help="largest latent noise, in standard deviations, drawn per crop"
    )
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args(argv)


def hear(args: argparse.Namespace) -> None:
    """Audio and all of it as `Frames`, in `args.work`, once: 400 s of one core for 4.5 hours."""
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "audio.npy").exists():
        synthesise(args.work, args.clips, args.seed)
    if (args.work / f"{Frames._fields[-1]}.npy").exists():
        return
    audio, long = np.load(args.work / "audio.npy", mmap_mode="r"), (args.frames + 2) * FRAME
    starts, rng, kept = np.arange(0, len(audio) - long, args.frames * FRAME), np.random.default_rng(args.seed), []
    for i in range(0, len(starts), 16):
        crops = [draw_batch(audio[s : s + long + 1], 1, args.frames + 2, rng)[:, 0] for s in starts[i : i + 16]]
        kept.append(frames_of(begun(torch.cat(crops), rng)))
    for name, arrays in zip(Frames._fields, zip(*kept)):
        save(args.work / f"{name}.npy", np.concatenate(arrays))


def save(file: Path, array: np.ndarray) -> None:
    np.save(file.with_name("tmp.npy"), array)
    os.replace(file.with_name("tmp.npy"), file)


def save_state(file: Path, state: dict) -> None:
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def load_frames(work: Path) -> Frames:
    return Frames(*(np.load(work / f"{name}.npy", mmap_mode="r") for name in Frames._fields))


def waveform(samples: np.ndarray) -> torch.Tensor:
    """[B, N] int16 -> [B, 1, N]"""
    return torch.from_numpy(samples.astype("float32") / 32767)[:, None]


def tensors(frames: Frames, crops: np.ndarray | slice) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.from_numpy(frames.sound[crops].astype("float32")),
        torch.from_numpy(frames.counts[crops].astype("int64")),
    )


def learn_code(args: argparse.Namespace, frames: Frames) -> Code:
    """Stage 1, once: the code in code.pt, that of all frames in codes.npy."""
    code, file = Code(load_mimi(args.config).quantizer.dimension), args.work / "code.pt"
    done = file.exists()
    if source := file if done else args.init_code:
        code.load_state_dict(torch.load(source, weights_only=True))
    if not done:
        train_code(args, frames, code)
        save_state(file, code.state_dict())
    if not (args.work / "codes.npy").exists():
        parts = (slice(i, i + 64) for i in range(0, len(frames.counts), 64))
        with torch.no_grad():
            codes = [code(*tensors(frames, part)).numpy() for part in parts]
        save(args.work / "codes.npy", np.concatenate(codes))
    return code


def train_code(args: argparse.Namespace, frames: Frames, code: Code) -> None:
    optimiser, step, began = torch.optim.AdamW(code.parameters(), CODE_LR, **STYLE), 0, time.monotonic()
    rng = np.random.default_rng(args.seed)
    while (share := (time.monotonic() - began) / 3600 / args.code_hours) < 1:
        optimiser.param_groups[0]["lr"] = CODE_LR * min(1, (step + 1) / 100) * rate(share)
        sound, counts = tensors(frames, np.sort(rng.integers(0, len(frames.counts), CODE_CROPS)))
        latents = code(sound, counts)
        mean, std = latents.mean((0, 1)), latents.std((0, 1))
        errors = code.errors(disturbed(latents, std.detach(), args.noise), sound, counts)
        moments = (std.log() ** 2).mean() + (mean**2).mean()
        optimiser.zero_grad()
        (error_sum(errors, PERIODS_WEIGHT) + MOMENTS_WEIGHT * moments).backward()
        optimiser.step()
        step += 1
        if step % 200 == 0:
            log(args.work, {"part": "code", "step": step, **{name: error.item() for name, error in errors.items()}})
    with torch.no_grad():
        code.fold(code(*tensors(frames, slice(1000))))


def keep_latents(args: argparse.Namespace, mimi: MimiModel, frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder makes of all frames [crops, frames, C], and what is to be said then, once: periods as in
    `frames.speech`, but as many in a frame as is read from the latents."""
    files = [args.work / "latents.npy", args.work / "said.npy"]
    if not files[1].exists():
        crops = [slice(i, i + 16) for i in range(0, len(frames.heard), 16)]
        with torch.no_grad():
            heard = (waveform(frames.heard[part, FRAME:-FRAME]) for part in crops)
            latents = np.concatenate([mimi.encode_to_latent(part).numpy() for part in heard])
        counts = np.pad(read_periods(latents, frames.counts[:, 1:]), ((0, 0), (1, 1)))
        save(files[0], latents)
        said = [in_step(waveform(frames.heard[part])[:, 0], counts[part])[:, FRAME:-FRAME] for part in crops]
        save(files[1], (torch.cat(said).clamp(-1, 1) * 32767).to(torch.int16).numpy())
    return np.load(files[0]), np.load(files[1], mmap_mode="r")


def read_periods(latents: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of latents [crops, T, C] and how many periods were heard [crops, T], how many a small network reads from them, at
    most one more or less. 8.4 or 8.6 is all the same to an ear, and 8 or 9 to a waveform: where an encoder takes it for
    the other one, a decoder can say only that."""
    x = context(torch.from_numpy(latents)).flatten(0, 1)
    wanted = torch.from_numpy(counts[:, 2:].astype("int64")).flatten()
    reader = nn.Sequential(nn.Linear(x.shape[1], 256), nn.GELU(), nn.Linear(256, MOST_PERIODS + 1))
    optimiser, rng = torch.optim.AdamW(reader.parameters(), CODE_LR, **STYLE), np.random.default_rng(0)
    for step in range(READER_STEPS):
        drawn = torch.from_numpy(rng.integers(0, len(x), 4096))
        optimiser.param_groups[0]["lr"] = 1.5 * CODE_LR * rate(step / READER_STEPS)
        optimiser.zero_grad()
        F.cross_entropy(reader(x[drawn]), wanted[drawn]).backward()
        optimiser.step()
    with torch.no_grad():
        read = torch.cat([reader(part).argmax(-1) for part in x.split(4096)])
    voiced = (read > 0) & (wanted > 0)
    right = (read == wanted)[voiced].float().mean()
    print(f"periods: {100 * right:.0f} % of voiced frames read as heard", flush=True)
    chosen = torch.where(voiced, read.clamp(wanted - 1, wanted + 1), wanted)
    return np.concatenate([counts[:, :2], chosen.view(len(latents), -1).numpy()], 1)


def rate(share: float) -> float:
    """Of the peak: cosine to 2 %."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def log(work: Path, record: dict) -> None:
    with open(work / "progress.jsonl", "a") as f:
        f.write(json.dumps(record) + "\n")
    print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()), flush=True)


class Training:
    """Of the `parts` of a codec: optimisers and averages, what `more` a stage trains, and where it is; the checkpoint
    continues there."""

    def __init__(
        self, args: argparse.Namespace, mimi: MimiModel, parts: tuple[str, ...], **more: nn.Module | torch.optim.AdamW
    ):
        self.args, self.mimi, self.parts = args, mimi, parts
        self.checkpoint = args.work / f"{parts[0]}.pt"
        for name, part in mimi.named_children():
            part.requires_grad_(name in parts)
        trained = [p for p in mimi.parameters() if p.requires_grad]
        self.weights = [p for p in trained if p.ndim > 1 and min(p.shape[0], p[0].numel()) >= MUON_LEAST]
        self.matrices = [p.detach().flatten(1) for p in self.weights]  # views
        output = [p for p in mimi.decoder.model[-1].parameters() if p.requires_grad]
        rest = [p for p in trained if not any(p is other for other in self.weights + output)]
        groups = [{"params": rest, "scale": 1.0}, {"params": output, "scale": OUTPUT_SCALE}]
        self.optimiser = torch.optim.AdamW(groups, args.lr, **STYLE)
        self.muon = Muon([{"params": self.matrices}], args.lr, 0.01, torch.float32)
        self.state = {"optimiser": self.optimiser, "muon": self.muon} | more
        self.ema = {k: v.clone() for k, v in self.own().items()}
        self.step, self.spent = 0, 0.0
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True)
            mimi.load_state_dict(saved["weights"], strict=False)
            for name, part in self.state.items():
                part.load_state_dict(saved[name])
            self.ema, self.step, self.spent = saved["ema"], saved["step"], saved["spent"]
            print(f"{parts[0]}: continuing at step {self.step}, {self.spent / 3600:.2f} h spent", flush=True)
        self.rng = np.random.default_rng([args.seed, self.step])

    def own(self) -> dict[str, torch.Tensor]:
        """The codec's weights that are of the parts trained."""
        return {k: v for k, v in self.mimi.state_dict().items() if k.split(".")[0] in self.parts}

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.state.items()}
        state |= {"weights": self.own(), "ema": self.ema, "step": self.step, "spent": self.spent}
        save_state(self.checkpoint, state)

    def run(self, hours: float, of: float) -> None:
        """Steps until `hours` are spent `of` all that its schedules reckon with, logged every 50, saved every five
        minutes and at the end; then the codec's weights are the averages."""
        last, saved = time.monotonic(), time.monotonic()
        parent = multiprocessing.parent_process()
        while self.spent < 3600 * hours and (parent is None or parent.is_alive()):
            record = self.take_step(self.spent / 3600 / of)
            now = time.monotonic()
            self.spent, last = self.spent + now - last, now
            over = self.spent >= 3600 * hours
            if self.step % 50 == 0 or over:
                log(
                    self.args.work,
                    {"part": self.parts[0], "step": self.step, "hours": round(self.spent / 3600, 4), **record},
                )
            if now - saved > 300 or over:
                saved = now
                self.save()
        self.mimi.load_state_dict(self.ema, strict=False)

    def take_step(self, share: float) -> dict[str, float]:
        """One update at `share` of the time; what it is logged with."""
        lr = self.args.lr * min(1.0, (self.step + 1) / 200) * rate(share)
        for group in self.optimiser.param_groups:
            group["lr"] = group["scale"] * lr
        self.muon.param_groups[0]["lr"] = MUON_SCALE * lr
        loss, record = self.loss(share)
        self.mimi.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_([p for p in self.mimi.parameters() if p.requires_grad], 1.0)
        for matrix, weight in zip(self.matrices, self.weights):
            matrix.grad = weight.grad.flatten(1)
        self.optimiser.step()
        if self.matrices:
            self.muon.step()
        for name, weight in self.own().items():
            self.ema[name].lerp_(weight, 0.002 if self.step > 1000 else 0.05)
        self.step += 1
        return {"lr": lr, **{name: value.item() for name, value in (record | {"grad_norm": norm}).items()}}

    def draw(self, crops: int, size: int) -> np.ndarray:
        """Which of so many crops the next batch of that size holds."""
        return np.sort(self.rng.integers(0, crops, size))

    def loss(self, share: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of a drawn batch, and its terms."""
        raise NotImplementedError


class EncoderTraining(Training):
    """It shall give the code, and what is read from it."""

    def __init__(self, args: argparse.Namespace, mimi: MimiModel, frames: Frames, code: Code):
        super().__init__(args, mimi, ENCODER)
        self.frames, self.code = frames, code.requires_grad_(False)

    def loss(self, share: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        crops = self.draw(len(self.frames.heard), ENCODER_CROPS)
        sound, counts = tensors(self.frames, crops)
        latents = self.mimi.encode_to_latent(waveform(self.frames.heard[crops, FRAME:-FRAME]))
        errors = self.code.errors(disturbed(latents, torch.ones(latents.shape[-1]), self.args.noise), sound, counts)
        record = {"code": F.mse_loss(latents, self.code(sound, counts))} | errors
        return record["code"] + share * READ_WEIGHT * error_sum(errors, ENCODER_PERIODS), record


class DecoderTraining(Training):
    """It shall say the frames [crops, samples] that belong to latents [crops, T, C]."""

    def __init__(self, args: argparse.Namespace, mimi: MimiModel, latents: np.ndarray, speech: np.ndarray):
        self.critics = Discriminators()
        self.critics_optimiser = torch.optim.AdamW(self.critics.parameters(), 0.4 * args.lr, **STYLE)
        super().__init__(args, mimi, DECODER, critics=self.critics, critics_optimiser=self.critics_optimiser)
        self.latents, self.speech, self.std = latents, speech, torch.from_numpy(latents.std((0, 1)))
        self.melody, self.distance = MelodyDistance(speech.shape[1]), SpectralDistance()

    def loss(self, share: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        args, crops = self.args, self.draw(len(self.latents), DECODER_CROPS)
        real, latents = waveform(self.speech[crops]), torch.from_numpy(self.latents[crops])
        fake = decode(self.mimi, disturbed(latents, self.std, args.noise))
        fallen = min(1.0, share / (args.floor_share + 1e-9))
        self.distance.floor = HIGH_FLOOR ** (1 - fallen) * MEL_FLOOR**fallen
        record = {"melody": self.melody(fake, real), "spectral": self.distance(fake, real)}
        loss = MELODY_WEIGHT * record["melody"] + record["spectral"]
        if share >= args.critic_share:
            more, of_critic = self.against_critic(real, fake)
            loss, record = loss + more, record | of_critic
        return loss, record

    def against_critic(self, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Train the discriminators on half of each crop; a scalar with their gradient for the codec, and the terms.

        Both sides judge by one pass, each taking its own gradient of it: the discriminators' four passes and whole
        crops would be two thirds of a step."""
        start, half = int(self.rng.integers(real.shape[-1] // 2)), real.shape[-1] // 2
        real_maps, fake_maps = (self.critics(x[..., start : start + half]) for x in (real, fake))
        pairs = zip(real_maps, fake_maps)
        critic_loss = torch.stack([F.relu(1 - r[-1]).mean() + F.relu(1 + f[-1]).mean() for r, f in pairs]).mean()
        gradients = torch.autograd.grad(critic_loss, list(self.critics.parameters()), retain_graph=True)
        adversarial, features = generator_terms(fake_maps, [[m.detach() for m in maps] for maps in real_maps])
        (pull,) = torch.autograd.grad(0.1 * adversarial + 0.5 * features, fake)
        for parameter, gradient in zip(self.critics.parameters(), gradients):
            parameter.grad = gradient
        self.critics_optimiser.step()
        record = {"critic": critic_loss, "adversarial": adversarial, "features": features}
        return (fake * pull).sum(), record


def start(args: argparse.Namespace) -> MimiModel:
    """The codec that a run begins with."""
    mimi = load_mimi(args.config)
    if args.init:
        mimi.load_state_dict({k.removeprefix("mimi."): v for k, v in load_file(args.init).items()})
    else:
        scale_layers(mimi, waveform(np.load(args.work / "heard.npy", mmap_mode="r")[:ENCODER_CROPS, FRAME:-FRAME]))
    return mimi


def train_part(args: argparse.Namespace, name: str, threads: int) -> MimiModel:
    """Stage 2 of the encoder or the decoder, in a process of its own or, if it is done, to have its weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(args.seed)
    mimi, frames = start(args), load_frames(args.work)
    if name == "encoder":
        EncoderTraining(args, mimi, frames, learn_code(args, frames)).run(args.both_hours, args.both_hours)
    else:
        codes = np.load(args.work / "codes.npy")
        DecoderTraining(args, mimi, codes, frames.speech).run(args.both_hours, args.both_hours + args.decoder_hours)
    return mimi


def train(args: argparse.Namespace) -> tuple[MimiModel, int]:
    """The codec after all stages, and the steps of its decoder, of what `hear` has kept."""
    mimi, frames = start(args), load_frames(args.work)
    print(f"codec: {sum(p.numel() for p in mimi.parameters()) / 1e6:.2f}M parameters", flush=True)
    if args.both_hours:
        learn_code(args, frames)
        spawn, threads = multiprocessing.get_context("spawn"), max(1, args.threads // 2)
        parts = [spawn.Process(target=train_part, args=(args, name, threads)) for name in ("encoder", "decoder")]
        for part in parts:
            part.start()
        for part in parts:
            part.join()
        if failed := [part.exitcode for part in parts if part.exitcode]:
            sys.exit(failed[0])
        mimi = train_part(args, "encoder", args.threads)
    training = DecoderTraining(args, mimi, *keep_latents(args, mimi, frames))
    training.run(*2 * [args.both_hours + args.decoder_hours])
    return mimi, training.step


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)  # pocket_tts sets 1 at import
    torch.manual_seed(args.seed)

    # 1. Audio.
    hear(args)
    print(f"{len(np.load(args.work / 'audio.npy', mmap_mode='r')) / SAMPLE_RATE / 3600:.2f} h of audio", flush=True)

    # 2. Code, encoder, decoder.
    mimi, steps = train(args)

    # 3. The weights file, in 16 bits: all of demo/ stays under 60 MB.
    tmp = args.out.with_suffix(".tmp")
    save_file({f"mimi.{k}": v.half().contiguous() for k, v in mimi.state_dict().items()}, tmp)
    os.replace(tmp, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB after {steps} steps")


if __name__ == "__main__":
    main()
