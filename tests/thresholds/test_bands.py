"""`thresholds.aggc` and `clip_by_growth`: multiples of the norms left before."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import thresholds
from tests.support import learned, modes
from tests.support.contexts import one_by_one

NAN, INF = float("nan"), float("inf")


def _band(high=2.0, **keywords):
    return jaxclip.clip_by(thresholds.aggc(high, **keywords), scope="leaf", bound="set")


def test_the_band():
    """The first norm is left, and so is the second: an average from 0 would clip it to 2 %."""
    outs, state = one_by_one(_band(low=0.5), [3.0, 3.0, 60.0, 0.3, 3.0])
    mean = 3.0
    for n, got in zip([3.0, 3.0, 60.0, 0.3, 3.0], outs, strict=True):
        want = min(max(n, 0.5 * mean), 2 * mean)
        assert got == pytest.approx(want, rel=1e-6)
        mean = 0.98 * mean + 0.02 * want
    assert int(state.clipped_count) == 2


def test_norms_that_do_not_count():
    """NaN, inf and 0 come back as they came, and the average does not see them."""
    values = [0.0, NAN, 4.0, INF, 0.0, NAN, 100.0, 0.1]
    outs, state = one_by_one(_band(low=0.5), values)
    np.testing.assert_allclose(outs, [0, NAN, 4, INF, 0, NAN, 8, 2.04], rtol=1e-6)
    assert (int(state.clipped_count), int(state.nonfinite_count)) == (2, 3)
    _, state = one_by_one(_band(low=0.5), values[:6])
    assert float(state.threshold) == 8.0


@pytest.mark.slow
def test_calls_of_one_threshold():
    """One is the ratio to the last norm, the other that without a warm-up: up to roundings."""
    same = {"warmup_steps": 1, "warmup_norm": INF}
    ratio = thresholds.ema_ratio
    rules = {
        "growth": jaxclip.clip_by_growth(),
        "as growth": jaxclip.clip_by(ratio(max_ratio=1.01, beta=0, **same), scope="leaf"),
        "aggc": jaxclip.clip_by(thresholds.aggc(1.5, beta=0.9), scope="leaf"),
        "as aggc": jaxclip.clip_by(ratio(max_ratio=1.5, beta=0.9, **same), scope="leaf"),
    }
    seen = learned.run(rules, learned.updates(steps=60, seed=3))
    for name in ("growth", "aggc"):
        one, other = seen[name].updates, seen[f"as {name}"].updates
        rtol = 0 if modes.DEFAULT_KERNELS else 1e-6
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol), one, other)
        assert seen[name].record["clipped_count"][-1] > 9


def test_growth_by_one_percent_a_step():
    outs, _ = one_by_one(jaxclip.clip_by_growth(), [2.0, *[900.0] * 100, 1e-3, 900.0, NAN, 900.0])
    np.testing.assert_allclose(outs[:101], 2 * 1.01 ** np.arange(101), rtol=1e-5)
    np.testing.assert_allclose(outs[101:], [1e-3, 1.01e-3, NAN, 1.0201e-3], rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"bound='hard' has no use .* pass bound='set'"):
        jaxclip.clip_by(thresholds.aggc(2.0, low=0.5), scope="leaf")
    for call, message in (
        (lambda: thresholds.aggc(0.9), "high=0.9"),
        (lambda: thresholds.aggc(NAN), "high=nan"),
        (lambda: thresholds.aggc(2.0, low=1.1), "low=1.1"),
        (lambda: thresholds.aggc(2.0, low=-0.1), "low=-0.1"),
        (lambda: thresholds.aggc(2.0, beta=1.5), "beta=1.5"),
        (lambda: thresholds.aggc(2.0, floor=-1.0), "floor=-1.0"),
        (lambda: jaxclip.clip_by_growth(0.99), "max_growth=0.99"),
        (lambda: jaxclip.clip_by_growth(2000.0), "max_growth=2000.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    for call in (
        lambda: thresholds.aggc(None),
        lambda: thresholds.aggc("2"),
        lambda: jaxclip.clip_by_growth(None),
    ):
        with pytest.raises(TypeError, match="must be a real number"):
            call()


def test_traced_numbers_and_schedules():
    """Numbers known when the program runs, and a band that a schedule closes."""

    @jax.jit
    def run(high, low, growth):
        schedule = _band(lambda count: jnp.where(count < 2, 9.0, high), low=lambda count: low)
        u, found = jnp.ones(1), []
        for tx in (schedule, jaxclip.clip_by_growth(growth)):
            state = tx.init(u)
            for n in (1.0, 4.0, 100.0, 1e-3):
                out, state = tx.update(n * u, state)
                found.append(out[0])
        return found

    found = run(2.0, 0.5, 1.5)
    mean = 0.98 + 0.02 * 4
    later = 0.98 * mean + 0.02 * 2 * mean
    want = [1, 4, 2 * mean, 0.5 * later, 1, 1.5, 2.25, 1e-3]
    np.testing.assert_allclose(found, want, rtol=1e-5)
