"""Checks that the variants of a step compute the same, before they are timed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed.train_step import Bench, Variant

STEPS = 3
TOLERANCE = {"float32": 1e-3, "bfloat16": 16 * 2**-7, "float16": 16 * 2**-10}


def check(
    bench: Bench, variants: Mapping[str, Variant], steps: Mapping[str, Callable[[], Any]]
) -> dict[str, float]:
    """Takes some steps with each variant from the same state, and compares the results.

    Returns:
        The distance of Optax from jaxclip, and of Optax from no rule: the largest difference of
        parameters and optimizer state, relative to the largest element of the leaf.

    Raises:
        AssertionError: if Optax and jaxclip differ, or Optax and no rule agree.
    """
    ends = {}
    for name in ("Optax", "none", "jaxclip"):
        ends[name] = _after(bench, variants[name], steps[name])
        if name == "none":  # big trees: no more than two at a time
            unclipped = apart(ends.pop("none"), ends["Optax"])
    found = {"from_optax": apart(ends["jaxclip"], ends["Optax"]), "from_unclipped": unclipped}
    assert found["from_optax"] <= TOLERANCE[str(jnp.dtype(bench.dtype))], found
    assert found["from_unclipped"] > 1, found
    return found


def _after(bench: Bench, variant: Variant, step: Callable[[], Any]) -> Any:
    bench.begin(variant)
    for _ in range(STEPS):
        step()
    return bench.params, bench.inner


def apart(ours: Any, theirs: Any) -> float:
    """Returns the largest difference of an element, relative to the largest element of its leaf."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return float(max(_apart(a, b) for a, b in pairs))


@jax.jit
def _apart(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(b)), 1e-30)
