"""How near speech comes to its text and to the recording: recognisers, error rates, spectra, pitch, voice, intervals.

Error rates are counted by jiwer on `text.scored`; spectra, alignment and pitch are librosa's, bootstrap scipy's.
"""

import argparse
import inspect
import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jiwer
import librosa
import numpy as np
import torch
from pocket_tts import TTSModel
from pocket_tts.models.mimi import MimiModel
from pocket_tts.modules.stateful_module import ModelState
from scipy import stats

from pocket_arabic.audio import AudioError, load_audio, read_audio, resample, speech_bounds, trimmed, write_wav
from pocket_arabic.base import decode_latents
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import sha256
from pocket_arabic.corpus import Columns, open_corpus
from pocket_arabic.rows import EVAL_EPOCH, Utterances
from pocket_arabic.run import (
    UserError,
    append_jsonl,
    atomic_write,
    differences,
    provenance,
    read_json,
    read_jsonl,
    write_json,
)
from pocket_arabic.speech import Request, is_silent, prompt_state, speak_each, speak_texts
from pocket_arabic.text import TextError, deromanise, model_text, scored, swap_vowels

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
        extract = AutoFeatureExtractor.from_pretrained(name)
        model = AutoModelForAudioXVector.from_pretrained(name).eval()
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
        asked = enumerate(zip(self.texts, voices, limits))
        requests = [Request(text, voice, seed, int(limit)) for seed, (text, voice, limit) in asked]
        spoken = list(speak_each(model, requests))
        distortion = [
            aligned(real, cepstra_of(speech_of(s.audio, self.rate), self.rate))[1]
            for real, s in zip(self.cepstra, spoken)
        ]
        ratio = np.array([len(s.audio) for s in spoken]) / (self.frames * self.mimi.frame_size)
        missed = np.array([not s.ended for s in spoken])
        score = np.array(distortion) + 10 * np.abs(np.log10(ratio)) + self.MISSED_DB * missed
        found = {"speech_score": score.mean(), "mcd_db": np.mean(distortion), "duration_ratio": np.median(ratio)}
        counts = {"spoken": len(spoken), "ends": int((~missed).sum())}
        counts["silent"] = sum(is_silent(s.audio, self.rate) for s in spoken)
        return {name: round(float(value), 4) for name, value in found.items()} | counts


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
            # Of two with one id, the one that was kept.
            if utterance.id in wanted and utterance.text == wanted[utterance.id]["text"]:
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


# --- a whole evaluation -----------------------------------------------------------------------------------------------

Key = tuple[str, str]  # kind of speech, id of the sentence
MEASURED_WITH = ("temperature", "guidance", "steps", "eos_threshold", "max_tokens", "retries")  # generate_sample.py's


