"""The record of elementwise rules and projections: over all leaves, devices and dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import contexts, modes, registry
from tests.support import oracles as o
from tests.support.contexts import once

NAN = float("nan")

MAKERS = {
    "clip": functools.partial(jaxclip.clip, 2.0),
    "clip_by_value": functools.partial(jaxclip.clip_by_value, -1.0, 2.0),
    "project_box": functools.partial(jaxclip.project_box, -1.0, 2.0, mask=True),
}
by_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def _record(state):
    return {key: float(value) for key, value in state.scalars().items()}


def _update(tx, u):
    """The record: of the update for a rule, of the weights for a projection."""
    zero = jax.tree.map(jnp.zeros_like, u)
    return tx.update(u, tx.init(u), zero)[1]


@pytest.mark.slow
@by_maker
def test_record_of_a_sharded_leaf(make):
    """With replication checking: that the record leaves as replicated is proof that all agree."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])
    u = {"rows": jnp.arange(8.0)[:, None], "whole": jnp.array([1.0, 5.0])}
    specs = {"rows": P("x"), "whole": P()}
    tx = make(record=True)
    run = jax.shard_map(functools.partial(_update, tx), mesh=mesh, in_specs=(specs,), out_specs=P())
    found = _record(jax.jit(run)(u))
    assert found == _record(_update(tx, u))
    assert (found["norm"], found["threshold"], found["fraction"]) == (7.0, 2.0, np.float32(0.6))


@pytest.mark.slow
@by_maker
def test_float64_elements_beyond_float32(make):
    """The record is float32 and can only say inf; the update is finite nevertheless."""
    with modes.x64():
        found = _record(_update(make(record=True), jnp.array([1e300, 1.0])))
    assert (found["norm"], found["clipped_count"], found["nonfinite_count"]) == (np.inf, 1, 0)


@pytest.mark.slow
@by_maker
def test_nonfinite_elements_are_counted(make):
    for bad in (jnp.nan, jnp.inf):
        assert _record(_update(make(record=True), jnp.array([bad, 1.0])))["nonfinite_count"] == 1


def test_clipped_elements_are_the_threshold():
    """Within two units in the last place."""
    u = jnp.asarray(np.random.default_rng(0).lognormal(2, 3, 20_000), jnp.float32)
    out, state = jax.jit(lambda u: once(jaxclip.clip_by(0.7, scope="element"), u))(u)
    clipped = o.wide(out)[np.asarray(u) > np.float32(0.7)]
    np.testing.assert_allclose(clipped, np.float32(0.7), rtol=2 * registry.eps("float32"))
    assert float(state.fraction) > 0.5


def test_derivative_of_clip_on_its_bound():
    slope = jax.grad(lambda u: jnp.sum(once(jaxclip.clip(1.0), u)[0]))
    np.testing.assert_array_equal(slope(jnp.array([1.0, -1.0, 0.5, 3.0])), [1, 1, 1, 0])


def test_nan_is_not_counted_as_clipped():
    u = jnp.array([NAN, 0.5])
    for tx in (
        jaxclip.clip(1.0, record=True),
        jaxclip.project_box(-1.0, 1.0, record=True, mask=True),
    ):
        _, state = once(tx, u, jnp.zeros(2))
        assert (float(state.fraction), int(state.clipped_count)) == (0.0, 0)
        assert int(state.nonfinite_count) == 1


def test_recorded_threshold_is_the_largest_bound():
    u = jnp.array([[3.0], [-4.0]])
    for tx in (
        jaxclip.clip_by_value(-2.0, 1.0, record=True),
        jaxclip.project_box(-2.0, 1.0, record=True),
    ):
        assert float(once(tx, u, u)[1].threshold) == 2.0


BEYOND = np.array([3e38 + 3e38j, 1e30 - 2e30j], np.complex64)  # |z| is none of float32's numbers


