#!/usr/bin/env python3
"""Make samples/: one held-out sentence as recorded, through the codec, spoken by every model there is, and a page.

Reads   data/demo, runs/demo (make demo), runs/experiments (make experiments), demo/bundle and its evaluation here.
Writes  samples/*.wav, a spectrogram beside each, index.json (file, title, text, command, seed, model hash), and
        index.html, which opens from disk.

    python measure/samples.py
    python measure/samples.py --html     # only the page, from index.json
"""

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
from harness import ROOT, stock
from matplotlib import pyplot as plt

from pocket_arabic import base
from pocket_arabic.audio import read_audio, write_wav
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import find_bundle, sha256
from pocket_arabic.run import Parser, command, write_json
from pocket_arabic.speech import EosWatch, speak, voice_state

matplotlib.use("Agg")

SAMPLES = ROOT / "samples"
RATE = 24000
THIS = "python measure/samples.py"
BASE = "demo/flow_lm.safetensors"
ENGLISH = "Emma had barely seen him, but just enough to feel that the first meeting was over."
# What speaks the sentence: file, title, model.
SPOKEN = [
    ("generated_arabic", "after `make demo`: minutes on 1.8 h of Arabic", "runs/demo"),
    ("bundle", "demo/bundle: 3,600 steps on 8 h", "demo/bundle"),
    ("tune_full", "250 steps, every weight (--tune full)", "runs/experiments/base-0"),
    ("tune_last-2", "the same time, the last two layers (--tune last:2)", "runs/experiments/last-2-0"),
    ("tune_lora-16", "the same time, adapters of rank 16 (--tune lora:16)", "runs/experiments/lora-16-0"),
    ("tune_text", "the same time, the text embedding alone (--tune text)", "runs/experiments/text-0"),
    ("failure_scratch", "a failure: the same time from random weights (--init scratch)", "runs/experiments/scratch-0"),
]


def entry(file: str, title: str, text: str, made: str, model: str | None = None, seed: int | None = None) -> dict:
    """Of index.json."""
    weights = model and ROOT / model
    if weights and weights.is_dir():
        weights = find_bundle(weights) / "model.safetensors"
    found = {"file": f"{file}.wav", "title": title, "text": text, "seed": seed, "model": model}
    return found | {"model_sha256": weights and sha256(weights), "command": made}


