#!/usr/bin/env python3
"""Train the nano codec of the embedded default: a small Mimi in the wheel's own modules.

Reads   demo/base.yaml (its `mimi` section) and espeak-ng's voices; no corpus: the Arabic it hears is pseudo-words
        drawn from roots and patterns, the English is the manual text inside the Python interpreter, so no sentence
        of demo/corpus is ever seen.
Writes  runs/codec/ (synthesised audio, checkpoint, progress.jsonl) and, at the end, demo/codec.safetensors.

    python demo/train_codec.py                              # 3 h on two CPU cores
    python demo/train_codec.py --hours 0.05 --clips 200 --work /tmp/codec --out /tmp/codec.safetensors

    python demo/train_codec.py --init demo/codec.safetensors --lr 6e-4 --melody-share 0 --ramp-share 0 --still-share 0
                                                            # trains those weights further

The same command again continues from the checkpoint. Every schedule is a function of the share of --hours spent,
so a slower machine takes fewer steps, never longer.

What is to be decoded is not what was heard but the same speech with its periods in step with the frames: each frame
holds whole periods and begins with one (`in_step`). A FlowLM cannot know at which point of its period the voice will
be, 12.5 times a second; spectral distances see no phase, so they teach a decoder to say vowels as shaped noise; and a
waveform to be met puts the phase into every latent. In step, the waveform follows from what a FlowLM does know. The
price: a frame's pitch moves to a multiple of 12.5 Hz, by 6.25 Hz at most.

Objective, in parts that begin one after another, because a codec that first learns to whisper does not learn to sing:
1. The waveform below 200, 400, 800, 1600 and 3200 Hz, from the start.
2. After --melody-share of the time also log-mel and magnitude distances of several windows, at first faintly: their
   gradient is ten times as large.
3. After --still-share the latents shall stay when the audio moves by part of a period.
4. After --critic-share discriminators (multi-period and multi-resolution, HiFi-GAN arXiv 2010.05646 and UnivNet arXiv
   2106.07889, a few channels each) with feature matching, for the fine structure of the upper bands.
Layers start at unit variance (Mishkin and Matas, arXiv 1511.06422) and convolutions train with Muon: without the one
the latents hardly move for hundreds of steps, without the other each part takes longer (report, section 3).
Latents are pulled to zero mean and unit variance and disturbed by noise, in the end of up to --noise standard
deviations: what a FlowLM predicts is never exact.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics

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
MUON_LEAST = 16  # rows and columns of what it trains
OUTPUT_SCALE = 0.02  # the last layer's rate to AdamW's: its weights are some 0.003, as audio is faint
MELODY_WEIGHT = 2.0
MEL_FLOOR = 1e-4  # speech is some 0.1: at 1e-3 pauses could hiss 40 dB below it, which alone is a distortion of 2.5 dB
STILL_WEIGHT = 0.5
SHIFT = (24, 145)  # samples, 1 to 6 ms: half a period and more
SPECTRAL_LEAST = 0.03  # its weight at first; at once with all of it the voice is gone in fifty steps
LAGS = np.arange(60, 401)  # samples, the periods of 400 to 60 Hz
WINDOW, HOP = 1536, 240  # samples in which a period is looked for, and between two looks
VOICED = 0.45  # autocorrelation at the period

VOICE = {"pitch": 60, "melody": 150}  # of the corpus that is to be made with this codec

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
    """Write `num_clips` espeak-ng clips to one int16 array: half Arabic in VOICE, a quarter English in it, a quarter
    other voices of both."""
    rng, english = random.Random(seed), english_lines()
    variants = [f"m{i}" for i in range(1, 9)] + [f"f{i}" for i in range(1, 6)] + ["klatt", "klatt2", "steph", "adam"]
    jobs = []
    for i in range(num_clips):
        if i % 4:
            how: dict = VOICE | {"voice": rng.choice(["ar", "ar", "en"])}
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
    np.save(folder / "tmp.npy", audio)
    os.replace(folder / "tmp.npy", folder / "audio.npy")


def draw_batch(audio: np.ndarray, batch_size: int, frames: int, rng: np.random.Generator) -> torch.Tensor:
    """Random crops [B, 1, frames * FRAME], each with its own gain of -12 to +3 dB."""
    starts = rng.integers(0, len(audio) - frames * FRAME, batch_size)
    batch = np.stack([audio[s : s + frames * FRAME] for s in starts]).astype("float32") / 32768
    gain = 10 ** (rng.uniform(-12, 3, (batch_size, 1)) / 20)
    return torch.from_numpy((batch * gain).astype("float32")).clamp(-1, 1)[:, None]


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


def in_step(audio: torch.Tensor) -> torch.Tensor:
    """Audio [B, N] with the periods of its voice moved so that each FRAME from the start on holds a whole number of
    them and begins with one: TD-PSOLA (Moulines and Charpentier 1990). What has no voice keeps its place within part
    of a period, and so does every sound."""
    return torch.from_numpy(np.stack([crop_in_step(*crop) for crop in zip(audio.numpy(), *periods(audio))]))


def crop_in_step(samples: np.ndarray, hz: np.ndarray, phase: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """One crop of `in_step`: what stands at each new period's beginning is what stood at the nearest old one's; between
    two they are crossfaded."""
    if voiced.sum() < 3:
        return samples
    time, looks = np.arange(len(samples)), np.arange(len(hz))
    pitch = np.interp(looks, looks[voiced], median_filter(hz[voiced], 5))
    passed = np.cumsum(np.interp(time, looks * HOP, pitch)) / SAMPLE_RATE  # periods
    edges = np.append(passed[::FRAME], passed[-1])
    held, frame = np.diff(edges), time // FRAME
    whole = np.maximum(np.round(held), 1)
    place = (np.cumsum(whole) - whole)[frame] + (whole / held)[frame] * (passed - edges[frame])
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
    x = mimi.upsample(mimi.quantizer(latents.transpose(1, 2)), state)
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


def phase_share(latents: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Of latents [B, T, C], what changes when the audio is `moved` by part of a period: the mean over dimensions of the
    change's variance over that of two that know nothing of each other, 0 to 1."""
    change, variance = (latents - moved).square().mean((0, 1)), latents.var((0, 1))
    return (change / (2 * variance + 1e-6)).mean()