@pytest.mark.slow
@pytest.mark.parametrize("ord", [1, 2, 2.5, 3, 200, np.inf])
def test_complex_norm_beyond_float32_max(ord):
    rule = jaxclip.clip_by(1e38, scope="global", ord=ord)
    out, state = jax.jit(lambda u: once(rule, u))(jnp.asarray(BEYOND))
    wide = BEYOND.astype(np.complex128)
    peak = np.abs(wide).max()
    factor = float(np.float32(1e38)) / (peak * np.linalg.norm(wide / peak, ord))
    np.testing.assert_allclose(np.asarray(out, np.complex128), wide * factor, rtol=5e-7)
    assert int(state.nonfinite_count) == 0
    np.testing.assert_allclose(state.smallest_scale, factor, rtol=5e-7)


@pytest.mark.parametrize("make", [
    lambda c: jaxclip.clip(c, record=True),
    lambda c: jaxclip.clip_by_value(-c, c, record=True),
    lambda c: jaxclip.clip_by(c, scope="element"),
])  # fmt: skip
def test_complex_elements_beyond_float32_max(make):
    out, state = jax.jit(lambda u: once(make(1e38), u))(jnp.asarray(BEYOND))
    wide = BEYOND.astype(np.complex128)
    factor = np.minimum(1, float(np.float32(1e38)) / np.abs(wide))
    np.testing.assert_allclose(np.asarray(out, np.complex128), wide * factor, rtol=5e-7)
    registry.assert_same_bits(out[1], BEYOND[1])
    assert int(state.nonfinite_count) == 0
    np.testing.assert_allclose(state.smallest_scale, factor[0], rtol=5e-7)
    np.testing.assert_allclose(state.fraction, 0.5)


def test_complex_clip_is_by_magnitude():
    u = jnp.array([3 + 4j, 0.3 + 0.4j, -5j], jnp.complex64)
    for tx in (jaxclip.clip(1.0), jaxclip.clip_by_value(-1.0, 1.0)):
        out = tx.update(u, tx.init(u))[0]
        np.testing.assert_allclose(out, np.array([0.6 + 0.8j, 0.3 + 0.4j, -1j]), rtol=1e-6)


def test_complex_leaf_without_a_bound_is_unchanged():
    u = jnp.array([3 + 4j], jnp.complex64)
    for tx in (jaxclip.clip(None), jaxclip.clip_by_value(None, None)):
        registry.assert_same_bits(tx.update(u, tx.init(u))[0], u)


def test_asymmetric_complex_clip_is_an_error():
    u = {"layer": jnp.array([1j], jnp.complex64)}
    tx = jaxclip.clip_by_value(-1.0, 2.0)
    with pytest.raises(ValueError, match="layer"):
        tx.update(u, tx.init(u))
    with pytest.raises(ValueError, match="complex"):
        jaxclip.functional.clip_by_value(u, -1.0, 2.0)


@pytest.mark.parametrize("name", ["clip", "clip_by_value"])
def test_value_rules_keep_nan_and_bound_inf(name):
    """By their formula min(max(g, lo), hi), as TensorFlow and Optax do."""
    rule = registry.rule(name)
    u = jnp.array([float("nan"), float("inf"), -float("inf"), 0.25])
    out = contexts.step(rule, 1.0)(u, u)
    np.testing.assert_array_equal(out, np.array([np.nan, 1.0, -1.0, 0.25], np.float32))


def test_one_sided_bounds():
    u = jnp.array([-5.0, 0.5, 5.0])
    for low, high in [(None, 1.0), (-1.0, None), (None, None)]:
        tx = jaxclip.clip_by_value(low, high)
        want = np.clip(
            np.asarray(u), -np.inf if low is None else low, np.inf if high is None else high
        )
        np.testing.assert_array_equal(tx.update(u, tx.init(u))[0], want)


def test_value_rules_record_only_when_asked():
    u = jnp.array([-3.0, 0.5])
    for make in (jaxclip.clip, lambda c, **k: jaxclip.clip_by_value(-c, c, **k)):
        tx = make(1.0)
        _, state = tx.update(u, tx.init(u))
        assert not any(k.endswith("/norm") for k in jaxclip.metrics(state))
        tx = make(1.0, record=True)
        _, state = tx.update(u, tx.init(u))
        assert float(state.norm) == 3.0
        assert float(state.fraction) == 0.5
