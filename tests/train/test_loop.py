"""The loop against single steps; deterministic, traced once, donated; non-finite losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.train.config import presets
from jaxclip.train.errors import UserError
from jaxclip.train.training import loop, nonfinite, tensor_norms


def config(**changes):
    settings = {"sizes": (6, 5), "batch_size": 16, "epochs": 2, "report": "accuracy"} | changes
    return presets.get(settings.pop("preset", "explode")).override(settings)


def epochs(settings, data):
    return list(loop.train(loop.prepare(settings, data), data))


def arrays(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def by_hand(settings, data, limit):
    """Steps with clipping and SGD in NumPy: (loss, norms before, norms after), and parameters."""
    net = loop.build_network(settings, data)
    params, record = net.params, []

    def loss(params, x, y):
        return jnp.mean((net.apply(params, {}, x, train=True)[0] - jax.nn.one_hot(y, 10)) ** 2)

    gradient = jax.jit(jax.value_and_grad(loss))
    for i in range(len(data.train_labels) // settings.batch_size):
        batch = slice(i * settings.batch_size, (i + 1) * settings.batch_size)
        value, grads = gradient(params, data.train_images[batch], data.train_labels[batch])
        norms = np.array([np.linalg.norm(g.astype(np.float64)) for g in arrays(grads)])
        factor = min(1.0, limit / np.sqrt((norms**2).sum()))
        record.append((float(value), norms, norms * factor))
        step = settings.learning_rate * factor
        params = jax.tree.map(lambda p, g, step=step: p - step * g, params, grads)
    return record, params


@pytest.mark.slow
def test_an_epoch_equals_single_steps(few_digits):
    """And the test scores are those of the whole test set."""
    settings = config(clip=("global_norm=0.5",), epochs=1, init_std=0.5)
    epoch = epochs(settings, few_digits)[0]
    record, params = by_hand(settings, few_digits, 0.5)
    # Leaves in the order of `jax.tree.leaves`: bias before kernel.
    names = [f"layers/{i}/{part}" for i in range(3) for part in ("bias", "kernel")]
    before, after = (
        tensor_norms.norms(epoch.telemetry, monitor, names) for monitor in ("grads", "clipped")
    )
    np.testing.assert_allclose(epoch.telemetry["loss"], [r[0] for r in record], rtol=1e-5)
    np.testing.assert_allclose(before, [r[1] for r in record], rtol=1e-4)
    np.testing.assert_allclose(after, [r[2] for r in record], rtol=1e-4)
    assert (np.sqrt((before**2).sum(1)) > 0.5).any()
    for ours, theirs in zip(arrays(epoch.state.params), arrays(params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    net = loop.build_network(settings, few_digits)
    outputs = np.asarray(net.apply(epoch.state.params, {}, few_digits.test_images, train=False)[0])
    right = (outputs.argmax(1) == few_digits.test_labels).mean()
    loss = ((np.eye(10)[few_digits.test_labels] - outputs) ** 2).mean()
    assert epoch.test_accuracy == pytest.approx(right)
    assert epoch.test_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_traced_once_donated_and_deterministic_for_a_seed(few_digits):
    settings = config(shuffle=True, seed=3)
    run = loop.prepare(settings, few_digits)
    before = jax.tree.leaves(run.state)
    *_, one = loop.train(run, few_digits)
    assert run.epoch._cache_size() == 1
    assert run.evaluate._cache_size() == 1
    assert all(leaf.is_deleted() for leaf in before)
    two = epochs(settings, few_digits)[-1]
    for key, values in one.telemetry.items():
        np.testing.assert_array_equal(values, two.telemetry[key])
    for ours, theirs in zip(arrays(one.state), arrays(two.state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_seeds_differ_in_weights_and_order(few_digits):
    one, other = config(shuffle=True, seed=3), config(shuffle=True, seed=4)
    drawn = [arrays(loop.build_network(c, few_digits).params)[1] for c in (one, other)]
    assert (drawn[0] != drawn[1]).all()
    assert (loop.batch_indices(one, 64, 0) != loop.batch_indices(other, 64, 0)).any()


@pytest.mark.slow
def test_telemetry_has_a_row_for_each_step(few_digits):
    settings = config(schedule="polynomial", end_learning_rate=0.0, learning_rate=0.1)
    first, second = epochs(settings, few_digits)
    assert {len(v) for v in first.telemetry.values()} == {4}
    assert (first.first_step, second.first_step) == (0, 4)
    rates = np.concatenate([first.telemetry["learning_rate"], second.telemetry["learning_rate"]])
    np.testing.assert_allclose(rates, 0.1 * (1 - np.arange(8) / 8), rtol=1e-5)
    np.testing.assert_array_equal(second.telemetry["grads/count"], [5, 6, 7, 8])


@pytest.mark.slow
def test_low_precision_with_batch_norm_and_projection(few_digits):
    dtype = "bfloat16"
    changes = {"dtype": dtype, "batch_norm": True, "project": ("max_norm=0.3,axis=0",)}
    settings = config(sizes=(6,), epochs=1, **changes)
    last = epochs(settings, few_digits)[-1]
    assert np.isfinite(last.test_loss)
    for layer in last.state.params["layers"].values():
        assert layer["kernel"].dtype == dtype
        columns = np.linalg.norm(np.asarray(layer["kernel"], np.float64), axis=0)
        assert columns.max() <= 0.3 * (1 + 2 * jnp.finfo(dtype).eps)


def test_batch_indices():
    straight = config(shuffle=False, batch_size=8)
    np.testing.assert_array_equal(loop.batch_indices(straight, 20, 5), np.arange(16).reshape(2, 8))
    shuffled = config(shuffle=True, batch_size=8)
    first, second = (loop.batch_indices(shuffled, 24, epoch) for epoch in (0, 1))
    for drawn in (first, second):
        assert drawn.shape == (3, 8)
        assert sorted(drawn.ravel()) == list(range(24))
    assert (first != second).any()


def test_batch_larger_than_the_data(few_digits):
    with pytest.raises(UserError, match=r"--batch-size=65: more than the 64 training images"):
        loop.prepare(config(batch_size=65), few_digits)


@pytest.mark.slow
def test_non_finite_loss_raises_with_step_and_layer(few_digits):
    settings = config(learning_rate=1e30, clip=(), epochs=3)
    run = loop.prepare(settings, few_digits)
    allowed = settings.override({"allow_nonfinite": True})
    going_on = run._replace(config=allowed, state=jax.tree.map(jnp.copy, run.state))
    assert len(list(loop.train(going_on, few_digits))) == 3
    with pytest.raises(nonfinite.NonFiniteLossError) as caught:
        list(loop.train(run, few_digits))
    assert "at step 1 (steps 0 to 3)" in str(caught.value)
    assert "first non-finite gradient: layers/0/kernel at step" in str(caught.value)
    assert caught.value.exit_code == 1


def test_description_of_a_non_finite_loss():
    names = ("layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel")
    telemetry = {f"grads/norm/{name}": np.ones(4) for name in names} | {"loss": np.ones(4)}
    assert nonfinite.failure(10, telemetry) is None
    telemetry["loss"][2] = np.inf
    assert "no gradient was non-finite" in nonfinite.failure(10, telemetry)
    telemetry["grads/norm/layers/1/kernel"][1:] = np.inf
    telemetry["grads/norm/layers/0/bias"][2:] = np.nan
    said = nonfinite.failure(10, telemetry)
    assert "the loss is inf at step 12 (steps 10 to 13)" in said
    assert said.endswith("first non-finite gradient: layers/1/kernel at step 11")


def test_tensor_names_in_reading_order():
    names = [f"layers/{i}/{part}" for i in (10, 2) for part in ("bias", "kernel")]
    telemetry = dict.fromkeys([f"grads/norm/{name}" for name in (*names, "norms/0/bias")])
    assert tensor_norms.names(telemetry) == [
        "layers/2/kernel",
        "layers/2/bias",
        "layers/10/kernel",
        "layers/10/bias",
        "norms/0/bias",
    ]
