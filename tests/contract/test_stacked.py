"""`stacked=`: a rule treats each slice of a stack of layers as it treats the unrolled layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional, norms, thresholds
from tests.support import modes, oracles, stacks
from tests.support.contexts import once


def _leaf(threshold, **keywords):
    return functools.partial(jaxclip.clip_by, threshold, scope="leaf", **keywords)


def _rule(name, *args, **keywords):
    return functools.partial(getattr(jaxclip, name), *args, **keywords)


RULES = {
    "clip_by_norm": _rule("clip_by_norm", 1.5),
    "clip_by_norm of a slice's axis": _rule("clip_by_norm", 1.5, axis=0),
    "clip_by_block_rms of blocks": _rule("clip_by_block_rms", 0.8, axis=(1, 2)),
    "adaptive_grad_clip by Flax's units": _rule(
        "adaptive_grad_clip", 0.5, axis=jaxclip.projections.flax_units
    ),
    "no axis": _rule("clip_by", 0.7, scope="unit", axis=()),
    "inf-norm, schedule": _leaf(optax.linear_schedule(2.0, 0.5, 4), ord=float("inf")),
    "3-norm, tanh": _leaf(1.5, ord=3, bound="tanh"),
    "relative, set": _leaf(thresholds.relative_to_params(0.5), bound="set", eps=1e-3),
    "autoclip": _rule("autoclip", 60.0, window=3, scope="leaf"),
    "zclip": _rule("zclip", warmup_steps=2, max_norm=None, scope="leaf"),
    "adagc": _rule("adagc", warmup_steps=2),
    "adagc of units": _rule("adagc", warmup_steps=2, scope="unit"),
    "clip_by_history": _rule("clip_by_history", window=3, min_history=2, scope="leaf"),
    "scale_by_stable_adam": _rule("scale_by_stable_adam", b2=0.9),
}
PLAIN = ("clip_by_norm of a slice's axis",)


def _assert_as_unrolled(make, axis, updates, rtol=2e-6, **keywords):
    """The same updates and records, step by step; the first update is that of the parameters."""
    stack = [stacks.stack(tree, axis) for tree in updates]
    rule = make(stacked=stacks.stacked(axis), **keywords)
    outs, records = stacks.run(rule, stack, jax.tree.map(jnp.asarray, stack[0]))
    tree = jax.tree.map(jnp.asarray, updates[0])
    wanted, seen = stacks.run(make(**keywords), updates, tree)
    outs = stacks.unstack(outs, updates[0], axis)
    assert jax.tree.structure(outs) == jax.tree.structure(wanted)
    for got, want in zip(*map(jax.tree.leaves, ((outs, records), (wanted, seen))), strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axis"),
    [
        pytest.param(name, i % 2, marks=[] if name in PLAIN else pytest.mark.slow)
        for i, name in enumerate(RULES)
    ],
)
def test_a_stack_is_clipped_as_its_layers(name, axis):
    """Along axis 0, as Flax, Equinox and Levanter stack, or along 1, as MaxText does."""
    updates = [{k: x for k, x in tree.items() if k != "head"} for tree in stacks.steps()]
    seen = _assert_as_unrolled(RULES[name], axis, updates)
    assert seen["clipped_count"][-1] > 1


def _only_blocks(updates, *names):
    """For tests of a stack's layers alone: the leaves of that names."""
    return [
        {"blocks": [{"attn": {k: x["attn"][k] for k in names}} for x in tree["blocks"]]}
        for tree in updates
    ]


@pytest.mark.slow
@pytest.mark.parametrize("nonfinite", ["propagate", "nan", "zero", "drop"])
def test_a_layer_that_is_not_finite(nonfinite):
    """With `propagate` and `drop` the other layers of its stack are clipped as ever."""
    updates = _only_blocks(stacks.steps(), "kernel", "bias")
    for tree in updates[2:4]:
        tree["blocks"][1]["attn"]["kernel"][0, 1, 2] = np.nan
    make = _rule("clip_by_norm", 1.5, nonfinite=nonfinite)
    seen = _assert_as_unrolled(make, 0, updates)
    assert seen["nonfinite_count"][-1] == 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_and_norms_beyond_their_range(dtype):
    """One layer's squares overflow, one's underflow; each is scaled by its own."""
    with modes.maybe_x64(dtype):
        updates = _only_blocks(stacks.steps(dtype=jnp.dtype(dtype)), "kernel")
        large, small = {"float64": (1e200, 1e-200)}.get(dtype, (300, 1e-3))
        for tree in updates:
            for one, factor in zip(tree["blocks"], (large, small, 1), strict=True):
                one["attn"]["kernel"] *= np.asarray(factor, dtype)
        rtol = 2e-6 if dtype == "float64" else float(jnp.finfo(dtype).eps)
        for name in ("clip_by_norm", "adagc"):
            _assert_as_unrolled(RULES[name], 0, updates, rtol)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2])
