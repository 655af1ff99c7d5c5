"""Times of compilation, and of an update outside of `jit`; rules take turns in one process."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxclip
from benchmarks.speed import model_shapes, timing
from benchmarks.speed.train_step import LIMIT, OPTIMIZERS

Rule = Callable[[float], optax.GradientTransformation]
TURNS, EAGER_TURNS = 3, 30
ONE: dict[str, Rule] = {
    "Optax": optax.clip_by_global_norm,
    "jaxclip": jaxclip.clip_by_global_norm,
}
LEAF: dict[str, Rule] = {
    "optax.clip_by_block_rms": optax.clip_by_block_rms,
    "clip_by_norm": jaxclip.clip_by_norm,
    "clip_by_block_rms": jaxclip.clip_by_block_rms,
    "monitor": lambda limit: jaxclip.monitor(),
    "adagc": lambda limit: jaxclip.adagc(),
    "project_max_norm": jaxclip.project_max_norm,
}
UNIT: dict[str, Rule] = {
    "optax.adaptive_grad_clip": optax.adaptive_grad_clip,
    "adaptive_grad_clip": jaxclip.adaptive_grad_clip,
}
COMPILED = {
    "one norm, 100 leaves": ONE,
    "one norm, 300 leaves": ONE,
    "one norm, 1000 leaves": ONE,
    "a norm a leaf, 300 leaves": LEAF,
    "a norm a unit, 300 leaves": UNIT,
}
EAGER: dict[str, dict[str, Rule]] = {
    "one norm, 20 leaves": ONE,
    "a norm a leaf, 20 leaves": {k: LEAF[k] for k in ("optax.clip_by_block_rms", "clip_by_norm")},
    "elements, 20 leaves": {"optax.clip": optax.clip, "clip": jaxclip.clip},
}


def _leaves(job: str) -> int:
    return int(job.split(", ")[1].split()[0])


def compiled(job: str, smoke: bool) -> dict[str, Any]:
    """Times the tracing and compilation of a rule and SGD; the last turns count."""
    shapes = model_shapes.small(10 if smoke else _leaves(job))
    params = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    times: dict[str, list[float]] = {name: [] for name in COMPILED[job]}
    trace: dict[str, list[float]] = {name: [] for name in COMPILED[job]}
    for turn in range(1 if smoke else 1 + TURNS):
        for name, rule in COMPILED[job].items():
            jax.clear_caches()
            traced, both = compile_once(optax.chain(rule(LIMIT), OPTIMIZERS["SGD"]()), params)
            if turn or smoke:
                trace[name].append(traced)
                times[name].append(both)
    return {"times": times, "trace": trace}


def compile_once(tx: Any, params: Any) -> tuple[float, float]:
    """Returns the seconds to trace a step, and to trace and compile it."""
    state = jax.eval_shape(tx.init, params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    traced = time.perf_counter()
    lowered.compile()
    return traced - start, time.perf_counter() - start


def eager(job: str, smoke: bool) -> dict[str, Any]:
    """Times `update` outside of `jit`, which clips, after the first calls."""
    shapes = model_shapes.small(_leaves(job))
    grads = {name: jnp.full(s, LIMIT * 2 / math.prod(s) ** 0.5) for name, s in shapes.items()}
    programs = {name: _update(rule(LIMIT), grads) for name, rule in EAGER[job].items()}
    return {"times": timing.interleaved(programs, 1 if smoke else EAGER_TURNS)}


def _update(rule: optax.GradientTransformation, grads: Any) -> Callable[[], Any]:
    state = rule.init(grads)
    return lambda: jax.block_until_ready(rule.update(grads, state))
