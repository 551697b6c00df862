#!/usr/bin/env python3
"""What a bundle does in other hands: the stock command line and server, text as others type it, a long passage, speed.

Reads   --model (a run or bundle), --data (the embedded corpus's cache, for its held-out sentences).
Writes  --out, JSON; the passage as --passage.

    python demo/measure_bundle.py --scorer "python recogniser.py --list" --out samples/bundle.json

The scorer is any command that takes a file of {"wav", "text"} lines and prints a JSON line each, with the character error
rate as "cer_no_marks", then a JSON summary.
Errors are means and medians over sentences. Speeds are of one thread an operation, stock and ours in turns on one machine.
"""

import argparse
import json
import os
import re
import shlex
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
from safetensors.torch import load_file
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from hub import random_release, release_config  # noqa: E402

from pocket_arabic import text as arabic  # noqa: E402
from pocket_arabic.audio import write_wav  # noqa: E402
from pocket_arabic.base import arabic_config, build_flow_lm  # noqa: E402
from pocket_arabic.cache import Cache  # noqa: E402
from pocket_arabic.checkpoint import export_bundle, find_bundle  # noqa: E402
from pocket_arabic.run import command, provenance, write_json  # noqa: E402
from pocket_arabic.speech import Request, join, load_bundle, pause_after, speak_each, split_text, voice_state  # noqa: E402

STOCK = Path(sys.executable).with_name("pocket-tts")
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
PORT = 8765
SECONDS = r"([\d.]+) s of speech in ([\d.]+) s .*first audio after ([\d.]+) s"


def stock(bundle: Path, text: str, wav: Path, *more: object) -> float:
    """Speak with the stock command line inside the bundle's folder -> its own real-time factor, loading not counted."""
    args = [STOCK, "generate", "--config", "arabic.yaml", "--voice", "voice.wav", "--text", text, "--output-path", wav.resolve(), *map(str, more)]
    # Its exit status says nothing: the wheel's threads may abort the interpreter on its way out, after the wav is written.
    log = subprocess.run(args, cwd=bundle, capture_output=True, text=True, env=ENV).stderr
    if "Results written" not in log:
        raise RuntimeError(log)
    chunks = re.findall(r"Generated: (\d+) ms of audio in (\d+) ms", log)
    return sum(int(took) for _, took in chunks) / sum(int(audio) for audio, _ in chunks)


def memory_mib() -> float:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def ours(bundle: Path, *args: object) -> tuple[float, float, float]:
    """Speak with generate_sample.py -> seconds of speech, seconds it took, seconds to the first audio; loading not counted."""
    argv = [sys.executable, ROOT / "generate_sample.py", "--model", bundle, *args]
    log = subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True, env=ENV).stdout
    return tuple(map(float, re.search(SECONDS, log).groups()))


