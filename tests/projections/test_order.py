"""Projections beside frozen weights, and beside wrappers that keep weights of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxclip
from tests.support import registry
from tests.support.weights import norms

pytestmark = [pytest.mark.slow, pytest.mark.relaxed]  # Optax promotes dtypes

LABELS = {"frozen": "f", "trained": "t"}
MASK = {"frozen": False, "trained": True}


def stepped(tx, params, steps=3):
    """The parameters after some steps."""

    @jax.jit
    def run(params):
        state = tx.init(params)
        for _ in range(steps):
            updates, state = tx.update(jax.tree.map(jnp.negative, params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    return run(params)


def both():
    """A frozen layer and a trained one, both outside of the limit 1."""
    shapes = {name: {"kernel": (6, 4), "bias": (4,)} for name in LABELS}
    return registry.build(shapes, scale=3)


def test_a_projection_behind_all_changes_frozen_weights():
    """As the docs say: an update of zeros is like any other."""
    p = both()
    parts = {"f": optax.set_to_zero(), "t": optax.sgd(0.1)}
    tx = optax.chain(optax.partition(parts, LABELS), jaxclip.project_max_norm(1.0))
    assert (
        norms(stepped(tx, p)["frozen"]["kernel"]).max()
        <= 1.000001
        < norms(p["frozen"]["kernel"]).min()
    )


@pytest.mark.parametrize("way", ["mask", "function", "partition", "masked"])
def test_frozen_weights_stay(way):
    """By `mask=`, or by a projection inside the label of the trained ones."""
    project, sgd = jaxclip.project_max_norm, optax.sgd(0.1)
    frozen = {"f": optax.set_to_zero(), "t": sgd}
    kernels = jax.tree.map(lambda x: x.ndim == 2, both()["trained"])
    mask = {"frozen": False, "trained": kernels}
    inside = optax.chain(sgd, project(1.0))
    tx = {
        "mask": lambda: optax.chain(optax.partition(frozen, LABELS), project(1.0, mask=mask)),
        "function": lambda: optax.chain(
            optax.partition(frozen, LABELS), project(1.0, mask=lambda params: mask)
        ),
        "partition": lambda: optax.partition(frozen | {"t": inside}, LABELS),
        "masked": lambda: optax.chain(
            optax.masked(inside, MASK),
            optax.masked(optax.set_to_zero(), {k: not v for k, v in MASK.items()}),
        ),
    }[way]()
    p = both()
    out = stepped(tx, p)
    registry.assert_same_bits(out["frozen"], p["frozen"])
    np.testing.assert_allclose(norms(out["trained"]["kernel"]), 1.0, rtol=1e-6)
    assert (out["trained"]["bias"] != p["trained"]["bias"]).all()


# ---- wrappers with weights of their own


def problem():
    """A regression whose solution lies far outside: a loss and its first parameters."""
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32), 5 * rng.normal(size=(8, 4))
    y = x @ jnp.asarray(w, jnp.float32)
    start = jnp.asarray(0.1 * rng.normal(size=(8, 4)), jnp.float32)
    return lambda p: jnp.mean((x @ p["w"] - y) ** 2), {"w": start}


def trained(tx, steps=300, evaluate=lambda state, params: params, start=lambda params: params):
    """The largest norm of the weights to evaluate, of each step, and the last loss of them."""
    loss, params = problem()

    def body(carry, _):
        params, state = carry
        fast = getattr(params, "fast", params)
        updates, state = tx.update(jax.grad(loss)(fast), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), evaluate(state, params)

    params = start(params)
    _, seen = jax.jit(lambda c: jax.lax.scan(body, c, length=steps))((params, tx.init(params)))
    sizes = np.linalg.norm(np.asarray(seen["w"], np.float64), axis=1).max(1)
    return sizes, float(loss({"w": seen["w"][-1]}))


def averaged(state, params):
    return optax.contrib.schedule_free_eval_params(state, params)


@pytest.fixture(scope="module")
def projected():
    """Plain projected gradient descent."""
    return trained(optax.chain(optax.sgd(0.1), jaxclip.project_max_norm(1.0)))


def test_schedule_free_outside_is_unbounded():
    tx = optax.chain(
        optax.contrib.schedule_free(optax.sgd(0.1), 0.1), jaxclip.project_max_norm(1.0)
    )
    sizes, _ = trained(tx, evaluate=lambda state, params: averaged(state[0], params))
    assert sizes[-1] > 20


def test_schedule_free_inside(projected):
    """The averaged weights end on the limit, at the loss of projected descent."""
    inner = optax.chain(optax.sgd(0.1), jaxclip.project_max_norm(1.0))
    sizes, loss = trained(optax.contrib.schedule_free(inner, 0.1), evaluate=averaged)
    assert sizes.max() <= 1.1
    np.testing.assert_allclose(sizes[-1], 1.0, rtol=1e-4)
    np.testing.assert_allclose(loss, projected[1], rtol=1e-3)

    def inside(state, params):
        return jaxclip.functional.project_max_norm(averaged(state, params), 1.0)

    sizes, _ = trained(optax.contrib.schedule_free(inner, 0.1), evaluate=inside)
    assert sizes.max() <= 1.000001


def test_lookahead_inside(projected):
    """Both of its copies are inside."""
    tx = optax.lookahead(optax.chain(optax.sgd(0.1), jaxclip.project_max_norm(1.0)), 5, 0.5)
    for which in ("fast", "slow"):
        sizes, loss = trained(
            tx,
            evaluate=lambda _, params, which=which: getattr(params, which),
            start=optax.LookaheadParams.init_synced,
        )
        assert sizes.max() <= 1.000001
        np.testing.assert_allclose(loss, projected[1], rtol=1e-2)


def test_moving_average_of_weights():
    """An average of weights inside a convex set is inside."""
    tx = optax.chain(optax.sgd(0.1), jaxclip.project_max_norm(1.0))
    loss, params = problem()
    average = optax.ema(0.9)

    def body(carry, _):
        params, state, mean = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        smooth, mean = average.update(params, mean)
        return (params, state, mean), smooth["w"]

    start = (params, tx.init(params), average.init(params))
    _, seen = jax.jit(lambda c: jax.lax.scan(body, c, length=100))(start)
    assert np.linalg.norm(np.asarray(seen, np.float64), axis=1).max() <= 1.000001
