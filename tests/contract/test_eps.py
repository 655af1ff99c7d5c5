"""`eps` and the floor of `adaptive_grad_clip`."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import contexts, registry
from tests.support.contexts import once
from tests.support.registry import NORM_RULES


@pytest.mark.slow
def test_adaptive_grad_clip_with_tiny_norms():
    """The formula of the paper, as in Optax: g c / max(n, 1e-6)."""
    u, p = jnp.array([3e-7, 4e-7]), jnp.zeros(2)
    out, _ = once(jaxclip.adaptive_grad_clip(1e-4), u, p)
    np.testing.assert_allclose(out, 0.1 * np.asarray(u), rtol=1e-6)
    theirs = optax.adaptive_grad_clip(1e-4)
    np.testing.assert_allclose(out, theirs.update(u, theirs.init(p), p)[0], rtol=1e-6)


@registry.by_rule([r for r in NORM_RULES if not r.params])
def test_eps_joins_the_quotient_only(rule):
    """g min(1, c / (n + eps)), as PyTorch has it."""
    u = {"w": registry.build((4, 3), scale=2)}
    norms, limits = registry.norms_and_limits(rule, 0.5, u, u)
    out = contexts.step(rule, 0.5, eps=0.25)(u, u)["w"]
    factor = np.minimum(1.0, limits[0] / (norms[0] + 0.25))
    np.testing.assert_allclose(out, np.asarray(u["w"]) * factor, rtol=1e-6)


def test_eps_never_enlarges_and_keeps_small_updates():
    u = jnp.array([0.6, 0.8]) * 1e-3
    registry.assert_same_bits(once(jaxclip.clip_by_global_norm(1.0, eps=1e-6), u)[0], u)
    zero = jnp.zeros(2)
    registry.assert_same_bits(once(jaxclip.clip_by_global_norm(1.0, eps=1e-6), zero)[0], zero)


@pytest.mark.slow
def test_agc_floors():
    """A parameter of norm 0 counts as eps."""
    u = jnp.array([3.0, 4.0])
    for eps in (1e-3, 0.5, jnp.float32(0.5)):
        out, _ = once(jaxclip.adaptive_grad_clip(0.2, eps), u, jnp.zeros(2))
        np.testing.assert_allclose(out, np.array([0.6, 0.8]) * 0.2 * float(eps), rtol=1e-6)
