"""`noise_scale`: the ratio of two averages, from the norms of micro-batches and of their mean."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip

NAN, INF = float("nan"), float("inf")
SMALL, BIG = 16, 64


def estimates(grads, small_batch=SMALL, big_batch=BIG):
    """The squared norm of the gradient and the trace of its covariance, in float64."""
    rows = np.asarray(grads, np.float64)
    small, big = (rows**2).sum(1).mean(), (rows.mean(0) ** 2).sum()
    signal = (big_batch * big - small_batch * small) / (big_batch - small_batch)
    return signal, (small - big) / (1 / small_batch - 1 / big_batch)


def test_averages_are_divided():
    """Against float64, where the mean of ratios is far off the truth of 200."""
    rng = np.random.default_rng(0)
    truth = np.full(100, 0.1)  # of norm 1; a trace of 200 makes a scale of 200
    noise = np.sqrt(2.0 / SMALL) * rng.normal(size=(2000, BIG // SMALL, 100))
    grads = np.float32(truth + noise)
    tx = jaxclip.noise_scale(SMALL, BIG, decay=0.999)

    @jax.jit
    def run(grads):
        def step(state, g):
            updates, state = tx.update({"a": g[:, :40], "b": g[:, 40:]}, state)
            return state, (updates, state.noise_scale)

        return jax.lax.scan(step, tx.init({}), grads)

    state, (updates, scales) = run(grads)
    np.testing.assert_allclose(updates["b"], grads[:, :, 40:].mean(1), rtol=1e-5, atol=1e-6)
    signal, noise, want = 0.0, 0.0, []
    each = [estimates(g) for g in grads]
    for own in each:
        signal, noise = (0.999 * a + 0.001 * x for a, x in zip((signal, noise), own, strict=True))
        want.append(noise / signal if signal > 0 else INF)
    np.testing.assert_allclose(scales[100:], want[100:], rtol=1e-3)
    assert float(state.noise_scale) == pytest.approx(200, rel=0.1)
    assert abs(np.mean([s / g for g, s in each]) - 200) > 40
    assert jaxclip.metrics(state)["noise_scale/noise_scale"] == state.noise_scale
    assert jaxclip.metrics(state)["noise_scale/count"] == 2000


def test_edges():
    """Norms beyond their squares' range, zeros, no noise, no gradient, and a NaN."""
    tx = jaxclip.noise_scale(8, 16, decay=0.5)
    update = jax.jit(tx.update)

    def run(*steps):
        state = tx.init(jnp.zeros(2))
        for step in steps:
            out, state = update(jnp.array(step, jnp.float32), state)
        return out, float(state.noise_scale), int(state.nonfinite_count)

    pair = np.array([[3.0, 0.0], [3.0, 2.0]])  # n_b^2 = 11, n_B^2 = 10: S = 16, G^2 = 9
    for size in (1.0, 1e25, 1e-25, 1e37):
        assert run(size * pair)[1] == pytest.approx(16 / 9, rel=1e-5), size
    assert run(1e-15 * pair, 1e15 * pair)[1] == pytest.approx(16 / 9, rel=1e-5)
    both = pair, np.array([[30.0, 0.0], [30.0, 5.0]])  # the average follows a larger unit
    signal, noise = np.array([0.25, 0.5]) @ [estimates(g, 8, 16) for g in both]
    assert run(*both)[1] == pytest.approx(noise / signal, rel=1e-5)
    assert run(0 * pair)[1:] == (0, 0)
    assert run(pair[:1].repeat(2, 0))[1] == 0
    assert run([[1.0, 0.0], [-1.0, 0.0]])[1] == INF
    out, scale, bad = run(pair, [[NAN, 1.0], [2.0, 1.0]], [[INF, 1.0], [2.0, 1.0]])
    assert (scale, bad) == (pytest.approx(16 / 9, rel=1e-5), 2)
    np.testing.assert_array_equal(out, [INF, 1])
    _, state = update(jnp.array(pair, jnp.float32), tx.init(jnp.zeros(2)))
    _, after = update(jnp.array([[NAN, 0.0], [3.0, 2.0]]), state)
    assert after[:4] == state[:4]
    assert (after.update_count, after.nonfinite_count) == (2, 1)


@pytest.mark.slow
def test_no_further_pass():
    """The norm of the mean is that of the rule after it: XLA has one of both."""
    grads = jnp.ones((4, 3000))

    def norms(*rules):
        tx = optax.chain(*rules)
        run = jax.jit(lambda g: tx.update(g, tx.init(grads[0])))
        return run.lower(grads).compile().as_text().count(" sqrt(")

    noise, clip = jaxclip.noise_scale(16, 64), jaxclip.clip_by_global_norm(1.0)
    assert norms(noise) == norms(noise, clip) > 0


def test_errors():
    make, g = jaxclip.noise_scale, jnp.ones((4, 2))
    for call, error, message in (
        (lambda: make(8, 8), ValueError, "big_batch=8 must be a multiple of small_batch=8"),
        (lambda: make(8, 20), ValueError, "big_batch=20"),
        (lambda: make(0, 20), ValueError, "small_batch=0"),
        (lambda: make(8, 16.0), TypeError, "big_batch=16.0"),
        (lambda: make(8, 16, decay=1), ValueError, "decay=1 must be below 1"),
        (lambda: make(8, 16, decay=-1), ValueError, "decay=-1"),
        (lambda: make(8, 16).update(g, make(8, 16).init(g)), ValueError, "have 4 micro-batches"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            jax.eval_shape(call)
    tx = make(8, 16)
    assert jax.jit(tx.update)({}, tx.init({}))[1].noise_scale == 0
