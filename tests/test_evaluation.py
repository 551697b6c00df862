"""generate_sample.py --evaluate: each measure against an independent computation, and the whole with recognisers of the
hub."""

import doctest
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, digest, fails
from hub import Hub, Repository, clartts_lookalike
from scripts import run
from transformers import (
    GenerationConfig,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForXVector,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from pocket_arabic import evaluation
from pocket_arabic import text as arabic
from pocket_arabic.audio import write_wav
from pocket_arabic.cache import Cache
from pocket_arabic.corpus import CLARTTS
from pocket_arabic.evaluation import Sound, distances, error_rates, load_recogniser, mel_cepstra, spread, summarise

RATE = 24000


# --- text -------------------------------------------------------------------------------------------------------------


def test_worked_examples_of_the_docstrings():
    found = doctest.testmod(evaluation)
    assert found.attempted >= 1 and found.failed == 0


@pytest.mark.parametrize(
    ("given", "marked", "bare"),
    [
        ("هَلْ أَنْتَ بِخَيْرٍ؟", "هَل أَنتَ بِخَيرٍ", "هل انت بخير"),
        ("مُحَمَّـــد", arabic.deromanise("muHam~ad"), "محمد"),  # vowel before shadda, tatweel
        ("«إِلَى» الْمَدْرَسَةِ...", "إِلَى المَدرَسَةِ", "الي المدرسه"),
        ("مُؤْمِنٌ شَيْئًا آمَنَ ٱلْآنَ", "مُؤمِنٌ شَيئًا آمَنَ ٱلآنَ", "مومن شييا امن الان"),
        ("ﻻ ﺑﺄﺱ", "لا بأس", "لا باس"),
        ("لَهُ 3", "لَهُ ثَلَاثَةٌ", "له ثلاثه"),
        ("1234567890123", "1234567890123", "1234567890123"),
        ("Hello, World", "hello world", "hello world"),
        ("", "", ""),
    ],
)
def test_scored_text(given, marked, bare):
    assert arabic.scored(given, marks=True) == marked
    assert arabic.scored(given, marks=False) == bare
    assert arabic.scored(marked, marks=True) == marked and arabic.scored(bare, marks=False) == bare


def test_swapped_vowels_are_the_same_letters_with_other_marks():
    cycle = dict(zip("auiFNK", "uiaNKF"))
    for text in TEXTS:
        before, after = (
            arabic.romanise(t) for t in (arabic.normalise(text), arabic.swap_vowels(arabic.normalise(text)))
        )
        assert (
            before != after
            and len(before) == len(after)
            and arabic.normalise(arabic.deromanise(after)) == arabic.deromanise(after)
        )
        for i, (x, y) in enumerate(zip(before, after)):
            long = before[i : i + 2] in ("aA", "aY", "a|", "uw", "iy")
            assert y == (x if long else cycle.get(x, x)), (before, after)
    assert arabic.swap_vowels("كتاب.") == "كتاب."


def levenshtein(a, b) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(new[-1] + 1, row[j] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


def test_error_rates_against_a_distance_of_our_own():
    rng = np.random.default_rng(0)
    for text in TEXTS:
        letters = list(text)
        for place in rng.integers(0, len(letters), 6):
            letters[place] = rng.choice(list("ابتسلم َُِ"))
        heard = "".join(letters)
        found = error_rates(text, heard)
        for name, marks, split in (("cer", False, list), ("wer", False, str.split), ("cer_marks", True, list)):
            reference, other = (split(arabic.scored(t, marks)) for t in (text, heard))
            assert found[name] == pytest.approx(levenshtein(reference, other) / len(reference))
    assert error_rates(TEXTS[0], TEXTS[0]) == {"cer": 0, "wer": 0, "cer_marks": 0}
    # A wrong vowel is heard with marks and not without.
    wrong = error_rates("ذَهَبَ الْوَلَدُ.", "ذَهَبُ الْوَلَدُ.")
    assert wrong["cer"] == 0 and wrong["cer_marks"] == pytest.approx(1 / len(arabic.scored("ذَهَبَ الْوَلَدُ.", True)))
    assert error_rates(TEXTS[0], "")["wer"] == 1  # nothing heard: every word lost


# --- sound ------------------------------------------------------------------------------------------------------------


def voice(pitch: np.ndarray, seed: int = 0) -> np.ndarray:
    """A buzz of the given pitch [samples] in Hz, with a slow change of timbre."""
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    time = np.arange(len(pitch)) / RATE
    tilt = 1.5 + 0.5 * np.sin(2 * np.pi * 1.3 * time + seed)
    return (0.1 * sum(np.sin(k * phase) / k**tilt for k in range(1, 20))).astype(np.float32)


def contour(seconds: float = 2.0) -> np.ndarray:
    time = np.linspace(0, 1, int(seconds * RATE))
    return 120 + 30 * np.sin(2 * np.pi * 2 * time)


def test_a_clip_against_itself():
    sound = Sound.of(voice(contour()), RATE)
    assert distances(sound, sound) == {
        "mcd_db": 0.0,
        "f0_correlation": pytest.approx(1),
        "voicing_error": 0.0,
        "duration_ratio": 1.0,
    }
    assert np.isfinite(sound.pitch).mean() > 0.9
    silence = Sound.of(np.zeros(RATE, np.float32), RATE)
    assert distances(silence, silence)["f0_correlation"] is None
    assert distances(sound, silence)["voicing_error"] > 0.9 and distances(sound, silence)["mcd_db"] > 5


def test_pitch_is_compared_and_loudness_is_not():
    sound, quiet = Sound.of(voice(contour()), RATE), Sound.of(0.5 * voice(contour()), RATE)
    assert distances(sound, quiet)["mcd_db"] < 0.1 and distances(sound, quiet)["f0_correlation"] > 0.99
    higher = distances(sound, Sound.of(voice(1.3 * contour()), RATE))
    assert higher["f0_correlation"] > 0.85 and higher["mcd_db"] > 0.1
    # With the same timbre, and so frame by frame: pitch upside down.
    down = Sound(sound.sec, sound.cepstra, 120**2 / sound.pitch)
    assert (
        distances(sound, down)["f0_correlation"] == pytest.approx(-1) and distances(sound, down)["voicing_error"] == 0
    )
    noise = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    assert distances(sound, Sound.of(0.1 * noise, RATE))["voicing_error"] > 0.7


def test_cepstral_distortion_is_the_difference_in_db():
    """Spectra that differ by d cos(k w) in natural log amplitude are 20 / ln 10 * d / sqrt 2 dB apart, root mean square
    over w."""
    bands = (np.arange(80) + 0.5) / 80 * np.pi
    for k in (1, 7, 13):
        base = np.tile(1e4 * np.exp(2 * 0.3 * np.cos(2 * bands))[:, None], 30)
        other = base * np.exp(2 * 0.2 * np.cos(k * bands))[:, None]
        a, b = (Sound(1.0, mel_cepstra(power), np.full(30, np.nan)) for power in (base, other))
        rms = np.sqrt(np.mean((10 * np.log10(other / base)) ** 2))
        assert rms == pytest.approx(20 / np.log(10) * 0.2 / np.sqrt(2), rel=1e-6)
        assert distances(a, b)["mcd_db"] == pytest.approx(rms, rel=1e-5)


def test_time_warping_against_a_table_of_our_own():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((9, 13)), rng.standard_normal((12, 13))
    cost = np.linalg.norm(a[:, None] - b[None], axis=2)
    total = np.full((10, 13), np.inf)
    total[0, 0] = 0
    for i in range(9):
        for j in range(12):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    sounds = [Sound(1.0, x, np.full(len(x), np.nan)) for x in (a, b)]
    path = evaluation.librosa.sequence.dtw(a.T, b.T)[1]
    assert sum(cost[i, j] for i, j in path) == pytest.approx(total[9, 12])
    assert distances(*sounds)["mcd_db"] == pytest.approx(10 / np.log(10) * np.sqrt(2) * total[9, 12] / len(path))
    # Frames held longer cost nothing.
    slow = Sound(2.0, np.repeat(a, 2, 0), np.full(18, np.nan))
    assert distances(sounds[0], slow)["mcd_db"] == 0 and distances(sounds[0], slow)["duration_ratio"] == 2


# --- figures ----------------------------------------------------------------------------------------------------------


def test_intervals_hold_the_mean_of_what_was_sampled():
    assert spread([None, None]) is None
    assert spread([0.5]) == {"mean": 0.5, "median": 0.5, "low": None, "high": None, "sentences": 1}
    assert spread([0.5, None, 0.5]) == {"mean": 0.5, "median": 0.5, "low": 0.5, "high": 0.5, "sentences": 2}
    rng, inside = np.random.default_rng(0), 0
    for _ in range(100):
        values = rng.normal(0.3, 0.1, 40)
        found = spread(list(values))
        inside += found["low"] <= 0.3 <= found["high"]
        # The textbook interval of a mean: the bootstrap's is some per cent narrower at 40.
        assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.15)
    assert 88 <= inside <= 99


def test_seeds_of_a_sentence_count_as_one():
    record = {
        "mcd_db": 1.0,
        "f0_correlation": None,
        "voicing_error": 0.0,
        "duration_ratio": 1.0,
        "ended": True,
        "retried": 0,
        "took_sec": 1.0,
        "sec": 4.0,
    }
    records = [
        [record | {"mcd_db": 1.0}, record | {"mcd_db": 3.0}],
        [record | {"mcd_db": 4.0, "duration_ratio": 2.0, "ended": False}, record | {"mcd_db": 4.0}],
    ]
    found = summarise(records, [])
    assert found["mcd_db"]["mean"] == 3.0 and found["mcd_db"]["sentences"] == 2
    assert (found["spoken"], found["ends_reached"], found["runaways"], found["real_time_factor"]) == (4, 3, 1, 0.25)
    assert found["f0_correlation"] is None and found["cer"] == "no --asr given"


# --- recognisers and the whole ----------------------------------------------------------------------------------------


def tiny_whisper(folder) -> None:
    """A Whisper with random weights and the files of a real one."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(
        json.dumps({c: i for i, c in enumerate(bytes_to_unicode().values())}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end, *more = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|ar|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    tokenizer = WhisperTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token=end,
        bos_token=end,
        eos_token=end,
        additional_special_tokens=more,
    )
    at = {name: tokenizer.convert_tokens_to_ids(name) for name in (end, *more)}
    ids = {
        "decoder_start_token_id": at["<|startoftranscript|>"],
        "eos_token_id": at[end],
        "pad_token_id": at[end],
        "bos_token_id": at[end],
    }
    size = {
        "d_model": 16,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_mel_bins": 16,
        "max_target_positions": 300,
    }
    for part in ("encoder", "decoder"):
        size |= {f"{part}_layers": 1, f"{part}_attention_heads": 2}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=len(tokenizer), begin_suppress_tokens=None, suppress_tokens=None, **size, **ids)
    )
    tasks = {"transcribe": at["<|transcribe|>"], "translate": at["<|translate|>"]}
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={"<|ar|>": at["<|ar|>"]},
        task_to_id=tasks,
        no_timestamps_token_id=at["<|notimestamps|>"],
        max_length=280,
        **ids,
    )
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer).save_pretrained(folder)


def tiny_speaker_model(folder) -> None:
    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    convolutions = {"conv_dim": (8, 8), "conv_stride": (10, 8), "conv_kernel": (20, 16)}
    WavLMForXVector(
        WavLMConfig(**size, **convolutions, tdnn_dim=(16, 16, 16, 16, 32), xvector_output_dim=16)
    ).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)


PARROT = """
import json, sys
for line in open(sys.argv[1], encoding="utf-8"):
    print(json.dumps({"wav": json.loads(line)["wav"], "hyp": "la tu&aj~ilo Eamala Aloyawomi"}))
print("{}")
"""


@pytest.fixture(scope="module")
def evaluated(finished_run, cache, tmp_path_factory) -> tuple[list, Path, str]:
    """The test split scored by the parrot: the command (a line and its recogniser), its folder, what it printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "parrot.py").write_text(PARROT)
    line = f"generate_sample.py --evaluate --data {cache} --model {finished_run} --seeds 2 --out {folder / 'e'} --asr"
    command = [line, f"parrot=program:{sys.executable} {folder / 'parrot.py'}"]
    result = run(*command)
    assert result.returncode == 0, result.stderr
    return command, folder / "e", result.stdout


