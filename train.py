#!/usr/bin/env python3
"""Cache and base in, run out: fine-tune Pocket TTS, or train its FlowLM from scratch, with the model's own objective.

Reads   data/NAME/ (made by data_prep.py) and the base that encoded it.
Writes  runs/NAME/: args.json, progress.jsonl (one record a logged step and evaluation), loss.png,
        samples/step_NNNNNN_*.wav, checkpoints/step_NNNNNN/, and at the end bundle/, a Pocket TTS model that stock tools
        load, from the checkpoint with the lowest held-out flow error.

    python train.py --data data/demo --init scratch --batch-size 16 --lr 1.2e-3 --warmup-steps 100 --epochs 1000 --max-hours 0.25
    python train.py --data data/my_recordings                                             # fine-tune the base, one GPU
    python train.py --data data/my_recordings --tune lora:32 --lr 1e-4                    # low-rank adapters, merged in the bundle
    accelerate launch --num_processes 8 train.py --data data/my_recordings --batch-size 8 # several GPUs
    python train.py --data data/demo --init scratch --max-steps 4 --batch-size 2 --out runs/try   # does it run?

The batch of a step is --batch-size x --grad-accum x processes; runs that agree in it take the same steps.
The same command again continues; so does a longer --max-hours and, with a constant rate, --max-steps or --epochs. Ctrl-C and SIGTERM save first.
"""

import argparse
import copy
import fcntl
import json
import math
import os
import re
import resource
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import accelerate
import matplotlib
import numpy as np
import torch
from accelerate import Accelerator, PartialState
from matplotlib import pyplot as plt
from pocket_tts.models.flow_lm import FlowLMModel
from pocket_tts.models.mimi import MimiModel
from pocket_tts.utils.config import Config
from safetensors.torch import load_file

from pocket_arabic import __version__
from pocket_arabic.adapt import CHOICES, build_optimizers, freezes_head, merged, set_trainable
from pocket_arabic.audio import read_audio, trimmed, write_wav
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import EMA, best_checkpoint, export_bundle, load_checkpoint, newest_checkpoint, prune, save_checkpoint, update_hours
from pocket_arabic.model import (
    LSD,
    Row,
    TrainableTTS,
    arabic_config,
    build_flow_lm,
    draw_prefix,
    draw_row,
    draw_text,
    encoder_hash,
    fresh_tokenizer,
    load_config,
    load_mimi,
    load_weights,
    token_durations,
    tts_model,
    use_tokenizer,
)
from pocket_arabic.run import StopSignal, UserError, append_jsonl, atomic_write, command, differences, provenance, read_jsonl, use_all_cores, write_json
from pocket_arabic.speech import EosWatch, speak, voice_state

matplotlib.use("Agg")

