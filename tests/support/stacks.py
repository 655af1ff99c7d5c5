"""Trees with layers stacked along an axis, the same trees unrolled by NumPy, and runs of both."""

import jax
import jax.numpy as jnp
import numpy as np

LAYERS = 3
_LAYER = {"attn": {"kernel": (4, 2, 6), "bias": (6,)}, "gain": ()}
_AROUND = {"embed": (5, 4), "head": {"bias": (5,), "kernel": (4, 5)}}


def _leaf(rng, shape, dtype):
    return np.asarray(rng.normal(size=shape) * np.exp(rng.normal()), dtype)


def unrolled(seed=0, layers=LAYERS, dtype=np.float32):
    """Random leaves of many sizes: a list of layers between an embedding and a head."""
    rng = np.random.default_rng(seed)

    def tree(shapes):
        return jax.tree.map(
            lambda s: _leaf(rng, s, dtype), shapes, is_leaf=lambda s: isinstance(s, tuple)
        )

    return {**tree(_AROUND), "blocks": [tree(_LAYER) for _ in range(layers)]}


def _axis(axis, ndim):
    """The axis of the stack in a leaf of that rank: a vector of scalars has only the first."""
    return min(axis, ndim - 1)


def stack(tree, axis=0):
    """The tree with its `blocks` stacked."""
    blocks = jax.tree.map(lambda *x: np.stack(x, _axis(axis, x[0].ndim + 1)), *tree["blocks"])
    return {**tree, "blocks": blocks}


def unstack(tree, like, axis=0):
    """The inverse of `stack`, for a result; leaves may have axes in front, as `scan` adds them.

    `like` is an unrolled tree without these axes.
    """

    def layer(i):
        def one(x, like):
            front = x.ndim - like.ndim
            return np.take(x, i, front + _axis(axis, like.ndim))

        return jax.tree.map(one, tree["blocks"], stack(like, axis)["blocks"])

    return {**tree, "blocks": [layer(i) for i in range(len(like["blocks"]))]}


def stacked(axis=0):
    """The argument `stacked=` for these trees."""

    def choose(name, leaf):
        return _axis(axis, leaf.ndim) if name.startswith("blocks") else None

    return choose


def steps(layers=LAYERS, number=6, **keywords):
    """Updates of some steps, each layer of a norm of its own; the last but one is zero."""
    trees = [unrolled(seed, layers, **keywords) for seed in range(number)]
    trees[-2] = jax.tree.map(np.zeros_like, trees[-2])
    return trees


def run(tx, updates, params):
    """The outputs and the records of some updates, in one program."""

    def body(state, u):
        out, state = tx.update(u, state, params)
        return state, (out, state.scalars())

    scan = jax.jit(lambda trees: jax.lax.scan(body, tx.init(params), trees))
    return jax.device_get(scan(jax.tree.map(lambda *x: jnp.stack(x), *updates))[1])
