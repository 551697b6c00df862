"""generate_sample.py as a user runs it, the chunks it speaks, and the bundle in the stock tools."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import TEXTS, digest, fails
from hub import Hub
from pocket_tts import TTSModel
from pocket_tts.models.text_chunking import prepare_text_prompt
from scripts import ROOT, ended, run, start

import generate_sample
from pocket_arabic import speech
from pocket_arabic import text as arabic
from pocket_arabic.base import arabic_config, load_config, load_tokenizer
from pocket_arabic.checkpoint import seal
from pocket_arabic.run import command
from pocket_arabic.speech import EosWatch, Spoken, join, pause_after, speak, split_text


def test_generate_is_reproducible_audio(finished_run, tmp_path):
    """The same from an interpreter of its own, and something else with another seed."""
    line = f"generate_sample.py --text '{TEXTS[0]}' --model {finished_run} --out"
    results = run(line, tmp_path / "a.wav"), ended(start(line, tmp_path / "b.wav"))
    results += (run(line, tmp_path / "c.wav", "--seed", 1),)
    assert all(result.returncode == 0 for result in results), [result.stderr for result in results]
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b != c
    samples, rate = sf.read(tmp_path / "a.wav")
    assert rate == 24000 and len(samples) > 0.4 * rate and np.abs(samples).max() > 0


def test_romanised_text_is_the_same_text(finished_run):
    line = f"generate_sample.py --model {finished_run} --dry-run --text"
    dry = [run(line, *text).stdout for text in ([TEXTS[1]], ["halo >anota bixayorK?", "--romanized"])]
    assert dry[0] == dry[1] and "halo >anota bixayorK?" in dry[0]


# What a user may get wrong, as arguments and words of the line that says so.
TEXT = ["--text", TEXTS[0]]
MISTAKES = {
    "empty text": (["--text", ""], "--text", "empty"),
    "punctuation only": (["--text", "؟!"], "no Arabic letter"),
    "Latin": (["--text", "نَعَمْ okay"], "LATIN SMALL LETTER O", "position 8"),
    "emoji": (["--text", "نَعَمْ 😀"], "GRINNING FACE"),
    "a mark without its letter": (["--text", "ُ نَعَمْ"], "stands without a letter"),
    "13 digits": (["--text", "1234567890123 نَعَمْ"], "12 digits"),
    "no such day": (["--text", "يَوْمَ 30/2/2024"], "no date", "30/2/2024"),
    "digits unread": (["--text", "لَهُ 5", "--no-numbers"], "DIGIT FIVE"),
    "not Buckwalter": (["--text", "h@lo", "--romanized"], "COMMERCIAL AT", "not a Buckwalter symbol"),
    "two spellings": (["--text", "halo", "--romanized", "--diacritize"], "--diacritize", "--romanized"),
    "no text": ([], "no text", "--text-file"),
    "two texts": ([*TEXT, "-"], "more than one text"),
    "no such file": (["--text-file", "none.txt"], "none.txt", "cannot be read"),
    "empty file": (["--text-file", "empty.txt"], "empty.txt", "no text in it"),
    "not UTF-8": (["--text-file", "utf16.txt"], "not UTF-8"),
    "a bad line": (["--text-file", "bad.txt"], "bad.txt, line 3", "LATIN SMALL LETTER O"),
    "steps": ([*TEXT, "--steps", "0"], "--steps", "0"),
    "temperature": ([*TEXT, "--temperature", "-1"], "--temperature", "-1"),
    "no number": ([*TEXT, "--temperature", "nan"], "--temperature", "nan"),
    "large seed": ([*TEXT, "--seed", "100000000000000000000"], "--seed", "1"),
    "max-tokens": ([*TEXT, "--max-tokens", "0"], "--max-tokens", "0"),
    "retries": ([*TEXT, "--retries", "-1"], "--retries", "-1"),
    "seed": ([*TEXT, "--seed", "-1"], "--seed", "-1"),
    "batch size": ([*TEXT, "--batch-size", "0"], "--batch-size", "0"),
    "no voice": ([*TEXT, "--voice", "none.wav"], "--voice none.wav"),
    "voice is no audio": ([*TEXT, "--voice", "bad.txt"], "unreadable", "--voice"),
    "out is a folder": ([*TEXT, "--out", "."], "is a folder"),
    "out is nowhere": ([*TEXT, "--out", "none/x.wav"], "mkdir -p none"),
    "out is no wav": ([*TEXT, "--out", "poems/"], "mkdir -p poems"),
    "streamed folder": (["--text-file", "good.txt", "--out", ".", "--stream"], "--stream"),
    "no model": ([*TEXT, "--model", "none"], "no such folder"),
    "no hub": ([*TEXT, "--model", "owner/none"], "owner/none", "network"),
    "push and speak": ([*TEXT, "--push", "owner/name"], "give no text"),
    "no such name": ([*TEXT, "--model", "owner/na--me"], "owner/na--me"),
    "push nowhere": (["--push", "name"], "OWNER/NAME"),
    "push to no name": (["--push", "owner/na--me"], "owner/na--me"),
}


def refused(monkeypatch, capsys, *args: object) -> str:
    """The script in this process: exit 2 and one line, which is returned."""
    monkeypatch.setattr(sys, "argv", ["generate_sample.py", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        command(generate_sample.main)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_generate_refuses(mistake, finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    Path("bad.txt").write_text(f"{TEXTS[0]}\n\nokay\n", encoding="utf-8")
    Path("good.txt").write_text(TEXTS[0], encoding="utf-8")
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    Path("utf16.txt").write_bytes(b"\xff\xfe")
    before = digest(tmp_path)
    args, *words = MISTAKES[mistake]
    model = [] if "--model" in args else ["--model", finished_run]
    out = [] if "--out" in args else ["--out", "x.wav"]
    line = refused(monkeypatch, capsys, *model, *out, *args)
    assert all(word in line for word in words), line
    assert digest(tmp_path) == before


def test_generate_refuses_from_a_shell(finished_run, tmp_path):
    line = f"generate_sample.py --text 'نَعَمْ okay' --model {finished_run} --out {tmp_path}/x.wav"
    fails(ended(start(line)), "LATIN SMALL LETTER O", "position 8")
    assert not (tmp_path / "x.wav").exists()


# --- the bundle -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run / "bundle", tmp_path / "bundle"))


@pytest.mark.parametrize("name", ["arabic.yaml", "model.safetensors", "voice.wav", "tokenizer.json", "bundle.json"])
def test_a_bundle_that_has_another_file_is_refused(name, bundle, tmp_path, monkeypatch, capsys):
    """One that reads well, but is not what the bundle was made with; damaged ones are test_robust.py's."""
    file = bundle / name
    file.write_bytes(b"{}" if name == "bundle.json" else file.read_bytes() + b"\n")
    line = refused(monkeypatch, capsys, *TEXT, "--model", bundle, "--out", tmp_path / "x.wav")
    assert name in line and ("SHA-256" in line or name == "bundle.json")
    assert not (tmp_path / "x.wav").exists()


