"""The contract's edge table, row by row, for every rule that takes a norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import contexts, modes, registry
from tests.support import oracles as o
from tests.support.contexts import case, once, together, updates
from tests.support.registry import EDGE_RULES, NORM_RULES

LOW = ["float16", "bfloat16", "float32"]
by_rule = registry.by_rule(NORM_RULES)
by_any_rule = registry.by_rule(EDGE_RULES)


def _small(dtype, rule):
    """The smallest numbers among others.

    Not the subnormal ones for rules on single elements: XLA makes a minimum of their comparison,
    which flushes what passes through it, as it does in `jnp.clip` and Optax.
    """
    info = jnp.finfo(dtype)
    tiny = info.smallest_normal if rule.kind == "value" else info.smallest_subnormal
    small = [tiny, -tiny, info.smallest_normal]
    return registry.filled(dtype, [-0.0, 0.0, 1.5, -0.3, *map(float, small), -0.0], -0.0)


def _tree(dtype="float32", **keywords):
    return registry.build(registry.TREE, dtype, **keywords)


def _ones(dtype="float32"):
    return registry.filled(dtype, (), 1.0)


# ---- norm <= threshold: bit for bit


@by_any_rule
def test_below_the_threshold_every_bit_is_kept(rule):
    cases = {d: (100.0, _small(d, rule), _ones(d)) for d in LOW}
    for name, (out, _) in updates(rule, cases).items():
        with case(name):
            assert any(np.signbit(x).any() for x in registry.floats(out))
            registry.assert_same_bits(out, cases[name][1])


@pytest.mark.parametrize("size", [1e-30, 2e38])
def test_the_scale_of_a_kept_norm_is_one(size):
    """Also where its squares leave the range, so that it has a unit."""
    u = jnp.full(9, size)
    out, state = once(jaxclip.clip_by_global_norm(1e38 if size < 1 else None), u)
    assert float(state.smallest_scale) == 1.0
    registry.assert_same_bits(out, u)


@by_any_rule
def test_at_the_threshold_every_bit_is_kept(rule):
    """Eight equal powers of two; the limit is their norm, rounded up where float32 must."""
    cases = {}
    for dtype in LOW:
        u = registry.filled(dtype, [4.0] * 8)
        limit = max(np.max(n) for n in rule.norms(registry.floats(u)))
        if rule.params:
            limit = limit / np.max(rule.norms([np.ones((4, 1))])[0])  # exact: 4
        elif np.float32(limit) < limit:
            limit = np.nextafter(np.float32(limit), np.float32(np.inf))
        cases[dtype] = (float(limit), u, registry.filled(dtype, [1.0] * 8))
    for name, (out, state) in updates(rule, cases).items():
        with case(name):
            registry.assert_same_bits(out, cases[name][1])
            assert int(state.clipped_count) == 0
            assert float(state.fraction) == 0.0


# ---- norm > threshold: direction kept, new norm within one epsilon


def _check_new_norms(rule, out, c, u, p):
    norms, limits = registry.norms_and_limits(rule, c, u, p)
    clipped = 0
    for new, old, limit, leaf in zip(
        rule.norms(registry.floats(out)), norms, limits, registry.floats(out), strict=True
    ):
        over = old > limit
        clipped += over.sum()
        new, limit = (np.broadcast_to(x, over.shape)[over] for x in (new, limit))
        # One epsilon of 16 bits, where only the product rounds; in wider dtypes two.
        rtol = registry.eps(leaf.dtype) * (1 if leaf.dtype.itemsize == 2 else 2)
        np.testing.assert_allclose(new, limit, rtol=rtol)
    assert clipped


@by_rule
def test_clipped_norm_is_the_threshold(rule):
    """Within two machine epsilons of the leaf's dtype, in 16 bits within one."""
    dtypes = registry.NARROW
    cases = {d: (0.25, _tree(d, scale=50), _tree(d, seed=1)) for d in dtypes}
    for name, (out, _) in updates(rule, cases).items():
        with case(name):
            _check_new_norms(rule, out, *cases[name])


