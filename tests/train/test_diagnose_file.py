"""`jaxclip diagnose FILE`: logs of this program and of others, whole, odd and damaged."""

import functools
import io
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import matplotlib.image
import optax
import pytest

import jaxclip
from jaxclip.train import cli
from jaxclip.train.reporting import layer_figure
from tests.train import runs


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The paths of the figures, which are not drawn: that takes two seconds each."""

    original = layer_figure.draw
    undo = functools.partial(monkeypatch.setattr, layer_figure, "draw", original)
    result = types.SimpleNamespace(paths=[], undo=undo)
    monkeypatch.setattr(layer_figure, "draw", lambda *arguments: result.paths.append(arguments[2]))
    return result


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def falling(layers=5, steps=12, monitor="grads", **more):
    """Norms that fall tenfold a layer towards the input, and rise by a hundredth a step."""
    return [
        {f"{monitor}/norm/Dense_{i}/kernel": 1.01**step * 10.0**i for i in range(layers)} | more
        for step in range(steps)
    ]


def diagnose(capsys, *arguments, code=0):
    assert cli.main(["diagnose", *arguments]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def saved(tmp_path, content):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


FALLS = "vanishing: from the output to the input the gradient norm falls by a factor of 10 a layer"


@pytest.mark.parametrize(
    "content",
    [
        lines_of(falling()),
        lines_of(falling(monitor="monitor")),
        lines_of(falling(monitor="train/grads", step=1)[:1]),
        "\n \n" + lines_of(falling()),
        lines_of([{"loss": 1.0}, *falling(), {"note": "end"}, {"grads/norm/other": 1.0}]),
        lines_of([*[{"clip/norm": 1.0}] * 30, *falling(clip=1.0)]),
        lines_of([{"step": i, "opt": row, "ok": True, "name": "x"} for i, row in
                  enumerate(falling())]),
    ],
)  # fmt: skip
def test_any_log(content, tmp_path, capsys):
    said = diagnose(capsys, saved(tmp_path, content))
    assert FALLS in said
    assert [line.split()[0] for line in said.splitlines() if line.startswith("Dense")] == [
        f"Dense_{i}" for i in range(5)
    ]
    assert "--clip" not in said  # another program has other flags
    assert "damaged" not in said
    assert "figure: layers.png\n" in said


@pytest.mark.slow
def test_the_figure(tmp_path, capsys, drawn):
    drawn.undo()
    diagnose(capsys, saved(tmp_path, lines_of(falling())))
    assert matplotlib.image.imread(tmp_path / "work" / "layers.png").shape == (550, 1320, 4)
    path = saved(tmp_path, lines_of(falling(layers=1, steps=1)))
    assert "--out=x.txt: a figure's name must" in diagnose(capsys, path, "--out", "x.txt", code=2)
    said = diagnose(capsys, path, "--out", "/dev/null/x.png", code=1)
    assert said.startswith("jaxclip: error: /dev/null/x.png: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("word", ["inf", "Infinity", "-Infinity", "nan", "NaN", None, math.inf])
def test_numbers_that_are_not_finite(word, tmp_path, capsys):
    """Norms that grow until the step numbered 70, which is not finite."""
    rows = [{"step": 10 * i, "grads/norm/a": 10.0**i, "grads/norm/b": 1.0} for i in range(7)]
    rows.append({"step": 70, "grads/norm/a": word, "grads/norm/b": 1.0})
    said = diagnose(capsys, saved(tmp_path, lines_of(rows)))
    assert "exploding: the norm of the gradient grew from 1.4 at step 0 to 1e+06 at step 60" in said
    assert "and is NaN or inf at step 70. A bound on the norm helps" in said  # there is no rule
    assert "findings from 8 recorded steps, 0 to 70:\n" in said


def test_damaged_lines_are_counted(tmp_path, capsys):
    rows = lines_of(falling())
    torn = rows + '{"grads/norm/Dense_0/ker'
    said = diagnose(capsys, saved(tmp_path, torn))
    assert said.startswith(f"note: {tmp_path}/log.jsonl: 1 damaged line left out\n")
    bad = rows.encode() + b"\xff\xfe\n[1]\n" + b"[" * 100_000 + b"\nnull\n"
    assert ": 4 damaged lines left out\n" in diagnose(capsys, saved(tmp_path, bad))


@pytest.mark.slow
def test_a_log_of_any_program(tmp_path, capsys, monkeypatch, drawn):
    """The documented line, from a training loop with a rule and monitors."""
    tx = optax.chain(
        jaxclip.monitor(name="grads"),
        jaxclip.clip_by_global_norm(0.01),
        optax.sgd(0.1),
        jaxclip.monitor(name="updates"),
        jaxclip.monitor(of="params", name="weights"),
    )
    params = {f"Dense_{i}": {"kernel": jnp.full((2, 2), 2.0)} for i in range(3)}
    state, log = tx.init(params), []
    for step in range(12):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        numbers = jaxclip.to_floats(jaxclip.metrics(state))
        log.append(json.dumps({"step": step, "loss": 1.0 / (step + 1)} | numbers))
    text = io.TextIOWrapper(io.BytesIO("\n".join(log).encode()))
    monkeypatch.setattr(sys, "stdin", text)
    said = diagnose(capsys, "-", "--out", str(tmp_path / "my.png"))
    assert "clipped: clip_by_global_norm clipped 12 of 12 steps (100 %)" in said
    assert "the loss falls" in said
    assert "update/" in said
    assert f"figure: {tmp_path}/my.png" in said
    assert drawn.paths == [tmp_path / "my.png"]


def test_a_log_of_a_rule_alone(tmp_path, capsys):
    fields = ("norm", "threshold", "scale", "count", "clipped_count", "nonfinite_count")
    rows = [
        dict(zip((f"clip_by_global_norm/{f}" for f in fields), values, strict=True))
        for values in ((10.0**i, 1.0, 0.1**i, i + 1, i, 0) for i in range(12))
    ]
    said = diagnose(capsys, saved(tmp_path, lines_of(rows)))
    assert "exploding: over the steps the norm of the gradient grew" in said
    assert "clip_by_global_norm clipped 11 of 12 steps" in said
    assert 'put jaxclip.monitor(name="grads") first in the chain' in said


NAMED = [(1, "a"), (2, "b"), (3, "c")]


def test_monitors_by_name(tmp_path, capsys):
    rows = [
        {
            f"{m}/norm/Dense_{i}/kernel": x * 10.0**i
            for x, m in enumerate("abc", 1)
            for i in range(3)
        }
    ] * 3
    path = saved(tmp_path, lines_of(rows))
    names = ["--gradients", "b", "--weights", "c", "--updates", "a"]
    table = [line.split() for line in diagnose(capsys, path, *names).splitlines()]
    assert ["Dense_0", "2.0000", "3.0000", "1.0000", "0.3333"] in table
    said = diagnose(capsys, path, "--weights", "weihgts", code=2)
    assert said == "jaxclip: error: --weights=weihgts: no such monitor, choose from a, b, c\n"


ERRORS = [
    (b"", "empty"),
    (b"\n\n", "empty"),
    (b"step,loss\n0,1.5\n1,1.2\n", "no line is a JSON object; log one object a line: json.dumps("),
    (b"\x89PNG\r\n\x1a\n\0\0", "no line is a JSON object"),
    (b'{"loss": 1.0}\n', "no line has a norm, such as grads/norm: log jaxclip.metrics(state)"),
    (b'[{"grads/norm": 1}]\n', "no line is a JSON object"),
    (b'{\n "status": "finished"\n}\n', "no line is a JSON object"),
]


@pytest.mark.parametrize(("content", "message"), ERRORS)
def test_wrong_files_in_one_line(content, message, tmp_path, capsys):
    path = saved(tmp_path, content)
    said = diagnose(capsys, path, code=2)
    assert said.startswith(f"jaxclip: error: FILE={path}: {message}")
    assert said.count("\n") == 1


def test_missing_files_in_one_line(tmp_path, capsys):
    said = diagnose(capsys, "nosuch.jsonl", code=2)
    assert said == "jaxclip: error: FILE=nosuch.jsonl: No such file or directory\n"
    said = diagnose(capsys, str(tmp_path), code=2)
    assert said == f"jaxclip: error: FILE={tmp_path}: a folder without metrics.jsonl\n"
    assert diagnose(capsys, code=2) == (
        "jaxclip: error: FILE: needed, see jaxclip diagnose --help\n"
    )


@pytest.mark.slow
def test_a_run_of_this_program(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["explode", *runs.SMALL, "--epochs", "6", "--learning-rate", "1"]
    runs.train("train", *command, "--out", str(out))
    capsys.readouterr()
    for file in (out, out / "metrics.jsonl"):
        said = diagnose(capsys, str(file))
        for sentence in runs.summary(out)["findings"]:
            assert f"- {sentence}" in said
    assert "Try: --" in said
    assert [line.split()[0] for line in said.splitlines() if line.startswith("layers/")] == [
        *("layers/0", "layers/1")
    ]


@pytest.mark.slow
def test_each_run_of_a_comparison(tmp_path, capsys):
    rules = ("--clip", "none", "--clip", "global_norm=1")
    runs.train("compare", *runs.SMALL, "--epochs", "2", *rules, "--out", str(tmp_path / "c"))
    capsys.readouterr()
    said = diagnose(capsys, str(tmp_path / "c"))
    assert said.count(": 1 recorded step") + said.count(" recorded steps, ") >= 2
    assert "no clip: " in said
    assert "global_norm=1: " in said
    assert "figure: none, as the file has 2 runs" in said
    assert not (tmp_path / "work" / "layers.png").exists()


def test_steps_and_counts_that_are_none(tmp_path, capsys):
    """Steps that are no whole numbers are counted; counts that cannot be are left out."""
    odd = {"clip/count": 1e300, "clip/clipped_count": "inf", "clip/norm": 1.0}
    rows = [row | odd | {"step": i / 10} for i, row in enumerate(falling())]
    said = diagnose(capsys, saved(tmp_path, lines_of(rows)))
    assert said.startswith("findings from 12 recorded steps, 0 to 11:\n")
    assert "clipped:" not in said


def test_medians_are_of_finite_steps(tmp_path, capsys):
    rows = falling(layers=3, steps=3)
    rows[1]["grads/norm/Dense_0/kernel"] = "inf"
    rows[0]["grads/norm/Dense_0/kernel"] = 4.0
    rows[2]["grads/norm/Dense_0/kernel"] = 6.0
    said = diagnose(capsys, saved(tmp_path, lines_of(rows)))
    assert any(line.split() == ["Dense_0", "5.0000"] for line in said.splitlines())
