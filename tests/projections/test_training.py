"""Training under projections: the sets hold after every step, weights inside do not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional
from tests.support import oracles as o
from tests.support import registry, weights

pytestmark = [
    pytest.mark.relaxed,  # biases have a lower rank than the activations
    pytest.mark.slow,
]

STEPS = 500
# One layer for each set: the transformation, the set as a function, the bounds of each layer.
LAYERS = {
    "conv": (
        functools.partial(jaxclip.project_max_norm, 0.6),
        lambda w: functional.project_max_norm(w, 0.6),
        lambda w: (o.norm(w, 2, (0, 1)), 0, 0.6),
    ),
    "unit": (
        jaxclip.project_unit_norm,
        functional.project_unit_norm,
        lambda w: (o.norm(w, 2, (0,)), 1, 1),
    ),
    "between": (
        functools.partial(jaxclip.project_min_max_norm, 0.6, 0.9, axis=1),
        lambda w: functional.project_min_max_norm(w, 0.6, 0.9, axis=1),
        lambda w: (o.norm(w, 2, (1,)), 0.6, 0.9),
    ),
    "positive": (
        functools.partial(jaxclip.project_non_negative, record=True),
        functional.project_non_negative,
        lambda w: (o.wide(w), 0, np.inf),
    ),
    "box": (
        functools.partial(jaxclip.project_box, -0.2, 0.3, record=True),
        lambda w: functional.project_box(w, -0.2, 0.3),
        lambda w: (o.wide(w), -0.2, 0.3),
    ),
    "spectral": (
        functools.partial(jaxclip.project_spectral_norm, 1.2),
        lambda w: functional.project_spectral_norm(w, 1.2),
        lambda w: (weights.largest_singular(w), 0, 1.2),
    ),
}


def network(params, x):
    """A convolution over a series of 8, then dense layers."""
    for name in LAYERS:
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        if name == "conv":
            axes = ("NHC", "HIO", "NHC")
            x = jax.lax.conv_general_dilated(
                x[..., None], kernel, (1,), "SAME", dimension_numbers=axes
            )
            x = (x + bias).reshape(len(x), -1)
        else:
            x = jnp.tanh(x) @ kernel + bias
    return x


def draw(dtype):
    shapes = {name: {"kernel": (6, 6), "bias": (6,)} for name in LAYERS}
    shapes["conv"] = {"kernel": (3, 1, 2), "bias": (2,)}
    shapes["unit"] = {"kernel": (16, 6), "bias": (6,)}
    return registry.build(shapes, dtype, scale=0.4)


def batches(dtype, count=STEPS):
    x = np.random.default_rng(0).normal(size=(count, 16, 8))
    return jnp.asarray(x, dtype), jnp.asarray((x[..., :6] > 0.3).argmax(-1), jnp.int32)


def loss(params, x, y):
    outputs = network(params, x).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def only(name):
    """The mask of one layer's kernel."""
    return {key: {"kernel": key == name, "bias": False} for key in LAYERS}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def trained(request):
    """500 steps in one donated scan: the weights after each, and the records."""
    dtype = request.param
    projections = [make(mask=only(name)) for name, (make, *_) in LAYERS.items()]
    tx = optax.chain(optax.sgd(0.2, 0.9), *projections)

    def body(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, value, jaxclip.metrics(state))

    params = draw(dtype)
    carry = params, jax.jit(tx.init)(params)
    run = jax.jit(lambda carry, data: jax.lax.scan(body, carry, data), donate_argnums=0)
    _, seen = run(carry, batches(dtype))
    assert all(x.is_deleted() for x in jax.tree.leaves(carry))
    return dtype, *jax.device_get(seen)


def test_weights_are_in_their_sets_after_every_step(trained):
    """To 1e-5, in bfloat16 too; in float32 to three epsilons, of singular values to 32.

    Norms of 1 are rounded to the nearest bfloat16.
    """
    dtype, after, _, _ = trained
    for name, (_, _, bounds) in LAYERS.items():
        slack = (32 if name == "spectral" else 3) * registry.eps("float32")
        if dtype == "bfloat16":
            slack = registry.eps(dtype) / 2 if name == "unit" else 1e-5
        for step, w in enumerate(after[name]["kernel"]):
            assert w.dtype == dtype
            found, low, high = bounds(w)
            with weights.case(f"{name} after step {step}"):
                assert np.max(found) <= high * (1 + slack)
                assert np.min(found) >= low - abs(low) * slack


def test_every_projection_was_active(trained):
    dtype, after, values, recorded = trained
    assert values[-50:].mean() < 0.9 * values[:10].mean()
    for make, *_ in LAYERS.values():
        name = make.func.__name__ if isinstance(make, functools.partial) else make.__name__
        assert recorded[f"{name}/clipped_count"][-1] > 20, name
        assert recorded[f"{name}/count"][-1] == STEPS
        assert recorded[f"{name}/nonfinite_count"][-1] == 0
    biases = [after[name]["bias"] for name in ("box", "spectral")]
    assert max(np.abs(o.wide(b)).max() for b in biases) > 0.3  # biases run free
    assert {b.dtype for b in biases} == {np.dtype(dtype)}


def test_weights_inside_come_back_bit_for_bit(trained):
    """A second projection does not change weights that the step brought inside: 500 times."""
    _, after, _, _ = trained
    kernels = {name: after[name]["kernel"] for name in LAYERS}
    again = jax.jit(lambda k: {name: jax.vmap(LAYERS[name][1])(w) for name, w in k.items()})
    for name, out in jax.device_get(again(kernels)).items():
        assert (out == kernels[name]).all(), name


def test_training_inside_the_sets_equals_training_without():
    """Bit for bit, all biases and kernels. XLA fuses each program in its own way, so that the
    gradient step, the projection and the addition are each compiled by themselves."""
    descend = optax.sgd(0.2, 0.9)
    wide_open = optax.chain(
        jaxclip.project_max_norm(50.0), jaxclip.project_min_max_norm(1e-6, 50.0, axis=1),
        jaxclip.project_box(-20.0, 20.0),
        jaxclip.project_spectral_norm(100.0, mask=only("spectral")),
    )  # fmt: skip
    free = bound = draw("float32")
    states = [jax.jit(descend.init)(free)] * 2
    inside = jax.jit(wide_open.init)(free)

    @jax.jit
    def step(params, state, x, y):
        return descend.update(jax.grad(loss)(params, x, y), state, params)

    project, add = jax.jit(wide_open.update), jax.jit(optax.apply_updates)
    x, y = batches("float32", 25)
    for i in range(len(x)):
        updates, states[0] = step(free, states[0], x[i], y[i])
        free = add(free, updates)
        updates, states[1] = step(bound, states[1], x[i], y[i])
        updates, inside = project(updates, inside, bound)
        bound = add(bound, updates)
        registry.assert_same_bits(bound, free)
    assert all(int(n) == 0 for k, n in jaxclip.metrics(inside).items() if "clipped_count" in k)
    before = draw("float32")
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (before, free)), strict=True))
