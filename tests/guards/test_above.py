"""`skip_above`: any threshold of the norm or the loss decides which steps are skipped."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import thresholds
from tests.support import guards, registry
from tests.support import oracles_learned as ol
from tests.support.guards import U

NAN, INF = math.nan, math.inf


def _schedule(count):
    return 2.0 + 0.01 * count.astype(jnp.float32)


class Given:
    """The reference of a number or a schedule."""

    def __init__(self, of):
        self.of, self.count = of, -1

    def __call__(self, n):
        self.count += 1
        return None, self.of(self.count)


# A threshold and its reference.
CASES = {
    "number": (3.0, lambda: Given(lambda t: 3.0)),
    "schedule": (_schedule, lambda: Given(lambda t: 2 + 0.01 * t)),
    "none": (None, lambda: Given(lambda t: INF)),
    "quantile": (
        thresholds.quantile(0.5, window=40, factor=4.0),
        lambda: ol.Quantile(0.5, 40, 4.0),
    ),
    "mean_plus_sigma": (
        thresholds.mean_plus_sigma(4.0, window=30, min_history=5),
        lambda: ol.MeanPlusSigma(4.0, 30, 5),
    ),
    "zscore": (
        thresholds.zscore(warmup_steps=10, max_norm=None),
        lambda: ol.ZScore(warmup_steps=10, max_norm=None),
    ),
}


def _numbers(seed, steps):
    rng = np.random.default_rng(seed)
    x = rng.lognormal(0, 0.3, steps)
    x = np.where(rng.random(steps) < 0.05, x * 10 ** rng.uniform(0.3, 2, steps), x)
    x[steps // 2 : steps // 2 + steps // 10] *= 4
    x[rng.choice(steps, steps // 30, replace=False)] = NAN
    x[rng.choice(steps, steps // 30, replace=False)] = 0
    return np.float32(x)


@pytest.mark.slow
def test_against_its_reference():
    """A thousand steps, norms by each threshold, losses by another, in one program."""
    steps = 1000
    norms, losses = _numbers(1, steps), _numbers(2, steps)
    pairs = dict(zip(CASES, [*list(CASES)[1:], next(iter(CASES))], strict=True))
    rules = {
        k: jaxclip.skip_above(optax.identity(), CASES[k][0], loss_threshold=CASES[other][0])
        for k, other in pairs.items()
    }
    u = jnp.array([0.6, -0.8])

    def body(states, step):
        n, loss = step
        log = {}
        for key, tx in rules.items():
            out, states[key] = tx.update(n * u, states[key], u, value=loss)
            log[key] = out[0], jaxclip.metrics(states[key])
        return states, log

    states = {k: tx.init(u) for k, tx in rules.items()}
    log = jax.jit(lambda s, x: jax.lax.scan(body, s, x)[1])(states, (norms, losses))
    for key, (out, record) in jax.device_get(log).items():
        of_norm, of_loss = CASES[key][1](), CASES[pairs[key]][1]()
        limits = np.array([of_norm(float(n))[1] for n in norms])
        others = np.array([of_loss(float(x))[1] if of_loss else INF for x in losses])
        finite = np.isfinite(norms) & np.isfinite(losses)
        want = (norms > limits * (1 + 1e-6)) | (losses > others * (1 + 1e-6)) | ~finite
        found = record["skip_above/skipped"]
        assert (found != want).sum() == 0, key
        np.testing.assert_array_equal(out, np.where(want, 0, norms * np.float32(0.6)))
        np.testing.assert_array_equal(record["skip_above/skipped_count"], np.cumsum(want))
        known = finite & ~np.isnan(limits)
        np.testing.assert_allclose(
            record["skip_above/norm_threshold"][known], limits[known], rtol=2e-5
        )
        if CASES[pairs[key]][0] is not None:
            np.testing.assert_allclose(
                record["skip_above/value_threshold"][known], others[known], rtol=2e-5
            )
        assert 0.03 * steps < want.sum() < 0.6 * steps


@pytest.mark.slow
def test_learned_guard_reopens_after_a_lasting_shift():
    """Norms and losses stay at fifty times as much: within the window steps are taken again."""
    window = 16
    learned = {
        "quantile": thresholds.quantile(0.5, window=window, factor=5.0),
        "mean_plus_sigma": thresholds.mean_plus_sigma(6.0, window=window, min_history=8),
        "zscore": thresholds.zscore(warmup_steps=8, max_norm=None, restart_after=window),
    }
    rules = {
        key: jaxclip.skip_above(optax.identity(), level, loss_threshold=level)
        for key, level in learned.items()
    }
    rules["skip_spikes"] = jaxclip.skip_spikes(optax.identity(), window=window, min_history=8)
    rng = np.random.default_rng(0)
    sizes = np.float32(rng.lognormal(0, 0.1, 3 * window))
    sizes[window:] *= 50

    def body(states, size):
        u = size * jnp.ones(1)
        states = {k: tx.update(u, states[k], value=size)[1] for k, tx in rules.items()}
        return states, {k: state.skipped for k, state in states.items()}

    first = {k: tx.init(jnp.ones(1)) for k, tx in rules.items()}
    _, log = jax.lax.scan(body, first, sizes)
    for key, skipped in log.items():
        assert not skipped[:window].any(), key
        assert skipped[window], key
        assert not skipped[2 * window :].any(), key


def test_limits_of_the_loss():
    """A limit below 0, as of a likelihood; the record is that of the last loss."""
    jaxclip.skip_above(optax.identity(), None, loss_threshold=-1.0)
    tx = jaxclip.skip_above(optax.trace(0.5), None, loss_threshold=lambda count: count - 2)
    state, update = tx.init(U), jax.jit(tx.update)
    assert jaxclip.metrics(state)["skip_above/value_threshold"] == INF
    for loss, skipped, limit in ((-2.0, False, -2.0), (-0.5, True, -1.0), (0.0, False, 0.0)):
        out, state = update(U, state, U, value=jnp.float32(loss))
        assert (bool(state.skipped), float(state.value_threshold)) == (skipped, limit)
        assert guards.is_zero(out) == skipped
    assert float(state.norm_threshold) == INF
    only = jaxclip.skip_above(optax.identity(), 13.0)
    _, state = jax.jit(only.update)(U, only.init(U), U, value=1e9)
    assert not bool(state.skipped)  # its norm is the limit
    assert state.value_threshold is None


@pytest.mark.slow
def test_limit_relative_to_the_parameters():
    tx = jaxclip.skip_above(optax.identity(), thresholds.relative_to_params(0.5))
    state = tx.init(U)
    update = jax.jit(tx.update)
    for factor, skipped in ((0.49, False), (0.51, True)):
        _, state = update(guards.scaled(factor), state, U)
        assert bool(state.skipped) == skipped
    with pytest.raises(ValueError, match="params=None"):
        tx.update(U, state)


@pytest.mark.slow
def test_two_guards_have_names():
    inner = jaxclip.skip_above(optax.identity(), 20.0, name="far")
    tx = jaxclip.skip_above(inner, 10.0, max_consecutive=1)
    _, states = guards.loop(tx, [1.0, 1.0, 2.0])  # the norm of 1.0 is 13
    found = jaxclip.metrics(states[-1])
    assert [bool(s.skipped) for s in states] == [True, False, False]
    assert int(found["skip_above/count"]) == 3
    assert int(found["far/skipped_count"]) == 1


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"threshold": -1.0}, ValueError, "threshold=-1.0"),
        ({"threshold": NAN}, ValueError, "threshold=nan"),
        ({"threshold": "3"}, TypeError, "threshold='3'"),
        ({"threshold": {"w": 1.0}}, ValueError, "threshold=.* must be one value"),
        ({"loss_threshold": NAN}, ValueError, "loss_threshold=nan"),
        ({"loss_threshold": True}, TypeError, "loss_threshold=True"),
        ({"loss_threshold": [1.0]}, ValueError, r"loss_threshold=\[1.0\] must be one value"),
        ({"name": "a/b"}, ValueError, "name='a/b'"),
        ({"max_consecutive": 0}, ValueError, "max_consecutive=0"),
    ],
)
def test_bad_values(keywords, error, message):
    with pytest.raises(error, match=message):
        jaxclip.skip_above(optax.identity(), **{"threshold": 1.0} | keywords)


@pytest.mark.parametrize("guard", [jaxclip.skip_above, jaxclip.rollback])
def test_a_limit_of_the_loss_needs_the_loss(guard):
    """`skip_spikes` takes the loss if there is one."""
    for level in (9.0, thresholds.quantile(0.5)):
        tx = guard(optax.identity(), threshold=None, loss_threshold=level)
        for loss in ({}, {"value": None}):
            with pytest.raises(ValueError, match=r"value=None: loss_threshold needs update\("):
                tx.update(U, tx.init(U), U, **loss)
        tx.update(U, tx.init(U), U, value=1.0)
    tx = jaxclip.skip_spikes(optax.identity(), window=4, min_history=2)
    states = [tx.init(U)]
    for loss in ({"value": 1.0}, {"value": 2.0}, {"value": 1.5}, {}):
        states.append(tx.update(U, states[-1], U, **loss)[1])
    last, without = states[-2:]
    assert not bool(without.skipped)
    assert float(without.value_threshold) == float(last.value_threshold) < INF  # of the last loss


def test_schedule_of_another_shape():
    for key in ("threshold", "loss_threshold"):
        limits = {"threshold": None} | {key: lambda count: jnp.ones(2)}
        tx = jaxclip.skip_above(optax.identity(), **limits)
        with pytest.raises(ValueError, match=rf"{key} has shape \(2,\)"):
            tx.update(U, tx.init(U), U, value=1.0)


@pytest.mark.slow
def test_skip_spikes_is_one_call_of_it():
    """A threshold from outside that says the same, and the same states."""
    ring = thresholds.mean_plus_sigma(3.0, window=8, min_history=2)
    ours = jaxclip.skip_above(optax.trace(0.9), ring, name="skip_spikes")
    theirs = jaxclip.skip_spikes(optax.trace(0.9), sigma=3.0, window=8, min_history=2)
    factors = [1.0, 1.1, 0.9, 1.0, 40.0, 1.0]
    for got, want in zip(*(guards.loop(tx, factors)[0] for tx in (ours, theirs)), strict=True):
        registry.assert_same_bits(got, want)
