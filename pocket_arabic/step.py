"""Forward and backward of a training step, launched operation by operation or, on a GPU, replayed as a CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pocket_arabic.rows import Batch

Work = Callable[
    [Batch, torch.Tensor, float], dict[str, torch.Tensor]
]  # (batch, noise, distill_weight) -> losses, gradients added


class Launched:
    """Every operation from Python: on a CPU, on several processes, with a loss scaler or with dropout in the
    adapters."""

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
