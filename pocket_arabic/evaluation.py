"""How near speech comes to its text and to the recording: recognisers, error rates, spectra, pitch, voice, intervals.

Error rates are counted by jiwer on `text.scored`; spectra, alignment and pitch are librosa's, bootstrap scipy's.
"""

import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jiwer
import librosa
import numpy as np
import torch
from pocket_tts import TTSModel
from pocket_tts.models.mimi import MimiModel
from scipy import stats

from pocket_arabic.audio import AudioError, load_audio, read_audio, resample, speech_bounds, trimmed
from pocket_arabic.base import decode_latents
from pocket_arabic.cache import Cache
from pocket_arabic.corpus import Columns, open_corpus
from pocket_arabic.rows import EVAL_EPOCH, Utterances
from pocket_arabic.run import UserError, append_jsonl, atomic_write, read_jsonl
from pocket_arabic.speech import Request, prompt_state, speak_batch
from pocket_arabic.text import TextError, deromanise, scored

Recogniser = Callable[[list[Path]], Iterator[str]]  # wav files -> what is heard in each, as it comes

HOP_SEC = 0.01
CEPSTRA = 13
POWER_FLOOR = 1e-4
PITCH_HZ = (60.0, 400.0)
RUNAWAY = 1.5  # times the recording's length


# --- text -------------------------------------------------------------------------------------------------------------


def error_rates(reference: str, heard: str) -> dict[str, float]:
    """Levenshtein distances over the length of the reference, which is Arabic: by characters without marks (`cer`),
    words without marks (`wer`), and characters with marks (`cer_marks`). `heard` may be Buckwalter."""
    heard = in_arabic(heard)
    bare, full = (tuple(scored(text, marks) for text in (reference, heard)) for marks in (False, True))
    return {"cer": jiwer.cer(*bare), "wer": jiwer.wer(*bare), "cer_marks": jiwer.cer(*full)}


def load_recogniser(name: str) -> Recogniser:
    """A recogniser by its name: OWNER/NAME on the hub or a folder, of any kind that transformers' speech recognition
    pipeline takes (Whisper is told that it hears Arabic); or `program:COMMAND`, a program that gets a file of {"wav",
    "text"} lines as its last argument and prints a line {"hyp": what it heard} for each, in Arabic script or
    Buckwalter. Raises UserError."""
    return _program(name.removeprefix("program:")) if name.startswith("program:") else _transformers(name)


def _program(line: str) -> Recogniser:
    def hear(wavs: list[Path]) -> Iterator[str]:
        heard = [printed.get("hyp") for printed in run_program(line, [(wav, "") for wav in wavs])[: len(wavs)]]
        if len(heard) != len(wavs) or not all(isinstance(text, str) for text in heard):
            raise UserError(f'{line}: printed no line {{"hyp": "..."}} for each of {len(wavs)} files')
        yield from heard

    return hear


