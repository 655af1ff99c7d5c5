"""`diagnose`: each finding on networks that have it, against float64 NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import modes, oracles

DEPTH, WIDTH = 10, 24


def factor(norms):
    """From layer to layer, if each changes the norm equally."""
    return (norms[0] / norms[-1]) ** (1 / (len(norms) - 1))


def weights_of(std, depth=DEPTH):
    rng = np.random.default_rng(0)
    kernels = [std * rng.standard_normal((WIDTH, WIDTH)) for _ in range(depth)]
    return {
        f"Dense_{i}": {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.zeros(WIDTH, jnp.float32),
        }
        for i, kernel in enumerate(kernels)
    }


def gradients(act, std, residual=False, depth=DEPTH):
    """Of a deep network's cross-entropy at its first step."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((32, WIDTH)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, WIDTH, 32))

    @jax.jit
    @jax.grad
    def grads(params):
        h = x
        for i in range(depth):
            layer = params[f"Dense_{i}"]
            z = h @ layer["kernel"] + layer["bias"][None]
            h = z if i == depth - 1 else h + act(z) if residual else act(z)
        return -jnp.mean(jax.nn.log_softmax(h)[jnp.arange(32), labels])

    return grads(weights_of(std, depth))


def ladder(*norms):
    """Layers with gradients of these norms, from input to output."""
    return {f"Dense_{i}": {"kernel": jnp.full((1, 1), n)} for i, n in enumerate(norms)}


@pytest.fixture(scope="module")
def sigmoid():
    return gradients(jax.nn.sigmoid, WIDTH**-0.5)


# ---- the findings, on networks


def test_deep_sigmoid_network_vanishes(sigmoid):
    found = jaxclip.diagnose(sigmoid)
    assert found.finding == "vanishing"
    assert [row.name for row in found.layers] == [f"Dense_{i}" for i in range(DEPTH)]
    leaves = [list(sigmoid[row.name].values()) for row in found.layers]
    norms = [oracles.by_tree()(own)[0] for own in leaves]
    np.testing.assert_allclose([row.gradient[0] for row in found.layers], norms, rtol=1e-6)
    np.testing.assert_allclose(found.factor, factor(norms), rtol=1e-6)
    biases = [oracles.norm(sigmoid[row.name]["bias"]).item() for row in found.layers]
    np.testing.assert_allclose(found.bias_factor, factor(biases), rtol=1e-6)
    assert found.factor < 0.5
    assert str(found).startswith(
        f"vanishing: from the output to the input the gradient norm falls by a factor of "
        f"{1 / found.factor:.3g} a\nlayer, from {norms[-1]:.2g} to {norms[0]:.2g} over 10 layers."
    )
    assert found.nonfinite is None
    assert np.isnan(found.growth)


def test_saturated_tanh_network_explodes():
    found = jaxclip.diagnose(gradients(jnp.tanh, 1.0, depth=16))
    assert found.finding == "exploding"
    assert found.factor > 1.5
    assert "gradient norm grows" in found.findings[0]


@pytest.mark.slow
@pytest.mark.parametrize("act", [jax.nn.relu, lambda z: z], ids=["relu", "linear"])
def test_relu_and_linear_networks_show_only_in_biases(act):
    """Activations grow as the error does, so that the product is level over depth."""
    found = jaxclip.diagnose(gradients(act, 1.0))
    assert found.finding == "exploding"
    assert 1 / 1.2 < found.factor < 1.2
    assert found.bias_factor > 2
    assert "norm of the biases grows" in found.findings[0]
    small = jaxclip.diagnose(gradients(act, 0.02))
    assert small.finding == "vanishing"
    assert small.bias_factor < 1 / 2


