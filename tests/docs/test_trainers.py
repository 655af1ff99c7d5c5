"""The second table of docs/migration.md: our side of each row, against NumPy."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
pytestmark = pytest.mark.skipif(
    not PAGE.exists(), reason="the documentation is not beside the tests"
)
C, K, SCALE = 0.7, 2, 1024.0
RANDOM = np.random.default_rng(0)
GRADS = [RANDOM.normal(size=shape).astype(np.float32) for shape in ((4, 3), (5,))]
NORM = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in GRADS))
BY_NORM = [g * min(1.0, C / (NORM + 1e-6)) for g in GRADS]  # PyTorch's clip_grad_norm_
BY_VALUE = [np.clip(g, -C, C) for g in GRADS]


def rows():
    """The code on the right by the first code on the left."""
    text = PAGE.read_text() if PAGE.exists() else ""
    lines = text.partition("\n## Lightning")[2].partition("\n## ")[0].splitlines()
    found = {}
    for line in lines:
        if line.startswith("| ") and not line.startswith("| you had"):
            left, right = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:3])
            found[left[0]] = right[0]
    return found


ROWS = rows()


def run(code, **names):
    return eval(code, {"jaxclip": jaxclip, "jax": jax, "optax": optax, "c": C, "k": K} | names)


def steps(tx, *gradients):
    """The last update of a chain, and its state."""
    state, update = tx.init(GRADS), jax.jit(tx.update)
    for grads in gradients:
        updates, state = update([jnp.asarray(g) for g in grads], state, GRADS)
    return updates, state


def assert_near(found, want):
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=2e-6, atol=1e-7)


CLIPPING = {
    "Trainer(gradient_clip_val=c)": BY_NORM,
    'Trainer(gradient_clip_val=c, gradient_clip_algorithm="value")': BY_VALUE,
    "TrainingArguments(max_grad_norm=c)": BY_NORM,
    "accelerator.clip_grad_norm_(parameters, c)": BY_NORM,
}
ACCUMULATE = "Trainer(accumulate_grad_batches=k)"
SCALER = "torch.amp.GradScaler(init_scale=s, growth_interval=n)"
RETURNED = "clip_grad_norm_"
SGD = optax.sgd(2.0)


def test_the_rows_that_are_run_are_there():
    assert {*CLIPPING, ACCUMULATE, SCALER, RETURNED} <= {*ROWS}
    assert len(ROWS) > 10


@pytest.mark.parametrize("theirs", CLIPPING)
def test_clipping(theirs):
    updates, _ = steps(run(ROWS[theirs]), GRADS)
    assert_near(updates, CLIPPING[theirs])


@pytest.mark.relaxed
def test_accumulation():
    """The mean of k gradients is clipped, as Lightning does with the loss divided by k."""
    tx = optax.chain(run(ROWS["Trainer(gradient_clip_val=c)"]), SGD)
    halves = [[0.5 * g for g in GRADS], [1.5 * g for g in GRADS]]
    updates, _ = steps(run(ROWS[ACCUMULATE], tx=tx), *halves)
    assert_near(updates, [-2 * g for g in BY_NORM])


def test_scaler():
    """Gradients are divided by the scale, then clipped; a step with inf leaves all as it was."""
    name, _, code = ROWS[SCALER].partition(" = ")
    assert name == "tx"
    rule = run(ROWS["Trainer(gradient_clip_val=c)"])
    tx = run(code, rule=rule, optimizer=SGD, s=SCALE, n=100)
    scaled = [jnp.asarray(np.float32(SCALE) * g) for g in GRADS]
    updates, state = steps(tx, scaled)
    assert_near(updates, [-2 * g for g in BY_NORM])
    assert jaxclip.loss_scale(state) == SCALE
    np.testing.assert_allclose(run(ROWS[RETURNED], opt_state=state), NORM, rtol=1e-6)
    updates, state = steps(tx, scaled, [scaled[0], scaled[1].at[0].set(jnp.inf)])
    assert not any(np.any(u) for u in updates)
    assert jaxclip.loss_scale(state) == SCALE / 2


def test_every_call_is_accepted():
    """The other rows have tests beside their rules; here they are only called."""
    names = {"tx": SGD, "inner": SGD, "h": jnp.ones(3), "roles": jaxclip.projections.nnx_roles}
    names |= {
        "rule": jaxclip.clip(1.0),
        "optimizer": SGD,
        "m": 1.0,
        "s": 2.0,
        "n": 3,
        "t": 50.0,
        "a": 0.5,
    }
    for theirs, ours in ROWS.items():
        if theirs not in (RETURNED, "hysteresis=h"):
            run(ours.partition(" = ")[2] or ours, **names)
    run(ROWS["hysteresis=h"], tx=SGD, h=2)
