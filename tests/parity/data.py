"""Random input for the peers: the same numbers for both sides, and how near they must come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import modes

DTYPES = [
    pytest.param(d, marks=[] if d == "bfloat16" else pytest.mark.slow)
    for d in ("float16", "bfloat16", "float32", "float64")
]
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def arrays(dtype, shapes, seed=0, scale=2.0):
    """NumPy float64 arrays whose values the dtype can hold exactly."""
    import ml_dtypes

    rng = np.random.default_rng(seed)
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return [(scale * rng.normal(size=s)).astype(narrow).astype(np.float64) for s in shapes]


def near(dtype):
    """Relative tolerance: both sides round, and peers accumulate 16-bit norms in 16 bits."""
    return {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-6, "float64": 1e-14}[dtype]


def assert_near(ours, theirs, dtype):
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)
        np.testing.assert_allclose(a, b, rtol=near(dtype), atol=near(dtype) * 1e-2)


def updated(tx, leaves, params=None):
    """The updates and the state after one step, in one program: operations alone need one each."""
    return jax.jit(lambda u, p: tx.update(u, tx.init(u), p))(leaves, params)


def ours(values, dtype):
    """JAX arrays of the dtype."""
    return [jnp.asarray(v, dtype) for v in values]


context = modes.maybe_x64
