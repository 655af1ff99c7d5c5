"""The benchmark of rules on three networks in its short form: its runs are comparable."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="the benchmarks are in a checkout only")
pytest.importorskip("matplotlib")

from benchmarks.spikes import __main__ as spikes
from benchmarks.spikes import networks, report, training
from benchmarks.spikes import rules as compared

pytestmark = pytest.mark.relaxed


@pytest.mark.slow
def test_smoke(tmp_path, capsys):
    (tmp_path / "spikes.md").write_text(
        "By hand.\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nToo.\n"
    )
    assert spikes.main(["--smoke", "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "spikes.json").read_text())
    assert {s.network for s in compared.SECTIONS} == content["networks"].keys()
    for network in content["networks"].values():
        _same_bad_steps(network)
    _touched_by_nobody_and_by_a_guard(content["sections"])
    text = (tmp_path / "spikes.md").read_text()
    assert text.startswith("By hand.\n")
    assert text.endswith("Too.\n")
    assert "old" not in text
    for section in content["sections"].values():
        assert section["title"] in text
        assert all(f"| `{rule}` |" in text for rule in section["rules"])
    assert (tmp_path / "figures" / "spikes.png").stat().st_size > 10_000


def _same_bad_steps(network):
    bad = {
        name: [{step for steps in seed.values() for step in steps} for seed in seeds]
        for name, seeds in network["bad_steps"].items()
    }
    first, end = network["size"]["first_bad"], network["size"]["steps"] - network["size"]["quiet"]
    assert bad["calm"] == [set(), set()]
    assert bad["spiked"] == bad["nan"]
    for few, many in zip(bad["rare"], bad["spiked"], strict=True):
        assert few < many <= set(range(first, end))


def _touched_by_nobody_and_by_a_guard(sections):
    for section in sections.values():
        for numbers in section["rules"]["no rule"].values():
            assert numbers["touched_ordinary"] == [0, 0]
            assert numbers["touched_bad"] in ([0, 0], [None, None])
    # A guard that sees nothing to do, on the same weights, batches and bad steps.
    finite = sections["mlp-momentum"]["rules"]
    for setting, numbers in finite["skip_nonfinite"].items():
        assert numbers["touched_ordinary"] == [0, 0]
        loss = finite["no rule"][setting]["final_loss"]
        np.testing.assert_allclose(numbers["final_loss"], loss, rtol=1e-3)
    poisoned = {n: numbers["high, nan"] for n, numbers in sections["mlp-nan"]["rules"].items()}
    assert poisoned["no rule"]["final_loss"] == ["NaN", "NaN"]
    assert poisoned["skip_nonfinite"]["touched_bad"] == [1, 1]
    assert poisoned["skip_nonfinite"]["touched_ordinary"] == [0, 0]
    assert np.isfinite(poisoned["skip_nonfinite"]["final_loss"]).all()


@pytest.mark.slow
def test_some_sections_are_only_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert spikes.main(["--smoke", "--only", "rnn"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "### RNN" in said
    assert "MLP" not in said
    assert not list(tmp_path.iterdir())


def test_a_section_compares_with_no_rule_and_the_constant():
    for section in compared.SECTIONS:
        assert next(iter(section.rules)) == "no rule"
        assert "clip_by_global_norm(1.0)" in section.rules
    assert {section.network for section in compared.COMPARED} == set(spikes.SIZES)
    for section in compared.COMPARED:
        every = compared.TRANSFORMER_RULES if section.network == "transformer" else compared.RULES
        assert section.rules.keys() >= every.keys()
        assert section.rates["high"] > section.rates["sound"]


@pytest.mark.parametrize("name", ["rnn", "transformer"])
def test_bad_batches_are_of_the_network_s_kinds(name):
    network, size, plans = spikes.task(name, None, smoke=True)
    calm, spiked = plans["calm"], plans["spiked"]
    assert set(np.unique(spiked.kind)) == {0, *network.kinds}
    assert (calm.examples == spiked.examples).all()
    bad = spiked.kind > 0
    assert bad.sum(axis=1).tolist() == [round(0.2 * (size.steps - size.first_bad - size.quiet))] * 2
    changed = {
        networks.TARGETS: (spiked.targets != spiked.examples).any(axis=2),
        networks.INPUTS: spiked.input_factor >= 10,
        networks.LOSS: spiked.loss_factor >= 10,
    }
    for kind, where in changed.items():
        assert (where == (spiked.kind == kind)).all()
    assert np.isnan(plans["nan"].loss_factor).tolist() == bad.tolist()


def test_the_best_constant_answer_to_the_adding_problem_is_1():
    network = networks.rnn(100, 2, 6_400)
    zero = jax.tree.map(np.zeros_like, network.params(0))
    loss = jax.jit(network.loss)
    losses = [
        float(loss(zero | {"output_bias": np.float32([answer])}, *network[1:3]))
        for answer in (0.9, 1.0, 1.1)
    ]
    assert losses[1] == pytest.approx(1 / 6, rel=0.05)
    assert min(losses) == losses[1]
    assert network.inputs[..., 1].sum(axis=1).tolist() == [2] * 6_400


def test_the_transformer_does_not_see_the_next_character():
    network = networks.transformer(1, 8, 2, 6, 600)
    params, x, y = network.params(0), network.inputs[:1], network.targets[:1]
    other_x, other_y = x.copy(), y.copy()
    other_x[0, -1] += 1
    other_y[0, :-1] += 1
    loss = jax.jit(network.loss)
    # The last input changes the loss of the last target alone.
    differences = [loss(params, other_x, t) - loss(params, x, t) for t in (y, other_y)]
    assert differences[0] != 0
    np.testing.assert_allclose(*differences, rtol=1e-3)
    assert (network.inputs[0, 1:] == network.targets[0, :-1]).all()


def test_numbers_of_a_run():
    size = training.Size(seeds=1, steps=6, batch=1, first_bad=2, quiet=2, bad_share=0.5)
    kind = np.array([[0, 0, 3, 0, 0, 0]])
    plan = training.Plan(kind, *[np.ones_like(kind)] * 4)
    loss, norm = [[9, 8, 70, 3, 2, 1]], [[1, 2, 50, 3, np.nan, 4]]
    touched = [[False, True, True, False, False, False]]
    result = training.Result(*(np.array(values) for values in (loss, norm, touched)))
    assert training.measure(result, plan, size) == {
        "final_loss": [1.5],
        "loss_beside_bad": [2.0],
        "touched_ordinary": [0.2],
        "touched_bad": [1.0],
        "missed_steps": [[]],
        "median_norm_of_ordinary": [2.5],
        "median_norm_of_bad": [50.0],
        "first_nonfinite_step": [None],
    }


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([0.1, 0.3, 0.2], "0.200 (0.100 to 0.300)"),
        ([0.1, np.nan, 0.2], "0.200 (0.100 to not finite), 1 lost"),
        ([3e12, 466, np.inf], "3e12 (466 to not finite), 3 lost"),
        ([np.nan] * 3, "not finite, 3 lost"),
    ],
)
def test_a_cell_counts_the_lost_runs(losses, words):
    row = report.Row("rule", {("high", "calm"): {"final_loss": losses}}, {})
    assert report._cell(row, 0.5, [("high", "calm")], "final_loss") == words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--smoke", "--data-dir", "x"], "--data-dir=x: --smoke takes"),
        (["--data-dir", "nowhere"], "--data-dir=nowhere: No such file"),
        (["--smoke", "--out", "file"], "--out=file: cannot be written to"),
        (["--smoke", "--out", "unmarked"], "tables: begin --> and"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--only", "cnn"], "invalid choice: 'cnn'"),
    ],
)
def test_errors_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "unmarked").mkdir()
    (tmp_path / "unmarked" / "spikes.md").touch()
    assert spikes.main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