WEIGHTS, TOKENIZER = "weights_path: model.safetensors", "tokenizer_path: tokenizer.json"
REACHES = [  # what stands in the config, what somebody puts there, words of the refusal
    (WEIGHTS, "weights_path: ../model.safetensors", "leads out of the bundle"),
    (WEIGHTS, "weights_path: /tmp/model.safetensors", "leads out of the bundle"),
    (WEIGHTS, "weights_path: https://example.org/model.safetensors", "leads out of the bundle"),
    (WEIGHTS, "weights_path: model.pt", "no safetensors file"),
    (WEIGHTS, "weights_path: hf://owner/name/model.bin@main", "no safetensors file"),
    (WEIGHTS, "weights_path: hf://owner/name/other.safetensors", "leads out of the bundle"),
    (WEIGHTS, "loop: &a {weights_path: *a}", "not a Pocket TTS config"),
    (TOKENIZER, "tokenizer_path: ../../secret", "leads out of the bundle"),
    (WEIGHTS, "weights_path: !!python/object/apply:os.system [touch pwned]", "not a Pocket TTS config"),
]


@pytest.mark.parametrize(("old", "new", "words"), REACHES)
def test_a_bundle_cannot_reach_out_or_run_code(old, new, words, bundle, tmp_path, monkeypatch, capsys):
    """Even if its digests are right: whoever changed the one can change the other."""
    monkeypatch.chdir(tmp_path)
    text = (bundle / "arabic.yaml").read_text(encoding="utf-8")
    assert old in text
    (bundle / "arabic.yaml").write_text(text.replace(old, new), encoding="utf-8")
    seal(bundle, {k: v for k, v in json.loads((bundle / "bundle.json").read_text()).items() if k != "sha256"})
    assert words in refused(monkeypatch, capsys, *TEXT, "--model", bundle, "--out", tmp_path / "x.wav")
    assert not (tmp_path / "pwned").exists()


