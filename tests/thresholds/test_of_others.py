"""Thresholds of one's own that mix the norms of leaves, or give every norm the same limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip.thresholds import Threshold

GRADS = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.6, 0.8]), "c": jnp.array([2.0, 0.0])}
NORMS = [5.0, 1.0, 2.0]
MIXED = {
    "reversed": (lambda m: m.norms[::-1], [2.0, 1.0, 5.0]),
    "the first one's": (lambda m: [m.norms[0]] * 3, [5.0] * 3),
    "shifted": (lambda m: [m.norms[1], m.norms[2], m.norms[0]], [1.0, 2.0, 5.0]),
    "floats": (lambda m: [1.0, 0.5, 9.0], [1.0, 0.5, 9.0]),
    "integers": (lambda m: [1, 2, 3], [1.0, 2.0, 3.0]),
    "mapped to one number": (lambda m: m.map(lambda n: jnp.float32(1.5), m.norms), [1.5] * 3),
    "mapped from others": (lambda m: m.map(jnp.minimum, m.norms, m.norms[::-1]), [2.0, 1.0, 2.0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("scope", ["leaf", "unit"])
@pytest.mark.parametrize("limits", MIXED)
def test_each_leaf_has_the_limit_that_it_was_given(limits, scope, jit):
    found, want = MIXED[limits]
    threshold = Threshold(lambda norms: (), lambda memory, measured: (found(measured), memory))
    rule = jaxclip.clip_by(threshold, scope=scope)
    update = jax.jit(rule.update) if jit else rule.update
    out, state = update(GRADS, rule.init(GRADS))
    for (key, g), norm, limit in zip(GRADS.items(), NORMS, want, strict=True):
        np.testing.assert_allclose(out[key], g * min(1, limit / norm), rtol=1e-6, err_msg=key)
    assert float(state.threshold) == min(want)


@pytest.mark.parametrize("number", [0, 2, 4])
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_too_few_and_too_many_limits(scope, number):
    threshold = Threshold(lambda norms: (), lambda memory, measured: ([1.0] * number, memory))
    rule = jaxclip.clip_by(threshold, scope=scope)
    norms = 1 if scope == "global" else 3
    with pytest.raises(ValueError, match=f"{number} values for {norms} norms"):
        rule.update(GRADS, rule.init(GRADS))
