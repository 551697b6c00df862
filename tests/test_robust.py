"""Nothing a user does ends in a traceback: options, files, damaged folders, signals, full disks."""

import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, TEXTS, TRAIN, digest, fails
from safetensors.torch import load_file, save_file

from pocket_arabic.adapt import set_trainable
from pocket_arabic.cache import CacheWriter
from pocket_arabic.checkpoint import seal
from pocket_arabic.run import UserError, command

SCRIPTS = ("data_prep", "train", "generate_sample")
REQUIRED = {"train": ["--data", "data/demo"], "generate_sample": ["--text", "x"], "data_prep": []}
PLAIN = (
    "--substitute",
    "--split-map",
    "--tune",
    "--tokenizer",
    "--asr",
)  # texts with a form of their own, checked by what reads them


def options(script: str) -> list:
    """(option, action) of every option of a script that takes a value."""
    parser = importlib.import_module(script).build_parser()
    return [(a.option_strings[0], a) for a in parser._actions if a.option_strings and a.nargs != 0]


def test_every_option_has_a_range():
    """A new one cannot lack it: numbers have theirs, other values a set of choices or a type that refuses nothing at
    all."""
    bad = []
    for script in SCRIPTS:
        for option, action in options(script):
            checked = (
                hasattr(action.type, "range")
                or action.choices
                or getattr(action.type, "__name__", "") in ("filled", "location")
            )
            bad += [] if checked or option in PLAIN else [f"{script} {option}"]
    assert not bad


VALUES = ["nan", "inf", "-inf", "-1", "0", str(2**70), "", "x", "٣", "9" * 400, "1e400", "0x10", " ", "\udcff"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_odd_values_are_refused_in_one_line_or_in_range(script, monkeypatch, capsys):
    """Every option that takes a number, with every odd value: exit 2 and one short line that names the option, or a
    finite number within the option's range."""
    module, refused, taken = importlib.import_module(script), 0, 0
    for option, action in options(script):
        if not hasattr(action.type, "range") and getattr(action.type, "__name__", "") not in ("filled", "location"):
            continue
        for value in VALUES:
            given = [f"{option}={value}"] if action.nargs is None else [option, *[value] * action.nargs]
            required = [] if option in REQUIRED[script] else REQUIRED[script]
            monkeypatch.setattr(sys, "argv", [f"{script}.py", *required, *given])
            try:
                found = getattr(module.build_parser().parse_args(), action.dest)
            except SystemExit as stop:
                line = capsys.readouterr().err
                assert stop.code == 2 and line.count("\n") == 1 and option in line and len(line) < 400, (
                    option,
                    value,
                    line,
                )
                refused += 1
                continue
            taken += 1
            for number in found if isinstance(found, list) else [found]:
                if isinstance(number, (int, float)):
                    least, most = action.type.range
                    assert math.isfinite(number) and least <= number <= most, (option, value)
    assert refused > 100 and taken


# --- damaged files ----------------------------------------------------------------------------------------------------

DAMAGE = {
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"\x00\xff garbage \n" * 40),
    "removed": lambda file: file.unlink(),
}


