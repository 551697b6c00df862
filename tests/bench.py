#!/usr/bin/env python3
"""Benchmarks, as ratios measured in one run. Not tests: machines differ.

Reads   nothing but the embedded corpus; the released `english` architecture gets random weights.
Writes  --out, JSON.

    make bench                                                # everything, some 25 minutes on 2 cores
    python tests/bench.py --only data --out /tmp/bench.json   # data_prep alone
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import yaml
from accelerate import PartialState

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from hub import random_release, release_config  # noqa: E402

import data_prep  # noqa: E402
from pocket_arabic.audio import read_audio, resample, trimmed  # noqa: E402
from pocket_arabic.base import (  # noqa: E402
    build_flow_lm,
    load_config,
    load_mimi,
    load_tokenizer,
    load_weights,
    tts_model,
)
from pocket_arabic.cache import Cache, CacheWriter  # noqa: E402
from pocket_arabic.corpus import open_corpus  # noqa: E402
from pocket_arabic.rows import Latents  # noqa: E402
from pocket_arabic.run import command, provenance, read_jsonl, use_all_cores, write_json  # noqa: E402
from pocket_arabic.speech import EosWatch, Request, load_bundle, speak, speak_each, voice_state  # noqa: E402
from pocket_arabic.text import model_text  # noqa: E402


def real_base(folder: Path):
    """The released layout with random weights, as data_prep and train load it: config, weights, codec, tokenizer."""
    random_release(folder, build_flow_lm)
    config = release_config()
    config.weights_path = str(folder / "languages" / "english" / "model.safetensors")
    config.flow_lm.lookup_table.tokenizer_path = str(folder / "languages" / "english" / "tokenizer.json")
    weights = load_weights(config)
    return config, weights, load_mimi(config, weights), load_tokenizer(config)


def clips(folder: Path, count: int) -> None:
    """The embedded corpus's first clips as ClArTTS has its audio: 40,100 Hz."""
    (folder / "clips").mkdir(parents=True)
    with open(ROOT / "demo" / "corpus" / "metadata.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:count]
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "split"])
        for row in rows:
            name = Path(row["file_name"]).with_suffix(".wav").name
            audio = read_audio(ROOT / "demo" / "corpus" / row["file_name"], 24000)
            sf.write(folder / "clips" / name, resample(audio, 24000, 40100), 40100)
            writer.writerow([f"clips/{name}", row["text"], row["split"]])


def bench_data(mimi, tokenizer, folder: Path, rounds: int) -> dict:
    """data_prep's whole loop (read, resample, trim, encode, write, join, statistics) against its bare encoder, in
    turns."""
    sys.argv = ["data_prep.py", "--corpus", str(folder / "corpus"), "--device", "cpu"]
    args, state = data_prep.parse_args(), PartialState(cpu=True)
    shards, total = open_corpus(args.corpus).open()
    prepared = [data_prep.prepare(u, tokenizer, mimi.sample_rate, args) for shard in shards for u in shard()]
    samples = [p.samples for p in prepared]
    seconds = sum(map(len, samples)) / mimi.sample_rate
    device, times = torch.device("cpu"), {"bare encoder": [], "batches of 8": [], "data_prep": []}
    most = 8 * max(map(len, samples))
    for number in range(rounds):
        for name, batch in (("bare encoder", 0), ("batches of 8", most)):
            start = time.monotonic()
            data_prep.encode(mimi.encode_to_latent, samples, 1920, device, batch)
            times[name].append(time.monotonic() - start)
        args.out = folder / f"cache{number}"
        start = time.monotonic()
        writer = CacheWriter(args.out, {})
        writer.begin()
        data_prep.encode_corpus(shards, total, writer, state, tokenizer, mimi, None, args)
        rows, rejects = writer.collect()
        data_prep.statistics(rows, rejects, np.load(args.out / "latents.npy", mmap_mode="r"), tokenizer, {})
        times["data_prep"].append(time.monotonic() - start)
    best = {name: min(t) for name, t in times.items()}
    return {
        "clips": len(samples),
        "audio_sec": round(seconds, 1),
        "real_time_factor": {name: round(seconds / t, 2) for name, t in best.items()},
        "data_prep_to_bare_encoder": round(best["bare encoder"] / best["data_prep"], 4),
        "batches_of_8_to_one_by_one": round(best["bare encoder"] / best["batches of 8"], 4),
        "seconds_per_round": {name: [round(t, 2) for t in ts] for name, ts in times.items()},
    }