def serve(bundle: Path, texts: list[str], wavs: list[Path]) -> None:
    """POST /tts of the stock server, a text each."""
    server = subprocess.Popen(
        [STOCK, "serve", "--config", "arabic.yaml", "--default-voice", "voice.wav", "--port", str(PORT)], cwd=bundle, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for text, wav in zip(texts, wavs):
            request = urllib.request.Request(f"http://localhost:{PORT}/tts", urllib.parse.urlencode({"text": text}).encode())
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


class Scorer:
    def __init__(self, line: str, folder: Path):
        self.command, self.folder = shlex.split(line), folder

    def each(self, pairs: list[tuple[Path, str]]) -> list[dict]:
        listing = self.folder / "pairs.jsonl"
        listing.write_text("".join(json.dumps({"wav": str(w), "text": t}, ensure_ascii=False) + "\n" for w, t in pairs), encoding="utf-8")
        out = subprocess.run([*self.command, str(listing)], capture_output=True, text=True, check=True).stdout
        return [json.loads(line) for line in out.splitlines()]

    def summary(self, pairs: list[tuple[Path, str]]) -> dict:
        return self.each(pairs)[-1]


def ways(bundle: Path, rows: list[dict], scorer: Scorer, folder: Path) -> dict:
    """The same sentences by every way to the model, each scored."""
    model = load_bundle(bundle)
    voice = voice_state(model, bundle / "voice.wav")
    texts, info = [row["text"] for row in rows], json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    longest = info["max_tokens"]
    names = [f"generate_sample seed {seed}" for seed in range(3)] + ["stock generate", "stock generate, NFC", "stock generate, whole", "stock serve"]
    kinds: dict[str, list[Path]] = {name: [] for name in names}
    for kind, wavs in kinds.items():
        place = folder / kind.replace(" ", "_")
        place.mkdir()
        wavs += [place / f"{i}.wav" for i in range(len(rows))]
    for seed in range(3):
        spoken = speak_each(model, [Request(row["text_model"], voice, seed) for row in rows], 2, info["slowest_sec_per_token"])
        for wav, part in zip(kinds[f"generate_sample seed {seed}"], spoken):
            write_wav(wav, part.audio, model.sample_rate)
    for i, row in enumerate(tqdm(rows, disable=None)):
        stock(bundle, row["text"], kinds["stock generate"][i])
        stock(bundle, row["text"], kinds["stock generate, whole"][i], "--max-tokens", longest)
        stock(bundle, unicodedata.normalize("NFC", row["text"]), kinds["stock generate, NFC"][i])
    serve(bundle, texts, kinds["stock serve"])
    return {"sentences": len(rows), **{kind: scorer.summary(list(zip(wavs, texts))) for kind, wavs in kinds.items()}}


def passage(bundle: Path, rows: list[dict], scorer: Scorer, folder: Path, out: Path | None) -> dict:
    """300 words in one go: every chunk scored, the joins' level and steps, memory."""
    info = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    model = load_bundle(bundle)
    voice, rate = voice_state(model, bundle / "voice.wav"), model.sample_rate
    text = ""
    for row in rows:
        if len(text.split()) < 300:
            text = f"{text} {row['text_model']}".strip()
    chunks = split_text(text, model.flow_lm.conditioner.tokenizer, info["max_tokens"])
    spoken, memory = [], []
    for part in speak_each(model, [Request(chunk, voice, 0) for chunk in chunks], 2, info["slowest_sec_per_token"]):
        spoken.append(part)
        memory.append(memory_mib())
    audio = join([s.audio for s in spoken], [pause_after(c) for c in chunks], rate)
    pairs, quiet, steps = [], [], []
    for number, (chunk, part) in enumerate(zip(chunks, spoken)):
        wav = folder / f"chunk{number}.wav"
        write_wav(wav, part.audio, rate)
        pairs.append((wav, arabic.deromanise(chunk)))
        if number:  # where its first sound comes: what lies before is the join
            place = len(join([s.audio for s in spoken[:number]] + [np.zeros(rate, np.float32)], [pause_after(c) for c in chunks[: number + 1]], rate)) - rate
            join_samples = audio[max(0, place - int(0.1 * rate)) : place + int(0.02 * rate)]
            quiet.append(20 * np.log10(np.sqrt(np.mean(join_samples**2)) + 1e-9))
            steps.append(np.abs(np.diff(join_samples)).max())
    scores = scorer.each(pairs)[:-1]
    if out:
        write_wav(out, audio, rate)
    return {
        "words": len(text.split()),
        "chunks": len(chunks),
        "seconds": round(len(audio) / rate, 1),
        "chunk_errors": [round(s["cer_no_marks"], 3) for s in scores],
        "ends_missed": sum(not s.ended for s in spoken),
        "shortest_chunk_sec_per_token": round(min(len(s.audio) / rate / len(c) for s, c in zip(spoken, chunks)), 3),
        "loudest_join_db": round(float(max(quiet)), 1),
        "speech_db": round(20 * float(np.log10(np.sqrt(np.mean(audio**2)))), 1),
        "largest_step_in_a_join": round(float(max(steps)), 4),
        "largest_step_in_speech": round(float(np.abs(np.diff(audio)).max()), 4),
        "memory_mib_after_first_half_last": [round(memory[i]) for i in (0, len(memory) // 2, -1)],
    }


def speed(bundle: Path, rows: list[dict], folder: Path, rounds: int) -> dict:
    """Real-time factors side by side, one text and a file of 32, and the time to the first audio."""
    text, wav = max((r["text"] for r in rows), key=len), folder / "speed.wav"
    (folder / "32.txt").write_text("\n".join(r["text"] for r in rows[:32]) + "\n", encoding="utf-8")
    (folder / "out").mkdir()
    factors = {"generate_sample": [], "stock": []}
    for _ in range(rounds):
        seconds, took, _first = ours(bundle, "--text", text, "--out", wav, "--retries", 0)
        factors["generate_sample"].append(took / seconds)
        factors["stock"].append(stock(bundle, text, wav, "--max-tokens", 1000))
    single = [ours(bundle, "--text", row["text"], "--out", wav, "--retries", 0) for row in rows[:32:4]]
    batch = ours(bundle, "--text-file", folder / "32.txt", "--out", folder / "out", "--retries", 0)
    median = {name: statistics.median(f) for name, f in factors.items()}
    alone = sum(took for _, took, _ in single) / sum(seconds for seconds, *_ in single)
    config = release_config()
    random_release(folder / "release", build_flow_lm)
    release = folder / "release" / "languages" / "english"
    config.flow_lm.lookup_table.tokenizer_path = str(release / "tokenizer.json")
    info = {
        "max_tokens": 100,
        "slowest_sec_per_token": 1.0,
        "phonemes": None,
        "substitute": None,
        "base": "random",
        "tune": "none",
        "corpus": "none",
        "hours": 0.0,
        "checkpoint": "none",
        "chosen_by": "nothing",
    }
    export_bundle(folder / "real", arabic_config(config), load_file(release / "model.safetensors"), bundle / "voice.wav", info)
    real = [ours(folder / "real", "--text", rows[0]["text"], "--out", wav, "--retries", 0) for _ in range(2)]
    streamed = {
        name: statistics.median(ours(place, "--text", rows[0]["text"], "--out", wav, "--stream")[2] for _ in range(3))
        for name, place in (("nano", bundle), ("real size, random weights", folder / "real"))
    }
    return {
        "rounds": rounds,
        "real_time_factor": {k: round(v, 4) for k, v in median.items()},
        "generate_sample_to_stock": round(median["generate_sample"] / median["stock"], 3),
        "all": {k: [round(x, 4) for x in v] for k, v in factors.items()},
        "file_of_32_to_one_by_one": round(batch[1] / batch[0] / alone, 3),
        "first_audio_sec": streamed,
        "real_size_real_time_factor": round(min(took / seconds for seconds, took, _ in real), 3),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=Path, default=ROOT / "demo" / "bundle")
    p.add_argument("--data", type=Path, default=Path("data/demo"))
    p.add_argument("--out", type=Path, default=Path("runs/bundle.json"))
    p.add_argument("--passage", type=Path, help="where to keep the passage's wav")
    p.add_argument("--sentences", type=int, default=20, help="for the comparison with stock tools")
    p.add_argument("--rounds", type=int, default=5, help="of the speed comparison")
    p.add_argument("--parts", nargs="+", choices=("ways", "passage", "speed"), default=("ways", "passage", "speed"), help="what to measure; the rest in --out stays")
    p.add_argument("--scorer", required=True, help="command that scores a pairs.jsonl")
    args = p.parse_args()
    bundle, cache = find_bundle(args.model), Cache(args.data)
    rows = cache.split("test")
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    here = {"command": shlex.join(["python", "demo/measure_bundle.py", *sys.argv[1:]]), **provenance()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scorer = Scorer(args.scorer, folder)
        bundle = Path(shutil.copytree(bundle, folder / "bundle"))  # the stock tool writes beside it
        for part in args.parts:
            if part == "ways":
                found = ways(bundle, rows[: args.sentences], scorer, folder)
            elif part == "passage":
                found = passage(bundle, rows + cache.split("valid"), scorer, folder, args.passage)
            else:
                found = speed(bundle, rows, folder, args.rounds)
            result[part] = here | found
    write_json(args.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    command(main)
