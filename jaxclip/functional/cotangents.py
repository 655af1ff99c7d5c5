"""The identity whose cotangent a rule changes: the mechanism of `backward`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core import record
from jaxclip._core.flat_tree import Flat, flatten, is_inexact
from jaxclip._core.measure import measure
from jaxclip._core.types import PyTree
from jaxclip._numerics.scaled_float import accumulator, narrowed, times, widened
from jaxclip._validate import short

Seen = tuple[Any, Any]  # the norm, and whether something was changed
Rule = Callable[[PyTree], tuple[PyTree, Seen]]  # of a cotangent


def passed(make: Callable[..., Rule], x: PyTree, probe: Any, **limits: Any) -> PyTree:
    """`x`, whose cotangent the rule `make(**limits)` changes."""
    _validate.without_schedules(**limits)
    make(**limits)  # checks them now: the backward pass may be traced far from here
    if probe is not None and not (jnp.shape(probe) == (2,) and is_inexact(probe)):
        raise ValueError(f"probe={short(probe)} must be an array of two floats, jnp.zeros(2)")
    traced = {name: c for name, c in limits.items() if _validate.is_traced(c)}

    @jax.custom_vjp
    def identity(x: PyTree, traced: dict[str, Any], probe: Any) -> PyTree:
        del traced, probe
        return x

    def forward(x: PyTree, traced: dict[str, Any], probe: Any) -> tuple[PyTree, Any]:
        return x, (traced, probe)

    def backward(kept: Any, cotangent: PyTree) -> tuple[PyTree, None, Any]:
        traced, probe = kept
        changed, seen = make(**(limits | traced))(cotangent)
        if probe is None:
            return changed, None, None
        zeros = jnp.zeros_like(probe)  # varies over the mesh as the probe does
        row = [narrowed(jnp.asarray(s), zeros.dtype) for s in seen]
        return changed, None, zeros + jnp.stack(row)

    identity.defvjp(forward, backward)
    return identity(x, traced, probe)


def of_rule(
    make: Callable[..., optax.GradientTransformationExtraArgs], **options: Any
) -> Callable[..., Rule]:
    """The rule that a transformation without memory is, made from its limits."""

    def made(**limits: Any) -> Rule:
        transformation = make(**limits, **options)

        def rule(cotangent: PyTree) -> tuple[PyTree, Seen]:
            updates, state = transformation.update(cotangent, transformation.init(cotangent))
            seen: Any = state
            return updates, (seen.norm, seen.clipped_count)

        return rule

    return made


def scaled(factor: Any) -> Rule:
    """The multiplication by a number, rounded once to the dtype of each leaf."""
    _validate.real_number(factor, "factor", signed=True, finite=True)

    def rule(cotangent: PyTree) -> tuple[PyTree, Seen]:
        flat, a = flatten(cotangent), _validate.number(factor)
        arrays: list[jax.Array] = []
        for x in flat.arrays:
            wide = accumulator(x)
            arrays.append(times(widened(x, wide), a.astype(wide)).astype(x.dtype))
        return flat.rebuild(arrays), (_norm(flat), a != 1)

    return rule


def finite() -> Rule:
    """Zeros instead of elements that are NaN or infinite."""

    def rule(cotangent: PyTree) -> tuple[PyTree, Seen]:
        flat = flatten(cotangent)
        arrays = [jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)) for x in flat.arrays]
        return flat.rebuild(arrays), (_norm(flat), ~record.all_elements_finite(flat.arrays))

    return rule


def _norm(flat: Flat) -> jax.Array:
    """The norm of all leaves, on all devices between which they differ."""
    return measure("global").norms(flat)[0].number