def test_vanishing_biases_with_level_weights():
    grads = {
        f"Dense_{i}": {"kernel": jnp.ones((2, 2)), "bias": jnp.full(1, 0.1 ** (4 - i))}
        for i in range(4)
    }
    found = jaxclip.diagnose(grads)
    assert "norm of the biases falls by a factor of 10 a layer" in found.findings[0]
    assert found.finding == "vanishing"
    assert str(found).splitlines()[-1].split() == ["Dense_3", "2", "0.1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "std", "residual"),
    [(jax.nn.relu, (2 / WIDTH) ** 0.5, False), (jax.nn.relu, 0.3 / WIDTH**0.5, True),
     (jnp.tanh, WIDTH**-0.5, False)],
    ids=["he", "residual", "xavier"],
)  # fmt: skip
def test_healthy_networks(act, std, residual):
    found = jaxclip.diagnose(gradients(act, std, residual))
    assert found.finding == "healthy"
    assert str(found).startswith("healthy: the gradient norm changes by a factor of")
    assert 1 / 1.5 < found.factor < 1.5


# ---- the findings, at their limits


@pytest.mark.parametrize(
    ("norms", "finding"),
    [
        ((1.0, 11.0, 121.0), "vanishing"),
        ((121.0, 11.0, 1.0), "exploding"),
        ((1.0, 9.0, 81.0), "healthy"),
        ((81.0, 9.0, 1.0), "healthy"),
        (tuple(1.45**i for i in range(20)), "healthy"),
        (tuple(1.55**i for i in range(20)), "vanishing"),
        (tuple(1.55**-i for i in range(20)), "exploding"),
        ((1.0, 1000.0), "none"),
        ((1.0,), "none"),
        ((5.0, 1.0, 1.0, 1.0, 1.0, 1000.0), "none"),
        ((0.0, 1.0, 1.0), "vanishing"),
        ((0.0, 0.0, 1e-10, 1e-5, 1.0), "vanishing"),
        ((1.0, 0.0, 1.0), "zero"),
        ((0.0, 0.0, 0.0), "vanishing"),
        ((1.0, 50.0, 1e-3, 125e3, 6.25e6, 3.125e8), "vanishing"),
    ],
)
def test_limits_over_depth(norms, finding):
    assert jaxclip.diagnose(ladder(*norms)).finding == finding


def test_zero_gradients_are_reported_but_not_in_the_factor():
    found = jaxclip.diagnose(ladder(0.0, 0.0, 1e-10, 1e-5, 1.0))
    np.testing.assert_allclose(found.factor, 1e-5, rtol=1e-5)
    assert "from 1 to 1e-10 over 3 layers, and is exactly 0 in the first 2 layers" in str(
        found
    ).replace("\n", " ")
    assert np.isnan(jaxclip.diagnose(ladder(0.0, 0.0, 0.0)).factor)
    assert "the first layer (" in jaxclip.diagnose(ladder(0.0, 1.0)).findings[0]
    assert "1 layer is too few" in str(jaxclip.diagnose(ladder(1.0)))


