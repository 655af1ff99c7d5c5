"""Shared by the tests of guards: all of them, good and bad updates, a run of several."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxclip

U = {"w": jnp.array([[3.0], [4.0]]), "b": jnp.array([12.0])}
GUARDS = {
    "skip_nonfinite": jaxclip.skip_nonfinite,
    "skip_spikes": lambda inner, **k: jaxclip.skip_spikes(inner, window=8, min_history=4, **k),
}
# All guards, with arguments that let `U` pass; these last three have test files of their own.
LEVEL = jaxclip.thresholds.quantile(0.5, window=8, factor=5.0)
EVERY = GUARDS | {
    "skip_above": lambda inner, **k: jaxclip.skip_above(inner, LEVEL, loss_threshold=LEVEL, **k),
    "scale_loss": lambda inner, **k: jaxclip.scale_loss(inner, 4.0, period=2, **k),
    "rollback": lambda inner, **k: jaxclip.rollback(
        inner, threshold=LEVEL, every=2, patience=2, **k
    ),
}


def scaled(factor, u=None):
    """The update times a number; the last element of the leaf `b` if the number is not finite."""
    u = U if u is None else u
    if np.isfinite(factor):
        return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), u)
    return u | {"b": u["b"].at[-1].set(factor)}


def loop(tx, factors, u=None, update=None, state=None, **extra):
    """The updates and the states after each step, of `u` times each factor."""
    u = U if u is None else u
    update = jax.jit(tx.update) if update is None else update
    state = tx.init(u) if state is None else state
    outs, states = [], []
    for i, factor in enumerate(factors):
        more = {k: v[i] for k, v in extra.items()}
        out, state = update(scaled(factor, u), state, u, **more)
        outs.append(out)
        states.append(state)
    return outs, states


def is_zero(tree):
    return not any(np.asarray(x).any() for x in jax.tree.leaves(tree))


def types(tree):
    """The properties that must not change from one state to the next."""
    return jax.tree.structure(tree), [
        (x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)
    ]