def stock(line: str, *more: object, **options: object) -> None:
    """The wheel's own command speaks. Not its exit status tells: its threads may abort the interpreter on its way out,
    after the wav is written."""
    command = [Path(sys.executable).with_name("pocket-tts"), "generate", *line.split(), *more]
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert "Results written" in result.stderr, result.stderr


def test_push_and_pull_round_trip(finished_run, tmp_path):
    """Through a loopback hub: what arrives is what was sent, byte for byte; it speaks as the local one, and pushed
    again it is the same; the stock command line reads it from its hf:// address."""
    (tmp_path / "uploads").mkdir()
    finished_run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (finished_run / "bundle" / "notes.txt").write_text("the user's own")
    with Hub(uploads=tmp_path / "uploads") as hub:
        env = hub.environment(tmp_path / "hf") | {"HF_TOKEN": "hf_test"}
        result = run(f"generate_sample.py --model {finished_run} --push owner/arabic", **env)
        assert result.returncode == 0, result.stderr
        pushed = tmp_path / "uploads" / "owner" / "arabic"
        first, local = digest(pushed), digest(finished_run / "bundle")
        assert "notes.txt" not in first
        # they tell the address
        assert {k for k in first.keys() & local.keys() if first[k] != local[k]} == {
            "arabic.yaml",
            "README.md",
            "bundle.json",
        }
        here = run(f"generate_sample.py --model {finished_run} --out {tmp_path}/here.wav", *TEXT)
        there = run(f"generate_sample.py --model owner/arabic --out {tmp_path}/there.wav", *TEXT, **env)
        assert here.returncode == there.returncode == 0, here.stderr + there.stderr
        assert (tmp_path / "there.wav").read_bytes() == (tmp_path / "here.wav").read_bytes()
        pulled = next((tmp_path / "hf" / "hub" / "models--owner--arabic" / "snapshots").iterdir())
        assert {k: v for k, v in digest(pulled).items() if k in first} == first
        assert run("generate_sample.py --model owner/arabic --push owner/arabic", **env).returncode == 0
        assert digest(pushed) == first
        address = "--config hf://owner/arabic/arabic.yaml --voice hf://owner/arabic/voice.wav"
        stock(f"{address} --output-path {tmp_path}/stock.wav", *TEXT, env=os.environ | env)
        assert sf.info(tmp_path / "stock.wav").frames > 0
        hub.uploads = None
        refusal = run(f"generate_sample.py --model {finished_run} --push owner/other", **env)
        fails(refusal, "owner/other", "hf auth login")


def test_token_ids_of_stock_tools_are_those_of_training():
    """Arabic script through the wheel's preparation and a bundle's table, against data_prep's text: 1,000 sentences of
    the corpus."""
    config = arabic_config(load_config("demo"))
    tokenizer = load_tokenizer(config)
    with open(ROOT / "demo" / "corpus" / "metadata.csv", encoding="utf-8") as f:
        sentences = [row["text"] for row in csv.DictReader(f)][:1000]
    for sentence in sentences:
        prepared, _ = prepare_text_prompt(
            sentence,
            config.pad_with_spaces_for_short_inputs,
            config.remove_semicolons,
            True,
            config.capitalize_first_letter,
            config.replace_characters,
        )
        assert tokenizer.encode(prepared) == tokenizer.encode(arabic.model_text(sentence)[1])


def test_bundle_speaks_in_the_stock_command_line(finished_run, tmp_path):
    bundle = Path(shutil.copytree(finished_run / "bundle", tmp_path / "bundle"))
    stock("--config arabic.yaml --voice voice.wav --output-path stock.wav", *TEXT, cwd=bundle)
    samples, rate = sf.read(bundle / "stock.wav")
    assert rate == 24000 and np.abs(samples).max() > 0


