"""Running a script: options and their ranges, user errors, atomic files, threads, provenance, JSON lines."""

import argparse
import errno
import fcntl
import itertools
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch

from pocket_arabic import __version__

ROOT = Path(__file__).resolve().parent.parent
TMP, COUNT = ".tmp", itertools.count()  # short: a file's own name may be as long as the system allows


class UserError(Exception):
    """A mistake of the user's: one line saying what is wrong, where, and the command that fixes it."""


def command(main: Callable[[], None], again: str = "continues") -> None:
    """Run a script's `main`; exit 2 with one line on a UserError, a full disk or a file that cannot be used, 130 on
    Ctrl-C. `again`: what the same command does then."""
    for out in (sys.stdout, sys.stderr):
        out.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        main()
    except UserError as error:
        end(2, str(error))
    except BrokenPipeError:  # whom it told has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python's own last flush goes
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            end(2, f"cannot write ({error.strerror}); free some space (df -h .), then the same command {again}")
        if error.filename is None:
            raise
        end(2, f"{error.filename}: {error.strerror}; mend that, then the same command {again}")
    except KeyboardInterrupt:
        end(130, f"interrupted; the same command {again}")


def end(status: int, message: str) -> NoReturn:
    """Exit with one line."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
    raise SystemExit(status)


# --- options ----------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse's, for a script's docstring; a usage error is one line, and quotes no more than a line of what was
    given. With `files`, @FILE stands for the options in it, as a shell would read them, # for comments."""

    def __init__(self, manual: str, files: bool = False):
        prefix = "@" if files else None
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=manual, formatter_class=form, fromfile_prefix_chars=prefix)
        self.add_argument("--version", action="version", version=__version__)

    def convert_arg_line_to_args(self, line: str) -> list[str]:
        return shlex.split(line, comments=True)

    def error(self, message: str) -> NoReturn:
        end(2, f"{shortened(message.removeprefix('argument '), 300)}; see {self.prog} --help")


def shortened(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def whole(least: int, most: int = 10**9) -> Callable[[str], int]:
    """The `type` of an option: a whole number of a range."""
    return _number(int, "a whole number", least, most)


def real(least: float, most: float) -> Callable[[str], float]:
    """The `type` of an option: a finite number of a range."""
    return _number(float, "a number", least, most)


def _number(kind: type, name: str, least: float, most: float) -> Callable:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{shortened(text)!r} must be {name} from {least:g} to {most:g}")
        return value

    parse.range = least, most
    return parse


def filled(text: str) -> str:
    """The `type` of an option: text that is not empty, in UTF-8."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name something, or leave the option out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not UTF-8; write it in UTF-8") from None
    return text


def location(text: str) -> Path:
    """The `type` of an option: a path that the system can hold."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name something, or leave the option out")
    try:
        os.stat(text)
        os.stat(Path(text).parent / f"{TMP}{Path(text).suffix}")
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise argparse.ArgumentTypeError(f"{shortened(text)}: {error.strerror}; give another name") from None
    return Path(text)


def use_all_cores() -> None:
    """Undo `torch.set_num_threads(1)`, which importing pocket_tts does, unless OMP_NUM_THREADS says otherwise."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place only if the block succeeds, so no half file ever looks
    whole."""
    tmp = path.with_name(f"{TMP}.{os.getpid()}.{next(COUNT)}{path.suffix}")
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


def read_jsonl(path: Path, holds: Callable[[dict], bool] = bool) -> list[dict]:
    """The whole lines of a JSON-lines file; a last line cut short by a crash is left out. Raises UserError for any
    other line that is no object, or of which not `holds` what is wanted of it."""
    if not path.exists():
        return []
    found = []
    # Not splitlines(): JSON leaves U+2028 and its like raw inside strings.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append(None)
        if not isinstance(found[-1], dict) or not holds(found[-1]):
            raise UserError(
                f"{path}: line {number} is damaged; delete that line (sed -i {number}d {path}) if you can do without it"
            )
    return found


def read_json(path: Path, remedy: str) -> dict:
    """An object of JSON. Raises UserError, with the remedy."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())[:80]}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged (no object); {remedy}")
    return found


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
    """Turns the first Ctrl-C or SIGTERM into a flag, so that a step finishes and is saved; a second one kills as
    usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)


# --- a run of train.py ------------------------------------------------------------------------------------------------


class RunFolder:
    """runs/NAME: its lock, recipe (args.json), progress.jsonl, and where checkpoints, samples and the bundle go."""

    def __init__(self, path: Path):
        self.path, self.progress = path, path / "progress.jsonl"
        self.checkpoints, self.bundle = path / "checkpoints", path / "bundle"

    def check(self, recipe: dict, free: set[str]) -> None:
        """Raises UserError if a run with another recipe is here; options in `free` may differ."""
        file = self.path / "args.json"
        if file.exists():
            old = read_json(file, f"if {self.path} is not to be kept: rm -r {self.path}; else give another --out")
            changed = differences(*({k: v for k, v in options.items() if k not in free} for options in (old, recipe)))
            if changed:
                raise UserError(
                    f"{self.path} was trained with another recipe ({changed}); give another --out, or the same options"
                )

    def open(self, recipe: dict) -> None:
        """Take the folder for this process, until it ends, however it ends. Raises UserError if another one has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.path / ".lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.path}: another train.py is at work in it; wait for it, or give another --out"
            ) from None
        for leftover in self.path.glob(f"{TMP}.*"):  # of a process killed while it wrote
            leftover.unlink()
        write_json(self.path / "args.json", recipe)

    def records(self) -> list[dict]:
        """What progress.jsonl holds. Raises UserError."""
        return read_jsonl(self.progress, lambda r: isinstance(r.get("kind"), str) and isinstance(r.get("step", 0), int))

    def begin(self, record: dict) -> None:
        """A new progress.jsonl with its first record. Raises UserError if a run that has lost its checkpoints is
        here."""
        if self.bundle.exists() or any("step" in r for r in self.records()):
            raise UserError(
                f"{self.checkpoints}: its checkpoints are gone, and with them what the run had learnt; restore them, "
                f"or begin anew: rm -r {self.path}"
            )
        self.progress.unlink(missing_ok=True)
        append_jsonl(self.progress, {"kind": "start", **provenance(), **record})

    def rewind(self, step: int) -> None:
        """Drop what was logged after the checkpoint of `step`: it will be logged again."""
        kept = [record for record in self.records() if record.get("step", 0) <= step]
        with atomic_write(self.progress) as tmp:
            tmp.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")


class Clock:
    """Hours of a run over all its continuations, and how much of its limit is spent."""

    def __init__(self, limit: float | None):
        self.limit, self.spent, self.start = limit, 0.0, time.monotonic()
        self.closing = 0.0  # hours that the slowest save, evaluation and samples took: what the end will take

    def hours(self) -> float:
        return self.spent + (time.monotonic() - self.start) / 3600

    def share(self) -> float:
        """Of the time there is for training, what is spent: 0 to 1; 0 without a limit."""
        return min(1.0, self.hours() / max(1e-9, self.limit - self.closing)) if self.limit else 0.0
