"""Nothing a user does ends in a traceback: options, files, damaged folders, signals, full disks."""

import importlib
import math
import sys

import pytest

SCRIPTS = ("data_prep", "train", "generate_sample")
REQUIRED = {"train": ["--data", "data/demo"], "generate_sample": ["--text", "x"], "data_prep": []}
PLAIN = ("--substitute", "--split-map", "--tune", "--asr")  # texts with a form of their own, checked by what reads them


def options(script: str) -> list:
    """(option, action) of every option of a script that takes a value."""
    parser = importlib.import_module(script).build_parser()
    return [(a.option_strings[0], a) for a in parser._actions if a.option_strings and a.nargs != 0]


def test_every_option_has_a_range():
    """A new one cannot lack it: numbers have theirs, other values a set of choices or a type that refuses nothing at all."""
    bad = []
    for script in SCRIPTS:
        for option, action in options(script):
            checked = hasattr(action.type, "range") or action.choices or getattr(action.type, "__name__", "") in ("filled", "location")
            bad += [] if checked or option in PLAIN else [f"{script} {option}"]
    assert not bad


VALUES = ["nan", "inf", "-inf", "-1", "0", str(2**70), "", "x", "٣", "9" * 400, "1e400", "0x10", " ", "\udcff"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_odd_values_are_refused_in_one_line_or_in_range(script, monkeypatch, capsys):
    """Every option that takes a number, with every odd value: exit 2 and one short line that names the option, or a finite number
    within the option's range."""
    module, refused, taken = importlib.import_module(script), 0, 0
    for option, action in options(script):
        if not hasattr(action.type, "range") and getattr(action.type, "__name__", "") not in ("filled", "location"):
            continue
        for value in VALUES:
            given = [f"{option}={value}"] if action.nargs is None else [option, *[value] * action.nargs]
            required = [] if option in REQUIRED[script] else REQUIRED[script]
            monkeypatch.setattr(sys, "argv", [f"{script}.py", *required, *given])
            try:
                found = getattr(module.build_parser().parse_args(), action.dest)
            except SystemExit as stop:
                line = capsys.readouterr().err
                assert stop.code == 2 and line.count("\n") == 1 and option in line and len(line) < 400, (option, value, line)
                refused += 1
                continue
            taken += 1
            for number in found if isinstance(found, list) else [found]:
                if isinstance(number, (int, float)):
                    least, most = action.type.range
                    assert math.isfinite(number) and least <= number <= most, (option, value)
    assert refused > 100 and taken