# What may change when a run is continued: how long it goes on and what it shows, not what a step does.
FREE = {"data", "out", "epochs", "max_steps", "max_hours", "patience", "batch_size", "grad_accum"}
FREE |= {"compile", "on_the_fly", "wandb", "log_every", "eval_every", "sample_every", "keep"}
DISTILL_SHARE = 0.25  # of the steps compute the distillation term, divided by this share: same gradient in expectation, 9 % faster (kyutai-labs/pocket-tts training)
ROW, ORDER, DISTIL, DROPOUT = range(4)  # separate streams of random numbers under one --seed
EVAL_EPOCH = 0  # training counts from 1; evaluation always uses the same noise, so its curve is smooth


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--version", action="version", version=__version__)
    g = p.add_argument_group("what")
    g.add_argument("--data", type=Path, required=True, help="cache made by data_prep.py")
    g.add_argument("--base", help="demo, a language (english), or a CONFIG.yaml; default the cache's own")
    g.add_argument("--out", type=Path, help="the run's folder; default runs/NAME after the cache")
    g.add_argument("--init", choices=("base", "scratch"), default="base", help="start from the base's FlowLM, or from random weights of its shape")
    g.add_argument("--tune", default="full", help=f"what trains: {CHOICES}")
    g.add_argument("--freeze-head", action=argparse.BooleanOptionalAction, help="keep flow_net and out_eos; default with lora, always with text")
    g.add_argument("--lora-alpha", type=float, help="the adapters are scaled by alpha / rank; default twice the rank")
    g.add_argument("--lora-dropout", type=float, default=0.0, help="of the adapters' input")
    g.add_argument("--tokenizer", choices=("base", "fresh"), default="base", help="fresh: a BPE over this corpus's romanised text, with a text embedding that starts anew")
    g.add_argument("--pieces", type=int, default=1000, help="size of a fresh tokenizer")
    g.add_argument("--subset", type=int, help="sanity run: train and evaluate on the first N utterances, which must be overfitted")
    g = p.add_argument_group("how long (the first limit reached ends the run)")
    g.add_argument("--epochs", type=int, default=20, help="passes over the training split")
    g.add_argument("--max-steps", type=int, help="optimiser steps")
    g.add_argument("--max-hours", type=float, help="hours of wall clock, over all continuations")
    g.add_argument("--patience", type=int, help="evaluations in a row without a new best; 12 h of speech turn after 1,000 to 3,000 steps of 64 utterances")
    g = p.add_argument_group("recipe")
    g.add_argument("--batch-size", type=int, default=64, help="utterances at a time, in each process")
    g.add_argument("--grad-accum", type=int, default=1, help="such batches a step")
    g.add_argument("--lr", type=float, default=2e-4, help="largest AdamW learning rate: upstream's for a new language; 4e-5 for a new voice of a known one; 1e-3 for a nano model")
    g.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="muon: for the hidden matrices; a small model trained for minutes learns faster with it")
    g.add_argument("--schedule", choices=("constant", "cosine"), default="constant", help="after warm-up; cosine falls to 0 at the last step")
    g.add_argument("--warmup-steps", type=int, default=500, help="steps of linear warm-up")
    g.add_argument("--weight-decay", type=float, default=0.1, help="AdamW weight decay")
    g.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    g.add_argument("--ema", type=float, default=0.999, help="decay a step of the averaged weights, which are evaluated and exported")
    g.add_argument("--draws", type=int, default=4, help="noise and time draws per audio frame; 1 never reaches good quality upstream")
    g.add_argument("--distill-draws", type=int, default=4, help="the same for the distillation term, whose draws cost three times as much")
    g.add_argument(
        "--distill-head-only",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="no gradient of the distillation term to the transformer; with few frames a step its noise drowns what the text has to teach",
    )
    g.add_argument("--text-dropout", type=float, default=0.2, help="share of rows trained without their text")
    g.add_argument("--voice-dropout", type=float, default=0.5, help="share of rows trained without a voice prompt")
    g.add_argument("--mark-dropout", type=float, default=0.0, help="share of rows whose text loses marks: half of them all, half a random part")
    g.add_argument("--stop-dropout", type=float, default=0.0, help="share of rows whose text loses its final punctuation")
    g.add_argument("--nfc-share", type=float, default=0.1, help="share of rows whose shadda stands behind its vowel, Unicode's order, which stock tools pass on as it is")
    g.add_argument(
        "--guide-steps",
        type=int,
        default=0,
        help="for so many steps a frame sees only the text expected near it, in a window that opens; a small model needs it to learn which letter is which; 0 is off",
    )
    g.add_argument("--seed", type=int, default=0, help="fixes initial weights, order, prompts and noise")
    g = p.add_argument_group("machine")
    g.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="torch.compile the transformer's layers: slower at first, then faster; a CPU needs a C++ compiler",
    )
    g.add_argument("--on-the-fly", action="store_true", help="encode the audio again at each use instead of reading the cache; only to measure what the cache buys")
    g.add_argument("--precision", choices=("bf16", "fp16", "no"), help="default bf16 where the hardware has it; without, fp16 on a GPU and no (fp32) on a CPU")
    g = p.add_argument_group("watching")
    g.add_argument("--log-every", type=int, default=20, help="steps between printed lines; 0 is off")
    g.add_argument(
        "--eval-every", type=int, default=250, help="steps between held-out evaluations, each on a checkpoint of its own; 0 is off (then the last checkpoint is exported)"
    )
    g.add_argument("--sample-every", type=int, default=500, help="steps between spoken samples, a base's own and the last step's included; 0 is off")
    g.add_argument("--wandb", metavar="PROJECT", help="also log to Weights & Biases; offline if nobody is logged in")
    g.add_argument("--keep", type=int, default=2, help="newest checkpoints kept, beside the best")
    args = p.parse_args()
    args.out = args.out or Path("runs") / args.data.resolve().name
    if args.precision is None:
        args.precision = default_precision()
    check_args(args)
    return args