def test_stock_model_hears_the_same_text_in_arabic_script_and_in_buckwalter(finished_run, tmp_path, monkeypatch):
    """The wheel's own loader on the bundle: both spellings, same seed, same audio, and the audio of
    generate_sample.py."""
    monkeypatch.chdir(finished_run / "bundle")
    # of a random model whose logits are at the bundle's own threshold
    model = TTSModel.load_model(config="arabic.yaml", eos_threshold=99.0)
    model.max_decoder_frames_per_call = 1
    audio = []
    state = model.get_state_for_audio_prompt(Path("voice.wav"))  # draws random numbers too
    for text in (TEXTS[1], "halo >anota bixayorK?"):
        torch.manual_seed(0)
        audio.append(model.generate_audio(state, text, max_tokens=200))
    assert torch.equal(audio[0], audio[1])
    line = f"generate_sample.py --model {finished_run} --out {tmp_path}/a.wav --retries 0 --eos-threshold 99 --text"
    result = run(line, TEXTS[1])
    assert result.returncode == 0, result.stderr
    samples, _ = sf.read(tmp_path / "a.wav", dtype="float32")
    assert 24000 < len(samples) < len(audio[0])  # ours cuts a text short that does not end
    np.testing.assert_allclose(samples, audio[0][: len(samples)].clamp(-1, 1).numpy(), atol=2 / 32768)


def test_the_embedded_bundle_speaks_right_after_installation(tmp_path):
    """Without a run of one's own: whole by its digests, at its end in time, as long as such a sentence takes; all of
    demo/ small."""
    result = run("generate_sample.py --out x.wav --text", TEXTS[3], cwd=tmp_path)
    assert result.returncode == 0 and "end reached" in result.stdout and "demo/bundle" in result.stdout, result.stderr
    samples, rate = sf.read(tmp_path / "x.wav")
    assert 1.5 < len(samples) / rate < 4 and 0.02 < np.sqrt(np.mean(samples**2)) < 0.3
    assert sum(p.stat().st_size for p in (ROOT / "demo").rglob("*") if p.is_file()) < 60e6


# --- long texts -------------------------------------------------------------------------------------------------------


def test_chunks_end_where_sentences_and_clauses_do():
    tokenizer = load_tokenizer(load_config("demo"))  # a token a character, and one for each word's beginning
    text = arabic.model_text(" ".join(TEXTS * 3))[1]
    for limit in (30, 60, 100, 1000):
        chunks = split_text(text, tokenizer, limit)
        assert " ".join(chunks) == text  # nothing lost, no word cut
        assert all(len(tokenizer.encode(c)) <= limit for c in chunks)
    assert all(c[-1] in ".!?" for c in split_text(text, tokenizer, 60))  # every sentence fits: no clause is cut
    assert {c[-1] for c in split_text("qaAla: naEamo, sa>a*ohabu gadFA.", tokenizer, 20)} == {",", "."}
    assert split_text("naEamo. naEamo. naEamo.", tokenizer, 100) == [
        "naEamo. naEamo. naEamo."
    ]  # a lone word is read badly
    assert split_text("kataba " * 20 + "kataba.", tokenizer, 24)[0] == "kataba kataba kataba"
    assert pause_after("naEamo.") > pause_after("naEamo,")


def test_joins_have_their_pause_and_no_click():
    """Speech that breaks off at full level, with background noise: at the join the level goes to nothing smoothly."""
    rate, rng = 24000, np.random.default_rng(0)
    parts = [
        (0.3 * np.sin(np.arange(rate) * 0.05) + 0.002 * rng.standard_normal(rate)).astype(np.float32) for _ in range(3)
    ]
    joined = join(parts, [0.5, 0.2, 0.5], rate)
    assert len(joined) == pytest.approx(3 * rate + 0.7 * rate, abs=0.05 * rate)
    assert np.abs(np.diff(joined)).max() <= max(np.abs(np.diff(p)).max() for p in parts)
    assert np.array_equal(join(parts[:1], [0.5], rate), parts[0])


