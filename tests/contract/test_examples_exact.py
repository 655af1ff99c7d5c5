"""`per_example` in numbers: long sums, norms where peers are wrong, memory of micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional
from tests.support import registry

NAN = float("nan")


@pytest.mark.slow
@pytest.mark.relaxed
def test_long_sums_and_bad_memories():
    traced = jaxclip.per_example(optax.trace(0.5), microbatch=1)
    ones = jnp.ones((513, 1), jnp.bfloat16).at[2].set(NAN)
    out, state = jax.jit(traced.update)(ones, traced.init(ones[0]), mask=jnp.arange(513) > 0)
    assert out.tolist() == [1.0]  # a sum in bfloat16 would end at 256
    assert state.rule_state.trace.tolist() == [1.0]


@pytest.mark.slow
def test_exactness_where_peers_are_wrong():
    """A thousand leaves of bfloat16; squares that overflow; one NaN of 64."""
    leaves = {str(i): jnp.ones((1, 128), jnp.bfloat16) for i in range(1000)}
    out, norms = functional.clip_per_example(leaves, 1.0)
    total = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(out)))
    assert abs(total - 1) < registry.eps("bfloat16")
    np.testing.assert_allclose(norms, [np.sqrt(128_000)], rtol=1e-6)
    out, norms = functional.clip_per_example(jnp.array([[1e20, 1.0]]), 1.0)
    np.testing.assert_allclose(out, [1, 1e-20], rtol=1e-6)
    batch = jnp.ones((64, 4)).at[17, 2].set(NAN)
    out, norms = functional.clip_per_example(batch, 1.0)
    np.testing.assert_allclose(out, np.full(4, 0.5) * 63 / 64, rtol=1e-6)
    assert np.isnan(norms).tolist() == [i == 17 for i in range(64)]
    theirs, _ = optax.per_example_global_norm_clip([batch], 1.0)
    assert np.isnan(theirs[0]).any()


@pytest.mark.slow
def test_memory():
    """A micro-batch of k examples holds k gradients, of a function and of a tree."""
    size = 100_000
    params, sizes = jnp.zeros(size), {}
    for k in (1, 8, 64):
        tx = jaxclip.per_example(jaxclip.clip_by_global_norm(1.0), microbatch=k)
        state = tx.init(params)

        def run(params, batch, tx=tx, state=state):
            def gradients(x):
                return jax.grad(lambda w: jnp.sum(jnp.tanh(w * x[0]) * x[1]))(params)

            return tx.update(gradients, state, params, batch=batch)[0]

        compiled = jax.jit(run).lower(params, jnp.ones((64, 2))).compile()
        sizes[k] = compiled.memory_analysis().temp_size_in_bytes / (4 * size)
    assert sizes[1] < sizes[8] < sizes[64]
    assert all(size <= 2 * k + 3 for k, size in sizes.items()), sizes
