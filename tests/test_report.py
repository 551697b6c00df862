"""README, report and samples say what the committed files say: every figure, every command, every link."""

import csv
import doctest
import html.parser
import importlib
import json
import math
import re
import shlex
import shutil
import statistics
import sys
from contextlib import suppress

import pytest
import soundfile as sf
import typer.main
from conftest import ROOT, run

from pocket_arabic.checkpoint import sha256
from pocket_arabic.run import UserError

sys.path.insert(0, str(ROOT / "measure"))
import tables
from tables import fixed, percent, read

SAMPLES = ROOT / "samples"
DOCUMENTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "exploration_report.md", "samples/README.md")
}
REPORT, README = DOCUMENTS["exploration_report.md"], DOCUMENTS["README.md"]


# --- commands ---------------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """The lines of every indented block of every document and the recipes of the Makefile's `demo` and `rebuild`,
    continued ones joined, comments off."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").expandtabs(4)
    recipes = "".join(re.findall(r"^(?:demo|rebuild):.*\n((?: {4}.*\n)+)", makefile, re.M)).replace("$(BIN)/", "")
    found = []
    for text in [*DOCUMENTS.values(), recipes.replace("$(MAKE)", "make").replace("@echo", "echo")]:
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


def anchors(markdown: str) -> set[str]:
    """Where a link may lead within a document: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    """To a file that is there, or to a heading of the document."""
    text = DOCUMENTS[name]
    for target in re.findall(r"\]\(([^)\s]+)\)|^\[[^]]+\]: (\S+)$", text, re.M):
        file, _, anchor = "".join(target).partition("#")
        if "://" not in file:
            assert ((ROOT / name).parent / file).exists(), target
            assert file or anchor in anchors(text), target


def test_sections_are_referred_to_by_their_numbers():
    """`[section 7]` leads to section 7, and there is no such number in plain words that nobody would renumber."""
    defined = dict(re.findall(r"^\[section (\d+)\]: #(\S+)$", REPORT, re.M))
    assert set(re.findall(r"\[section (\d+)\](?!:)", REPORT)) == set(defined)
    assert all(anchor.startswith(f"{number}-") for number, anchor in defined.items())
    assert not re.findall(r"(?<!\[)\bsections? \d+", tables.BLOCK.sub("", REPORT))


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


def test_tables_are_what_their_script_writes():
    """Fails after any change of a figure's file or of a table by hand: python measure/tables.py writes them anew."""
    for name in tables.DOCUMENTS:
        assert tables.filled(DOCUMENTS[name]) == DOCUMENTS[name], "python measure/tables.py"
    assert {match[2] for match in tables.BLOCK.finditer(REPORT + README)} == set(tables.BLOCKS)
    assert doctest.testmod(tables).failed == 0


def doubled(value: object) -> object:
    """A file's content with every number twice as large; a step's name counts as its number."""
    if isinstance(value, dict):
        return {key: doubled(part) for key, part in value.items()}
    if isinstance(value, list):
        return [doubled(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"^step_(\d+)$", lambda m: f"step_{2 * int(m[1])}", value)
    return value if value is None else 2 * value


def test_a_block_is_made_of_its_file(monkeypatch):
    """With other figures in the files every block would be another: none has a number of its own."""
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: doubled(loads(text)))
    pairs = zip(*(tables.BLOCK.finditer(text) for text in (REPORT, tables.filled(REPORT))))
    assert [old[2] for old, new in pairs if old[0] == new[0]] == []


