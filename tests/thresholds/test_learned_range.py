"""Learned thresholds do not depend on the unit of the gradients, nor their memory on its dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import thresholds
from tests.support import registry

SCALED = {
    "quantile": thresholds.quantile(0.5, window=8),
    "tracked_quantile": thresholds.tracked_quantile(0.5),
    "mean_plus_sigma": thresholds.mean_plus_sigma(1.0, window=16, min_history=4),
    "zscore": thresholds.zscore(warmup_steps=5, eps=0.0, max_norm=None),
    "ema_ratio": thresholds.ema_ratio(warmup_steps=1, warmup_norm=jnp.inf, floor=0.0),
    "aggc": thresholds.aggc(1.5, floor=0.0),
}
RULES = {k: jaxclip.clip_by(v, scope="leaf", name=k) for k, v in SCALED.items()}
RULES["skip_spikes"] = jaxclip.skip_spikes(optax.identity(), window=16, min_history=4)


def _gradients(dtype):
    """Normal ones; a large one and a small one on the way."""
    grads = np.random.default_rng(4).normal(size=(60, 5))
    grads[40] *= 50
    grads[50] *= 0.1
    return jnp.asarray(grads, dtype)


@jax.jit
def _run(grads):
    """All clipped gradients and the last memories."""

    def body(states, g):
        both = {k: rule.update(g, states[k]) for k, rule in RULES.items()}
        return {k: s for k, (_, s) in both.items()}, {k: u for k, (u, _) in both.items()}

    states, outs = jax.lax.scan(body, {k: r.init(grads[0]) for k, r in RULES.items()}, grads)
    return outs, {k: state.memory for k, state in states.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        ("float16", 2.0**7),
        ("bfloat16", 2.0**66),
        ("bfloat16", 2.0**-100),
        ("float32", 2.0**66),
        ("float32", 2.0**110),
        ("float32", 2.0**-100),
    ],
)
def test_squares_of_norms_that_overflow_or_underflow(dtype, factor):
    """Gradients times a power of two are clipped to the same, times it, bit for bit."""
    grads = _gradients(dtype)
    plain, memory = _run(grads)
    scaled, after = _run(grads * factor)
    registry.assert_same_bits(jax.tree.map(lambda x: x * factor, plain), scaled)
    assert all((x != grads).any() for x in plain.values())
    kinds = {x.dtype.name for tree in (memory, after) for x in jax.tree.leaves(tree)}
    assert kinds == {"float32", "int32"}
