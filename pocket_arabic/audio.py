"""Audio files: read as mono, resample, measure, trim, write."""

import io
import math
import struct
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torchaudio

from pocket_arabic.metadata import CONVERTIBLE, LFS
from pocket_arabic.run import atomic_write


class AudioError(ValueError):
    """An audio file that cannot be used; the message says why."""


Source = Path | bytes | tuple[np.ndarray, int] | None
# What soundfile does not read, by its name's end or by its first bytes: (offset, bytes) of MP4, Matroska, AMR, WMA,
# AAC.
CONTAINERS = ((4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (0, b"#!AMR"), (0, b"0&\xb2u"), (0, b"\xff\xf1"), (0, b"\xff\xf9"))
RATES = (2000, 800_000)  # Hz
LOUDEST = 1e6  # floats of full scale are 1, and of 16-bit integers 32,768
CANCELLED_DB = 4.5  # equal channels mix to their own level, unlike ones to 3 dB less, one of two to 6 dB less


def decode(source: Source, most_sec: float = np.inf, first_sec: float = np.inf) -> tuple[np.ndarray, int]:
    """A file of any format soundfile reads, its bytes, or samples [n] and their rate -> float32 [samples, channels],
    rate. `first_sec`: read no further. Raises AudioError, also for audio longer than `most_sec`, before it is read."""
    if source is None:
        raise AudioError("audio missing")
    if isinstance(source, tuple):
        samples, rate = source
        samples = samples[:, None]
    else:
        try:
            with sf.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                rate = file.samplerate
                if file.frames > most_sec * rate:
                    raise AudioError("too long")
                samples = file.read(int(min(file.frames, first_sec * rate)), dtype="float32", always_2d=True)
        except AudioError:
            raise
        except (OSError, ValueError, sf.SoundFileError) as error:
            raise AudioError(_why_unreadable(source, error)) from None
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"audio at {rate} Hz, no rate of speech")
    if not samples.size:
        raise AudioError("audio empty")
    if not np.isfinite(samples).all():
        raise AudioError("audio has non-finite samples")
    if np.abs(samples).max() > LOUDEST:
        raise AudioError(f"audio has samples of {np.abs(samples).max():.0e}, no sound")
    return samples, rate


def _why_unreadable(source: Path | bytes, error: Exception) -> str:
    head, suffix = source, ""
    if isinstance(source, Path):
        try:
            with open(source, "rb") as file:
                head, suffix = file.read(len(LFS)), source.suffix.lower()
        except FileNotFoundError:
            return "audio missing"
        except (OSError, ValueError) as reason:
            return f"audio unreadable ({getattr(reason, 'strerror', None) or reason})"
    if head.startswith(LFS):
        return "audio is a Git LFS pointer, not the file; fetch it: git lfs pull"
    if suffix in CONVERTIBLE or any(head[at:].startswith(mark) for at, mark in CONTAINERS):
        return f"audio of a kind soundfile does not read; convert it: ffmpeg -i FILE{suffix} NEW.wav"
    return f"audio unreadable ({getattr(error, 'error_string', None) or error})"


def mono(samples: np.ndarray) -> tuple[np.ndarray, str]:
    """[samples, channels] -> [samples], and how: "" for one channel, else "mean of 2", or "loudest of 6" where channels
    cancel (antiphase stereo) or only some carry the voice (a centre channel), so that the mean would be too quiet."""
    channels = samples.shape[1]
    mean = samples.mean(1)
    if channels == 1:
        return mean, ""
    levels = np.square(samples, dtype=np.float64).mean(0)
    if np.square(mean, dtype=np.float64).mean() >= levels.max() * 10 ** (-CANCELLED_DB / 10):
        return mean, f"mean of {channels}"
    return np.ascontiguousarray(samples[:, levels.argmax()]), f"loudest of {channels}"


def load_audio(source: Source, first_sec: float = np.inf) -> tuple[np.ndarray, int]:
    """A file, its bytes, or samples [n] and their rate -> mono float32 [samples] (see `mono`), rate. Raises
    AudioError."""
    samples, rate = decode(source, first_sec=first_sec)
    return mono(samples)[0], rate


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """[samples] at `rate` -> at `new_rate`, band-limited (torchaudio's windowed sinc). Raises AudioError for two rates
    so unlike that the filter would take gigabytes: 44,101 Hz to 24,000 Hz takes 24,000 filters of 44,101 taps."""
    if rate == new_rate:
        return samples
    if rate * new_rate // math.gcd(rate, new_rate) ** 2 > 1e8:
        raise AudioError(f"audio at {rate} Hz, an odd rate; convert it: ffmpeg -i FILE -ar {new_rate} NEW.wav")
    return torchaudio.functional.resample(torch.from_numpy(samples), rate, new_rate).numpy()


def read_audio(source: Path | bytes, rate: int, first_sec: float = np.inf) -> np.ndarray:
    """An audio file, or its bytes, as far as `first_sec` -> mono float32 [samples] at `rate`. Raises AudioError."""
    return resample(*load_audio(source, first_sec), rate)


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
    """[samples] less the silence at both ends but for `head_sec` and `tail_sec`, if `trim`; and where in it speech
    starts and ends. Raises AudioError."""
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


class StreamedWav:
    """A wav that grows: its header says it is as long as can be until it is left, by an error or a signal too, and the
    true length is put in."""

    def __init__(self, path: Path, rate: int):
        self.file = open(path, "wb", buffering=0)  # what a full disk refused is not tried again
        self.rate, self.size = rate, 0
        self._header(2**32 - 1 - 36)

    def _header(self, size: int) -> None:
        self.file.seek(0)
        fields = (b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, self.rate, 2 * self.rate, 2, 16, b"data", size)
        self.file.write(struct.pack("<4sI4s4sIHHIIHH4sI", *fields))

    def write(self, samples: np.ndarray) -> None:
        self.file.seek(44 + self.size)
        # As libsndfile rounds, to the bit.
        data = np.clip(np.floor(samples * 32768), -32768, 32767).astype("<i2").tobytes()
        while data:
            written = self.file.write(data)
            self.size, data = self.size + written, data[written:]

    def __enter__(self) -> "StreamedWav":
        return self

    def __exit__(self, *_) -> None:
        self._header(self.size - self.size % 2)
        self.file.close()


def plot_spectrogram(path: Path, samples: np.ndarray, rate: int) -> None:
    """Of a wav, beside it, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(max(6, min(30, 2 * len(samples) / rate)), 4), layout="constrained")
    with np.errstate(divide="ignore"):  # digital silence has no level
        axis.specgram(samples, NFFT=1024, noverlap=768, Fs=rate, vmin=-140, vmax=-30, cmap="magma")
    axis.set(ylim=(0, 6000), xlabel="seconds", ylabel="Hz", title=path.name)
    with atomic_write(path.with_suffix(".png")) as tmp:
        figure.savefig(tmp, dpi=90)
    plt.close(figure)
