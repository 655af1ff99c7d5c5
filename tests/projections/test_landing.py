"""Projections land where the formula says, stay there, and do not change weights inside the set."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import modes, registry, weights
from tests.support import oracles as o
from tests.support.weights import (
    BY_NAME,
    PROJECTIONS,
    SMALL,
    TREE,
    apply,
    for_each,
    functions,
    norms,
    steps,
    zeros,
)

SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("bfloat16", "float16", "float64")]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", *SLOW])
def test_lands_and_stays(dtype):
    """Every rank, then every dtype; and the next step of nothing changes no bit."""
    with modes.maybe_x64(dtype):
        tree = TREE if dtype == "float32" else SMALL
        p, u = registry.build(tree, dtype, scale=2), registry.build(tree, dtype, seed=1, scale=0.5)
        once = steps(for_each(u), for_each(p))
        again = steps(jax.tree.map(jnp.zeros_like, once), once)
        for projection in PROJECTIONS:
            landed = once[projection.name]
            weights.assert_lands(projection, projection.c, p, u, landed)
            registry.assert_kept(landed, p)
            if projection.closed:
                registry.assert_same_bits(again[projection.name], landed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", *SLOW])
def test_functions_do_the_same(dtype):
    """`jaxclip.functional` rounds once more rarely: no difference is taken on the way."""
    with modes.maybe_x64(dtype):
        tree = {"kernel": (6, 4), "conv": (2, 3, 4, 5)} if dtype == "float32" else (6, 4)
        p = registry.build(tree, dtype, scale=2)
        once = functions(for_each(p))
        again = functions(once)
        for projection in PROJECTIONS:
            landed = once[projection.name]
            weights.assert_lands(projection, projection.c, p, zeros(p), landed)
            registry.assert_kept(landed, p)
            if projection.closed:
                registry.assert_same_bits(again[projection.name], landed)


@pytest.mark.slow
def test_axes():
    """An int, several, one that a leaf lacks, negative ones, a function of name and leaf."""

    def by_name(name, leaf):
        return {"dense/kernel": 0}.get(name, leaf.ndim - 1)

    p = registry.build({k: TREE[k] for k in ("dense", "conv1")}, scale=2)
    axes = [1, (0, 2), -1, by_name]
    run = jax.jit(
        lambda p: [apply(jaxclip.project_max_norm(1.5, axis=a), zeros(p), p) for a in axes]
    )
    for axis, out in zip(axes, run(p), strict=True):
        for key, leaf in p.items():
            own = by_name(f"{key}/kernel", leaf["kernel"]) if axis is by_name else axis
            weights.assert_lands(
                BY_NAME["max_norm"],
                1.5,
                leaf["kernel"],
                leaf["kernel"] * 0,
                out[key]["kernel"],
                own,
            )
            assert (norms(leaf["kernel"], own) > 1.5).any()


@pytest.mark.slow
def test_masks():
    p = registry.build({"kernel": (6, 4), "bias": (4,), "conv": (2, 3, 4, 5)}, scale=2)
    attention = {"query": {"kernel": (4, 2, 3), "bias": (2, 3)}}  # a bias of rank 2
    cases = [
        ({"kernel": False, "bias": True, "conv": False}, {"bias"}),
        (lambda tree: jax.tree.map(lambda x: x.ndim == 4, tree), {"conv"}),
        (True, {"kernel", "bias", "conv"}),
        (False, set()),
        (None, {"kernel", "conv"}),
    ]
    run = jax.jit(lambda p: [_half(mask, p) for mask, _ in cases])
    for (_, touched), outs in zip(cases, run(p), strict=True):
        for out in outs:
            assert {key for key in p if not np.array_equal(out[key], p[key])} == touched
    p = registry.build(attention, scale=2)["query"]
    out = apply(jaxclip.project_box(-0.5, 0.5), zeros({"query": p}), {"query": p})["query"]
    registry.assert_same_bits(out["bias"], p["bias"])
    assert np.abs(out["kernel"]).max() == 0.5


def _half(mask, p):
    made = jaxclip.project_max_norm(0.5, mask=mask), jaxclip.project_box(-0.5, 0.5, mask=mask)
    return [apply(tx, zeros(p), p) for tx in made]


_VECTORS = st.lists(st.floats(-1, 1, width=16), min_size=4, max_size=4)


@pytest.mark.slow
@hypothesis.given(_VECTORS, _VECTORS, st.floats(2.0**-10, 1024.0, width=32))
def test_idempotent_whatever_the_step(start, step, limit):
    """From weights inside, any step lands on the limit at most, and then nothing moves."""
    tx = jaxclip.project_max_norm(limit)

    def column(values, k):
        return {"k": jnp.asarray(np.asarray(values) * k, jnp.float32)[:, None]}

    w, u = column(start, limit / 2), column(step, limit * 4)
    once = apply(tx, u, w)
    moved = o.wide(w["k"]) + o.wide(u["k"])
    np.testing.assert_allclose(
        once["k"], weights.between(moved, 0, limit), rtol=1e-6, atol=5e-7 * limit
    )
    assert norms(once["k"]).max() <= limit * (1 + 5e-7)
    # By value and not by bits, since -0.0 + 0.0 is 0.0.
    np.testing.assert_array_equal(apply(tx, zeros(once), once)["k"], once["k"])
    np.testing.assert_array_equal(apply(tx, zeros(w), w)["k"], w["k"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", SLOW[1]])
def test_16_bit_parameters_get_a_float32_update(dtype):
    """So that w + u rounds once; leaves that are not projected come back unchanged."""
    p, u = registry.build(SMALL, dtype, scale=2), registry.build(SMALL, dtype, seed=1)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) * 1.001, u)
    tx = jaxclip.project_max_norm(2.0)
    for step in (u, wide):
        updates, _ = tx.update(step, tx.init(p), p)
        assert updates["kernel"].dtype == jnp.float32
        registry.assert_same_bits(updates["bias"], step["bias"])
        weights.assert_lands(BY_NAME["max_norm"], 2.0, p, step, apply(tx, step, p))


@pytest.mark.slow
def test_bound_that_16_bits_cannot_represent():
    """A weight stored next to the limit counts as inside."""
    p = jnp.full((2, 3), 0.3, jnp.bfloat16)
    tx = jaxclip.project_box(-0.3, 0.3, record=True)
    updates, state = tx.update(p * 0, tx.init(p), p)
    assert float(p[0, 0]) > 0.3
    np.testing.assert_array_equal(updates, np.zeros((2, 3)))
    assert (float(state.fraction), int(state.clipped_count)) == (0.0, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", SLOW[1]])
def test_landed_16_bit_weights_are_inside(dtype):
    """Storing rounds their norm; a step of zero stays zero and counts nothing."""
    w = {"k": registry.build((6, 200), dtype, scale=2)}
    tx = jaxclip.project_max_norm(1.0)
    landed = apply(tx, zeros(w), w)
    assert norms(landed["k"]).max() > 1 + 1e-4
    updates, state = tx.update(zeros(landed), tx.init(landed), landed)
    np.testing.assert_array_equal(updates["k"], np.zeros((6, 200)))
    assert (float(state.fraction), int(state.clipped_count)) == (0.0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", SLOW[1]])
def test_16_bit_weights_stay_within_one_eps(dtype):
    """Single weights, whose rounding nothing evens out, pushed at the limit by small steps."""
    steps, limits = 40, np.linspace(0.5, 4, 23)
    tx = jaxclip.project_max_norm(list(limits))
    p = [jnp.full((1, 1), c, dtype) for c in limits]
    sizes = np.random.default_rng(0).uniform(0, 2 * registry.eps(dtype), (steps, len(limits)))

    @jax.jit
    def run(p):
        def body(p, size):
            u = [size[i] * w.astype(jnp.float32) for i, w in enumerate(p)]
            p = apply(tx, u, p)
            return p, jnp.stack([w[0, 0].astype(jnp.float32) for w in p])

        return jax.lax.scan(body, p, jnp.asarray(sizes, jnp.float32))[1]

    reached = np.asarray(run(p), np.float64) / limits
    assert reached.max() <= 1 + registry.eps(dtype) * 1.01
    assert reached.max() > 1  # some rest on the far side of the limit, within the rounding
    assert reached.min() >= 1 - registry.eps(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", SLOW[1]])
def test_no_element_beyond_its_bound(dtype):
    """Not by one float: some bounds cannot be reached by adding a float to a weight."""
    with modes.maybe_x64(dtype):
        rng = np.random.default_rng(0)
        bounds = [(-0.2, 0.3), (-10.0, 0.1), (0.1, 0.3), (-1e-3, 7.0), (None, 0.3), (-0.7, None)]
        p = [jnp.asarray(np.clip(rng.normal(size=(40, 50)), *b), dtype) for b in bounds]
        u = [jnp.asarray(3 * rng.normal(size=(40, 50)), dtype) for _ in bounds]
        tx = jaxclip.project_box(*map(list, zip(*bounds, strict=True)))
        run = jax.jit(lambda u, p: apply(tx, u, p))
        once = run(u, p)
        for (low, high), w, step, out in zip(bounds, p, u, once, strict=True):
            low, high = (None if x is None else o.wide(jnp.asarray(x, dtype)) for x in (low, high))
            want = np.clip(o.wide(w) + o.wide(step), low, high)
            assert low is None or o.wide(out).min() >= low
            assert high is None or o.wide(out).max() <= high
            np.testing.assert_allclose(o.wide(out), want, rtol=0, atol=16 * registry.eps(dtype))
        registry.assert_same_bits(run(zeros(once), once), once)