def outcome(capsys, monkeypatch, script: str, *args: object) -> tuple[int, str, str]:
    """A script in this process -> exit status, what it printed, its error, which is one line or none; never a
    traceback."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, args)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # like `conftest.run`: latents of two threads differ in their last bits
    threads = torch.get_num_threads()
    capsys.readouterr()
    try:
        command(importlib.import_module(script).main)
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith(f"{script}.py")]
    assert status in (0, 2) and len(lines) == (status == 2), printed.err
    return status, printed.out, "".join(lines)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_run_continues_from_what_is_whole(how, finished_run, cache, tmp_path, monkeypatch, capsys):
    """Each file of the run and of its newest checkpoint in turn: an older checkpoint is continued from, and said so, or
    one line names the file. With every checkpoint damaged the run never starts anew by itself."""
    names = [
        "args.json",
        "progress.jsonl",
        *(
            f"checkpoints/step_000004/{f}"
            for f in ("model.safetensors", "ema.safetensors", "optimizers.pt", "state.json")
        ),
    ]
    again = [*TRAIN, "--data", cache, "--max-steps", 5]
    for name in names:
        run_folder = tmp_path / name.replace("/", "_")
        shutil.copytree(finished_run, run_folder)
        DAMAGE[how](run_folder / name)
        status, out, error = outcome(capsys, monkeypatch, "train", *again, "--out", run_folder)
        if name.startswith("checkpoints"):
            assert status == 0 and "damaged_step_000004" in out and "continuing at step 2" in out, (name, out, error)
            assert (run_folder / "checkpoints" / "step_000005").is_dir()
        elif status == 2:
            assert name in error, (name, error)
        else:
            assert "continuing at step 4" in out, name
    run_folder = tmp_path / "all"
    shutil.copytree(finished_run, run_folder)
    for file in run_folder.glob("checkpoints/*/model.safetensors"):
        DAMAGE[how](file)
    for _ in range(2):
        status, out, error = outcome(capsys, monkeypatch, "train", *again, "--out", run_folder)
        assert status == 2 and "no whole checkpoint" in error and "rm -r" in error


def rewrite(file: Path, change) -> None:
    """A JSON-lines file with its first object changed."""
    first, *rest = file.read_text(encoding="utf-8").split("\n")
    file.write_text("\n".join([json.dumps(change(json.loads(first))), *rest]), encoding="utf-8")


ODD = {  # in the cache: what is well-formed and cannot be
    "manifest.jsonl": lambda c: rewrite(c / "manifest.jsonl", lambda row: row | {"text_model": None}),
    "disagree": lambda c: rewrite(c / "manifest.jsonl", lambda row: row | {"first_frame": 10**6}),
    "cache.json": lambda c: (c / "cache.json").write_text('{"format_version": 1, "options": {}, "hours": {}}'),
    "voice.wav": lambda c: (c / "voice.wav").write_bytes(b"RIFF"),
}


def test_odd_contents_are_named(finished_run, cache, tmp_path, monkeypatch, capsys):
    """JSON that can be read and lacks what is wanted; a run whose checkpoints somebody deleted began anew and threw its
    bundle away."""
    for word, change in ODD.items():
        folder = tmp_path / f"c_{word}"
        shutil.copytree(cache, folder)
        change(folder)
        status, _, error = outcome(
            capsys, monkeypatch, "train", *TRAIN, "--data", folder, "--max-steps", 1, "--out", tmp_path / f"r_{word}"
        )
        assert status == 2 and word in error, (word, error)
    again = [*TRAIN, "--data", cache, "--max-steps", 5, "--out"]
    for number, line in enumerate(('{"x": 1}', '{"kind": "eval", "step": "x"}', "[]")):
        folder = tmp_path / f"p{number}"
        shutil.copytree(finished_run, folder)
        with open(folder / "progress.jsonl", "a") as file:
            file.write(line + "\n")
        status, _, error = outcome(capsys, monkeypatch, "train", *again, folder)
        assert status == 2 and "progress.jsonl: line" in error, error
    folder = tmp_path / "gone"
    shutil.copytree(finished_run, folder)
    shutil.rmtree(folder / "checkpoints")
    status, _, error = outcome(capsys, monkeypatch, "train", *again, folder)
    assert status == 2 and "checkpoints are gone" in error and (folder / "bundle" / "bundle.json").exists()
    folder = tmp_path / "lies"
    shutil.copytree(finished_run, folder)
    (folder / "checkpoints" / "step_000004" / "state.json").write_text('{"step": 3, "hours": 0}')
    status, out, _ = outcome(capsys, monkeypatch, "train", *again, folder)
    assert status == 0 and "damaged_step_000004" in out and "continuing at step 2" in out


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cache_or_bundle_is_named(how, finished_run, cache, tmp_path, monkeypatch, capsys):
    """Each file in turn: one line, with the file or its folder in it, or nothing that matters is missing."""
    for name in ("cache.json", "manifest.jsonl", "latents.npy", "stats.json", "rejects.jsonl"):
        folder = tmp_path / f"cache_{name}"
        shutil.copytree(cache, folder)
        DAMAGE[how](folder / name)
        status, _, error = outcome(
            capsys, monkeypatch, "train", *TRAIN, "--data", folder, "--max-steps", 1, "--out", tmp_path / f"run_{name}"
        )
        assert (status == 2 and str(folder) in error) or name in ("stats.json", "rejects.jsonl"), (name, error)
    for file in sorted((finished_run / "bundle").iterdir()):
        folder = tmp_path / f"bundle_{file.name}"
        shutil.copytree(finished_run / "bundle", folder)
        DAMAGE[how](folder / file.name)
        status, _, error = outcome(
            capsys, monkeypatch, "generate_sample", "--model", folder, "--text", TEXTS[1], "--out", tmp_path / "a.wav"
        )
        assert status == 2 and file.name in error, (file.name, error)


@pytest.mark.parametrize("how", ["garbage", "removed"])
def test_a_damaged_block_is_made_again(how, corpus, tiny_base, cache, tmp_path, monkeypatch, capsys):
    """A cache that grows, stopped before it was finished, each of its files damaged in turn: at once, or with the line
    that says so by the same command once more, it is the cache that it would have been."""
    line = ["--corpus", corpus, "--base", tiny_base, "--out"]

    def stopped(_: CacheWriter) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "collect", stopped)
        assert outcome(capsys, patch, "data_prep", *line, tmp_path / "grown")[0] == 2
    files = sorted(file.name for file in (tmp_path / "grown" / "partial").iterdir())
    assert len(files) == 5, files
    for name in files:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "grown", folder)
        DAMAGE[how](folder / "partial" / name)
        status, _, error = outcome(capsys, monkeypatch, "data_prep", *line, folder)
        if status == 2 and name == "options.json":
            assert "options.json" in error and "rm -r" in error
            continue
        if status == 2:
            assert name.split(".")[0] in error, error
            assert outcome(capsys, monkeypatch, "data_prep", *line, folder)[0] == 0
        assert digest(folder) == digest(cache), name


INFO = [
    ("max_tokens", "x"),
    ("max_tokens", -3),
    ("max_tokens", 12.5),
    ("slowest_sec_per_token", None),
    ("slowest_sec_per_token", -1),
    ("slowest_sec_per_token", math.nan),
    ("phonemes", 5),
    ("substitute", []),
    ("eos_threshold", "x"),
    ("checkpoint", None),
    ("sha256", 3),
]


def test_what_a_bundle_may_do_to_us(finished_run, tmp_path, monkeypatch, capsys):
    """Values of another type or range, weights that are not finite although sealed, links that lead out of it."""
    line = ["--text", TEXTS[1], "--out", tmp_path / "a.wav", "--model"]
    for number, (key, value) in enumerate(INFO):
        bundle = tmp_path / f"b{number}"
        shutil.copytree(finished_run / "bundle", bundle)
        info = json.loads((bundle / "bundle.json").read_text())
        (bundle / "bundle.json").write_text(json.dumps(info | {key: value}))
        status, _, error = outcome(capsys, monkeypatch, "generate_sample", *line, bundle)
        assert status == 2 and "bundle.json" in error and key in error, error
    bundle = tmp_path / "nan"
    shutil.copytree(finished_run / "bundle", bundle)
    info = json.loads((bundle / "bundle.json").read_text())
    weights = load_file(bundle / "model.safetensors")
    weights["flow_lm.out_norm.weight"][3] = math.nan
    save_file(weights, bundle / "model.safetensors")
    seal(bundle, {k: v for k, v in info.items() if k != "sha256"})
    for more in ([], ["--stream"]):
        status, _, error = outcome(capsys, monkeypatch, "generate_sample", *line, bundle, *more)
        assert status == 2 and "flow_lm.out_norm.weight" in error and "not finite" in error
    bundle = tmp_path / "link"
    shutil.copytree(finished_run / "bundle", bundle)
    os.replace(bundle / "voice.wav", tmp_path / "voice.wav")
    (bundle / "voice.wav").symlink_to(tmp_path / "voice.wav")
    status, _, error = outcome(capsys, monkeypatch, "generate_sample", *line, bundle)
    assert status == 2 and "voice.wav" in error and "leads out" in error


def test_voices_and_names_of_generate(finished_run, tmp_path, monkeypatch, capsys):
    """Voices that are none are refused, a long one is read as far as it is used; names as long as the system allows
    work."""
    rate = 24000
    tone = (0.3 * np.sin(np.arange(3 * rate) * 0.05)).astype(np.float32)
    voices = {
        "huge": (tone * 1e30, rate),
        "odd": (tone, 7_777_777),
        "hertz": (tone[:100], 1),
        "sample": (tone[:1], rate),
        "silent": (0 * tone, rate),
        "click": (tone[:999], rate),
    }
    line = ["--model", finished_run, "--text", TEXTS[1], "--out"]
    for name, (samples, own) in voices.items():
        sf.write(tmp_path / f"{name}.wav", samples, own, subtype="FLOAT")
        status, _, error = outcome(
            capsys, monkeypatch, "generate_sample", *line, tmp_path / "a.wav", "--voice", tmp_path / f"{name}.wav"
        )
        assert status == 2 and f"{name}.wav" in error, (name, error)
    sf.write(tmp_path / "long.wav", np.tile(tone, 200), rate)  # 10 minutes, which would ask for 100 GB
    assert (
        outcome(capsys, monkeypatch, "generate_sample", *line, tmp_path / "a.wav", "--voice", tmp_path / "long.wav")[0]
        == 0
    )
    assert outcome(capsys, monkeypatch, "generate_sample", *line, tmp_path / ("n" * 246 + ".wav"))[0] == 0
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for out in (tmp_path / ("n" * 296 + ".wav"), tmp_path / "loop.wav"):
        for more in ([], ["--stream"]):
            status, _, error = outcome(capsys, monkeypatch, "generate_sample", *line, out, *more)
            assert status == 2 and "--out" in error and len(error) < 300, error


# --- signals and full disks -------------------------------------------------------------------------------------------


def wav_seconds(file: Path) -> float:
    """By its header, which must claim no more than there is."""
    head = file.read_bytes()[:44]
    assert struct.unpack("<I", head[40:44])[0] == struct.unpack("<I", head[4:8])[0] - 36 <= file.stat().st_size - 44
    return struct.unpack("<I", head[40:44])[0] / 48000


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_signal_while_it_speaks(stop, streamed, tmp_path):
    """The wheel's decoder thread aborted the process; a streamed wav claimed 4 GB."""
    text = " ".join(TEXTS * 8) if streamed else " ".join(TEXTS[3].split()[:-1] * 8)
    out = tmp_path / "a.wav"
    line = [
        sys.executable,
        ROOT / "generate_sample.py",
        "--model",
        ROOT / "demo" / "bundle",
        "--text",
        text,
        "--out",
        out,
        *["--stream"] * streamed,
    ]
    process = subprocess.Popen(
        line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    wait_for(
        lambda: (
            process.poll() is not None
            or (out.exists() and out.stat().st_size > 20_000 if streamed else list(tmp_path.glob(".tmp.*")))
        )
    )
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    assert (
        process.returncode == 128 + stop
        and "abort" not in error
        and "terminate" not in error
        and "Traceback" not in error
    ), error
    assert not list(tmp_path.glob(".tmp.*"))
    if streamed:
        assert 0.3 < wav_seconds(out) < 100
    else:
        assert not out.exists()


def test_a_reader_that_leaves():
    """`generate_sample.py --dry-run | head -0` ended in BrokenPipeError."""
    line = [
        sys.executable,
        ROOT / "generate_sample.py",
        "--model",
        ROOT / "demo" / "bundle",
        "--text",
        TEXTS[0],
        "--dry-run",
    ]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE and not done.stderr, done.stderr


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("limit", [60_000, 200_000])
def test_a_disk_that_fills_while_it_trains(limit, finished_run, cache, tmp_path):
    """A limit on a file's size stands for the disk: safetensors and torch tell by errors of their own. One line, no
    half checkpoint, and with room the same command continues."""
    shutil.copytree(finished_run, tmp_path / "r")
    line = [
        sys.executable,
        ROOT / "train.py",
        *map(str, [*TRAIN, "--data", cache, "--out", tmp_path / "r", "--max-steps", 6]),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))  # noqa: E731
    full = subprocess.run(line, preexec_fn=small, env=env, capture_output=True, text=True)
    fails(full, "free some space", "the same command continues")
    assert not [p for p in (tmp_path / "r" / "checkpoints").iterdir() if p.name not in ("step_000002", "step_000004")]
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "continuing at step 4" in done.stdout, done.stderr


