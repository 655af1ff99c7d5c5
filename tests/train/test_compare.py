"""`jaxclip compare`: the runs of a command line, the files written, and errors."""

import dataclasses
import shutil
import types

import matplotlib.image
import numpy as np
import pytest

from jaxclip.train import cli, data
from jaxclip.train.cli import flags, parser
from jaxclip.train.commands import compare
from jaxclip.train.config import presets
from tests.train import runs


def variants_of(*arguments, monkeypatch):
    """The variants of a command line, without training."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(compare, "run", lambda variants, *rest, **more: seen.extend(variants))
        patch.setattr(data, "load", lambda *where: types.SimpleNamespace(key="mnist"))
        assert cli.main(["compare", *arguments]) == 0
    return seen


CHAINS = [
    ("none", ()),
    ("global_norm=1", ("global_norm=1",)),
    ("global_norm=1+value=0.5", ("global_norm=1", "value=0.5")),
    ("global_norm=1e+5 + value=-1:+2 + norm=2", ("global_norm=1e+5", "value=-1:+2", "norm=2")),
    ("agc=1e+0,eps=1e+1+zclip", ("agc=1e+0,eps=1e+1", "zclip")),
]


@pytest.mark.parametrize(("text", "rules"), CHAINS)
def test_chains(text, rules, monkeypatch):
    (variant,) = variants_of("--clip", text, monkeypatch=monkeypatch)
    assert variant.configs[0].clip == rules
    assert flags.axes(parser.build().parse_args(["compare", "--guard", text]))["guard"] == [rules]


def test_all_combinations_in_the_order_of_fields(monkeypatch):
    """The order is that of the fields, learning rates before rules, not that of the flags."""
    found = variants_of(
        *("forward", "--clip", "none", "--clip", "value=1+norm=2", "--seeds", "2", "--seed", "5"),
        *("--learning-rate", "0.1", "--learning-rate", "1e-2", "--learning-rate", "0.1"),
        *("--batch-norm", "--no-batch-norm", "--batch-norm", "--sizes", "8,4", "--epochs", "3"),
        monkeypatch=monkeypatch,
    )
    wanted = [
        (f"{norm}, {clip}", rate)
        for norm in ("batch norm", "no batch norm")
        for rate in (0.1, 0.01)
        for clip in ("no clip", "value=1 + norm=2")
    ]
    assert [(v.rule, v.learning_rate) for v in found] == wanted
    base = dataclasses.replace(presets.get("forward", "mnist"), sizes=(8, 4), epochs=3)
    for (rule, rate), variant in zip(wanted, found, strict=True):
        own = {
            "batch_norm": not rule.startswith("no batch"),
            "learning_rate": rate,
            "clip": () if rule.endswith("no clip") else ("value=1", "norm=2"),
            "allow_nonfinite": False,
        }
        assert variant.configs == tuple(dataclasses.replace(base, seed=s, **own) for s in (5, 6))


@pytest.mark.parametrize(
    ("arguments", "words", "seeds"),
    [
        ([], ["as the preset"], [11]),
        (["--clip", "zclip"], ["zclip"], [11]),
        (["--seeds", "3"], ["as the preset"], [11, 12, 13]),
        (["--seed", "4", "--seed", "2", "--seed", "4"], ["as the preset"], [4, 2]),
        (["--sizes", "8", "--sizes", "4,4"], ["sizes 8", "sizes 4,4"], [11]),
        (
            ["--clip", "value=1", "--clip", "value=1", "--clip", "none"],
            ["value=1", "no clip"],
            [11],
        ),
        (["--guard", "none", "--guard", "skip_spikes"], ["no guard", "skip_spikes"], [11]),
        (["--project", "none", "--project", "max_norm=1"], ["no project", "max_norm=1"], [11]),
        (["--init-std", "1", "--init-std", "0.5"], ["init std 1.0", "init std 0.5"], [11]),
        (["--shuffle", "--no-shuffle"], ["shuffle", "no shuffle"], [11]),
    ],
)
def test_names_and_seeds_of_variants(arguments, words, seeds, monkeypatch):
    found = variants_of(*arguments, monkeypatch=monkeypatch)
    assert [v.rule for v in found] == words
    assert all([c.seed for c in v.configs] == seeds for v in found)
    assert all(c.preset == "explode" for v in found for c in v.configs)


COMMAND = [
    *("compare", *runs.SMALL, "--epochs", "2", "--seed", "0", "--seeds", "2", "--log-every", "2"),
    *("--learning-rate", "0.1", "--learning-rate", "1e30"),
    *("--clip", "global_norm=1", "--clip", "global_norm=0.01"),
]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Four variants of two seeds in one program; all runs with the second rate are lost."""
    out = tmp_path_factory.mktemp("compare")
    runs.train(*COMMAND, "--out", str(out))
    return out


def content(folder):
    return runs.strictly((folder / "compare.json").read_text())


@pytest.mark.slow
def test_a_row_for_each_variant(first):
    written = content(first)
    assert set(written) == {"preset", "data", "device", "rows", "seconds"}
    assert (written["preset"], written["data"]) == ("explode", "digits (8x8)")
    rows = written["rows"]
    assert [(r["rule"], r["learning_rate"]) for r in rows] == [
        *(("global_norm=1", 0.1), ("global_norm=0.01", 0.1)),
        *(("global_norm=1", 1e30), ("global_norm=0.01", 1e30)),
    ]
    for row in rows:
        assert row["seeds"] == [0, 1]
        assert row["config"]["clip"] == [row["rule"]]
        assert row["config"]["learning_rate"] == row["learning_rate"]
        assert row["seconds_per_epoch"] > 0
        assert len(row["clipped_fraction"]) == 2
    assert rows[0]["clipped_fraction"] == [0, 0]
    assert rows[1]["clipped_fraction"] == [1, 1]


