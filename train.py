#!/usr/bin/env python3
"""Cache and base in, run out: fine-tune Pocket TTS, or train its FlowLM from scratch, with the model's own objective.

Reads   data/NAME/ (made by data_prep.py) and the base that encoded it.
Writes  runs/NAME/: args.json, progress.jsonl (one record a logged step and evaluation), loss.png,
        samples/step_NNNNNN_*.wav, checkpoints/step_NNNNNN/, and at the end bundle/, a Pocket TTS model that stock tools
        load, from the checkpoint whose held-out speech comes nearest to the recordings.

    python train.py --data data/demo --init scratch --batch-size 16 --lr 1.2e-3 --warmup-steps 100 --epochs 1000
    --max-hours 0.25 python train.py --data data/my_recordings                                             # fine-tune
    the base, one GPU python train.py --data data/my_recordings --tune lora:32 --lr 1e-4                    # low-rank
    adapters, merged in the bundle python train.py --data data/my_recordings --base english --teacher runs/teacher
    # a small student of a deep model accelerate launch --num_processes 8 train.py --data data/my_recordings
    --batch-size 8 # several GPUs python train.py --data data/demo --init scratch --max-steps 4 --batch-size 2 --out
    runs/try   # does it run?

The batch of a step is --batch-size x --grad-accum x processes; runs that agree in it take the same steps.
The same command again continues; so does, with a constant rate, a longer --max-hours, --max-steps or --epochs. Ctrl-C
and SIGTERM save first.
"""

import argparse
import copy
import math
import os
import re
import resource
import time
from contextlib import nullcontext
from pathlib import Path

import accelerate
import matplotlib
import numpy as np
import torch
from accelerate import Accelerator, PartialState
from matplotlib import pyplot as plt
from pocket_tts import TTSModel
from pocket_tts.models.flow_lm import FlowLMModel
from pocket_tts.models.mimi import MimiModel
from pocket_tts.utils.config import Config

from pocket_arabic.adapt import CHOICES, build_optimizers, freezes_head, merged, set_trainable
from pocket_arabic.audio import write_wav
from pocket_arabic.base import (
    arabic_config,
    base_path,
    build_flow_lm,
    check_teacher,
    encoder_hash,
    fresh_tokenizer,
    load_config,
    load_mimi,
    load_weights,
    student_of,
    taught,
    tts_model,
    use_tokenizer,
)
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import (
    EMA,
    SCORES,
    Damaged,
    best_checkpoint,
    export_bundle,
    exported,
    find_bundle,
    newest_checkpoint,
    prune,
    read_weights,
    resume,
    save_checkpoint,
    scores,
    update_hours,
)
from pocket_arabic.model import LSD, Student, TrainableTTS
from pocket_arabic.rows import (
    DISTILL_SHARE,
    EVAL_EPOCH,
    EVAL_NOISE,
    NOISE,
    Batch,
    Draws,
    Latents,
    Utterances,
    distils,
    draw_noise,
    latent_statistics,
)
from pocket_arabic.run import (
    Clock,
    Pace,
    Parser,
    RunFolder,
    StopSignal,
    UserError,
    append_jsonl,
    atomic_write,
    command,
    filled,
    location,
    provenance,
    real,
    use_all_cores,
    whole,
)
from pocket_arabic.speech import Request, speak_batch, voice_state
from pocket_arabic.step import Launched, NormCheck, Replayed

matplotlib.use("Agg")

# What may change when a run is continued: how long it goes on and what it shows, not what a step does.
FREE = {"data", "out", "epochs", "max_steps", "max_hours", "patience", "batch_size", "grad_accum"}
FREE |= {"compile", "wandb", "log_every", "eval_every", "judge_sentences", "sample_every", "keep"}
# of the head at once on a GPU; the largest batch of 64 has three times the mean's 13,000 and would take 25 GiB
MOST_ROWS = 16_384
NOT_TAUGHT = (
    "freeze_head",
    "tokenizer",
    "draws",
    "distill_draws",
    "distill_head_only",
    "text_dropout",
    "voice_dropout",
    "guide_steps",
)
DEFAULTS = {  # without and with --teacher
    "init": ("base", "teacher"),
    "guidance": (None, 2.0),
    "lr": (2e-4, 4e-5),
    "text_dropout": (0.2, 0.0),
    "voice_dropout": (0.5, 0.0),
}
JUDGE_SHARE = 0.1  # of a run's time goes into speaking for the choice of the checkpoint
LENGTHS = {"epochs", "max_steps", "max_hours"}  # but a cosine is a function of its end