def test_the_script_mends_its_blocks_and_nothing_else(tmp_path, monkeypatch):
    """--check names a block that was changed by hand and leaves it, without --check it is as it was. An unknown name
    and a block without its end are refused: the prose after them would be lost."""
    for name in ("samples", "demo"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in tables.DOCUMENTS:
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    report, start = tmp_path / "exploration_report.md", "<!-- table: codec -->\n"
    report.write_text(wrong := REPORT.replace(start, f"{start}by hand\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(UserError, match=r"exploration_report\.md: codec: "):
        tables.main()
    assert report.read_text(encoding="utf-8") == wrong
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    assert report.read_text(encoding="utf-8") == REPORT
    for broken in (REPORT.replace(start, "<!-- table: cod -->\n"), REPORT.replace("<!-- end -->\n", "", 1)):
        with pytest.raises(UserError, match=r"no such table|lacks its <!-- end -->"):
            tables.filled(broken)


def test_no_table_has_figures_by_hand():
    """A row with a decimal is written by the script, or says that it is from elsewhere or awaits its run."""
    rows = re.findall(r"^ *\|.*\d\.\d.*\|$", tables.BLOCK.sub("", REPORT), re.M)
    left = [row for row in rows if not re.search(r"not run here|upstream|\]\(http", row)]
    assert not left, left


def test_prose_fits_a_screen():
    """Lines of at most 120 columns, tables and commands aside."""
    assert not [line for line in REPORT.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]


# What the prose says without a figure.


def test_the_audit_found_what_section_1_says():
    for base in tables.BASES:
        a = read("audit.json")[base]
        assert a["transformer"]["causal"] and not a["tokenizer"]["symbols_unknown"]
        assert a["codec"]["latents_of_a_second"] == [13, 32]
        assert a["stock_text"] == {"stock": "SalaAmN Ealayokumo.", "ours": "salaAmN Ealayokumo."}


def test_every_sentence_is_heard_and_ends_and_two_runs_agree():
    demo, bundle, again = (read(f"evaluation_{n}.json")["summary"] for n in ("demo", "bundle", "bundle_again"))
    floor = demo["recording"]
    assert [floor[key]["mean"] for key in ("mcd_db", "voicing_error", "duration_ratio")] == [0, 0, 1]
    spoken = [found["generated, 3 seeds"] for found in (demo, bundle, again)]
    assert all(s["marks_heard"] == s["marks_asked"] and s["ends_reached"] == s["spoken"] for s in spoken)
    for key in tables.MEASURES.values():
        a, b = spoken[1][key], spoken[2][key]
        assert b["low"] <= a["mean"] <= b["high"] and a["low"] <= b["mean"] <= a["high"], key
    passage = read("bundle.json")["passage"]
    assert passage["ends_missed"] == 0 and passage["largest_step_in_a_join"] < passage["largest_step_in_speech"]
    assert all(row["ends"] == 40 for row in read("teacher_student.json")["rows"])


def test_the_speech_score_chooses_better_than_the_flow_error():
    for figures in read("choice.json")["summary"].values():
        flow, score = figures["flow_error"], figures["speech_score"]
        assert score["rank_correlation"] > flow["rank_correlation"] and score["loss_of_choice"] < 0.001


def test_graphs_lose_nothing():
    """Launched and replayed steps have the same losses to six digits."""
    training = read("bench_gpu.json")["training"]
    losses = [training[way]["losses"] for way in ("launched", "graphs")]
    assert all(math.isclose(loss, losses[1][step], rel_tol=1e-6) for step, loss in losses[0].items())


# What a reader sees first: figures in prose. A claim is a piece of text that has to be there.


def evaluation_claims():
    kinds = {name: read(f"evaluation_{name}.json")["summary"] for name in ("demo", "bundle")}
    demo, bundle = (kinds[name]["generated, 3 seeds"] for name in kinds)
    recording, codec = kinds["demo"]["recording"], kinds["demo"]["codec round trip"]
    medians = [f"{kind['cer recogniser']['median']:.3f}" for kind in (demo, bundle, recording, codec)]
    yield f"Wrong: {medians[0]} after `make demo` and {medians[1]} with 8 hours (`demo/bundle`)"
    yield f"where the recordings themselves score {medians[2]} and the codec {medians[3]}"
    yield f"in {demo['marks_heard']} of {demo['marks_asked']} sentences speech made from the right vowels is nearer"
    yield f"made from wrong ones, by {demo['marks_margin_db']['mean']:.1f} dB"
    yield f"{demo['ends_reached']} of {demo['spoken']}, the speech {demo['duration_ratio']['mean']:.3f} times as long"
    mean = {kind: s["cer_no_marks_mean"] for kind, s in read("heldout.json")["scores"].items()}
    yield f"It keeps what is said ({mean['codec']:.3f} wrong for {mean['original']:.3f}, means)"
    yield f"its correlation with the recording's is {codec['f0_correlation']['mean']:.2f}"


def corpus_claims():
    found = json.loads((ROOT / "demo" / "corpus" / "coverage.json").read_text(encoding="utf-8"))
    yield f"in {sum(found['capitalised_first_symbol'].values())} of the corpus's {found['sentences']:,} sentences"
    words = {kind: s["wer_mean"] for kind, s in read("english.json")["scores"].items()}
    base, floor = words["generated"], words["original"]
    yield f"Whisper hears {base:.3f} of its words wrong on average, {floor:.3f} of the originals'"


def experiments_claims():
    found = read("experiments.json")["summary"]
    wrong = {name: f"{e['cer_no_marks_median']['mean']:.3f}" for name, e in found.items()}
    flow = {name: f"{e['valid_flow_error']['mean']:.2f}" for name, e in found.items()}
    yield f"{wrong['scratch']} wrong from random weights, {wrong['base']} from the base"
    yield f"it no longer matters: {wrong['unguided']} wrong without, {wrong['base']} with"
    yield f"all weights leave {wrong['base']} wrong, the last two layers {wrong['last-2']}"
    yield f"adapters with a free head {wrong['lora-16-head']}, the text embedding alone {wrong['text']}"
    yield f"of the same letters leaves {wrong['fresh-characters']} wrong, a BPE over Buckwalter {wrong['fresh-bpe']}"
    bare = found["stripped"]["cer_no_marks_median_bare"]["mean"]
    yield f"{bare:.3f} are wrong; leaving them out of half of the rows costs {wrong['mark-dropout']} for"
    yield f"the text embedding alone has {flow['text']} and is {wrong['text']} wrong"
    yield f"adapters have {flow['lora-16']} and are {wrong['lora-16']} wrong"


def speed_claims():
    bench, ways, gpu = read("bench.json"), read("bundle.json")["ways"], read("bench_gpu.json")
    real, nano = (1 / bench[f"{size} size"]["full, on the fly"]["speed_to_full"] for size in ("real", "nano"))
    yield f"{real:.1f} times as fast** at the released size on a CPU and {nano:.1f} times at nano size"
    batch = bench["speaking"]["nano size"]["to_one_by_one"]["batch of 64"]
    yield f"a file of 64 sentences takes {batch:.2f} of the time of one by one"
    ours = sorted(ways[f"generate_sample seed {seed}"]["cer_no_marks_mean"] for seed in range(3))
    whole = ways["stock generate, whole"]["cer_no_marks_mean"]
    yield f"{whole:.3f} wrong on average, ours {ours[0]:.3f} to {ours[2]:.3f} in three seeds"
    fastest = max(m["times_real_time"] for m in gpu["speaking"]["measurements"] if "with decoding" in m["what"])
    rate = gpu["training"]["graphs"]["steps_per_sec"]
    yield f"at {rate:.1f} steps of 64 utterances a second and speaks at {fastest:.0f} times real time"


def teacher_claims():
    rows, head = read("teacher_student.json")["rows"], read("guidance.json")["weights"]

    def wrong(model: str, weight: float = 1) -> str:
        of = [r["cer_no_marks_mean"] for r in rows if r["model"].startswith(model) and r["guidance"] == weight]
        return f"{statistics.mean(of):.3f}"

    base = "adapted base"
    yield f"{wrong(base, 1.25)} wrong on average with a weight of 1.25, {wrong(base)} without, {wrong(base, 2)} with 2"
    some, none = (statistics.mean(s["cer_no_marks_mean"] for s in head[w]["scores"]) for w in ("1.5", "1.0"))
    yield f"it harms: {some:.3f} with 1.5, {none:.3f} without"
    taught, plain = wrong("student, three layers"), wrong("plain, three layers")
    ranks = [[f["speech_score"], f["flow_error"]] for f in read("choice.json")["summary"].values()]
    score, flow = (" and ".join(fixed((f["rank_correlation"] for f in of), 2)) for of in zip(*ranks))
    yield f"with a correlation of {score}, the held-out flow error with {flow}"
    yield f"three layers taught by five are wrong by {taught} on average, three layers trained plainly by {plain}"


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
    findings = REPORT[REPORT.index("## Findings") : REPORT.index("## 1.")]
    flat = " ".join((README if name == "readme" else findings).split())
    for claim in CLAIMS[name]():
        assert " ".join(claim.split()) in flat, claim


if __name__ == "__main__":  # the claims as the documents should have them
    for title, claims in CLAIMS.items():
        print(f"\n{title}")
        for claim in claims():
            print(claim)
