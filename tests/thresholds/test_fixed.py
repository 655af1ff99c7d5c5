"""Thresholds that are given: numbers, arrays, schedules, prefix trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import contexts, modes, registry
from tests.support import oracles as o
from tests.support.contexts import case, once, together
from tests.support.registry import RULES

# One of each scope: all rules of a scope read their threshold in the same way.
by_rule = registry.by_rule([
    *map(registry.rule, ("clip", "element", "clip_by_norm", "clip_by_norm_axis")),
    *map(registry.rule, ("clip_by_global_norm", "adaptive_grad_clip")),
])  # fmt: skip
LEAF_RULES = [r for r in RULES if r.kind == "leaf"]


def _tree(**kwargs):
    return registry.build(registry.TREES["nested"], **kwargs)


# ---- schedules


@pytest.mark.slow
@by_rule
def test_schedule_counts_from_zero(rule):
    u, p = _tree(scale=3), _tree(seed=1)
    seen = []

    def schedule(count):
        assert count.dtype == jnp.int32
        assert count.shape == ()
        seen.append(count)
        return 0.5 / (1.0 + count.astype(jnp.float32))

    tx = rule.make(schedule)
    state, update = tx.init(p), jax.jit(tx.update)
    for step in range(3):
        out, state = update(u, state, p)
        registry.assert_rule(rule, 0.5 / (1 + step), u, p, out)
        if not rule.params:
            np.testing.assert_allclose(state.threshold, 0.5 / (1 + step), rtol=1e-6)
    assert all(isinstance(count, jax.core.Tracer) for count in seen)  # traced, not called again
    assert 0 < len(seen) <= 3


@pytest.mark.slow
@pytest.mark.relaxed  # Optax's schedules promote int32 counts
@registry.by_rule(list(map(registry.rule, ("clip_by_global_norm", "clip_by_norm_axis"))))
def test_optax_schedule_under_scan(rule):
    u, p = _tree(scale=3), _tree(seed=1)
    tx = rule.make(optax.linear_schedule(2.0, 0.5, 3))

    def run(s, _):
        return tx.update(u, s, p)[::-1]

    _, outs = jax.lax.scan(run, tx.init(p), length=5)
    for step, c in enumerate([2.0, 1.5, 1.0, 0.5, 0.5]):
        registry.assert_rule(rule, c, u, p, jax.tree.map(lambda x, i=step: x[i], outs))


def test_schedule_for_each_bound():
    u = jnp.array([-9.0, 0.0, 9.0])

    def falling(count):
        return 4.0 - count.astype(jnp.float32)

    tx = jaxclip.clip_by_value(-1.0, falling)
    state = tx.init(u)
    for high in (4.0, 3.0):
        out, state = tx.update(u, state)
        np.testing.assert_array_equal(out, [-1.0, 0.0, high])


@pytest.mark.slow
def test_schedule_may_return_any_scalar():
    u = jnp.asarray([3.0, 4.0], jnp.bfloat16)
    for value in (1.0, 1, jnp.float32(1), jnp.bfloat16(1), np.float64(1), jnp.int32(1)):
        tx = jaxclip.clip_by_global_norm(lambda count, v=value: v)
        out, state = jax.jit(tx.update)(u, tx.init(u))
        np.testing.assert_allclose(o.wide(out), [0.6, 0.8], rtol=registry.eps("bfloat16"))
        assert float(state.threshold) == 1.0


def test_negative_schedule_counts_as_zero():
    u = jnp.array([3.0, 4.0])
    tx = jaxclip.clip_by_global_norm(lambda count: jnp.float32(-1.0))
    out, state = jax.jit(tx.update)(u, tx.init(u))
    np.testing.assert_array_equal(out, np.zeros(2))
    assert float(state.smallest_scale) == 0.0


# ---- scalar arrays


@pytest.mark.slow
@by_rule
def test_scalar_array(rule):
    cases = {}
    pairs = [("float16", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16"),
             ("int32", "bfloat16")]  # fmt: skip
    for dtype, leaf in pairs:
        u, p = _tree(dtype=leaf, scale=8), _tree(dtype=leaf, seed=1)
        cases[f"{dtype} {leaf}"] = (jnp.asarray(1, dtype), u, p)
    for name, (out, _) in together(rule, cases).items():
        with case(name):
            registry.assert_rule(rule, 1.0, *cases[name][1:], out)


@pytest.mark.slow
@by_rule
def test_float64_arrays(rule):
    with modes.x64():
        limits = {"jax": jnp.asarray(0.7), "scalar": np.float64(0.7), "numpy": np.asarray(0.7)}
        cases = {}
        for leaf, (name, c) in zip(("bfloat16", "float32", "float64"), limits.items(), strict=True):
            cases[name] = (c, _tree(dtype=leaf, scale=8), _tree(dtype=leaf, seed=1))
        for name, (out, _) in together(rule, cases).items():
            with case(name):
                registry.assert_rule(rule, 0.7, *cases[name][1:], out)


# ---- prefix trees

UPDATES = {
    "dense": {"kernel": jnp.array([[3.0], [4.0]]), "bias": jnp.array([5.0])},
    "gain": jnp.array([6.0]),
}


@registry.by_rule([r for r in LEAF_RULES if not r.params])
def test_prefix_tree(rule):
    limits = {"dense": 0.5, "gain": jnp.float32(1.5)}
    out = contexts.step(rule, limits)(UPDATES, None)
    for c, key in [(0.5, "dense"), (1.5, "gain")]:
        registry.assert_rule(rule, c, UPDATES[key], UPDATES[key], out[key])


def test_prefix_tree_of_everything():
    limits = {
        "dense": {"kernel": None, "bias": lambda count: 1.0 + count.astype(jnp.float32)},
        "gain": jnp.bfloat16(3.0),
    }
    tx = jaxclip.clip_by_norm(limits)
    state = tx.init(UPDATES)
    out, state = jax.jit(tx.update)(UPDATES, state)
    registry.assert_same_bits(out["dense"]["kernel"], UPDATES["dense"]["kernel"])
    np.testing.assert_allclose(out["dense"]["bias"], [1.0], rtol=1e-6)
    np.testing.assert_allclose(out["gain"], [3.0], rtol=1e-6)
    assert float(state.threshold) == 1.0  # the smallest
    assert float(state.norm) == 6.0
    np.testing.assert_allclose(state.fraction, 2 / 3, rtol=1e-6)
    out, _ = jax.jit(tx.update)(UPDATES, state)
    np.testing.assert_allclose(out["dense"]["bias"], [2.0], rtol=1e-6)


def test_prefix_tree_through_other_containers():
    u = [registry.Pair(jnp.array([5.0]), {"x": jnp.array([7.0])}), None, jnp.array([9.0])]
    out, _ = _once(jaxclip.clip_by_norm([registry.Pair(1.0, 2.0), None, 3.0]), u)
    assert [float(x[0]) for x in jax.tree.leaves(out)] == [1.0, 2.0, 3.0]


def _once(tx, u):
    return tx.update(u, tx.init(u))


def test_tree_that_is_no_prefix():
    for bad in ({"dense": 1.0}, {"dense": 1.0, "gain": 1.0, "more": 1.0}, [1.0, 2.0]):
        tx = jaxclip.clip_by_norm(bad)
        with pytest.raises(ValueError, match="max_norm"):
            _once(tx, UPDATES)


def test_tree_of_thresholds_for_one_norm():
    with pytest.raises((ValueError, TypeError), match="max_norm="):
        jaxclip.clip_by_global_norm({"dense": 1.0, "gain": 2.0})


def test_bad_value_in_a_tree_names_its_place():
    for bad, error in [(-2.0, ValueError), (True, TypeError), ("x", TypeError)]:
        with pytest.raises(error) as info:
            jaxclip.clip_by_norm({"dense": {"kernel": bad}, "gain": 1.0})
        message = str(info.value)
        assert "max_norm" in message
        assert "kernel" in message
        assert repr(bad) in message


# ---- arrays of thresholds: broadcast to a leaf's units, never enlarge it


@pytest.mark.slow
def test_unit_shaped_threshold():
    u = jnp.array([[3.0, 6.0, 0.3], [4.0, 8.0, 0.4]])
    for limit in (np.array([1.0, 2.0, 3.0]), jnp.array([[1.0, 2.0, 3.0]])):
        tx = jaxclip.clip_by(limit, scope="unit", axis=0)
        out, _ = jax.jit(tx.update)(u, tx.init(u))
        np.testing.assert_allclose(out, [[0.6, 1.2, 0.3], [0.8, 1.6, 0.4]], rtol=1e-6)


def test_bounds_shaped_like_the_leaf():
    u = {"w": jnp.array([[3.0, -6.0], [4.0, 8.0]])}
    high = jnp.array([1.0, 2.0])
    out, _ = _once(jaxclip.clip_by_value(-high, high), u)
    np.testing.assert_array_equal(out["w"], [[1.0, -2.0], [1.0, 2.0]])


@pytest.mark.parametrize("bad", [(5,), (2, 1), (1, 1, 3), (4, 2, 3)])
def test_thresholds_may_not_enlarge(bad):
    u = {"layer": {"kernel": jnp.ones((2, 3))}}
    limit = jnp.ones(bad)
    with pytest.raises(ValueError, match="kernel"):
        _once(jaxclip.clip_by(limit, scope="unit", axis=0), u)
    if bad != (2, 1):  # a column of bounds broadcasts to the kernel itself
        with pytest.raises(ValueError, match="kernel"):
            _once(jaxclip.clip_by_value(-limit, limit), u)


def test_array_for_a_leaf_is_refused():
    u = {"kernel": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="max_norm"):
        _once(jaxclip.clip_by_norm(jnp.ones(3)), u)


def test_schedule_of_wrong_shape():
    u = {"kernel": jnp.ones((2, 3))}
    tx = jaxclip.clip_by_global_norm(lambda count: jnp.ones(2))
    with pytest.raises(ValueError, match="max_norm"):
        _once(tx, u)


def test_relative_threshold_with_params_beyond_float32_max():
    p, u = jnp.full((4,), 3e38), jnp.array([3e36, 4e36, 0.0, 0.0])
    rule = jaxclip.clip_by(jaxclip.thresholds.relative_to_params(0.001), scope="leaf")
    out, state = jax.jit(lambda u, p: once(rule, u, p))(u, p)
    np.testing.assert_allclose(state.threshold, 6e35, rtol=1e-6)
    np.testing.assert_allclose(out, np.asarray(u, np.float64) * (6e35 / 5e36), rtol=1e-6)