def build_parser() -> Parser:
    p = Parser(__doc__)
    g = p.add_argument_group("what")
    g.add_argument("--data", type=location, required=True, help="cache made by data_prep.py")
    g.add_argument("--base", type=filled, help="demo, a language (english), or a CONFIG.yaml; default the cache's own")
    g.add_argument("--out", type=location, help="the run's folder; default runs/NAME after the cache")
    g.add_argument(
        "--init",
        choices=("base", "scratch", "teacher"),
        help=(
            "start from the base's FlowLM (default), from random weights of its shape, or, with --teacher the "
            "default, from the lowest and highest layers of the teacher"
        ),
    )
    g.add_argument(
        "--teacher",
        type=filled,
        metavar="MODEL",
        help=(
            "run, bundle or base of the same widths whose guided output the model learns, in place of the "
            "corpus's frames; the head is the teacher's and stays"
        ),
    )
    g.add_argument(
        "--guidance",
        type=real(0, 100),
        metavar="W",
        help="how far beyond its own output the teacher follows text and voice; default 2, upstream's; 1 is off",
    )
    g.add_argument("--tune", default="full", help=f"what trains: {CHOICES}")
    g.add_argument(
        "--freeze-head",
        action=argparse.BooleanOptionalAction,
        help="keep flow_net and out_eos; default with lora, always with text",
    )
    g.add_argument(
        "--lora-alpha", type=real(1e-3, 1e6), help="the adapters are scaled by alpha / rank; default twice the rank"
    )
    g.add_argument("--lora-dropout", type=real(0, 0.9), default=0.0, help="of the adapters' input")
    g.add_argument(
        "--tokenizer",
        choices=("base", "fresh"),
        default="base",
        help="fresh: a BPE over this corpus's romanised text, with a text embedding that starts anew",
    )
    g.add_argument("--pieces", type=whole(1, 10**6), default=1000, help="size of a fresh tokenizer")
    g.add_argument(
        "--subset",
        type=whole(1),
        help="sanity run: train and evaluate on the first N utterances, which must be overfitted",
    )
    g = p.add_argument_group("how long (the first limit reached ends the run)")
    g.add_argument("--epochs", type=whole(1, 10**6), default=20, help="passes over the training split")
    g.add_argument("--max-steps", type=whole(1), help="optimiser steps")
    g.add_argument("--max-hours", type=real(1e-6, 1e5), help="hours of wall clock, over all continuations")
    g.add_argument(
        "--patience",
        type=whole(1),
        help="evaluations in a row without a new best; 12 h of speech turn after 1,000 to 3,000 steps of 64 utterances",
    )
    g = p.add_argument_group("recipe")
    g.add_argument("--batch-size", type=whole(1, 10**5), default=64, help="utterances at a time, in each process")
    g.add_argument("--grad-accum", type=whole(1, 10**5), default=1, help="such batches a step")
    g.add_argument(
        "--lr",
        type=real(1e-9, 1),
        help=(
            "largest AdamW learning rate; default 2e-4, upstream's for a new language, and 4e-5 with --teacher, "
            "also for a new voice of a known language; 1e-3 for a nano model"
        ),
    )
    g.add_argument(
        "--optimizer",
        choices=("adamw", "muon"),
        default="adamw",
        help="muon: for the hidden matrices; a small model trained for minutes learns faster with it",
    )
    g.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        default="constant",
        help="after warm-up; cosine falls to 0 at the last step or the end of --max-hours",
    )
    g.add_argument("--warmup-steps", type=whole(0), default=500, help="steps of linear warm-up")
    g.add_argument("--weight-decay", type=real(0, 10), default=0.1, help="AdamW weight decay")
    g.add_argument("--clip", type=real(1e-6, 1e6), default=1.0, help="largest gradient norm")
    g.add_argument(
        "--ema",
        type=real(0, 0.999999),
        default=0.999,
        help="decay a step of the averaged weights, which are evaluated and exported",
    )
    g.add_argument(
        "--draws",
        type=whole(1, 256),
        default=4,
        help="noise and time draws per audio frame; 1 never reaches good quality upstream",
    )
    g.add_argument(
        "--distill-draws",
        type=whole(1, 256),
        default=4,
        help="the same for the distillation term, whose draws cost three times as much",
    )
    g.add_argument(
        "--distill-head-only",
        action=argparse.BooleanOptionalAction,
        default=False,
        help=(
            "no gradient of the distillation term to the transformer; with few frames a step its noise drowns "
            "what the text has to teach"
        ),
    )
    g.add_argument(
        "--text-dropout",
        type=real(0, 1),
        help="share of rows trained without their text; default 0.2, none with --teacher",
    )
    g.add_argument(
        "--voice-dropout",
        type=real(0, 1),
        help="share of rows trained without a voice prompt; default 0.5, none with --teacher",
    )
    g.add_argument(
        "--mark-dropout",
        type=real(0, 1),
        default=0.0,
        help="share of rows whose text loses marks: half of them all, half a random part",
    )
    g.add_argument(
        "--stop-dropout", type=real(0, 1), default=0.0, help="share of rows whose text loses its final punctuation"
    )
    g.add_argument(
        "--nfc-share",
        type=real(0, 1),
        default=0.1,
        help="share of rows whose shadda stands behind its vowel, Unicode's order, which stock tools pass on as it is",
    )
    g.add_argument(
        "--guide-steps",
        type=whole(0),
        default=0,
        help=(
            "for so many steps a frame sees only the text expected near it, in a window that opens; a small "
            "model needs it to learn which letter is which; 0 is off"
        ),
    )
    g.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="fixes initial weights, order, prompts and noise"
    )
    g = p.add_argument_group("machine")
    g.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="torch.compile layers and head: minutes slower at first, then faster; a CPU needs a C++ compiler",
    )
    g.add_argument(
        "--precision",
        choices=("bf16", "fp16", "no"),
        help="default bf16 where the hardware has it; without, fp16 on a GPU and no (fp32) on a CPU",
    )
    g = p.add_argument_group("watching")
    g.add_argument("--log-every", type=whole(0), default=20, help="steps between printed lines; 0 is off")
    g.add_argument(
        "--eval-every",
        type=whole(0),
        default=250,
        help=(
            "steps between held-out evaluations, each on a checkpoint of its own; 0 is off (then the last "
            "checkpoint is exported)"
        ),
    )
    g.add_argument(
        "--judge-sentences",
        type=whole(0, 10**5),
        default=16,
        help=(
            "held-out sentences spoken at an evaluation to choose the checkpoint, as often as takes no tenth of "
            "the time; 0: choose by the held-out error"
        ),
    )
    g.add_argument(
        "--sample-every",
        type=whole(0),
        default=500,
        help="steps between spoken samples, a base's own and the last step's included; 0 is off",
    )
    g.add_argument(
        "--wandb", type=filled, metavar="PROJECT", help="also log to Weights & Biases; offline if nobody is logged in"
    )
    g.add_argument("--keep", type=whole(1), default=2, help="newest checkpoints kept, beside the best")
    return p


