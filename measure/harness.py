"""What the scripts of measure/ share: speak sentences of a cache, have a program score them, sum up, write.

A script here is a list of what to compare:

    clips = speak_split(find_bundle(Path("runs/demo")), Cache(Path("data/demo")), Path("runs/heard"), seed=0)
    records, summary = score(clips, SCORER)      # {"hyp", "cer_no_marks", "cer"} a clip; their means and medians
    write(Path("samples/heard.json"), summarise(clips) | summary)
"""

import json
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pocket_tts import TTSModel
from pocket_tts.modules.stateful_module import ModelState, init_states
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # for the scripts that import this one, too: tests/hub.py
from pocket_arabic.audio import write_wav  # noqa: E402
from pocket_arabic.cache import Cache  # noqa: E402
from pocket_arabic.evaluation import run_program  # noqa: E402
from pocket_arabic.run import Parser, location, provenance, read_jsonl, write_json  # noqa: E402
from pocket_arabic.speech import Request, load_bundle, speak_texts, voice_state  # noqa: E402
from pocket_arabic.text import MARKS_MODEL  # noqa: E402

SCORER = shlex.join([sys.executable, str(ROOT / "measure" / "ear.py")])
STOCK = Path(sys.executable).with_name("pocket-tts")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Clip:
    """A sentence of a cache, as somebody says it."""

    wav: Path
    text: str  # that it should say, in Arabic script
    audio: np.ndarray  # [samples]
    ratio: float  # its duration to the recording's
    ended: bool = True


# --- speaking ---------------------------------------------------------------------------------------------------------


def clip(folder: Path, row: dict, audio: np.ndarray, rate: int, ended: bool = True) -> Clip:
    """What is said of a cache's row [samples], written to FOLDER/ID.wav."""
    folder.mkdir(parents=True, exist_ok=True)
    wav = folder / f"{row['id']}.wav"
    write_wav(wav, audio, rate)
    return Clip(wav, row["text"], audio, len(audio) / rate / row["duration_sec"], ended)


def speak(model: TTSModel, voice: ModelState, rows: list[dict], folder: Path, seed: int = 0, **how) -> Iterator[Clip]:
    """Rows of a cache as a model says them, each in FOLDER/ID.wav as soon as it is done. `how`: of `speak_texts`;
    without, a sentence is one chunk and gets one attempt, so that what fails is counted."""
    spoken = speak_texts(model, [Request(row["text_model"], voice, seed) for row in rows], **how)
    for row, (audio, parts) in zip(tqdm(rows, disable=None), spoken):
        yield clip(folder, row, audio, model.sample_rate, all(part.ended for part in parts))


def speak_split(
    bundle: Path, cache: Cache, folder: Path, split: str = "test", seed: int = 0, sentences: int | None = None,
    bare: bool = False, voiced: bool = True, guidance: float = 1.0,
) -> list[Clip]:  # fmt: skip
    """The first sentences of a split as a bundle says them. `bare`: without their marks, though judged by the text that
    has them. `voiced`: with the bundle's voice prompt, or with none."""
    model, rows = load_bundle(bundle, guidance=guidance), cache.split(split)[:sentences]
    if bare:
        rows = [row | {"text_model": without_marks(row["text_model"])} for row in rows]
    voice = voice_state(model, bundle / "voice.wav") if voiced else init_states(model.flow_lm, 1, 1)
    return list(speak(model, voice, rows, folder, seed))


def without_marks(text_model: str) -> str:
    """Model text as bare as most Arabic is written.

    >>> without_marks("kitaAbN.")
    'ktAb.'
    """
    return "".join(c for c in text_model if c not in MARKS_MODEL)


def stock(config: Path, text: str, wav: Path, *more: object, voice: str = "voice.wav") -> float:
    """Speak with the stock command line in the folder of CONFIG -> its own real-time factor, loading not counted."""
    line = [STOCK, "generate", "--config", config.name, "--voice", voice, "--text", text]
    line += ["--output-path", wav.resolve(), *more]
    # Its exit status says nothing: the wheel's threads may abort the interpreter on its way out, the wav being written.
    log = subprocess.run(list(map(str, line)), cwd=config.parent, capture_output=True, text=True, env=ONE_THREAD).stderr
    if "Results written" not in log:
        raise RuntimeError(log)
    chunks = re.findall(r"Generated: (\d+) ms of audio in (\d+) ms", log)
    return sum(int(took) for _, took in chunks) / sum(int(audio) for audio, _ in chunks)


# --- figures ----------------------------------------------------------------------------------------------------------


def score(clips: list[Clip], scorer: str) -> tuple[list[dict], dict]:
    """What a program hears: a record a clip, and its own summary. Raises UserError."""
    *records, summary = run_program(scorer, [(clip.wav, clip.text) for clip in clips])
    assert len(records) == len(clips), (scorer, len(records), len(clips))
    return records, summary


def summarise(clips: list[Clip]) -> dict:
    """Of speech what needs no ear: ends and durations."""
    ratios = [clip.ratio for clip in clips]
    return {
        "sentences": len(clips),
        "eos_reached": sum(clip.ended for clip in clips),
        "duration_ratio_median": round(float(np.median(ratios)), 3),
        "duration_ratio_0.7_to_1.4": sum(0.7 <= ratio <= 1.4 for ratio in ratios),
    }


def made_by() -> dict:
    """The command that is running, by which its figures can be made again, and the versions it runs with."""
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    return {"command": shlex.join(["python", str(script), *sys.argv[1:]]), **provenance()}


def write(out: Path, found: dict) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, made_by() | found)
    print(out)


def train(out: Path, flags: list[str]) -> dict:
    """A run of train.py in `out`, continued, or left alone once finished -> command, steps, CPU seconds, memory."""
    line, done, clock = ["train.py", *flags, "--out", str(out)], out / "result.json", out / "cpu_sec.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    earlier = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else 0.0
    try:
        subprocess.run([sys.executable, *line], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_sec = earlier + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if out.exists():
            write_json(clock, cpu_sec)
    log = [record for record in read_jsonl(out / "progress.jsonl") if record["kind"] == "train"]
    found = {
        "command": shlex.join(["python", *line]),
        "cpu_sec": round(cpu_sec),
        "steps": log[-1]["step"],
        "step_sec": round(statistics.median(record["step_sec"] for record in log), 3),
        "memory_gib": max(record["memory_gib"] for record in log),
    }
    write_json(done, found)
    return found


def parser(manual: str, out: Path) -> Parser:
    """Of a script that has speech scored; `out` is where its figures go."""
    p = Parser(manual)
    p.add_argument("--scorer", default=SCORER, help='scores a file of {"wav", "text"} lines; default: measure/ear.py')
    p.add_argument("--out", type=location, default=out, help="JSON")
    return p