@pytest.mark.parametrize("layer", [0, 4, DEPTH - 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_located_and_left_out_of_the_factor(sigmoid, layer, bad):
    """Back from the layer at which it began, all are hit."""
    hit = {f"Dense_{i}" for i in range(layer + 1)}
    grads = {
        k: jax.tree.map(lambda x: x.at[0].set(bad), v) if k in hit else v
        for k, v in sigmoid.items()
    }
    found = jaxclip.diagnose(grads)
    assert found.finding == "non-finite"
    assert found.nonfinite == (0, f"Dense_{layer}")
    end = layer == DEPTH - 1
    assert ("began in the loss or on the way forward" in found.findings[0]) == end
    assert ("the gradient of every layer" in found.findings[0]) == end
    if layer == 4:
        assert [s.partition(":")[0] for s in found.findings] == ["non-finite", "vanishing"]
        norms = [row.gradient[0] for row in found.layers[5:]]
        np.testing.assert_allclose(found.factor, factor(norms), rtol=1e-6)


# ---- numbers


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_dtypes(dtype):
    big, small = {"float16": (3e4, 1e-7), "float64": (1e200, 1e-200)}.get(dtype, (1e30, 1e-30))
    with modes.maybe_x64(dtype):
        kernels = [jnp.full((2, 2), v, dtype) for v in (small, 1.0, big)]
        grads = [{"w": k, "n": jnp.array(3)} for k in kernels]
        found = jaxclip.diagnose(grads)
    want = [oracles.norm(k).item() if dtype != "float64" else 2 * float(k[0, 0]) for k in kernels]
    np.testing.assert_allclose([row.gradient[0] for row in found.layers], want, rtol=1e-6)
    assert found.finding == "vanishing"


def test_ratio_of_zero_weights_and_the_table():
    grads = ladder(1.0, 10.0)
    found = jaxclip.diagnose(grads, ladder(0.0, 2.0), ladder(1.0, 1e-3))
    assert np.isnan(found.layers[0].ratio[0])
    assert str(found).splitlines()[-3:] == [
        "layer    gradient  weight  update  update/weight",
        "Dense_0         1       0       1            nan",
        "Dense_1        10       2   0.001         0.0005",
    ]
    assert jaxclip.diagnose(grads, ladder(0.0, 2.0)).layers[0].ratio is None


# ---- errors


def test_errors():
    grads = ladder(1.0, 2.0)
    for nothing in ({}, None, {"n": jnp.array(3)}):
        with pytest.raises(ValueError, match="grads has no floating-point leaf"):
            jaxclip.diagnose(nothing)
    with pytest.raises(ValueError, match=r"params and the .*lacks \['Dense_1/kernel'\]"):
        jaxclip.diagnose(grads, ladder(1.0))
    with pytest.raises(ValueError, match=r"updates and the .*has \['Dense_2/kernel'\] more"):
        jaxclip.diagnose(grads, grads, ladder(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"no layer 'Dense' among \['Dense_0', 'Dense_1'\]"):
        jaxclip.diagnose(grads, order=["Dense"])
    with pytest.raises(TypeError, match="order='Dense_0'"):
        jaxclip.diagnose(grads, order="Dense_0")
    with pytest.raises(ValueError, match="activation=None"):
        jaxclip.diagnose(grads, preactivations={"a": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="preactivations=None"):
        jaxclip.diagnose(grads, activation=jnp.tanh)
    with pytest.raises(TypeError, match=r"grads is traced.*outside of jit"):
        jax.jit(lambda g: jaxclip.diagnose(g).factor)(grads)
    for bad, error in ((1.0, ValueError), (jnp.ones((0, 2)), ValueError), (1j, TypeError)):
        with pytest.raises(error, match="preactivation of"):
            jaxclip.diagnosis.unit_shares(bad, jnp.tanh)
    with pytest.raises(ValueError, match="activation must be elementwise"):
        jaxclip.diagnosis.unit_shares(jnp.ones((2, 2)), jnp.sum)


def test_exported():
    assert jaxclip.Diagnosis is jaxclip.diagnosis.Diagnosis
    assert jaxclip.diagnose is jaxclip.diagnosis.diagnose
    for name, other in itertools.pairwise(jaxclip.diagnosis.__all__):
        assert name < other


def test_slope_with_layers_without_a_gradient():
    """The norm falls by 1.3 a layer, which is little, and by 1.69 from one positive to the next."""
    norms = [0.0 if i % 2 else 1.3**i for i in range(30)]
    assert jaxclip.diagnose(ladder(*norms)).finding == "zero"
    found = jaxclip.diagnose(ladder(1.0, 0.0, 100.0, 1000.0))
    np.testing.assert_allclose(found.factor, 0.1, rtol=1e-6)


def test_exploding_biases_with_level_weights():
    grads = {
        f"Dense_{i}": {"kernel": jnp.ones((2, 2)), "bias": jnp.full(1, 0.1 ** (1 + i))}
        for i in range(4)
    }
    found = jaxclip.diagnose(grads)
    assert found.finding == "exploding"
    assert "norm of the biases grows by a factor of 10 a layer" in found.findings[0]
