#!/usr/bin/env python3
"""Make samples/: one held-out sentence as recorded, through the codec, and spoken by every model there is, with a page to listen.

Reads   data/demo, runs/demo (make demo), runs/experiments (make experiments), demo/bundle, --evaluation of demo/bundle.
Writes  samples/*.wav, a spectrogram beside each, index.json (file, title, text, command, seed, model hash) and index.html,
        which opens from disk.

    python demo/build_samples.py
    python demo/build_samples.py --html     # only the page, from index.json
"""

import argparse
import html
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pocket_arabic.audio import read_audio, write_wav  # noqa: E402
from pocket_arabic.base import arabic_config, build_flow_lm, decode_latents, load_config, load_mimi, load_weights, tts_model  # noqa: E402
from pocket_arabic.cache import Cache  # noqa: E402
from pocket_arabic.checkpoint import find_bundle, sha256  # noqa: E402
from pocket_arabic.run import command, write_json  # noqa: E402
from pocket_arabic.speech import EosWatch, speak, voice_state  # noqa: E402

matplotlib.use("Agg")

SAMPLES = ROOT / "samples"
RATE = 24000
THIS = "python demo/build_samples.py"
ENGLISH = "Emma had barely seen him, but just enough to feel that the first meeting was over."
# What speaks the sentence: file, title, model.
SPOKEN = [
    ("generated_arabic", "after `make demo`: 900 steps on 1.8 h of Arabic", "runs/demo"),
    ("bundle", "demo/bundle: 3,600 steps on 8 h", "demo/bundle"),
    ("tune_full", "250 steps, every weight (--tune full)", "runs/experiments/base-0"),
    ("tune_last-2", "the same time, the last two layers (--tune last:2)", "runs/experiments/last-2-0"),
    ("tune_lora-16", "the same time, adapters of rank 16 (--tune lora:16)", "runs/experiments/lora-16-0"),
    ("tune_text", "the same time, the text embedding alone (--tune text)", "runs/experiments/text-0"),
    ("failure_scratch", "a failure: the same time from random weights (--init scratch)", "runs/experiments/scratch-0"),
]


