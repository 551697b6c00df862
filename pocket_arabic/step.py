"""The steps of a training run; forward and backward are launched operation by operation or, on a GPU, replayed as CUDA
graphs."""

import argparse
import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from pocket_tts.models.flow_lm import FlowLMModel
from pocket_tts.utils.config import Config

from pocket_arabic.adapt import Schedule, build_optimizers, merged, set_trainable
from pocket_arabic.base import build_flow_lm
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import EMA, Trained
from pocket_arabic.model import LSD, Student, TrainableTTS
from pocket_arabic.progress import Pace, Window
from pocket_arabic.rows import (
    DISTILL_SHARE,
    EVAL_EPOCH,
    EVAL_NOISE,
    NFC_SHARE,
    NOISE,
    STOP_DROPOUT,
    Batch,
    Draws,
    Latents,
    Utterances,
    distils,
    draw_noise,
    latent_statistics,
)
from pocket_arabic.run import UserError

CLIP = 1.0  # largest gradient norm (kyutai-labs/pocket-tts training)
EMA_DECAY = 0.999  # of the averages a step; without them the demo's error is the same within its seeds' spread
# Rows of the head at once on a GPU; the largest batch of 64 has three times the mean's 13,000 and would take 25 GiB.
MOST_ROWS = 16_384
# (batch, noise, distill_weight) -> losses, gradients added
Work = Callable[[Batch, torch.Tensor, float], dict[str, torch.Tensor]]


