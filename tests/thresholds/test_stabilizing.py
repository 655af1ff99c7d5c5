"""`stabilize_gradient`: norms near 1, whatever the gradients' unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import registry
from tests.support.contexts import one_by_one

NAN, INF = float("nan"), float("inf")


@pytest.mark.slow
def test_steady_norms_and_spikes():
    """A spike that grows without end tends to (1 - b1) / sqrt(1 - b2)."""
    outs, state = one_by_one(jaxclip.stabilize_gradient(), [-0.25] * 300 + [-1e30])
    np.testing.assert_allclose(outs[:300], -1, rtol=1e-6)
    assert outs[300] == pytest.approx(-0.3 / 0.1**0.5, rel=1e-6)
    assert outs[300] == pytest.approx(-0.9487, abs=1e-4)
    assert float(state.fraction) == 1


def test_norms_that_do_not_count():
    """Zero stays zero, NaN and inf come back, and neither is averaged."""
    outs, state = one_by_one(jaxclip.stabilize_gradient(), [0, NAN, 4, INF, 0, 4])
    np.testing.assert_allclose(outs, [0, NAN, 1, INF, 0, 1], rtol=1e-6)
    assert int(state.nonfinite_count) == 2
    _, state = one_by_one(jaxclip.stabilize_gradient(), [0, NAN])
    assert jnp.isinf(state.threshold)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2.0**110, 2.0**-100])
def test_gradients_in_other_units(factor):
    """Bit for bit the same, where squares of norms overflow or underflow."""
    grads = np.float32(np.random.default_rng(0).normal(size=(60, 5)))

    @jax.jit
    def run(grads):
        tx = jaxclip.stabilize_gradient(eps=0.0)
        return jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(grads[0]), grads)[1]

    registry.assert_same_bits(run(grads * np.float32(factor)), run(grads))


@pytest.mark.slow
def test_no_norm_exceeds_the_largest():
    """Sequences of all kinds, those that grow by a constant factor among them."""
    rng = np.random.default_rng(1)
    rates = np.r_[np.linspace(1, 4, 40), rng.lognormal(size=60)]
    norms = rates ** np.arange(50)[:, None] * rng.lognormal(0, 0.5, (50, 100))

    @jax.jit
    def run(norms):
        tx = jaxclip.stabilize_gradient(scope="unit", eps=0.0)
        return jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(norms[0]), norms)[1]

    found = run(jnp.asarray(np.clip(norms, 1e-30, 1e30), jnp.float32)[:, None])
    assert 1.2 < np.max(found) <= 0.3 / np.sqrt(0.1 * (1 - 0.49 / 0.9))


def test_errors():
    for name in ("beta1", "beta2"):
        for bad in (-0.1, 1.5, NAN):
            with pytest.raises(ValueError, match=f"{name}="):
                jaxclip.stabilize_gradient(**{name: bad})
        with pytest.raises(ValueError, match="must be below 1: the average would never move"):
            jaxclip.stabilize_gradient(**{name: 1})
    for bad in (-1e-3, INF):
        with pytest.raises(ValueError, match="eps="):
            jaxclip.stabilize_gradient(eps=bad)
