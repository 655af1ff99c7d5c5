"""Wrappers, nodes with one array, change neither the names of parameters nor which are biases."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxclip
from jaxclip.projections import flax_units


@jax.tree_util.register_pytree_node_class
class WithoutKeys:
    """An array with names of axes, as Haliax has them."""

    def __init__(self, array, axes=("in", "out")):
        self.array, self.axes = array, axes

    def tree_flatten(self):
        return (self.array,), self.axes

    @classmethod
    def tree_unflatten(cls, axes, children):
        return cls(*children, axes)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["axes"])
class WithKeys(WithoutKeys):
    pass


class RawValue(NamedTuple):
    raw_value: jax.Array


class Unconstrained(eqx.Module):
    """A wrapper whose array has a name of its own."""

    logits: Any
    label: str = eqx.field(static=True, default="")


class Linear(eqx.Module):
    kernel: Any
    bias: Any


def _partitioned(x):
    return nn.Partitioned(x, names=("in", "out"))


def _logical(x):
    return nn.LogicallyPartitioned(x, names=("in", "out"))


WRAPPERS = {
    "array": lambda x: x,
    "without_keys": WithoutKeys,
    "with_keys": WithKeys,
    "raw_value": RawValue,
    "param": nnx.Param,
    "partitioned": _partitioned,
    "logically_partitioned": _logical,
    "param_of_named_array": lambda x: nnx.Param(WithKeys(x)),
}
CONTAINERS = {
    "dict": lambda **leaves: {"layer": leaves},
    "module": lambda **leaves: {"layer": Linear(**leaves)},
    "state": lambda **leaves: nnx.State({"layer": leaves}),
}
BIASES = [*WRAPPERS.items(), ("unconstrained", Unconstrained)]
cases = pytest.mark.parametrize("container", CONTAINERS)


def _tree(container, wrap):
    """A kernel and a bias of rank 2, both far outside of every set of weights."""
    big = 5 * jnp.ones((2, 2))
    return CONTAINERS[container](kernel=wrap(big), bias=wrap(big))


@cases
@pytest.mark.parametrize(("name", "wrap"), BIASES, ids=[name for name, _ in BIASES])
def test_projections_leave_out_biases(name, wrap, container):
    """Of the kernel all elements change, of the bias none, wherever the wrapper has the array."""
    params = _tree(container, wrap)
    tx = jaxclip.project_box(-1.0, 1.0)
    out, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    bias, kernel = jax.tree.leaves(out)[:: -1 if container == "module" else 1]
    np.testing.assert_array_equal(bias, 0)
    np.testing.assert_array_equal(kernel, -4)


@cases
@pytest.mark.parametrize("name", WRAPPERS)
def test_names_are_those_without_a_wrapper(name, container):
    params = _tree(container, WRAPPERS[name])
    keys = list(jaxclip.monitor().init(params).norms)
    assert sorted(keys) == ["layer/bias", "layer/kernel"]
    found = jaxclip.diagnose(params)
    assert [row.name for row in found.layers] == ["layer"]
    assert found.layers[0].bias == pytest.approx(10.0)


@pytest.mark.parametrize("name", WRAPPERS)
def test_units_of_wrapped_layers(name):
    """Functions of name and leaf get the name without the wrapper."""
    wrap = WRAPPERS[name]
    params = {"embed": {"embedding": wrap(jnp.array([[3.0, 4.0], [0.3, 0.4]]))}}
    norms = jaxclip.norms.unit_norms(params, axis=flax_units)
    np.testing.assert_allclose(jax.tree.leaves(norms)[0], [[5.0], [0.5]], rtol=1e-6)


def test_names_of_modules_stay():
    """A node with other leaves beside `value` is no wrapper, nor is one of another name."""

    class Attention(eqx.Module):
        query: Any
        value: Any

    one = jnp.ones((2, 2))
    tree = {"attention": Attention(one, one), "norm": Unconstrained(one), "list": [one]}
    names = {"attention/query", "attention/value", "norm/logits", "list/0"}
    assert set(jaxclip.monitor().init(tree).norms) == names


@pytest.mark.slow
def test_kernel_below_bias():
    """A layer in a dict is no wrapper, and neither is a module of two arrays: all are kernels."""
    one = 5 * jnp.ones((2, 2))
    tree = {"bias": {"kernel": one}, "other": {"bias": [one]}, "more": {"bias": Linear(one, None)}}
    tree |= {"last": {"bias": Linear(one, jnp.ones(2))}}
    tx = jaxclip.project_box(-1.0, 1.0)
    out, _ = tx.update(jax.tree.map(jnp.zeros_like, tree), tx.init(tree), tree)
    changed = jax.tree.map(lambda u: bool((u != 0).any()), out)
    assert changed["bias"] == {"kernel": True}
    assert changed["other"] == {"bias": [True]}
    assert changed["more"]["bias"].kernel is False  # alone in a module: that is a wrapper
    assert changed["last"]["bias"].kernel is True
