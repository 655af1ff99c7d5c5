"""Units in real Equinox layers, identified by the layers' outputs; and all rules that take them."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import functional
from jaxclip.projections import equinox_units, flax_units
from tests.support import oracles as o
from tests.support import weights
from tests.support.weights import apply, zeros

pytestmark = pytest.mark.relaxed  # Equinox promotes dtypes

WORDS = 7


class Zoo(eqx.Module):
    """One layer of each kind."""

    linear: eqx.nn.Linear
    conv1: eqx.nn.Conv1d
    conv2: eqx.nn.Conv2d
    conv3: eqx.nn.Conv3d
    grouped: eqx.nn.Conv2d
    transposed: eqx.nn.ConvTranspose2d
    attention: eqx.nn.MultiheadAttention
    embed: eqx.nn.Embedding

    def __init__(self):
        key = jax.random.key(0)
        self.linear = eqx.nn.Linear(6, 4, key=key)
        self.conv1 = eqx.nn.Conv1d(3, 5, 3, key=key)
        self.conv2 = eqx.nn.Conv2d(3, 5, (3, 2), key=key)
        self.conv3 = eqx.nn.Conv3d(2, 3, 2, key=key)
        self.grouped = eqx.nn.Conv2d(4, 6, 2, groups=2, key=key)
        self.transposed = eqx.nn.ConvTranspose2d(3, 5, 2, key=key)
        self.attention = eqx.nn.MultiheadAttention(2, 8, output_size=5, key=key)
        self.embed = eqx.nn.Embedding(WORDS, 3, key=key)

    def outputs(self):
        """The output of each layer for an input of ones, units last, by its name."""
        ones, heads = jnp.ones, self.attention
        found = {name: getattr(self, name)(ones(shape)) for name, shape in {
            "conv1": (3, 6), "conv2": (3, 6, 6), "conv3": (2, 4, 4, 4), "grouped": (4, 5, 5),
            "transposed": (3, 4, 4),
        }.items()}  # fmt: skip
        found = {name: jnp.moveaxis(out, 0, -1) for name, out in found.items()}
        found["linear"] = self.linear(ones(6))
        for name in ("query_proj", "key_proj", "value_proj", "output_proj"):
            layer = getattr(heads, name)
            found[f"attention/{name}"] = layer(ones(layer.in_features))
        return found | {"embed": jax.vmap(self.embed)(jnp.arange(WORDS)).T}


@pytest.mark.slow
def test_equinox_units_feed_one_output_each():
    """NaN in the last unit of every weight reaches the last output alone, and the reverse."""
    zoo = eqx.filter_jit(Zoo)()
    params, rest = eqx.partition(zoo, eqx.is_inexact_array)
    norms = jax.eval_shape(lambda p: jaxclip.norms.unit_norms(p, axis=equinox_units), params)
    outputs = jax.jit(lambda params: eqx.combine(params, rest).outputs())

    def poisoned(path, x, norm, inside):
        if "bias" in jax.tree_util.keystr(path):
            return x
        last = np.zeros(x.shape, bool)
        last[tuple(slice(None) if n == 1 else -1 for n in norm.shape)] = True
        return np.where(last == inside, np.float32(np.nan), x)

    for inside in (True, False):
        poison = functools.partial(poisoned, inside=inside)
        found = outputs(jax.tree_util.tree_map_with_path(poison, params, norms))
        assert len(found) == 11  # every weight
        for name, out in found.items():
            with weights.case(f"{name}, NaN {'in' if inside else 'outside'} the unit"):
                reached = np.isnan(out).any(axis=tuple(range(out.ndim - 1)))
                assert (reached == inside).sum() == 1
                assert reached[-1] == inside


@pytest.mark.slow
@pytest.mark.parametrize("cell", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_gates_of_cells(cell):
    """NaN in the last unit, the last gate of the last output, reaches that output alone."""
    layer = eqx.filter_jit(lambda: cell(3, 4, key=jax.random.key(0)))()
    run = eqx.filter_jit(lambda layer, state: layer(jnp.ones(3), state))
    for name in ("weight_ih", "weight_hh"):
        x = getattr(layer, name)
        norm = functional_norms(name, x)
        assert norm.shape == (x.shape[0], 1)
        bad = eqx.tree_at(lambda m, n=name: getattr(m, n), layer, x.at[-1].set(jnp.nan))
        state = jnp.ones(4) if cell is eqx.nn.GRUCell else (jnp.ones(4), jnp.ones(4))
        out = run(bad, state)
        out = out if cell is eqx.nn.GRUCell else out[0]
        assert np.isnan(out).tolist() == [False, False, False, True]


def functional_norms(name, x):
    return jaxclip.norms.unit_norms({name: x}, axis=equinox_units)[name]


# A convolution (out, in, H, W) whose two units have the norms 5 and 0.5.
KERNEL = np.zeros((2, 2, 2, 1), np.float32)
KERNEL[0, :, 0, 0], KERNEL[1, 0, :, 0] = (3, 4), (0.3, 0.4)


@pytest.mark.slow
def test_limits_of_a_convolution():
    """Every unit comes to its limit; by the default, units are other weights."""
    conv = eqx.filter_jit(lambda: eqx.nn.Conv2d(2, 2, (2, 1), key=jax.random.key(0)))()
    conv = eqx.tree_at(lambda m: m.weight, conv, jnp.asarray(KERNEL))
    params = eqx.filter(conv, eqx.is_inexact_array)
    made = [
        jaxclip.project_max_norm(0.1, axis=equinox_units),
        jaxclip.project_unit_norm(axis=equinox_units),
        jaxclip.project_min_max_norm(0.05, 0.1, axis=equinox_units),
        jaxclip.project_max_norm(0.1),
    ]
    *outs, default = jax.jit(lambda p: [apply(tx, zeros(p), p) for tx in made])(params)
    for out, limit in zip(outs, (0.1, 1.0, 0.1), strict=True):
        np.testing.assert_allclose(sizes(out.weight), limit, rtol=1e-6)
        np.testing.assert_array_equal(out.bias, params.bias)
    assert sizes(default.weight).min() < 0.02


def sizes(weight):
    return o.norm(weight, 2, (1, 2, 3)).ravel()


# Two units of incoming weights with the norms 5 and 0.5, in the layouts of both libraries.
LAYOUTS = [
    (equinox_units, "conv", "weight", KERNEL, (1, 2, 3)),
    (flax_units, "query", "kernel", np.array([[[3.0], [0.3]], [[4.0], [0.4]]], np.float32), (0,)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("units", "layer", "leaf", "kernel", "axes"), LAYOUTS)
def test_every_rule_of_units_takes_them(units, layer, leaf, kernel, axes):
    """Limits of their own and relative to the weights; transformations and functions."""
    assert kernel.ndim == len(axes) + (1 if units is equinox_units else 2)
    unit = {"scope": "unit", "axis": units}
    rules = [
        ([1.0, 0.5], jaxclip.clip_by_norm(1.0, axis=units)),
        ([1.0, 0.5], jaxclip.clip_by(1.0, **unit)),
        ([0.5, 0.05], jaxclip.adaptive_grad_clip(0.1, axis=units)),
        ([1.0, 1.0], jaxclip.clip_by(1.0, **unit, bound="set")),
    ]
    functions = [
        ([5.0, 0.5], lambda g: jaxclip.norms.unit_norms(g, axis=units)),
        ([1.0, 0.5], lambda g: functional.clip_by_norm(g, 1.0, axis=units)),
        ([0.5, 0.05], lambda g: functional.adaptive_grad_clip(g, g, 0.1, axis=units)),
        ([1.0, 0.5], lambda g: functional.project_max_norm(g, 1.0, axis=units)),
        ([1.0, 1.0], lambda g: functional.project_unit_norm(g, axis=units)),
        ([1.0, 0.7], lambda g: functional.project_min_max_norm(g, 0.7, 1.0, axis=units)),
    ]

    @jax.jit
    def run(g):
        found = [tx.update(g, tx.init(g), g)[0] for _, tx in rules]
        return found + [function(g) for _, function in functions]

    outs = run({layer: {leaf: jnp.asarray(kernel)}})
    for (want, _), out in zip(rules + functions, outs, strict=True):
        np.testing.assert_allclose(o.norm(out[layer][leaf], 2, axes).ravel(), want, rtol=1e-6)


def test_equinox_units_of_other_leaves():
    def axes(name, shape):
        return equinox_units(name, jnp.zeros(shape))

    assert axes("layers/0/weight", (4, 6)) == axes("embed/weight", (7, 3)) == (1,)
    assert axes("weight", (5, 3, 3, 2)) == (1, 2, 3)
    assert axes("cell/weight_ih", (12, 3)) == axes("cell/weight_hh", (12, 4)) == (1,)
    for name, shape in [
        ("norm/weight", (4,)),
        ("conv/bias", (5, 1, 1)),
        ("kernel", (3, 2)),
        ("", (3,)),
    ]:
        assert axes(name, shape) is None
