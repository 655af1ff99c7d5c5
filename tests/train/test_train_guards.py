"""Guards in a run: bad batches are skipped; a failed run names the step."""

import numpy as np
import pytest

from jaxclip.train import cli
from jaxclip.train.cli import parser, start
from jaxclip.train.config import presets
from jaxclip.train.errors import UserError
from jaxclip.train.recording import metrics_file
from jaxclip.train.training import loop, nonfinite, optimizer
from tests.train import runs

BAD = (1, 2)  # of eight batches of eight images, in the order of the file


@pytest.fixture(scope="module")
def poisoned(few_digits):
    images = few_digits.train_images.copy()
    images[8 * BAD[0]] = np.nan
    images[8 * BAD[1] + 3, 30] = np.inf
    return few_digits._replace(train_images=images)


def settings(*guards, **changes):
    changes = {"sizes": (5,), "batch_size": 8, "epochs": 1, "guard": guards} | changes
    return presets.get("explode").override(changes)


def epochs(config, data):
    """All epochs with their parameters, and the error that ended the run."""
    found, run = [], loop.prepare(config, data)
    try:
        for epoch in loop.train(run, data):
            params = [np.asarray(p) for p in _leaves(epoch.state.params)]
            found.append(epoch._replace(state=params))
    except nonfinite.NonFiniteLossError as error:
        return found, str(error)
    return found, None


def _leaves(params):
    return [params["layers"][i][part] for i in (0, 1) for part in ("kernel", "bias")]


def by_hand(config, data, batches):
    """Parameters in float64 after clipped SGD on some batches only."""
    net = loop.build_network(config, data)
    w, b, v, c = (np.float64(p) for p in _leaves(net.params))
    for i in batches:
        x, y = (a[8 * i : 8 * i + 8] for a in (data.train_images, data.train_labels))
        hidden = np.maximum(x @ w + b, 0)
        error = (hidden @ v + c - np.eye(10)[y]) * 2 / 80
        back = error @ v.T * (hidden > 0)
        grads = (x.T @ back, back.sum(0), hidden.T @ error, error.sum(0))
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        rate = config.learning_rate * min(1, 0.1 / norm)
        w, b, v, c = (p - rate * g for p, g in zip((w, b, v, c), grads, strict=True))
    return [w, b, v, c]


