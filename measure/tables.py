#!/usr/bin/env python3
"""The tables of the documents, written from the files that the measuring scripts wrote.

Reads   samples/*.json and *.jsonl, demo/*_progress.jsonl, demo/corpus/coverage.json.
Writes  exploration_report.md and README.md: what stands between their markers, nothing else.

    python measure/tables.py             # after a figure has changed
    python measure/tables.py --check     # writes nothing, names the blocks that it would write otherwise

A block is a line `<!-- table: NAME -->` or `<!-- figures: NAME -->`, what is written, and a line `<!-- end -->`. NAME
is a function below that gives the lines.
"""

import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pocket_arabic.run import ROOT, Parser, UserError, atomic_write, command, read_jsonl

DOCUMENTS = ("exploration_report.md", "README.md")
MARKER = r"<!-- (?:table|figures): (\S+) -->\n"
BLOCK = re.compile(rf"({MARKER})(?:(?!<!--).)*(<!-- end -->\n)", re.S)
BLOCKS: dict[str, Callable[[], list[str]]] = {}
WIDTH = 120  # of a line of figures; tables are as wide as they are


def block(write: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """Names a function in the documents."""
    BLOCKS[write.__name__] = write
    return write


def filled(document: str) -> str:
    """A document whose blocks are as the files have them. Raises UserError."""

    def fill(match: re.Match) -> str:
        start, name, end = match.groups()
        if name not in BLOCKS:
            raise UserError(f"<!-- table: {name} -->: no such table; measure/tables.py has {', '.join(BLOCKS)}")
        return start + "".join(f"{line}\n" for line in BLOCKS[name]()) + end

    if len(re.findall(MARKER, document)) != len(BLOCK.findall(document)):
        raise UserError("a block lacks its <!-- end -->, on a line of its own")
    return BLOCK.sub(fill, document)


# --- files and cells --------------------------------------------------------------------------------------------------


def read(name: str) -> dict:
    """A file of samples/."""
    return json.loads((ROOT / "samples" / name).read_text(encoding="utf-8"))


def evaluations(log: str, key: str = "valid_flow_error") -> dict[int, float]:
    """A figure of a run's evaluations by step, as far as they have it."""
    return {r["step"]: r[key] for r in read_jsonl(ROOT / log) if r["kind"] == "eval" and key in r}


def table(titles: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """Lines of Markdown.

    >>> table("way | seconds", [("one by one", 0.5)])
    ['| way | seconds |', '|---|---|', '| one by one | 0.5 |']
    """
    body = [f"| {' | '.join(map(str, cells))} |" for cells in rows]
    return [f"| {titles} |", "|---" * (titles.count(" | ") + 1) + "|", *body]


def prose(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def fixed(values: Iterable[float], digits: int = 3) -> list[str]:
    return [f"{value:.{digits}f}" for value in values]


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


# --- what Pocket TTS is, why romanise ---------------------------------------------------------------------------------

BASES = {"demo": "nano base", "random": "released layout"}  # of audit.json
ENCODER = ("encoder", "encoder_transformer", "downsample")
DECODER = ("decoder", "decoder_transformer", "upsample", "quantizer")


@block
def architecture() -> list[str]:
    rows = []
    for base, title in BASES.items():
        found = read("audit.json")[base]
        shape, lm, mimi = found["transformer"], found["parameters"]["flow_lm"], found["parameters"]["mimi"]
        parts = [lm[part] for part in ("transformer", "flow_net", "conditioner")]
        parts += [sum(mimi.get(part, 0) for part in side) for side in (ENCODER, DECODER)]
        size = f"{found['parameters']['together'] / 1e6:.1f}M"
        layers = f"{shape['layers']} of {shape['width']}, {shape['heads']} heads"
        rows.append((title, found["tensors"], size, layers, *(f"{count / 1e6:.2f}M" for count in parts)))
    titles = "base | tensors | parameters | transformer | its weights | head | text embedding | encoder | decoder"
    return table(titles, rows)


@block
def stock_speed() -> list[str]:
    found = read("audit.json")
    rows = [(title, f"{found[base]['stock_times_real_time']:.1f} times real time") for base, title in BASES.items()]
    return table("base | speed of stock inference, one thread an operation", rows)


@block
def capitals() -> list[str]:
    found = json.loads((ROOT / "demo" / "corpus" / "coverage.json").read_text(encoding="utf-8"))
    wrong = found["capitalised_first_symbol"]
    return prose(
        f"Of the {found['sentences']:,} sentences of the embedded corpus, {wrong['another symbol']} would begin with "
        f"another symbol and {wrong['no symbol']} with one that is not in the table."
    )


# --- the codec, the texts ---------------------------------------------------------------------------------------------


@block
def codec() -> list[str]:
    kinds = {"original": "original clips (floor)", "codec": "codec round trip"}
    kinds |= {f"codec_noise_{n}": f"round trip, latent noise of {n} deviations" for n in (0.1, 0.3)}
    rows = []
    for kind, title in kinds.items():
        s = read("heldout.json")["scores"][kind]
        errors = fixed(s[key] for key in ("cer_no_marks_mean", "cer_no_marks_median", "cer_mean"))
        rows.append((title, s["clips"], *errors, s["above_1"]))
    titles = "what the recogniser hears | clips | error without marks, mean | median | with marks, mean | above 1"
    return table(titles, rows)


@block
def codec_costs() -> list[str]:
    mean = {kind: s["cer_no_marks_mean"] for kind, s in read("heldout.json")["scores"].items()}
    trip, noise = mean["codec"] - mean["original"], mean["codec_noise_0.1"] - mean["codec"]
    return prose(f"The round trip costs {trip:.3f} over the originals, and noise of 0.1 deviations {noise:.3f} more.")


@block
def codec_pitch() -> list[str]:
    found = read("evaluation_demo.json")["summary"]["codec round trip"]
    return prose(
        f"Against the recording the round trip's pitch correlates by {found['f0_correlation']['mean']:.2f} (1 is the "
        f"recording itself), and in {percent(found['voicing_error']['mean'])} of the frames one is voiced and the "
        "other not (`samples/evaluation_demo.json`)."
    )


CODECS = {"codec.json": "embedded", "codec_next.json": "next"}


@block
def codec_voices() -> list[str]:
    rows = []
    noisy = ("noise 0.0", "noise 0.1", "noise 0.5")
    for name, file, shown in (("target", "codec.json", ("in step",)), *((n, f, noisy) for f, n in CODECS.items())):
        for voice, kinds in read(file)["voices"].items():
            for kind in shown:
                measured = fixed((kinds[kind][key] for key in ("mcd_db", "f0_correlation", "voicing_error")), 2)
                floor, heard = (kinds[k].get("cer_no_marks_mean") for k in ("recording", kind))
                error = f"{heard:.3f} ({floor:.3f})" if heard is not None else ""
                rows.append((name, voice, kind.partition("noise ")[2], *measured, error))
    titles = "codec | voice | latent noise | distortion, dB | pitch correlation | voicing error | error (recordings')"
    return table(titles, rows)


@block
def codec_parts() -> list[str]:
    found = read("codec_parts.json")
    rows = [
        (
            name,
            f"{part['steps']:,}",
            *fixed((part[key] for key in ("mcd_db", "f0_correlation", "voicing_error")), 2),
            f"{part['cer_no_marks_mean']:.3f}",
        )
        for name, part in found["parts"].items()
    ]
    titles = (
        f"{found['minutes']:g} minutes of one core | steps | distortion, dB | pitch correlation | voicing error | error"
    )
    return table(titles, rows)


@block
def codec_moved() -> list[str]:
    rows = [(name, *(percent(share) for share in read(file)["moved_ms"].values())) for file, name in CODECS.items()]
    return table("codec | 1 ms | 2.5 | 5 | 10 | 20 | 80", rows)


@block
def diacritizers() -> list[str]:
    found, rows = read("diacritizers.json"), []
    packages = {
        "arabic-diacritizer 1.0.0": "BiLSTM on PyTorch, MIT, 47 MB",
        "dengjen-tashkeel-py 3.0.2": "ONNX, MIT or Apache, 5 MB",
    }
    for name, what in packages.items():
        s = found[name]
        ends = percent(s["of_these_at_word_ends"])
        rows.append((f"{name} ({what})", percent(s["wrong"], 1), ends, f"{s['sec']:.1f}"))
    titles = "package | letters with another mark than written | of these, at word ends"
    return table(f"{titles} | seconds for {found['sentences']} sentences", rows)


# --- the base and the demo run ----------------------------------------------------------------------------------------

LOGS = {  # runs whose records are kept
    "the English base, on English": "demo/base_progress.jsonl",
    "`make demo`": "samples/progress.jsonl",
    "`demo/bundle`": "demo/bundle_progress.jsonl",
    "16 utterances from random weights, on themselves": "samples/subset.jsonl",
}


@block
def english() -> list[str]:
    kinds = {"original": "espeak-ng originals (floor)", "codec": "codec round trip", "generated": "spoken by the base"}
    rows = []
    for kind, title in kinds.items():
        s = read("english.json")["scores"][kind]
        errors = fixed(s[f"{rate}_{mean}"] for rate in ("wer", "cer") for mean in ("mean", "median"))
        rows.append((title, *errors, s["above_1"]))
    return table("what Whisper hears | word error, mean | median | character error, mean | median | above 1", rows)


@block
def english_ends() -> list[str]:
    found = read("english.json")
    return prose(
        f"`samples/english.json`; ends reached on {found['eos_reached']} of {found['sentences']}, durations within 0.7 "
        f"to 1.4 of the original's on {found['duration_ratio_0.7_to_1.4']}."
    )


@block
def flow_errors() -> list[str]:
    rows = []
    for title, log in LOGS.items():
        errors = evaluations(log)
        best, last = min(errors, key=errors.get), max(errors)
        cells = [f"{errors[step]:.2f} at step {step:,}" for step in (best, last)]
        rows.append((title, f"{errors[0]:.2f}", *cells, f"`{log}`"))
    return table("run | before its first step | lowest | last | record", rows)


@block
def demo_curve() -> list[str]:
    log, rows = LOGS["`make demo`"], []
    steps = evaluations(log)
    for title, key in (("held-out flow error", "valid_flow_error"), ("speech score, dB", "speech_score")):
        if values := evaluations(log, key):
            rows.append((title, *(f"{values[step]:.2f}" if step in values else "" for step in steps)))
    return table(" | ".join(map(str, ("step", *steps))), rows)


@block
def demo_checkpoint() -> list[str]:
    step = int(read("evaluation_demo.json")["checkpoint"].removeprefix("step_"))
    return prose(f"Its bundle, which section 7 hears, is that of step {step}.")


# --- how it sounds ----------------------------------------------------------------------------------------------------

MEASURES = {
    "characters without marks": "cer recogniser",
    "characters with marks": "cer_marks recogniser",
    "words without marks": "wer recogniser",
    "mel-cepstral distortion, dB": "mcd_db",
    "pitch correlation": "f0_correlation",
    "voicing error": "voicing_error",
    "duration, times the recording's": "duration_ratio",
    "marks heard, margin in dB": "marks_margin_db",
}


def interval(value: dict) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


@block
def evaluation() -> list[str]:
    kept = [read(f"evaluation_{name}.json")["summary"] for name in ("demo", "bundle", "bundle_again")]
    spoken = [summary["generated, 3 seeds"] for summary in kept]
    columns = [kept[0]["recording"], kept[0]["codec round trip"], *spoken]
    rows = [(title, *(interval(c[key]) if key in c else "" for c in columns)) for title, key in MEASURES.items()]
    rows.insert(1, ("characters without marks, median", *fixed(c["cer recogniser"]["median"] for c in columns)))
    rows.append(("above 1", *(c["cer above 1 recogniser"] for c in columns)))
    shares = {"marks heard": ("marks_heard", "marks_asked"), "ends reached": ("ends_reached", "spoken")}
    for title, (part, whole) in shares.items():
        rows.append((title, "", "", *(f"{s[part]} of {s[whole]}" for s in spoken)))
    rows += [(key, "", "", *(s[key] for s in spoken)) for key in ("runaways", "retried")]
    titles = "measure | recording (floor) | codec round trip | `make demo` | `demo/bundle`"
    return table(f"{titles} | `demo/bundle`, three other seeds", rows)


@block
def stock_and_ours() -> list[str]:
    ways = read("bundle.json")["ways"]
    keys = ("cer_no_marks_mean", "cer_no_marks_median")
    titles = {
        "stock generate": "stock `pocket-tts generate`, Arabic script as typed",
        "stock generate, NFC": "the same with marks in NFC order (vowel before shadda)",
        "stock generate, whole": "the same with `--max-tokens`, sentences whole",
        "stock serve": "stock `pocket-tts serve`, `POST /tts`",
    }
    seeds = [", ".join(fixed(ways[f"generate_sample seed {seed}"][key] for seed in range(3))) for key in keys]
    rows = [("`generate_sample.py`, seeds 0, 1, 2", *seeds)]
    rows += [(title, *fixed(ways[way][key] for key in keys)) for way, title in titles.items()]
    return table("way to the same bundle | mean | median", rows)


@block
def passage() -> list[str]:
    p = read("bundle.json")["passage"]
    first, _, last = p["memory_mib_after_first_half_last"]
    cells = {
        "words": p["words"],
        "chunks": p["chunks"],
        "seconds": f"{p['seconds']:.0f}",
        "ends missed": p["ends_missed"],
        "largest error of a chunk": f"{max(p['chunk_errors']):.2f}",
        "largest step between samples in a join": f"{p['largest_step_in_a_join']:.2f}",
        "in speech": f"{p['largest_step_in_speech']:.2f}",
        "MiB after the first chunk": first,
        "after the last": last,
    }
    return table(" | ".join(cells), [cells.values()])


@block
def speed() -> list[str]:
    s = read("bundle.json")["speed"]
    (own, stock), (nano, real) = fixed(s["real_time_factor"].values()), fixed(s["first_audio_sec"].values(), 2)
    rows = [
        ("`generate_sample.py`", own, f"{s['generate_sample_to_stock']:.2f}", nano),
        ("stock `pocket-tts generate`", stock, "1.00", ""),
        ("`generate_sample.py`, released size, random weights", f"{s['real_size_real_time_factor']:.3f}", "", real),
    ]
    return table("what speaks | seconds a second of speech | to stock | `--stream`: seconds to the first audio", rows)


@block
def batches() -> list[str]:
    nano, real = (read("bench.json")["speaking"][f"{size} size"] for size in ("nano", "real"))

    def cells(size: dict, way: str) -> tuple[str, str]:
        if way not in size["to_one_by_one"]:
            return "", ""
        return f"{size['seconds_a_second'][way]:.4f}", f"{size['to_one_by_one'][way]:.2f}"

    ways = nano["to_one_by_one"]
    rows = [(way.removeprefix("batch of "), *cells(nano, way), *cells(real, way)) for way in ways]
    titles = f"at once | nano, a file of {nano['sentences']} sentences: seconds a second of speech | to one by one"
    more = f"released size, random weights, {real['sentences']} sentences: seconds a second | to one by one"
    return table(f"{titles} | {more}", rows)


@block
def ear() -> list[str]:
    found = read("ear.json")
    heard = [found["spoken"], found["through the codec"]]
    rows = []
    for kind, s in heard[0]["kinds"].items():
        rows.append((kind, s["planted"], *(percent(h["kinds"][kind]["share_found"]) for h in heard)))
    for of in ("letters", "marks"):
        rows.append((f"{of} in all", heard[0][of]["planted"], *(percent(h[of]["share_found"], 1) for h in heard)))
        rows.append((f"false alarms, of {of}", "", *(percent(h[of]["share_false"], 1) for h in heard)))
    return table("error | planted | found as spoken | found through the codec", rows)


# --- experiments ------------------------------------------------------------------------------------------------------


def spread(experiment: dict, key: str, digits: int = 3) -> str:
    """Mean over the seeds, and the spread."""
    return f"{experiment[key]['mean']:.{digits}f} ({experiment[key]['spread']:.{digits}f})"


@block
def experiments() -> list[str]:
    rows = []
    for name, e in read("experiments.json")["summary"].items():
        errors = [spread(e, "valid_flow_error", 2), spread(e, "cer_no_marks_median"), spread(e, "cer_median")]
        means = {"eos_reached": 1, "steps": 0, "train_cpu_sec": 0, "memory_gib": 2}  # and their digits
        cells = [f"{e[key]['mean']:.{digits}f}" for key, digits in means.items()]
        rows.append((name, len(e["seeds"]), *errors, *cells))
    titles = "experiment | seeds | held-out flow error | error without marks, median | with marks, median"
    return table(f"{titles} | ends of 40 | steps | CPU s | peak GiB", rows)


@block
def bare() -> list[str]:
    rows = [
        (name, spread(e, "cer_no_marks_median_bare"), spread(e, "cer_median_bare"))
        for name, e in read("experiments.json")["summary"].items()
        if "cer_median_bare" in e
    ]
    return table("experiment, read from bare text | error without marks, median | with marks, median", rows)


# --- what it costs ----------------------------------------------------------------------------------------------------


@block
def training_cost() -> list[str]:
    found = read("bench.json")
    real, nano = found["real size"], found["nano size"]
    rows = []
    for way in ("full", "last:2", "lora:8", "text", "full, on the fly", "full, shuffled"):
        of_real, of_nano = (
            [f"{size[way]['trainable']:,}", *fixed((size[way]["step_sec"], size[way]["speed_to_full"]), 2)]
            for size in (real, nano)
        )
        rows.append((way, *of_real, f"{real[way]['memory_gib']:.2f}", *of_nano))
    columns = "s a step | speed to full"
    titles = f"way of training | real size: trainable | {columns} | peak GiB | nano: trainable | {columns}"
    return table(titles, rows)


@block
def training_ratios() -> list[str]:
    sizes = [read("bench.json")[f"{size} size"] for size in ("real", "nano")]
    rows, random = [], "full, shuffled"
    for title, way in (("from cached latents as encoding", "full, on the fly"), ("by length as at random", random)):
        rows.append((f"times as fast {title}", *fixed((1 / size[way]["speed_to_full"] for size in sizes), 2)))
    for title, way in (("random batches", random), ("batches of like length", "full")):
        rows.append((f"padding of {title}", *(percent(size[way]["padding"]) for size in sizes)))
    return table("training everything | real size | nano size", rows)


@block
def preparing() -> list[str]:
    found = read("bench.json")["data"]
    ways = {
        "bare encoder, clip by clip": ("bare encoder", 1.0),
        "bare encoder, batches of eight": ("batches of 8", found["batches_of_8_to_one_by_one"]),
        "`data_prep.py` as a whole": ("data_prep", found["data_prep_to_bare_encoder"]),
    }
    rows = [(title, f"{found['real_time_factor'][way]:.1f}", f"{to:.2f}") for title, (way, to) in ways.items()]
    return table("what encodes | times real time | to the bare encoder", rows)


@block
def gpu_steps() -> list[str]:
    found = read("bench_gpu.json")["training"]
    rows = []
    for name, way in (("launched operation by operation", "launched"), ("replayed as CUDA graphs", "graphs")):
        s = found[way]
        memory = s.get("memory_gib", s.get("reserved_gib"))  # an older name
        times = (f"{s['steps_per_sec']:.2f}", f"{s['step_sec_median']:.4f}")
        rows.append((f"train.py, {name}", *times, "", f"{memory:.1f}", f"{s['evaluation_sec']:.2f}"))
    beside = {r["way"]: r for r in found["beside"]["printed"]}
    for name, way in (("launched", "plain"), ("graphs", "graphs")):
        s = beside[way]
        cells = (f"{s['steps_a_s']:.2f}", f"{s['s_a_step']:.4f}", f"{s['gpu_busy_s']:.4f}", f"{s['peak_gib']:.1f}", "")
        rows.append((f"the same work in an independent loop, {name}", *cells))
    titles = "way of running a step | steps a second | seconds a step | of these the GPU is busy | memory, GiB"
    return table(f"{titles} | held-out evaluation, s", rows)


@block
def gpu_speaking() -> list[str]:
    rows = []
    for m in read("bench_gpu.json")["speaking"]["measurements"]:
        if "seconds" in m:
            cells = (f"{m['audio_sec']:,.0f}", f"{m['seconds']:.2f}", f"{m['times_real_time']:,.1f}")
            rows.append((m["what"], m.get("utterances", m.get("rows")), *cells))
    return table("what speaks | utterances | seconds of speech | take seconds | times real time", rows)


@block
def gpu_same() -> list[str]:
    measured = read("bench_gpu.json")["speaking"]["measurements"]
    differences = next(m["largest_differences"] for m in measured if "largest_differences" in m)
    return prose(f"Alone and among 63 others the latents differ by at most {max(differences):.1e}.")


# --- teacher and student, guidance, the choice ------------------------------------------------------------------------


@block
def students() -> list[str]:
    groups: dict[tuple, list[dict]] = {}
    for r in read("teacher_student.json")["rows"]:
        groups.setdefault((r["model"], r["guidance"]), []).append(r)
    rows = []
    for (model, weight), runs in groups.items():
        keys = ("cer_no_marks_mean", "cer_no_marks_median", "cer_mean")
        cpu_sec = f"{statistics.mean(r['cpu_sec'] for r in runs):.0f}" if "cpu_sec" in runs[0] else ""
        errors = fixed(statistics.mean(r[key] for r in runs) for key in keys)
        rows.append((model, f"{weight:g}" if weight != 1 else "", *errors, cpu_sec))
    return table("model | weight | without marks, mean | median | with marks, mean | CPU s", rows)


@block
def demo_seeds() -> list[str]:
    rows = []
    for r in read("demo_seeds.json")["rows"]:
        errors = fixed(r[key] for key in ("cer_no_marks_mean", "cer_no_marks_median", "cer_mean"))
        rows.append((r["seed"], r["steps"], *errors, f"{r['ends']} of {r['sentences']}"))
    return table("seed | steps done | error without marks, mean | median | with marks, mean | ends reached", rows)


@block
def guided_head() -> list[str]:
    found = read("guidance.json")
    asked = found["sentences"] * found["seeds"]
    rows = []
    for weight, s in found["weights"].items():
        error = statistics.mean(score["cer_no_marks_mean"] for score in s["scores"])
        title = f"{float(weight):g}" if float(weight) != 1 else "1, no guidance"
        rows.append((title, f"{error:.3f}", f"{s['eos_reached']} of {asked}"))
    return table("weight, on the head's velocities | error without marks, mean | ends reached", rows)


@block
def choice() -> list[str]:
    names = {"flow_error": "held-out flow error", "speech_score": "speech score", "mcd_db": "its distortion alone"}
    found, rows = read("choice.json"), []
    for run, figures in found["summary"].items():
        trained = sum(row["run"] == run and row["step"] > 0 for row in found["checkpoints"])
        for key, name in names.items():
            s = figures[key]
            cells = (f"{s['rank_correlation']:.2f}", f"{s['chosen_step']:,}", f"{s['loss_of_choice']:.3f}")
            rows.append((f"{run}, {trained} checkpoints", name, *cells))
    titles = "run | figure | rank correlation with the error | step that it chooses | error above the best one's"
    return table(titles, rows)


@block
def rehearsal() -> list[str]:
    found = read("rehearsal.json")
    rows = []
    for part, title in (("teach", "teach, 24 layers"), ("distil", "distil, 6 layers")):
        p = found[part]
        rows.append((title, *fixed((p["step_sec"], p["memory_gib"]), 1), f"{p['bundle_bytes'] / 1e9:.2f}"))
    return table("part | seconds a step | peak GiB | bundle, GB", rows)


# --- the documents ----------------------------------------------------------------------------------------------------


def main() -> None:
    p = Parser(__doc__)
    p.add_argument("--check", action="store_true", help="write nothing; exit 2 if a block is not what its files say")
    args = p.parse_args()
    for name in DOCUMENTS:
        file = ROOT / name
        old = file.read_text(encoding="utf-8")
        new = filled(old)
        changed = [was[2] for was, now in zip(BLOCK.finditer(old), BLOCK.finditer(new)) if was[0] != now[0]]
        if changed and args.check:
            raise UserError(f"{name}: {', '.join(changed)}: not as the files say; python measure/tables.py writes them")
        if changed:
            with atomic_write(file) as tmp:
                tmp.write_text(new, encoding="utf-8")
        print(f"{name}: {', '.join(changed) or 'as it was'}")


if __name__ == "__main__":
    command(main)
