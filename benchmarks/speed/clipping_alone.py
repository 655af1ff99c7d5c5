"""Clipping alone: Optax, jaxclip, PyTorch and TensorFlow on given gradients.

JAX gets its gradients donated, as PyTorch clips in place; TensorFlow cannot reuse its tensors.
Before each call, outside the measured time, the gradients are filled again, and a pause lets the
threads of the previous program fall asleep.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxclip
from benchmarks.speed import model_shapes, timing
from benchmarks.speed.step_timings import SMOKE_TURNS, TURNS
from benchmarks.speed.train_step import LIMIT, SIZE

PAUSE = 0.02
PEERS = {"PyTorch": "torch", "TensorFlow": "tensorflow"}
Timed = tuple[Callable[[], Any], Callable[[], Any], Callable[[], float]]  # call, fill, norm after


def alone(job: str, smoke: bool) -> dict[str, Any]:
    """Times the libraries that are installed."""
    tree, dtype = job.split(", ")
    shapes = list(model_shapes.tree(tree, smoke=smoke).values())
    missing = [peer for peer, module in PEERS.items() if importlib.util.find_spec(module) is None]
    timed = dict(in_jax(shapes, jnp.dtype(dtype)))
    for peer, build in {"PyTorch": in_torch, "TensorFlow": in_tensorflow}.items():
        if peer not in missing:
            timed[peer] = build(shapes, dtype)

    def before(name: str) -> None:
        timed[name][1]()
        time.sleep(PAUSE)

    programs = {name: call for name, (call, _, _) in timed.items()}
    times = timing.interleaved(programs, SMOKE_TURNS if smoke else TURNS, before)
    after = {name: norm() for name, (_, _, norm) in timed.items()}
    assert abs(after["jaxclip"] / LIMIT - 1) < 0.01, after
    return {"times": times, "missing": missing, "norm_after": after}


def cores() -> int:
    """Returns the number of threads that each library may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@jax.jit
def _norm(grads: list[jax.Array]) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in grads))


def in_jax(shapes: list[tuple[int, ...]], dtype: Any) -> dict[str, Timed]:
    """Returns the rules of Optax and jaxclip, which take turns on the same gradients."""
    grads = [jnp.full(shape, SIZE, dtype) for shape in shapes]
    filled = jax.jit(lambda x: [a * 0 + jnp.asarray(SIZE, dtype) for a in x], donate_argnums=0)

    def fill() -> None:
        grads[:] = jax.block_until_ready(filled(grads))

    def timed(rule: Any) -> Timed:
        clip = jax.jit(lambda updates, state: rule.update(updates, state), donate_argnums=(0, 1))
        kept = [rule.init(grads)]

        def call() -> None:
            grads[:], kept[0] = jax.block_until_ready(clip(grads, kept[0]))

        def norm() -> float:
            fill()
            call()
            return float(_norm(grads))

        return call, fill, norm

    return {
        "Optax": timed(optax.clip_by_global_norm(LIMIT)),
        "jaxclip": timed(jaxclip.clip_by_global_norm(LIMIT)),
    }


def in_torch(shapes: list[tuple[int, ...]], dtype: str) -> Timed:
    """Returns `clip_grad_norm_`."""
    import torch

    torch.set_num_threads(cores())
    params = [torch.nn.Parameter(torch.empty(s, dtype=getattr(torch, dtype))) for s in shapes]
    for x in params:
        x.grad = torch.empty_like(x)

    def fill() -> None:
        for x in params:
            x.grad.fill_(SIZE)

    def norm() -> float:
        return sum(float(x.grad.double().square().sum()) for x in params) ** 0.5

    return lambda: torch.nn.utils.clip_grad_norm_(params, LIMIT), fill, norm


def in_tensorflow(shapes: list[tuple[int, ...]], dtype: str) -> Timed:
    """Returns `tf.clip_by_global_norm` under `tf.function`."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores())
    grads = [tf.fill(shape, tf.constant(SIZE, dtype)) for shape in shapes]
    clip = tf.function(lambda *x: tf.clip_by_global_norm(x, LIMIT))
    kept: list[Any] = []

    def call() -> None:
        kept[:] = [clip(*grads)]
        kept[0][1].numpy()

    def norm() -> float:
        call()
        squares = [tf.reduce_sum(tf.square(tf.cast(x, tf.float64))) for x in kept[0][0]]
        return float(tf.sqrt(tf.add_n(squares)))

    return call, kept.clear, norm
