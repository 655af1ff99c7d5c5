"""A guard gets the loss as `value=` in the step of every library, as the README shows it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxclip
from tests.support import registry

pytestmark = pytest.mark.relaxed  # Optax's Adam

X, Y = jnp.linspace(-1, 1, 12).reshape(4, 3), jnp.ones((4, 2))
CHAIN = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.adam(0.1))
LOSSES = (0.5, np.nan, np.inf, 0.25)  # of four steps, beside finite gradients


def _linen():
    net = nn.Dense(2)
    start = net.init(jax.random.key(0), X)

    def gradient(params):
        return jax.grad(lambda p: jnp.mean((net.apply(p, X) - Y) ** 2))(params)

    return net, start, gradient


def _linen_state(tx):
    net, start, gradient = _linen()
    state = TrainState.create(apply_fn=net.apply, params=start, tx=tx)

    @jax.jit
    def step(state, loss):
        grads = gradient(state.params)
        updates, opt_state = state.tx.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    for loss in LOSSES:
        state = step(state, loss)
        yield state.params, jaxclip.metrics(state)


def _nnx_optimizer(tx):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, loss):
        grads = nnx.grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, grads, value=loss)

    for loss in LOSSES:
        step(model, optimizer, loss)
        yield jax.device_get(nnx.state(model, nnx.Param)), jaxclip.metrics(optimizer)


def _equinox_step(tx):
    eqx = pytest.importorskip("equinox")
    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    opt_state = tx.init(eqx.filter(layer, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(layer, opt_state, loss):
        grads = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(X) - Y) ** 2))(layer)
        params = eqx.filter(layer, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return eqx.apply_updates(layer, updates), opt_state

    for loss in LOSSES:
        layer, opt_state = step(layer, opt_state, loss)
        yield eqx.filter(layer, eqx.is_inexact_array), jaxclip.metrics(opt_state)


def _by_hand(tx):
    _, params, gradient = _linen()
    opt_state = tx.init(params)
    for loss in LOSSES:
        updates, opt_state = tx.update(gradient(params), opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        yield params, jaxclip.metrics(opt_state)


STEPS = (_linen_state, _nnx_optimizer, _equinox_step, _by_hand)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guard", "train"),
    [("skip_spikes", _linen_state), *(("skip_nonfinite", train) for train in STEPS)],
)
def test_step_with_a_bad_loss_is_skipped(guard, train):
    steps = list(train(getattr(jaxclip, guard)(CHAIN)))
    skipped = [int(found[f"{guard}/skipped_count"]) for _, found in steps]
    assert skipped == [0, 1, 2, 2]
    assert [int(found["clip_by_global_norm/count"]) for _, found in steps] == [1, 1, 1, 2]
    registry.assert_same_bits(steps[2][0], steps[0][0])
    leaves = zip(*(jax.tree.leaves(steps[i][0]) for i in (2, 3)), strict=True)
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in leaves)


@pytest.mark.slow
def test_step_without_a_loss_is_apply_gradients():
    """To the bit; with the loss, `apply_gradients` raises."""
    net, start, gradient = _linen()
    state = TrainState.create(apply_fn=net.apply, params=start, tx=jaxclip.skip_nonfinite(CHAIN))
    want = state.apply_gradients(grads=gradient(start))
    updates, opt_state = state.tx.update(gradient(start), state.opt_state, start)
    params = optax.apply_updates(start, updates)
    got = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    registry.assert_same_bits(got, want)
    with pytest.raises(TypeError, match="value"):
        state.apply_gradients(grads=start, value=1.0)
