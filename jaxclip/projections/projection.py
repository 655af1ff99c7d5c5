r"""The mechanism of projections: the update that takes w where w + u lands.

The sets are in `constraints`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core import record as records
from jaxclip._core import stacks
from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat, alike, flatten
from jaxclip._core.measure import measure
from jaxclip._core.state import ClipState, Record
from jaxclip._core.types import AxisName, Mask, PyTree, Stacked, UnitAxes
from jaxclip._numerics import collectives
from jaxclip._numerics.rounding import is_narrow, rounded
from jaxclip._numerics.scaled_float import accumulator, read_apart, widened
from jaxclip.projections.constraints import Landing, Set

_FAR = 8  # times the limit: a 16-bit weight that is larger takes two steps


def projection(
    name: str,
    inside: Set,
    *,
    axis: UnitAxes = None,
    mask: Mask = None,
    axis_name: AxisName = None,
    stacked: Stacked = None,
    record: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The transformation that projects the chosen leaves of w + u onto a set."""
    units = measure("unit", axis=axis, axis_name=axis_name, stacked=stacked)
    _validate.flag(record, "record")

    def step(flat: Flat, state: ClipState, params: PyTree) -> tuple[PyTree, ClipState]:
        if params is None:
            raise ValueError(f"params=None: {name} needs update(..., params)")
        weights = flatten(params)
        steps = alike(flat.tree, weights, ("updates", "params"))
        own = chosen(weights, mask, units.stacked)
        weights, steps = weights.only(own), steps.only(own)

        def land(moved: Flat) -> list[Landing]:
            for i, x in enumerate(moved.arrays if units.stacked is None else []):
                collectives.sharded_axes(x, units.axis_name, moved.path(i))  # raises if replicated
            return inside(moved, [w.dtype for w in weights.arrays], state.update_count, units)

        new, moved, landed = stepped(weights, steps, land)
        seen = _seen(moved, landed, units.axis_name) if record else None
        return new, states.following(state, seen)

    kind = states.named(ClipState, name)
    return states.transformation(lambda params: states.first(name, record=record), kind, step)


def stepped(
    weights: Flat, steps: Flat, land: Callable[[Flat], list[Landing]]
) -> tuple[PyTree, Flat, list[Landing]]:
    """The updates that take weights where `land` projects them, after their steps.

    Returns:
        The updates, the weights w + u that `land` was given, and its result.
    """
    given = list(map(_given, weights.arrays, steps.arrays))
    moved = weights._replace(arrays=list(map(_moved, weights.arrays, given)))
    landed = land(moved)
    return steps.rebuild(list(map(_step, weights.arrays, given, landed))), moved, landed


def chosen(weights: Flat, mask: Mask, stacked: Stacked) -> list[bool]:
    """The leaves that a mask selects, by default kernels: some biases have rank 2 as well."""
    if mask is None:
        leaves = zip(weights.arrays, stacks.axes(stacked, weights), weights.biases, strict=True)
        return [x.ndim - (axis is not None) >= 2 and not bias for x, axis, bias in leaves]
    return weights.chosen(mask, "mask")


def _given(w: jax.Array, u: jax.Array) -> jax.Array:
    """The update in the dtype of computations, as a number of the dtype of narrow weights.

    A wider update becomes the one that leads to the weights nearest to w + u.
    """
    if not is_narrow(w.dtype):
        return widened(u, accumulator(w))
    if u.dtype == w.dtype:  # XLA would leave out the conversion to it, if it came just before
        return widened(read_apart(u), accumulator(w))
    wide = widened(u, accumulator(w))
    moved = _moved(w, wide)
    return rounded(jnp.where(jnp.isfinite(moved), moved - widened(w, wide.dtype), wide), w.dtype)


def _moved(w: jax.Array, u: jax.Array) -> jax.Array:
    """W + u in at least float32, rounded as the weights are stored."""
    moved = widened(w, accumulator(w)) + u
    return rounded(moved, w.dtype) if is_narrow(w.dtype) else moved


def _step(w: jax.Array, u: jax.Array, landing: Landing) -> jax.Array:
    """The update that takes w where w + u lands; u itself where that is inside the set."""
    wide = widened(w, accumulator(w))
    to_target = landing.value - wide
    if is_narrow(w.dtype):
        to_target = rounded(to_target, w.dtype, _side(wide, landing))
    elif landing.norm is None:
        to_target = _not_beyond(wide, to_target, landing)
    keep = landing.keep | ~jnp.isfinite(w)  # no difference leads away from an infinite weight
    return jnp.where(keep, u, to_target).astype(w.dtype)


def _side(w: jax.Array, landing: Landing) -> Any:
    """The direction in which a step is rounded where it is no number of the weights' dtype.

    A weight far above the limit of its norm keeps its sign: rounded to 0, a unit has no direction.
    """
    if landing.norm is None:
        return landing.towards
    return jnp.where(jnp.abs(w) / _FAR > landing.limit, jnp.sign(w), landing.towards)


def _not_beyond(w: jax.Array, step: jax.Array, landing: Landing) -> jax.Array:
    """The step from w to a bound of its element, shorter by one float if it would lead beyond.

    Some floats cannot be reached from others by adding a float.
    """
    above, bound = landing.towards < 0, landing.value
    beyond = jnp.where(above, w + step > bound, w + step < bound)
    most = float(jnp.finfo(step.dtype).max)
    here = jax.lax.stop_gradient(step)  # `nextafter` has no derivative
    shorter = jnp.nextafter(here, jnp.where(above, -most, most).astype(here.dtype))
    return jnp.where(beyond, step + (shorter - here), step)


def _seen(moved: Flat, landed: list[Landing], axis_name: Any) -> Record:
    """The record, of units or of elements."""
    limits = [landing.limit for landing in landed]
    if landed and landed[0].norm is None:
        outside = [~landing.keep for landing in landed]
        return records.of_elements(moved.arrays, limits, outside, axis_name)
    norms, scales = [landing.norm for landing in landed], [landing.scale for landing in landed]
    return records.of_scales(norms, limits, scales)
