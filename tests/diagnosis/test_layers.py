"""`diagnose`: which layers there are, in which order, in any library's gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxclip
from tests.support import oracles


@pytest.mark.slow
def test_natural_order():
    names = ["Dense_10", "Dense_2", "Dense_1", "a/h_2_1", "a/h_2_10", "a/h_10_0"]
    nested = {n: {"kernel": jnp.ones((1, 1))} for n in names if "/" not in n}
    nested["a"] = {n[2:]: {"kernel": jnp.ones((1, 1))} for n in names if "/" in n}
    got = [row.name for row in jaxclip.diagnose(nested).layers]
    assert got == ["Dense_1", "Dense_2", "Dense_10", "a/h_2_1", "a/h_2_10", "a/h_10_0"]
    for tree in ([[jnp.ones((2, 2)), jnp.ones(2)] for _ in range(11)], [jnp.ones((2, 2))] * 11):
        assert [row.name for row in jaxclip.diagnose(tree).layers] == [str(i) for i in range(11)]
    assert [row.name for row in jaxclip.diagnose(jnp.ones(2)).layers] == ["."]


def test_order_by_name_and_by_prefix():
    grads = {"out": {"w": jnp.full((1, 1), 1e4)}, "stem": {"w": jnp.ones((1, 1))},
             "blocks": [{"w": jnp.full((1, 1), 10.0**i)} for i in (1, 2, 3)],
             "side": {"w": jnp.array([[jnp.nan]])}}  # fmt: skip
    found = jaxclip.diagnose(grads, order=["stem", "blocks", "out"])
    names = [row.name for row in found.layers]
    assert names == ["stem", "blocks/0", "blocks/1", "blocks/2", "out", "side"]
    assert [row.place for row in found.layers] == [0, 1, 2, 3, 4, None]
    np.testing.assert_allclose(found.factor, 0.1, rtol=1e-5)
    assert found.nonfinite == (0, "side")
    back = jaxclip.diagnose(grads, order=["out", "blocks/2", "blocks", "stem"])
    assert [row.name for row in back.layers][1:4] == ["blocks/2", "blocks/0", "blocks/1"]


def test_normalizations_are_not_layers_of_depth():
    """Normalizations do not, nor do ranks or names of biases make a weight."""
    kernels, attention = jnp.ones((3, 3)), jnp.ones((2, 3))
    grads = {f"l{i}": {"kernel": 10.0**i * kernels, "bias": attention} for i in range(4)}
    grads |= {f"n{i}": {"scale": jnp.full(3, 1e-9), "bias": jnp.ones(3)} for i in range(4)}
    found = jaxclip.diagnose(grads)
    assert [row.deep for row in found.layers] == [True] * 4 + [False] * 4
    assert all(row.bias is None for row in found.layers)  # a normalization may take it away
    assert found.finding == "vanishing"
    vectors = jaxclip.diagnose({f"l{i}": jnp.full(1, 10.0**i) for i in range(4)})
    assert all(row.deep for row in vectors.layers)
    np.testing.assert_allclose(vectors.factor, 0.1, rtol=1e-5)


def _checked(grads, params, names):
    found = jaxclip.diagnose(grads, params, jax.tree.map(lambda g: -g, grads))
    assert [row.name for row in found.layers] == names
    for row in found.layers:
        assert row.deep
        assert row.bias is not None
        np.testing.assert_allclose(row.update, row.gradient)
        np.testing.assert_allclose(row.ratio, row.gradient / row.weight)
    return found


@pytest.mark.slow
@pytest.mark.relaxed
def test_linen():
    model = nn.Sequential([nn.Dense(3) for _ in range(11)])
    x = jnp.ones((2, 3))
    params = jax.jit(model.init)(jax.random.key(0), x)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, x))))(params)
    found = _checked(grads, params, [f"params/layers_{i}" for i in range(11)])
    kernel = params["params"]["layers_2"]["kernel"]
    np.testing.assert_allclose(found.layers[2].weight, oracles.norm(kernel).item(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.relaxed
def test_nnx():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(3)])

        def __call__(self, x):
            for layer in self.layers:
                x = nnx.relu(layer(x))
            return jnp.sum(x)

    model = Model(nnx.Rngs(0))
    grads = nnx.grad(lambda m: m(jnp.ones((2, 3))))(model)
    _checked(grads, nnx.state(model, nnx.Param), [f"layers/{i}" for i in range(3)])


@pytest.mark.relaxed
def test_equinox():
    """Functions among the leaves of the module, `None` among those of the gradient."""
    model = eqx.nn.MLP(3, 3, 3, 2, key=jax.random.key(0))
    grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(3))))(model)
    names = [f"layers/{i}" for i in range(3)]
    _checked(grads, eqx.filter(model, eqx.is_inexact_array), names)
    assert [row.name for row in jaxclip.diagnose(grads, model).layers] == names
