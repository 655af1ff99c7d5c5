"""Projections as functions, against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import functional
from tests.support import oracles as o
from tests.support import registry


@pytest.mark.slow
@pytest.mark.parametrize(
    "axis", [0, (0, 1), *(pytest.param(a, marks=pytest.mark.slow) for a in (1, -1, (0, 1, 2)))]
)
def test_max_norm(axis):
    w = registry.build((3, 4, 2), scale=2)
    norms = o.norm(w, 2, o.unit_axes(3, axis))
    want = o.scaled([w], [norms], [np.float64(1.5)])[0]
    once = functional.project_max_norm(w, 1.5, axis)
    np.testing.assert_allclose(once, want, rtol=1e-6)
    registry.assert_same_bits(functional.project_max_norm(once, 1.5, axis), once)


@pytest.mark.slow
def test_unit_norm():
    w = jnp.array([[3.0, 0.03, 0.0], [4.0, 0.04, 0.0]])
    out = functional.project_unit_norm(w, axis=0)
    np.testing.assert_allclose(out, [[0.6, 0.6, 0.0], [0.8, 0.8, 0.0]], rtol=1e-6)