@pytest.mark.slow
def test_a_guard_skips_only_bad_steps(poisoned):
    config = settings("skip_nonfinite", clip=("global_norm=0.1",))
    (epoch,), said = epochs(config, poisoned)
    assert said is epoch.failure is None
    telemetry, bad = epoch.telemetry, np.isin(np.arange(8), BAD)
    np.testing.assert_array_equal(telemetry["skip_nonfinite/skipped"], bad)
    np.testing.assert_array_equal(np.isfinite(telemetry["loss"]), ~bad)
    np.testing.assert_array_equal(telemetry["updates/norm"] == 0, bad)
    weights = telemetry["weights/norm"]  # before each step
    np.testing.assert_array_equal(weights[1:] == weights[:-1], bad[:-1])
    assert telemetry["skip_nonfinite/skipped_count"][-1] == 2
    scores = metrics_file.scores(epoch)
    assert scores["train_loss"] == pytest.approx(telemetry["loss"][~bad].mean(), rel=1e-6)
    assert scores["grad_norm_max"] == telemetry["grads/norm"][~bad].max()
    good = [i for i in range(8) if i not in BAD]
    for ours, theirs in zip(epoch.state, by_hand(config, poisoned, good), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_too_many_skips_in_a_row_end_the_run(poisoned):
    (epoch,), said = epochs(settings("skip_nonfinite,max_consecutive=1"), poisoned)
    skipped = epoch.telemetry["skip_nonfinite/skipped"]
    np.testing.assert_array_equal(np.flatnonzero(skipped)[:1], [1])
    assert not skipped[2]
    assert said.startswith("the loss is ")
    assert epoch.failure in said
    assert " at step 2 (steps 0 to 7); first non-finite gradient: layers/0/kernel at step 2" in said


@pytest.mark.slow
def test_skipped_steps_change_no_state(poisoned):
    """Momentum, a learned threshold and a projection end as without the bad batches."""
    changes = {"optimizer": "momentum", "clip": ("autoclip",), "project": ("max_norm=0.5",)}
    (epoch,), said = epochs(settings("skip_nonfinite", **changes), poisoned)
    good = np.delete(np.arange(64), [8 * i + k for i in BAD for k in range(8)])
    images = poisoned._replace(
        train_images=poisoned.train_images[good], train_labels=poisoned.train_labels[good]
    )
    (clean,), _ = epochs(settings(**changes), images)
    assert said is None
    for ours, theirs in zip(epoch.state, clean.state, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_two_guards(few_digits):
    images = few_digits.train_images.copy()
    images[4 * 3] = np.nan  # before `min_history` steps
    images[4 * 9 : 4 * 10] *= 100
    data = few_digits._replace(train_images=images)
    guards = ("skip_nonfinite", "skip_spikes,window=8,min_history=4")
    (epoch,), said = epochs(settings(*guards, batch_size=4), data)
    assert said is None
    # The second guard is the outer one; it skips the non-finite step too.
    np.testing.assert_array_equal(np.flatnonzero(epoch.telemetry["skip_spikes/skipped"]), [3, 9])
    np.testing.assert_array_equal(np.flatnonzero(epoch.telemetry["updates/norm"] == 0), [3, 9])
    assert "skip_nonfinite/skipped" in epoch.telemetry
    assert np.isfinite(epoch.telemetry["loss"][9])
    assert np.isfinite(epoch.test_loss)


GUARDS = [
    ("skip", "unknown rule 'skip', choose from skip_nonfinite, skip_spikes, skip_above, rollback"),
    ("skip_nonfinite,max_consecutive=0", "max_consecutive=0"),
    ("skip_nonfinite,max_consecutive=x", "max_consecutive='x'"),
    ("skip_nonfinite,max=3", "unknown option 'max=3', choose from max_consecutive"),
    ("skip_nonfinite,inner=3", "unknown option 'inner=3'"),
    ("skip_spikes=5", "takes no value"),
    ("skip_spikes,window=0", "window=0"),
    ("skip_spikes,sigma=nan", "sigma=nan"),
    ("skip_above", "needs a value: skip_above=NUMBER (threshold)"),
    ("skip_above=-1", "threshold=-1"),
    ("rollback", "missing 1 required keyword-only argument: 'threshold'"),
    ("rollback,threshold=1,keep=0", "keep=0"),
    ("skip_spikes,sigma=1,sigma=2", "option 'sigma' given twice"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "message"), GUARDS)
def test_errors_are_one_line_and_quote_the_guard(text, message, few_digits):
    config = settings(text)
    with pytest.raises(UserError) as caught:
        optimizer.build(config, loop.build_network(config, few_digits).params, lambda step: 0.1)
    assert str(caught.value).startswith(f"--guard {text}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_guard_none(tmp_path, capsys):
    parse = parser.build().parse_args
    assert start.config_of(parse(["train", "explode", "--guard", "none"])).guard == ()
    assert cli.main(["train", "explode", "--guard", "none", "--guard", "skip_spikes"]) == 2
    assert "--guard none: cannot be combined" in capsys.readouterr().err


NAMES = [f"layers/{i}/{part}" for i in (0, 1) for part in ("kernel", "bias")]


def made_up(loss, **skipped):
    telemetry = {f"grads/norm/{name}": np.ones(len(loss)) for name in NAMES}
    flags = {f"{guard}/skipped": np.array(rows, bool) for guard, rows in skipped.items()}
    return telemetry | flags | {"loss": np.array(loss)}


def test_a_skipped_loss_is_no_failure():
    assert nonfinite.failure(0, made_up([1, np.nan, 1], one=[0, 1, 0])) is None
    assert nonfinite.failure(0, made_up([np.inf, np.nan], one=[0, 1], two=[1, 0])) is None
    assert nonfinite.failure(0, made_up([1.0, 2.0])) is None
    said = nonfinite.failure(20, made_up([1, np.nan, -np.inf], one=[0, 1, 0]))
    assert said == "the loss is -inf at step 22 (steps 20 to 22); no gradient was non-finite"


def test_a_skipped_gradient_is_not_the_first():
    telemetry = made_up([1, np.nan, 1, np.nan], one=[0, 1, 0, 0])
    telemetry["grads/norm/layers/0/kernel"][1] = np.nan
    telemetry["grads/norm/layers/1/bias"][2:] = np.inf
    telemetry["grads/norm/layers/0/bias"][3] = np.nan
    said = nonfinite.failure(0, telemetry)
    assert said.startswith("the loss is nan at step 3 ")
    assert said.endswith("first non-finite gradient: layers/1/bias at step 2")
    # Of several in one step, the one next to the input counts.
    telemetry["grads/norm/layers/0/bias"][2] = np.nan
    assert nonfinite.failure(0, telemetry).endswith("layers/0/bias at step 2")


@pytest.mark.slow
def test_a_lost_run_is_not_told_to_leave_its_rule_out(capsys):
    command = ["train", "forward", *runs.SMALL, "--epochs", "1", "--learning-rate", "1e30"]
    assert cli.main([*command, "--clip", "global_norm=1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("-2 --learning-rate 1e+29")
