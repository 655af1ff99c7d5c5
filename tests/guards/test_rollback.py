"""`rollback`: snapshots, when they are taken and returned to, and a run that would be ruined."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards
from tests.support.guards import U

NAN, INF = math.nan, math.inf


class Reference:
    """One weight under momentum: `step(norm, loss)` answers the weight after it and the counts."""

    def __init__(self, every, keep, patience, most, limit, loss_limit=INF):
        self.every, self.keep, self.patience, self.most = every, keep, patience, most
        self.limit, self.loss_limit = limit, loss_limit
        self.w = self.momentum = 0.0
        self.saved, self.age, self.run = [], 0, 0
        self.back = self.denied = self.skipped = 0

    def step(self, g, loss):
        finite = math.isfinite(g) and math.isfinite(loss)
        bad = not finite or abs(g) > self.limit or loss > self.loss_limit
        calm = self.run == 0 and not bad
        self.run = self.run + 1 if bad else 0
        self.age += 1
        if calm and (self.age >= self.every or not self.saved):
            self.saved = [*self.saved, (self.w, self.momentum)][-self.keep :]
            self.age = 0
        due = self.run >= self.patience
        back = due and self.saved and self.back < self.most
        if back:
            self.w, self.momentum = self.saved[-1]
            self.saved = self.saved[:-1] or self.saved
            self.age = 0
        elif finite:
            self.momentum = 0.5 * self.momentum + g
            self.w -= self.momentum
        self.run = 0 if due else self.run
        self.back += bool(back)
        self.denied += due and not back
        self.skipped += bool(back) or not finite
        return self.w, self.momentum, self.back, self.denied, self.skipped, self.run


def _log(tx, grads, losses):
    """Weight, momentum and counts after each step, in one program."""

    def body(carry, inputs):
        w, state = carry
        g, loss = inputs
        updates, state = tx.update({"w": g[None]}, state, {"w": w}, value=loss)
        w = w + updates["w"]
        found = jaxclip.metrics(state)
        keys = ("rollback_count", "denied_count", "skipped_count", "consecutive_count")
        momentum = state.guarded_state[0].trace["w"][0]
        return (w, state), (w[0], momentum, *(found[f"rollback/{k}"] for k in keys))

    w = jnp.zeros(1)
    return jax.jit(lambda c, x: jax.lax.scan(body, c, x))((w, tx.init({"w": w})), (grads, losses))


def _stretches(seed, steps):
    """Small whole numbers, so that sums are exact, with stretches of large ones and of NaN."""
    rng = np.random.default_rng(seed)
    x = np.float32(rng.integers(-3, 4, steps))
    for at in rng.choice(steps - 20, steps // 25, replace=False):
        long = rng.integers(1, 12)
        x[at : at + long] = rng.choice([32.0, -64.0, NAN, INF], long)
    return x


@pytest.mark.parametrize(
    ("steps", "setting"),
    [
        (80, (5, 2, 3, 4, 10.0, 20.0)),
        pytest.param(1000, (7, 3, 4, 20, 10.0), marks=pytest.mark.slow),
        pytest.param(1000, (1, 1, 1, 1000, 10.0, 20.0), marks=pytest.mark.slow),
        pytest.param(1000, (40, 2, 8, 3, 10.0), marks=pytest.mark.slow),
    ],
)
def test_against_its_reference(steps, setting):
    grads, losses = _stretches(3, steps), _stretches(4, steps)
    grads[:4] = 64.0, NAN, 64.0, 64.0  # no snapshot yet
    every, keep, patience, most, limit, *loss_limit = setting
    tx = jaxclip.rollback(
        optax.chain(optax.trace(0.5), optax.scale(-1.0)), threshold=limit, every=every, keep=keep,
        loss_threshold=lambda count: loss_limit[0] if loss_limit else INF, patience=patience,
        max_rollbacks=most,
    )  # fmt: skip
    (_, state), log = _log(tx, grads, losses)
    reference = Reference(*setting)
    want = np.array(
        [reference.step(*pair) for pair in zip(grads.tolist(), losses.tolist(), strict=True)]
    )
    names = ("w", "momentum", "back", "denied", "skipped", "run")
    for name, got, column in zip(names, log, want.T, strict=True):
        np.testing.assert_allclose(got, column, rtol=1e-5, atol=1e-3, err_msg=name)
    assert reference.back == most or most > 3
    assert min(reference.back, reference.denied) > 0
    assert int(state.memory.saved_count) == len(reference.saved)


def _spoiled(seed=0):
    """Batches of a linear regression; those of a stretch have labels far off."""
    rng = np.random.default_rng(seed)
    xs = np.float32(rng.standard_normal((240, 16, 8)))
    ys = xs @ np.float32(rng.standard_normal(8)) + np.float32(0.3 * rng.standard_normal((240, 16)))
    bad = ys.copy()
    bad[200:220] += np.float32(3e3 * rng.standard_normal((20, 16)))
    return xs, ys, bad


@pytest.mark.slow
@pytest.mark.relaxed
def test_a_run_that_would_be_ruined_returns():
    """Twenty bad batches, by the loss and by the norm: within 5 % of the clean run at the end."""
    xs, ys, bad = _spoiled()

    def final_losses(tx):
        """Of the run with bad batches and of the clean one, with their last states."""

        def body(carry, batch):
            w, state = carry
            x, y = batch
            loss, grads = jax.value_and_grad(lambda w: jnp.mean((x @ w - y) ** 2))(w)
            updates, state = tx.update(grads, state, w, value=loss)
            return (optax.apply_updates(w, updates), state), None

        @jax.jit
        def run(labels):
            w = jnp.zeros(8)
            (w, state), _ = jax.lax.scan(body, (w, tx.init(w)), (xs, labels))
            return jnp.mean((xs[220:] @ w - ys[220:]) ** 2), state

        return run(bad), run(ys)

    inner = optax.sgd(0.01, momentum=0.9)
    level = jaxclip.thresholds.mean_plus_sigma(6.0, window=50, min_history=20)
    (ruined, _), (clean, _) = final_losses(inner)
    assert ruined > 2 * clean
    for limits in ({"threshold": None, "loss_threshold": level}, {"threshold": level}):
        tx = jaxclip.rollback(inner, **limits, every=40)
        (found, state), (unharmed, other) = final_losses(tx)
        assert abs(found / clean - 1) < 0.05
        assert int(state.memory.rollback_count) in (2, 3)
        assert int(other.memory.rollback_count) == 0
        assert float(unharmed) == pytest.approx(float(clean), rel=1e-5)


@pytest.mark.slow
def test_learned_threshold_observes_bad_steps_only_after_the_last_return():
    """A level that has really changed is refused twice and then accepted."""
    level = jaxclip.thresholds.mean_plus_sigma(3.0, window=8, min_history=4)
    tx = jaxclip.rollback(optax.sgd(1.0), threshold=level, every=3, patience=2, max_rollbacks=2)
    sizes = np.float32([1.0, 1.1, 0.9, 1.0, 1.0, 1.1, *[40.0] * 16])

    def body(state, size):
        _, state = tx.update(jnp.full(1, size), state, jnp.zeros(1))
        return state, (state.norm_threshold, state.memory.rollback_count, state.consecutive_count)

    _, (limits, backs, runs) = jax.lax.scan(body, tx.init(jnp.zeros(1)), sizes)
    assert backs.tolist()[6:12] == [0, 1, 1, 2, 2, 2]
    assert len(set(limits[6:10].tolist())) == 1
    assert runs[-1] == 0
    assert limits[-1] > 40


def test_steps_that_are_not_finite_and_the_record():
    """They never reach the weights, and count as bad ones."""
    tx = jaxclip.rollback(optax.scale(1e38), threshold=None, patience=2, every=1)
    _, states = guards.loop(tx, [0.1, 1.0, 1.0, 1.0, NAN, 0.1])
    log = [jaxclip.metrics(state) for state in states]
    assert list(log[0]) == [
        f"rollback/{key}"
        for key in ("norm", "norm_threshold", "skipped", "count", "skipped_count",
                    "consecutive_count", "nonfinite_count", "nonfinite_step_count", "rolled_back",
                    "rollback_count", "denied_count", "saved_count")
    ]  # fmt: skip
    assert [bool(x["rollback/skipped"]) for x in log] == [False, *[True] * 4, False]
    assert [bool(x["rollback/rolled_back"]) for x in log] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert [int(x["rollback/consecutive_count"]) for x in log] == [0, 1, 2, 0, 1, 0]
    assert int(log[-1]["rollback/nonfinite_step_count"]) == 3
    assert int(log[-1]["rollback/nonfinite_count"]) == 1


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"threshold": -1.0}, ValueError), ({"loss_threshold": "1"}, TypeError),
        ({"every": 0}, ValueError), ({"every": 1.5}, TypeError), ({"keep": 0}, ValueError),
        ({"keep": True}, TypeError), ({"patience": 0}, ValueError), ({"patience": None}, TypeError),
        ({"max_rollbacks": 0}, ValueError), ({"max_rollbacks": "3"}, TypeError),
    ],
    ids=repr,
)  # fmt: skip
def test_bad_values(keywords, error):
    ((name, value),) = keywords.items()
    with pytest.raises(error, match=re.escape(f"{name}={value!r}")):
        jaxclip.rollback(optax.identity(), **{"threshold": 1.0} | keywords)


def test_needs_parameters_and_a_limit():
    tx = jaxclip.rollback(optax.identity(), threshold=1.0, max_rollbacks=None)
    with pytest.raises(ValueError, match=r"params=None: rollback needs update\(..., params\)"):
        tx.update(U, tx.init(U))
    with pytest.raises(TypeError, match="rollback needs its own RollbackState"):
        tx.update(U, optax.EmptyState(), U)
    with pytest.raises(TypeError, match="threshold"):
        jaxclip.rollback(optax.identity())