@pytest.mark.slow
@by_rule
def test_clipped_norm_in_float64(rule):
    with modes.x64():
        cases = {d: (0.25, _tree(d, scale=50), _tree(d, seed=1)) for d in registry.WIDE}
        for name, (out, _) in updates(rule, cases, registry.WIDE).items():
            _check_new_norms(rule, out, *cases[name])


@by_rule
def test_clipping_keeps_the_direction(rule):
    u, p = _tree(scale=50), _tree(seed=1)
    out = updates(rule, {"": (0.25, u, p)})[""][0]
    norms, _ = registry.norms_and_limits(rule, 0.25, u, p)
    for a, b, n in zip(registry.floats(out), registry.floats(u), norms, strict=True):
        ratio = o.wide(a) / o.wide(b)
        assert (ratio > 0).all()
        same = [i for i, size in enumerate(np.shape(n)) if size == 1]  # axes within one unit
        if same and rule.kind != "element":
            spread = ratio.max(axis=tuple(same)) / ratio.min(axis=tuple(same))
            np.testing.assert_allclose(spread, 1, rtol=3 * registry.eps("float32"))


# ---- thresholds None, inf, 0, negative


@by_any_rule
def test_no_threshold_changes_nothing_and_records(rule):
    u = _tree(scale=1e6)
    found = updates(rule, {"inf": (float("inf"), u, _ones())})
    found |= together(rule, {"None": (None, u, _ones())})
    for name, (out, state) in found.items():
        with case(name):
            registry.assert_same_bits(out, u)
            largest = max(n.max() for n in rule.norms(registry.floats(u)))
            np.testing.assert_allclose(state.norm, largest, rtol=1e-6)
            assert jnp.isinf(state.threshold)
            assert (
                int(state.update_count),
                int(state.clipped_count),
                float(state.smallest_scale),
            ) == (1, 0, 1.0)
            assert float(state.fraction) == 0.0


@by_any_rule
def test_threshold_zero_gives_zeros(rule):
    cases = {f"{k} {d}": (0.0, _tree(d, scale=k), _ones(d)) for k in (0.0, 3.0) for d in LOW}
    for name, (out, state) in updates(rule, cases).items():
        with case(name):
            registry.assert_kept(out, cases[name][1])
            assert all((x == 0).all() for x in registry.floats(out))
            assert all(np.isfinite(x) for x in (state.norm, state.smallest_scale))
            assert float(state.threshold) == 0
            assert (float(state.fraction) > 0) == name.startswith("3.0")  # zeros are not clipped


@by_any_rule
def test_traced_negative_threshold_counts_as_zero(rule):
    u, p = _tree(), _tree(seed=1)
    found = updates(rule, {"-1": (-1.0, u, p), "0.5": (0.5, u, p)})
    if rule.name != "clip_by_value":  # there, -1 and 1 would be two bounds that have crossed
        assert all((x == 0).all() for x in registry.floats(found["-1"][0]))
    registry.assert_rule(rule, 0.5, u, p, found["0.5"][0])


# ---- the zero update


@by_any_rule
def test_zero_update_is_unchanged_with_an_identity_jacobian(rule):
    """And at the threshold 0 with a finite one."""
    u = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    ones = jax.tree.map(jnp.ones_like, u)

    @jax.jit
    def run(u, c):
        def step(u):
            out = contexts.step(rule, c)(u, ones)
            return out, out

        return jax.jacobian(step, has_aux=True)(u)

    jacobian, out = run(u, 1.0)
    registry.assert_same_bits(out, u)
    np.testing.assert_array_equal(jacobian["w"]["w"].reshape(4, 4), np.eye(4))
    np.testing.assert_array_equal(jacobian["b"]["b"], np.eye(2))
    assert not np.any(jacobian["w"]["b"])
    jacobian, out = run(u, 0.0)
    registry.assert_same_bits(out, u)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jacobian))