def fold_scale(mimi: MimiModel, std: torch.Tensor) -> None:
    """Make each latent dimension's standard deviation 1 exactly: divide the encoder's last weights, multiply the
    decoder's first."""
    mimi.downsample.conv.conv.weight.data /= std[:, None, None]
    mimi.quantizer.output_proj.weight.data *= std.view(1, -1, *[1] * (mimi.quantizer.output_proj.weight.dim() - 2))


# --- distances and discriminators -------------------------------------------------------------------------------------


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
    """Mean over window sizes of L1 log-mel + L1 on compressed magnitudes; long windows see the single harmonics."""

    def __init__(self, windows: tuple[int, ...] = (256, 512, 1024, 2048), mels: tuple[int, ...] = (32, 64, 80, 128)):
        super().__init__()
        self.windows = windows
        for n, m in zip(windows, mels):
            self.register_buffer(f"window_{n}", torch.hann_window(n))
            bank = torchaudio.functional.melscale_fbanks(n // 2 + 1, 0.0, 12000.0, m, SAMPLE_RATE, mel_scale="slaney")
            self.register_buffer(f"mel_{n}", bank)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        total = x.new_zeros(())
        for n in self.windows:
            spectrum = torch.stft(
                torch.cat([x, y])[:, 0], n, n // 4, window=getattr(self, f"window_{n}"), return_complex=True
            )
            power = spectrum.real**2 + spectrum.imag**2 + 1e-8
            mel = torch.log(torch.sqrt(power).transpose(1, 2) @ getattr(self, f"mel_{n}") + MEL_FLOOR)
            a, b = mel.chunk(2)
            c, d = (power**0.15).chunk(2)
            total = total + F.l1_loss(a, b) + 2 * F.l1_loss(c, d)
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
    p.add_argument("--init", type=Path, help="weights file of a codec to train further")
    p.add_argument("--hours", type=float, default=3.0, help="wall-clock budget over all continuations")
    p.add_argument("--clips", type=int, default=4000, help="espeak-ng clips to synthesise (about 4 s each)")
    p.add_argument("--batch-size", type=int, default=6, help="crops per step")
    p.add_argument("--frames", type=int, default=14, help="latent frames per crop (80 ms each)")
    p.add_argument(
        "--lr",
        type=float,
        default=1.2e-3,
        help="peak AdamW learning rate, Muon's 2.5 times it, cosine to 2 %%; the discriminators keep 0.4 of the peak",
    )
    p.add_argument("--melody-share", type=float, default=0.07, help="share of the time for the low waveform alone")
    p.add_argument("--ramp-share", type=float, default=0.1, help="and from there until spectra and noise count fully")
    p.add_argument("--still-share", type=float, default=0.15, help="share of the time before latents shall be still")
    p.add_argument("--critic-share", type=float, default=0.8, help="share of the time before the discriminators start")
    p.add_argument(
        "--noise", type=float, default=0.4, help="largest latent noise, in standard deviations, drawn per crop"
    )
    p.add_argument("--decoder-only", action="store_true", help="leave the encoder, so a cache of latents stays valid")
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args(argv)


class Training:
    """Codec, discriminators, optimisers and averages, and where they are; the checkpoint continues exactly there."""

    def __init__(self, args: argparse.Namespace, audio: np.ndarray):
        self.args, self.audio, self.checkpoint = args, audio, args.work / "checkpoint.pt"
        self.mimi, self.critic = load_mimi(args.config), Discriminators()
        self.melody, self.distance = MelodyDistance(args.frames * FRAME), SpectralDistance()
        for name, module in (("codec", self.mimi), ("discriminators", self.critic)):
            print(f"{name}: {sum(p.numel() for p in module.parameters()) / 1e6:.2f}M parameters", flush=True)
        if args.init:
            weights = {k.removeprefix("mimi."): v for k, v in load_file(args.init).items()}
            self.mimi.load_state_dict(weights)
        else:
            scale_layers(self.mimi, draw_batch(audio, args.batch_size, args.frames, np.random.default_rng(args.seed)))
        if args.decoder_only:
            for part in (self.mimi.encoder, self.mimi.encoder_transformer, self.mimi.downsample):
                part.requires_grad_(False)
        trained = [p for p in self.mimi.parameters() if p.requires_grad]
        weights = [p for p in trained if p.ndim > 1]
        self.weights = [p for p in weights if min(p.shape[0], p[0].numel()) >= MUON_LEAST]
        self.matrices = [p.detach().flatten(1) for p in self.weights]  # views
        output = list(self.mimi.decoder.model[-1].parameters())
        rest = [p for p in trained if not any(p is other for other in self.weights + output)]
        style = {"betas": (0.8, 0.99), "weight_decay": 0.01}
        groups = [{"params": rest, "scale": 1.0}, {"params": output, "scale": OUTPUT_SCALE}]
        self.optimiser = torch.optim.AdamW(groups, args.lr, **style)
        self.muon = Muon([{"params": self.matrices}], args.lr, 0.01, torch.float32)
        self.critic_optimiser = torch.optim.AdamW(self.critic.parameters(), 0.4 * args.lr, **style)
        self.ema = {k: v.clone() for k, v in self.mimi.state_dict().items()}
        self.step, self.spent = 0, 0.0
        names = ("mimi", "critic", "optimiser", "muon", "critic_optimiser")
        self.parts = {name: getattr(self, name) for name in names}
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
            self.critic_optimiser.param_groups[0]["lr"] = 0.4 * args.lr
            self.ema, self.step, self.spent = saved["ema"], saved["step"], saved["spent"]
            print(f"continuing at step {self.step}, {self.spent / 3600:.2f} h spent", flush=True)
        self.rng = np.random.default_rng([args.seed, self.step])

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        tmp = self.checkpoint.with_suffix(".tmp")
        torch.save({**state, "ema": self.ema, "step": self.step, "spent": self.spent}, tmp)
        os.replace(tmp, self.checkpoint)

    def run(self) -> None:
        """Steps until the time is spent, logged every 50, saved every five minutes and at the end."""
        self.log({"step": self.step, "args": {k: str(v) for k, v in vars(self.args).items()}})
        budget, last, saved = self.args.hours * 3600, time.monotonic(), time.monotonic()
        while self.spent < budget:
            record = self.take_step(self.spent / budget)
            now = time.monotonic()
            self.spent, last = self.spent + now - last, now
            over = self.spent >= budget
            if self.step % 50 == 0 or over:
                record = {"step": self.step, "hours": round(self.spent / 3600, 4), **record}
                self.log(record)
                print(" ".join(f"{k} {v:.4g}" for k, v in record.items()), flush=True)
            if now - saved > 300 or over:
                saved = now
                self.save()

    def take_step(self, share: float) -> dict[str, float]:
        """One update at `share` of the time; what it is logged with."""
        args, mimi = self.args, self.mimi
        lr = args.lr * min(1.0, (self.step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in self.optimiser.param_groups:
            group["lr"] = group["scale"] * lr
        self.muon.param_groups[0]["lr"] = MUON_SCALE * lr
        longer = draw_batch(self.audio, args.batch_size, args.frames + 2, self.rng)
        real = in_step(longer[:, 0])[:, None, FRAME:-FRAME]
        latents = mimi.encode_to_latent(longer[..., FRAME:-FRAME])
        std, mean = latents.std((0, 1)), latents.mean((0, 1))
        ramp = min(1.0, max(0.0, (share - args.melody_share) / (args.ramp_share + 1e-9)))
        level = torch.rand(len(real), 1, 1) * args.noise * (0.1 + 0.9 * ramp)
        fake = decode(mimi, latents + level * std * torch.randn_like(latents))
        melody = self.melody(fake, real)
        moments = (std.log() ** 2).mean() + (mean**2).mean()
        loss, record = MELODY_WEIGHT * melody + 0.02 * moments, {"melody": melody, "moments": moments}
        if share >= args.melody_share:
            record["spectral"] = self.distance(fake, real)
            loss = loss + SPECTRAL_LEAST ** (1 - ramp) * record["spectral"]
        if share >= args.still_share and not args.decoder_only:
            shift = FRAME + int(self.rng.integers(*SHIFT))
            there = mimi.encode_to_latent(longer[..., shift : shift - 2 * FRAME])
            record["still"] = phase_share(latents, there)
            loss = loss + STILL_WEIGHT * record["still"]
        if share >= args.critic_share:
            more, of_critic = self.against_critic(real, fake)
            loss, record = loss + more, record | of_critic
        mimi.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(mimi.parameters(), 1.0)
        for matrix, weight in zip(self.matrices, self.weights):
            matrix.grad = weight.grad.flatten(1)
        self.optimiser.step()
        if self.matrices:
            self.muon.step()
        for k, v in mimi.state_dict().items():
            self.ema[k].lerp_(v, 0.002 if self.step > 1000 else 0.05)
        self.step += 1
        return {"lr": lr, **{name: value.item() for name, value in (record | {"grad_norm": norm}).items()}}

    def against_critic(self, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Train the discriminators on half of each crop; a scalar with their gradient for the codec, and the terms.

        Both sides judge by one pass, each taking its own gradient of it: the discriminators' four passes and whole
        crops would be two thirds of a step."""
        start, half = int(self.rng.integers(real.shape[-1] // 2)), real.shape[-1] // 2
        real_maps, fake_maps = (self.critic(x[..., start : start + half]) for x in (real, fake))
        pairs = zip(real_maps, fake_maps)
        critic_loss = torch.stack([F.relu(1 - r[-1]).mean() + F.relu(1 + f[-1]).mean() for r, f in pairs]).mean()
        gradients = torch.autograd.grad(critic_loss, list(self.critic.parameters()), retain_graph=True)
        adversarial, features = generator_terms(fake_maps, [[m.detach() for m in maps] for maps in real_maps])
        (pull,) = torch.autograd.grad(0.1 * adversarial + 0.5 * features, fake)
        for parameter, gradient in zip(self.critic.parameters(), gradients):
            parameter.grad = gradient
        self.critic_optimiser.step()
        record = {"critic": critic_loss, "adversarial": adversarial, "features": features}
        return (fake * pull).sum(), record

    def log(self, record: dict) -> None:
        with open(self.args.work / "progress.jsonl", "a") as f:
            f.write(json.dumps(record) + "\n")


def main() -> None:
    args = parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)  # pocket_tts sets 1 at import
    torch.manual_seed(args.seed)

    # 1. Audio.
    if not (args.work / "audio.npy").exists():
        synthesise(args.work, args.clips, args.seed)
    audio = np.load(args.work / "audio.npy")
    print(f"{len(audio) / SAMPLE_RATE / 3600:.2f} h of audio", flush=True)

    # 2. Steps.
    training = Training(args, audio)
    training.run()

    # 3. Unit variance exactly, then the weights file.
    mimi = training.mimi
    mimi.load_state_dict(training.ema)
    if not args.decoder_only:
        rng = np.random.default_rng(args.seed)
        with torch.no_grad():
            latents = torch.cat([mimi.encode_to_latent(draw_batch(audio, 16, 50, rng)) for _ in range(8)])
            fold_scale(mimi, latents.std((0, 1)))
    tmp = args.out.with_suffix(".tmp")
    save_file({f"mimi.{k}": v.contiguous() for k, v in mimi.state_dict().items()}, tmp)
    os.replace(tmp, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB after {training.step} steps")


if __name__ == "__main__":
    main()