def run_program(line: str, clips: list[tuple[Path, str]]) -> list[dict]:
    """The lines of JSON that a program prints which gets a file of {"wav", "text"} lines, a clip and what it should
    say, as its last argument: one a clip, then perhaps a summary. Raises UserError."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as listing:
        listing.write(
            "".join(json.dumps({"wav": str(wav), "text": text}, ensure_ascii=False) + "\n" for wav, text in clips)
        )
        listing.flush()
        try:
            out = subprocess.run([*shlex.split(line), listing.name], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or "").strip() or str(error)
            raise UserError(f"{line}: {said.splitlines()[-1]}") from None
    try:
        printed = [json.loads(row) for row in out.split("\n") if row]
        assert all(isinstance(row, dict) for row in printed)
    except (ValueError, AssertionError):
        raise UserError(f"{line}: printed something else than lines of JSON objects") from None
    return printed


def in_arabic(heard: str) -> str:
    """Buckwalter -> Arabic script; anything else stays.

    >>> in_arabic("halo"), in_arabic("هل"), in_arabic("e-mail")
    ('هَلْ', 'هل', 'e-mail')
    """
    try:
        return deromanise(heard)
    except TextError:
        return heard


def _transformers(name: str) -> Recogniser:
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        hear = pipeline("automatic-speech-recognition", model=name, device=0 if torch.cuda.is_available() else -1)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--asr {name}: transformers cannot load it as a recogniser ({str(error).strip().splitlines()[0][:160]}); "
            "check name, network and hf auth login"
        ) from None
    whisper = hear.model.config.model_type == "whisper" and getattr(
        hear.model.generation_config, "is_multilingual", False
    )
    options = {"generate_kwargs": {"language": "ar", "task": "transcribe"}} if whisper else {}
    rate = hear.feature_extractor.sampling_rate

    def transcribe(wavs: list[Path]) -> Iterator[str]:
        for wav in wavs:
            samples = read_audio(wav, rate)
            # Whisper hears 30 s at a time; the pipeline joins what it hears in longer clips.
            long = {"chunk_length_s": 30} if len(samples) > 30 * rate else {}
            yield hear({"raw": samples, "sampling_rate": rate}, **options, **long)["text"]

    return transcribe


# --- sound ------------------------------------------------------------------------------------------------------------


def mel_cepstra(power: np.ndarray) -> np.ndarray:
    """Mel power spectra [bands, frames] of a clip with a root mean square of 1 -> c1 to c13 [frames, 13], so that log
    amplitude is the sum of c_k cos(k w); c0, the loudness, is left out. The floor, some 60 dB below speech, makes
    silences alike."""
    cosines = librosa.feature.mfcc(S=np.log(power + POWER_FLOOR) / 2, n_mfcc=CEPSTRA + 1, norm="ortho")
    return cosines[1:].T * np.sqrt(2 / len(power))


def speech_of(samples: np.ndarray, rate: int) -> np.ndarray:
    """The part between its silences, or all of a clip that is silent, with a root mean square of 1: `mel_cepstra` has
    an absolute floor."""
    try:
        start, end = speech_bounds(samples, rate, 40.0)
    except AudioError:
        start, end = 0, len(samples)
    speech = samples[start:end].astype(np.float32)
    return speech / (np.sqrt(np.mean(speech**2)) + 1e-9)


def cepstra_of(speech: np.ndarray, rate: int) -> np.ndarray:
    """A `speech_of` -> its timbre [frames, 13], a frame each 10 ms."""
    power = librosa.feature.melspectrogram(y=speech, sr=rate, n_fft=1024, hop_length=int(HOP_SEC * rate), n_mels=80)
    return mel_cepstra(power)


def aligned(real: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
    """Cepstra [frames, 13] of one text spoken twice -> the pairs of frames [steps, 2] of dynamic time warping, and
    their distortion in dB (Kubichek 1993; of mel bands: compare it within this project)."""
    path = librosa.sequence.dtw(real.T, other.T)[1]
    steps = np.linalg.norm(real[path[:, 0]] - other[path[:, 1]], axis=1)
    return path, float(10 / np.log(10) * np.sqrt(2) * steps.mean())


@dataclass
class Sound:
    """What is compared of a clip: its length, and of the part between its silences, a frame each 10 ms, timbre and
    pitch."""

    sec: float
    cepstra: np.ndarray  # [frames, 13]
    pitch: np.ndarray  # [frames] Hz, NaN where unvoiced

    @classmethod
    def of(cls, samples: np.ndarray, rate: int) -> "Sound":
        speech, hop = speech_of(samples, rate), int(HOP_SEC * rate)
        # A fifth of a semitone is fine enough, and halves the time.
        pitch = librosa.pyin(
            speech, fmin=PITCH_HZ[0], fmax=PITCH_HZ[1], sr=rate, hop_length=hop, frame_length=2048, resolution=0.2
        )[0]
        return cls(len(samples) / rate, cepstra_of(speech, rate), pitch)


def distances(real: Sound, other: Sound) -> dict[str, float | None]:
    """How another clip of the same text differs from the recording, frames paired by dynamic time warping of their
    cepstra.

    `mcd_db`: mel-cepstral distortion. `f0_correlation`: of log pitch where both are voiced, None if they hardly are.
    `voicing_error`: share of pairs only one of which is voiced. `duration_ratio`: the whole clips'.
    """
    path, mcd_db = aligned(real.cepstra, other.cepstra)
    pitch = np.log([real.pitch[path[:, 0]], other.pitch[path[:, 1]]])
    voiced = np.isfinite(pitch)
    both = pitch[:, voiced.all(0)]
    known = both.shape[1] > 10 and (both.std(1) > 1e-6).all()
    return {
        "mcd_db": mcd_db,
        "f0_correlation": float(np.corrcoef(both)[0, 1]) if known else None,
        "voicing_error": float((voiced[0] != voiced[1]).mean()),
        "duration_ratio": other.sec / real.sec,
    }


def load_speaker_model(name: str, voice: Path) -> Callable[[Path], float]:
    """An x-vector model of the hub (microsoft/wavlm-base-plus-sv) -> wav file -> cosine of its voice and that of
    `voice`. Raises UserError."""
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

    try:
        extract, model = (
            AutoFeatureExtractor.from_pretrained(name),
            AutoModelForAudioXVector.from_pretrained(name).eval(),
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--speaker-model {name}: transformers cannot load it ({str(error).strip().splitlines()[0][:160]}); check "
            "name, network and hf auth login"
        ) from None

    @torch.no_grad()
    def embed(wav: Path) -> np.ndarray:
        inputs = extract(
            read_audio(wav, extract.sampling_rate), sampling_rate=extract.sampling_rate, return_tensors="pt"
        )
        vector = model(**inputs).embeddings[0].double().numpy()
        return vector / np.linalg.norm(vector)

    prompt = embed(voice)
    return lambda wav: float(embed(wav) @ prompt)


# --- a checkpoint, by what it says
# --------------------------------------------------------------------------------------


class Judge:
    """Scores a model by what it says: some held-out sentences, spoken freely with prompts of their speakers and always
    the same noise, beside their recordings, as the codec gives these back from the cache. No recogniser is needed, nor
    the corpus."""

    MISSED_DB = 10.0  # for a sentence that runs on over `RUNAWAY` times its recording, where it is cut off

    def __init__(self, valid: Utterances, mimi: MimiModel, number: int):
        self.mimi, self.rate = mimi, mimi.sample_rate
        rows = np.unique(np.linspace(0, len(valid) - 1, min(number, len(valid))).astype(int))
        epoch = valid.epoch(EVAL_EPOCH)
        self.texts, self.frames = [valid.texts[row] for row in rows], valid.frames[rows]
        device = next(mimi.parameters()).device
        prompts = zip(epoch.prompt_first[rows], epoch.prompt_frames[rows])
        self.prompts = [valid.latents.slice(first, count).to(device) for first, count in prompts]
        latents = [valid.latents.slice(first, count).to(device) for first, count in zip(valid.first[rows], self.frames)]
        self.cepstra = [cepstra_of(speech_of(decode_latents(mimi, x), self.rate), self.rate) for x in latents]

    def score(self, model: TTSModel) -> dict[str, float]:
        """`speech_score`, in dB, lower is better: the mean over sentences of their mel-cepstral distortion, 10 |log10|
        of their lengths' ratio, and `MISSED_DB` if they miss their end; and its parts."""
        limits = (self.frames * RUNAWAY).astype(int)
        voices = (prompt_state(model, prompt) for prompt in self.prompts)
        spoken = speak_batch(
            model,
            [
                Request(text, voice, seed, int(limit))
                for seed, (text, voice, limit) in enumerate(zip(self.texts, voices, limits))
            ],
        )
        distortion = [
            aligned(real, cepstra_of(speech_of(s.audio, self.rate), self.rate))[1]
            for real, s in zip(self.cepstra, spoken)
        ]
        ratio = np.array([len(s.audio) for s in spoken]) / (self.frames * self.mimi.frame_size)
        missed = np.array([not s.ended for s in spoken])
        score = np.array(distortion) + 10 * np.abs(np.log10(ratio)) + self.MISSED_DB * missed
        found = {"speech_score": score.mean(), "mcd_db": np.mean(distortion), "duration_ratio": np.median(ratio)}
        return {name: round(float(value), 4) for name, value in found.items()} | {
            "spoken": len(spoken),
            "ends": int((~missed).sum()),
        }


