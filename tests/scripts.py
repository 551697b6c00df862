"""The scripts as a user runs them: as processes of their own, most of them forked from one that has imported torch.

Importing torch, the wheel and the scripts takes seconds of CPU, a fork of a process that has done so hundredths of
one. A forked process has its own memory, folder, output, signals and exit status. What it shares with its like is what
an interpreter settles when it starts: the environment, and the order of sets (PYTHONHASHSEED). Tests that two
processes do the same to the bit therefore run one of them by `start`.
"""

import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, f"{ROOT}")
# What every process of the tests gets: the one that runs them, those that it starts, and the one that forks.
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}"}
# What numba compiles of librosa it keeps in files that two processes must not write at once: with one folder for all
# workers the files of different signatures were mixed in one of two trials, and every later process crashed (SIGSEGV).
os.environ["NUMBA_CACHE_DIR"] = f"{ROOT}/.pytest_cache/numba-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"

# Ctrl-C is heard also where a shell has started the tests in the background, which lets its jobs ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])


def words(line: str, *more: object) -> list[str]:
    """A command line as one types it in the repository, and arguments that need no quotes -> the arguments of Python,
    with our scripts' paths in full."""
    return [f"{ROOT / word}" if word.endswith(".py") else word for word in shlex.split(line)] + [str(a) for a in more]


def fork(
    line: str,
    *more: object,
    cwd: Path | None = None,
    files: Sequence[Path] = (Path(os.devnull), Path(os.devnull)),
    **environment: str,
) -> multiprocessing.process.BaseProcess:
    """Start a script by a fork, in the folder `cwd`; it prints to `files`, its output and its errors. With what
    `environment` adds, the fork becomes a fresh interpreter."""
    process = FORKS.Process(target=become, args=(words(line, *more), cwd or Path.cwd(), files, environment))
    process.start()
    return process


def run(line: str, *more: object, **options: object) -> subprocess.CompletedProcess:
    """Run a script to its end by a fork; `options` are those of `fork`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = fork(line, *more, files=files, **options)
        process.join()
        out, err = (file.read_text(encoding="utf-8", errors="surrogateescape") for file in files)
    return subprocess.CompletedProcess(line, process.exitcode, out, err)


def become(argv: list[str], cwd: Path, files: Sequence[Path], environment: dict[str, str]) -> None:
    """In the forked process: be the script."""
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    if environment:  # libraries read theirs when they are imported, where the hub is above all
        os.execve(sys.executable, [sys.executable, *argv], os.environ | environment)
    sys.argv = argv
    sys.path.insert(0, f"{Path(argv[0]).parent}")
    runpy.run_path(argv[0], run_name="__main__")


def start(line: str, *more: object, **options: object) -> subprocess.Popen:
    """Start a script, or `-m` and what launches several, in an interpreter of its own; `options` are Popen's, `env` in
    addition to what is there."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | options.pop("env", {})
    return subprocess.Popen([sys.executable, *words(line, *more)], env=environment, **pipes | options)


def ended(process: subprocess.Popen, seconds: float = 600) -> subprocess.CompletedProcess:
    """What a started script has printed and returned by its end."""
    out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
