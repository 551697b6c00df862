"""data_prep.py as a user runs it: what it writes, from where, what it rejects, and what it survives."""

import io
import json
import os
import random
import resource
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from conftest import TEXTS, digest, fails
from hub import Hub, Repository, clartts_lookalike, random_release
from safetensors.torch import load_file, save_file
from scripts import ROOT, ended, fork, run, start

from data_prep import batches, encode
from pocket_arabic.audio import clipped_share, load_audio, read_audio, speech_bounds
from pocket_arabic.base import build_flow_lm, load_config, load_mimi, load_weights
from pocket_arabic.cache import Cache, CacheWriter
from pocket_arabic.corpus import assign_splits, open_corpus
from pocket_arabic.run import UserError, read_jsonl

CLARTTS = "datasets/MBZUAI/ClArTTS"
RATE = 24000
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # where nobody listens


def folder_corpus(folder: Path, rows: dict[str, tuple[np.ndarray | None, str]], rate: int = RATE) -> Path:
    """name -> (samples, text) as a folder with metadata.csv; all of it train."""
    folder.mkdir(exist_ok=True)
    lines = ["file_name,text,split"]
    for name, (samples, text) in rows.items():
        if samples is not None:
            sf.write(folder / f"{name}.wav", samples, rate)
        lines.append(f'{name}.wav,"{text}",train')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tone(seconds: float, peak: float = 0.3, rate: int = RATE) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return peak * np.sin(2 * np.pi * 211 * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2


# --- what it writes ---------------------------------------------------------------------------------------------------


def test_cache_holds_the_encoded_corpus(cache, corpus, tiny_base):
    data = Cache(cache)
    assert [len(data.split(s)) for s in ("train", "valid", "test")] == [6, 1, 1]
    assert data.rows[0]["text"] == TEXTS[0] and data.rows[0]["text_model"] == "*ahaba Alowaladu <ilaY Als~uwqi."
    config = load_config(str(tiny_base))
    mimi = load_mimi(config, load_weights(config))
    for row in data.rows[:3]:
        samples = read_audio(corpus / f"{row['id']}.wav", RATE)
        start, end = speech_bounds(samples, RATE, 40.0)
        samples = samples[max(0, start - 2400) : end + 14400]
        with torch.no_grad():
            latents = mimi.encode_to_latent(torch.from_numpy(samples)[None, None])[0]
        torch.testing.assert_close(torch.from_numpy(np.array(data.row_latents(row))), latents, rtol=1e-4, atol=1e-5)
        assert row["num_frames"] == -(-len(samples) // 1920) and row["duration_sec"] == pytest.approx(
            len(samples) / RATE, abs=1e-3
        )
    assert sf.info(cache / "voice.wav").samplerate == RATE
    stats = json.loads((cache / "stats.json").read_text())
    assert stats["utterances"] == {"train": 6, "valid": 1, "test": 1} and stats["unknown_pieces"] == []
    np.testing.assert_allclose(stats["latent_std"], np.asarray(data.latents, np.float64).std(0).mean(), atol=1e-4)
    assert (cache / "stats.png").stat().st_size > 10_000


def test_twice_does_nothing_and_changed_options_are_refused(cache, corpus, tiny_base):
    before, line = digest(cache), f"data_prep.py --corpus {corpus} --base {tiny_base} --out {cache}"
    result = run(line)
    assert result.returncode == 0 and "nothing to do" in result.stdout
    fails(run(f"{line} --no-trim"), "trim: true -> false", "--out")
    assert digest(cache) == before


def test_changed_options_are_named(tmp_path):
    CacheWriter(tmp_path / "c", {"trim": True, "limit": None}).begin()
    with pytest.raises(UserError, match="limit: null -> 5"):
        CacheWriter(tmp_path / "c", {"trim": True, "limit": 5})


def test_batched_encoding_equals_single(tiny_base):
    """Padding reaches no frame that is kept: also not through the encoder's attention or the last, half-filled
    frame."""
    config = load_config(str(tiny_base))
    mimi = load_mimi(config, load_weights(config))
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(n).astype(np.float32) * 0.1 for n in (4000, 48000, 30001, 1920, 25000)]
    assert [len(b) for b in batches(clips, 60002)] == [2, 2, 1] and [len(b) for b in batches(clips, 0)] == [1] * 5
    one, many = (encode(mimi.encode_to_latent, clips, 1920, torch.device("cpu"), most) for most in (0, 1e9))
    for a, b, clip in zip(one, many, clips):
        assert a.shape == (-(-len(clip) // 1920), 32)
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_splits_are_whole_chapters_where_there_are_chapters():
    rows = [
        {"id": f"{c}_{i}", "split": "test" if c == "z" else "", "chapter": c}
        for c, n in (("a", 60), ("b", 25), ("c", 22), ("d", 9), ("z", 5))
        for i in range(n)
    ]
    assign_splits(rows)
    assert {r["chapter"] for r in rows if r["split"] == "valid"} == {"c"}  # the smallest with 20
    assert {r["chapter"] for r in rows if r["split"] == "test"} == {"z"}  # the corpus's own
    rows = [{"id": str(i), "split": "", "chapter": ""} for i in range(100)]
    assign_splits(rows)
    assert [sum(r["split"] == s for r in rows) for s in ("train", "valid", "test")] == [97, 1, 2]


# --- what it rejects --------------------------------------------------------------------------------------------------


def test_every_reason_to_reject(corpus, tiny_base, tmp_path):
    clipped = np.clip(3 * tone(2), -0.8, 0.8)
    quiet = tone(2, 0.002)
    rows = {
        "good": (tone(2), "نَعَمْ نَعَمْ."),
        "missing": (None, "نَعَمْ نَعَمْ."),
        "silent": (np.zeros(48000), "نَعَمْ نَعَمْ."),
        "quiet": (quiet, "نَعَمْ نَعَمْ."),
        "clipped": (clipped, "نَعَمْ نَعَمْ."),
        "short": (tone(0.15), "نَعَمْ."),
        "long": (tone(21), "نَعَمْ " * 20),
        "slow": (tone(5), "نَعَمْ نَعَمْ."),
        "fast": (tone(1), "ذَهَبَ الْوَلَدُ إِلَى السُّوقِ وَرَجَعَ إِلَى الْبَيْتِ."),
        "empty": (tone(2), ""),
        "latin": (tone(2), "hello"),
        "orphan": (tone(2), "َنعم"),
        "number": (tone(2), "1" * 40),
        "nan": (np.full(48000, np.nan), "نَعَمْ نَعَمْ."),
    }
    folder = folder_corpus(tmp_path / "corpus", rows)
    sf.write(folder / "nan.wav", np.full(48000, np.nan), RATE, subtype="FLOAT")
    (folder / "broken.wav").write_bytes(b"RIFF no audio here")
    (folder / "cut.flac").write_bytes(b"")
    sf.write(tmp_path / "whole.flac", tone(2), RATE)
    (folder / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:2000])
    with open(folder / "metadata.csv", "a", encoding="utf-8") as f:
        f.write("broken.wav,نَعَمْ نَعَمْ.,train\ncut.flac,نَعَمْ نَعَمْ.,train\n")
    result = run(f"data_prep.py --corpus {folder} --base {tiny_base} --out {tmp_path / 'c'}")
    assert result.returncode == 0, result.stderr
    reasons = {r["id"]: r["reason"] for r in read_jsonl(tmp_path / "c" / "rejects.jsonl")}
    expected = {
        "missing": "audio missing",
        "silent": "audio silent",
        "quiet": "too quiet",
        "clipped": "clipped",
        "short": "too short",
        "long": "too long",
        "slow": "too slowly",
        "fast": "too fast",
        "empty": "no text",
        "latin": "LATIN SMALL LETTER H",
        "orphan": "without a letter",
        "number": "write it in words",
        "nan": "non-finite",
        "broken": "unreadable",
        "cut": "",
    }
    assert reasons.keys() == expected.keys() and all(word in reasons[k] for k, word in expected.items()), reasons
    assert [r["id"] for r in Cache(tmp_path / "c").rows] == ["good"]
    assert sum(json.loads((tmp_path / "c" / "stats.json").read_text())["rejects"].values()) == len(expected)


def test_clipping_is_flat_tops_not_loudness():
    assert clipped_share(tone(1, 0.99)) == 0 and clipped_share(np.clip(2 * tone(1, 0.9), -1, 1)) > 0.05
    assert clipped_share(np.clip(tone(1, 0.4), -0.3, 0.3)) == 0  # a limiter far below full scale is not clipping


@pytest.mark.parametrize("kind", ["missing audio", "unreadable audio", "empty texts"])
def test_corpus_without_a_usable_row_is_refused(kind, tiny_base, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"no audio") if kind == "unreadable audio" else sf.write(
        folder / "a.wav", tone(2), RATE
    )
    name, text = ("b.wav" if kind == "missing audio" else "a.wav"), ("" if kind == "empty texts" else "نَعَمْ نَعَمْ.")
    (folder / "metadata.csv").write_text(f"file_name,text,split\n{name},{text},train\n", encoding="utf-8")
    result = run(f"data_prep.py --corpus {folder} --base {tiny_base} --out {tmp_path / 'c'}")
    fails(result, "none of its 1 utterances")
    assert not (tmp_path / "c").exists()


def test_trim_keeps_head_and_tail(tiny_base, tmp_path):
    samples = np.concatenate([np.zeros(RATE), 0.5 * np.sin(np.arange(RATE) * 0.1), np.zeros(2 * RATE)])
    folder = folder_corpus(tmp_path / "corpus", {"a": (samples, "نَعَمْ نَعَمْ.")})
    assert speech_bounds(read_audio(folder / "a.wav", RATE), RATE, 40.0) == pytest.approx(
        (RATE, 2 * RATE), abs=0.02 * RATE
    )
    assert run(f"data_prep.py --corpus {folder} --base {tiny_base} --out {tmp_path / 'c'}").returncode == 0
    row = Cache(tmp_path / "c").rows[0]
    assert row["duration_sec"] == pytest.approx(0.1 + 1 + 0.6, abs=0.04) and row["speech_end_sec"] == pytest.approx(
        1.1, abs=0.03
    )
    assert row["raw_sec"] == 4 and row["level_db"] > row["raw_level_db"]


# --- folders and texts ------------------------------------------------------------------------------------------------


def test_ljspeech_and_jsonl_folders(tmp_path):
    (tmp_path / "wavs").mkdir()
    sf.write(tmp_path / "wavs" / "LJ-1.flac", tone(1), RATE)
    (tmp_path / "metadata.csv").write_text("LJ-1|1 بَيْتٌ|بَيْتٌ وَاحِدٌ\nLJ-2|نَعَمْ\n", encoding="utf-8")
    rows = [u for shard in open_corpus(str(tmp_path)).open()[0] for u in shard()]
    assert [(u.id, u.audio, u.text, u.split, u.line, u.problem) for u in rows] == [
        ("LJ-1", tmp_path / "wavs" / "LJ-1.flac", "بَيْتٌ وَاحِدٌ", "", 1, ""),
        ("LJ-2", None, "نَعَمْ", "", 2, "audio missing (LJ-2)"),
    ]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "wavs/LJ-1.flac", "text": "نَعَمْ", "speaker": "a", "chapter": "3"}\n', encoding="utf-8"
    )
    (row,) = [u for shard in open_corpus(str(tmp_path)).open()[0] for u in shard()]
    assert (row.id, row.speaker, row.chapter) == ("LJ-1", "a", "3") and load_audio(row.audio)[1] == RATE
    (tmp_path / "metadata.jsonl").write_text('{"file_name": \n', encoding="utf-8")
    with pytest.raises(UserError, match="line 1 is not JSON"):
        open_corpus(str(tmp_path))