def default_precision() -> str:
    """bf16 emulated is slower than what it replaces: 11 times on GPUs before Ampere (kyutai-labs/pocket-tts)."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def check_args(args: argparse.Namespace) -> None:
    freezes_head(args.tune, args.freeze_head)
    for name in ("epochs", "max_steps", "max_hours", "patience", "subset", "pieces", "batch_size", "grad_accum", "lr", "lora_alpha", "draws", "distill_draws", "keep"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be positive")
    if args.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--precision fp16: needs a GPU, whose loss scaler it relies on; use bf16 or no")
    if args.precision == "fp16" and args.optimizer == "muon":
        raise UserError("--precision fp16: its loss scaler serves one optimiser; use bf16 or no with --optimizer muon")
    if args.guide_steps < 0:
        raise UserError(f"--guide-steps {args.guide_steps}: must not be negative")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must not be negative")
    for name in ("text_dropout", "voice_dropout", "mark_dropout", "stop_dropout", "nfc_share", "lora_dropout"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be a share from 0 to 1")


# --- data -------------------------------------------------------------------------------------------------------------


class LiveLatents:
    """Latents encoded from the corpus's audio files at each use, as data_prep did: what training costs without a cache."""

    def __init__(self, cache: Cache, mimi: MimiModel, device: torch.device):
        self.options, self.device = cache.info["options"], device
        self.mimi = copy.deepcopy(mimi).to(device)
        if not all(row.get("source") for row in cache.rows):
            raise UserError("--on-the-fly: this cache was not made from a folder of audio files; prepare one, for example --corpus demo")

    @torch.no_grad()
    def __call__(self, row: dict) -> np.ndarray:
        samples = trimmed(read_audio(Path(row["source"]), self.mimi.sample_rate), self.mimi.sample_rate, self.options)[0]
        return self.mimi.encode_to_latent(torch.from_numpy(samples).to(self.device)[None, None])[0].cpu().numpy()


class Rows:
    """The rows of a split, with a voice prompt each from the training split. Everything drawn is a pure function of
    (seed, epoch, position in the split), so a resumed run and any division into batches see the same rows."""

    def __init__(self, cache: Cache, split: str, tokenize, frame_rate: float, args: argparse.Namespace, live: LiveLatents | None = None):
        self.cache, self.args, self.frame_rate = cache, args, frame_rate
        self.row_latents = live or cache.row_latents
        self.by_speaker: dict[str, list[dict]] = {}
        for row in cache.split("train"):
            self.by_speaker.setdefault(row["speaker"], []).append(row)
        every = cache.split("train")[: args.subset] if args.subset else cache.split(split)
        self.tokenize = tokenize
        self.rows = [row for row in every if any(other["id"] != row["id"] for other in self.by_speaker.get(row["speaker"], ())[:2])]
        self.head = cache.info["options"]["head_sec"] * frame_rate if cache.info["options"]["trim"] else 0.0
        self.durations = None
        if args.guide_steps and split == "train":
            tokens = [tokenize(row["text_model"]) for row in self.rows]
            self.durations = token_durations(tokens, [self.spoken(row) for row in self.rows], max(map(max, tokens)) + 1)
        if len(self.rows) < len(every):
            print(f"{split}: {len(every) - len(self.rows)} of {len(every)} utterances left out, no other of their speaker in train to prompt with")
        if not self.rows:
            raise UserError(f"{cache.folder}: no {split} utterance can be used; every speaker needs two utterances in train, and {split} needs one of theirs")

    def __len__(self) -> int:
        return len(self.rows)

    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(len(self.tokenize(row["text_model"])) for row in self.rows)

    def slowest(self) -> float:
        """Seconds a token of all but the slowest hundredth of the utterances."""
        return float(np.percentile([row["num_frames"] / self.frame_rate / len(self.tokenize(row["text_model"])) for row in self.rows], 99))

    def spoken(self, row: dict) -> float:
        """Frames from the first word to the end of the last."""
        return row["speech_end_sec"] * self.frame_rate - self.head

    def token_times(self, row: dict, tokens: list[int]) -> np.ndarray | None:
        """[L, 2]: the frames each token is expected from and to, on the clock of this utterance."""
        if self.durations is None:
            return None
        ends = np.cumsum(self.durations[tokens])
        ends *= self.spoken(row) / ends[-1] if len(ends) else 1
        return self.head + np.stack([np.concatenate([[0.0], ends[:-1]])[: len(ends)], ends], 1)

    def prefix(self, index: int, epoch: int) -> tuple[np.random.Generator, list[int], np.ndarray]:
        """The row's generator after its first draws, and what they chose: text tokens and voice prompt."""
        rng = np.random.default_rng([ROW, self.args.seed, epoch, index])
        row = self.rows[index]
        others = self.by_speaker[row["speaker"]]
        prompt = others[rng.integers(len(others))]
        while prompt["id"] == row["id"]:  # a prompt cut from the target itself leaks it
            prompt = others[rng.integers(len(others))]
        text, dropout = row["text_model"], (0.0, 0.0)
        if epoch != EVAL_EPOCH:
            text = draw_text(rng, text, self.args.mark_dropout, self.args.stop_dropout, self.args.nfc_share)
            dropout = self.args.text_dropout, self.args.voice_dropout
        return rng, *draw_prefix(rng, self.tokenize(text), self.prompt_latents(prompt), self.frame_rate, *dropout)

    def row(self, index: int, epoch: int) -> Row:
        rng, tokens, prompt = self.prefix(index, epoch)
        row = self.rows[index]
        return draw_row(rng, self.row_latents(row), tokens, prompt, (self.args.draws, self.args.distill_draws), self.token_times(row, tokens))

    def length(self, index: int, epoch: int) -> int:
        """Positions of the row, but for the two or three that every row has."""
        _, tokens, prompt = self.prefix(index, epoch)
        return len(tokens) + len(prompt) + self.rows[index]["num_frames"]

    def prompt_latents(self, row: dict) -> np.ndarray:
        """[V, 32] up to 80 ms after the last word, where the wheel ends a voice prompt too (its `end_on_pause`)."""
        return self.row_latents(row)[: int(np.ceil((row["speech_end_sec"] + 0.08) * self.frame_rate))]

    def order(self, epoch: int, batch_size: int) -> list[list[int]]:
        """Batches of one epoch: shuffled, then sorted by length within pools of 32 batches so that rows of a batch are
        of like length, then the batches shuffled. On lengths like ClArTTS's, batches of 64, 4.4 % of positions are
        padding (pools of 16: 7.8 %)."""
        rng = np.random.default_rng([ORDER, self.args.seed, epoch])
        indices = rng.permutation(len(self.rows))
        pool = 32 * batch_size
        batches = []
        for start in range(0, len(indices), pool):
            block = sorted(indices[start : start + pool], key=lambda i: self.length(int(i), epoch))
            batches += [[int(i) for i in block[b : b + batch_size]] for b in range(0, len(block), batch_size)]
        rng.shuffle(batches)
        return batches


