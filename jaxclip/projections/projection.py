r"""The mechanism of projections: the update that takes w where w + u lands.

The sets are in `constraints`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core import record as records
from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat, alike, flatten
from jaxclip._core.measure import measure
from jaxclip._core.state import ClipState, Record
from jaxclip._numerics import collectives
from jaxclip._numerics.scaled_float import accumulator, widened
from jaxclip._types import AxisName, Mask, PyTree, UnitAxes
from jaxclip.projections.constraints import Landing, Set


def projection(
    name: str,
    inside: Set,
    *,
    axis: UnitAxes = None,
    mask: Mask = None,
    axis_name: AxisName = None,
    record: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The transformation that projects the chosen leaves of w + u onto a set."""
    units = measure("unit", axis=axis, axis_name=axis_name)
    _validate.flag(record, "record")

    def step(flat: Flat, state: ClipState, params: PyTree) -> tuple[PyTree, ClipState]:
        if params is None:
            raise ValueError(f"params=None: {name} needs update(..., params)")
        weights = flatten(params)
        steps = alike(flat.tree, weights, ("updates", "params"))
        chosen = _chosen(weights, mask)
        weights, steps = weights.only(chosen), steps.only(chosen)
        moved = weights._replace(arrays=list(map(_moved, weights.arrays, steps.arrays)))
        for i, x in enumerate(moved.arrays):
            collectives.sharded_axes(x, units.axis_name, moved.path(i))  # raises if replicated
        landed = inside(moved, [w.dtype for w in weights.arrays], state.update_count, units)
        arrays = list(map(_step, weights.arrays, steps.arrays, moved.arrays, landed))
        seen = _seen(moved, landed, units.axis_name) if record else None
        return steps.rebuild(arrays), states.following(state, seen)

    kind = states.named(ClipState, name)
    return states.transformation(lambda params: states.first(name, record=record), kind, step)


def _chosen(weights: Flat, mask: Mask) -> list[bool]:
    """The leaves to project, by default kernels: a bias of attention has rank 2 as well."""
    if mask is None:
        leaves = zip(weights.arrays, weights.biases, strict=True)
        return [w.ndim >= 2 and not is_bias for w, is_bias in leaves]
    return weights.chosen(mask, "mask")


def _moved(w: jax.Array, u: jax.Array) -> jax.Array:
    """W + u in at least float32."""
    wide = accumulator(w)
    return widened(w, wide) + widened(u, wide)


def _step(w: jax.Array, u: jax.Array, moved: jax.Array, landing: Landing) -> jax.Array:
    """The update that takes w where w + u lands; u itself where that is inside the set."""
    wide = accumulator(w)
    to_target = landing.value - widened(w, wide)
    if landing.norm is None:
        to_target = _not_beyond(widened(w, wide), to_target, moved, landing.value)
    keep = landing.keep | ~jnp.isfinite(w)  # no difference leads away from an infinite weight
    return jnp.where(keep, widened(u, wide), to_target)


def _not_beyond(w: jax.Array, step: jax.Array, moved: jax.Array, bound: jax.Array) -> jax.Array:
    """The step from w to a bound of its element, shorter by one float if it would lead beyond.

    Some floats cannot be reached from others by adding a float.
    """
    above = moved > bound
    beyond = jnp.where(above, w + step > bound, w + step < bound)
    infinite = jnp.full_like(step, jnp.inf)
    here = jax.lax.stop_gradient(step)  # `nextafter` has no derivative
    shorter = jnp.nextafter(here, jnp.where(above, -infinite, infinite))
    return jnp.where(beyond, step + (shorter - here), step)


def _seen(moved: Flat, landed: list[Landing], axis_name: Any) -> Record:
    """The record, of units or of elements."""
    limits = [landing.limit for landing in landed]
    if landed and landed[0].norm is None:
        outside = [~landing.keep for landing in landed]
        return records.of_elements(moved.arrays, limits, outside, axis_name)
    norms, scales = [landing.norm for landing in landed], [landing.scale for landing in landed]
    return records.of_norms(norms, limits, scales, [scale.over for scale in scales])
