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
from conftest import MUTE, RECIPE, TEXTS, digest, fails
from safetensors.torch import load_file, save_file
from scripts import ROOT, ended, run, start, words

import data_prep
from pocket_arabic.adapt import set_trainable
from pocket_arabic.cache import CacheWriter
from pocket_arabic.checkpoint import seal
from pocket_arabic.run import UserError

SCRIPTS = ("data_prep", "train", "generate_sample")
REQUIRED = {"train": ["--data", "data/demo"], "generate_sample": ["--text", "x"], "data_prep": []}
# texts with a form of their own, checked by what reads them
PLAIN = ("--substitute", "--split-map", "--tune", "--tokenizer", "--asr")


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


RUN_FILES = ["args.json", "progress.jsonl"]
CHECKPOINT_FILES = [
    f"checkpoints/step_000004/{name}"
    for name in ("model.safetensors", "ema.safetensors", "optimizers.pt", "state.json")
]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_run_continues_from_what_is_whole(how, finished_run, cache, tmp_path):
    """Each file of the run and of its newest checkpoint in turn: an older checkpoint is continued from, and said so, or
    one line names the file. With every checkpoint damaged the run never starts anew by itself."""
    line = f"train.py {RECIPE} --data {cache} --max-steps 5 {MUTE} --out"
    for number, name in enumerate(RUN_FILES + CHECKPOINT_FILES):
        folder = Path(shutil.copytree(finished_run, tmp_path / f"{number}"))
        DAMAGE[how](folder / name)
        result = run(line, folder)
        if name in CHECKPOINT_FILES:
            assert result.returncode == 0, (name, result.stderr)
            assert "damaged_step_000004" in result.stdout and "continuing at step 2" in result.stdout, name
            assert (folder / "checkpoints" / "step_000005").is_dir()
        elif result.returncode:
            fails(result, name)
        else:
            assert "continuing at step 4" in result.stdout, name
    folder = Path(shutil.copytree(finished_run, tmp_path / "all"))
    for file in folder.glob("checkpoints/*/model.safetensors"):
        DAMAGE[how](file)
    for _ in range(2):
        fails(run(line, folder), "no whole checkpoint", "rm -r")


def rewrite(file: Path, change) -> None:
    """A JSON-lines file with its first object changed."""
    first, *rest = file.read_text(encoding="utf-8").split("\n")
    file.write_text("\n".join([json.dumps(change(json.loads(first))), *rest]), encoding="utf-8")


ODD = {  # in the cache: what is well-formed and cannot be
    "manifest.jsonl": lambda c: rewrite(c / "manifest.jsonl", lambda row: row | {"text_model": None}),
    "disagree": lambda c: rewrite(c / "manifest.jsonl", lambda row: row | {"first_frame": 10**6}),
    "cache.json": lambda c: (c / "cache.json").write_text('{"format_version": 1, "options": {}, "hours": {}}'),
    "voice.wav": lambda c: (c / "voice.wav").write_bytes(b"RIFF"),
    "latents.npy": lambda c: np.load(c / "latents.npy", mmap_mode="r+").__setitem__((5, 3), math.nan),
}


LINES = {"of no kind": '{"x": 1}', "a step that is none": '{"kind": "eval", "step": "x"}', "no object": "[]"}


def test_odd_contents_are_named(finished_run, cache, tmp_path):
    """JSON that can be read and lacks what is wanted; a run whose checkpoints somebody deleted began anew and threw its
    bundle away."""
    for number, (word, change) in enumerate(ODD.items()):
        folder = Path(shutil.copytree(cache, tmp_path / f"{number}"))
        change(folder)
        fails(run(f"train.py {RECIPE} --data {folder} --max-steps 1 --out {tmp_path / 'r'}"), word)
    line = f"train.py {RECIPE} --data {cache} --max-steps 5 --out"
    for name, record in LINES.items():
        folder = Path(shutil.copytree(finished_run, tmp_path / name))
        with open(folder / "progress.jsonl", "a") as file:
            file.write(record + "\n")
        fails(run(line, folder), "progress.jsonl: line")
    folder = Path(shutil.copytree(finished_run, tmp_path / "gone"))
    shutil.rmtree(folder / "checkpoints")
    fails(run(line, folder), "checkpoints are gone")
    assert (folder / "bundle" / "bundle.json").exists()
    newest = Path("checkpoints", "step_000004")
    saved = torch.load(finished_run / newest / "optimizers.pt", weights_only=True)
    saved["optimizers"][0]["state"][0]["exp_avg"] = torch.zeros(1, 2, 3)
    lies = {
        "another's": lambda path: (path / "state.json").write_text('{"step": 3, "hours": 0}'),
        "another shape's": lambda path: torch.save(saved, path / "optimizers.pt"),
    }
    for name, lie in lies.items():
        folder = Path(shutil.copytree(finished_run, tmp_path / name))
        lie(folder / newest)
        result = run(line, folder)
        assert result.returncode == 0 and "damaged_step_000004" in result.stdout, result.stderr
        assert "continuing at step 2" in result.stdout


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cache_or_bundle_is_named(how, finished_run, cache, tmp_path):
    """Each file in turn: one line, with the file or its folder in it, or nothing that matters is missing."""
    for name in ("cache.json", "manifest.jsonl", "latents.npy", "stats.json", "rejects.jsonl"):
        folder = Path(shutil.copytree(cache, tmp_path / f"cache_{name}"))
        DAMAGE[how](folder / name)
        result = run(f"train.py {RECIPE} --data {folder} --max-steps 1 --out {tmp_path}/run_{name}")
        if result.returncode or name not in ("stats.json", "rejects.jsonl"):
            fails(result, f"{folder}")
    for number, file in enumerate(sorted((finished_run / "bundle").iterdir())):
        folder = Path(shutil.copytree(finished_run / "bundle", tmp_path / f"{number}"))
        DAMAGE[how](folder / file.name)
        result = run(f"generate_sample.py --model {folder} --out {tmp_path}/a.wav --text", TEXTS[1])
        fails(result, file.name)


