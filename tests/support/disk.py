"""A run with everything that remembers, to be cut in two by a state on disk.

`python -m tests.support.disk PART FOLDER` with PART `whole` or `rest` runs all steps, or those
after the checkpoint that `whole` made on its way, and writes the final state to FOLDER/PART.npz.
`whole` writes the state at the checkpoint to FOLDER/first.npz.

With PART `keep` it writes files to commit with a new version, which later versions must be able to
read: FOLDER/VERSION-cut.msgpack, the state at the cut, and FOLDER/VERSION-end.msgpack.
"""

import functools
import sys
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from jaxclip import thresholds

STEPS, CUT = 12, 7
SHAPES = {"dense": {"kernel": (4, 3), "bias": (3,)}, "gain": ()}


def transformation(window=6):
    """Every rule, guard and projection, those that learn with a memory that is soon full."""
    quantile = thresholds.tracked_quantile(0.6)
    rules = {
        "grads": jaxclip.monitor(name="grads"),
        "clip": jaxclip.clip(30.0, record=True),
        "value": jaxclip.clip_by_value(-20.0, 20.0),
        "norm": jaxclip.clip_by_norm(9.0, axis=0),
        "average": jaxclip.clip_by_average_norm(3.0),
        "rms": jaxclip.clip_by_block_rms(4.0),
        "global": jaxclip.clip_by_global_norm(optax.linear_schedule(9.0, 5.0, STEPS)),
        "agc": jaxclip.adaptive_grad_clip(5.0),
        "autoclip": jaxclip.autoclip(60.0, window=window, scope="unit"),
        "zclip": jaxclip.zclip(warmup_steps=3, max_norm=None, scope="leaf"),
        "adagc": jaxclip.adagc(warmup_steps=3),
        "history": jaxclip.clip_by_history(sigma=1.0, window=window, min_history=2),
        "tracked": jaxclip.clip_by(quantile, scope="leaf", name="tracked"),
        "adam": jaxclip.scale_by_stable_adam(),
        "rate": optax.scale(-0.3),
        "box": jaxclip.project_box(-3.0, 3.0),
        "max_norm": jaxclip.project_max_norm(1.5),
    }
    guarded = jaxclip.skip_nonfinite(optax.chain(*rules.values()))
    return jaxclip.skip_spikes(guarded, window=window, min_history=3)


def params():
    shapes, treedef = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    return treedef.unflatten([jnp.ones(shape) for shape in shapes])


def grads(step):
    """A spike at every fourth step, and a NaN at every fifth."""
    rng = np.random.default_rng(step)
    size = np.float32(50 if step % 4 == 3 else 1)
    size = np.float32(np.nan) if step % 5 == 4 else size
    return jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)) * size, params())


@functools.cache
def _step():
    tx = transformation()

    @jax.jit
    def one(weights, state, u, loss):
        updates, state = tx.update(u, state, weights, value=loss)
        return optax.apply_updates(weights, updates), state

    return one


def run(weights, state, steps):
    one = _step()
    for step in steps:
        weights, state = one(weights, state, grads(step), jnp.float32(step % 3))
    return weights, state


def main(part, folder):
    import orbax.checkpoint

    cut = start = params(), jax.jit(transformation().init)(params())
    with orbax.checkpoint.StandardCheckpointer() as disk:
        if part == "rest":
            cut = disk.restore(folder / "state", jax.eval_shape(lambda: start))
        else:
            cut = run(*start, range(CUT))
            disk.save(folder / "state", cut)
            disk.wait_until_finished()
            _write(folder, "first", cut)
    _write(folder, part, run(*cut, range(CUT, STEPS)))


def _write(folder, part, state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    np.savez(folder / f"{part}.npz", **{jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves})


def keep(folder):
    cut = run(params(), transformation().init(params()), range(CUT))
    end = run(*cut, range(CUT, STEPS))
    for name, part in (("cut", cut), ("end", end)):
        path = folder / f"{jaxclip.__version__}-{name}.msgpack"
        path.write_bytes(flax.serialization.to_bytes(part))


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep(Path(sys.argv[2]))
    else:
        main(sys.argv[1], Path(sys.argv[2]))