def test_a_chunk_that_misses_its_end_is_spoken_again(monkeypatch):
    """With the next seed; if none ends, the shortest counts and is reported."""

    class Model:
        sample_rate = 24000

    watch = EosWatch()

    def stream(_model, _state, _chunk, seed, _stop, _frames):
        watch.missed += seed < 7
        yield np.full(1000 - seed, 0.5, np.float32)

    monkeypatch.setattr(speech, "stream", stream)
    Model.flow_lm = SimpleNamespace(conditioner=SimpleNamespace(tokenizer=SimpleNamespace(encode=list)))
    assert (spoken := speak(Model, {}, "naEamo.", 5, watch, 2)).seed == 7 and spoken.ended
    assert (spoken := speak(Model, {}, "naEamo.", 5, watch, 1)).seed == 6 and not spoken.ended
    assert isinstance(spoken, Spoken) and len(spoken.audio) == 994

    def babble(_model, _state, _chunk, seed, _stop, _frames):
        for _ in range(100):
            yield np.full(2400, 0.5 * (seed > 0), np.float32)

    monkeypatch.setattr(speech, "stream", babble)
    # 7 tokens: cut off after 2.05 s; the first attempt is silent
    spoken = speak(Model, {}, "naEamo.", 0, watch, 1, slowest=0.1)
    assert not spoken.ended and spoken.seed == 1 and 2.05 < len(spoken.audio) / 24000 < 2.2


def test_file_folder_stdin_and_stream(finished_run, tmp_path):
    """A wav a line, the same alone as among others; the same lines in one wav; standard input, streamed: the same
    samples as not streamed."""
    (tmp_path / "lines.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n", encoding="utf-8")
    (tmp_path / "out").mkdir()
    line = f"generate_sample.py --model {finished_run} --retries 0 --out"
    lines = f"--text-file {tmp_path}/lines.txt"
    result = run(f"{line} {tmp_path / 'out'} {lines} --plot")
    assert result.returncode == 0 and "first audio after" in result.stdout, result.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"0001.wav", "0002.wav", "0001.png", "0002.png"}
    result = run(f"{line} {tmp_path}/one.wav --text", TEXTS[1])
    (alone, _), (among, _) = (sf.read(tmp_path / name, dtype="int16") for name in ("one.wav", "out/0002.wav"))
    assert len(alone) == len(among) and np.abs(alone.astype(int) - among).max() <= 2
    process = start(
        f"generate_sample.py - --stream --model {finished_run} --out {tmp_path}/s.wav", stdin=subprocess.PIPE
    )
    _, error = process.communicate(TEXTS[1])
    assert process.returncode == 0, error
    (streamed, rate), (whole, _) = (sf.read(tmp_path / name, dtype="int16") for name in ("s.wav", "one.wav"))
    assert rate == 24000 and len(streamed) == len(whole) and np.abs(streamed.astype(int) - whole).max() <= 1
    result = run(f"{line} {tmp_path}/both.wav {lines}")
    one, two, both = (sf.info(tmp_path / name).frames for name in ("out/0001.wav", "out/0002.wav", "both.wav"))
    assert result.returncode == 0 and both > one + two - 24000


def test_neither_the_order_of_a_file_nor_the_size_of_the_batch_changes_a_byte(tmp_path):
    """By the embedded bundle, with the same command twice among them, the second time from an interpreter of its own; a
    line of several chunks is joined as ever."""
    lines = [*TEXTS[:4], " ".join(TEXTS * 2)]
    orders = {"a": ([0, 1, 2, 3, 4], 3), "b": ([4, 2, 0, 3, 1], 2), "c": ([0, 1, 2, 3, 4], 3)}
    for name, (order, size) in orders.items():
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.txt").write_text("\n".join(lines[i] for i in order), encoding="utf-8")
        line = (
            f"generate_sample.py --text-file {tmp_path / name}.txt --model {ROOT}/demo/bundle --out {tmp_path / name}"
        )
        line += f" --batch-size {size}"
        result = ended(start(line)) if name == "c" else run(line)
        assert result.returncode == 0 and "end reached" in result.stdout, result.stderr
    a, b, c = (
        {i: (tmp_path / name / f"{place:04d}.wav").read_bytes() for place, i in enumerate(order, 1)}
        for name, (order, _) in orders.items()
    )
    assert a == b == c
    assert sf.info(tmp_path / "a" / "0005.wav").frames > 16 * 24000


def test_ctrl_c_leaves_finished_wavs_whole_and_nothing_else(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS * 20), encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    process = start(f"generate_sample.py --text-file {tmp_path}/lines.txt --model {ROOT}/demo/bundle --out {out}")
    while not list(out.glob("0005.wav")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    result = ended(process, 60)
    assert result.returncode == 130 and "Traceback" not in result.stderr
    found = sorted(p.name for p in out.iterdir())
    assert found == [f"{n:04d}.wav" for n in range(1, len(found) + 1)] and 5 <= len(found) < 160
    assert all(sf.read(out / name)[0].any() for name in found)