# --- the recordings ---------------------------------------------------------------------------------------------------


def recordings(cache: Cache, rows: list[dict], rate: int) -> Iterator[tuple[str, np.ndarray]]:
    """The corpus's own audio of some rows of a cache, as data_prep resampled and trimmed it: (id, [samples]), in any
    order. Reads the files, or the corpus on the hub again, as far as it must. Raises UserError."""
    options, wanted = cache.info["options"], {row["id"]: row for row in rows}
    again = "prepare the corpus again (data_prep.py) where its audio is"
    for row in rows:
        if "source" in row:
            try:
                yield row["id"], trimmed(read_audio(Path(row["source"]), rate), rate, options)[0]
            except AudioError as error:
                raise UserError(
                    f"{row['source']}: {error}, the recording of a {row['split']} utterance; {again}"
                ) from None
            del wanted[row["id"]]
    if not wanted:
        return
    columns = Columns(
        options["text_column"], options["audio_column"], options["speaker_column"], splits=options["split_map"]
    )
    split = next(iter(wanted.values()))["split"]
    for shard in open_corpus(
        options["corpus"], options["limit"], columns, options["corpus_revision"], first=split
    ).open()[0]:
        for utterance in shard():
            if (
                utterance.id in wanted and utterance.text == wanted[utterance.id]["text"]
            ):  # of two with one id, the one that was kept
                yield utterance.id, trimmed(resample(*load_audio(utterance.audio), rate), rate, options)[0]
                del wanted[utterance.id]
            if not wanted:
                return
    raise UserError(f"{options['corpus']} has no {next(iter(wanted))} any more, which {cache.folder} holds; {again}")


