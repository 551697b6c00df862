"""README, report and samples say what the committed files say: every figure, every command, every link."""

import csv
import html.parser
import importlib
import json
import re
import shlex
import statistics
import sys
from contextlib import suppress

import pytest
import soundfile as sf
import typer.main
from conftest import ROOT, run

from pocket_arabic.checkpoint import sha256
from pocket_arabic.run import UserError, read_jsonl

SAMPLES = ROOT / "samples"
DOCUMENTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "exploration_report.md", "samples/README.md")
}
REPORT, README = DOCUMENTS["exploration_report.md"], DOCUMENTS["README.md"]


# --- commands ---------------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """The lines of every indented block of every document, continued ones joined, comments off."""
    found = []
    for text in DOCUMENTS.values():
        for block in re.findall(r"(?:^ {4,}\S.*\n)+", text, re.M):
            found += re.sub(r"\\\n", " ", block).splitlines()
    return [line.strip() for line in found if line.strip()]


def check_python(words: list[str]) -> None:
    """A script of ours takes these arguments: its own parser says so, or, for those of demo/ and measure/, their names
    stand in it."""
    script, *args = words
    assert (ROOT / script).is_file(), script
    if "/" in script:
        lent = {"measure": "measure/harness.py", "demo/train_base.py": "train.py"}  # whose flags they take, too
        files = [script, *(lent[s] for s in (script, script.split("/")[0]) if s in lent)]
        source = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
        for flag in (a for a in args if a.startswith("--")):
            assert (
                f'"{flag}"' in source
                or f'"--{flag.removeprefix("--no-")}", action=argparse.BooleanOptionalAction' in source
            ), flag
        return
    with suppress(UserError):  # it names a file or folder that is not there now
        importlib.import_module(script.removesuffix(".py")).parse_args()


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_exist_and_take_their_arguments(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    for part in re.split(r" \| | && ", line):
        words = shlex.split(part, comments=True)
        if words[:2] == ["accelerate", "launch"]:
            words = ["python", *words[next(i for i, w in enumerate(words) if w.endswith(".py")) :]]
        if words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            check_python(words[1:])
        elif words[0] == "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all(re.search(f"^{w}:", makefile, re.M) for w in words[1:] if "=" not in w), words
        elif words[0] == "pytest":
            assert all((ROOT / w).is_file() for w in words if w.startswith("tests/")), words
        elif words[0] == "pocket-tts":
            command = typer.main.get_command(importlib.import_module("pocket_tts.main").cli_app).commands[words[1]]
            known = {option for param in command.params for option in param.opts}
            assert {w for w in words[2:] if w.startswith("--")} <= known, words
        else:
            assert words[0] in ("cd", "cmp", "cp", "echo", "hf", "source", "git", "apt-get") or is_listing(line), line


def is_listing(line: str) -> bool:
    """'train.py   cache + base -> run': a table of what lies where, or a formula, not a command."""
    name = line.split()[0]
    return (ROOT / name).exists() or name in ("data/NAME/", "runs/NAME/")


# --- links and samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#\s]+)\)", DOCUMENTS[name]):
        if "://" not in target:
            assert ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("name, most", [("README.md", 110), ("CONTRIBUTING.md", 60)])
def test_the_first_hour_has_short_documents(name, most):
    """They grew to 197 lines, 205 columns wide: what is rarer belongs to --help and to the report."""
    lines = DOCUMENTS[name].splitlines()
    assert len(lines) <= most and not [line for line in lines if len(line) > 100]


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_samples_are_what_their_index_says():
    entries = json.loads((SAMPLES / "index.json").read_text(encoding="utf-8"))
    page = Page()
    page.feed((SAMPLES / "index.html").read_text(encoding="utf-8"))
    assert {e["file"] for e in entries} == {p.name for p in SAMPLES.glob("*.wav")}
    assert [a["src"] for tag, a in page.found if tag == "audio"] == [e["file"] for e in entries]
    for tag, attrs in page.found:
        if tag in ("audio", "img"):
            assert (SAMPLES / attrs["src"]).is_file(), attrs
    assert (
        sum(a.get("dir") == "rtl" for _, a in page.found)
        == sum(any("\u0600" <= c <= "\u06ff" for c in e["text"]) for e in entries)
        > 5
    )
    for entry in entries:
        samples, rate = sf.read(SAMPLES / entry["file"])
        assert rate == 24000 and len(samples) > rate, entry["file"]
        if (entry["model"] or "").startswith("demo/"):  # the others are runs, made anew, or a recording
            weights = ROOT / entry["model"]
            weights = weights / "model.safetensors" if weights.is_dir() else weights
            assert sha256(weights) == entry["model_sha256"], entry["file"]
    with open(ROOT / "demo" / "corpus" / "metadata.csv", encoding="utf-8") as f:
        texts = {row["text"] for row in csv.DictReader(f)}
    assert all(e["text"] in texts for e in entries if e["file"] != "english.wav")


def test_the_bundle_still_says_its_sample(tmp_path):
    """The command of a sample makes it again, to the rounding of another processor."""
    entry = next(
        e for e in json.loads((SAMPLES / "index.json").read_text(encoding="utf-8")) if e["file"] == "bundle.wav"
    )
    words = shlex.split(entry["command"])
    words[words.index("--out") + 1] = str(tmp_path / "bundle.wav")
    assert run(words[1], *words[2:], cwd=ROOT).returncode == 0
    made, kept = (sf.read(p)[0] for p in (tmp_path / "bundle.wav", SAMPLES / "bundle.wav"))
    assert abs(len(made) - len(kept)) <= 2 * 1920


# --- figures ----------------------------------------------------------------------------------------------------------


def read(name: str) -> dict:
    return json.loads((SAMPLES / name).read_text(encoding="utf-8"))


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def errors(scores: dict) -> str:
    """Cells of a recogniser's summary: clips, mean and median without marks, mean with marks, above 1."""
    return (
        f"{scores['clips']} | {scores['cer_no_marks_mean']:.3f} | {scores['cer_no_marks_median']:.3f} | "
        f"{scores['cer_mean']:.3f} | {scores['above_1']}"
    )


def codec_claims():
    scores = read("heldout.json")["scores"]
    for kind, title in {"original": "original clips (floor)", "codec": "codec round trip"}.items():
        yield f"| {title} | {errors(scores[kind])} |"
    for part in ("0.1", "0.3"):
        yield f"| round trip, latent noise of {part} deviations | {errors(scores[f'codec_noise_{part}'])} |"
    mean = {kind: s["cer_no_marks_mean"] for kind, s in scores.items()}
    yield (
        f"costs {mean['codec'] - mean['original']:.3f} over the originals, and noise of 0.1 deviations "
        f"{mean['codec_noise_0.1'] - mean['codec']:.3f} more"
    )


def audit_claims():
    found = read("audit.json")
    for base, title in {"demo": "nano base", "random": "released layout"}.items():
        a = found[base]
        lm, mimi, t = a["parameters"]["flow_lm"], a["parameters"]["mimi"], a["transformer"]
        encoder, decoder = (
            sum(mimi[part] for part in parts.split())
            for parts in ("encoder encoder_transformer downsample", "decoder decoder_transformer upsample quantizer")
        )
        sizes = [f"{n / 1e6:.2f}M" for n in (lm["transformer"], lm["flow_net"], lm["conditioner"], encoder, decoder)]
        yield row(
            title,
            str(a["tensors"]),
            f"{a['parameters']['together'] / 1e6:.1f}M",
            f"{t['layers']} of {t['width']}, {t['heads']} heads",
            *sizes,
        )
        yield f"| {title} | {a['stock_times_real_time']:.1f} times real time |"
        assert t["causal"] and not a["tokenizer"]["symbols_unknown"] and a["codec"]["latents_of_a_second"] == [13, 32]
        assert a["stock_text"] == {"stock": "SalaAmN Ealayokumo.", "ours": "salaAmN Ealayokumo."}


def english_claims():
    found = read("english.json")
    for kind, title in {
        "original": "espeak-ng originals (floor)",
        "codec": "codec round trip",
        "generated": "spoken by the base",
    }.items():
        s = found["scores"][kind]
        yield (
            f"| {title} | {s['wer_mean']:.3f} | {s['wer_median']:.3f} | {s['cer_mean']:.3f} | "
            f"{s['cer_median']:.3f} | {s['above_1']} |"
        )
    yield (
        f"ends reached on {found['eos_reached']} of {found['sentences']}, durations within 0.7 to 1.4 on "
        f"{found['duration_ratio_0.7_to_1.4']}"
    )
    scores = {
        r["step"]: r["valid_flow_error"]
        for r in read_jsonl(ROOT / "demo" / "base_progress.jsonl")
        if r["kind"] == "eval"
    }
    best = min(scores, key=scores.get)
    yield (
        f"Held-out flow error {scores[0]:.2f} -> {scores[best]:.2f} at step {best:,}, then up again to "
        f"{scores[max(scores)]:.2f}"
    )


def demo_claims():
    scores = {r["step"]: r["valid_flow_error"] for r in read_jsonl(SAMPLES / "progress.jsonl") if r["kind"] == "eval"}
    yield (
        f"{scores[0]:.2f} for the base before its first Arabic step, {scores[250]:.2f} at step 250, "
        f"{scores[500]:.2f} at step 500, then {scores[900]:.2f} at step 900"
    )
    scores = {
        r["step"]: r["valid_flow_error"]
        for r in read_jsonl(ROOT / "demo" / "bundle_progress.jsonl")
        if r["kind"] == "eval"
    }
    best = min(scores, key=scores.get)
    yield f"held-out flow error {scores[0]:.2f} -> {scores[best]:.2f} at step {best:,}"
    scores = {r["step"]: r["valid_flow_error"] for r in read_jsonl(SAMPLES / "subset.jsonl") if r["kind"] == "eval"}
    yield f"flow error {scores[0]:.2f} -> {scores[300]:.2f}"


def bench_claims():
    found = read("bench.json")
    real, nano = found["real size"], found["nano size"]
    for way in ("full", "last:2", "lora:8", "text", "full, on the fly", "full, shuffled"):
        cells = [f"{r['trainable']:,} | {r['step_sec']:.2f} | {r['speed_to_full']:.2f}" for r in (real[way], nano[way])]
        yield f"| {way} | {cells[0]} | {real[way]['memory_gib']:.2f} | {cells[1]} |"
    yield (
        f"({1 / real['full, on the fly']['speed_to_full']:.2f}) and "
        f"{1 / nano['full, on the fly']['speed_to_full']:.1f} times at nano size"
    )
    random = [1 / sizes["full, shuffled"]["speed_to_full"] for sizes in (real, nano)]
    padding = [percent(real[way]["padding"]) for way in ("full, shuffled", "full")]
    yield (
        f"{random[0]:.1f} and {random[1]:.1f} times as fast ({padding[0]} of positions were padding, {padding[1]} with)"
    )
    data = found["data"]
    yield (
        f"at {data['data_prep_to_bare_encoder']:.2f} times the bare encoder's speed "
        f"({data['real_time_factor']['data_prep']:.1f} times real time)"
    )
    nano, real = (found["speaking"][f"{size} size"] for size in ("nano", "real"))
    for title, way in (("one by one", "one by one"), ("8", "batch of 8"), ("16", "batch of 16"), ("64", "batch of 64")):
        cells = [
            f"{s['seconds_a_second'][way]:.4f} | {s['to_one_by_one'][way]:.2f}"
            for s in (nano, real)
            if way in s["to_one_by_one"]
        ]
        yield f"| {title} | {' | '.join(cells)} |" if len(cells) == 2 else f"| {title} | {cells[0]} | | |"
    yield f"Batches of eight are slower than clips one at a time here ({data['batches_of_8_to_one_by_one']:.2f})"


def gpu_claims():
    found = read("bench_gpu.json")
    training, speaking = found["training"], {m["what"]: m for m in found["speaking"]["measurements"]}
    beside = {r["way"]: r for r in training["beside"]["printed"]}
    for name, way in (("launched operation by operation", "launched"), ("replayed as CUDA graphs", "graphs")):
        yield f"| train.py, {name} | {training[way]['steps_per_sec']:.2f} | {training[way]['step_sec_median']:.4f} |"
    for name, way in (("launched", "plain"), ("graphs", "graphs")):
        yield (
            f"| the same work in an independent loop, {name} | {beside[way]['steps_a_s']:.2f} | "
            f"{beside[way]['s_a_step']:.4f} |"
        )
    yield f"it was busy for {beside['graphs']['gpu_busy_s']} of the independent loop's {beside['graphs']['s_a_step']} s"
    assert training["launched"]["losses"]["40"] == training["graphs"]["losses"]["40"]
    yield f"Held-out evaluation takes {training['graphs']['evaluation_sec']} s"
    yield f"kept {training['graphs']['reserved_gib']:.1f} GiB"
    batch, stock = speaking["batch with decoding, second round"], speaking["the wheel's own loop, one by one"]
    yield (
        f"{batch['utterances']} utterances like ClArTTS's test split ({batch['audio_sec']:,.0f} s) take "
        f"{batch['seconds']:.2f} s with decoding"
    )
    yield (
        f"{batch['times_real_time']:.0f} times real time; the wheel's own loop makes "
        f"{stock['times_real_time']:.1f} there"
    )
    yield f"differ by at most {max(speaking['alone and in the batch']['largest_differences']):.1e}".replace(
        "e-06", "e-6"
    )


def text_claims():
    found = read("diacritizers.json")
    for name, title in (
        ("arabic-diacritizer 1.0.0", "BiLSTM on PyTorch, MIT, 47 MB"),
        ("dengjen-tashkeel-py 3.0.2", "ONNX, MIT or Apache, 5 MB"),
    ):
        s = found[name]
        yield (
            f"| {name} ({title}) | {percent(s['wrong'], 1)} | {percent(s['of_these_at_word_ends'])} | {s['sec']:.1f} |"
        )
    coverage = json.loads((ROOT / "demo" / "corpus" / "coverage.json").read_text(encoding="utf-8"))
    wrong = coverage["capitalised_first_symbol"]
    yield (
        f"Of the {coverage['sentences']:,} sentences of the embedded corpus, {wrong['another symbol']} would "
        "begin with another symbol"
    )
    yield f"and {wrong['no symbol']} with one that is not in the table"


def interval(value: dict, digits: int = 3) -> str:
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def evaluation_claims():
    demo, bundle, again = (read(f"evaluation_{n}.json")["summary"] for n in ("demo", "bundle", "bundle_again"))
    columns = [
        demo["recording"],
        demo["codec round trip"],
        demo["generated, 3 seeds"],
        bundle["generated, 3 seeds"],
        again["generated, 3 seeds"],
    ]
    assert (
        demo["recording"]["mcd_db"]["mean"] == 0
        and demo["recording"]["voicing_error"]["mean"] == 0
        and demo["recording"]["duration_ratio"]["mean"] == 1
    )
    rows = {
        "characters without marks": "cer recogniser",
        "characters with marks": "cer_marks recogniser",
        "words without marks": "wer recogniser",
        "mel-cepstral distortion, dB": "mcd_db",
        "pitch correlation": "f0_correlation",
        "voicing error": "voicing_error",
        "duration, times the recording's": "duration_ratio",
        "marks heard, margin in dB": "marks_margin_db",
    }
    for title, key in rows.items():
        yield row(title, *(interval(c[key]) if key in c else "" for c in columns))
    yield row("characters without marks, median", *(f"{c['cer recogniser']['median']:.3f}" for c in columns))
    yield row("above 1", *(str(c["cer above 1 recogniser"]) for c in columns))
    yield row("marks heard", "", "", *(f"{c['marks_heard']} of {c['marks_asked']}" for c in columns[2:]))
    yield row("ends reached", "", "", *(f"{c['ends_reached']} of {c['spoken']}" for c in columns[2:]))
    for key in ("runaways", "retried"):
        yield row(key, "", "", *(str(c[key]) for c in columns[2:]))
    codec = columns[1]
    yield f"the round trip's pitch correlates by {codec['f0_correlation']['mean']:.2f}"
    yield f"in {percent(codec['voicing_error']['mean'])} of the frames one is voiced and the other not"
    # Two runs agree: each one's mean lies within the other's interval.
    for key in rows.values():
        a, b = bundle["generated, 3 seeds"][key], again["generated, 3 seeds"][key]
        assert b["low"] <= a["mean"] <= b["high"] and a["low"] <= b["mean"] <= a["high"], key


def bundle_claims():
    found = read("bundle.json")
    ways = found["ways"]
    ours = [ways[f"generate_sample seed {seed}"] for seed in range(3)]
    yield row(
        "`generate_sample.py`, seeds 0, 1, 2",
        *(", ".join(f"{o[key]:.3f}" for o in ours) for key in ("cer_no_marks_mean", "cer_no_marks_median")),
    )
    titles = {
        "stock generate": "stock `pocket-tts generate`, Arabic script as typed",
        "stock generate, NFC": "the same with marks in NFC order (vowel before shadda)",
        "stock generate, whole": "the same with `--max-tokens`, sentences whole",
        "stock serve": "stock `pocket-tts serve`, `POST /tts`",
    }
    for kind, title in titles.items():
        yield row(title, *(f"{ways[kind][key]:.3f}" for key in ("cer_no_marks_mean", "cer_no_marks_median")))
    p = found["passage"]
    yield f"{p['words']} words in {p['chunks']} chunks, {p['seconds']:.0f} s"
    yield f"no chunk above an error of {max(p['chunk_errors']):.2f}"
    yield (
        f"the largest step between samples in a join is {p['largest_step_in_a_join']:.2f}, in speech "
        f"{p['largest_step_in_speech']:.2f}"
    )
    first, _, last = p["memory_mib_after_first_half_last"]
    yield f"resident memory {first} MiB after the first chunk, {last} after the last"
    assert p["ends_missed"] == 0
    s = found["speed"]
    own, stock = s["real_time_factor"]["generate_sample"], s["real_time_factor"]["stock"]
    yield (
        f"`generate_sample.py` takes {own:.3f} s a second of speech, stock {stock:.3f}: "
        f"{s['generate_sample_to_stock']:.2f} times as long"
    )
    nano, real = s["first_audio_sec"].values()
    yield (
        f"the first audio is there after {nano:.2f} s; at the released size, random weights, after {real:.2f} s "
        f"at {s['real_size_real_time_factor']:.2f} s a second of speech"
    )


def spread(experiment: dict, key: str, digits: int = 3) -> str:
    """Mean, and the spread if there is more than one seed."""
    more = f" ({experiment[key]['spread']:.{digits}f})" if len(experiment["seeds"]) > 1 else ""
    return f"{experiment[key]['mean']:.{digits}f}{more}"


def experiment_claims():
    for name, e in read("experiments.json")["summary"].items():
        cells = [
            spread(e, "valid_flow_error", 2),
            spread(e, "cer_no_marks_median"),
            spread(e, "cer_median"),
            f"{e['eos_reached']['mean']:.1f}",
        ]
        yield row(
            name,
            str(len(e["seeds"])),
            *cells,
            f"{e['steps']['mean']:.0f}",
            f"{e['train_cpu_sec']['mean']:.0f}",
            f"{e['memory_gib']['mean']:.2f}",
        )
        if "cer_no_marks_median_bare" in e:
            yield row(f"{name}, bare text", spread(e, "cer_no_marks_median_bare"), spread(e, "cer_median_bare"))


def guidance_claims():
    none, some, more = (
        sum(s["cer_no_marks_mean"] for s in w["scores"]) / len(w["scores"])
        for w in read("guidance.json")["weights"].values()
    )
    yield f"mean error without marks {none:.3f} without it, {some:.3f} with a weight of 1.5 and {more:.3f} with 2"


def student_claims():
    found = read("teacher_student.json")
    groups: dict[tuple, list[dict]] = {}
    for r in found["rows"]:
        groups.setdefault((r["model"], r["guidance"]), []).append(r)
    for (model, weight), rows in groups.items():
        keys = ("cer_no_marks_mean", "cer_no_marks_median", "cer_mean")
        errors = [f"{statistics.mean(r[key] for r in rows):.3f}" for key in keys]
        cpu = f"{statistics.mean(r['cpu_sec'] for r in rows):.0f}" if "cpu_sec" in rows[0] else ""
        yield row(model, f"{weight:g}" if weight != 1 else "", *errors, cpu)
    assert all(r["ends"] == 40 for r in found["rows"])
    found = read("rehearsal.json")
    for part, title in (("teach", "teach, 24 layers"), ("distil", "distil, 6 layers")):
        p = found[part]
        yield row(title, f"{p['step_sec']:.1f}", f"{p['memory_gib']:.1f}", f"{p['bundle_bytes'] / 1e9:.2f}")


def short_claims():
    """The first figures a reader of either document sees."""
    demo, bundle = (read(f"evaluation_{n}.json")["summary"] for n in ("demo", "bundle"))
    kinds = (demo["recording"], demo["codec round trip"], bundle["generated, 3 seeds"], demo["generated, 3 seeds"])
    medians = [kind["cer recogniser"]["median"] for kind in kinds]
    yield f"median, {medians[3]:.3f} after `make demo`, and {medians[2]:.3f} with 8 hours (`demo/bundle`)"
    yield f"where the recordings themselves score {medians[0]:.3f} and the codec {medians[1]:.3f}"
    assert all(
        kind[key] == kind[asked]
        for kind in kinds[2:]
        for key, asked in (("marks_heard", "marks_asked"), ("ends_reached", "spoken"))
    )


def readme_claims():
    demo, bundle = (read(f"evaluation_{n}.json")["summary"] for n in ("demo", "bundle"))
    kinds = (demo["recording"], demo["codec round trip"], bundle["generated, 3 seeds"], demo["generated, 3 seeds"])
    medians = [percent(kind["cer recogniser"]["median"], 1) for kind in kinds]
    yield f"errs on {medians[0]} of a recording's characters (median, without marks), {medians[1]} through the codec"
    yield f"{medians[2]} of what the embedded model says and {medians[3]} after `make demo`"
    wrong = read("diacritizers.json")["arabic-diacritizer 1.0.0"]["wrong"]
    yield f"wrong on {100 * wrong:.0f} of 100 letters"
    speed, bench = read("bundle.json")["speed"], read("bench.json")
    yield f"| {1 / speed['real_time_factor']['generate_sample']:.0f} times real time |"
    real, data = bench["real size"]["full"], bench["data"]["real_time_factor"]["data_prep"]
    step = f"a step of 4 in {real['step_sec']:.1f} s, {real['memory_gib']:.1f} GiB"
    yield f"| 12 h in {12 * 60 / data:.0f} minutes | {step} |"
    yield f"| {1 / speed['real_size_real_time_factor']:.1f} times real time |"
    gpu = read("bench_gpu.json")
    graphs = gpu["training"]["graphs"]
    spoken = next(m for m in gpu["speaking"]["measurements"] if "second round" in m["what"])
    steps = f"{graphs['steps']} steps of 64 in {graphs['process_sec']:.0f} s"
    yield f"| {steps} | 64 at once: {spoken['times_real_time']:.0f} times |"


CLAIMS = {name.removesuffix("_claims"): f for name, f in list(globals().items()) if name.endswith("_claims")}


@pytest.mark.parametrize("name", CLAIMS)
def test_figures_are_those_of_the_files(name):
    flat = " ".join((README if name == "readme" else REPORT).split())
    for claim in CLAIMS[name]():
        assert " ".join(claim.split()) in flat, claim


def test_every_table_of_figures_is_checked():
    """A row with a decimal is one of the claims, or says that it is from elsewhere or awaits its run."""
    checked = {" ".join(claim.split()) for claims in CLAIMS.values() for claim in claims()}
    rows = {" ".join(row.split()) for row in re.findall(r"^\|.*\d\.\d.*\|$", REPORT, re.M)}
    left = {row for row in rows - checked if not re.search(r"not run here|upstream|\[.*\]\(http|expected", row)}
    assert not left, left


if __name__ == "__main__":  # the claims as the documents should have them
    for title, claims in CLAIMS.items():
        print(f"\n{title}")
        for claim in claims():
            print(claim)
