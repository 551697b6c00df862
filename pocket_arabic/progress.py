"""How a run goes: the pace of its steps, their figures since the last logged one, and the curves."""

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pocket_arabic.run import atomic_write

CURVES = {
    "flow_error": "diagonal flow error",
    "distill_error": "distillation error",
    "eos": "EOS cross-entropy",
    "z_error": "distance from the teacher",
    "speech_score": "distance of the speech, dB",
}


class Pace:
    """Seconds of a training step, what else a run does left out, and its mean since this process has warmed up."""

    WARM_UP = 4  # steps that count nothing: they compile, record, or fill caches

    def __init__(self) -> None:
        self.since, self.steps, self.counted, self.total = time.monotonic(), 0, 0, 0.0

    def pause(self, seconds: float) -> None:
        """What took so long since the last step was none."""
        self.since += seconds

    def step(self) -> float:
        """Note a step; its seconds."""
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        self.steps += 1
        if self.steps > self.WARM_UP:
            self.counted, self.total = self.counted + 1, self.total + seconds
        return seconds

    def mean(self) -> float:
        return self.total / self.counted if self.counted else 0.0


class Window:
    """The steps since the last logged one: sums of their figures, which stay on the device until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = self.distilled = self.frames = self.positions = self.places = 0
        self.seconds = 0.0

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self, over_processes: Callable[[torch.Tensor, str], torch.Tensor]) -> dict[str, float]:
        """A step's. The parts of a batch add up to its losses; the distillation's are those of the steps that have
        it."""
        kinds = {name: "mean" if name == "grad_norm" else "sum" for name in self.sums}
        totals = {name: over_processes(value, kinds[name]).item() for name, value in self.sums.items()}
        count = {name: self.distilled if name.startswith("distill") else self.steps for name in totals}
        return {name: float(f"{total / count[name]:.7g}") for name, total in totals.items()}

    def speed(self) -> dict[str, float]:
        return {
            "frames_per_sec": round(self.frames / self.seconds, 1),
            "step_sec": round(self.seconds / self.steps, 4),
            "padding": round(1 - self.positions / self.places, 4),
            "memory_gib": round(memory_gib(), 2),
        }


def memory_gib() -> float:
    """Peak of this process: of the GPU if there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held when it started this process
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # bytes on macOS


def plot_curves(path: Path, progress: list[dict]) -> None:
    """loss.png: what was logged in training, and held out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    train, valid = ([r for r in progress if r["kind"] == kind] for kind in ("train", "eval"))
    shown = {name: title for name, title in CURVES.items() if any(name in r for r in progress)}
    columns = max(1, len(shown))
    figure, axes = plt.subplots(1, columns, figsize=(4 * columns, 3.5), layout="constrained", squeeze=False)
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
