"""Units in real Flax layers, identified by the layers' outputs, not by the shapes of arrays.

A unit of NaN must reach one output and no other; everything but the unit must leave it alone.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxclip
from jaxclip.projections import flax_units
from tests.support import oracles as o
from tests.support import weights

pytestmark = pytest.mark.relaxed  # Flax promotes dtypes

WORDS = 7


class Zoo(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 4, rngs=rngs)
        self.conv1 = nnx.Conv(3, 5, (3,), rngs=rngs)
        self.conv2 = nnx.Conv(3, 5, (3, 3), rngs=rngs)
        self.conv3 = nnx.Conv(2, 3, (2, 2, 2), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=8, qkv_features=6, out_features=5, decode=False, rngs=rngs
        )
        self.embed = nnx.Embed(WORDS, 3, rngs=rngs)

    def outputs(self):
        """The output of each layer for an input of ones, by its name."""
        ones = jnp.ones
        attention = self.attention
        return {
            "linear": self.linear(ones((2, 6))),
            "conv1": self.conv1(ones((1, 6, 3))),
            "conv2": self.conv2(ones((1, 6, 6, 3))),
            "conv3": self.conv3(ones((1, 4, 4, 4, 2))),
            "attention/query": attention.query(ones((1, 8))),
            "attention/key": attention.key(ones((1, 8))),
            "attention/value": attention.value(ones((1, 8))),
            "attention/out": attention.out(ones((1, 2, 3))),
            "embed": self.embed(jnp.arange(WORDS)),
        }


@pytest.fixture(scope="module")
def zoo():
    """The graph, and parameters drawn here: quicker than by Flax, and biases are not 0."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Zoo(nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    return graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def named(tree):
    """Every leaf by the names on the way to it, and the structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(tree))
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}, structure


def kernels(params):
    """The kernels, and the table of the embedding, by the name of their layer."""
    leaves, _ = named(params)
    return {k.rpartition("/")[0]: x for k, x in leaves.items() if not k.endswith("bias")}


def poisoned(params, norms, inside):
    """The parameters, with NaN in the last unit of every kernel, or everywhere but there."""
    leaves, structure = named(params)
    for name, x in leaves.items():
        layer, _, kind = name.rpartition("/")
        if kind != "bias":
            unit = np.zeros(x.shape, bool)
            unit[tuple(slice(None) if n == 1 else -1 for n in norms[layer].shape)] = True
            leaves[name] = jnp.where(unit == inside, jnp.nan, x)
    return jax.tree.unflatten(structure, leaves.values())


@pytest.mark.slow
def test_flax_units_feed_one_output_each(zoo):
    graph, params = zoo
    norms = kernels(jaxclip.norms.unit_norms(params, axis=flax_units))

    @jax.jit
    def outputs(pure):
        state = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(pure))
        return nnx.merge(graph, state).outputs()

    for inside in (True, False):
        found = outputs(poisoned(params, norms, inside))
        assert set(found) == set(norms)
        for layer, out in found.items():
            with weights.case(f"{layer}, NaN {'in' if inside else 'outside'} the unit"):
                out = out.T if layer == "embed" else out  # a word is a row of the output
                units = tuple(n for n in norms[layer].shape if n > 1)
                assert out.shape[-len(units) :] == units
                reached = np.isnan(out).any(axis=tuple(range(out.ndim - len(units))))
                assert (reached == inside).sum() == 1
                assert reached.ravel()[-1] == inside


@pytest.mark.slow
def test_flax_units_in_an_nnx_optimizer(zoo):
    """Each unit that is too large comes to its limit; biases, also those of rank 2, stay."""
    model = nnx.merge(*zoo)
    before, _ = named(zoo[1])
    tx = optax.chain(optax.sgd(1.0), jaxclip.project_max_norm(0.7, axis=flax_units))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    zero = jax.tree.map(jnp.zeros_like, zoo[1])
    nnx.jit(lambda model, optimizer: optimizer.update(model, zero))(model, optimizer)
    after, _ = named(nnx.state(model, nnx.Param))
    assert before["attention/query/bias"].ndim == 2
    axes = dict.fromkeys([f"attention/{name}/kernel" for name in ("query", "key", "value")], 0)
    axes["embed/embedding"] = 1
    largest, moved = [], set()
    for name, old in before.items():
        bound = not name.endswith("bias")
        want = weights.between(old, 0, 0.7, axes.get(name)) if bound else old
        np.testing.assert_allclose(after[name], want, rtol=1e-6, atol=1e-7)
        largest.append(o.norm(old, 2, o.unit_axes(old.ndim, axes.get(name))).max() if bound else 0)
        moved |= {name} if largest[-1] > 0.7 else set()
    assert {name.split("/")[0] for name in moved} > {"linear", "conv2", "attention", "embed"}
    found = jaxclip.metrics(optimizer)
    np.testing.assert_allclose(found["project_max_norm/norm"], max(largest), rtol=1e-6)


@pytest.mark.slow
def test_linen_attention_has_the_same_names():
    layer = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, out_features=5)
    params = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((2, 4, 8)))["params"]
    params = jax.tree.map(lambda x: jnp.ones(x.shape), params)
    norms = jaxclip.norms.unit_norms({"attention": params}, axis=flax_units)["attention"]
    for name in ("query", "key", "value"):
        assert norms[name]["kernel"].shape == (1, 2, 3)
    assert norms["out"]["kernel"].shape == (1, 1, 5)


def test_flax_units_of_other_leaves():
    """By name and rank: a leaf with an unknown name is an ordinary kernel."""

    def axes(name, shape):
        return flax_units(name, jnp.zeros(shape))

    assert axes("embed/embedding", (7, 3)) == 1
    assert axes("query/kernel", (8, 2, 3)) == axes("encoder/0/value/kernel", (8, 2, 3)) == 0
    for name, shape in [
        ("", (3, 2)), ("kernel", (3, 2)), ("query/kernel", (8, 6)), ("query/bias", (2, 3)),
        ("embedding", (7,)), ("out/kernel", (2, 3, 5)), ("conv/kernel", (3, 3, 4, 5)),
        ("conv/kernel", (3, 4, 5)),
    ]:  # fmt: skip
        assert axes(name, shape) is None