def test_number_of_layers(layers):
    _assert_as_unrolled(_rule("clip_by_average_norm", 0.1), 0, stacks.steps(layers))


def test_a_stack_without_layers():
    tree = {"w": jnp.ones((0, 4)), "b": jnp.array([[3.0, 4.0]])}
    rule = jaxclip.clip_by_norm(1.0, stacked=0)
    out, state = once(rule, tree)
    assert out["w"].shape == (0, 4)
    np.testing.assert_allclose(out["b"], [[0.6, 0.8]], rtol=1e-6)
    assert state.norm == 5.0


@pytest.mark.slow
def test_norms_in_numpy():
    """Of each slice of each leaf, which keeps its rank; a leaf without the axis has one norm."""
    tree = {"one": np.float32(np.random.default_rng(0).normal(size=(4, 3, 5))), "gain": 3.0}
    leaves = norms.leaf_norms(jax.tree.map(jnp.asarray, tree), stacked=-2)
    np.testing.assert_allclose(leaves["one"], oracles.norm(tree["one"], 2, (0, 2)), rtol=1e-6)
    assert leaves["one"].shape == (1, 3, 1)
    assert leaves["gain"].shape == ()
    units = norms.unit_norms(jnp.asarray(tree["one"]), ord="rms", stacked=0)
    np.testing.assert_allclose(units, oracles.norm(tree["one"], "rms", (1,)), rtol=1e-6)
    vectors = norms.unit_norms(jnp.asarray(tree["one"][..., 0]), stacked=1)
    np.testing.assert_allclose(vectors, oracles.norm(tree["one"][..., 0], 2, (0,)), rtol=1e-6)


