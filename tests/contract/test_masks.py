"""`norm_mask` and `scale_mask`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import oracles as o
from tests.support import registry
from tests.support.registry import NORM_RULES

U = {"a": {"x": jnp.array([3.0, 0.0]), "y": jnp.array([4.0])}, "b": jnp.array([12.0])}
GLOBAL = [r for r in NORM_RULES if r.kind == "global"]


def _once(tx, u=U, p=None, **extra):
    return tx.update(u, tx.init(u), p, **extra)


def _scaled(tree, factors):
    return jax.tree.map(lambda x, f: x * f, tree, factors)


@pytest.mark.parametrize(
    "mask",
    [
        {"a": True, "b": False},
        {"a": {"x": True, "y": True}, "b": False},
        lambda t: {"a": True, "b": False},
    ],
    ids=["prefix", "full", "callable"],
)
def test_norm_mask(mask):
    """Only `a` is measured, all are scaled."""
    out, state = jax.jit(lambda u: _once(jaxclip.clip_by_global_norm(1.0, norm_mask=mask), u))(U)
    np.testing.assert_allclose(state.norm, 5.0, rtol=1e-6)
    for got, came in zip(*map(jax.tree.leaves, (out, U)), strict=True):
        np.testing.assert_allclose(got, came / 5, rtol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [
        {"a": {"x": True, "y": False}, "b": True},
        lambda t: jax.tree.map(lambda x: x.size == 2, t) | {"b": True},
    ],
    ids=["tree", "callable"],
)
def test_scale_mask(mask):
    """All are measured, `y` is not scaled."""
    out, state = _once(jaxclip.clip_by_global_norm(1.3, scale_mask=mask))
    np.testing.assert_allclose(state.norm, 13.0, rtol=1e-6)
    registry.assert_same_bits(out["a"]["y"], U["a"]["y"])
    np.testing.assert_allclose(out["a"]["x"], U["a"]["x"] / 10, rtol=1e-6)
    np.testing.assert_allclose(out["b"], U["b"] / 10, rtol=1e-6)


@registry.by_rule(GLOBAL)
def test_both_masks(rule):
    u = {"a": registry.build((4, 3), scale=2), "b": registry.build((5,), seed=1, scale=3)}
    tx = rule.make(0.5, norm_mask={"a": True, "b": False}, scale_mask={"a": False, "b": True})
    out, state = _once(tx, u)
    registry.assert_same_bits(out["a"], u["a"])
    n = rule.norms([np.asarray(u["a"])])[0]
    np.testing.assert_allclose(out["b"], np.asarray(u["b"]) * 0.5 / n, rtol=1e-6)
    np.testing.assert_allclose(state.norm, n, rtol=1e-6)


def test_masks_of_nothing_and_everything():
    nothing = {"a": False, "b": False}
    out, state = _once(jaxclip.clip_by_global_norm(1.0, norm_mask=nothing))
    registry.assert_same_bits(out, U)
    assert float(state.norm) == 0.0
    registry.assert_same_bits(_once(jaxclip.clip_by_global_norm(1.0, scale_mask=nothing))[0], U)
    want = _once(jaxclip.clip_by_global_norm(1.0))[0]
    tx = jaxclip.clip_by_global_norm(1.0, norm_mask=True, scale_mask=True)
    registry.assert_same_bits(_once(tx)[0], want)


def test_masks_that_do_not_fit():
    for mask in ({"a": True}, [True, False]):
        for name in ("norm_mask", "scale_mask"):
            with pytest.raises(ValueError, match=name):
                _once(jaxclip.clip_by_global_norm(1.0, **{name: mask}))


def test_masks_must_hold_bools():
    for name in ("norm_mask", "scale_mask"):
        with pytest.raises((TypeError, ValueError), match=name):
            _once(jaxclip.clip_by_global_norm(1.0, **{name: {"a": 1.0, "b": "yes"}}))


def test_nonfinite_in_a_leaf_that_is_not_measured():
    u = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([jnp.nan])}
    tx = jaxclip.clip_by_global_norm(1.0, norm_mask={"a": True, "b": False})
    out, state = _once(tx, u)
    np.testing.assert_allclose(out["a"], [0.6, 0.8], rtol=1e-6)
    assert np.isnan(out["b"][0])
    assert float(state.norm) == 5.0
    assert int(state.nonfinite_count) == 0


def test_masks_in_a_chain_of_two_groups():
    """One norm for the encoder, another for the head, in one tree."""
    tx = optax.chain(
        jaxclip.clip_by_global_norm(
            1.0, norm_mask={"a": True, "b": False}, scale_mask={"a": True, "b": False}
        ),
        jaxclip.clip_by_global_norm(
            2.0, norm_mask={"a": False, "b": True}, scale_mask={"a": False, "b": True}
        ),
    )
    out, _ = _once(tx)
    np.testing.assert_allclose(o.by_tree()(registry.floats(out["a"]))[0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(out["b"], [2.0], rtol=1e-6)


# ---- norm=, computed elsewhere


# ---- eps
