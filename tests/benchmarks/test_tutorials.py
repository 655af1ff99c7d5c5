"""The comparisons with the tutorials' TensorFlow programs, in their short form."""

import json
import math
from multiprocessing import Pipe
from threading import Thread

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="the benchmarks are in a checkout only")
pytest.importorskip("rich")

from benchmarks.epoch import __main__ as epoch
from benchmarks.epoch import programs as worker
from benchmarks.tutorials import __main__ as tutorials
from benchmarks.tutorials import report, runs
from benchmarks.tutorials.history import TENSORS, History, figures
from jaxclip.train.config import presets

pytestmark = pytest.mark.relaxed


def with_tensorflow():
    pytest.importorskip(
        "tensorflow", reason="the tutorials' programs need TensorFlow: pip install -e .[parity]"
    )


@pytest.mark.slow
def test_tutorials(tmp_path, capsys):
    with_tensorflow()
    (tmp_path / "tutorials.md").write_text(
        "By hand.\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nToo.\n"
    )
    assert tutorials.main(["--smoke", "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    programs = json.loads((tmp_path / "tutorials.json").read_text())["programs"]
    assert programs.keys() == set(runs.NAMES)
    for name, program in programs.items():
        pairs = program["same weights and batches, relative difference"]
        _to_rounding(name, pairs)
        for row in program["rows"].values():
            assert len(row["tensorflow"]) == len(row["jaxclip"]) == 2
    _bound(programs["max-norm"]["rows"]["largest norm of a row, hidden kernels"])
    text = (tmp_path / "tutorials.md").read_text()
    assert text.startswith("By hand.\n")
    assert text.endswith("Too.\n")
    assert "old" not in text


def _to_rounding(name, pairs):
    """From the same weights on the same batches; with weights of 1 only until it explodes."""
    assert pairs["loss, step 0"] < 1e-5
    if name != "forward, std 1":
        assert max(pairs.values()) < 1e-3
    if name == "explode":
        assert {key for key in pairs if key.startswith("norms")} == {
            "norms, second step, before",
            "norms, second step, after",
        }


def _bound(row):
    assert max(row["tensorflow"] + row["jaxclip"]) <= 1 + 1e-6


@pytest.mark.slow
def test_epoch(tmp_path, capsys):
    with_tensorflow()
    assert epoch.main(["--smoke", "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "epoch.json").read_text())
    assert content["seconds"].keys() == worker.PROGRAMS.keys()
    for name, seconds in content["seconds"].items():
        assert len(seconds) == epoch.SMOKE_TURNS
        assert min(seconds) > 0
        assert content["test_accuracy"][name] > 0.4  # all of them learn
    for name, goal in epoch.GOALS.items():
        ratio = content["median"][name] / content["median"]["jaxclip"]
        assert content["ratio"][name] == pytest.approx(ratio, rel=1e-6)
        assert content["reached"][name] == (content["ratio"][name] >= goal)
    assert "| `jaxclip train explode` |" in (tmp_path / "epoch.md").read_text()


def test_gate_releases_epochs_on_request():
    here, there = Pipe()
    done = []

    def train():
        gate = worker.Gate(there)
        while gate():
            done.append(len(done))
            gate.trained(0.5, 0.25 * len(done))

    thread = Thread(target=train)
    thread.start()
    assert here.recv() is None  # ready
    for count, so_far in ((1, 1), (3, 4)):
        here.send(count)
        turn = here.recv()
        assert len(done) == so_far
        assert turn.test_accuracy == 0.25 * so_far
        assert turn.training == 0.5 * count
        assert 0 <= turn.waiting <= turn.seconds < 60
    here.send(0)
    thread.join(60)
    assert not thread.is_alive()
    assert len(done) == 4


def test_published_figures_have_a_row():
    """Published numbers are looked up by the names that a full-length history gives."""
    losses = np.ones((30, 469))
    norms = np.ones((469, len(TENSORS)))
    for name, published in report.PUBLISHED.items():
        epochs = runs.config(name, 0).epochs
        found = figures(name, History(losses[:epochs], np.ones((30, 2)), norms, norms))
        assert published.keys() <= found.keys()


def test_overlapping_and_separate_seeds():
    assert report.Row("", None, [1.0, 2.0, 3.0], [3.0, 4.0, 5.0]).overlap
    assert not report.Row("", None, [1.0, 2.0, 3.0], [3.1, 4.0, 5.0]).overlap
    assert report.Row("", None, [15.0], [15.0000001]).overlap
    assert report.Row("", None, [math.nan], [math.nan]).overlap
    assert not report.Row("", None, [math.nan], [1.0]).overlap
    assert report._apart(3.0, 3.0) == 0
    assert report._apart([2.0, 4.0], [2.0, 5.0]) == 0.25
    assert math.isinf(report._apart(math.nan, 1.0))
    assert math.isnan(report._apart(math.nan, math.nan))
    row = report.Row("loss", 385739.0, [3e5, 4e5, 5e5], [3e5, 4e5, 6e5])
    assert report.cells(row) == [
        "loss",
        "385739",
        "400000 (300000 to 500000)",
        "400000 (300000 to 600000)",
        "+0",
        "yes",
    ]


@pytest.mark.slow
def test_programs_are_the_presets():
    """The hyper-parameters that stand in the TensorFlow programs are those of the presets."""
    with_tensorflow()
    from benchmarks.tutorials import tensorflow_eager as eager
    from benchmarks.tutorials import tensorflow_graph as graph

    for name, program in eager.PROGRAMS.items():
        config = presets.get(name)
        there = program.hidden, program.rate, program.batch, program.epochs
        here = config.sizes, config.learning_rate, config.batch_size, config.epochs
        assert there == here
    config = presets.get("max-norm")
    decay = config.end_learning_rate, config.decay_steps, config.power, config.momentum
    assert decay == (graph.LAST_RATE, graph.DECAY_STEPS, graph.POWER, graph.MOMENTUM)
    for name in ("value-clip", "max-norm"):
        config = presets.get(name)
        here = config.sizes, config.learning_rate, config.batch_size, config.epochs
        assert here == (graph.HIDDEN, graph.RATE, graph.BATCH, graph.EPOCHS)


@pytest.mark.parametrize("benchmark", [tutorials, epoch])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--smoke", "--data-dir", "x"], "--data-dir=x: --smoke takes"),
        (["--data-dir", "nowhere"], "--data-dir=nowhere: No such file"),
        (["--smoke", "--out", "file"], "--out=file: cannot be written to"),
        (["--smoke", "--out", "unmarked"], "tables: begin --> and"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_errors_are_one_line(benchmark, arguments, words, tmp_path, monkeypatch, capsys):
    if "--smoke" in arguments or "nowhere" in arguments:
        with_tensorflow()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "unmarked").mkdir()
    for name in ("tutorials", "epoch"):
        (tmp_path / "unmarked" / f"{name}.md").touch()
    assert benchmark.main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


@pytest.mark.parametrize("benchmark", [tutorials, epoch])
def test_error_without_tensorflow(benchmark, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert benchmark.main(["--smoke"]) == 2
    assert "TensorFlow is missing: pip install" in capsys.readouterr().err
