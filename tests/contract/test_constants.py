"""Gradients, parameters and states that a jitted function closes over: XLA knows their values.

It then rearranges products of them. Results must be those of arguments, for numbers whose squares
underflow or overflow and for leaves of zeros, such as new biases.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import contexts, learned, registry, weights
from tests.support.registry import EDGE_RULES, MORE

SIZES = {"zero": 0.0, "small": 1e-30, "large": 1e30}
CLOSED = {
    **{r.name: lambda r=r: r.make(r.c) for r in [*EDGE_RULES, *MORE]},
    **{f"learned {k}": lambda k=k: learned.RULES[k]() for k in learned.RULES},
    **{p.name: lambda p=p: p.make(p.c) for p in weights.PROJECTIONS},
    "scale_by_stable_adam": jaxclip.scale_by_stable_adam,
    "monitor": jaxclip.monitor,
    "hyperball": lambda: jaxclip.hyperball(optax.identity(), 0.1),
    "clip_by_spectral_norm": lambda: jaxclip.clip_by_spectral_norm(0.5, how="soft"),
}
PLAIN = ("clip_by_global_norm", "adaptive_grad_clip")


def _tree(seed):
    draw = np.random.default_rng(seed).normal(size=(3, 2))
    return {k: jnp.asarray(size * draw, jnp.float32) for k, size in SIZES.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=[] if k in PLAIN else pytest.mark.slow) for k in CLOSED]
)
def test_constants_are_as_arguments(name):
    """A state of `init`, too."""
    tx, u, p = CLOSED[name](), _tree(1), _tree(0)
    state = tx.init(p)

    def step(u, p):
        out, after = tx.update(u, state, p)
        return out, jaxclip.metrics(after)

    def program(v, q):
        return step(v, q), {"parameters": step(v, p), "gradients": step(u, q), "both": step(u, p)}

    want, found = jax.jit(program)(u, p)
    for key, got in found.items():
        with contexts.case(key):
            for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-37)


def test_new_biases_under_a_rule_that_measures_weights():
    """As in a notebook: the step closes over weights whose biases are zeros."""
    p = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.zeros(3)}
    tx = jaxclip.adaptive_grad_clip(0.1)
    state = tx.init(p)
    out, _ = jax.jit(lambda g: tx.update(g, state, p))(jax.tree.map(jnp.ones_like, p))
    np.testing.assert_allclose(out["b"], np.full(3, 1e-4 / 3**0.5), rtol=1e-6)
    assert registry.floats(out)[0].max() < 1e-4