# --- records ----------------------------------------------------------------------------------------------------------


class Log(dict):
    """JSON lines by some of their keys, added to one at a time; a last line cut short by a crash is dropped."""

    def __init__(self, path: Path, *keys: str):
        self.path, self.keys_of = path, keys
        rows = read_jsonl(path)
        super().__init__((tuple(row[k] for k in keys), row) for row in rows)
        with atomic_write(path) as tmp:
            tmp.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def add(self, row: dict) -> None:
        append_jsonl(self.path, row)
        self[tuple(row[k] for k in self.keys_of)] = row


# --- figures ----------------------------------------------------------------------------------------------------------


def spread(values: list[float | None]) -> dict | None:
    """Mean, median and the 95 % bootstrap interval of the mean, over sentences; a None counts as missing, and a single
    one has no interval."""
    found = np.array([v for v in values if v is not None], float)
    if not len(found):
        return None
    low = high = float(found.mean()) if len(found) > 1 else None
    if np.ptp(found) > 0:
        low, high = stats.bootstrap(
            (found,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = float(low), float(high)
    return {
        "mean": float(found.mean()),
        "median": float(np.median(found)),
        "low": low,
        "high": high,
        "sentences": len(found),
    }


def summarise(sentences: list[list[dict]], recognisers: list[str]) -> dict:
    """Per sentence its records, one a seed -> the measures of a kind of speech. A sentence counts with its mean over
    seeds, because seeds of one sentence are no independent evidence; runaways, ends and errors above 1 are counted one
    by one."""

    def over(measure: str, name: str | None = None) -> dict | None:
        each = [[(record["asr"][name] if name else record)[measure] for record in records] for records in sentences]
        each = [[v for v in values if v is not None] for values in each]
        return spread([float(np.mean(values)) if values else None for values in each])

    every = [record for records in sentences for record in records]
    found: dict = {}
    for name in recognisers:
        found |= {f"{rate} {name}": over(rate, name) for rate in ("cer", "wer", "cer_marks")}
        found[f"cer above 1 {name}"] = sum(r["asr"][name]["cer"] > 1 for r in every)
    if not recognisers:
        found["cer"] = "no --asr given"
    found |= {measure: over(measure) for measure in ("mcd_db", "f0_correlation", "voicing_error", "duration_ratio")}
    found["similarity"] = over("similarity") if "similarity" in every[0] else "no --speaker-model given"
    if "ended" in every[0]:
        found |= {
            "spoken": len(every),
            "ends_reached": sum(r["ended"] for r in every),
            "retried": sum(r["retried"] > 0 for r in every),
        }
        found["runaways"] = sum(r["duration_ratio"] > RUNAWAY for r in every)
        found["real_time_factor"] = sum(r["took_sec"] for r in every) / sum(r["sec"] for r in every)
    return found


def table(summary: dict[str, dict]) -> str:
    """`evaluation.json`'s summary as a Markdown table: a row a measure, a column a kind of speech."""
    kinds = list(summary)
    lines = [f"| measure | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for measure in dict.fromkeys(m for values in summary.values() for m in values):
        cells = []
        for kind in kinds:
            value = summary[kind].get(measure)
            if isinstance(value, dict):
                between = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
                value = f"{value['mean']:.3f}{between}, median {value['median']:.3f}"
            elif isinstance(value, float):
                value = f"{value:.3f}"
            cells.append("" if value is None else str(value))
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