@pytest.mark.parametrize("how", ["garbage", "removed"])
def test_a_damaged_block_is_made_again(how, corpus, tiny_base, cache, tmp_path, monkeypatch):
    """A cache that grows, stopped before it was finished, each of its files damaged in turn: at once, or with the line
    that says so by the same command once more, it is the cache that it would have been."""
    line = f"data_prep.py --corpus {corpus} --base {tiny_base} --out"

    def stopped(_: CacheWriter) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "collect", stopped)
        patch.setattr(sys, "argv", words(line, tmp_path / "grown"))
        with pytest.raises(UserError, match="stopped"):
            data_prep.main()
    files = sorted(file.name for file in (tmp_path / "grown" / "partial").iterdir())
    assert len(files) == 5, files
    for name in files:
        folder = Path(shutil.copytree(tmp_path / "grown", tmp_path / name))
        DAMAGE[how](folder / "partial" / name)
        result = run(line, folder)
        if result.returncode and name == "options.json":
            fails(result, "options.json", "rm -r")
            continue
        if result.returncode:
            fails(result, name.split(".")[0])
            assert run(line, folder).returncode == 0
        assert digest(folder) == digest(cache), name


INFO = {
    "max_tokens": ["x", -3, 12.5],
    "slowest_sec_per_token": [None, -1, math.nan],
    "phonemes": [5],
    "substitute": [[]],
    "eos_threshold": ["x"],
    "checkpoint": [None],
    "sha256": [3],
}


@pytest.fixture
def bundle(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run / "bundle", tmp_path / "bundle"))


def test_what_a_bundle_may_do_to_us(bundle, tmp_path):
    """Values of another type or range, weights that are not finite although sealed, links that lead out of it."""
    line = f"generate_sample.py --model {bundle} --out {tmp_path}/a.wav --text '{TEXTS[1]}'"
    info = json.loads((bundle / "bundle.json").read_text())
    for key, value in [(key, value) for key, values in INFO.items() for value in values]:
        (bundle / "bundle.json").write_text(json.dumps(info | {key: value}))
        fails(run(line), "bundle.json", key)
    (bundle / "bundle.json").write_text(json.dumps(info))
    os.replace(bundle / "voice.wav", tmp_path / "voice.wav")
    (bundle / "voice.wav").symlink_to(tmp_path / "voice.wav")
    fails(run(line), "voice.wav", "leads out")
    os.replace(tmp_path / "voice.wav", bundle / "voice.wav")
    weights = load_file(bundle / "model.safetensors")
    weights["flow_lm.out_norm.weight"][3] = math.nan
    save_file(weights, bundle / "model.safetensors")
    seal(bundle, {k: v for k, v in info.items() if k != "sha256"})
    for more in ("", "--stream"):
        fails(run(f"{line} {more}"), "flow_lm.out_norm.weight", "not finite")


def test_voices_and_names_of_generate(finished_run, tmp_path):
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
    line = f"generate_sample.py --model {finished_run} --text '{TEXTS[1]}' --out"
    for name, (samples, own) in voices.items():
        sf.write(tmp_path / f"{name}.wav", samples, own, subtype="FLOAT")
        fails(run(f"{line} {tmp_path}/a.wav --voice {tmp_path / name}.wav"), f"{name}.wav")
    sf.write(tmp_path / "long.wav", np.tile(tone, 200), rate)  # 10 minutes, which would ask for 100 GB
    assert run(f"{line} {tmp_path}/a.wav --voice {tmp_path}/long.wav").returncode == 0
    assert run(f"{line} {tmp_path}/{'n' * 246}.wav").returncode == 0
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for out in (tmp_path / f"{'n' * 296}.wav", tmp_path / "loop.wav"):
        for more in ("", "--stream"):
            result = run(f"{line} {out} {more}")
            fails(result, "--out")
            assert len(result.stderr) < 300


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
    process = start(f"generate_sample.py --model {ROOT}/demo/bundle --out {out} {'--stream' * streamed} --text", text)
    wait_for(
        lambda: (
            process.poll() is not None
            or (out.exists() and out.stat().st_size > 20_000 if streamed else list(tmp_path.glob(".tmp.*")))
        )
    )
    process.send_signal(stop)
    result = ended(process, 60)
    assert result.returncode == 128 + stop, result.stderr
    assert not any(word in result.stderr for word in ("abort", "terminate", "Traceback")), result.stderr
    assert not list(tmp_path.glob(".tmp.*"))
    if streamed:
        assert 0.3 < wav_seconds(out) < 100
    else:
        assert not out.exists()


