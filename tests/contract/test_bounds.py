"""`clip_by(bound=...)`: the norm after clipping, hard, smooth or set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import modes, registry
from tests.support import oracles as o
from tests.support.contexts import once

G = jnp.array([3.0, 4.0])

BOUNDS = ["hard", "tanh", "rational"]
SIZES = np.array([1e-30, 1e-12, 1e-3, 0.5, 0.999, 1.0, 1.001, 2.0, 30.0, 1e10, 1e30])
PAIRS = [(n, 1.01 * c) for n in SIZES for c in SIZES]  # no ties, which rounding would decide
DIRECTION = np.array([0.48, -0.6, 0.64])


def new_norm(bound, n, c):
    """The formulas."""
    n, c = np.float64(n), np.float64(c)
    if bound == "hard":
        return np.minimum(n, c)
    return c * np.tanh(n / c) if bound == "tanh" else n * (c / (n + c))


@jax.jit
def _rows(u, limits):
    """All bounds in one program, each row of `u` held to its own limit."""
    rules = {s: jaxclip.clip_by(limits, scope="unit", axis=1, bound=s) for s in BOUNDS}
    return {s: tx.update(u, tx.init(u)) for s, tx in rules.items()}


def _rows_of(sizes, dtype):
    return jnp.asarray(np.asarray(sizes)[:, None] * DIRECTION, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_new_norms(dtype):
    """Any ratio of norm to threshold; the direction kept; recorded as any clipping."""
    with modes.maybe_x64(dtype):
        sizes, limits = np.array(PAIRS).T
        u = _rows_of(sizes, dtype)
        c = np.asarray(limits, np.float64 if dtype == "float64" else np.float32)[:, None]
        out = _rows(u, c)
    wide = o.wide(u)
    n = o.norm(u, 2, (1,))
    for bound, (rows, state) in out.items():
        assert rows.dtype == dtype
        new = new_norm(bound, n, c)
        rtol = registry.eps(dtype) * (1 if dtype == "bfloat16" else 8)
        np.testing.assert_allclose(o.wide(rows), wide * (new / n), rtol=rtol, err_msg=bound)
        over = n > np.float64(c)
        np.testing.assert_allclose(state.fraction, over.mean(), rtol=1e-6)
        assert int(state.clipped_count) == 1
        np.testing.assert_allclose(state.norm, n.max(), rtol=1e-6)
        np.testing.assert_allclose(state.threshold, c.min(), rtol=1e-6)
        np.testing.assert_allclose(state.smallest_scale, (new / n).min(), rtol=1e-5, atol=1e-37)


def test_new_norms_are_below_the_threshold_and_monotone():
    sizes = np.logspace(-6, 6, len(PAIRS))
    c = np.full((len(PAIRS), 1), 0.7, np.float32)
    u = _rows_of(sizes, "float32")
    n = o.norm(u, 2, (1,))[:, 0]
    for bound, (rows, _) in _rows(u, c).items():
        after = o.norm(rows, 2, (1,))[:, 0]
        assert (after <= np.minimum(n, 0.7) * (1 + 3e-7)).all()
        assert (np.diff(after) >= -3e-7 * after[1:]).all()
        if bound != "hard":
            middle = (n > 0.1) & (n < 5)
            assert (after[middle] < np.minimum(n, 0.7)[middle]).all()
            np.testing.assert_allclose(after[sizes < 1e-5], n[sizes < 1e-5], rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bound", BOUNDS)
def test_limits(bound):
    u = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    zero = jax.tree.map(jnp.zeros_like, u)

    limits = [0.0, None, 1e999]

    @jax.jit
    def run(u):
        rules = [jaxclip.clip_by(c, scope="global", bound=bound) for c in limits]
        return [tx.update(u, tx.init(u)) for tx in rules]

    for c, (out, state) in zip(limits, run(u), strict=True):
        registry.assert_same_bits(out, zero if c == 0 else u)
        assert float(state.norm) == 5.0
        assert float(state.fraction) == (c == 0)
        assert float(state.smallest_scale) == (c != 0)
    for out, state in run(zero):
        registry.assert_same_bits(out, zero)
        assert float(state.fraction) == 0
    for bad in (np.nan, np.inf):
        broken = u | {"b": jnp.array([bad])}
        for out, state in run(broken):
            registry.assert_same_bits(out, broken)
            assert (float(state.fraction), int(state.nonfinite_count)) == (0.0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("bound", BOUNDS)
def test_derivative_at_zero(bound):
    """The identity, as that of the formulas is."""
    limits = [1.0, 0.0, None]

    def run(u):
        rules = [jaxclip.clip_by(c, scope="global", bound=bound) for c in limits]
        return [tx.update(u, tx.init(u))[0] for tx in rules]

    slopes = jax.jit(jax.jacobian(run))
    for c, slope in zip(limits, slopes(jnp.zeros(3)), strict=True):
        assert np.isfinite(slope).all()
        if c != 0:
            np.testing.assert_allclose(slope, np.eye(3), atol=1e-6)
    # At the threshold 0 every update becomes zero.
    _, at_zero, without = slopes(jnp.ones(3))
    np.testing.assert_array_equal(at_zero, np.zeros((3, 3)))
    np.testing.assert_array_equal(without, np.eye(3))


@pytest.mark.slow
def test_derivative_by_differences():
    x = np.array([[0.02, -0.01, 0.03], [0.5, -0.2, 0.4], [0.7, 0.6, -0.5], [30.0, 10.0, -20.0]])
    weights, c = np.array([0.3, -0.5, 1.0]), 0.9

    def reference(bound):
        def f(x):
            n = np.sqrt((x**2).sum())
            return (x * weights).sum() * new_norm(bound, n, c) / n

        return f

    with modes.x64():

        def total(x, bound):
            tx = jaxclip.clip_by(c, scope="unit", axis=1, bound=bound)
            return jnp.sum(tx.update(x, tx.init(x))[0] * weights[None])

        slopes = jax.jit(lambda x: {s: jax.grad(total)(x, s) for s in BOUNDS})(x)
    for bound in BOUNDS:
        want = [o.difference(reference(bound), row) for row in x]
        np.testing.assert_allclose(slopes[bound], want, rtol=1e-7, atol=1e-9, err_msg=bound)


def test_tanh_with_a_learned_threshold():
    tx = jaxclip.clip_by(jaxclip.thresholds.quantile(1.0), scope="leaf", bound="tanh")
    u = jnp.array([3.0, 4.0])
    out, state = jax.jit(tx.update)(u, tx.init(u))
    np.testing.assert_allclose(out, u * np.float32(np.tanh(1.0)), rtol=1e-6)
    assert float(state.threshold) == 5.0
    assert float(state.fraction) == 0.0


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_set_brings_every_norm_to_the_threshold(dtype):
    """Up or down, by any factor that the dtype can represent; zero and non-finite rows stay."""
    sizes, limits = np.array([(n, c) for n, c in PAIRS if 1e-35 < c / n < 1e35]).T
    sizes, limits = np.r_[sizes, 0.0, np.nan, np.inf], np.r_[limits, 1.0, 1.0, 1.0]
    u = _rows_of(np.where(np.isfinite(sizes), sizes, 1.0), dtype)
    u = u.at[-2:, 0].set(jnp.asarray(sizes[-2:], dtype))
    c = np.float32(limits)[:, None]

    @jax.jit
    def run(u, c):
        tx = jaxclip.clip_by(c, scope="unit", axis=1, bound="set")
        return tx.update(u, tx.init(u))

    out, state = run(u, c)
    assert out.dtype == dtype
    want = o.wide(u)[:-3] / o.norm(u[:-3], 2, (1,)) * c[:-3]
    rtol = registry.eps(dtype) * (1 if dtype == "bfloat16" else 8)
    np.testing.assert_allclose(o.wide(out)[:-3], want, rtol=rtol)
    registry.assert_same_bits(out[-3:], u[-3:])
    np.testing.assert_allclose(state.fraction, 1 - 3 / len(u), rtol=1e-6)
    assert int(state.nonfinite_count) == 1


def test_set_with_threshold_none_and_zero():
    u = jnp.array([3.0, 4.0])
    for c, want in ((None, u), (float("inf"), u), (0.0, 0 * u)):
        tx = jaxclip.clip_by(c, scope="global", bound="set")
        np.testing.assert_array_equal(once(tx, u)[0], want)


def test_set_counts_norms_that_change():
    u = jnp.array([[3.0, 4.0], [0.3, 0.4], [6.0, 8.0], [-5.0, 0.0]])
    out, state = once(jaxclip.clip_by(5.0, scope="unit", axis=1, bound="set"), u)
    np.testing.assert_allclose(out, u * np.array([[1], [10], [0.5], [1]]), rtol=3e-7)
    assert float(state.fraction) == 0.5


def test_set_by_a_factor_beyond_float32_max():
    u = jnp.array([[3e-30, 4e-30], [3e30, 4e30]])
    tx = jaxclip.clip_by(np.float32([[5e30], [5e-30]]), scope="unit", axis=1, bound="set")
    np.testing.assert_allclose(once(tx, u)[0], [[3e30, 4e30], [3e-30, 4e-30]], rtol=1e-6)


@pytest.mark.parametrize("bad", ["soft", None, 3, True], ids=repr)
def test_unknown_bound(bad):
    with pytest.raises(ValueError, match=f"bound={bad!r}"):
        jaxclip.clip_by(1.0, scope="leaf", bound=bad)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "unit"])
@pytest.mark.parametrize("bound", ["tanh", "rational"])
@pytest.mark.parametrize("c", [3e38, 1e38, 1.0, 1e-30])
def test_smooth_bounds_at_extreme_thresholds(c, bound, scope):
    u = jnp.asarray(np.minimum(np.array([[0.5], [2.0]]) * c, 3.3e38), jnp.float32)
    wide, limit = np.asarray(u, np.float64), float(np.float32(c))
    norm = np.linalg.norm(wide, axis=1 if scope == "unit" else None, keepdims=True)
    new = limit * np.tanh(norm / limit) if bound == "tanh" else norm * limit / (norm + limit)

    def step(u, c):
        axis = 1 if scope == "unit" else None
        return once(jaxclip.clip_by(c, scope=scope, axis=axis, bound=bound), u)[0]

    for out in (jax.jit(lambda u: step(u, c))(u), jax.jit(step)(u, jnp.float32(c))):
        np.testing.assert_allclose(np.asarray(out, np.float64), wide * (new / norm), rtol=5e-7)


@pytest.mark.parametrize("bound", ["tanh", "rational"])
def test_smooth_bounds_with_subnormal_threshold(bound):
    rule = jaxclip.clip_by(1e-39, scope="global", bound=bound)
    for u in (jnp.zeros(2), G):
        np.testing.assert_allclose(jax.jit(lambda u: once(rule, u)[0])(u), 0 * u, atol=1e-38)
