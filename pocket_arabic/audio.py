"""Audio files: read as mono, resample, trim, write."""

from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torchaudio

from pocket_arabic.run import atomic_write


class AudioError(ValueError):
    """An audio file that cannot be used; the message says why."""


def read_audio(path: Path, rate: int) -> np.ndarray:
    """Any format soundfile reads -> mono float32 [samples] at `rate`. Raises AudioError."""
    if not path.exists():
        raise AudioError("audio file missing")
    try:
        samples, file_rate = sf.read(path, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise AudioError(f"audio unreadable ({error.error_string})") from None
    samples = samples.mean(1)
    if not samples.size:
        raise AudioError("audio empty")
    if not np.isfinite(samples).all():
        raise AudioError("audio has non-finite samples")
    if file_rate != rate:
        samples = torchaudio.functional.resample(torch.from_numpy(samples), file_rate, rate).numpy()
    return samples


def speech_bounds(samples: np.ndarray, rate: int, floor_db: float) -> tuple[int, int]:
    """First and last+1 sample of speech in [samples]: what lies between the 20 ms frames less than `floor_db` below the
    loudest one. Raises AudioError if nothing is louder than -60 dBFS."""
    frame = rate // 50
    frames = np.pad(samples, (0, -len(samples) % frame)).reshape(-1, frame)
    level = 10 * np.log10(np.square(frames).mean(1) + 1e-12)
    if level.max() < -60:
        raise AudioError("audio silent")
    loud = np.flatnonzero(level > level.max() - floor_db)
    return int(loud[0]) * frame, min(len(samples), (int(loud[-1]) + 1) * frame)


def write_wav(path: Path, samples: np.ndarray | torch.Tensor, rate: int) -> None:
    """Mono [samples] in [-1, 1] -> 16-bit PCM."""
    with atomic_write(path) as tmp:
        sf.write(tmp, np.clip(np.asarray(samples), -1, 1), rate, subtype="PCM_16", format="WAV")