def test_a_reader_that_leaves():
    """`generate_sample.py --dry-run | head -0` ended in BrokenPipeError."""
    read, write = os.pipe()
    os.close(read)
    result = ended(start(f"generate_sample.py --model {ROOT}/demo/bundle --dry-run --text", TEXTS[0], stdout=write))
    os.close(write)
    assert result.returncode == 128 + signal.SIGPIPE and not result.stderr, result.stderr


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
    line = f"train.py {RECIPE} --data {cache} --out {tmp_path / 'r'} --max-steps 6"
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))  # noqa: E731
    fails(ended(start(line, preexec_fn=small)), "free some space", "the same command continues")
    assert {p.name for p in (tmp_path / "r" / "checkpoints").iterdir()} == {"step_000002", "step_000004"}
    done = run(line)
    assert done.returncode == 0 and "continuing at step 4" in done.stdout, done.stderr


# --- kills ------------------------------------------------------------------------------------------------------------

KILLS = int(os.environ.get("KILLS", "1"))  # of each kind; KILLS=30 is the long loop
TWO = "-m accelerate.commands.launch --num_processes 2 --cpu"


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
    prepare = f"data_prep.py --corpus {many_clips} --base {tiny_base}"
    speak = f"generate_sample.py --model {ROOT}/demo/bundle --text-file {tmp_path}/lines.txt --batch-size 2"
    train = f"train.py {RECIPE} --data {cache} --max-steps 8 --eval-every 1 --keep 9 --judge-sentences 0"
    line = {"data_prep": prepare, "train": train, "generate": speak}[kind.removesuffix(" on two")] + " --out"
    rng, kills, done = random.Random(0), 0, 0
    pause = 0.5 if kind == "generate" else 3.0  # it has spoken its lines soon after the first

    def folder(name: str) -> Path:
        if kind == "generate":
            (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    def begun(out: Path) -> subprocess.Popen:
        launcher = TWO if "two" in kind else ""
        return start(f"{launcher} {line}", out, stderr=subprocess.STDOUT, start_new_session=True)

    whole = run(line, folder("whole"))
    assert whole.returncode == 0, whole.stderr
    expected = essence(tmp_path / "whole")
    while kills < KILLS:
        out = folder(f"killed_{done}")
        before, process = names(out), begun(out)
        wait_for(lambda: names(out) != before or process.poll() is not None)  # noqa: B023
        time.sleep(rng.uniform(0, pause))
        stop = signal.SIGKILL if "two" in kind else rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        if process.poll() is None:
            os.killpg(process.pid, stop)
            kills += 1
        result = ended(process, 60)
        assert result.returncode in (0, -stop, 128 + stop) and "Traceback" not in result.stdout, result.stdout
        assert essence(out).items() <= expected.items()
        if result.returncode == 0:
            done, pause = done + 1, 0.7 * pause  # too late: a new folder, and a shorter wait
    out = folder(f"killed_{done}")
    result = ended(begun(out), 120)
    assert result.returncode == 0 and essence(out) == expected, result.stdout


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


def muted(weights: Path) -> None:
    """Take the sound from a codec's decoder."""
    tensors = load_file(weights)
    save_file({k: t * (0 if k.startswith("mimi.decoder.") else 1) for k, t in tensors.items()}, weights)


def test_silence_is_neither_exported_nor_written(bundle, cache, tiny_base, tmp_path):
    """A model that says nothing once ended in a bundle and a wav, with a warning."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base.parent, base)
    muted(base / "codec.safetensors")
    result = run(
        f"train.py {RECIPE} --max-steps 2", "--base", base / "base.yaml", "--data", cache, "--out", tmp_path / "r"
    )
    fails(result, "step_000", "silence", "--lr")
    assert not (tmp_path / "r" / "bundle").exists()
    muted(bundle / "model.safetensors")
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    seal(bundle, {key: value for key, value in info.items() if key != "sha256"})
    for flags in ("", "--stream"):
        line = f"generate_sample.py --text {TEXTS[1].split()[0]} {flags}"
        fails(run(line, "--model", bundle, "--out", tmp_path / "a.wav"), "a.wav", "silence")
        assert (tmp_path / "a.wav").exists() == bool(flags)
