"""Audio files: read as mono, resample, measure, trim, write."""

import io
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torchaudio

from pocket_arabic.run import atomic_write


class AudioError(ValueError):
    """An audio file that cannot be used; the message says why."""


def load_audio(source: Path | bytes | tuple[np.ndarray, int] | None) -> tuple[np.ndarray, int]:
    """A file of any format soundfile reads, its bytes, or samples [n] and their rate -> mono float32 [samples], rate.
    Raises AudioError."""
    if source is None or (isinstance(source, Path) and not source.exists()):
        raise AudioError("audio missing")
    if isinstance(source, tuple):
        samples, rate = source
    else:
        try:
            samples, rate = sf.read(io.BytesIO(source) if isinstance(source, bytes) else source, dtype="float32", always_2d=True)
        except sf.LibsndfileError as error:
            raise AudioError(f"audio unreadable ({error.error_string})") from None
        samples = samples.mean(1)
    if not samples.size:
        raise AudioError("audio empty")
    if not np.isfinite(samples).all():
        raise AudioError("audio has non-finite samples")
    return samples, rate


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """[samples] at `rate` -> at `new_rate`, band-limited (torchaudio's windowed sinc)."""
    return samples if rate == new_rate else torchaudio.functional.resample(torch.from_numpy(samples), rate, new_rate).numpy()


def read_audio(source: Path | bytes, rate: int) -> np.ndarray:
    """An audio file, or its bytes -> mono float32 [samples] at `rate`. Raises AudioError."""
    return resample(*load_audio(source), rate)


def level_db(samples: np.ndarray) -> float:
    """Root mean square of [samples] in dB of full scale."""
    return float(10 * np.log10(np.square(samples, dtype=np.float64).mean() + 1e-12))


def clipped_share(samples: np.ndarray) -> float:
    """Share of [samples], as recorded, in flat tops: three or more in a row at the clip's peak (or over 1) if that is
    over 0.5. Not after resampling, which turns tops into ripples."""
    top = min(1.0, float(np.abs(samples).max()))
    flat = np.abs(samples) >= top - 2 / 32768
    return float((flat[:-2] & flat[1:-1] & flat[2:]).sum() / len(samples)) if top > 0.5 else 0.0


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


def trimmed(samples: np.ndarray, rate: int, options: dict) -> tuple[np.ndarray, int, int]:
    """[samples] less the silence at both ends but for `head_sec` and `tail_sec`, if `trim`; and where in it speech starts
    and ends. Raises AudioError."""
    start, end = speech_bounds(samples, rate, options["floor_db"])
    if not options["trim"]:
        return samples, start, end
    first = max(0, start - int(options["head_sec"] * rate))
    return samples[first : end + int(options["tail_sec"] * rate)], start - first, end - first


def write_wav(path: Path, samples: np.ndarray | torch.Tensor, rate: int) -> None:
    """Mono [samples] in [-1, 1] -> 16-bit PCM."""
    wav = io.BytesIO()  # libsndfile does not say why a write failed; a full disk should
    sf.write(wav, np.clip(np.asarray(samples), -1, 1), rate, subtype="PCM_16", format="WAV")
    with atomic_write(path) as tmp:
        tmp.write_bytes(wav.getvalue())
