"""Dropout and every activation in training, and the preactivations returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.train.config import presets
from jaxclip.train.training import loop, model
from jaxclip.train.training import losses as losses_of

RATE = 0.4


def network(**changes):
    settings = {"activation": "relu", "init": "normal", "init_std": 0.5} | changes
    return model.build(settings.pop("sizes", (6, 9, 3)), settings.pop("seed", 0), **settings)


def inputs(rows=4):
    return np.random.default_rng(1).normal(size=(rows, 6)).astype(np.float32)


def kernels(net):
    return [np.asarray(layer["kernel"], np.float64) for layer in net.params["layers"].values()]


@pytest.fixture(scope="module")
def drawn():
    """Outputs in training for many keys, and in evaluation."""
    net, x = network(dropout=RATE), inputs()

    def outputs(key):
        return net.apply(net.params, net.stats, x, train=True, key=key)[0]

    many = jax.jit(jax.vmap(outputs))(jax.random.split(jax.random.key(3), 20_000))
    still, _ = net.apply(net.params, net.stats, x, train=False)
    return np.asarray(many, np.float64), np.asarray(still)


@pytest.mark.slow
def test_no_dropout_in_evaluation(drawn):
    plain = network()
    same = np.maximum(inputs() @ kernels(plain)[0], 0) @ kernels(plain)[1]
    np.testing.assert_allclose(drawn[1], same, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_mean_over_keys_equals_evaluation(drawn):
    """With one hidden layer, outputs are linear in the mask; the variance is checked too."""
    many, still = drawn
    error = many.std(axis=0) / np.sqrt(len(many))
    assert (abs(many.mean(axis=0) - still) < 5 * error).all()
    first, last = kernels(network())
    hidden = np.maximum(inputs() @ first, 0)
    variance = (hidden**2 * RATE / (1 - RATE)) @ last**2
    np.testing.assert_allclose(many.var(axis=0), variance, rtol=0.05)


def config(**changes):
    changes = {"sizes": (6,), "batch_size": 64, "epochs": 4, "learning_rate": 1e-12} | changes
    return presets.get("explode").override({"clip": ()} | changes)


def epochs(settings, data):
    return list(loop.train(loop.prepare(settings, data), data))


@pytest.fixture(scope="module")
def standing(few_digits):
    """Four steps on one batch that hardly change the parameters: losses differ by dropout alone."""
    return epochs(config(dropout=RATE), few_digits)


def losses(run):
    return np.concatenate([epoch.telemetry["loss"] for epoch in run])


@pytest.mark.slow
def test_each_step_drops_other_units(standing):
    found = losses(standing)
    assert len(found) == 4
    gaps = abs(found[:, None] - found)[np.triu_indices(4, 1)]
    assert gaps.min() > 1e-5 * found[0]
    assert len({float(epoch.test_loss) for epoch in standing}) == 1


@pytest.mark.slow
def test_deterministic_for_a_seed(standing, few_digits):
    run = loop.prepare(config(dropout=RATE), few_digits)
    again = np.asarray(run.epoch(run.state, *_arguments(few_digits))[1]["loss"])
    np.testing.assert_array_equal(again, losses(standing)[:1])
    other = config(seed=1)
    keys = [np.asarray(loop.prepare(c, few_digits).state.key) for c in (config(), other)]
    assert (keys[0] != keys[1]).any()


def _arguments(data):
    batches, numbers = np.arange(64, dtype=np.int32)[None], np.zeros(1, np.int32)
    return data.train_images, data.train_labels, batches, numbers


@pytest.mark.slow
@pytest.mark.parametrize(("dropout", "drawn"), [(0.0, False), (0.1, True)])
def test_random_numbers_only_with_dropout(dropout, drawn, few_digits):
    run = loop.prepare(config(dropout=dropout), few_digits)
    program = jax.make_jaxpr(run.epoch)(run.state, *_arguments(few_digits))
    assert ("random" in str(program)) is drawn
    held = [variable.aval for variable in program.jaxpr.outvars]
    assert any(aval.dtype == np.uint32 for aval in held)


@pytest.mark.slow
def test_key_changes_only_with_dropout(standing, few_digits):
    first = np.asarray(loop.prepare(config(), few_digits).state.key)
    assert (np.asarray(standing[-1].state.key) != first).any()
    run = loop.prepare(config(), few_digits)
    jitted = jax.jit(lambda state: run.epoch(state, *_arguments(few_digits))[0].key)
    np.testing.assert_array_equal(jitted(run.state), first)


@pytest.mark.slow
def test_layers_draw_different_masks():
    """Two hidden layers of the same width drop different units."""
    net = network(sizes=(6, 40, 40, 3), dropout=0.5, activation="sigmoid")

    def left_out(key):
        def total(params):
            return net.apply(params, net.stats, inputs(1), train=True, key=key)[0].sum()

        grads = jax.grad(total)(net.params)["layers"]
        return [(grads[i]["kernel"] == 0).all(axis=1) for i in (1, 2)]

    first, second = jax.jit(left_out)(jax.random.key(0))
    assert 8 < first.sum() < 32
    assert 8 < second.sum() < 32
    assert (first != second).any()


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [False, True])
def test_preactivations(batch_norm):
    net, x = network(batch_norm=batch_norm, dropout=RATE, sizes=(6, 9, 8, 3)), inputs(50)
    seen = []
    outputs, _ = net.apply(net.params, net.stats, x, train=False, preactivations=seen)
    assert [np.shape(z) for z in seen] == [(50, 9), (50, 8)]
    first, second, last = kernels(net)
    scale = 1 / np.sqrt(1 + 1e-5) if batch_norm else 1  # averages of 0 and 1 to begin with
    wanted = x @ first * scale
    np.testing.assert_allclose(seen[0], wanted, rtol=1e-4, atol=1e-5)
    wanted = np.maximum(wanted, 0) @ second * scale
    np.testing.assert_allclose(seen[1], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs, np.maximum(wanted, 0) @ last, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_every_activation_trains(few_digits):
    """Ten steps of gradient descent on one batch, all activations in one program."""
    x, labels = few_digits.train_images, few_digits.train_labels
    nets = {
        name: network(activation=name, init="glorot", dropout=0.1, sizes=(64, 6, 10))
        for name in model.ACTIVATIONS
    }

    def course(net):
        def loss(params, key):
            outputs, _ = net.apply(params, net.stats, x, train=True, key=key)
            return losses_of.LOSSES["cross_entropy"](outputs, labels)

        def step(params, key):
            value, grads = jax.value_and_grad(loss)(params, key)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

        return jax.lax.scan(step, net.params, jax.random.split(jax.random.key(0), 10))[1]

    found = jax.jit(lambda: {name: course(net) for name, net in nets.items()})()
    for name, values in found.items():
        assert np.isfinite(values).all(), name
        assert values[-1] < values[0], name


@pytest.mark.slow
def test_a_run_with_dropout_and_batch_norm(few_digits):
    changes = {"activation": "gelu", "batch_norm": True, "dropout": 0.1, "learning_rate": 0.1}
    changes |= {"init": "glorot", "loss": "cross_entropy", "epochs": 10}
    first, *_, last = epochs(config(**changes), few_digits)
    assert np.isfinite(losses([first, last])).all()
    assert last.test_loss < first.test_loss
    for layer in last.state.params["layers"].values():
        assert all(jnp.isfinite(leaf).all() for leaf in layer.values())
    assert set(last.test) >= {"units/dead/layers/0", "units/saturated/layers/0"}