def parse_args() -> argparse.Namespace:
    p = build_parser()
    args = p.parse_args()
    check_student(args, p)
    for name, (plain, as_student) in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, as_student if args.teacher else plain)
    args.out = args.out or Path("runs") / args.data.resolve().name
    if args.precision is None:
        args.precision = default_precision()
    check_args(args)
    return args


def check_student(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What goes with --teacher, and what only with it."""
    if not args.teacher:
        if args.guidance is not None or args.init == "teacher":
            raise UserError(
                f"{'--init teacher' if args.guidance is None else '--guidance'}: needs --teacher, a run, bundle or base"
            )
        return
    for name in NOT_TAUGHT:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(
                f"--{name.replace('_', '-')}: not with --teacher, whose output, head and tokenizer a student learns "
                "from; leave it out"
            )
    if args.init == "scratch":
        raise UserError(
            "--init scratch: not with --teacher; a student starts from its layers (--init teacher) or from the base's "
            "own (--init base)"
        )


def default_precision() -> str:
    """bf16 emulated is slower than what it replaces: 11 times on GPUs before Ampere (kyutai-labs/pocket-tts)."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def check_args(args: argparse.Namespace) -> None:
    freezes_head(args.tune, args.freeze_head)
    if args.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--precision fp16: needs a GPU, whose loss scaler it relies on; use bf16 or no")
    if args.precision == "fp16" and args.optimizer == "muon":
        raise UserError("--precision fp16: its loss scaler serves one optimiser; use bf16 or no with --optimizer muon")
    if args.patience and args.schedule == "cosine":
        raise UserError("--patience ends a run before a cosine has come down; use --schedule constant with it")


# --- the loop's parts -------------------------------------------------------------------------------------------------


def fresh_vocabulary(
    args: argparse.Namespace, cache: Cache, config: Config, weights: dict[str, torch.Tensor]
) -> tuple[Config, dict[str, torch.Tensor]]:
    """The base with OUT/tokenizer.json, made from the training texts when the run is new."""
    path = args.out / "tokenizer.json"
    with PartialState().main_process_first():
        if not path.exists():
            args.out.mkdir(parents=True, exist_ok=True)
            fresh_tokenizer([row["text_model"] for row in cache.split("train")], args.pieces, path)
    return use_tokenizer(config, weights, path, args.seed)


def begin_student(shape: Config, name: str, init: str) -> tuple[Config, dict[str, torch.Tensor], FlowLMModel]:
    """Config and weights that a student begins with, of the depth of `shape`, and its teacher. Raises UserError."""
    config = (
        load_config(name)
        if base_path(name).is_file()
        else load_config(str(find_bundle(name, "--teacher") / "arabic.yaml"), bundled=True)
    )
    check_teacher(shape, config, same_tokenizer=init == "base")
    weights = load_weights(config)
    own = (shape, taught(load_weights(shape), weights)) if init == "base" else student_of(shape, config, weights)
    return *own, build_flow_lm(config, weights)


def guide_window(step: int, guide_steps: int) -> float | None:
    """Half-width in frames of the text that a frame sees: 1.5 for three tenths of the guided steps, then doubling until
    it holds a whole utterance. None once unguided."""
    if step >= guide_steps:
        return None
    return 1.5 * 64 ** max(0.0, (step / guide_steps - 0.3) / 0.7)


def learning_rate(args: argparse.Namespace, step: int, last_step: int, time_share: float) -> float:
    """Of the update that follows `step` updates. A cosine comes down with the steps or, if these are not all there is
    time for, with the time (`time_share`, 0 to 1), so that it is down whichever limit ends the run."""
    rate = args.lr * min(1.0, (step + 1) / max(1, args.warmup_steps))
    if args.schedule == "cosine":
        done = max(step, time_share * last_step) - args.warmup_steps
        rate *= 0.5 * (1 + math.cos(math.pi * max(0.0, done / max(1, last_step - args.warmup_steps))))
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
        return torch.cuda.max_memory_reserved() / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held when it started this process
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # bytes on macOS


@torch.no_grad()
def evaluate(
    tts: TrainableTTS | Student, ema: EMA, valid: Utterances, batch_size: int, device: torch.device, bits: int | None
) -> dict[str, float]:
    """Held-out means under the averaged weights, with the same noise, times and prompts each time."""
    totals: dict[str, torch.Tensor] = {}
    epoch, rows = valid.epoch(EVAL_EPOCH), np.arange(len(valid))
    for number, start in enumerate(range(0, len(rows), batch_size)):
        mine = rows[start : start + batch_size]
        frames = int(valid.frames[mine].sum())
        batch = valid.batch(mine, epoch, size=batch_size if bits else None, bits=bits).to(device)
        noise = draw_noise(valid.draws, EVAL_NOISE, number, frames, True, device)
        losses = torch.func.functional_call(tts, ema.shadow, (batch, noise, LSD.DISTILL_WEIGHT))
        totals = {name: totals.get(name, 0.0) + value * frames for name, value in losses.items()}
    return {f"valid_{name}": (total / valid.frames.sum()).item() for name, total in totals.items()}


@torch.no_grad()
def speak_samples(stem: Path, model: TTSModel, cache: Cache) -> None:
    """STEM_0.wav, STEM_1.wav: the same held-out sentences, voice and seed every time."""
    stem.parent.mkdir(exist_ok=True)
    voice = voice_state(model, cache.voice())
    requests = [Request(row["text_model"], voice, seed) for seed, row in enumerate(cache.split("valid")[:2])]
    for index, spoken in enumerate(speak_batch(model, requests)):
        write_wav(stem.with_name(f"{stem.name}_{index}.wav"), spoken.audio, model.sample_rate)


CURVES = {"flow_error": "diagonal flow error", "distill_error": "distillation error", "eos": "EOS cross-entropy",
          "z_error": "distance from the teacher", "speech_score": "distance of the speech, dB"}  # fmt: skip


def plot_loss(path: Path, progress: list[dict]) -> None:
    train, valid = ([r for r in progress if r["kind"] == kind] for kind in ("train", "eval"))
    shown = {name: title for name, title in CURVES.items() if any(name in r for r in progress)}
    figure, axes = plt.subplots(
        1, max(1, len(shown)), figsize=(4 * max(1, len(shown)), 3.5), layout="constrained", squeeze=False
    )
    for axis, (name, title) in zip(axes[0], shown.items()):
        held_out = name if name == "speech_score" else f"valid_{name}"
        for label, records, key in (("train", train, name), ("held out (EMA)", valid, held_out)):
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
    """What a step needs: model, averages, optimisers, rows, and its place in their order.

    A step's batch, the same whatever the machine, is divided into parts: --grad-accum on each of the processes.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        cache: Cache,
        config: Config,
        weights: dict[str, torch.Tensor],
        mimi: MimiModel,
        teacher: FlowLMModel | None,
    ):
        self.args, self.cache, self.config, self.weights, self.mimi, self.teacher = (
            args,
            cache,
            config,
            weights,
            mimi,
            teacher,
        )
        self.accelerator = Accelerator(mixed_precision=args.precision, log_with="wandb" if args.wandb else None)
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.folder, self.clock, self.pace = RunFolder(args.out), Clock(args.max_hours), Pace()
        self.out_of_patience, self.judge = False, None
        accelerate.utils.set_seed(args.seed)
        torch.set_float32_matmul_precision("high")  # on a GPU fp32 products, the distillation term's, may be TF32
        self.build_rows(self.build_model())
        self.parts = args.grad_accum * self.accelerator.num_processes
        self.batch_size = args.batch_size * self.parts
        self.steps_per_epoch = -(-len(self.train) // self.batch_size)
        self.last_step = args.epochs * self.steps_per_epoch
        if args.max_steps:
            self.last_step = min(self.last_step, args.max_steps)
        self.step, self.saved_step = 0, None
        self.epoch, self.batches, self.unchecked = None, iter(()), None
        self.window: dict[str, torch.Tensor] = {}  # sums since the last logged step
        self.counts = {"steps": 0, "frames": 0, "positions": 0, "places": 0, "seconds": 0.0, "distilled": 0}

    def build_model(self) -> FlowLMModel:
        args = self.args
        flow_lm = build_flow_lm(self.config, None if args.init == "scratch" else self.weights)
        if args.init == "scratch":
            flow_lm.emb_mean, flow_lm.emb_std = latent_statistics(self.cache)
        set_trainable(
            flow_lm, args.tune, True if self.teacher else args.freeze_head, args.lora_alpha, args.lora_dropout
        )
        shares = (args.text_dropout, args.voice_dropout, args.mark_dropout, args.stop_dropout, args.nfc_share)
        per_frame = (0, 0) if self.teacher else (args.draws, args.distill_draws)  # a student has no noise
        self.draws = Draws(args.seed, *shares, *per_frame)
        most_rows = MOST_ROWS if self.device.type == "cuda" else math.inf
        # self.model is the same, wrapped for several processes
        self.tts = (
            Student(flow_lm, self.place(self.teacher), args.guidance)
            if self.teacher
            else TrainableTTS(flow_lm, self.draws, args.distill_head_only, most_rows)
        )
        self.trainable = [p for p in self.tts.parameters() if p.requires_grad]
        optimizers = build_optimizers(self.tts, args.optimizer, args.lr, args.weight_decay, args.precision)
        self.model, *self.optimizers = self.accelerator.prepare(self.tts, *optimizers)
        self.ema = EMA(self.tts, args.ema)
        return flow_lm

    def place(self, teacher: FlowLMModel) -> FlowLMModel:
        """On the device, its layers' matrices in the run's precision: 24 layers are 1.2 GB in fp32."""
        for parameter in teacher.transformer.layers.parameters():
            if parameter.ndim == 2 and self.args.precision != "no":
                parameter.data = parameter.data.to(torch.bfloat16 if self.args.precision == "bf16" else torch.float16)
        return teacher.to(self.device).eval().requires_grad_(False)

    def build_rows(self, flow_lm: FlowLMModel) -> None:
        """The splits, and how a step is run on this machine: on a GPU lengths are rounded to a few sizes, with a graph
        for each."""
        args = self.args
        latents = Latents(self.cache.folder / "latents.npy", self.device)
        options = (flow_lm.conditioner.tokenizer, self.config.mimi.frame_rate, self.draws, latents, args.subset)
        null = bool(self.teacher) and args.guidance != 1
        self.train, self.valid = (
            Utterances(self.cache, split, *options, guided, flow_lm.insert_bos_before_voice, null)
            for split, guided in (("train", args.guide_steps > 0), ("valid", False))
        )
        graphs = (
            self.device.type == "cuda"
            and self.accelerator.num_processes == 1
            and not self.accelerator.scaler
            and not args.lora_dropout
        )
        self.bits = 4 if self.device.type == "cuda" else None  # significant ones of a length
        self.run = (
            Replayed(self.forward_backward, self.trainable, latents.table)
            if graphs
            else Launched(self.forward_backward)
        )
        if args.compile:
            self.tts.compile_parts()

    def finished(self) -> bool:
        return self.step >= self.last_step or self.out_of_patience or self.clock.share() >= 1

    def start_or_resume(self, recipe: dict) -> None:
        """Open the run's folder. Raises UserError if it holds a run of another recipe."""
        recipe = recipe | {"effective_batch": self.batch_size}
        with self.accelerator.main_process_first():
            self.folder.check(recipe, FREE - LENGTHS if self.args.schedule == "cosine" else FREE)
            if self.main:
                self.folder.open(recipe)
        with self.accelerator.main_process_first():
            state = resume(
                self.folder.checkpoints, self.tts, self.optimizers, self.ema, self.accelerator.scaler, self.main
            )
        if state:
            self.step = self.saved_step = state["step"]
            self.clock.spent = state["hours"]
        if self.main and state:
            self.folder.rewind(self.step)
            print(f"continuing at step {self.step}, {self.clock.hours():.2f} h spent")
        elif self.main:
            self.folder.begin({"device": str(self.device), "args": recipe})
        if self.args.wandb:
            import wandb

            options = {"dir": str(self.args.out), "name": self.args.out.name}
            if "WANDB_MODE" not in os.environ and not wandb.api.api_key:
                options["mode"] = "offline"
                print(f"wandb: nobody is logged in; logging offline to {self.args.out}/wandb (wandb sync uploads it)")
            self.accelerator.init_trackers(self.args.wandb, {k: str(v) for k, v in recipe.items()}, {"wandb": options})

    def next_rows(self) -> np.ndarray:
        number = 1 + self.step // self.steps_per_epoch
        if self.epoch is None or number != self.epoch.number:
            self.epoch = self.train.epoch(number)
            self.batches = iter(self.train.order(self.epoch, self.batch_size)[self.step % self.steps_per_epoch :])
        return next(self.batches)

    def time_share(self) -> float:
        """Of the limit of time; every process's is the main one's."""
        share = self.clock.share()
        if self.accelerator.num_processes == 1 or not self.args.max_hours:
            return share  # a tensor of one number would make a GPU wait for it at each step
        return accelerate.utils.broadcast(torch.tensor([share], dtype=torch.float64, device=self.device)).item()

    def forward_backward(self, batch: Batch, noise: torch.Tensor, distill_weight: float) -> dict[str, torch.Tensor]:
        losses = self.model(batch, noise, distill_weight)
        # Gradients are averaged over processes; the batch's are their sum.
        self.accelerator.backward(losses["loss"] * self.accelerator.num_processes)
        return {name: value.detach() for name, value in losses.items()}

    def train_step(self) -> None:
        args, rank = self.args, self.accelerator.process_index
        rows, distil = self.next_rows(), not self.teacher and distils(args.seed, self.step)
        rate = learning_rate(args, self.step, self.last_step, self.time_share())
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = group["scale"] * rate
        if args.lora_dropout:
            torch.manual_seed(int(np.random.default_rng([args.seed, self.step, rank]).integers(2**63)))
        frames = int(self.train.frames[rows].sum())
        noise = draw_noise(self.draws, NOISE, self.step, frames, distil, self.device)
        weight = LSD.DISTILL_WEIGHT / DISTILL_SHARE if distil else 0.0
        size, window = args.batch_size if self.bits else None, guide_window(self.step, args.guide_steps)
        for part in range(args.grad_accum):
            mine = part * self.accelerator.num_processes + rank
            host = self.train.batch(rows, self.epoch, mine, self.parts, size, self.bits, window)
            with nullcontext() if part == args.grad_accum - 1 else self.accelerator.no_sync(self.model):
                try:
                    losses = self.run(host.to(self.device), noise, weight)
                except torch.cuda.OutOfMemoryError:
                    half = f"--batch-size {max(1, args.batch_size // 2)} --grad-accum {args.grad_accum * 2}"
                    raise UserError(
                        f"out of GPU memory at step {self.step}; the same command with {half} continues with the same "
                        "steps in half the memory"
                    ) from None
            self.add(losses)
            self.counts["positions"] += int((host.kind > 0).sum())
            self.counts["places"] += host.kind.numel()
        self.accelerator.unscale_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.trainable, args.clip, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        self.run.zero_grad(self.trainable)
        self.ema.update(self.step)
        self.check_finite()
        tensors = {name: t for name, t in host.tensors().items() if t is not self.train.latents.table}
        self.unchecked = NormCheck(
            norm, self.step, {"ids": [self.train.ids[i] for i in rows], "last_part": tensors, "losses": losses}
        )
        if self.device.type == "cpu":
            self.check_finite()
        self.step += 1
        self.add({"grad_norm": norm.detach()})
        self.counts["steps"] += 1
        self.counts["distilled"] += distil
        self.counts["frames"] += frames
        self.counts["seconds"] += self.pace.step()

    def check_finite(self) -> None:
        """Of the step before on a GPU, which is done by now, so that nothing waits. Raises UserError."""
        check, self.unchecked = self.unchecked, None
        if check is None or self.accelerator.scaler or check.is_finite():  # a scaler skips such steps by itself
            return
        inputs = self.args.out / f"not_finite_step_{check.step:06d}.pt"
        torch.save(check.inputs, inputs)
        raise UserError(f"gradient not finite at step {check.step} (its rows: {inputs}); {self.whole_until()}")

    def whole_until(self) -> str:
        """What a run that is not finite leaves, and the way on."""
        last = newest_checkpoint(self.folder.checkpoints)
        return f"{f'whole until {last}; ' if last else ''}start again with a lower --lr and another --out"

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.window[name] = self.window.get(name, 0.0) + value

    def log(self) -> None:
        """One line for the steps since the last one."""
        count = self.counts
        # The parts of a batch add up to its losses. The distillation's are those of the steps that have it.
        sums = {
            k: self.accelerator.reduce(v, "mean" if k == "grad_norm" else "sum").item() for k, v in self.window.items()
        }
        if self.main:
            if not math.isfinite(sums["loss"]):
                raise UserError(f"loss not finite at step {self.step}; {self.whole_until()}")
            means = {k: total / count["distilled" if k.startswith("distill") else "steps"] for k, total in sums.items()}
            record = {"kind": "train", "step": self.step, "hours": round(self.clock.hours(), 4)}
            record |= {"lr": self.optimizers[0].param_groups[0]["lr"]} | {
                k: float(f"{v:.7g}") for k, v in means.items()
            }
            record |= {
                "frames_per_sec": round(count["frames"] / count["seconds"], 1),
                "step_sec": round(count["seconds"] / count["steps"], 4),
            }
            record |= {
                "padding": round(1 - count["positions"] / count["places"], 4),
                "memory_gib": round(memory_gib(), 2),
            }
            append_jsonl(self.folder.progress, record)
            self.accelerator.log({k: v for k, v in record.items() if k != "kind"}, step=self.step)
            named = (
                "loss",
                "flow_error",
                "z_error",
                "eos",
                "grad_norm",
                "lr",
                "frames_per_sec",
                "padding",
                "memory_gib",
            )
            shown = " ".join(f"{k} {record[k]:.4g}" for k in named if k in record)
            print(f"step {self.step}/{self.last_step} {shown} left {60 * self.hours_left():.1f} min", flush=True)
        self.window, self.counts = {}, dict.fromkeys(self.counts, 0)

    def hours_left(self) -> float:
        """Until the last step or the limit of time: steps at their mean, evaluations and samples as long as the slowest
        one."""
        every = min((n for n in (self.args.eval_every, self.args.sample_every) if n), default=self.last_step)
        stops = -(-self.last_step // every) - self.step // every
        by_steps = (self.last_step - self.step) * self.pace.mean() / 3600 + stops * self.clock.closing
        return min(by_steps, max(0.0, self.args.max_hours - self.clock.hours())) if self.args.max_hours else by_steps

    def save(self) -> None:
        """Raises UserError for weights that are not finite, which are never saved."""
        if self.saved_step != self.step:
            if bad := [name for name, value in self.ema.shadow.items() if not torch.isfinite(value).all()]:
                raise UserError(f"{bad[0]} is not finite at step {self.step}; {self.whole_until()}")
            state = {"hours": self.clock.hours()}
            save_checkpoint(
                self.folder.checkpoints, self.step, self.tts, self.optimizers, self.ema, self.accelerator.scaler, state
            )
            self.saved_step = self.step

    def evaluate(self) -> None:
        """Score the averaged weights on the held-out split, once a step; redraw loss.png."""
        progress = self.folder.records()
        if not any(r["step"] == self.step for r in progress if r["kind"] == "eval"):
            record = {"kind": "eval", "step": self.step, "hours": round(self.clock.hours(), 4)}
            start = time.monotonic()
            record |= evaluate(self.tts, self.ema, self.valid, self.args.batch_size, self.device, self.bits)
            record["eval_sec"] = round(time.monotonic() - start, 2)
            record |= self.judged(progress)
            append_jsonl(self.folder.progress, record)
            self.accelerator.log({k: v for k, v in record.items() if k != "kind"}, step=self.step)
            held_out = ", ".join(f"{k[6:]} {v:.4g}" for k, v in record.items() if k.startswith("valid_"))
            if "speech_score" in record:
                held_out += "; speech_score {speech_score:.3f} dB, {ends} of {spoken} ends, in {judge_sec} s".format(
                    **record
                )
            print(f"step {self.step}: held out {held_out}", flush=True)
            progress.append(record)
            plot_loss(self.args.out / "loss.png", progress)
        values = scores(progress)[1]
        best = min(values, key=values.get)
        if self.args.patience and sum(step > best for step in values) >= self.args.patience:
            self.out_of_patience = True
            print(f"no better than step {best} for {self.args.patience} evaluations: stopping")

    def judged(self, progress: list[dict]) -> dict:
        """What the averaged weights say, scored, unless that would take more than its share of the time."""
        took = [r["judge_sec"] for r in progress if "judge_sec" in r]
        affordable = not took or self.finished() or sum(took) + took[-1] <= JUDGE_SHARE * 3600 * self.clock.hours()
        if not self.args.judge_sentences or not affordable:
            return {}
        start = time.monotonic()
        if self.judge is None:
            from pocket_arabic.evaluation import Judge  # librosa takes a second to load

            self.judge = Judge(self.valid, self.mimi, self.args.judge_sentences)
        return self.judge.score(self.speaker()) | {"judge_sec": round(time.monotonic() - start, 2)}

    def speaker(self) -> TTSModel:
        """The averaged weights, to speak with."""
        return tts_model(self.config, build_flow_lm(self.config, self.averaged(self.ema.shadow)), self.mimi).to(
            self.device
        )

    def save_and_watch(self) -> None:
        """Save first: what an evaluation or a sample might break, it cannot lose. The main process does it, the others
        wait."""
        args, start = self.args, self.clock.hours()
        self.check_finite()
        if self.main:
            self.save()
            with torch.random.fork_rng():  # the wheel draws a noise for each prompt that it reads
                if args.eval_every and (self.step % args.eval_every == 0 or self.finished()):
                    self.evaluate()
                sample = args.out / "samples" / f"step_{self.step:06d}"
                due = (
                    args.sample_every
                    and (self.step % args.sample_every == 0 or self.finished())
                    and (self.step or args.init != "scratch")
                )
                if due and not sample.with_name(sample.name + "_0.wav").exists():
                    speak_samples(sample, self.speaker(), self.cache)
            best = best_checkpoint(self.folder.checkpoints, self.folder.records())
            prune(self.folder.checkpoints, args.keep, best[0] if best else None)
        self.accelerator.wait_for_everyone()
        took = self.clock.hours() - start
        self.clock.closing = max(self.clock.closing, took)
        self.pace.pause(3600 * took)

    def averaged(self, shadow: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Averaged weights -> flow_lm.* tensors as a release has them, adapters merged."""
        own = {
            name.removeprefix("flow_lm."): value.cpu() for name, value in shadow.items() if name.startswith("flow_lm.")
        }
        if any(".lora_" in name for name in own):
            model = copy.deepcopy(self.tts.flow_lm).cpu()
            model.load_state_dict(own)
            own = merged(model)
        return {f"flow_lm.{name}": value for name, value in own.items()}

    def close(self) -> None:
        """End the trackers and the process group. The wrapped model goes first: freed together with it, the group waits
        for Gloo's thread while holding the GIL that this thread needs to free its last tensor (pytorch/pytorch#56297);
        5 of 100 runs hung so."""
        self.model = None
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def export(self) -> None:
        """bundle/ from the best checkpoint; from the last one if none was evaluated."""
        bundle = self.folder.bundle
        best = best_checkpoint(self.folder.checkpoints, self.folder.records())
        path, name, score = best or (newest_checkpoint(self.folder.checkpoints), None, None)
        if exported(bundle) == path.name:
            print(f"{bundle} holds {path.name} already; nothing to do")
            return
        try:
            state = self.averaged(read_weights(path / "ema.safetensors", self.ema.shadow))
        except Damaged as error:
            raise UserError(
                f"{error}; without it the next best is exported: rm -r {path}, then the same command"
            ) from None
        state |= {k: v for k, v in self.weights.items() if k.startswith("mimi.")}
        info = {
            "checkpoint": path.name,
            "chosen_by": SCORES[name] if best else "last checkpoint; there was no evaluation",
            "score": score,
            "base": Path(self.args.base).name,
            "teacher": self.args.teacher and Path(self.args.teacher).name,
            "guidance": self.args.guidance,
            "corpus": self.cache.info["options"]["corpus"],
            "tune": self.args.tune,
            "hours": self.cache.info["hours"]["train"],
            "max_tokens": int(self.train.num_tokens().max()),
            "slowest_sec_per_token": round(self.train.slowest(), 4),
            "substitute": self.cache.info["options"].get("substitute"),
            "phonemes": self.cache.info["options"].get("phonemes"),
            "eos_threshold": self.config.default_eos_threshold,
            **provenance(),
        }
        export_bundle(bundle, self.config, state, self.cache.voice(), info)
        print(f"bundle: {bundle} ({path.name}" + (f", {name} {score:.3f})" if best else ")"))


def main() -> None:
    args = parse_args()
    use_all_cores()

    # 1. Cache and base: everything a user can get wrong, before anything slow.
    cache = Cache(args.data)
    cache.voice()  # samples and the bundle need it
    args.base = args.base or cache.info["options"]["base"]
    config, teacher = load_config(args.base), None
    if args.teacher:
        config, weights, teacher = begin_student(config, args.teacher, args.init)
    else:
        weights = load_weights(config)
    config = arabic_config(config, cache.info["options"].get("substitute"), cache.info["options"].get("phonemes"))
    mimi = load_mimi(config, weights)
    if encoder_hash(mimi) != cache.info["options"]["encoder_sha256"]:
        raise UserError(
            f"{args.data} was encoded with another codec than {args.teacher or f'base {args.base}'}; rebuild it: "
            f"python data_prep.py --base {args.base} --out NEW_FOLDER ..."
        )

    if args.tokenizer == "fresh":
        config, weights = fresh_vocabulary(args, cache, config, weights)

    # 2. Model and optimiser; the folder, new or to be continued.
    training = Training(args, cache, config, weights, mimi, teacher)
    training.start_or_resume(
        {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()} | {"cache": cache.info["options"]}
    )
    if training.main:
        print_parts(training.tts.flow_lm)
        limit = f"step {training.last_step}" + (f" or {args.max_hours} h" if args.max_hours else "")
        print(
            f"{len(training.train)} utterances, {training.steps_per_epoch} steps an epoch of {training.batch_size} "
            f"each, to {limit}; ",
            end="",
        )
        print(
            f"{training.accelerator.num_processes} x {training.device}, precision {args.precision}, "
            f"{training.run.name}",
            flush=True,
        )

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
    update_hours(
        training.folder.checkpoints,
        max(training.clock.hours(), args.max_hours or 0.0)
        if training.step < training.last_step
        else training.clock.hours(),
    )
    training.export()


if __name__ == "__main__":
    command(main)