def generate(file: str, title: str, model: str, text: str, seed: int = 0) -> dict:
    """Speak with generate_sample.py, as the entry says."""
    line = ["generate_sample.py", "--model", model, "--seed", str(seed), "--text", text, "--out", f"samples/{file}.wav"]
    subprocess.run([sys.executable, *line], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return entry(file, title, text, shlex.join(["python", *line]), model, seed)


def as_recorded(cache: Cache, row: dict) -> list[dict]:
    """The recording, and its way through the codec."""
    clip, config = Path(row["source"]), base.load_config("demo")
    mimi = base.load_mimi(config, base.load_weights(config))
    latents = torch.from_numpy(np.array(cache.row_latents(row)))
    write_wav(SAMPLES / "reference.wav", read_audio(clip, RATE), RATE)
    write_wav(SAMPLES / "codec_roundtrip.wav", base.decode_latents(mimi, latents), RATE)
    recorded = f"the recording: {clip.name} of the embedded corpus (espeak-ng)"
    through = "the recording through the codec: the most that a model can reach"
    return [
        entry("reference", recorded, row["text"], THIS),
        entry("codec_roundtrip", through, row["text"], THIS, "demo/codec.safetensors"),
    ]


def before(row: dict) -> dict:
    """The English base reads the Arabic sentence."""
    config = base.arabic_config(base.load_config("demo"))
    weights = base.load_weights(config)
    model = base.tts_model(config, base.build_flow_lm(config, weights), base.load_mimi(config, weights))
    voice = voice_state(model, ROOT / "demo" / "bundle" / "voice.wav")
    write_wav(SAMPLES / "before.wav", speak(model, voice, row["text_model"], 0, EosWatch()).audio, RATE)
    title = "before: the English base, no Arabic step yet"
    return entry("before", title, row["text"], THIS, BASE, 0)


def english() -> dict:
    """The stock tool speaks English with the base."""
    stock(ROOT / "demo" / "base.yaml", ENGLISH, SAMPLES / "english.wav", voice="bundle/voice.wav")
    line = ["pocket-tts", "generate", "--config", "base.yaml", "--voice", "bundle/voice.wav", "--text", ENGLISH]
    made = f"cd demo && {shlex.join([*line, '--output-path', '../samples/english.wav'])}"
    return entry("english", "the English base in the stock tool", ENGLISH, made, BASE)


def worst(evaluation: Path) -> dict:
    """The sentence with the most errors in an evaluation of demo/bundle, spoken again."""
    sentences = json.loads(evaluation.read_text(encoding="utf-8"))["sentences"]
    spoken = [s for s in sentences if s["kind"].startswith("seed_")]
    most = max(spoken, key=lambda s: next(iter(s["asr"].values()))["cer"])
    title = "a failure: what demo/bundle reads worst of 40 sentences and 3 seeds"
    return generate("failure_worst", title, "demo/bundle", most["text"], int(most["kind"].removeprefix("seed_")))


def spectrogram(kinds: dict[str, np.ndarray], path: Path, top: float, window: int, darkest: float, dpi: int) -> None:
    """One spectrogram above the other, of audio [samples] by title."""
    longest = max(map(len, kinds.values())) / RATE
    shape = {"figsize": (9, 2.4 * len(kinds)), "layout": "constrained", "squeeze": False, "sharex": True}
    figure, axes = plt.subplots(len(kinds), 1, **shape)
    for axis, (title, audio) in zip(axes[:, 0], kinds.items()):
        windows = {"NFFT": window, "noverlap": window * 7 // 8, "Fs": RATE}
        axis.specgram(audio + 1e-9, vmin=darkest, vmax=-40, cmap="magma", **windows)
        axis.set(ylim=(0, top), xlim=(0, longest), ylabel="Hz", title=title)
    axes[-1, 0].set_xlabel("seconds")
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pocket TTS, speaking Classical Arabic: samples</title>
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
    for shown in entries:
        arabic = any("\u0600" <= c <= "\u06ff" for c in shown["text"])
        model = shown["model"] and f"model {shown['model']} {shown['model_sha256'][:12]}"
        origin = [shown["file"], model, shown["seed"] is not None and f"seed {shown['seed']}"]
        fields = {key: html.escape(str(value)) for key, value in shown.items()}
        fields |= {"origin": ", ".join(filter(None, origin)), "picture": f"{Path(shown['file']).stem}.png"}
        articles.append(ARTICLE.format(direction=' dir="rtl" lang="ar"' if arabic else "", **fields))
    return PAGE.format(articles="\n".join(articles))


def pictures(audio: dict[str, np.ndarray]) -> None:
    """Spectrograms of audio [samples] by file: 21 ms windows show formants and closures, 85 ms ones harmonics."""
    for file, samples in audio.items():
        spectrogram({file: samples}, SAMPLES / f"{Path(file).stem}.png", 6000, 512, -140, 70)
    for name, file in (("codec_harmonics", "codec_roundtrip.wav"), ("generated_harmonics", "generated_arabic.wav")):
        pair = {f: audio[f][: 2 * RATE] for f in ("reference.wav", file)}
        spectrogram(pair, SAMPLES / f"{name}.png", 1000, 2048, -100, 80)


def main() -> None:
    p = Parser(__doc__)
    p.add_argument("--html", action="store_true", help="only index.html again")
    args = p.parse_args()
    index = SAMPLES / "index.json"
    if not args.html:
        cache = Cache(ROOT / "data" / "demo")
        row = cache.split("test")[0]
        entries = [*as_recorded(cache, row), before(row)]
        entries += [generate(file, title, model, row["text"]) for file, title, model in SPOKEN]
        entries += [worst(SAMPLES / "evaluation_bundle.json"), english()]
        pictures({made["file"]: read_audio(SAMPLES / made["file"], RATE) for made in entries})
        for name in ("loss.png", "progress.jsonl"):
            shutil.copyfile(ROOT / "runs" / "demo" / name, SAMPLES / name)
        write_json(index, entries)
    entries = json.loads(index.read_text(encoding="utf-8"))
    (SAMPLES / "index.html").write_text(page(entries), encoding="utf-8")


if __name__ == "__main__":
    command(main)