class Launched:
    """Every operation from Python: on a CPU, on several processes, or with a loss scaler."""

    name = "launched"

    def __init__(self, work: Work):
        self.work = work

    def __call__(self, batch: Batch, noise: torch.Tensor, distill_weight: float) -> dict[str, torch.Tensor]:
        return self.work(batch, noise, distill_weight)

    def zero_grad(self, parameters: list[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = None


@dataclass
class Recorded:
    graph: torch.cuda.CUDAGraph
    batch: Batch
    noise: torch.Tensor
    losses: dict[str, torch.Tensor]


class Replayed:
    """One CUDA graph for each set of shapes, all in one pool of memory. Python launches 4,400 kernels a step, six times
    as long as the GPU computes; replayed they are one launch.

    The first step of new shapes is launched, which warms up what may not be set up while recording; the second is
    recorded.
    """

    name = "replayed as CUDA graphs"

    def __init__(self, work: Work, parameters: list[torch.nn.Parameter], resident: torch.Tensor | None):
        """`resident`: the corpus's latents if they lie on the device, where a graph reads them."""
        self.work, self.resident, self.recorded, self.pool = work, resident, {}, torch.cuda.graph_pool_handle()
        self.side = torch.cuda.Stream()  # one for all: each stream keeps the memory it has used
        for parameter in parameters:  # a graph adds to gradients where they were when it was recorded
            parameter.grad = torch.zeros_like(parameter)

    def __call__(self, batch: Batch, noise: torch.Tensor, distill_weight: float) -> dict[str, torch.Tensor]:
        key = batch.shapes(), noise.shape, distill_weight
        if key not in self.recorded:
            self.recorded[key] = None
            main = torch.cuda.current_stream()
            self.side.wait_stream(main)
            with torch.cuda.stream(self.side):
                losses = self.work(batch, noise, distill_weight)
            main.wait_stream(self.side)
            return losses
        if self.recorded[key] is None:
            own = batch.map(lambda t: t if t is self.resident else t.clone())
            graph, own_noise = torch.cuda.CUDAGraph(), noise.clone()
            with torch.cuda.graph(graph, pool=self.pool):
                losses = self.work(own, own_noise, distill_weight)
            self.recorded[key] = Recorded(graph, own, own_noise, losses)
        r = self.recorded[key]
        for tensor, source in zip(r.batch.tensors().values(), batch.tensors().values()):
            if source is not tensor:
                tensor.copy_(source, non_blocking=True)
        r.noise.copy_(noise, non_blocking=True)
        r.graph.replay()
        return {name: loss.clone() for name, loss in r.losses.items()}

    def zero_grad(self, parameters: list[torch.nn.Parameter]) -> None:
        torch._foreach_zero_([parameter.grad for parameter in parameters])


class NormCheck:
    """Whether a step's gradient was finite, asked without making the device wait: its norm is on the way to the
    host."""

    def __init__(self, norm: torch.Tensor, step: int, inputs: dict):
        """`inputs`: what to save if it was not."""
        self.step, self.inputs, self.copied = step, inputs, None
        self.norm = norm.detach()
        if norm.device.type == "cuda":
            self.norm = torch.empty(norm.shape, dtype=norm.dtype, pin_memory=True).copy_(self.norm, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def is_finite(self) -> bool:
        if self.copied:
            self.copied.synchronize()
        return bool(torch.isfinite(self.norm))


class NotFinite(Exception):
    """A step whose gradient was not finite."""

    def __init__(self, check: NormCheck):
        super().__init__(f"gradient not finite at step {check.step}")
        self.check = check


class Steps:
    """The steps of a run: model, averages, optimisers, rows, and the place in their order.

    A step's batch, the same whatever the machine, is divided into parts: --grad-accum on each of the processes.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        cache: Cache,
        config: Config,
        weights: dict[str, torch.Tensor],
        teacher: FlowLMModel | None,
    ):
        """`args`: train.py's options. `weights`: of the base, which the model starts from unless from scratch."""
        self.args, self.accelerator, self.device, self.teacher = args, accelerator, accelerator.device, teacher
        self.latents, self.window, self.pace = Latents(cache.folder / "latents.npy", self.device), Window(), Pace()
        flow_lm = build_flow_lm(config, None if args.init == "scratch" else weights)
        if args.init == "scratch":
            flow_lm.emb_mean, flow_lm.emb_std = latent_statistics(cache)
        set_trainable(flow_lm, args.tune, True if teacher else args.freeze_head)
        per_frame = (0, 0) if teacher else (args.draws, args.distill_draws)  # a student has no noise
        shares = (args.text_dropout, args.voice_dropout, args.mark_dropout, STOP_DROPOUT, NFC_SHARE)
        self.draws = Draws(args.seed, *shares, *per_frame)
        self.train, self.valid = (
            self.utterances(cache, split, flow_lm, config.mimi.frame_rate) for split in ("train", "valid")
        )
        self.build_model(flow_lm)
        self.parts = args.grad_accum * accelerator.num_processes
        self.rows_a_step = args.batch_size * self.parts
        self.an_epoch = -(-len(self.train) // self.rows_a_step)
        self.last = min(args.epochs * self.an_epoch, args.max_steps or math.inf)
        self.schedule = Schedule(args.lr, args.schedule == "cosine", args.warmup_steps, self.last)
        self.done, self.epoch, self.batches, self.unchecked = 0, None, iter(()), None

    def utterances(self, cache: Cache, split: str, flow_lm: FlowLMModel, frame_rate: float) -> Utterances:
        null = self.teacher is not None and self.args.guidance != 1
        tokenizer, start = flow_lm.conditioner.tokenizer, flow_lm.insert_bos_before_voice
        return Utterances(cache, split, tokenizer, frame_rate, self.draws, self.latents, self.args.subset, start, null)

    def build_model(self, flow_lm: FlowLMModel) -> None:
        """The objective around the model, its optimisers, and how a step is run on this machine: on a GPU lengths are
        rounded to a few sizes, with a graph for each."""
        args, gpu = self.args, self.device.type == "cuda"
        if self.teacher:
            self.tts = Student(flow_lm, self.place(self.teacher), args.guidance)
        else:
            self.tts = TrainableTTS(flow_lm, self.draws, MOST_ROWS if gpu else math.inf)
        self.trainable = [p for p in self.tts.parameters() if p.requires_grad]
        optimizers = build_optimizers(self.tts, args.optimizer, args.lr, args.weight_decay, args.precision)
        # self.model is the same, wrapped for several processes
        self.model, *self.optimizers = self.accelerator.prepare(self.tts, *optimizers)
        self.ema = EMA(self.tts, EMA_DECAY)
        self.bits = 4 if gpu else None  # significant ones of a length
        graphs = gpu and self.accelerator.num_processes == 1 and not self.accelerator.scaler
        if graphs:
            self.run = Replayed(self.forward_backward, self.trainable, self.latents.table)
        else:
            self.run = Launched(self.forward_backward)
        if args.compile:
            self.tts.compile_parts()

    def place(self, teacher: FlowLMModel) -> FlowLMModel:
        """On the device, its layers' matrices in the run's precision: 24 layers are 1.2 GB in fp32."""
        for parameter in teacher.transformer.layers.parameters():
            if parameter.ndim == 2 and self.args.precision != "no":
                parameter.data = parameter.data.to(torch.bfloat16 if self.args.precision == "bf16" else torch.float16)
        return teacher.to(self.device).eval().requires_grad_(False)

    def trained(self) -> Trained:
        return Trained(self.tts, self.optimizers, self.ema, self.accelerator.scaler)

    def next_rows(self) -> np.ndarray:
        number = 1 + self.done // self.an_epoch
        if self.epoch is None or number != self.epoch.number:
            self.epoch = self.train.epoch(number)
            self.batches = iter(self.train.order(self.epoch, self.rows_a_step)[self.done % self.an_epoch :])
        return next(self.batches)

    def forward_backward(self, batch: Batch, noise: torch.Tensor, distill_weight: float) -> dict[str, torch.Tensor]:
        losses = self.model(batch, noise, distill_weight)
        # Gradients are averaged over processes; the batch's are their sum.
        self.accelerator.backward(losses["loss"] * self.accelerator.num_processes)
        return {name: value.detach() for name, value in losses.items()}

    def take(self, time_share: float) -> None:
        """One step. `time_share`: of the limit of time, which a cosine comes down with. Raises NotFinite."""
        args, rows = self.args, self.next_rows()
        distil = not self.teacher and distils(args.seed, self.done)
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = group["scale"] * self.schedule.rate(self.done, time_share)
        frames = int(self.train.frames[rows].sum())
        noise = draw_noise(self.draws, NOISE, self.done, frames, distil, self.device)
        weight = LSD.DISTILL_WEIGHT / DISTILL_SHARE if distil else 0.0
        for part in range(args.grad_accum):
            batch, losses = self.take_part(part, rows, noise, weight)
        self.accelerator.unscale_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.trainable, CLIP, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        self.run.zero_grad(self.trainable)
        self.ema.update(self.done)
        self.check_finite()
        tensors = {name: t for name, t in batch.tensors().items() if t is not self.latents.table}
        inputs = {"ids": [self.train.ids[i] for i in rows], "last_part": tensors, "losses": losses}
        self.unchecked = NormCheck(norm, self.done, inputs)
        if self.device.type == "cpu":
            self.check_finite()
        self.done += 1
        self.window.add({"grad_norm": norm.detach()})
        self.window.steps += 1
        self.window.distilled += distil
        self.window.frames += frames
        self.window.seconds += self.pace.step()

    def take_part(
        self, part: int, rows: np.ndarray, noise: torch.Tensor, weight: float
    ) -> tuple[Batch, dict[str, torch.Tensor]]:
        """Add the gradients of this process's share of a part of the step; the batch, on the host, and its losses."""
        args, mine = self.args, part * self.accelerator.num_processes + self.accelerator.process_index
        size = args.batch_size if self.bits else None
        batch = self.train.batch(rows, self.epoch, mine, self.parts, size, self.bits)
        with nullcontext() if part == args.grad_accum - 1 else self.accelerator.no_sync(self.model):
            try:
                losses = self.run(batch.to(self.device), noise, weight)
            except torch.cuda.OutOfMemoryError:
                half = f"--batch-size {max(1, args.batch_size // 2)} --grad-accum {args.grad_accum * 2}"
                raise UserError(
                    f"out of GPU memory at step {self.done}; the same command with {half} continues with the same "
                    "steps in half the memory"
                ) from None
        self.window.add(losses)
        self.window.positions += int((batch.kind > 0).sum())
        self.window.places += batch.kind.numel()
        return batch, losses

    def check_finite(self) -> None:
        """Of the step before on a GPU, which is done by now, so that nothing waits. Raises NotFinite."""
        check, self.unchecked = self.unchecked, None
        if check is None or self.accelerator.scaler or check.is_finite():  # a scaler skips such steps by itself
            return
        raise NotFinite(check)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Held-out means under the averaged weights, with the same noise, times and prompts each time."""
        totals: dict[str, torch.Tensor] = {}
        valid, size = self.valid, self.args.batch_size
        epoch, rows = valid.epoch(EVAL_EPOCH), np.arange(len(valid))
        for number, start in enumerate(range(0, len(rows), size)):
            mine = rows[start : start + size]
            frames = int(valid.frames[mine].sum())
            batch = valid.batch(mine, epoch, size=size if self.bits else None, bits=self.bits).to(self.device)
            noise = draw_noise(valid.draws, EVAL_NOISE, number, frames, True, self.device)
            losses = torch.func.functional_call(self.tts, self.ema.shadow, (batch, noise, LSD.DISTILL_WEIGHT))
            totals = {name: totals.get(name, 0.0) + value * frames for name, value in losses.items()}
        return {f"valid_{name}": (total / valid.frames.sum()).item() for name, total in totals.items()}

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