def figures(folder: Path) -> dict:
    """evaluation.json, without what a clock has measured."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    for measures in found["summary"].values():
        measures.pop("real_time_factor", None)
    return found


def test_evaluation_of_a_folder_corpus(evaluated):
    _, folder, printed = evaluated
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert (folder / "evaluation.md").read_text(encoding="utf-8") in printed
    assert list(found["summary"]) == ["recording", "codec round trip", "generated, 2 seeds"]
    recording, _, generated = found["summary"].values()
    same = {"mcd_db": 0, "voicing_error": 0, "duration_ratio": 1}
    assert {name: recording[name]["mean"] for name in same} == same
    assert generated["spoken"] == 2 and generated["real_time_factor"] > 0 and generated["mcd_db"]["mean"] > 0
    assert generated["marks_asked"] == 1 and generated["marks_heard"] in (0, 1)
    # The parrot says nearly the same everywhere: its errors can be counted by hand.
    heard, said = (arabic.scored(t, True) for t in (arabic.deromanise("la tu&aj~ilo Eamala Aloyawomi"), TEXTS[7]))
    assert levenshtein(said, heard) < 4 and 0 < recording["cer_marks parrot"]["mean"] < 0.3
    # retries would take 1 and 2
    assert [row["kind"] for row in found["sentences"]] == ["recording", "codec", "seed_0", "seed_3", "swapped_0"]
    assert found["normaliser"].startswith("Always: NFKC") and found["normaliser"] in printed


def test_an_evaluation_continues(evaluated):
    """Again: nothing is spoken twice, and the figures stay; nor after a crash in a line of a log, or without a wav."""
    command, folder, _ = evaluated
    before, found = digest(folder), figures(folder)
    assert run(*command).returncode == 0
    after = digest(folder)
    assert {name for name in before if after[name] != before[name]} <= {"evaluation.json"} and len(after) == len(before)
    with open(folder / "spoken.jsonl", "a") as log:
        log.write('{"kind": "seed_')
    lost = ("seed_0/7.wav", "codec/7.wav")
    for name in lost:
        (folder / name).unlink()
    for _ in range(2):
        assert run(*command).returncode == 0
    assert all(digest(folder)[name] == before[name] for name in lost)
    assert figures(folder)["summary"] == found["summary"]


def test_evaluation_refuses(evaluated):
    (line, parrot), folder, _ = evaluated
    fails(run(line, parrot, "--temperature", 0.1), "another evaluation", "temperature: null -> 0.1", "rm -r")
    fails(run(line, parrot, "--pausal"), "--pausal does not go with --evaluate")
    fails(run(line, parrot, "--asr", parrot), "two of the same name")
    elsewhere = line.replace(f"--out {folder}", "--out /proc/none")
    fails(run(elsewhere, parrot), "--out /proc/none", "may not be written")


def test_evaluation_with_models_of_the_hub(finished_run, tiny_base, tmp_path):
    """ClArTTS's recordings come from the hub again, and no other split's; a Whisper and a speaker model too."""
    clartts_lookalike(tmp_path / "clartts", rows=6, test_rows=2, shards=2)
    tiny_whisper(tmp_path / "hub" / "whisper")
    tiny_speaker_model(tmp_path / "hub" / "speaker")
    repositories = {f"datasets/{CLARTTS}": Repository(tmp_path / "clartts")} | {
        f"models/some/{n}": Repository(tmp_path / "hub" / n) for n in ("whisper", "speaker")
    }
    with Hub(repositories) as hub:
        env = hub.environment(tmp_path / "hf")
        result = run(f"data_prep.py --base {tiny_base} --out {tmp_path / 'data'}", **env)
        assert result.returncode == 0, result.stderr
        hub.served.clear()
        line = f"generate_sample.py --evaluate --data {tmp_path / 'data'} --model {finished_run} --seeds 1"
        line += f" --out {tmp_path / 'e'}"
        result = run(f"{line} --asr some/whisper --speaker-model some/speaker", **env)
        assert result.returncode == 0, result.stderr
        # of the first its footer
        assert any("test" in path for path in hub.served) and "data/train-00001-of-00002.parquet" not in hub.served
        fails(run(f"{line} --asr some/none", **env), "--asr some/none", "transformers cannot load")
        fails(run(f"{line} --speaker-model some/whisper", **env), "--speaker-model some/whisper")
    summary = json.loads((tmp_path / "e" / "evaluation.json").read_text(encoding="utf-8"))["summary"]
    for kind in summary.values():
        assert kind["wer some/whisper"]["mean"] >= 0 and -1 <= kind["similarity"]["mean"] <= 1.0001
    for row in Cache(tmp_path / "data").split("test"):
        recording = evaluation.read_audio(tmp_path / "e" / "recording" / f"{row['id']}.wav", RATE)
        assert len(recording) == pytest.approx(row["duration_sec"] * RATE, abs=24)


def test_a_program_that_fails_or_says_nothing_is_one_line(finished_run, cache, tmp_path):
    line = f"generate_sample.py --evaluate --data {cache} --model {finished_run} --seeds 1 --out {tmp_path / 'e'} --asr"
    (tmp_path / "silent.py").write_text("print('{}')")
    (tmp_path / "null.py").write_text("print('{\"hyp\": null}\\n' * 9)")
    for name in ("silent", "null"):
        fails(run(line, f"program:{sys.executable} {tmp_path / f'{name}.py'}"), 'no line {"hyp": "..."}')
    fails(run(line, "program:no-such-program"), "no-such-program")
    fails(run(line, f"program:{sys.executable} {tmp_path / 'none.py'}"), "none.py")


def test_a_long_clip_is_heard_whole(tmp_path):
    """Whisper takes 30 s at a time; a runaway of 31 must not end an evaluation."""
    tiny_whisper(tmp_path / "whisper")
    write_wav(tmp_path / "long.wav", voice(contour(31.0)), RATE)
    (text,) = load_recogniser(str(tmp_path / "whisper"))([tmp_path / "long.wav"])
    assert isinstance(text, str)