@by_rule
def test_derivative_is_that_of_the_oracle(rule):
    """Above the threshold, against central differences of the float64 oracle."""
    with modes.x64():
        u, p = registry.build((3, 2), "float64", scale=3), registry.build((3, 2), "float64", seed=1)
        weights = np.arange(1.0, 7.0).reshape(3, 2)

        def oracle(x):
            return (registry.expected(rule, 0.6, x, p)[0] * weights).sum()

        got = jax.jit(jax.grad(lambda x: jnp.sum(contexts.step(rule, 0.6)(x, p) * weights)))(u)
        np.testing.assert_allclose(got, o.difference(oracle, np.asarray(u)), rtol=1e-6, atol=1e-7)


# ---- squares that overflow or underflow

EXTREME = {
    "f32 large": ("float32", [1e20, 1.0, -2e20, 3e19]),
    "f32 small": ("float32", [1e-30, 2e-30, -1e-30, 5e-31]),
    "f32 largest": ("float32", [3e38, 3e38, -3e38, 3e38]),
    "f16 300": ("float16", [300.0, 1.0, -200.0, 2.0]),
    "f16 largest": ("float16", [65504.0] * 4),
    "f16 small": ("float16", [1e-4, -2e-4, 1e-4, 3e-4]),
    "bf16 large": ("bfloat16", [1e30, 1.0, -3e38, 2e20]),
    "f32 zero": ("float32", [0.0, 2.0, 0.0, 0.0]),
}


def _extreme(rule, name):
    dtype, values = EXTREME[name]
    u = registry.filled(dtype, values)
    p = registry.filled(dtype, np.asarray(values) / 2)
    sizes = [n[n > 0].max(initial=0) for n in rule.norms(registry.floats(u))]
    c = 0.5 if rule.params else float(np.float32(min(0.5 * max(sizes), 3.4e38)))
    return c, u, p


@by_any_rule
def test_extreme_values_are_exact(rule):
    cases = {name: _extreme(rule, name) for name in EXTREME}
    for name, (out, state) in updates(rule, cases).items():
        with case(name):
            registry.assert_rule(rule, *cases[name], out)
            assert int(state.nonfinite_count) == 0  # every element was finite


@registry.by_rule([r for r in NORM_RULES if not r.params])
def test_extreme_float64(rule):
    """A power of ten times a tree and its limit gives that power times the result."""
    with modes.x64():
        u = _tree("float64")
        times = {power: jax.tree.map(lambda x, k=power: x * 10.0**k, u) for power in (200, -200)}
        cases = {power: (0.5 * 10.0**power, tree, u) for power, tree in times.items()}
        want = registry.expected(rule, 0.5, u, u)
        for power, (out, _) in updates(rule, cases, registry.WIDE).items():
            for a, b in zip(registry.floats(out), want, strict=True):
                np.testing.assert_allclose(a / 10.0**power, b, rtol=2e-15)


@pytest.mark.slow
def test_norm_of_600_bfloat16_leaves():
    leaves = [registry.build((128,), "bfloat16", seed=i) for i in range(600)]
    want = o.by_tree()(registry.floats(leaves))[0]
    np.testing.assert_allclose(jaxclip.norms.global_norm(leaves), want, rtol=1e-6)


@pytest.mark.slow
def test_elements_far_smaller_than_the_norm():
    """A factor in two parts, the first of which alone would be too small for them."""
    cases = ((1e30, 1e-9, 3e29), (2e38, 1e-5, 1e38), (2e38, 1e-5, 1e-5), (1e10, 1.0, 1e-30))
    for large, small, c in cases:
        u = {"a": jnp.array([large]), "b": jnp.array([small])}
        out, _ = once(jaxclip.clip_by_global_norm(c), u)
        factor = float(np.float32(c)) / float(np.float32(large))
        np.testing.assert_allclose(out["a"], [c], rtol=2 * registry.eps("float32"))
        want = float(np.float32(small)) * factor
        np.testing.assert_allclose(out["b"], [want], rtol=2.5e-7, atol=1.2e-38)


def test_factor_that_float16_cannot_represent():
    u = jnp.array([60000.0, 30000.0, 0.0], jnp.float16)
    out, _ = once(jaxclip.clip_by_global_norm(1e-3), u)
    want = o.wide(u) / np.linalg.norm(o.wide(u)) * 1e-3
    np.testing.assert_allclose(o.wide(out), want, rtol=registry.eps("float16"))