@pytest.mark.slow
def test_rows_hold_the_scores_of_the_records(first):
    records = runs.records(first)
    assert records[0]["kind"] == "run"
    labels = ("rule", "first_learning_rate", "seed")
    for row in content(first)["rows"]:
        for i, seed in enumerate(row["seeds"]):
            key = (row["rule"], row["learning_rate"], seed)
            own = [r for r in records[1:] if tuple(r[k] for k in labels) == key]
            steps, epochs = ([r for r in own if r["kind"] == k] for k in ("step", "epoch"))
            if row["lost_at_step"][i] is None:
                assert [r["step"] for r in steps] == [0, 2]
                assert [r["steps"] for r in epochs] == [2, 4]
                for score in ("train_loss", "test_loss", "test_accuracy", "grad_norm_max"):
                    assert row[score][i] == epochs[-1][score]
            else:
                assert [r["step"] for r in steps] == [0, 1]  # the last before the loss
                assert [r["steps"] for r in epochs] == [2]


@pytest.mark.slow
def test_lost_runs_are_reported(first):
    """A step of 1e30 overflows the weights, so the loss of the next step is infinite."""
    for row in content(first)["rows"]:
        lost = row["learning_rate"] == 1e30
        assert row["lost_at_step"] == ([1, 1] if lost else [None, None])
        assert len(row["test_accuracy"]) == (0 if lost else 2)


@pytest.mark.slow
def test_a_second_comparison_sets_the_first_aside(first, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    out = tmp_path / "out"
    shutil.copytree(first, out)
    runs.train(*COMMAND, "--out", str(out), "--no-at-once")
    said = capsys.readouterr().out
    assert f"held another run, which is now in {out / 'earlier-1'}" in said
    assert "8 runs of 4 variants, 1 program\n" in said
    assert "4 of 8 runs lost" not in said  # that is the figure's headline
    assert said.count("2 of 2") == 2
    aside = out / "earlier-1"
    assert {p.name for p in aside.iterdir()} == {
        "compare.json", "compare.png", "metrics.jsonl"
    }  # fmt: skip
    assert (aside / "compare.json").read_bytes() == (first / "compare.json").read_bytes()
    assert matplotlib.image.imread(out / "compare.png").shape == (550, 1320, 4)
    assert [r["kind"] for r in runs.records(out)].count("run") == 1
    for at_once, in_turn in zip(content(first)["rows"], content(out)["rows"], strict=True):
        assert at_once["lost_at_step"] == in_turn["lost_at_step"]
        np.testing.assert_allclose(at_once["train_loss"], in_turn["train_loss"], rtol=1e-5)
        np.testing.assert_allclose(at_once["test_loss"], in_turn["test_loss"], rtol=1e-5)


ERRORS = [
    (["--seeds", "0"], "--seeds=0: must be at least 1"),
    (["--seeds", "-2"], "--seeds=-2: must be at least 1"),
    (["--seeds", "1000000000"], "--seeds=1000000000: must be at most 10,000"),
    (["--seeds", "x"], "--seeds=x: must be a whole number"),
    (["--seeds", "2", "--seed", "1", "--seed", "2"], "with one --seed or none"),
    (["--seeds", "2", "--seed", str(2**32 - 1)], "--seed=4294967296: must be at least 0"),
    (["--clip", "none", "--clip", "foo=1"], "--clip foo=1: unknown rule 'foo'"),
    (["--clip", "value=1+foo=1"], "--clip foo=1: unknown rule 'foo'"),
    (["--clip", "value=1+"], "--clip value=1+: "),
    (["--clip", "none+value=1"], "--clip none: unknown rule 'none'"),
    (["--clip", "value=1", "--clip", "global_norm=-1"], "--clip global_norm=-1: max_norm=-1"),
    (["--project", "none", "--project", "foo"], "--project foo: unknown rule"),
    (["--guard", "none", "--guard", "skip_spikes=3"], "--guard skip_spikes=3: takes no value"),
    (["--activation", "relu", "--activation", "sine"], "--activation=sine: unknown, choose"),
    (["--learning-rate", "0.1", "--learning-rate", "0"], "--learning-rate=0.0: must be positive"),
    (["--learning-rate", "fast"], "--learning-rate=fast: must be a number"),
    (["--batch-size", "64", "--batch-size", "2000"], "--batch-size=2000: more than the 1,437"),
    (["--sizes", "8", "--sizes", "0"], "--sizes=0: must be widths of at least 1"),
    (["--epochs", "1", "--epochs", "0"], "--epochs=0: must be at least 1"),
    (["--rate", "1"], "--rate"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    assert cli.main(["compare", "explode", "--dataset", "digits", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("jaxclip: error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.slow
def test_a_comparison_that_lost_every_run_fails(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", *runs.SMALL, "--epochs", "1", "--learning-rate", "1e30"]
    assert cli.main([*command, "--clip", "global_norm=1", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert said.err == (
        "jaxclip: error: the loss of the run was not finite; a smaller --learning-rate or another "
        "--clip may help\n"
    )
    assert "1 run of 1 variant, 1 program\n" in said.out
    assert content(out)["rows"][0]["lost_at_step"] == [1]
