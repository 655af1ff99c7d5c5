"""Files of JSON lines: the runs in a file, numbers of every kind, and damaged lines."""

import math

import pytest

import jaxclip
from jaxclip.plot.log import Log
from tests.plot.logs import values, write

INF = float("inf")


def test_files(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [{"kind": "run", "preset": "old"}, {"kind": "step", "step": 0, "x": 7.0}]
    rows += [
        {"kind": "run", "preset": "explode", "sizes": [3]},
        {"kind": "step", "step": 0, "x": 1},
    ]
    rows += [
        {"kind": "resume", "step": 9, "x": 5},
        {"kind": "step", "step": 1, "x": None, "t": "a"},
    ]
    rows += [{"kind": "epoch", "epoch": 0, "steps": 2, "test_accuracy": 0.5, "big": 10**400}]
    write(folder / "metrics.jsonl", *rows)
    ((name, records),) = jaxclip.plot.read(folder).items()
    assert name == "explode"
    assert [list(r) for r in records] == [
        ["step", "x"],
        ["step", "x"],
        ["epoch", "steps", "test_accuracy"],
    ]
    assert values(folder, "test_accuracy") == [(2, 0.5)]
    assert jaxclip.plot.read(write(folder / "other.jsonl", {"x": 1})) == {"mine": [{"x": 1.0}]}


def test_runs_in_one_file(tmp_path):
    rows = [
        {"rule": rule, "first_learning_rate": 0.1, "seed": seed, "step": 0, "loss": seed}
        for rule in ("a", "b")
        for seed in (1, 2)
    ]
    path = write(tmp_path / "log.jsonl", *rows)
    found = jaxclip.plot.read(path)
    assert list(found) == ["a, seed 1", "a, seed 2", "b, seed 1", "b, seed 2"]
    assert found["b, seed 2"] == [{"step": 0.0, "loss": 2.0}]
    with pytest.raises(ValueError, match=r"has 4 runs, choose one: \['a, seed 1'"):
        Log(path)
    rows = [{"first_learning_rate": rate, "loss": 1.0} for rate in (0.1, 0.2)]
    assert list(jaxclip.plot.read(write(path, *rows))) == ["rate 0.1", "rate 0.2"]
    rows = [{"story": "s", "run": run, "loss": 1.0} for run in ("x", "y")]
    assert list(jaxclip.plot.read(write(path, *rows, {"loss": 1.0}))) == [
        "s, x",
        "s, y",
        tmp_path.name,
    ]


def test_a_run_that_was_started_again_replaces_the_earlier_one(tmp_path):
    for steps, kept in (
        ((0, 1, 2, 1, 2, 3), [0, 1, 2, 1, 2, 3]),  # resumed after step 0
        ((0, 1, 2, 0, 1), [0, 1]),
        ((5, 6, 4, 5), [4, 5]),
        ((0, 0, 1), [0, 0, 1]),  # two lines for a step
        ((3, 2, 1, 0), [3, 2, 1, 0]),  # the newest first
    ):
        path = write(tmp_path / "log.jsonl", *({"step": s, "x": 1.0} for s in steps))
        (records,) = jaxclip.plot.read(path).values()
        assert [record["step"] for record in records] == kept


def test_numbers_of_every_kind(tmp_path):
    odd = {
        "big": 10**400,
        "list": [1],
        "word": "fast",
        "number": "7",
        "id": {"a": {"b": 2}, "c": True},
    }
    words = {"a": "inf", "b": "-Infinity", "c": "NaN", "d": None}
    path = write(tmp_path / "log.jsonl", odd, words, {"kind": ["x"], "run": {"id": [3]}, "x": 1})
    (first, second), (third,) = jaxclip.plot.read(path).values()
    assert first == {"id/a/b": 2, "id/c": 1}
    assert list(second.values())[:2] == [INF, -INF]
    assert [math.isnan(second[key]) for key in "cd"] == [True, True]
    assert third == {"x": 1}


def test_control_characters_are_spelled_out(tmp_path):
    """A terminal would obey them, and matplotlib fails at half a character."""
    rows = [{"run": run, "слой\x1b[31m\ud800": 1} for run in ("a\nb", "é")]
    found = jaxclip.plot.read(write(tmp_path / "log.jsonl", *rows))
    assert list(found) == [r"a\nb", "é"]
    assert found["é"] == [{r"слой\x1b[31m\ud800": 1}]


def test_damaged_lines_are_left_out_and_told(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"x": 1}\n{"x": \n\xff\xfe\n[1]\n' + b"[" * 100_000 + b'\n{"x": 2}\n{"x"')
    with pytest.warns(UserWarning, match=r"log.jsonl: damaged lines left out: 5"):
        assert values(path, "x") == [(0, 1), (1, 2)]
    for content, words in (
        (b"", "log.jsonl: empty"),
        (b"\n \n", "log.jsonl: empty"),
        (b"step,loss\n0,1.5\n", r"no line is a JSON object; log one object a line: json\.dumps"),
        (b'{"kind": "run"}\n', "no line has a number; log one"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            jaxclip.plot.read(path)
    with pytest.raises(OSError, match="nowhere"):
        jaxclip.plot.read(tmp_path / "nowhere")