class LiveLatents(Latents):
    """Latents encoded from the corpus's audio files at each use, as data_prep did: what training costs without a
    cache."""

    def __init__(self, file: Path, device: torch.device):
        super().__init__(file, device, limit=0)
        cache = Cache(file.parent)
        self.options = cache.info["options"]
        config = load_config(self.options["base"])
        self.mimi = load_mimi(config, load_weights(config)).to(device)
        self.source = {row["first_frame"]: Path(row["source"]) for row in cache.rows}
        self.first = np.array(sorted(self.source))

    @torch.no_grad()
    def read(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        parts = [np.zeros((0, self.width), np.float32)]
        for start, number in zip(first.tolist(), count.tolist()):
            begin = int(self.first[np.searchsorted(self.first, start, "right") - 1])
            samples = read_audio(self.source[begin], self.mimi.sample_rate)
            samples = torch.from_numpy(trimmed(samples, self.mimi.sample_rate, self.options)[0])
            if number:
                latents = self.mimi.encode_to_latent(samples.to(self.device)[None, None])[0].cpu().numpy()
                parts.append(latents[start - begin : start - begin + number])
        return np.concatenate(parts)


# A step of train.py as it is, with batches of random rows instead of rows of like length, or with audio encoded again
# at each use.
STEP = "import train; train.main()"
SHUFFLED = f"""
import numpy as np, train
from pocket_arabic import step
def order(self, epoch, size):
    shuffled = np.random.default_rng([self.draws.seed, epoch.number]).permutation(len(self))
    return [shuffled[b : b + size] for b in range(0, len(shuffled), size)]
step.Utterances.order = order
{STEP}"""
LIVE = f"""
import sys, train
from pocket_arabic import step
sys.path.append("tests")
from bench import LiveLatents
step.Latents = LiveLatents
{STEP}"""
CODE = {"full, on the fly": LIVE, "full, shuffled": SHUFFLED}


def train_speed(base: Path, data: Path, out: Path, steps: int, *flags: str, code: str = STEP) -> dict:
    """Frames a second over all steps but the first two, padding, peak memory and trainable parameters of one short
    run."""
    shutil.rmtree(out, ignore_errors=True)
    fixed = (
        f"--init base --log-every 1 --eval-every 0 --sample-every 0 --max-steps {steps} --epochs 1000 --precision no"
    )
    argv = [sys.executable, "-c", code, "--base", base, "--data", data, "--out", out, *fixed.split(), *flags]
    result = subprocess.run([str(a) for a in argv], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)
    log = [r for r in read_jsonl(out / "progress.jsonl") if r["kind"] == "train"][2:]
    trainable = next(line for line in result.stdout.splitlines() if line.startswith("all ")).split()[2]
    seconds = sum(r["step_sec"] for r in log)
    return {
        "frames_per_sec": sum(r["frames_per_sec"] * r["step_sec"] for r in log) / seconds,
        "step_sec": seconds / len(log),
        "padding": float(np.mean([r["padding"] for r in log])),
        "memory_gib": log[-1]["memory_gib"],
        "trainable": int(trainable.replace(",", "")),
    }


def bench_train(base: Path, data: Path, out: Path, batch: int, steps: int, rounds: int, tunes: tuple[str, ...]) -> dict:
    """Ways of training against the plain one (full, cached, batches of like length), in turns."""
    ways: dict[str, tuple] = {"full": ()} | {t: ("--tune", t) for t in tunes} | {name: () for name in CODE}
    runs: dict[str, list[dict]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, flags in ways.items():
            runs[name].append(
                train_speed(base, data, out, steps, "--batch-size", str(batch), *flags, code=CODE.get(name, STEP))
            )
    best = {name: max(found, key=lambda r: r["frames_per_sec"]) for name, found in runs.items()}
    for name, row in best.items():
        row["speed_to_full"] = row["frames_per_sec"] / best["full"]["frames_per_sec"]
        print(f"{name:20}", {k: round(v, 3) for k, v in row.items()}, flush=True)
    return {
        "batch": batch,
        "steps": steps,
        "rounds": rounds,
        **{name: {k: round(v, 4) for k, v in row.items()} for name, row in best.items()},
    }


def sentences(count: int) -> list[str]:
    """The embedded corpus's first sentences, as the model reads them."""
    with open(ROOT / "demo" / "corpus" / "metadata.csv", encoding="utf-8") as file:
        return [model_text(row["text"])[1] for row in list(csv.DictReader(file))[:count]]


def bench_speaking(
    model, voice: Path, texts: list[str], slowest: float, sizes: tuple[int, ...], alone: int, rounds: int
) -> dict:
    """Seconds a second of speech of a file of `texts`, as a batch and one by one (of which the first `alone`), in
    turns."""
    torch.set_num_threads(1)  # as importing the wheel leaves it, and as generate_sample.py speaks
    state, watch = voice_state(model, voice), EosWatch()
    requests = [Request(text, state, 0) for text in texts]
    ways = {"one by one": lambda: [speak(model, state, r.chunk, r.seed, watch, 0, slowest) for r in requests[:alone]]}
    ways |= {
        f"batch of {size}": lambda size=size: list(speak_each(model, requests, 0, slowest, size)) for size in sizes
    }
    wall, cpu = ({name: [] for name in ways} for _ in range(2))
    for _ in range(rounds):
        for name, way in ways.items():
            start, used = time.monotonic(), time.process_time()
            spoken = sum(len(s.audio) for s in way()) / model.sample_rate
            wall[name].append((time.monotonic() - start) / spoken)
            cpu[name].append((time.process_time() - used) / spoken)
            print(
                f"{name:14} {wall[name][-1]:.4f} s a second of speech, {cpu[name][-1]:.4f} of a processor", flush=True
            )
    use_all_cores()
    wall, cpu = ({name: round(min(values), 4) for name, values in found.items()} for found in (wall, cpu))
    ratios = {name: round(value / wall["one by one"], 4) for name, value in wall.items()}
    return {
        "sentences": len(texts),
        "one_by_one": alone,
        "seconds_a_second": wall,
        "processor_seconds_a_second": cpu,
        "to_one_by_one": ratios,
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT / "samples" / "bench.json")
    p.add_argument(
        "--only", choices=("data", "real size", "nano size", "speaking"), help="one part; the others in --out stay"
    )
    p.add_argument("--rounds", type=int, default=3, help="of everything but the real size; the fastest counts")
    args = p.parse_args()
    use_all_cores()
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.only and args.out.exists() else {}
    result |= {"command": "make bench", "threads": torch.get_num_threads(), **provenance()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, _, mimi, tokenizer = real_base(folder / "release")
        clips(folder / "corpus", 32)
        if args.only in (None, "data"):
            result["data"] = bench_data(mimi, tokenizer, folder, args.rounds)
        if args.only in (None, "speaking"):
            bundle = ROOT / "demo" / "bundle"
            slowest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["slowest_sec_per_token"]
            result["speaking"] = {
                "nano size": bench_speaking(
                    load_bundle(bundle), bundle / "voice.wav", sentences(64), slowest, (8, 16, 32, 64), 64, args.rounds
                )
            }
            # Random weights never end: every sentence is cut off after some 3 s, alone as in the batch.
            random = tts_model(config, build_flow_lm(config, load_weights(config)), mimi, eos_threshold=float("inf"))
            result["speaking"]["real size"] = bench_speaking(
                random, bundle / "voice.wav", sentences(16), 0.03, (8, 16), 4, 1
            )
        with open(folder / "english.yaml", "w", encoding="utf-8") as file:
            yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), file)
        for size, base in (("real size", folder / "english.yaml"), ("nano size", ROOT / "demo" / "base.yaml")):
            if args.only in (None, size):
                prepare = f"data_prep.py --corpus {folder}/corpus --base {base} --out".split()
                prepare = [sys.executable, *prepare, folder / size]
                subprocess.run(prepare, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                batch, steps, rounds = (4, 6, 1) if size == "real size" else (8, 20, args.rounds)
                result[size] = bench_train(
                    base, folder / size, folder / "run", batch, steps, rounds, ("last:2", "lora:8", "text")
                )
    write_json(args.out, result)
    print(args.out.read_text())
    if not torch.cuda.is_available():
        print("no GPU here: measure/gpu_training.py and measure/gpu_speaking.py are skipped")
    elif not args.only:
        for script in ("gpu_training.py", "gpu_speaking.py"):
            subprocess.run(
                [sys.executable, ROOT / "measure" / script, "--out", args.out.with_name("bench_gpu.json")], check=True
            )


if __name__ == "__main__":
    command(main)