def test_romanized_text_is_taken_as_it_is(tiny_base, tmp_path):
    """For a base's own language; what the tokenizer cannot spell is rejected."""
    folder = folder_corpus(tmp_path / "corpus", {"a": (tone(2), "She had  seen it."), "b": (tone(2), "نَعَمْ نَعَمْ.")})
    result = run(f"data_prep.py --corpus {folder} --base {tiny_base} --romanized --out {tmp_path / 'c'}")
    assert result.returncode == 0, result.stderr
    assert [r["text_model"] for r in Cache(tmp_path / "c").rows] == ["She had seen it."]
    assert "cannot spell" in read_jsonl(tmp_path / "c" / "rejects.jsonl")[0]["reason"]


def test_a_symbol_the_tokenizer_does_not_know_needs_a_substitute(tiny_base, tmp_path):
    """The run stops; with a substitute the whole chain reads it, and the bundle's table carries it."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base.parent, base)
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["é"] = vocabulary.pop("{")
    (base / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    folder = folder_corpus(tmp_path / "corpus", {"a": (tone(2), "وَٱشْتَدَّ."), "b": (tone(2), "نَعَمْ نَعَمْ.")})
    line = f"data_prep.py --corpus {folder} --base {base}/base.yaml --out {tmp_path / 'c'}"
    fails(run(line), "does not know {", "--substitute")
    fails(run(f"{line} --substitute {{=b"), "--substitute {=b")
    result = run(f"{line} --substitute {{=é")
    assert result.returncode == 0, result.stderr
    assert Cache(tmp_path / "c").rows[0]["text_model"] == "waé$otad~a."


# --- discrete codes ---------------------------------------------------------------------------------------------------


def test_codes_of_moshi_are_cached_beside_the_latents(tiny_base, tmp_path):
    """Real moshi.models.loaders with random weights; batched or not, the codes are the same."""
    from moshi.models import loaders

    torch.manual_seed(0)
    mimi = loaders.get_mimi(None)
    with torch.no_grad():
        for p in mimi.parameters():
            p.normal_(std=0.05)
        for book in [*mimi.quantizer.rvq_first.vq.layers, *mimi.quantizer.rvq_rest.vq.layers]:
            book._codebook.embedding_sum.normal_()
            book._codebook.cluster_usage.fill_(1.0)
    save_file({k: v.contiguous() for k, v in mimi.state_dict().items()}, tmp_path / "mimi.safetensors")
    folder = folder_corpus(tmp_path / "corpus", {"a": (tone(1.2), "نَعَمْ نَعَمْ."), "b": (tone(2), "نَعَمْ نَعَمْ.")})
    line = f"data_prep.py --corpus {folder} --base {tiny_base} --codes 4 --codes-weights"
    result = run(f"{line} {tmp_path}/mimi.safetensors --out {tmp_path / 'c'}")
    assert result.returncode == 0, result.stderr
    codes, data = np.load(tmp_path / "c" / "codes.npy"), Cache(tmp_path / "c")
    assert (
        codes.dtype == np.uint16
        and codes.shape == (len(data.latents), 4)
        and codes.max() < 2048
        and len(np.unique(codes)) > 1
    )
    mimi = loaders.get_mimi(tmp_path / "mimi.safetensors", num_codebooks=4)
    row = data.rows[0]
    samples = read_audio(folder / "a.wav", RATE)
    start, end = speech_bounds(samples, RATE, 40.0)
    with torch.no_grad():
        expected = mimi.encode(torch.from_numpy(samples[max(0, start - 2400) : end + 14400])[None, None])[0].T
    assert (codes[row["first_frame"] : row["first_frame"] + row["num_frames"]] == expected.numpy()).all()
    result = run(f"{line} {ROOT}/demo/codec.safetensors --out {tmp_path / 'd'}")
    fails(result, "not moshi's Mimi weights")


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lookalike(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clartts")
    clartts_lookalike(folder, rows=60, test_rows=6, shards=3)
    return folder


def test_clartts_from_the_hub(lookalike, tiny_base, tmp_path):
    """The look-alike has ClArTTS's columns and quirks and two bad rows; a break in the middle of a transfer is
    survived."""
    with Hub({CLARTTS: Repository(lookalike)}, broken=2) as hub:
        line = f"data_prep.py --base {tiny_base} --out {tmp_path / 'c'}"
        result = run(line, **hub.environment(tmp_path / "hf"))
        assert result.returncode == 0, result.stderr
        assert hub.broken == 0
        revision = hub.repositories[CLARTTS].sha
    data = Cache(tmp_path / "c")
    assert data.info["options"]["corpus_revision"] == revision and data.info["options"]["corpus"] == "MBZUAI/ClArTTS"
    rejects = {r["id"]: r["reason"] for r in read_jsonl(tmp_path / "c" / "rejects.jsonl")}
    assert rejects.keys() == {"ch_1_arabic_tts_dataset_train3", "ch_1_arabic_tts_dataset_train5"}
    assert len(data.rows) == 64 and len(data.split("test")) == 6
    first = data.rows[0]
    assert (first["id"], first["text"], first["text_norm"], first["chapter"]) == (
        "ch_1_arabic_tts_dataset_train0",
        ".العمر .ينقص",
        "العمر. ينقص.",
        "ch_1",
    )
    assert {r["chapter"] for r in data.split("valid")}.isdisjoint(r["chapter"] for r in data.split("train"))
    # Samples, resampled from 40,100 Hz by us and by the table's own file.
    raw = pq.read_table(lookalike / "data" / "train-00000-of-00003.parquet")["audio"][0].values.to_numpy()
    assert first["raw_sec"] == pytest.approx(len(raw) / 40100, abs=1e-3)
    # Done is done: without a hub too.
    result = run(line, **NOWHERE, HF_HOME=f"{tmp_path / 'hf'}")
    assert result.returncode == 0 and "nothing to do" in result.stdout, result.stderr


def test_any_audio_dataset_of_the_hub(tiny_base, tmp_path):
    """An Audio feature (files as bytes), other column names, other split names; a dead row and an unreadable one."""

    def flac(seconds: float) -> bytes:
        file = io.BytesIO()
        sf.write(file, tone(seconds, rate=16000), 16000, format="FLAC")
        return file.getvalue()

    audio = [{"bytes": flac(2), "path": f"x{i}.flac"} for i in range(4)] + [{"bytes": b"junk", "path": "x4.flac"}, None]
    table = pa.table({"sentence": ["نَعَمْ نَعَمْ."] * 6, "sound": audio, "reader": ["a", "b"] * 3})
    (tmp_path / "hub").mkdir()
    features = {
        "info": {
            "features": {
                "sentence": {"dtype": "string", "_type": "Value"},
                "sound": {"_type": "Audio"},
                "reader": {"dtype": "string", "_type": "Value"},
            }
        }
    }
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "hub" / "validation.parquet"
    )
    with Hub({"datasets/some/set": Repository(tmp_path / "hub")}) as hub:
        line = f"data_prep.py --corpus some/set --base {tiny_base} --out {tmp_path / 'c'}"
        env = hub.environment(tmp_path / "hf")
        fails(run(line, **env), "no column text or audio", "--text-column")
        columns = "--text-column sentence --audio-column sound --speaker-column reader"
        result = run(f"{line} {columns} --split-map validation=train", **env)
        assert result.returncode == 0, result.stderr
    data = Cache(tmp_path / "c")
    assert sorted((r["id"], r["speaker"]) for r in data.rows) == [("x0", "a"), ("x1", "b"), ("x2", "a"), ("x3", "b")]
    assert [r["reason"].split(" (")[0] for r in read_jsonl(tmp_path / "c" / "rejects.jsonl")] == [
        "audio unreadable",
        "audio missing",
    ]


def test_the_hub_says_no(lookalike, tiny_base, tmp_path):
    """A gated corpus, a missing one, a missing revision, a damaged file, no network: one line each, and nothing
    left."""
    damaged = tmp_path / "damaged"
    shutil.copytree(lookalike, damaged)
    file = damaged / "data" / "train-00001-of-00003.parquet"
    content = file.read_bytes()
    # the first page's header; zeros among its numbers would read as numbers
    file.write_bytes(content[:4] + bytes(64) + content[68:])
    line = f"data_prep.py --base {tiny_base} --out {tmp_path / 'c'}"
    repositories = {
        CLARTTS: Repository(lookalike),
        "datasets/a/gated": Repository(lookalike, gated=True),
        "datasets/a/damaged": Repository(damaged),
    }
    with Hub(repositories) as hub:
        env = hub.environment(tmp_path / "hf")
        fails(run(f"{line} --corpus a/gated", **env), "gated", "hf auth login")
        fails(run(f"{line} --corpus a/none", **env), "no such dataset")
        fails(run(f"{line} --revision v9", **env), "no revision v9")
        assert not (tmp_path / "c").exists()
        fails(run(f"{line} --corpus a/damaged", **env), "damaged")
    line = f"data_prep.py --base {tiny_base} --out {tmp_path / 'd'}"
    fails(run(line, **NOWHERE, HF_HOME=f"{tmp_path / 'hf'}"), "does not answer")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """The released English layout, random weights: 438 MB."""
    folder = tmp_path_factory.mktemp("release")
    random_release(folder, build_flow_lm)
    return folder


def release_hub(release: Path, lookalike: Path, gated: bool = False) -> Hub:
    open_weights = release  # the tokenizer is fetched from the repository without voice cloning
    return Hub(
        {
            "models/kyutai/pocket-tts": Repository(release, gated),
            "models/kyutai/pocket-tts-without-voice-cloning": Repository(open_weights),
            CLARTTS: Repository(lookalike),
        }
    )


def test_default_flags_at_the_real_architecture(release, lookalike, tmp_path):
    """`python data_prep.py --limit 40`: ClArTTS and the english base, 109.5M parameters, from an (imitated) hub."""
    with release_hub(release, lookalike) as hub:
        result = ended(start("data_prep.py --limit 40", cwd=tmp_path, env=hub.environment(tmp_path / "hf")))
    assert result.returncode == 0, result.stderr
    data = Cache(tmp_path / "data" / "clartts")
    assert (
        len(data.rows) == 44 and len(data.split("train")) > 20 and data.split("valid") and len(data.split("test")) == 6
    )
    assert data.latents.shape == (sum(r["num_frames"] for r in data.rows), 32) and np.asarray(data.latents).std() > 0
    stats = json.loads((tmp_path / "data" / "clartts" / "stats.json").read_text())
    assert stats["tokenizer_audit"]["*"]["known"] and stats["tokens_per_word"] > 2


def test_gated_and_zero_encoder_bases_print_the_fix(release, lookalike, tmp_path):
    with release_hub(release, lookalike, gated=True) as hub:
        result = run("data_prep.py", cwd=tmp_path, **hub.environment(tmp_path / "hf"))
    fails(result, "gated", "https://huggingface.co/kyutai/pocket-tts", "hf auth login")
    zero = tmp_path / "zero"
    shutil.copytree(release, zero)
    file = zero / "languages" / "english" / "model.safetensors"
    state = load_file(file)
    save_file({k: torch.zeros_like(v) if k.startswith("mimi.encoder.") else v for k, v in state.items()}, file)
    with release_hub(zero, lookalike) as hub:
        result = run("data_prep.py", cwd=tmp_path, **hub.environment(tmp_path / "hf2"))
    fails(result, "encoder is all zeros", "hf auth login")
    assert not (tmp_path / "data").exists()


# --- what it survives -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_the_rest_continues(cache, corpus, tiny_base, tmp_path):
    line = f"data_prep.py --corpus {corpus} --base {tiny_base} --out {tmp_path / 'c'}"
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    fails(ended(start(line, preexec_fn=small)), "cannot write", "continues")
    result = run(line)
    assert result.returncode == 0, result.stderr
    assert digest(tmp_path / "c") == digest(cache)


def test_two_processes_write_the_same_cache(corpus, tiny_base, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = ["file_name,text,speaker"]
    for i in range(100):  # four shards of 32
        shutil.copyfile(corpus / f"{i % 8}.wav", folder / f"{i}.wav")
        lines.append(f'{i}.wav,"{TEXTS[i % 8]}",a')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    line = f"data_prep.py --corpus {folder} --base {tiny_base} --device cpu --out"
    assert run(line, tmp_path / "one").returncode == 0
    result = ended(start(f"-m accelerate.commands.launch --num_processes 2 --cpu {line}", tmp_path / "two"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def peak_memory(process: subprocess.Popen) -> int:
    """KiB of a process that ends well."""
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss


def test_memory_does_not_grow_with_the_corpus(tiny_base, tmp_path):
    """200 rows and 2,000: whole-process peaks."""
    peaks = {}
    for rows, shards in ((200, 4), (2000, 40)):
        clartts_lookalike(tmp_path / f"{rows}", rows, 20, shards)
        with Hub({CLARTTS: Repository(tmp_path / f"{rows}")}) as hub:
            env = hub.environment(tmp_path / f"hf{rows}")
            line = f"data_prep.py --base {tiny_base} --out {tmp_path}/c{rows}"
            peaks[rows] = peak_memory(start(line, env=env, stdout=subprocess.DEVNULL, stderr=None))
    assert peaks[2000] <= 1.5 * peaks[200], peaks
    print(f"peak memory: {peaks[200] / 2**20:.2f} GiB for 200 rows, {peaks[2000] / 2**20:.2f} GiB for 2,000")


def test_kills_change_nothing_of_what_comes_from_the_hub(tiny_base, tmp_path):
    """600 rows in 12 shards, killed with SIGKILL three times at random moments."""
    clartts_lookalike(tmp_path / "rows", 600, 20, shards=12)
    with Hub({CLARTTS: Repository(tmp_path / "rows")}) as hub:
        line, env = f"data_prep.py --base {tiny_base} --out", hub.environment(tmp_path / "hf")
        assert run(line, tmp_path / "whole", **env).returncode == 0
        partial, rng, blocks = tmp_path / "killed" / "partial", random.Random(0), 0
        for _ in range(3):
            process = fork(line, tmp_path / "killed", **env)
            while process.is_alive() and len(list(partial.glob("*.json"))) < blocks + 2:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.5))
            assert process.is_alive(), "finished before it could be killed"
            process.kill()
            process.join()
            blocks = len(list(partial.glob("*.json")))
        assert run(line, tmp_path / "killed", **env).returncode == 0
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