def latent_statistics(cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [32] of the training split's latents, for a model that has none of its own."""
    latents = np.concatenate([cache.row_latents(row) for row in cache.split("train")]).astype("float64")
    return torch.from_numpy(latents.mean(0)).float(), torch.from_numpy(latents.std(0)).float()


def fresh_vocabulary(args: argparse.Namespace, cache: Cache, config: Config, weights: dict[str, torch.Tensor]) -> tuple[Config, dict[str, torch.Tensor]]:
    """The base with OUT/tokenizer.json, made from the training texts when the run is new."""
    path = args.out / "tokenizer.json"
    with PartialState().main_process_first():
        if not path.exists():
            args.out.mkdir(parents=True, exist_ok=True)
            fresh_tokenizer([row["text_model"] for row in cache.split("train")], args.pieces, path)
    return use_tokenizer(config, weights, path, args.seed)


# --- the loop's parts -------------------------------------------------------------------------------------------------


def distils(seed: int, step: int) -> bool:
    """Whether this step computes the distillation term; the same on every process."""
    return bool(np.random.default_rng([DISTIL, seed, step]).random() < DISTILL_SHARE)


def guide_window(step: int, guide_steps: int) -> float | None:
    """Half-width in frames of the text that a frame sees: 1.5 for three tenths of the guided steps, then doubling until
    it holds a whole utterance. None once unguided."""
    if step >= guide_steps:
        return None
    return 1.5 * 64 ** max(0.0, (step / guide_steps - 0.3) / 0.7)


def learning_rate(args: argparse.Namespace, step: int, last_step: int) -> float:
    """Of the update that follows `step` updates."""
    rate = args.lr * min(1.0, (step + 1) / max(1, args.warmup_steps))
    if args.schedule == "cosine" and step >= args.warmup_steps:
        done = (step - args.warmup_steps) / max(1, last_step - args.warmup_steps)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    return rate


def print_parts(flow_lm: FlowLMModel) -> None:
    """The table of what trains."""
    parts: dict[str, list[int]] = {}
    for name, parameter in flow_lm.named_parameters():
        depth = 3 if name.startswith("transformer.layers.") else 1
        part = ".".join(name.split(".")[:depth]) if "." in name else "bos, speaker_proj"
        sizes = parts.setdefault(part, [0, 0])
        sizes[0] += parameter.numel()
        sizes[1] += parameter.numel() * parameter.requires_grad
    parts["all"] = [sum(column) for column in zip(*parts.values())]
    print(f"{'module':24}{'parameters':>14}{'trainable':>14}")
    for part, (size, trainable) in parts.items():
        print(f"{part:24}{size:14,}{trainable:14,}")
    print("mimi: frozen, encoded in the cache", flush=True)


def memory_gib() -> float:
    """Peak of this process: of the GPU if there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held when it started this process
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # bytes on macOS


@torch.no_grad()
def evaluate(model: TrainableTTS, ema: EMA, valid: Rows, batch_size: int) -> dict[str, float]:
    """Held-out means under the averaged weights, with the same noise, times and prompts each time."""
    own = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(ema.shadow)
    totals: dict[str, float] = {}
    frames = 0
    for start in range(0, len(valid), batch_size):
        rows = [valid.row(i, EVAL_EPOCH) for i in range(start, min(start + batch_size, len(valid)))]
        size = sum(len(row.latents) for row in rows)
        frames += size
        for name, value in model(rows, LSD.DISTILL_WEIGHT).items():
            totals[name] = totals.get(name, 0.0) + value.item() * size
    model.load_state_dict(own)
    return {f"valid_{name}": total / frames for name, total in totals.items()}


@torch.no_grad()
def speak_samples(stem: Path, config: Config, state: dict[str, torch.Tensor], mimi: MimiModel, cache: Cache) -> None:
    """STEM_0.wav, STEM_1.wav: the same held-out sentences, voice and seed every time, by the wheel's own inference."""
    model, watch = tts_model(config, build_flow_lm(config, state), mimi), EosWatch()
    stem.parent.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        voice = voice_state(model, cache.folder / "voice.wav")
        for index, row in enumerate(cache.split("valid")[:2]):
            write_wav(stem.with_name(f"{stem.name}_{index}.wav"), speak(model, voice, row["text_model"], index, watch).audio, mimi.sample_rate)


def plot_loss(path: Path, progress: list[dict]) -> None:
    train, valid = ([r for r in progress if r["kind"] == kind] for kind in ("train", "eval"))
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for axis, name, title in zip(axes, ("flow_error", "distill_error", "eos"), ("diagonal flow error", "distillation error", "EOS cross-entropy")):
        for label, records, key in (("train", train, name), ("held out (EMA)", valid, f"valid_{name}")):
            points = [(r["step"], r[key]) for r in records if r.get(key, 0) > 0]
            if points:
                axis.plot(*zip(*points), label=label, lw=1, marker="." if records is valid else None)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    with atomic_write(path) as tmp:
        figure.savefig(tmp, dpi=110)
    plt.close(figure)


class Training:
    """A run: its model, averages and optimiser, its place in the order of batches, and its folder.

    A step's batch, the same whatever the machine, is divided into parts: --grad-accum on each of the processes.
    """

    def __init__(self, args: argparse.Namespace, cache: Cache, config: Config, weights: dict[str, torch.Tensor], mimi: MimiModel):
        self.args, self.cache, self.config, self.weights, self.mimi = args, cache, config, weights, mimi
        self.accelerator = Accelerator(mixed_precision=args.precision, log_with="wandb" if args.wandb else None)
        self.main = self.accelerator.is_main_process
        accelerate.utils.set_seed(args.seed)
        flow_lm = build_flow_lm(config, weights if args.init == "base" else None)
        if args.init == "scratch":
            flow_lm.emb_mean, flow_lm.emb_std = latent_statistics(cache)
        tokenize = flow_lm.conditioner.tokenizer.encode
        set_trainable(flow_lm, args.tune, args.freeze_head, args.lora_alpha, args.lora_dropout)
        self.tts = TrainableTTS(flow_lm, args.distill_head_only)  # self.model is the same, wrapped for several processes
        self.trainable = [p for p in self.tts.parameters() if p.requires_grad]
        if args.compile:
            for layer in flow_lm.transformer.layers:
                layer.compile(dynamic=True)
        self.model, *self.optimizers = self.accelerator.prepare(self.tts, *build_optimizers(self.tts, args.optimizer, args.lr, args.weight_decay))
        self.ema = EMA(self.tts, args.ema)
        live = LiveLatents(cache, mimi, self.accelerator.device) if args.on_the_fly else None
        self.train, self.valid = (Rows(cache, split, tokenize, config.mimi.frame_rate, args, live) for split in ("train", "valid"))
        self.longest = self.train.longest()
        self.parts = args.grad_accum * self.accelerator.num_processes
        self.batch_size = args.batch_size * self.parts
        self.steps_per_epoch = -(-len(self.train) // self.batch_size)
        self.last_step = args.epochs * self.steps_per_epoch
        if args.max_steps:
            self.last_step = min(self.last_step, args.max_steps)
        self.checkpoints, self.progress = args.out / "checkpoints", args.out / "progress.jsonl"
        self.step, self.saved_step, self.spent, self.clock = 0, None, 0.0, time.monotonic()
        self.closing = 0.0  # hours that the slowest save, evaluation and samples took: what the end will take
        self.batches, self.epoch = iter(()), 0
        self.out_of_patience = False
        self.window: dict[str, list[torch.Tensor]] = {}  # since the last logged step
        self.window_frames, self.window_padding, self.window_start, self.window_clock = 0, [], 0, time.monotonic()

    def hours(self) -> float:
        return self.spent + (time.monotonic() - self.clock) / 3600

    def finished(self) -> bool:
        return self.step >= self.last_step or self.out_of_patience or bool(self.args.max_hours and self.hours() + self.closing >= self.args.max_hours)

    def start_or_resume(self, recipe: dict) -> None:
        """Open the run's folder. Raises UserError if it holds a run of another recipe."""
        recipe = recipe | {"effective_batch": self.batch_size}
        with self.accelerator.main_process_first():
            self.open_folder(recipe)
        checkpoint = newest_checkpoint(self.checkpoints)
        if checkpoint:
            state = load_checkpoint(checkpoint, self.tts, self.optimizers, self.ema, self.accelerator.scaler)
            self.step = self.saved_step = self.window_start = state["step"]
            self.spent = state["hours"]
        if self.main:
            self.open_progress(recipe)
        if self.args.wandb:
            import wandb

            options = {"dir": str(self.args.out), "name": self.args.out.name}
            if "WANDB_MODE" not in os.environ and not wandb.api.api_key:
                options["mode"] = "offline"
                print(f"wandb: nobody is logged in; logging offline to {self.args.out}/wandb (wandb sync uploads it)")
            self.accelerator.init_trackers(self.args.wandb, {k: str(v) for k, v in recipe.items()}, {"wandb": options})

    def open_folder(self, recipe: dict) -> None:
        out = self.args.out
        if (out / "args.json").exists():
            old = json.loads((out / "args.json").read_text(encoding="utf-8"))
            # A cosine is a function of the last step, so that one stays.
            free = FREE - {"epochs", "max_steps"} if self.args.schedule == "cosine" else FREE
            changed = differences({k: v for k, v in old.items() if k not in free}, {k: v for k, v in recipe.items() if k not in free})
            if changed:
                raise UserError(f"{out} was trained with another recipe ({changed}); give another --out, or the same options")
        out.mkdir(parents=True, exist_ok=True)
        if self.main:
            self.lock = open(out / ".lock", "w")  # until this process ends, however it ends
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{out}: another train.py is at work in it; wait for it, or give another --out") from None
            write_json(out / "args.json", recipe)

    def open_progress(self, recipe: dict) -> None:
        """A new progress.jsonl, or the old one without what was logged after the checkpoint: that will be logged again."""
        if self.step == 0 and self.saved_step is None:
            shutil.rmtree(self.args.out / "bundle", ignore_errors=True)
            self.progress.unlink(missing_ok=True)
            append_jsonl(self.progress, {"kind": "start", **provenance(), "device": str(self.accelerator.device), "args": recipe})
            return
        kept = [record for record in read_jsonl(self.progress) if record.get("step", 0) <= self.step]
        with atomic_write(self.progress) as tmp:
            tmp.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")
        print(f"continuing at step {self.step}, {self.spent:.2f} h spent")

    def train_step(self) -> None:
        args, epoch, rank = self.args, 1 + self.step // self.steps_per_epoch, self.accelerator.process_index
        if epoch != self.epoch:
            self.epoch = epoch
            self.batches = iter(self.train.order(epoch, self.batch_size)[self.step % self.steps_per_epoch :])
        batch = next(self.batches)
        size = sum(self.train.rows[i]["num_frames"] for i in batch), len(batch)
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = group["scale"] * learning_rate(args, self.step, self.last_step)
        torch.manual_seed(int(np.random.default_rng([DROPOUT, args.seed, self.step, rank]).integers(2**63)))  # of the adapters' dropout
        distill_weight = LSD.DISTILL_WEIGHT / DISTILL_SHARE if distils(args.seed, self.step) else 0.0
        for part in range(args.grad_accum):
            # Every part takes each parts-th row; one that has none takes a row with no weight, to keep in step with the others.
            indices = batch[part * self.accelerator.num_processes + rank :: self.parts]
            rows = [self.train.row(i, epoch) for i in indices or batch[:1]]
            last = part == args.grad_accum - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                try:
                    losses = {k: v if indices else 0 * v for k, v in self.model(rows, distill_weight, size, guide_window(self.step, args.guide_steps)).items()}
                    # Gradients are averaged over processes; the batch's are their sum.
                    self.accelerator.backward(losses["loss"] * self.accelerator.num_processes)
                except torch.cuda.OutOfMemoryError:
                    half = f"--batch-size {max(1, args.batch_size // 2)} --grad-accum {args.grad_accum * 2}"
                    raise UserError(f"out of GPU memory at step {self.step}; the same command with {half} continues with the same steps in half the memory") from None
            for name, value in losses.items():
                self.window.setdefault(name, []).append(value.detach())
            lengths = [len(r.latents) + len(r.tokens) + len(r.prompt) for r in rows]
            self.window_padding.append(1 - sum(lengths) / (max(lengths) * len(lengths)))
        norm = self.accelerator.clip_grad_norm_(self.trainable, args.clip)
        if not self.accelerator.scaler and not torch.isfinite(norm):  # a scaler skips such steps by itself
            inputs = args.out / f"not_finite_step_{self.step:06d}.pt"
            torch.save({"ids": [self.train.rows[i]["id"] for i in batch], "last_part": [vars(r) for r in rows], "losses": losses}, inputs)
            raise UserError(f"gradient not finite at step {self.step} (its rows: {inputs}); start again with a lower --lr and another --out")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.ema.update(self.tts, self.step)
        self.step += 1
        self.window_frames += size[0]
        self.window.setdefault("grad_norm", []).append(norm.detach())

    def log(self) -> None:
        """One line for the steps since the last one."""
        args, now = self.args, time.monotonic()
        seconds, steps = now - self.window_clock, self.step - self.window_start
        # The parts of a batch add up to its losses. The distillation's are those of the steps that have it.
        sums = {k: self.accelerator.reduce(torch.stack(v).sum(), "sum" if k != "grad_norm" else "mean").item() for k, v in self.window.items()}
        counts = {k: len(v) // args.grad_accum if k != "grad_norm" else steps for k, v in self.window.items()}
        if self.main:
            record = {"kind": "train", "step": self.step, "hours": round(self.hours(), 4), "lr": self.optimizers[0].param_groups[0]["lr"]}
            record |= {k: float(f"{total / counts[k]:.7g}") for k, total in sums.items()} | {
                "frames_per_sec": round(self.window_frames / seconds, 1),
                "step_sec": round(seconds / steps, 4),
            }
            record |= {"padding": round(float(np.mean(self.window_padding)), 4), "memory_gib": round(memory_gib(), 2)}
            append_jsonl(self.progress, record)
            self.accelerator.log({k: v for k, v in record.items() if k != "kind"}, step=self.step)
            left = (self.last_step - self.step) * seconds / steps / 3600
            left = min(left, max(0.0, args.max_hours - self.hours())) if args.max_hours else left
            shown = " ".join(f"{k} {record[k]:.4g}" for k in ("loss", "flow_error", "eos", "grad_norm", "lr", "frames_per_sec", "padding", "memory_gib"))
            print(f"step {self.step}/{self.last_step} {shown} left {left * 60:.1f} min", flush=True)
        self.window, self.window_frames, self.window_padding, self.window_start, self.window_clock = {}, 0, [], self.step, now

    def save(self) -> None:
        if self.saved_step != self.step:
            save_checkpoint(self.checkpoints, self.step, self.tts, self.optimizers, self.ema, self.accelerator.scaler, {"hours": self.hours()})
            self.saved_step = self.step

    def evaluate(self) -> None:
        """Score the averaged weights on the held-out split, once a step; redraw loss.png."""
        progress = read_jsonl(self.progress)
        scores = [(r["valid_flow_error"], r["step"]) for r in progress if r["kind"] == "eval"]
        if not any(step == self.step for _, step in scores):
            record = {"kind": "eval", "step": self.step, "hours": round(self.hours(), 4)}
            record |= evaluate(self.tts, self.ema, self.valid, self.args.batch_size)
            append_jsonl(self.progress, record)
            self.accelerator.log({k: v for k, v in record.items() if k != "kind"}, step=self.step)
            print(f"step {self.step}: held out " + ", ".join(f"{k[6:]} {v:.4g}" for k, v in record.items() if k.startswith("valid_")), flush=True)
            plot_loss(self.args.out / "loss.png", [*progress, record])
            scores.append((record["valid_flow_error"], self.step))
        if self.args.patience and len(scores) - 1 - scores.index(min(scores)) >= self.args.patience:
            self.out_of_patience = True
            print(f"no better than step {min(scores)[1]} for {self.args.patience} evaluations: stopping")

    def save_and_watch(self) -> None:
        """Save first: what an evaluation or a sample might break, it cannot lose. The main process does it, the others wait."""
        args, start = self.args, self.hours()
        if self.main:
            self.save()
            if args.eval_every and (self.step % args.eval_every == 0 or self.finished()):
                self.evaluate()
            sample = args.out / "samples" / f"step_{self.step:06d}"
            due = args.sample_every and (self.step % args.sample_every == 0 or self.finished()) and (self.step or args.init == "base")
            if due and not sample.with_name(sample.name + "_0.wav").exists():
                speak_samples(sample, self.config, self.averaged(self.ema.shadow), self.mimi, self.cache)
            best = best_checkpoint(self.checkpoints, read_jsonl(self.progress))
            prune(self.checkpoints, args.keep, best[0] if best else None)
        self.accelerator.wait_for_everyone()
        self.closing = max(self.closing, self.hours() - start)

    def averaged(self, shadow: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Averaged weights -> flow_lm.* tensors as a release has them, adapters merged."""
        model = copy.deepcopy(self.tts).cpu()
        model.load_state_dict(shadow)
        return {f"flow_lm.{k}": v for k, v in merged(model.flow_lm).items()}

    def close(self) -> None:
        """End the trackers and the process group. The wrapped model goes first: freed together with it, the group waits for Gloo's
        thread while holding the GIL that this thread needs to free its last tensor (pytorch/pytorch#56297); 5 of 100 runs hung so."""
        self.model = None
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def export(self) -> None:
        """bundle/ from the checkpoint with the lowest held-out flow error; from the last one if none was evaluated."""
        bundle = self.args.out / "bundle"
        best = best_checkpoint(self.checkpoints, read_jsonl(self.progress))
        path, score = best or (newest_checkpoint(self.checkpoints), None)
        if bundle.exists() and json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["checkpoint"] == path.name:
            print(f"{bundle} holds {path.name} already; nothing to do")
            return
        state = self.averaged(load_file(path / "ema.safetensors"))
        state |= {k: v for k, v in self.weights.items() if k.startswith("mimi.")}
        info = {
            "checkpoint": path.name,
            "chosen_by": "lowest held-out flow error (EMA weights)" if best else "last checkpoint; there was no evaluation",
            "valid_flow_error": score,
            "base": Path(self.args.base).name,
            "corpus": self.cache.info["options"]["corpus"],
            "tune": self.args.tune,
            "hours": self.cache.info["hours"]["train"],
            "max_tokens": self.longest,
            "slowest_sec_per_token": round(self.train.slowest(), 4),
            "substitute": self.cache.info["options"].get("substitute"),
            "phonemes": self.cache.info["options"].get("phonemes"),
            "eos_threshold": self.config.default_eos_threshold,
            **provenance(),
        }
        export_bundle(bundle, self.config, state, self.cache.folder / "voice.wav", info)
        print(f"bundle: {bundle} ({path.name}" + (f", held-out flow error {score:.3f})" if best else ")"))


def main() -> None:
    args = parse_args()
    use_all_cores()

    # 1. Cache and base: everything a user can get wrong, before anything slow.
    cache = Cache(args.data)
    args.base = args.base or cache.info["options"]["base"]
    config = arabic_config(load_config(args.base), cache.info["options"].get("substitute"), cache.info["options"].get("phonemes"))
    weights = load_weights(config)
    mimi = load_mimi(config, weights)
    if encoder_hash(mimi) != cache.info["options"]["encoder_sha256"]:
        raise UserError(f"{args.data} was encoded with another codec than base {args.base}; rebuild it: python data_prep.py --base {args.base} --out NEW_FOLDER ...")

    if args.tokenizer == "fresh":
        config, weights = fresh_vocabulary(args, cache, config, weights)

    # 2. Model and optimiser; the folder, new or to be continued.
    training = Training(args, cache, config, weights, mimi)
    training.start_or_resume({k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()} | {"cache": cache.info["options"]})
    if training.main:
        print_parts(training.tts.flow_lm)
        limit = f"step {training.last_step}" + (f" or {args.max_hours} h" if args.max_hours else "")
        print(f"{len(training.train)} utterances, {training.steps_per_epoch} steps an epoch of {training.batch_size} each, to {limit}; ", end="")
        print(f"{training.accelerator.num_processes} x {training.accelerator.device}, precision {args.precision}", flush=True)

    # 3. Train. Processes agree on when to stop: a signal or the clock of one of them ends the run for all.
    stop = StopSignal()
    training.save_and_watch()  # the score before the first step, or one that a crash cut off
    while True:
        if training.finished() or stop.received:
            training.accelerator.set_trigger()
        if training.accelerator.check_trigger():
            break
        training.train_step()
        if args.log_every and training.step % args.log_every == 0:
            training.log()
        if training.step % training.steps_per_epoch == 0 or (args.eval_every and training.step % args.eval_every == 0):
            training.save_and_watch()

    # 4. Save where it stopped; if it is done, export the best checkpoint.
    training.save_and_watch()
    training.close()
    if not training.main:
        return
    if stop.received and not training.finished():
        print(f"stopped at step {training.step}; the same command continues")
        raise SystemExit(128 + stop.received)
    # All of --max-hours is spent, what it left for closing too: the same command again has nothing to do.
    update_hours(training.checkpoints, max(training.hours(), args.max_hours or 0.0) if training.step < training.last_step else training.hours())
    training.export()


if __name__ == "__main__":
    command(main)
