"""The contract's edge table, continued: odd leaves and non-finite values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import contexts, registry
from tests.support import oracles as o
from tests.support.contexts import case, updates
from tests.support.registry import EDGE_RULES, NORM_RULES

by_rule = registry.by_rule(NORM_RULES)
by_any_rule = registry.by_rule(EDGE_RULES)
FLOAT0 = np.zeros((2,), jax.dtypes.float0)


def _odd_tree():
    return {
        "w": registry.build((3, 2), scale=4),
        "int": jnp.array([100, -200], jnp.int32),
        "bool": jnp.array([True, False]),
        "uint": jnp.array(7, jnp.uint8),
        "zero": FLOAT0,
    }


@pytest.mark.slow
@by_any_rule
def test_leaves_without_a_norm_pass_through(rule):
    u = _odd_tree()
    step = jax.jit(contexts.step(rule, 0.5))
    out = step(u, u)
    for key in ("int", "bool", "uint", "zero"):
        assert jnp.result_type(out[key]) == jnp.result_type(u[key]), key
        assert np.asarray(out[key]).tobytes() == np.asarray(u[key]).tobytes(), key
    alone = step({"w": u["w"]}, {"w": u["w"]})
    np.testing.assert_array_equal(out["w"], alone["w"])  # they were not measured


@by_any_rule
def test_python_floats_and_trees_without_floats(rule):
    """In one trace, where numbers of Python are constants."""

    @jax.jit
    def run(w):
        u = {"w": w, "gain": -3.0, "count": 4}
        whole = {"int": jnp.array([100, -200], jnp.int32)}
        tx = rule.make(0.5)
        return contexts.step(rule, 0.5)(u, u), tx.update(whole, tx.init(whole), whole)

    u = {"w": registry.build((3,)), "gain": -3.0, "count": 4}
    out, (integers, state) = run(u["w"])
    want = dict(zip(("gain", "w"), registry.expected(rule, 0.5, u, u), strict=True))
    np.testing.assert_allclose(out["gain"], want["gain"], rtol=1e-6)
    np.testing.assert_allclose(out["w"], want["w"], rtol=1e-6)
    assert out["count"] == 4
    np.testing.assert_array_equal(integers["int"], [100, -200])
    assert float(state.norm) == 0.0
    assert int(state.clipped_count) == 0


@by_any_rule
def test_empty_tree(rule):
    trees = ({}, [], {"a": None}, {"a": jnp.zeros((0, 3))})
    tx = rule.make(0.5)
    results = jax.jit(lambda trees: [tx.update(t, tx.init(t), t) for t in trees])(trees)
    for empty, (out, state) in zip(trees, results, strict=True):
        assert jax.tree.structure(out) == jax.tree.structure(empty)
        assert float(state.norm) == 0.0
        assert float(state.fraction) == 0.0
        assert int(state.update_count) == 1


@by_rule
def test_complex_keeps_its_phase(rule):
    u, p = (registry.build(registry.TREE, "complex64", **k) for k in ({"scale": 10}, {"seed": 1}))
    out = updates(rule, {"": (0.5, u, p)})[""][0]
    for after, before in zip(registry.floats(out), registry.floats(u), strict=True):
        np.testing.assert_allclose(np.angle(after), np.angle(before), atol=1e-6)
        assert np.abs(after).max() < np.abs(before).max()


# ---- NaN and inf

BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def _poisoned(bad, dtype):
    """A tree with one bad element, the tree with 0 in its place, and parameters of ones."""
    trees = []
    for value in (bad, 0):
        u = registry.build(registry.TREE, dtype, scale=3)
        kernel = np.array(u["dense"]["kernel"])
        kernel[7, 1] = value
        trees.append({**u, "dense": u["dense"] | {"kernel": jnp.asarray(kernel)}})
    return *trees, registry.filled(dtype, (), 1.0)


def _run(rule, policy, bads=BAD, dtypes=registry.NARROW):
    """Yields each bad update, its finite part, parameters, result and state."""
    trees = {f"{k} {d}": _poisoned(bad, d) for k, bad in bads.items() for d in dtypes}
    cases = {name: (0.5, u, p) for name, (u, _, p) in trees.items()}
    for name, (out, state) in updates(rule, cases, dtypes, nonfinite=policy).items():
        with case(name):
            yield *trees[name], out, state


@pytest.mark.slow
@by_rule
def test_propagate_touches_only_nonfinite_groups(rule):
    for u, clean, p, out, state in _run(rule, "propagate"):
        with np.errstate(invalid="ignore"):
            norms, limits = registry.norms_and_limits(rule, 0.5, u, p)
            usual = o.scaled(registry.floats(clean), norms, limits)
        for got, came, n, want in zip(*map(registry.floats, (out, u)), norms, usual, strict=True):
            touched = np.broadcast_to(~np.isfinite(n), came.shape)
            np.testing.assert_array_equal(o.wide(got)[touched], o.wide(came)[touched])
            rtol = registry.tolerance(came.dtype)
            np.testing.assert_allclose(o.wide(got)[~touched], want[~touched], rtol=rtol)
        assert int(state.nonfinite_count) == 1
        assert not np.isfinite(state.norm)


@pytest.mark.slow
@by_rule
def test_nan_and_zero_replace_the_whole_update(rule):
    """A finite one is clipped as usual. The rules take turns: both policies are one function's."""
    policy = ("nan", "zero")[NORM_RULES.index(rule) % 2]
    check = np.isnan if policy == "nan" else (lambda x: x == 0)
    cases = BAD | {"finite": 1.0}
    for u, _, p, out, state in _run(rule, policy, cases, ["bfloat16"]):
        if int(state.nonfinite_count):
            registry.assert_kept(out, u)
            assert all(check(x).all() for x in registry.floats(out))
        else:
            registry.assert_rule(rule, 0.5, u, p, out)
        bad = not all(np.isfinite(x).all() for x in registry.floats(u))
        assert int(state.nonfinite_count) == bad


@pytest.mark.slow
@by_rule
def test_drop_clips_the_finite_elements(rule):
    for u, clean, p, out, state in _run(rule, "drop", BAD | {"finite": 1.0}):
        bad = not all(np.isfinite(x).all() for x in registry.floats(u))
        registry.assert_rule(rule, 0.5, clean if bad else u, p, out)
        assert int(state.nonfinite_count) == bad
        assert np.isfinite(state.norm)


def test_drop_without_leaves():
    rule = jaxclip.clip_by(1.0, scope="leaf", nonfinite="drop")
    out, state = rule.update({}, rule.init({}))
    assert out == {}
    assert int(state.nonfinite_count) == 0


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["element", "unit", "leaf", "global"])
def test_fixed_thresholds_of_0_and_inf(scope):
    """Python numbers take another way than the arrays of the other edges."""
    u = {"w": jnp.array([[3.0, -4.0]]), "zero": jnp.zeros((1, 2))}
    for threshold, factor in ((0, 0), (0.0, 0), (float("inf"), 1), (None, 1)):
        rule = jaxclip.clip_by(threshold, scope=scope)
        out, state = jax.jit(rule.update)(u, rule.init(u))
        assert jnp.array_equal(out["w"], factor * u["w"])
        assert jnp.array_equal(out["zero"], u["zero"])
        assert float(state.norm) > 0
        assert int(state.clipped_count) == 1 - factor
