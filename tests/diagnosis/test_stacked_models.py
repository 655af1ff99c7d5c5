"""Stacks of layers of Flax Linen, Flax NNX and Equinox, between an embedding and a head."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxclip
from tests.support import oracles

LAYERS, WIDTH, WORDS = 5, 4, 7
X = np.arange(6).reshape(2, 3)


class _LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.tanh(nn.Dense(WIDTH, name="linear")(x)), None


class _Linen(nn.Module):
    axis: int

    @nn.compact
    def __call__(self, x):
        x = nn.Embed(WORDS, WIDTH, name="embed")(x)
        scan = nn.scan(
            _LinenBlock, variable_axes={"params": self.axis}, split_rngs={"params": True},
            length=LAYERS,
        )  # fmt: skip
        x, _ = scan(name="blocks")(x, None)
        return nn.Dense(2, name="head")(x)


def linen(axis):
    model = _Linen(axis)
    params = model.init(jax.random.key(0), X)
    return params, jax.grad(lambda p: jnp.sum(model.apply(p, X) ** 2))(params)


class _NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + nnx.tanh(self.linear(x))


class _Nnx(nnx.Module):
    def __init__(self, axis, rngs):
        axes = nnx.StateAxes({nnx.Param: axis})
        make = nnx.vmap(_NnxBlock, in_axes=(0,), out_axes=axes, axis_size=LAYERS)
        self.scan = nnx.scan(_NnxBlock.__call__, in_axes=(axes, nnx.Carry), out_axes=nnx.Carry)
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.blocks = nnx.split_rngs(splits=LAYERS)(make)(rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.scan(self.blocks, self.embed(x)))


def nnx_model(axis):
    model = _Nnx(axis, nnx.Rngs(0))
    grads = nnx.grad(lambda m: jnp.sum(m(X) ** 2))(model)
    return nnx.state(model, nnx.Param), grads


class _Equinox(eqx.Module):
    embed: eqx.nn.Embedding
    blocks: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(WORDS, WIDTH, key=keys[0])
        make = eqx.filter_vmap(lambda k: eqx.nn.Linear(WIDTH, WIDTH, key=k))
        self.blocks = make(jax.random.split(keys[1], LAYERS))
        self.head = eqx.nn.Linear(WIDTH, 2, key=keys[2])

    def __call__(self, word):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        body = lambda x, a: (x + jnp.tanh(eqx.combine(a, static)(x)), None)  # noqa: E731
        return self.head(jax.lax.scan(body, self.embed(word), arrays)[0])


def equinox(axis):
    model = _Equinox(jax.random.key(0))
    grads = eqx.filter_grad(lambda m: jnp.sum(jax.vmap(m)(jnp.ravel(X)) ** 2))(model)
    return eqx.filter(model, eqx.is_inexact_array), grads


MODELS = {"linen": (linen, 0), "nnx": (nnx_model, 1), "equinox": (equinox, 0)}


def _slices(tree, axis):
    """All leaves by name, those of the stack apart."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        before, blocks, after = name.partition("blocks/")
        if not blocks:
            found[name] = np.asarray(x)
            continue
        for i, one in enumerate(np.moveaxis(x, axis, 0)):
            found[f"{before}blocks/{i}/{after}"] = one
    return found


@pytest.mark.slow
@pytest.mark.relaxed
@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_stacked_layers(name):
    """Norms, names and clipped gradients of each layer, against NumPy."""
    make, axis = MODELS[name]
    params, grads = jax.jit(make, static_argnums=0)(axis)

    def stacked(name, leaf):
        return axis if "blocks" in name.split("/") else None

    leaves = _slices(grads, axis)
    assert len(leaves) == 2 * LAYERS + 3
    norms = {leaf: oracles.norm(x).item() for leaf, x in leaves.items()}
    limit = float(np.median(list(norms.values())))  # it clips some leaves
    tx = optax.chain(
        jaxclip.monitor(name="grads", stacked=stacked), jaxclip.clip_by_norm(limit, stacked=stacked)
    )
    out, state = jax.jit(tx.update)(grads, tx.init(params), params)
    clipped, found = _slices(out, axis), jaxclip.metrics(state)
    assert {k for k in found if "/norm/" in k} == {f"grads/norm/{leaf}" for leaf in leaves}
    for leaf, norm in norms.items():
        np.testing.assert_allclose(found[f"grads/norm/{leaf}"], norm, rtol=1e-5, err_msg=leaf)
        (want,) = oracles.scaled([leaves[leaf]], [norm], [limit])
        np.testing.assert_allclose(clipped[leaf], want, rtol=1e-5, atol=1e-7, err_msg=leaf)
    said = jaxclip.diagnose(grads, params, stacked=stacked)
    assert len(said.layers) == LAYERS + 2
    assert all(layer.deep and layer.weight is not None for layer in said.layers)
