"""Moves of a running optimizer's state from one chain into another."""

import itertools

import flax.serialization
import jax
import jax.numpy as jnp
import optax

import jaxclip

PARAMS = {"layers": [{"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, {"kernel": jnp.ones(2)}]}
KERNELS = jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key == "kernel", PARAMS)
SMALL = jaxclip.clip_by_global_norm(1.0)
NONE = optax.identity()


def adamw(*rules, after=()):
    rate = optax.linear_schedule(0.1, 0.01, 9)
    return optax.chain(*rules, optax.adamw(rate), *after)


def hyper(rule):
    return optax.inject_hyperparams(lambda rate: optax.chain(rule, optax.adam(rate)))(rate=0.1)


def hyper_limit(rate, limit):
    return optax.chain(jaxclip.clip_by_global_norm(limit), optax.adam(rate))


def labels(first, second):
    chains = {"k": optax.chain(first, optax.adam(0.1)), "b": optax.chain(second, optax.adam(0.2))}
    return optax.partition(chains, jax.tree.map(lambda k: "k" if k else "b", KERNELS))


def run(tx, steps=4, state=None, **extra):
    state = tx.init(PARAMS) if state is None else state
    for step in range(steps):
        updates = jax.tree.map(lambda x, k=step: x * k - 0.5, PARAMS)
        _, state = tx.update(updates, state, PARAMS, **extra)
    return state


def filled(tx, params=PARAMS):
    """A state of as many different numbers as arrays, in place of one after steps."""
    numbers = itertools.count(1)
    return jax.tree.map(
        lambda x: ~x if x.dtype == bool else x + jnp.asarray(next(numbers), x.dtype),
        tx.init(params),
    )


GUARDED = jaxclip.skip_spikes(jaxclip.skip_nonfinite(adamw(SMALL)), window=4, min_history=2)
LEARNED = jaxclip.skip_spikes(adamw(jaxclip.monitor(), jaxclip.autoclip(window=3)), window=4,
                              min_history=2)  # fmt: skip
STEPS = optax.MultiSteps(adamw(SMALL), 3)
MOVES = {
    "from Optax's rule": (adamw(optax.clip_by_global_norm(1.0)), adamw(SMALL)),
    "from Optax's other rules": (
        adamw(optax.clip(1.0), optax.clip_by_block_rms(1.0), optax.adaptive_grad_clip(0.1)),
        adamw(jaxclip.zclip(), SMALL),
    ),
    "a rule": (adamw(), adamw(SMALL)),
    "a rule around the bare optimizer": (optax.trace(0.9), optax.chain(SMALL, optax.trace(0.9))),
    "guards and rules": (adamw(optax.clip_by_global_norm(1.0)), GUARDED),
    "a guard": (adamw(SMALL), jaxclip.skip_nonfinite(adamw(SMALL))),
    "guards in another order": (
        GUARDED,
        jaxclip.skip_nonfinite(jaxclip.skip_spikes(adamw(SMALL), window=4, min_history=2)),
    ),
    "a projection and a monitor": (
        adamw(SMALL),
        adamw(jaxclip.monitor(), SMALL, after=[jaxclip.project_max_norm(1.0)]),
    ),
    "hyperball around the optimizer": (
        optax.scale_by_adam(),
        jaxclip.hyperball(optax.chain(SMALL, optax.scale_by_adam()), 0.1),
    ),
    "other rules": (adamw(SMALL), adamw(jaxclip.autoclip(window=3), jaxclip.adagc())),
    "back to Optax": (GUARDED, adamw(optax.clip_by_global_norm(1.0))),
    "apply_if_finite": (optax.apply_if_finite(adamw(), 3), jaxclip.skip_nonfinite(adamw(SMALL))),
    "inside MultiSteps": (optax.MultiSteps(adamw(optax.clip(1.0)), 3), STEPS),
    "around MultiSteps": (STEPS, jaxclip.skip_nonfinite(STEPS)),
    "inside inject_hyperparams": (hyper(optax.clip(9.0)), hyper(SMALL)),
    "beside masked": (
        optax.masked(optax.adam(0.1), KERNELS),
        optax.chain(SMALL, optax.masked(optax.adam(0.1), KERNELS)),
    ),
    "inside partition": (labels(NONE, SMALL), labels(SMALL, SMALL)),
    "inside named_chain": (
        optax.named_chain(("adam", optax.adam(0.1)), ("rate", optax.trace(0.9))),
        optax.named_chain(("clip", SMALL), ("adam", optax.adam(0.1)), ("rate", optax.trace(0.9))),
    ),
    "past ten parts": (
        optax.chain(*[optax.clip(1.0)] * 8, optax.trace(0.9), optax.trace(0.5)),
        optax.chain(*[optax.clip(1.0)] * 8, SMALL, optax.trace(0.9), optax.trace(0.5)),
    ),
    "two optimizers of a kind": (
        optax.chain(optax.trace(0.9), optax.clip(1.0), optax.trace(0.5)),
        jaxclip.skip_nonfinite(optax.chain(SMALL, optax.trace(0.9), SMALL, optax.trace(0.5))),
    ),
}


NEED_TYPES = {"a projection and a monitor"}


def from_disk(state):
    """The dicts that msgpack makes of a state, without types."""
    return flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))
