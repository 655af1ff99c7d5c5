"""The network against NumPy: initial weights, outputs, dtypes; losses and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip.train.config import presets
from jaxclip.train.training import losses, model, optimizer

SIZES = (300, 200)


def network(**changes):
    settings = {"activation": "relu", "init": "truncated_normal", "init_std": 0.1} | changes
    sizes = settings.pop("sizes", SIZES)
    return model.build(sizes, settings.pop("seed", 0), **settings)


def kernels(net):
    return [np.asarray(layer["kernel"], np.float64) for layer in net.params["layers"].values()]


def test_truncated_normal_equals_tensorflows():
    """Cut at two standard deviations and not rescaled: the deviation is 0.8796 of `init_std`."""
    for kernel in kernels(network()):
        assert abs(kernel).max() <= 0.2
        assert kernel.std() == pytest.approx(0.1 * 0.87962566, rel=0.06)
        assert abs(kernel.mean()) < 0.01


@pytest.mark.slow
def test_variance_of_initializers():
    variances = {
        "normal": lambda m, n: 0.01,
        "he": lambda m, n: 2 / m,
        "lecun": lambda m, n: 1 / m,
        "glorot": lambda m, n: 2 / (m + n),
    }
    for init, variance in variances.items():
        for kernel in kernels(network(init=init)):
            assert kernel.var() == pytest.approx(variance(*kernel.shape), rel=0.1), init


def test_biases_are_zero_and_seeds_differ():
    one, other = network(), network(seed=1)
    assert all(not layer["bias"].any() for layer in one.params["layers"].values())
    assert (one.params["layers"][0]["kernel"] != other.params["layers"][0]["kernel"]).any()


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", model.ACTIVATIONS)
def test_outputs_without_activation_on_the_last_layer(name):
    net, x = network(activation=name, sizes=(5, 7, 6, 3)), np.linspace(-3, 3, 20).reshape(4, 5)
    outputs, _ = net.apply(net.params, net.stats, jnp.asarray(x, jnp.float32), train=True)
    first, second, last = kernels(net)
    hidden = ACTIVATIONS[name](ACTIVATIONS[name](x @ first) @ second)
    np.testing.assert_allclose(outputs, hidden @ last, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_batch_norm_updates_statistics_in_training_only():
    net = network(batch_norm=True, sizes=(5, 4, 3))
    x = np.random.default_rng(0).normal(2, 3, (64, 5)).astype(np.float32)
    trained, stats = net.apply(net.params, net.stats, x, train=True)
    still, same = net.apply(net.params, stats, x, train=False)
    first, last = kernels(net)
    before = x @ first
    normal = (before - before.mean(0)) / np.sqrt(before.var(0) + 1e-5)
    np.testing.assert_allclose(trained, np.maximum(normal, 0) @ last, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(stats["norms"][0]["mean"], 0.01 * before.mean(0), rtol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, stats, same)
    assert not np.allclose(trained, still)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", model.DTYPES)
def test_dtypes(dtype):
    net = network(dtype=dtype, sizes=(5, 4, 3), batch_norm=True)
    assert {x.dtype for x in jax.tree.leaves(net.params)} == {jnp.dtype(dtype)}
    outputs, stats = net.apply(net.params, net.stats, jnp.ones((2, 5)), train=True)
    assert outputs.dtype == dtype
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, net.stats)
    assert jax.tree.map(jnp.result_type, stats) == jax.tree.map(jnp.result_type, net.stats)


@pytest.mark.slow
def test_losses():
    outputs, labels = np.random.default_rng(1).normal(size=(8, 10)), np.arange(8)
    squares = (np.eye(10)[labels] - outputs) ** 2
    log_p = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    expected = {
        "mse": squares.mean(),
        "sse": squares.mean() * 10,
        "cross_entropy": -log_p[np.arange(8), labels].mean(),
    }
    for name, loss in losses.LOSSES.items():
        assert loss(jnp.asarray(outputs), jnp.asarray(labels)) == pytest.approx(expected[name])
    right = float((outputs.argmax(1) == labels).mean())
    assert losses.accuracy(jnp.asarray(outputs), jnp.asarray(labels)) == pytest.approx(right)


def test_every_choice_of_the_presets_exists():
    meanings = {
        "activation": model.ACTIVATIONS,
        "init": model.INITIALIZERS,
        "dtype": model.DTYPES,
        "loss": losses.LOSSES,
        "optimizer": optimizer.OPTIMIZERS,
        "schedule": optimizer.SCHEDULES,
    }
    for field, meaning in meanings.items():
        assert presets.CHOICES[field] == tuple(meaning)


def test_polynomial_decay_equals_the_tutorials():
    config = presets.get("max-norm")
    rate = optimizer.schedule(config, 1)
    for step in (0, 1, 5_000, 21_999, 22_000, 30_000):
        left = 1 - min(step, 22_000) / 22_000
        assert rate(step) == pytest.approx((0.01 - 0.001) * left**0.9 + 0.001, rel=1e-5)


def test_cosine_schedule():
    config = presets.get("forward").override({"schedule": "cosine", "end_learning_rate": 1e-4})
    rate = optimizer.schedule(config, 100)
    assert [float(rate(s)) for s in (0, 50, 100)] == pytest.approx([1e-3, 5.5e-4, 1e-4], rel=1e-5)


@pytest.mark.slow
def test_optimizers_step_against_the_gradient():
    params = network(sizes=(3, 2)).params
    grads = jax.tree.map(jnp.ones_like, params)
    chains = {}
    for name in optimizer.OPTIMIZERS:
        config = presets.get("forward").override(
            {"optimizer": name, "weight_decay": 0.1, "b1": 0.5}
        )
        chains[name] = optimizer.build(config, params, lambda step: 0.1)

    @jax.jit
    def stepped(params):
        steps = (tx.update(grads, tx.init(params), params)[0] for tx in chains.values())
        return [optax.apply_updates(params, updates) for updates in steps]

    for name, new in zip(chains, stepped(params), strict=True):
        smaller = jax.tree.map(lambda a, b: bool((a < b).all()), new, params)
        assert all(jax.tree.leaves(smaller)), name
