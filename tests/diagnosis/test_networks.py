"""`diagnose` on networks of three libraries, whose truth is known by construction."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import networks

pytestmark = pytest.mark.relaxed
# To the variance of He's initialization, which keeps that of the error from layer to layer.
GAINS = {"linen": 2**0.5, "nnx": 2**0.5, "equinox": 6**0.5}
DEEP = {"linen": "mlp", "nnx": "cnn", "equinox": "mlp"}
QUICK = ("linen", "mlp")
BLOCKS = {"linen": "transformer", "nnx": "transformer", "equinox": "normed"}
R = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


class Network(NamedTuple):
    params: object
    gradients: object
    order: jaxclip.diagnosis.LayerOrder


@functools.cache
def network(library, kind):
    function, params = networks.build(library, kind)
    gain = GAINS[library] if kind in DEEP.values() else 1.0

    def first(path, x):
        is_bias = "bias" in jax.tree_util.keystr(path)
        return jnp.zeros_like(x) if is_bias else x * gain if x.ndim > 1 else x

    def loss(p, b):
        return jnp.sum(function(p, b) * R)

    params = jax.tree_util.tree_map_with_path(first, params)
    order = jaxclip.diagnosis.layer_order(loss, params, networks.batch())
    return Network(params, jax.jit(jax.grad(loss)), order)


def scaled(params, factor):
    """All weights times a factor."""
    return jax.tree.map(lambda x: factor * x if x.ndim > 1 else x, params)


def filled(params, part, value):
    """The leaves whose path has all these keys, filled with a value."""

    def new(path, x):
        name = jax.tree_util.keystr(path)
        return jnp.full_like(x, value) if all(key in name for key in part) else x

    return jax.tree_util.tree_map_with_path(new, params)


def diagnose(one, params, **options):
    return jaxclip.diagnose(one.gradients(params, networks.batch(**options)), order=one.order)


def cases(*tables, kind=None):
    """All networks of some tables, or those of one kind."""
    found = [one for table in tables for one in table.items() if kind in (one[1], None)]
    slow = {True: (), False: pytest.mark.slow}
    return [pytest.param(*one, id="-".join(one), marks=slow[one == QUICK]) for one in found]


def layers(found):
    return [row.name for row in found.layers if row.place is not None]


def consistent(found):
    """The sentence about the trend: the printed factor takes one printed end to the other."""
    number = r"([-+.e\d]+)"
    pattern = (
        rf"(falls|grows|changes) by a factor of {number} a layer, from {number} .*?to {number} "
    )
    (verb, factor, far, near), = re.findall(pattern, found.findings[0])  # fmt: skip
    (places,) = re.findall(r"over (\d+) layers", found.findings[0])
    change = float(factor) ** (-1 if verb == "falls" else 1)
    np.testing.assert_allclose(float(far) * change ** (int(places) - 1), float(near), rtol=0.15)


# ---- MLP and CNN: each weight layer times s makes the error s times as large a layer


@pytest.mark.parametrize(("library", "kind"), cases(DEEP))
@pytest.mark.parametrize(
    ("factor", "finding"), [(1.0, "healthy"), (0.1, "vanishing"), (10.0, "exploding")]
)
def test_scaled_weights(library, kind, factor, finding):
    one = network(library, kind)
    found = diagnose(one, scaled(one.params, factor))
    assert found.finding == finding
    sound = diagnose(one, one.params)
    np.testing.assert_allclose(found.bias_factor, factor * sound.bias_factor, rtol=1e-3)
    assert len(found.findings) == 1
    assert len(layers(found)) == networks.DEPTH + 1
    if finding == "healthy":
        assert "healthy: the gradient norm changes by a factor of" in found.findings[0]
    else:
        verb = {"vanishing": "falls", "exploding": "grows"}[finding]
        assert f" {verb} by a factor of " in found.findings[0]
        assert " over 6 layers" in found.findings[0]


@pytest.mark.parametrize(("library", "kind"), cases(DEEP))
def test_dead_layer(library, kind):
    """All units of the third layer are dead: no gradient gets there or further."""
    one = network(library, kind)
    names = [row.name for row in diagnose(one, one.params).layers]
    keys = names[2].split("/")
    alive = filled(one.params, ["bias"], 1.0)
    found = diagnose(one, filled(alive, [*keys, "bias"], -1e3))
    assert found.finding == "vanishing"
    assert "exactly 0 in the first 3 layers" in found.findings[0]
    assert [row.gradient[0] == 0 for row in found.layers] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("library", "kind"), cases(DEEP))
@pytest.mark.parametrize("layer", [0, 3])
def test_nan_on_the_way_back(library, kind, layer):
    one = network(library, kind)
    found = diagnose(one, one.params, bad=layer)
    assert found.finding == "non-finite"
    assert found.nonfinite == (0, layers(found)[layer])
    assert f"the gradient of {found.nonfinite[1]} is NaN or inf, and every" in found.findings[0]


@pytest.mark.parametrize(("library", "kind"), cases(DEEP, BLOCKS))
def test_nan_on_the_way_forward(library, kind):
    one = network(library, kind)
    found = diagnose(one, filled(one.params, ["bias"], np.nan))
    assert found.finding == "non-finite"
    assert re.search("began (there, )?in the loss or on the way forward", found.findings[0])


# ---- transformers


@pytest.mark.parametrize(("library", "kind"), cases(BLOCKS))
def test_healthy_transformer(library, kind):
    """As initialized; places: words, and in each block attention in, out, up and down; the end."""
    one = network(library, kind)
    found = diagnose(one, one.params)
    assert found.finding == "healthy"
    assert max(row.place for row in found.layers if row.place is not None) == 10
    assert "over 10 layers" in found.findings[0]
    first = [row.place for row in found.layers if "attention" in row.name.lower()]
    assert sorted(p for p in first if p is not None) == [2, 2, 2, 3, 6, 6, 6, 7]
    consistent(found)


@pytest.mark.parametrize(("library", "kind"), cases(BLOCKS, kind="normed"))
@pytest.mark.parametrize("factor", [0.3, 10.0])
def test_normalization_takes_the_scale_of_weights_away(library, kind, factor):
    one = network(library, kind)
    assert diagnose(one, scaled(one.params, factor)).finding == "healthy"


@pytest.mark.parametrize(("library", "kind"), cases(BLOCKS, kind="transformer"))
@pytest.mark.parametrize(
    ("factor", "residual", "finding"),
    [(0.3, 1.0, "healthy"), (0.1, 0.0, "vanishing"), (10.0, 1.0, "exploding"),
     (10.0, 0.0, "exploding")],
)  # fmt: skip
def test_transformer_without_normalization(library, kind, factor, residual, finding):
    """Through residual connections gradients do not vanish."""
    one = network(library, kind)
    found = diagnose(one, scaled(one.params, factor), residual=residual)
    assert found.finding == finding
    if "biases" not in found.findings[0]:
        consistent(found)


@pytest.mark.parametrize(("library", "kind"), cases(BLOCKS))
@pytest.mark.parametrize("bad", [0, 1])
def test_nan_behind_a_block(library, kind, bad):
    one = network(library, kind)
    found = diagnose(one, one.params, bad=bad)
    assert found.finding == "non-finite"
    assert "down" in found.nonfinite[1]
    assert str(bad) in found.nonfinite[1]


@pytest.mark.parametrize(("library", "kind"), cases(BLOCKS))
def test_dead_units_in_a_residual_branch(library, kind):
    """Gradients pass by: single layers have none, and nothing vanishes."""
    one = network(library, kind)
    found = diagnose(one, filled(one.params, ["up"], 0.0))
    assert found.finding == "zero"
    assert "exactly 0 in " in found.findings[0]
    zero = [row.name for row in found.layers if row.deep and row.gradient[0] == 0]
    assert {name.rpartition("/")[2] for name in zero} <= {"up", "down"}


# ---- what the names alone tell


@pytest.mark.parametrize(("library", "kind"), cases(DEEP, kind="mlp"))
def test_names_without_an_order(library, kind):
    """Nothing is said about depth, and how to get it is."""
    one = network(library, kind)
    found = jaxclip.diagnose(one.gradients(scaled(one.params, 0.1), networks.batch()))
    assert found.finding == "none"
    assert "order=jaxclip.diagnosis.layer_order(loss, params, *batch)" in found.findings[0]
    assert np.isnan(found.factor)
