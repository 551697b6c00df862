#!/usr/bin/env python3
"""Benchmarks, as ratios measured in one run. Not tests: machines differ.

Reads   nothing but the embedded corpus; the released `english` architecture gets random weights.
Writes  --out, JSON.

    make bench                                                # everything, some 15 minutes on 2 cores
    python tests/bench.py --only data --out /tmp/bench.json   # data_prep alone
"""

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from accelerate import PartialState

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from hub import random_release, release_config  # noqa: E402

import data_prep  # noqa: E402
from pocket_arabic.audio import read_audio, resample  # noqa: E402
from pocket_arabic.cache import CacheWriter  # noqa: E402
from pocket_arabic.corpus import open_corpus  # noqa: E402
from pocket_arabic.model import build_flow_lm, load_mimi, load_tokenizer, load_weights  # noqa: E402
from pocket_arabic.run import command, provenance, use_all_cores, write_json  # noqa: E402


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
    """data_prep's whole loop (read, resample, trim, encode, write, join, statistics) against its bare encoder, in turns."""
    clips(folder / "corpus", 32)
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


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT / "samples" / "bench.json")
    p.add_argument("--only", choices=("data",), help="one part")
    p.add_argument("--rounds", type=int, default=3, help="of everything; the fastest counts")
    args = p.parse_args()
    out, rounds = args.out.resolve(), args.rounds
    use_all_cores()
    result = {"command": "make bench", **provenance()}
    with tempfile.TemporaryDirectory() as folder:
        _, _, mimi, tokenizer = real_base(Path(folder) / "release")
        result["data"] = bench_data(mimi, tokenizer, Path(folder) / "data", rounds)
    write_json(out, result)
    print(out.read_text())


if __name__ == "__main__":
    command(main)