def generate(file: str, title: str, model: str, text: str, seed: int = 0) -> dict:
    """Speak with generate_sample.py, as the entry says."""
    line = ["generate_sample.py", "--model", model, "--seed", str(seed), "--text", text, "--out", f"samples/{file}.wav"]
    subprocess.run([sys.executable, *line], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    weights = find_bundle(ROOT / model) / "model.safetensors"
    return {"file": f"{file}.wav", "title": title, "text": text, "seed": seed, "model": model, "model_sha256": sha256(weights), "command": shlex.join(["python", *line])}


def before(row: dict, voice: Path) -> dict:
    """The English base reads the Arabic sentence."""
    config = arabic_config(load_config("demo"))
    weights = load_weights(config)
    model = tts_model(config, build_flow_lm(config, weights), load_mimi(config, weights))
    spoken = speak(model, voice_state(model, voice), row["text_model"], 0, EosWatch())
    write_wav(SAMPLES / "before.wav", spoken.audio, RATE)
    entry = {"file": "before.wav", "title": "before: the English base, no Arabic step yet", "text": row["text"], "seed": 0, "model": "demo/flow_lm.safetensors"}
    return entry | {"model_sha256": sha256(ROOT / "demo" / "flow_lm.safetensors"), "command": THIS}


def english() -> dict:
    """The stock tool speaks English with the base."""
    line = ["pocket-tts", "generate", "--config", "base.yaml", "--voice", "bundle/voice.wav", "--text", ENGLISH, "--output-path", "../samples/english.wav"]
    (SAMPLES / "english.wav").unlink(missing_ok=True)
    # Its exit status says nothing: the wheel's threads may abort the interpreter on its way out, after the wav is written.
    subprocess.run([Path(sys.executable).with_name(line[0]), *line[1:]], cwd=ROOT / "demo", capture_output=True)
    entry = {"file": "english.wav", "title": "the English base in the stock tool", "text": ENGLISH, "seed": None, "model": "demo/flow_lm.safetensors"}
    return entry | {"model_sha256": sha256(ROOT / "demo" / "flow_lm.safetensors"), "command": f"cd demo && {shlex.join(line)}"}


def worst(evaluation: Path) -> tuple[str, int]:
    """Text and seed of the sentence with the most errors in an evaluation."""
    found = [s for s in json.loads(evaluation.read_text(encoding="utf-8"))["sentences"] if s["kind"].startswith("seed_")]
    most = max(found, key=lambda s: next(iter(s["asr"].values()))["cer"])
    return most["text"], int(most["kind"].removeprefix("seed_"))


def spectrogram(kinds: dict[str, np.ndarray], path: Path, top: float, window: int, darkest: float, dpi: int) -> None:
    """One spectrogram above the other, of audio [samples] by title."""
    longest = max(map(len, kinds.values())) / RATE
    figure, axes = plt.subplots(len(kinds), 1, figsize=(9, 2.4 * len(kinds)), layout="constrained", squeeze=False, sharex=True)
    for axis, (title, audio) in zip(axes[:, 0], kinds.items()):
        axis.specgram(audio + 1e-9, NFFT=window, noverlap=window * 7 // 8, Fs=RATE, vmin=darkest, vmax=-40, cmap="magma")
        axis.set(ylim=(0, top), xlim=(0, longest), ylabel="Hz", title=title)
    axes[-1, 0].set_xlabel("seconds")
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Pocket TTS, speaking Classical Arabic: samples</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
article {{ border-top: 1px solid #ccc; padding: 1rem 0; }}
h2 {{ font-size: 1.05rem; margin: 0; }}
[dir=rtl] {{ font-size: 1.4rem; margin: .3rem 0; }}
audio, img {{ width: 100%; }}
code {{ font-size: .8rem; color: #555; overflow-wrap: anywhere; }}
</style></head><body>
<h1>Samples</h1>
<p>Synthetic speech, nano model: evidence, not a showcase. What was measured on it is in
<a href="../exploration_report.md">exploration_report.md</a>; nobody has listened to it yet.</p>
{articles}
</body></html>
"""
ARTICLE = """<article>
<h2>{title}</h2>
<p{direction}>{text}</p>
<audio controls preload="metadata" src="{file}"></audio>
<img loading="lazy" src="{picture}" alt="spectrogram, 0 to 6 kHz">
<code>{origin}<br>{command}</code>
</article>"""


def page(entries: list[dict]) -> str:
    articles = []
    for entry in entries:
        arabic = any("\u0600" <= c <= "\u06ff" for c in entry["text"])
        origin = [entry["file"], entry["model"] and f"model {entry['model']} {entry['model_sha256'][:12]}", entry["seed"] is not None and f"seed {entry['seed']}"]
        shown = {k: html.escape(str(v)) for k, v in entry.items()} | {"origin": ", ".join(filter(None, origin))}
        articles.append(ARTICLE.format(picture=f"{Path(entry['file']).stem}.png", direction=' dir="rtl" lang="ar"' if arabic else "", **shown))
    return PAGE.format(articles="\n".join(articles))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--html", action="store_true", help="only index.html again")
    p.add_argument("--evaluation", type=Path, default=SAMPLES / "evaluation_bundle.json", help="of demo/bundle; its worst sentence becomes a sample")
    args = p.parse_args()
    index = SAMPLES / "index.json"
    if not args.html:
        cache = Cache(ROOT / "data" / "demo")
        row = cache.split("test")[0]
        voice, mimi = ROOT / "demo" / "bundle" / "voice.wav", load_mimi(load_config("demo"), load_weights(load_config("demo")))
        clip = Path(row["source"])
        write_wav(SAMPLES / "reference.wav", read_audio(clip, RATE), RATE)
        write_wav(SAMPLES / "codec_roundtrip.wav", decode_latents(mimi, torch.from_numpy(np.array(cache.row_latents(row)))), RATE)
        plain = {"text": row["text"], "seed": None, "model": "demo/codec.safetensors", "model_sha256": sha256(ROOT / "demo" / "codec.safetensors"), "command": THIS}
        entries = [plain | {"file": "reference.wav", "title": f"the recording: {clip.name} of the embedded corpus (espeak-ng)", "model": None, "model_sha256": None}]
        entries.append(plain | {"file": "codec_roundtrip.wav", "title": "the recording through the codec: the most that a model can reach"})
        entries += [before(row, voice), *(generate(file, title, model, row["text"]) for file, title, model in SPOKEN)]
        text, seed = worst(args.evaluation)
        entries += [generate("failure_worst", "a failure: what demo/bundle reads worst of 40 sentences and 3 seeds", "demo/bundle", text, seed), english()]
        audio = {entry["file"]: read_audio(SAMPLES / entry["file"], RATE) for entry in entries}
        for file, samples in audio.items():
            # 21 ms windows show formants and closures; the pairs below have 85 ms ones, which show harmonics.
            spectrogram({file: samples}, SAMPLES / f"{Path(file).stem}.png", 6000, 512, -140, 70)
        for name, file in (("codec_harmonics", "codec_roundtrip.wav"), ("generated_harmonics", "generated_arabic.wav")):
            spectrogram({f: audio[f][: 2 * RATE] for f in ("reference.wav", file)}, SAMPLES / f"{name}.png", 1000, 2048, -100, 80)
        for name in ("loss.png", "progress.jsonl"):
            shutil.copyfile(ROOT / "runs" / "demo" / name, SAMPLES / name)
        write_json(index, entries)
    (SAMPLES / "index.html").write_text(page(json.loads(index.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    command(main)