class Evaluation:
    """The test split of a cache spoken with several seeds, and once with its vowels swapped, measured beside the
    recordings and their codec round trips.

    The folder `args.out` gets KIND/ID.wav, spoken.jsonl, measured.jsonl, heard.jsonl, evaluation.json and
    evaluation.md; what is there already is not done again. Recognisers are loaded first, so that a wrong name costs no
    time. Raises UserError.
    """

    def __init__(self, args: argparse.Namespace, bundle: Path, info: dict, bar: Callable[[list, str], Iterable]):
        """`args`: generate_sample.py's options. `bar(items, unit)`: the items, showing how far they are."""
        self.args, self.info, self.bar, self.voice = args, info, bar, args.voice or bundle / "voice.wav"
        self.cache, self.folder = Cache(args.data), args.out
        self.rows = self.cache.split("test")[: args.sentences]
        self.check_cache()
        self.options = self.begin()
        self.recognisers = {name: load_recogniser(source) for name, source in args.asr}
        self.similarity = load_speaker_model(args.speaker_model, self.voice) if args.speaker_model else None
        # A second attempt takes the next seed, so seeds stand apart by what they may need.
        step = args.retries + 1
        self.seeds = {f"seed_{seed}": seed for seed in range(args.seed, args.seed + args.seeds * step, step)}
        self.swapped = f"swapped_{args.seed}"
        self.texts = {(kind, row["id"]): row["text_model"] for kind in self.seeds for row in self.rows}
        self.texts |= self.swapped_texts()
        kinds = [(kind, row["id"]) for kind in ("recording", "codec") for row in self.rows]
        self.wavs = {key: self.folder / key[0] / f"{key[1]}.wav" for key in (*kinds, *self.texts)}
        for wav in self.wavs.values():
            wav.parent.mkdir(parents=True, exist_ok=True)
        self.spoken = Log(self.folder / "spoken.jsonl", "kind", "id")
        self.measured = Log(self.folder / "measured.jsonl", "kind", "id")
        self.heard = Log(self.folder / "heard.jsonl", "source", "kind", "id")

    def check_cache(self) -> None:
        data, options = self.args.data, self.cache.info["options"]
        if not self.rows:
            raise UserError(f"{data}: no test split; prepare a corpus with more utterances")
        if options["romanized"] and self.args.asr:
            raise UserError(
                f"{data}: its text is romanised, and recognisers write Arabic script; leave --asr out, or prepare the "
                "corpus from Arabic text"
            )
        for key in ("phonemes", "substitute"):
            if options[key] != self.info[key]:
                raise UserError(
                    f"{data}: prepared with {key} {options[key]}, but the bundle reads {key} {self.info[key]}; give "
                    "the cache it was trained on"
                )

    def begin(self) -> dict:
        """Open the folder; the options that its figures depend on. Raises UserError if it holds another evaluation."""
        options = {
            "model_sha256": self.info["sha256"]["model.safetensors"],
            "voice_sha256": sha256(self.voice),
            "manifest_sha256": sha256(self.args.data / "manifest.jsonl"),
        }
        options |= {name: getattr(self.args, name) for name in MEASURED_WITH}
        saved, out = self.folder / "options.json", self.folder
        if saved.exists() and (changed := differences(read_json(saved, f"measure anew: rm -r {out}"), options)):
            raise UserError(
                f"{out} holds another evaluation ({changed}); give another --out, or delete it: rm -r {out}"
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(saved, options)
        except OSError as error:
            raise UserError(f"--out {out}: may not be written ({error.strerror}); name another place") from None
        return options

    def swapped_texts(self) -> dict[Key, str]:
        """The sentences with wrong vowels, where there are vowels to swap."""
        if self.info["phonemes"] or self.cache.info["options"]["romanized"]:
            return {}
        wrong = {row["id"]: swap_vowels(row["text_norm"]) for row in self.rows}
        changed = {row["id"]: wrong[row["id"]] for row in self.rows if wrong[row["id"]] != row["text_norm"]}
        substitutes = self.info["substitute"]
        return {(self.swapped, i): model_text(text, substitutes=substitutes)[1] for i, text in changed.items()}

    def speak(self, model: TTSModel, state: ModelState) -> None:
        """Recordings, round trips, speech."""
        rate, wavs, args = model.sample_rate, self.wavs, self.args
        for row in (row for row in self.rows if not wavs["codec", row["id"]].exists()):
            latents = torch.from_numpy(np.array(self.cache.row_latents(row))).to(model.device)
            write_wav(wavs["codec", row["id"]], decode_latents(model.mimi, latents), rate)
        unread = [row for row in self.rows if not wavs["recording", row["id"]].exists()]
        for identity, samples in recordings(self.cache, unread, rate):
            write_wav(wavs["recording", identity], samples, rate)
        seed_of = {key: self.seeds.get(key[0], args.seed) for key in self.texts}
        missing = [key for key in self.texts if key not in self.spoken or not wavs[key].exists()]
        requests = [Request(self.texts[key], state, seed_of[key]) for key in missing]
        max_tokens, slowest = args.max_tokens or self.info["max_tokens"], self.info["slowest_sec_per_token"]
        results = speak_texts(model, requests, max_tokens, args.retries, slowest, args.batch_size)
        start = time.monotonic()
        for key, (audio, parts) in zip(self.bar(missing, "sentences"), results):
            write_wav(wavs[key], audio, rate)
            # Since the sentence before: in a batch a sentence has no time of its own, but they add up.
            took, start = time.monotonic() - start, time.monotonic()
            row = {"kind": key[0], "id": key[1], "sec": round(len(audio) / rate, 3), "took_sec": round(took, 4)}
            retried = sum(part.seed != seed_of[key] for part in parts)
            self.spoken.add(row | {"ended": all(part.ended for part in parts), "retried": retried})

    def measure(self, rate: int) -> None:
        """Distances from the recordings."""
        for row in self.bar(self.rows, "sentences measured"):
            keys = [key for key in self.wavs if key[1] == row["id"] and key not in self.measured]
            real = self.sound("recording", row["id"], rate) if keys else None
            for kind, identity in keys:
                found = distances(real, self.sound(kind, identity, rate))
                self.measured.add({"kind": kind, "id": identity, **found})

    def sound(self, kind: str, identity: str, rate: int) -> Sound:
        wav = self.wavs[kind, identity]
        try:
            return Sound.of(read_audio(wav, rate), rate)
        except AudioError as error:
            raise UserError(f"{wav}: {error}; delete it, and the same command makes it again") from None

    def judged(self) -> list[Key]:
        """What recognisers and the speaker model hear: all but what says something else."""
        return [key for key in self.wavs if key[0] != self.swapped]

    def listen(self) -> None:
        """What recognisers and the speaker model make of the speech."""
        for (name, source), recognise in zip(self.args.asr, self.recognisers.values()):
            if missing := [key for key in self.judged() if (source, *key) not in self.heard]:
                texts = recognise([self.wavs[key] for key in missing])
                for text, (kind, identity) in zip(texts, self.bar(missing, f"clips heard by {name}")):
                    self.heard.add({"source": source, "kind": kind, "id": identity, "text": text})
        if self.similarity:
            source = self.args.speaker_model
            for key in self.bar([key for key in self.judged() if (source, *key) not in self.heard], "voices"):
                found = self.similarity(self.wavs[key])
                self.heard.add({"source": source, "kind": key[0], "id": key[1], "similarity": found})

    def sentences(self) -> dict[Key, dict]:
        """All that was found of each clip."""
        norm, found = {row["id"]: row["text_norm"] for row in self.rows}, {}
        for key in self.wavs:
            text = norm[key[1]]
            found[key] = {"kind": key[0], "text": text, **self.spoken.get(key, {}), **self.measured[key]}
        for key in self.judged():
            said = {name: self.heard[source, *key]["text"] for name, source in self.args.asr}
            text = norm[key[1]]
            found[key]["asr"] = {name: {"text": heard, **error_rates(text, heard)} for name, heard in said.items()}
            if self.similarity:
                found[key]["similarity"] = self.heard[self.args.speaker_model, *key]["similarity"]
        return found

    def summary(self, found: dict[Key, dict]) -> dict[str, dict]:
        generated = f"generated, {len(self.seeds)} seeds"
        groups = {"recording": ["recording"], "codec round trip": ["codec"], generated: list(self.seeds)}
        summary = {}
        for title, kinds in groups.items():
            each = [[found[kind, row["id"]] for kind in kinds] for row in self.rows]
            summary[title] = summarise(each, list(self.recognisers))
        margins = []
        for identity in (row["id"] for row in self.rows if (self.swapped, row["id"]) in found):
            right = float(np.mean([found[kind, identity]["mcd_db"] for kind in self.seeds]))
            margins.append(found[self.swapped, identity]["mcd_db"] - right)
        if margins:
            heard = sum(bool(margin > 0) for margin in margins)
            summary[generated] |= {"marks_asked": len(margins), "marks_heard": heard}
            summary[generated]["marks_margin_db"] = spread(margins)
        return summary

    def write(self, origin: dict) -> str:
        """evaluation.json and evaluation.md; the latter's text. `origin`: what the figures come from."""
        found = self.sentences()
        summary = self.summary(found)
        normaliser = " ".join(inspect.getdoc(scored).split("\n\n")[1].split())
        versions = {package: version(package) for package in ("transformers", "jiwer", "librosa", "scipy")}
        result = {**origin, "checkpoint": self.info["checkpoint"], **self.options, **provenance(), "versions": versions}
        result |= {"normaliser": normaliser, "summary": summary, "sentences": list(found.values())}
        write_json(self.folder / "evaluation.json", result)
        counted = f"\nErrors are counted on normalised text. {normaliser}\n" if self.recognisers else ""
        with atomic_write(self.folder / "evaluation.md") as tmp:
            tmp.write_text(table(summary) + counted, encoding="utf-8")
        return table(summary) + counted
