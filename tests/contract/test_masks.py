"""`norm_mask`, `scale_mask`, the precomputed `norm=`, `eps`."""

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


@registry.by_rule(GLOBAL)
def test_given_norm(rule):
    """Half the limit: unchanged. Three times the limit: a third, whatever the tree's own norm.

    To float32's precision, also where the norm is given in bfloat16.
    """
    for norm in (3.0, jnp.float32(3.0), jnp.bfloat16(3.0), np.float64(3.0), 3):
        out, state = _once(rule.make(1.0), norm=norm)
        for got, came in zip(*map(jax.tree.leaves, (out, U)), strict=True):
            np.testing.assert_allclose(got, came / 3, rtol=1e-6)
        assert float(state.norm) == 3.0
    registry.assert_same_bits(_once(rule.make(1.0), norm=0.5)[0], U)


def test_given_norm_is_traced():
    tx = jaxclip.clip_by_global_norm(1.0)
    run = jax.jit(lambda u, n: _once(tx, u, norm=n)[0])
    np.testing.assert_allclose(run(U, 2.0)["b"], [6.0], rtol=1e-6)
    np.testing.assert_allclose(run(U, 24.0)["b"], [0.5], rtol=1e-6)


def test_given_norms_per_leaf():
    tx = jaxclip.clip_by_norm(1.0)
    out, _ = _once(tx, norm={"a": {"x": 2.0, "y": 8.0}, "b": 0.5})
    want = _scaled(U, {"a": {"x": 0.5, "y": 0.125}, "b": 1.0})
    for got, value in zip(*map(jax.tree.leaves, (out, want)), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6)


def test_given_norm_reaches_through_a_chain():
    tx = optax.chain(optax.identity(), jaxclip.clip_by_global_norm(1.0), optax.scale(1.0))
    np.testing.assert_allclose(_once(tx, norm=4.0)[0]["b"], [3.0], rtol=1e-6)
    guarded = optax.apply_if_finite(jaxclip.clip_by_global_norm(1.0), 2)
    np.testing.assert_allclose(_once(guarded, p=U, norm=4.0)[0]["b"], [3.0], rtol=1e-6)


def test_given_norm_is_not_finite():
    for norm in (float("nan"), float("inf")):
        out, state = _once(jaxclip.clip_by_global_norm(1.0), norm=norm)
        registry.assert_same_bits(out, U)
        assert int(state.nonfinite_count) == 1
        out, _ = _once(jaxclip.clip_by_global_norm(1.0, nonfinite="nan"), norm=norm)
        assert all(np.isnan(x).all() for x in jax.tree.leaves(out))


def test_given_norm_of_a_wrong_shape():
    for norm in (jnp.ones(2), {"a": 1.0, "b": 2.0}):
        with pytest.raises((ValueError, TypeError), match="norm"):
            _once(jaxclip.clip_by_global_norm(1.0), norm=norm)


def test_given_norm_says_what_it_must_be():
    """One for all where there is one, and by whatever way it is given."""
    bad = jnp.ones(2)
    guarded = jaxclip.skip_nonfinite(optax.identity())
    for call in (
        lambda: _once(jaxclip.clip_by_global_norm(1.0), norm=bad),
        lambda: _once(guarded, p=U, norm=bad),
        lambda: jaxclip.functional.clip_by_global_norm(U, 1.0, norm=bad),
    ):
        with pytest.raises(ValueError, match=r"norm=Array\(.*must be a scalar$"):
            call()
    with pytest.raises(ValueError, match=r"norm=Array\(.*or one for each leaf$"):
        _once(jaxclip.clip_by_norm(1.0), norm=bad)


@pytest.mark.slow
def test_other_extra_arguments_are_let_by():
    for rule in registry.RULES:
        u = {"w": jnp.array([[3.0], [4.0]])}
        tx = rule.make(100.0)
        out, _ = tx.update(u, tx.init(u), u, value=1.0, loss=2.0)
        registry.assert_same_bits(out, u)


# ---- eps
