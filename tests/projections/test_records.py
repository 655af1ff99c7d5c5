"""What projections record of the units, elements or matrices that were outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import oracles as o
from tests.support import registry
from tests.support.contexts import once
from tests.support.weights import SMALL, UNITS, norms, zeros


@pytest.mark.slow
def test_records_of_units():
    p = registry.build({"kernel": (6, 4), "bias": (4,), "conv": (2, 3, 4, 5)}, scale=0.5)
    u = registry.build({"kernel": (6, 4), "bias": (4,), "conv": (2, 3, 4, 5)}, scale=0.5, seed=1)
    run = jax.jit(
        lambda u, p: {q.name: q.make(1.5).update(u, q.make(1.5).init(p), p)[1] for q in UNITS}
    )
    bounds = {"max_norm": (0, 1.5), "unit_norm": (1, 1)}
    moved = [norms(o.wide(p[k]) + o.wide(u[k])).ravel() for k in ("kernel", "conv")]
    sizes = np.concatenate(moved)
    for name, state in run(u, p).items():
        low, high = bounds.get(name, (1.5, 3.0))
        found = {k.partition("/")[2]: v for k, v in jaxclip.metrics(state).items()}
        outside = (sizes > high) | (sizes < low)
        assert outside.any()
        np.testing.assert_allclose(found["norm"], sizes.max(), rtol=1e-6)
        np.testing.assert_allclose(found["fraction"], outside.mean(), rtol=1e-6)
        assert float(found["threshold"]) == high
        rate = 0.25 if name == "min_max_norm_slow" else 1.0
        factors = (rate * np.clip(sizes, low, high) + (1 - rate) * sizes) / sizes
        np.testing.assert_allclose(found["scale"], min(factors.min(), 1.0), rtol=1e-6)
        assert [int(found[k]) for k in ("count", "clipped_count", "nonfinite_count")] == [1, 1, 0]


@pytest.mark.slow
def test_records_of_elements():
    p = registry.build({"a": (6, 4), "b": (2, 3, 5), "bias": (4,)}, scale=2)
    for make, low, high, limit in [
        (jaxclip.project_non_negative, 0.0, np.inf, np.inf),
        (lambda **k: jaxclip.project_box(-0.5, 0.75, **k), -0.5, 0.75, 0.75),
    ]:
        _, state = once(make(record=True), zeros(p), p)
        elements = np.concatenate([o.wide(p[k]).ravel() for k in ("a", "b")])
        outside = (elements < low) | (elements > high)
        assert float(state.norm) == np.abs(elements).max()
        assert float(state.threshold) == limit
        np.testing.assert_allclose(state.fraction, outside.mean(), rtol=1e-6)
        assert (int(state.update_count), int(state.clipped_count), int(state.nonfinite_count)) == (
            1,
            1,
            0,
        )
        _, state = once(make(), zeros(p), p)
        assert {k.partition("/")[2] for k in jaxclip.metrics(state)} == {"count"}
    tx = jaxclip.project_box(
        {"a": -1, "b": -2, "bias": None}, {"a": 1, "b": 2, "bias": None}, record=True
    )
    _, state = once(tx, zeros(p), p)
    assert float(state.threshold) == 1.0  # the smallest, as for every rule


@pytest.mark.slow
def test_counts():
    """An update inside, one outside, one that is not finite."""
    p = {"k": jnp.array([[0.3], [0.4]])}
    tx = jaxclip.project_max_norm(1.0)
    state, update = tx.init(p), jax.jit(tx.update)
    for step in (0.0, 10.0, np.nan):
        _, state = update({"k": np.full((2, 1), step, np.float32)}, state, p)
    assert (int(state.update_count), int(state.clipped_count), int(state.nonfinite_count)) == (
        3,
        1,
        1,
    )


def test_state_is_a_fixed_point():
    for dtype in ("bfloat16", "float32"):
        p = registry.build(SMALL, dtype)
        for tx in (jaxclip.project_max_norm(), jaxclip.project_box(-1.0, 1.0)):
            state = tx.init(p)
            after = jax.eval_shape(tx.update, p, state, p)[1]
            for a, b in zip(*map(jax.tree.leaves, (after, state)), strict=True):
                assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
            assert jax.tree.structure(after) == jax.tree.structure(state)
