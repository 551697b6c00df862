#!/usr/bin/env python3
"""What a bundle does in other hands: the stock command line and server, text as others type it, a long passage, speed.

Reads   --model (a run or bundle), --data (the embedded corpus's cache, for its held-out sentences).
Writes  --out, JSON: an entry a part; those that are not measured stay.

    python measure/bundle.py
    python measure/bundle.py --parts speed        # on a machine that does nothing else

Errors are means and medians over sentences; speeds of one thread an operation, stock and ours in turns.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
from harness import ONE_THREAD, ROOT, STOCK, Clip, clip, made_by, parser, score, speak, stock
from hub import random_release, release_config
from safetensors.torch import load_file
from tqdm import tqdm

from pocket_arabic import text as arabic
from pocket_arabic.audio import read_audio
from pocket_arabic.base import arabic_config, build_flow_lm
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import export_bundle, find_bundle
from pocket_arabic.run import command, location, write_json
from pocket_arabic.speech import join, load_bundle, pause_after, split_text, voice_state

PARTS = ("ways", "passage", "speed")
PORT = 8765
SENTENCES = 20  # said in every way
WORDS = 300  # of the passage
ROUNDS = 5  # of the comparison of speed
SECONDS = r"([\d.]+) s of speech in ([\d.]+) s .*first audio after ([\d.]+) s"


def memory_mib() -> float:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def ours(bundle: Path, *args: object) -> tuple[float, float, float]:
    """Speak with generate_sample.py -> seconds of speech, those it took, those to the first audio; without loading."""
    argv = [sys.executable, ROOT / "generate_sample.py", "--model", bundle, *args]
    log = subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True, env=ONE_THREAD).stdout
    return tuple(map(float, re.search(SECONDS, log).groups()))


def serve(bundle: Path, texts: list[str], wavs: list[Path]) -> None:
    """POST /tts of the stock server, a text each."""
    line = [STOCK, "serve", "--config", "arabic.yaml", "--default-voice", "voice.wav", "--port", str(PORT)]
    server = subprocess.Popen(line, cwd=bundle, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for text, wav in zip(texts, wavs):
            body = urllib.parse.urlencode({"text": text}).encode()
            request = urllib.request.Request(f"http://localhost:{PORT}/tts", body)
            for attempt in range(120):
                try:
                    wav.write_bytes(urllib.request.urlopen(request, timeout=120).read())
                    break
                except urllib.error.URLError:  # not up yet
                    if attempt == 119:
                        raise
                    time.sleep(0.5)
    finally:
        server.terminate()
        server.wait()


def attempts(bundle: Path) -> tuple[int, dict]:
    """The longest chunk of a bundle, and how generate_sample.py tries again."""
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    return info["max_tokens"], {"retries": 2, "slowest": info["slowest_sec_per_token"]}


def ways(bundle: Path, rows: list[dict], scorer: str, folder: Path) -> dict:
    """The same sentences by every way to the model, each scored."""
    model, (longest, again) = load_bundle(bundle), attempts(bundle)
    voice, rate = voice_state(model, bundle / "voice.wav"), model.sample_rate
    kinds = {}
    for seed in range(3):
        kinds[f"generate_sample seed {seed}"] = list(speak(model, voice, rows, folder / f"seed{seed}", seed, **again))

    texts, wavs = [row["text"] for row in rows], [folder / f"{i}.wav" for i in range(len(rows))]

    def said(kind: str) -> None:
        kinds[kind] = [clip(folder / kind, row, read_audio(wav, rate), rate) for row, wav in zip(rows, wavs)]

    composed = [unicodedata.normalize("NFC", text) for text in texts]
    for kind, typed, more in (("", texts, ()), (", NFC", composed, ()), (", whole", texts, ("--max-tokens", longest))):
        for text, wav in zip(tqdm(typed, disable=None), wavs):
            stock(bundle / "arabic.yaml", text, wav, *more)
        said(f"stock generate{kind}")
    serve(bundle, texts, wavs)
    said("stock serve")
    return {"sentences": len(rows), **{kind: score(clips, scorer)[1] for kind, clips in kinds.items()}}


def passage(bundle: Path, rows: list[dict], scorer: str, folder: Path) -> dict:
    """300 words in one go: every chunk scored, the steps at its joins, memory."""
    model, (longest, again) = load_bundle(bundle), attempts(bundle)
    voice, rate, text = voice_state(model, bundle / "voice.wav"), model.sample_rate, ""
    for row in rows:
        if len(text.split()) < WORDS:
            text = f"{text} {row['text_model']}".strip()
    chunks = split_text(text, model.flow_lm.conditioner.tokenizer, longest)
    said = [{"text": arabic.deromanise(chunk), "text_model": chunk, "duration_sec": 1.0} for chunk in chunks]
    lines = [row | {"id": str(number)} for number, row in enumerate(said)]
    clips, memory = [], []
    for spoken in speak(model, voice, lines, folder / "passage", **again):
        clips.append(spoken)
        memory.append(memory_mib())
    audio = join([c.audio for c in clips], [pause_after(c) for c in chunks], rate)
    return {
        "words": len(text.split()),
        "chunks": len(chunks),
        "seconds": round(len(audio) / rate, 1),
        "chunk_errors": [round(heard["cer_no_marks"], 3) for heard in score(clips, scorer)[0]],
        "ends_missed": sum(not c.ended for c in clips),
        "largest_step_in_a_join": round(max(steps_in_joins(audio, clips, chunks, rate)), 4),
        "largest_step_in_speech": round(float(np.abs(np.diff(audio)).max()), 4),
        "memory_mib_after_first_half_last": [round(memory[i]) for i in (0, len(memory) // 2, -1)],
    }


def steps_in_joins(audio: np.ndarray, clips: list[Clip], chunks: list[str], rate: int) -> list[float]:
    """The largest step between samples around each join of a passage."""
    steps = []
    for number in range(1, len(clips)):
        # A second of silence in the place of what follows ends where that would begin: what lies before is the join.
        until = [c.audio for c in clips[:number]] + [np.zeros(rate, np.float32)]
        place = len(join(until, [pause_after(c) for c in chunks[: number + 1]], rate)) - rate
        around = audio[max(0, place - int(0.1 * rate)) : place + int(0.02 * rate)]
        steps.append(float(np.abs(np.diff(around)).max()))
    return steps


def random_bundle(folder: Path, voice: Path) -> Path:
    """A bundle of the released size, with random weights."""
    config = release_config()
    random_release(folder / "release", build_flow_lm)
    release = folder / "release" / "languages" / "english"
    config.flow_lm.lookup_table.tokenizer_path = str(release / "tokenizer.json")
    info = dict.fromkeys(("base", "tune", "corpus", "checkpoint", "chosen_by"), "none") | {"hours": 0.0}
    info |= {"max_tokens": 100, "slowest_sec_per_token": 1.0, "phonemes": None, "substitute": None}
    export_bundle(folder / "real", arabic_config(config), load_file(release / "model.safetensors"), voice, info)
    return folder / "real"


def speed(bundle: Path, rows: list[dict], folder: Path) -> dict:
    """Real-time factors side by side, and the time to the first audio."""
    text, wav = max((row["text"] for row in rows), key=len), folder / "speed.wav"
    factors: dict[str, list[float]] = {"generate_sample": [], "stock": []}
    for _ in range(ROUNDS):
        seconds, took, _first = ours(bundle, "--text", text, "--out", wav, "--retries", 0)
        factors["generate_sample"].append(took / seconds)
        factors["stock"].append(stock(bundle / "arabic.yaml", text, wav, "--max-tokens", 1000))
    median = {name: statistics.median(values) for name, values in factors.items()}
    released, say = random_bundle(folder, bundle / "voice.wav"), ("--text", rows[0]["text"], "--out", wav)
    real = [ours(released, *say, "--retries", 0) for _ in range(2)]
    first = {}
    for name, place in (("nano", bundle), ("real size, random weights", released)):
        first[name] = statistics.median(ours(place, *say, "--stream")[2] for _ in range(3))
    return {
        "real_time_factor": {name: round(value, 4) for name, value in median.items()},
        "generate_sample_to_stock": round(median["generate_sample"] / median["stock"], 3),
        "all": {name: [round(value, 4) for value in values] for name, values in factors.items()},
        "first_audio_sec": first,
        "real_size_real_time_factor": round(min(took / seconds for seconds, took, _ in real), 3),
    }


def main() -> None:
    p = parser(__doc__, ROOT / "samples" / "bundle.json")
    p.add_argument("--data", type=location, default=Path("data/demo"), help="cache")
    p.add_argument("--model", type=location, default=ROOT / "demo" / "bundle", help="run or bundle")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    args = p.parse_args()
    cache = Cache(args.data)
    rows = cache.split("test")
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = Path(shutil.copytree(find_bundle(args.model), folder / "bundle"))  # the stock tool writes beside it
        measure = {
            "ways": lambda: ways(bundle, rows[:SENTENCES], args.scorer, folder),
            "passage": lambda: passage(bundle, rows + cache.split("valid"), args.scorer, folder),
            "speed": lambda: speed(bundle, rows, folder),
        }
        for part in args.parts:
            found[part] = made_by() | measure[part]()
    write_json(args.out, found)
    print(args.out)


if __name__ == "__main__":
    command(main)
