"""The sections of the benchmark of speed that time train steps.

Each function measures one job of its section, in a process of its own, and returns numbers for
JSON: `times`, the seconds of each program. `jobs` lists the sections.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from benchmarks.speed import model_shapes, timing
from benchmarks.speed.equivalence import check
from benchmarks.speed.train_step import (
    LIMIT,
    SIZE,
    Bench,
    Variant,
    chained,
    compared,
    ones_of,
    zeros,
)

TURNS, SMOKE_TURNS = 19, 3
MANY = 1000  # leaves from which `least` is left out, since compilation takes long
ALIKE_TURNS = 41  # where the differences are a few percent
Result = dict[str, Any]


def steps(job: str, smoke: bool) -> Result:
    """Times steps without a rule and with those of Optax and jaxclip, and one read of the tree."""
    tree, dtype, optimizer, *options = job.split(", ")
    given = "gradients given" in options
    bench = Bench(model_shapes.tree(tree, smoke=smoke), jnp.dtype(dtype), given=given)
    variants = compared(optimizer)
    programs = {name: bench.step(name, variant) for name, variant in variants.items()}
    found = check(bench, variants, programs)
    if len(bench.tree) < MANY:
        programs["least"] = bench.step("least", chained(least(), optimizer))
    programs["norm"] = bench.norm()
    return {"times": timing.interleaved(programs, SMOKE_TURNS if smoke else TURNS), "check": found}


def least() -> optax.GradientTransformation:
    """Returns the fastest known rule that clips by the global norm: one sum and one product.

    It has no guarantees. The barrier keeps XLA from writing a bfloat16 leaf out in float32.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = [jax.lax.optimization_barrier(x).astype(jnp.float32) for x in updates.values()]
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in wide))
        scale, keep = LIMIT / norm, norm <= LIMIT

        def scaled(x: jax.Array) -> jax.Array:
            wide = x.astype(jnp.float32)
            return jax.lax.select(keep, wide, wide * scale).astype(x.dtype)

        return {name: scaled(x) for name, x in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def of(tree: str, dtype: str, variants: Mapping[str, Variant], smoke: bool) -> Result:
    """Times variants that may compute different things."""
    bench = Bench(model_shapes.tree(tree, smoke=smoke), jnp.dtype(dtype))
    bench.begin(next(iter(variants.values())))
    programs = {name: bench.step(name, variant) for name, variant in variants.items()}
    turns = SMOKE_TURNS if smoke else ALIKE_TURNS
    return {"times": timing.interleaved(programs, turns, seconds=2 * timing.SECONDS)}


def bare() -> optax.GradientTransformation:
    """Returns the rule that records nothing."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jaxclip.functional.clip_by_global_norm(updates, LIMIT)[0], state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def telemetry(job: str, smoke: bool) -> Result:
    """Times the rule with and without its record, and a rule that records nothing."""
    tree, dtype, optimizer = job.split(", ")
    rule = jaxclip.clip_by_global_norm(LIMIT)
    watched = optax.chain(jaxclip.monitor(), rule)
    variants = {
        "nothing recorded": chained(bare(), optimizer),
        "record left behind": chained(rule, optimizer, forget=True),
        "recorded": chained(rule, optimizer),
        "recorded and read": chained(rule, optimizer, read=True),
        "monitor as well, read": chained(watched, optimizer, read=True),
    }
    return of(tree, dtype, variants, smoke)


# Rules, and the number of updates that fill their memory.
LEARNED: dict[str, tuple[Callable[[], Any], int]] = {
    "autoclip, window 10,000": (lambda: jaxclip.autoclip(window=10_000), 10_000),
    "autoclip, window 100": (lambda: jaxclip.autoclip(window=100), 100),
    "zclip": (jaxclip.zclip, 200),
    "adagc": (jaxclip.adagc, 200),
    "clip_by_history": (jaxclip.clip_by_history, 200),
}


def filled(rule: Any, tree: model_shapes.Shapes, dtype: Any, updates: int) -> Any:
    """Returns a rule's state after updates with norms close to those of the gradients.

    The state does not depend on the sizes of leaves, so these updates have one element per leaf.
    """
    jitter = np.exp(0.3 * np.random.default_rng(1).standard_normal(updates)).astype(np.float32)
    norms = {name: SIZE * math.sqrt(math.prod(shape)) for name, shape in tree.items()}

    def update(state: Any, factor: jax.Array) -> tuple[Any, None]:
        grads = {name: (norm * factor[None]).astype(dtype) for name, norm in norms.items()}
        return rule.update(grads, state)[1], None

    first = rule.init(zeros(ones_of(tree), dtype))
    return jax.jit(lambda state: jax.lax.scan(update, state, jitter)[0])(first)


def learned(job: str, smoke: bool) -> Result:
    """Times learned thresholds with full memory, and a static threshold."""
    tree, dtype, optimizer = job.split(", ")
    shapes = model_shapes.tree(tree, smoke=smoke)
    variants = {"clip_by_global_norm": chained(jaxclip.clip_by_global_norm(LIMIT), optimizer)}
    for name, (build, updates) in LEARNED.items():
        rule = build()
        state = filled(rule, shapes, jnp.dtype(dtype), updates)
        variants[name] = chained(rule, optimizer, rule_state=state)
    return of(tree, dtype, variants, smoke)


def groups(job: str, smoke: bool) -> Result:
    """Times one norm of the tree, and a norm for each of four groups of leaves."""
    tree, dtype, optimizer = job.split(", ")

    def labels(tree: Any) -> Any:
        return {name: f"group {i % 4}" for i, name in enumerate(tree)}

    variants = {
        "clip_by_global_norm": chained(jaxclip.clip_by_global_norm(LIMIT), optimizer),
        "clip_by_group_norm": chained(jaxclip.clip_by_group_norm(LIMIT, labels), optimizer),
    }
    return of(tree, dtype, variants, smoke)


def guards(job: str, smoke: bool) -> Result:
    """Times guards around a chain, also that of Optax, and the chain alone."""
    tree, dtype, optimizer = job.split(", ")
    alone = chained(jaxclip.clip_by_global_norm(LIMIT), optimizer)
    variants = {
        "unguarded": alone,
        "skip_nonfinite": Variant(jaxclip.skip_nonfinite(alone.tx)),
        "skip_nonfinite, step unchecked": Variant(
            jaxclip.skip_nonfinite(alone.tx, check_step=False)
        ),
        "skip_spikes": Variant(jaxclip.skip_spikes(alone.tx)),
        "scale_loss": Variant(jaxclip.scale_loss(alone.tx, 1.0)),
        "optax.apply_if_finite": Variant(optax.apply_if_finite(alone.tx, 3)),
    }
    return of(tree, dtype, variants, smoke)
