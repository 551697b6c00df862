"""Running a script: user errors, atomic files, threads, provenance, JSON lines."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """A mistake of the user's: one line saying what is wrong, where, and the command that fixes it."""


def command(main: Callable[[], None]) -> None:
    """Run a script's `main`; exit 2 with one line on a UserError or a full disk, 130 on Ctrl-C."""
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {error}\n")
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.stderr.write(f"{Path(sys.argv[0]).name}: cannot write ({error.strerror}); free some space (df -h .), then the same command continues\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command continues\n")
        raise SystemExit(130) from None


def use_all_cores() -> None:
    """Undo `torch.set_num_threads(1)`, which importing pocket_tts does, unless OMP_NUM_THREADS says otherwise."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place only if the block succeeds, so no half file ever looks whole."""
    tmp = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield tmp
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_jsonl(path: Path) -> list[dict]:
    """The whole lines of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    # Not splitlines(): JSON leaves U+2028 and its like raw inside strings.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def append_jsonl(path: Path, record: dict) -> None:
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(record, ensure_ascii=False) + "\n")


def differences(old: dict, new: dict) -> str:
    """'trim: true -> false, limit: null -> 5' for every key whose value changed; empty if none did."""
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return ", ".join(f"{k}: {json.dumps(old.get(k))} -> {json.dumps(new.get(k))}" for k in keys)


def provenance() -> dict:
    """Commit and versions, for the first record of a run and for bundle.json."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        commit = ""
    packages = ("pocket-tts", "torch", "accelerate", "numpy")
    return {
        "commit": commit or None,
        "python": platform.python_version(),
        "packages": {p: version(p) for p in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that a step finishes and is saved; a second one kills as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
