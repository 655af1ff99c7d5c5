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

# Of the spectral projection each way to bound and each method once.
FEW = [q for q in PROJECTIONS if q.name not in ("spectral_clip_iterative", "spectral_scale_eigh")]
SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("bfloat16", "float16", "float64")]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", *SLOW])
def test_lands_and_stays(dtype):
    """Every rank, then every dtype; and the next step of nothing changes no bit.

    In 16 bits some of these weights start too far outside for one step.
    """
    with modes.maybe_x64(dtype):
        tree = TREE if dtype == "float32" else SMALL
        p, u = registry.build(tree, dtype, scale=2), registry.build(tree, dtype, seed=1, scale=0.5)
        once = steps(for_each(u, FEW), for_each(p, FEW))
        there = steps(zeros(once), once) if dtype in ("bfloat16", "float16") else once
        again = steps(zeros(there), there)
        for projection in FEW:
            landed = once[projection.name]
            weights.assert_lands(projection, projection.c, p, u, landed)
            registry.assert_kept(landed, p)
            if projection.closed:
                registry.assert_same_bits(again[projection.name], there[projection.name])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", *SLOW])
def test_functions_do_the_same(dtype):
    """`jaxclip.functional` rounds once more rarely: no difference is taken on the way."""
    with modes.maybe_x64(dtype):
        p = registry.build((6, 4), dtype, scale=2)
        which = PROJECTIONS if dtype == "float32" else FEW
        once = functions(for_each(p, which))
        again = functions(once)
        for projection in which:
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


@jax.jit
def _limited(limit, u, w):
    return apply(jaxclip.project_max_norm(limit), u, w)


@pytest.mark.slow
@hypothesis.given(_VECTORS, _VECTORS, st.floats(2.0**-10, 1024.0, width=32))
def test_idempotent_whatever_the_step(start, step, limit):
    """From weights inside, any step lands on the limit at most, and then nothing moves."""

    def column(values, k):
        return {"k": jnp.asarray(np.asarray(values) * k, jnp.float32)[:, None]}

    w, u = column(start, limit / 2), column(step, limit * 4)
    once = _limited(limit, u, w)
    moved = o.wide(w["k"]) + o.wide(u["k"])
    np.testing.assert_allclose(
        once["k"], weights.between(moved, 0, limit), rtol=1e-6, atol=5e-7 * limit
    )
    assert norms(once["k"]).max() <= limit * (1 + 5e-7)
    # By value and not by bits, since -0.0 + 0.0 is 0.0.
    none = column([0.0] * 4, 1.0)
    np.testing.assert_array_equal(_limited(limit, none, once)["k"], once["k"])
    np.testing.assert_array_equal(_limited(limit, none, w)["k"], w["k"])


@pytest.mark.slow
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
            low, high = (
                x if x is None or dtype != "float32" else np.float32(x) for x in (low, high)
            )
            want = np.clip(o.wide(w) + o.wide(step), low, high)
            assert low is None or o.wide(out).min() >= low
            assert high is None or o.wide(out).max() <= high
            np.testing.assert_allclose(o.wide(out), want, rtol=0, atol=16 * registry.eps(dtype))
        registry.assert_same_bits(run(zeros(once), once), once)