@pytest.mark.slow
def test_functions():
    """Each layer by itself, by oracles that know no stack."""
    x, p = (np.float32(np.random.default_rng(i).normal(size=(3, 4, 5))) for i in (0, 1))
    got = {
        2: functional.clip_by_norm(x, 1.0, stacked=0),
        "average": functional.clip_by_average_norm(x, 0.1, stacked=0),
        "rms": functional.clip_by_block_rms(x, 0.5, stacked=0),
        "units": functional.adaptive_grad_clip(x, p, 0.5, stacked=0),
    }
    for ord, limit in ((2, 1.0), ("average", 0.1), ("rms", 0.5)):
        want = oracles.scaled(list(x), oracles.by_leaf(ord)(list(x)), [limit] * 3)
        np.testing.assert_allclose(got[ord], np.stack(want), rtol=1e-6)
    limits = oracles.relative(oracles.by_unit(None))(0.5, list(p))
    want = oracles.scaled(list(x), oracles.by_unit(None)(list(x)), limits)
    np.testing.assert_allclose(got["units"], np.stack(want), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
def test_a_threshold_for_each_layer(axis):
    """A vector for a stack in a prefix tree, and from a schedule; a number for the rest."""
    tree = jax.tree.map(jnp.asarray, stacks.stack(stacks.unrolled(), axis))
    limits, blocks = np.float32([0.5, 1.0, 2.0]), tree["blocks"]
    kernels = {"plain": blocks["attn"]["kernel"], "schedule": blocks["attn"]["kernel"]}
    tree = {"kernels": kernels, "gain": blocks["gain"], "embed": tree["embed"]}
    prefix = {
        "kernels": {"plain": limits, "schedule": lambda count: jnp.asarray(limits)},
        "gain": jnp.asarray(limits), "embed": None,
    }  # fmt: skip

    def stacked(name, leaf):
        return {"kernels": axis, "gain": 0}.get(name.partition("/")[0])

    out, _ = once(jaxclip.clip_by_norm(prefix, stacked=stacked), tree)
    shape = [3 if a == axis else 1 for a in range(4)]
    for got, x in zip(*map(jax.tree.leaves, (out["kernels"], kernels)), strict=True):
        n = oracles.norm(x, 2, tuple(a for a in range(4) if a != axis))
        want = oracles.wide(x) * np.minimum(1, limits.reshape(shape) / n)
        np.testing.assert_allclose(got, want, rtol=2e-6)
    np.testing.assert_array_equal(out["embed"], tree["embed"])
    np.testing.assert_allclose(out["gain"], np.clip(tree["gain"], -limits, limits), rtol=1e-6)


def test_a_threshold_that_fits_no_leaf():
    tree = {"w": jnp.ones((3, 4))}
    for rule in (
        jaxclip.clip_by_norm(jnp.ones(2), stacked=0),
        jaxclip.clip_by(jnp.ones(4), scope="leaf", stacked=0),
    ):
        with pytest.raises(ValueError, match=r"norms of \['w'\] of shape \(3, 1\)"):
            rule.update(tree, rule.init(tree))
    with pytest.raises(ValueError, match="must be a scalar"):
        jaxclip.clip_by_norm(jnp.ones(3))


def test_an_int_is_for_all_leaves_that_have_the_axis():
    """A vector has no axis 1, and so is one leaf; negative axes count from the end."""
    tree = {"w": jnp.array([[3.0, 0.3], [4.0, 0.4]]), "b": jnp.array([3.0, 4.0]), "c": 7.0}
    for axis, vector in ((1, 5.0), (-1, [3.0, 4.0])):
        found = norms.leaf_norms(tree, stacked=np.int64(axis))
        np.testing.assert_allclose(found["w"], [[5.0, 0.5]], rtol=1e-6)
        np.testing.assert_allclose(found["b"], vector)
        assert found["c"] == 7.0


def test_functions_of_a_leaf_see_its_name_and_a_slice():
    seen = {}

    def axis(name, leaf):
        seen[name] = leaf.shape, leaf.dtype, leaf.ndim
        return 0

    tree = {"blocks": {"w": jnp.ones((3, 4, 5), jnp.bfloat16)}, "head": jnp.ones((4, 2))}
    rule = jaxclip.adaptive_grad_clip(
        0.1, axis=axis, stacked=lambda name, leaf: 1 if name == "blocks/w" else None
    )
    jax.eval_shape(lambda u: rule.update(u, rule.init(u), u), tree)
    assert seen == {
        "blocks/w": ((3, 5), jnp.bfloat16, 2),
        "head": ((4, 2), jnp.float32, 2),
    }


def test_under_inject_hyperparams():
    tree = {"w": jnp.array([[3.0, 4.0], [0.3, 0.4]])}
    inject = functools.partial(optax.inject_hyperparams, jaxclip.clip_by_norm)
    tx = inject(static_args=("stacked",))(max_norm=1.0, stacked=0)
    out, _ = jax.jit(tx.update)(tree, tx.init(tree))
    np.testing.assert_allclose(out["w"], [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)
    tx = inject()(max_norm=1.0, stacked=0)
    with pytest.raises(TypeError, match=r"stacked is traced.*static_args=\('stacked',\)"):
        jax.jit(lambda u: tx.update(u, tx.init(u)))(tree)


@pytest.mark.parametrize("scope", ["global", "element"])
def test_scopes_without_leaves(scope):
    match = f"stacked is only supported with scope='leaf' or 'unit'; got scope='{scope}'"
    with pytest.raises(ValueError, match=match):
        jaxclip.clip_by(1.0, scope=scope, stacked=0)
    for rule in (jaxclip.autoclip, jaxclip.zclip, jaxclip.clip_by_history):
        with pytest.raises(ValueError, match=match):
            rule(scope=scope, stacked=lambda name, leaf: None)


@pytest.mark.parametrize("bad", [True, np.True_, "0", 1.0, (0,), [1]], ids=str)
def test_values_that_are_no_axis(bad):
    for make in (jaxclip.monitor, jaxclip.adagc, functools.partial(jaxclip.clip_by_norm, 1.0)):
        with pytest.raises(TypeError, match=r"stacked=.* must be an int, None, or a function"):
            make(stacked=bad)
    with pytest.raises(TypeError, match=r"stacked=.* must be an int, None, or a function"):
        jaxclip.diagnose({"w": jnp.ones((3, 2))}, stacked=bad)
    rule = jaxclip.clip_by_norm(1.0, stacked=lambda name, leaf: bad)
    with pytest.raises(TypeError, match=r"stacked\('w', leaf\)=.* must be an int"):
        rule.init({"w": jnp.ones((3, 2))})


@pytest.mark.parametrize("axis", [2, -3])
def test_a_function_that_names_no_axis(axis):
    rule = jaxclip.clip_by_norm(1.0, stacked=lambda name, leaf: axis)
    match = rf"stacked\('w', leaf\) is {axis}, which is no axis of the shape \(3, 2\) of .*\['w'\]"
    with pytest.raises(ValueError, match=match):
        rule.init({"w": jnp.ones((3, 2))})
