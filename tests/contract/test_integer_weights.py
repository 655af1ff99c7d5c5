"""Quantized weights: rules relative to the parameters measure integers, projections skip them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional
from jaxclip.thresholds import relative_to_params
from tests.support import registry
from tests.support.contexts import once

RELATIVE = {"adaptive_grad_clip": jaxclip.adaptive_grad_clip(0.01)}
for _scope in ("element", "unit", "leaf", "global"):
    RELATIVE[_scope] = jaxclip.clip_by(relative_to_params(0.01), scope=_scope)
PROJECTIONS = {
    "project_max_norm": jaxclip.project_max_norm(1.0),
    "project_unit_norm": jaxclip.project_unit_norm(),
    "project_min_max_norm": jaxclip.project_min_max_norm(0.5, 1.0),
    "project_spectral_norm": jaxclip.project_spectral_norm(1.0),
    "project_box": jaxclip.project_box(-1.0, 1.0),
    "project_non_negative": jaxclip.project_non_negative(),
}
WEIGHTS = np.array([[100, -120], [90, 3], [0, -7]])  # squares beyond int8
GRADS = {"a": jnp.full((2, 2), 3.0), "w": jnp.asarray(WEIGHTS[::-1] / 7, jnp.float32)}


def _params(dtype):
    return {"a": jnp.ones((2, 2)), "w": jnp.asarray(WEIGHTS % 128, dtype)}


@jax.jit
def _relative(params):
    return {name: rule.update(GRADS, rule.init(params), params) for name, rule in RELATIVE.items()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_norms_of_integer_weights(dtype):
    """As if they were floats; the update has the gradient's dtype."""
    found, want = _relative(_params(dtype)), _relative(_params("float32"))
    registry.assert_same_bits(found, want)
    assert all((out["w"] != GRADS["w"]).any() for out, _ in found.values())


def test_functional_adaptive_grad_clip():
    run = jax.jit(lambda params: functional.adaptive_grad_clip(GRADS, params, 0.01))
    out, want = run(_params("int8")), run(_params("float32"))
    registry.assert_same_bits(out, want)
    assert (out["w"] != GRADS["w"]).any()


@pytest.mark.slow
@pytest.mark.relaxed  # Optax promotes
def test_optax_where_its_squares_are_in_range():
    params = {"w": jnp.asarray(WEIGHTS // 25, jnp.int8)}
    grads, theirs = {"w": GRADS["w"]}, optax.adaptive_grad_clip(0.1)
    want, _ = theirs.update(grads, theirs.init(params), params)
    out, _ = once(jaxclip.adaptive_grad_clip(0.1), grads, params)
    np.testing.assert_allclose(out["w"], want["w"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", RELATIVE | PROJECTIONS)
def test_weights_without_a_gradient(name):
    """Of `jax.grad(allow_int=True)`, or integers: passed through, and the rest is right."""
    tx, params = (RELATIVE | PROJECTIONS)[name], _params("int8")
    float0 = GRADS | {"w": np.zeros(WEIGHTS.shape, jax.dtypes.float0)}
    whole = GRADS | {"w": jnp.ones(WEIGHTS.shape, jnp.int8)}
    alone, _ = tx.update({"a": GRADS["a"]}, tx.init(params), {"a": params["a"]})
    for grads in (float0, whole):
        out, _ = tx.update(grads, tx.init(params), params)
        assert out["w"] is grads["w"]
        registry.assert_same_bits(out["a"], alone["a"])


@pytest.mark.slow
@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections_leave_integer_weights(name):
    out, _ = PROJECTIONS[name].update(GRADS, PROJECTIONS[name].init(GRADS), _params("int8"))
    assert out["w"] is GRADS["w"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RELATIVE)
def test_weights_without_a_norm(name):
    for weights, dtype in (
        (jnp.ones(WEIGHTS.shape, bool), "bool"),
        (jax.random.split(jax.random.key(0), WEIGHTS.shape), "key<fry>"),
    ):
        params = GRADS | {"w": weights}
        found = rf"params has {dtype} and updates float32 at \['w'\]"
        with pytest.raises(ValueError, match=found):
            RELATIVE[name].update(GRADS, RELATIVE[name].init(GRADS), params)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_float_weights_without_an_update(name):
    updates = GRADS | {"w": np.zeros(WEIGHTS.shape, jax.dtypes.float0)}
    found = r"updates has .*float0.* and params float32 at \['w'\]"
    with pytest.raises(ValueError, match=found):
        PROJECTIONS[name].update(updates, PROJECTIONS[name].init(GRADS), GRADS)
