#!/usr/bin/env python3
"""The ear: what does speech of the embedded voices say? A small CTC recogniser, the measuring instrument of the report.

Reads   FILE, lines with {"wav": ..., "text": ...}, the text in Arabic script or empty; measure/ear.safetensors.
Prints  a line {"wav", "hyp", "cer_no_marks", "cer"} for each, `hyp` in Buckwalter, then a summary.

    python measure/ear.py pairs.jsonl
    python generate_sample.py --model demo/bundle --evaluate --asr "program:python measure/ear.py"

One million weights, trained by measure/train_ear.py on words without sense, spoken by espeak-ng: it writes what it
hears, without a language model to mend it. It knows only that family of voices and what the nano codec makes of them:
compare systems with it, and give every figure beside its floor, the error on the recordings themselves.

What is scored: `pocket_arabic.evaluation.error_rates`, spaces included, so that sukun, tatweel and punctuation never
count, `cer` counts letters and marks, and `cer_no_marks` letters alone, where hamza seats and alefs, ى and ي, ة and ه
are one: spellings, not sounds. A clip without a text has no rates (null) and no part in the summary. The ear never
writes sukun, nor پ چ ڤ گ.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from pocket_arabic.audio import AudioError, load_audio, resample  # noqa: E402
from pocket_arabic.evaluation import error_rates  # noqa: E402
from pocket_arabic.run import UserError, command, read_jsonl  # noqa: E402
from pocket_arabic.text import ARABIC_TO_BUCKWALTER, scored  # noqa: E402

WEIGHTS = HERE / "ear.safetensors"
# Class 0 is CTC's blank, these are 1, 2, ...
SYMBOLS = " " + "".join(b for b in ARABIC_TO_BUCKWALTER.values() if b not in "oPJVG")
RATE = 16000
WINDOW, HOP, SPECTRUM = 400, 160, 512  # 25 ms, 10 ms
MELS = 64
STRIDE = 3  # what it writes is decided each 30 ms; a sign takes 50 to 80
FLOOR = 1e-4  # of a clip's mean power in a band: 40 dB below it is silence
CENTRE, SCALE = -4.0, 3.0  # of the logarithms, about the mean and deviation over speech


def spelled(text: str) -> str:
    """What the ear should write for a text: Buckwalter of its scored form.

    >>> spelled("هَلْ أَنْتَ بِخَيْرٍ؟")
    'hal >anta bixayrK'
    """
    return "".join(ARABIC_TO_BUCKWALTER.get(c, c) for c in scored(text, marks=True))


def features(samples: np.ndarray, rate: int) -> torch.Tensor:
    """[samples] -> log mel powers over the clip's mean, centred and scaled: [frames of 10 ms, MELS]."""
    samples = np.pad(np.asarray(samples, np.float32), (0, max(0, rate // 20 - len(samples))))  # one spectrum at least
    wave = torch.from_numpy(resample(samples, rate, RATE))
    window = torch.hann_window(WINDOW)
    power = torch.stft(wave, SPECTRUM, HOP, WINDOW, window, return_complex=True).abs().square().T
    mel = power @ torchaudio.functional.melscale_fbanks(SPECTRUM // 2 + 1, 50.0, RATE / 2, MELS, RATE)
    return (torch.log(mel / mel.mean().clamp(min=1e-8) + FLOOR) - CENTRE) / SCALE


class Net(nn.Module):
    """Convolutions that see 0.4 s, then a recurrent layer for what is relative: the tempo, by which a vowel is long."""

    def __init__(self, width: int = 160, hidden: int = 192):
        super().__init__()
        self.entry = nn.Conv1d(MELS, width, 5, stride=STRIDE, padding=2)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(3))
        self.recurrent = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(2 * hidden, 1 + len(SYMBOLS))

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """[B, T, MELS] -> log probabilities [B, ceil(T / STRIDE), 1 + SYMBOLS]."""
        x = F.gelu(self.entry(mel.transpose(1, 2)))
        for conv in self.convs:
            x = x + F.gelu(conv(x))
        x = self.recurrent(self.dropout(x).transpose(1, 2))[0]
        return self.out(self.dropout(x)).log_softmax(-1)


def best_path(log_probabilities: torch.Tensor) -> str:
    """[T, 1 + SYMBOLS] -> the text of each frame's likeliest class: repetitions once, blanks out."""
    classes = torch.unique_consecutive(log_probabilities.argmax(-1)).tolist()
    return " ".join("".join(SYMBOLS[c - 1] for c in classes if c).split())


class Ear:
    def __init__(self, weights: Path = WEIGHTS):
        self.net = Net()
        self.net.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
        self.net.eval()

    @torch.no_grad()
    def transcribe(self, samples: np.ndarray, rate: int) -> str:
        """Mono [samples] -> Buckwalter without sukun; "" for silence."""
        return best_path(self.net(features(samples, rate)[None])[0])


def summary(rows: list[dict]) -> dict:
    """Means and medians over the clips that have a text."""
    bare, full = ([row[key] for row in rows if row[key] is not None] for key in ("cer_no_marks", "cer"))
    means = {
        f"{key}_{name}": float(of(rates)) if rates else None
        for key, rates in (("cer_no_marks", bare), ("cer", full))
        for name, of in (("mean", np.mean), ("median", np.median))
    }
    return {"clips": len(rows), **means, "above_1": sum(rate > 1 for rate in bare)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help='JSON lines with "wav" and "text"')
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    if not args.file.is_file():
        raise UserError(f"{args.file}: no such file; give one with a line {{'wav': ..., 'text': ...}} for each clip")
    ear, rows = Ear(args.weights), []
    for pair in read_jsonl(args.file):
        try:
            heard = ear.transcribe(*load_audio(Path(pair["wav"])))
        except AudioError as error:
            raise UserError(f"{pair['wav']}: {error}") from None
        rates = error_rates(pair["text"], heard) if scored(pair["text"], marks=False) else {}
        rows.append({"wav": pair["wav"], "hyp": heard, "cer_no_marks": rates.get("cer"), "cer": rates.get("cer_marks")})
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    command(main)
