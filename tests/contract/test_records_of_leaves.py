"""The record of many norms, joined to vectors: leaves of three dtypes, thresholds of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip


@pytest.mark.parametrize(
    "leaves", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 130))]
)
def test_records_of_leaves_with_thresholds_of_their_own(leaves):
    """Of three dtypes, some within their threshold; one leaf has more norms than are joined."""
    draw = np.random.default_rng(leaves)
    names = [f"{i:03d}" for i in range(leaves)]
    limits = {name: float(c) for name, c in zip(names, draw.uniform(0.5, 2, leaves), strict=True)}
    dtypes = [jnp.float32, jnp.bfloat16, jnp.float16]
    tree = {
        name: jnp.asarray(draw.uniform(0.2, 1, (5000 if i == 2 else 3, 2)), dtypes[i % 3])
        for i, name in enumerate(names)
    }
    for scope, axis in (("leaf", None), ("unit", 1)):
        rule = jaxclip.clip_by_norm(limits, axis=axis)
        update = jax.jit(rule.update) if leaves == 3 else rule.update
        _, state = update(tree, rule.init(tree))
        wide = {k: np.float64(x) for k, x in tree.items()}
        norms = [np.sqrt(np.sum(x**2, axis)).reshape(-1) for x in wide.values()]
        factors = [np.minimum(1, limits[k] / n) for k, n in zip(names, norms, strict=True)]
        norms, factors = np.concatenate(norms), np.concatenate(factors)
        assert state.norm == pytest.approx(norms.max(), rel=1e-6), scope
        assert state.threshold == pytest.approx(min(limits.values()), rel=1e-6)
        assert state.smallest_scale == pytest.approx(factors.min(), rel=1e-6)
        assert state.fraction == pytest.approx(np.mean(factors < 1), rel=1e-6)


def test_leaves_of_which_only_some_overflow():
    """Squares of float16 stay in range; those of float32, in one branch for all, may not."""
    tree = {
        "half": jnp.full(4, 200, jnp.float16),
        "large": jnp.full(4, 1e25, jnp.float32),
        "small": jnp.full(4, 1e-30, jnp.float32),
        "usual": jnp.array([3, 4], jnp.float32),
    }
    found = jaxclip.norms.leaf_norms(tree)
    for name, want in (("half", 400), ("large", 2e25), ("small", 2e-30), ("usual", 5)):
        np.testing.assert_allclose(found[name], want, rtol=1e-6)
