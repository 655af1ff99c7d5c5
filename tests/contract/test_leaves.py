"""The contract's edge table, continued: odd leaves and non-finite values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import contexts, registry
from tests.support import oracles as o
from tests.support.contexts import case, together
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
    out = contexts.step(rule, 0.5)(u, u)
    for key in ("int", "bool", "uint", "zero"):
        assert jnp.result_type(out[key]) == jnp.result_type(u[key]), key
        assert np.asarray(out[key]).tobytes() == np.asarray(u[key]).tobytes(), key
    alone = contexts.step(rule, 0.5)({"w": u["w"]}, {"w": u["w"]})
    np.testing.assert_array_equal(out["w"], alone["w"])  # they were not measured


@by_any_rule
def test_only_leaves_without_a_norm(rule):
    u = {"int": jnp.array([100, -200], jnp.int32)}
    tx = rule.make(0.5)
    out, state = tx.update(u, tx.init(u), u)
    registry.assert_same_bits(out, u)
    assert float(state.norm) == 0.0
    assert int(state.clipped_count) == 0


@pytest.mark.slow
@by_any_rule
def test_python_float_leaf(rule):
    u = {"w": registry.build((3,)), "gain": -3.0, "count": 4}
    out = contexts.step(rule, 0.5)(u, u)
    want = dict(zip(("gain", "w"), registry.expected(rule, 0.5, u, u), strict=True))
    np.testing.assert_allclose(out["gain"], want["gain"], rtol=1e-6)
    np.testing.assert_allclose(out["w"], want["w"], rtol=1e-6)
    assert out["count"] == 4


@by_any_rule
def test_empty_tree(rule):
    for empty in ({}, [], {"a": None}, {"a": jnp.zeros((0, 3))}):
        tx = rule.make(0.5)
        out, state = tx.update(empty, tx.init(empty), empty)
        assert jax.tree.structure(out) == jax.tree.structure(empty)
        assert float(state.norm) == 0.0
        assert float(state.fraction) == 0.0
        assert int(state.count) == 1


@by_rule
def test_complex_keeps_its_phase(rule):
    u, p = (
        registry.build((4, 3), "complex64", scale=10),
        registry.build((4, 3), "complex64", seed=1),
    )
    out = together(rule, {"": (0.5, u, p)})[""][0]
    np.testing.assert_allclose(np.angle(out), np.angle(u), atol=1e-6)
    assert np.abs(out).max() < np.abs(u).max()


# ---- NaN and inf

BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def _poisoned(bad, dtype="float32"):
    """A tree with one bad element, the tree with 0 in its place, and parameters of ones."""
    u = registry.build({"a": (3, 4), "b": (2, 2), "n": np.int32([5])}, dtype, scale=3)
    trees = []
    for value in (bad, 0):
        a = np.array(u["a"])
        a[0, 1] = value
        trees.append({**u, "a": jnp.asarray(a)})
    return *trees, jax.tree.map(lambda x: np.ones(x.shape, np.float32), u)


def _run(rule, policy, bads, dtypes=("float32",)):
    """Yields each bad update, what remains of it, parameters, result and state."""
    trees = {f"{k} {d}": _poisoned(bad, d) for k, bad in bads.items() for d in dtypes}
    cases = {name: (0.5, u, p) for name, (u, _, p) in trees.items()}
    for name, (out, state) in together(rule, cases, nonfinite=policy).items():
        with case(name):
            yield *trees[name], out, state


@by_rule
def test_propagate_touches_only_nonfinite_groups(rule):
    for u, clean, p, out, state in _run(rule, "propagate", BAD):
        with np.errstate(invalid="ignore"):
            norms, limits = registry.norms_and_limits(rule, 0.5, u, p)
            usual = o.scaled(registry.floats(clean), norms, limits)
        for got, came, n, want in zip(*map(registry.floats, (out, u)), norms, usual, strict=True):
            touched = np.broadcast_to(~np.isfinite(n), came.shape)
            np.testing.assert_array_equal(got[touched], came[touched])
            np.testing.assert_allclose(got[~touched], want[~touched], rtol=1e-6)
        assert int(state.nonfinite_count) == 1
        assert not np.isfinite(state.norm)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["nan", "zero"])
@by_rule
def test_nan_and_zero_replace_the_whole_update(rule, policy):
    check = np.isnan if policy == "nan" else (lambda x: x == 0)
    for u, _, _, out, state in _run(rule, policy, BAD, ["bfloat16"]):
        registry.assert_kept(out, u)
        assert all(check(x).all() for x in registry.floats(out))
        assert int(state.nonfinite_count) == 1


@by_rule
def test_drop_clips_the_finite_elements(rule):
    for _, clean, p, out, state in _run(rule, "drop", BAD):
        registry.assert_rule(rule, 0.5, clean, p, out)
        assert int(state.nonfinite_count) == 1
        assert np.isfinite(state.norm)


@pytest.mark.slow
@by_rule
def test_drop_in_other_dtypes(rule):
    dtypes = ["float16", "bfloat16", "complex64"]
    for _, clean, p, out, _ in _run(rule, "drop", {"nan": np.nan}, dtypes):
        registry.assert_rule(rule, 0.5, clean, p, out)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["propagate", "nan", "zero", "drop"])
@pytest.mark.parametrize("name", ["clip_by_global_norm", "clip_by_norm", "adaptive_grad_clip"])
def test_policies_agree_on_a_finite_update(name, policy):
    rule = registry.rule(name)
    for u, _, p, out, state in _run(rule, policy, {"1": 1.0}):
        registry.assert_rule(rule, 0.5, u, p, out)
        assert int(state.nonfinite_count) == 0