# --- kills ------------------------------------------------------------------------------------------------------------

KILLS = int(os.environ.get("KILLS", "1"))  # of each kind; KILLS=30 is the long loop
TWO = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]


def names(folder: Path) -> dict[str, int]:
    """What lies in a folder, and when it was written."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a temporary name, renamed meanwhile
            found[str(path)] = path.stat().st_mtime_ns
    return found


@pytest.fixture(scope="module")
def many_clips(corpus, tmp_path_factory) -> Path:
    """A corpus of 192 clips, six shards: the small one's, each 24 times."""
    folder = tmp_path_factory.mktemp("many")
    lines = ["file_name,text"]
    for i, text in enumerate(TEXTS * 24):
        (folder / f"{i}.wav").symlink_to(corpus / f"{i % len(TEXTS)}.wav")
        lines.append(f'{i}.wav,"{text}"')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["data_prep", "data_prep on two", "train", "generate"])
def test_kills_at_random_moments(kind, many_clips, cache, tiny_base, tmp_path):
    """Killed again and again while it writes, and started again: what is there is whole at any moment, and in the end
    the same as of a run that nobody killed. A launcher's processes are killed outright, one alone also asked to end."""
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    line = {
        "data_prep": ["data_prep.py", "--corpus", many_clips, "--base", tiny_base],
        "train": ["train.py", *TRAIN, "--data", cache, "--max-steps", 8, "--eval-every", 1, "--keep", 9],
        "generate": [
            "generate_sample.py",
            "--model",
            ROOT / "demo" / "bundle",
            "--text-file",
            tmp_path / "lines.txt",
            "--batch-size",
            2,
        ],
    }[kind.split()[0]]
    line = [sys.executable, *(TWO if "two" in kind else []), ROOT / line[0], *line[1:], "--out"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    rng, kills, done, pause = random.Random(0), 0, 0, 3.0

    def start(out: Path) -> subprocess.Popen:
        if kind == "generate":
            out.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*map(str, line), str(out)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.stdout.read()
    expected = essence(tmp_path / "whole")
    while kills < KILLS:
        out = tmp_path / f"killed_{done}"
        before, process = names(out), start(out)
        wait_for(lambda: names(out) != before or process.poll() is not None)  # noqa: B023
        time.sleep(rng.uniform(0, pause))
        stop = signal.SIGKILL if "two" in kind else rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        if process.poll() is None:
            os.killpg(process.pid, stop)
            kills += 1
        said, _ = process.communicate(timeout=60)
        assert process.returncode in (0, -stop, 128 + stop) and "Traceback" not in said, said
        assert essence(out).items() <= expected.items()
        if process.returncode == 0:
            done, pause = done + 1, 0.7 * pause  # too late: a new folder, and a shorter wait
    final = start(out)
    said, _ = final.communicate(timeout=120)
    assert final.returncode == 0 and essence(out) == expected, said


def essence(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that must not depend on kills, under the name by which it looks whole: no clock in it."""
    found = digest(folder) if folder.is_dir() else {}
    clocked = ("args.json", "progress.jsonl", "state.json", "loss.png", "bundle.json", "optimizers.pt", "lines.txt")
    return {
        name: value
        for name, value in found.items()
        if not any(p.startswith(".") for p in Path(name).parts)
        and "partial" not in name
        and Path(name).name not in clocked
    }


def test_an_adapter_no_wider_than_the_model(flow_lm):
    """lora:99999 of a model 32 wide allocated for minutes without a word."""
    with pytest.raises(UserError, match="32 wide"):
        set_trainable(flow_lm, "lora:33")
    set_trainable(flow_lm, "lora:32")
