r"""Sets that weights are projected onto: which weights are inside, and where the others land.

The transformations and the functions share them, validation included. Nothing here knows updates or
states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core import stacks
from jaxclip._core.flat_tree import Flat, at_step
from jaxclip._core.measure import Measure
from jaxclip._core.types import How, LimitTree, Method, Spectral
from jaxclip._numerics import collectives, spectral
from jaxclip._numerics.rounding import is_narrow, rounded
from jaxclip._numerics.scaled_float import (
    Factors,
    Norm,
    Scale,
    apply,
    broadcast,
    hypot,
    narrowed,
    quotient,
)


class Landing(NamedTuple):
    """The projection of one leaf.

    Attributes:
        keep: the weights inside the set, broadcastable to the leaf.
        value: the projected leaf, in at least float32, but a number of the dtype that stores it;
            only used where not `keep`.
        limit: the largest norm, or the largest magnitude of an element, allowed.
        norm: the norms of the units; `None` for a set of single elements.
        scale: the scale of the units.
        towards: the direction in which 16-bit weights are rounded, as for `rounded`.
    """

    keep: jax.Array
    value: jax.Array
    limit: Any
    norm: Any = None
    scale: Any = None
    towards: Any = 0


Set = Callable[[Flat, list[Any], jax.Array, Measure], list[Landing]]
"""`land(weights, dtypes, count, units)` returns the projection of each floating leaf.

It is given the weights in at least float32, the dtypes that they are stored in, the number of
projections before, and a measure of units.
"""


_NONE = math.inf  # no bound


def norms_between(
    low: LimitTree, high: LimitTree, names: tuple[str, str], rate: ArrayLike = 1.0
) -> Set:
    """Units whose norm is between two bounds; `None` for no bound."""
    _validate.limits(low, names[0], scalar=True, finite=True)
    _validate.limits(high, names[1], scalar=True)
    _validate.bounds(low, high, names)
    _validate.between(rate, 0, 1, "rate")

    def land(weights: Flat, dtypes: list[Any], count: jax.Array, units: Measure) -> list[Landing]:
        lows, highs, rates = (
            weights.spread(at_step(value, count), name)
            for value, name in ((low, names[0]), (high, names[1]), (rate, "rate"))
        )
        stored = {d: float(jnp.finfo(d).eps) if is_narrow(d) else 0.0 for d in dtypes}
        norms, table = units.tabled(weights)

        def between(norm: Norm, eps: Any, a: Any, b: Any, r: Any) -> tuple[jax.Array, Scale, Any]:
            least, most, share = (
                broadcast(_limit(value, norm.value.dtype), norm.value) for value in (a, b, r)
            )
            return most, *_between(norm, least, most, share, eps)

        lows = [0.0 if a is None else a for a in lows]
        highs = [_NONE if b is None else b for b in highs]
        found = table.map(between, norms, [stored[d] for d in dtypes], lows, highs, rates)
        landed = []
        leaves = zip(weights.arrays, norms, dtypes, found, strict=True)
        for x, norm, dtype, (most, scale, outwards) in leaves:
            value, towards = apply(x, scale.factors), 0
            if is_narrow(dtype):
                towards = outwards * jnp.sign(value)
                value = rounded(value, dtype, towards)
            landed.append(Landing(~scale.over, value, most, norm, scale, towards))
        return landed

    return land


def _limit(value: Any, dtype: Any) -> jax.Array:
    """A limit as an array; `None` is no limit."""
    return narrowed(_validate.number(jnp.inf if value is None else value), dtype)


def _between(
    norm: Norm, low: jax.Array, high: jax.Array, rate: jax.Array, stored: Any
) -> tuple[Scale, jax.Array]:
    """The scale that brings norms of weights between `low` and `high`.

    And the sign of the change of magnitude by which 16-bit weights are rounded: -1 from above and 1
    from below, so that they are inside. Where the set is thinner than that, they are rounded to the
    nearest number, and a norm that is outside by half an epsilon counts as inside. In all dtypes
    so does one that is outside by the rounding of the norm itself, or weights would be scaled again
    and again. A norm of 0 has no direction and stays 0. `stored` is the epsilon of 16-bit weights,
    and 0 for others.
    """
    n, zero = norm.number, jnp.zeros_like(high)
    high = jnp.maximum(high, zero)  # a traced negative limit counts as 0
    thin, rounding = low > high * (1 - stored), 4 * float(jnp.finfo(n.dtype).eps)
    rounding = jnp.where(thin, zero + (rounding + stored / 2), zero + rounding)
    outwards = jnp.where(thin, zero, jnp.where(n > high, zero - 1, zero + 1))
    inside = (n * (1 - rounding) <= high) & (n >= low * (1 - rounding))
    target = jnp.clip(n, low, high)
    keep = inside | (norm.value == 0) | ~jnp.isfinite(target) | (rate <= 0)
    partly = (rate < 1) & jnp.isfinite(n)
    target = jnp.where(partly, target + (1 - rate) * (n - target), target)
    return quotient(norm, n, target, ~keep), outwards


def elements_between(low: LimitTree, high: LimitTree, names: tuple[str, str]) -> Set:
    """Elements between two bounds; `None` for no bound."""
    _validate.bounds(low, high, names)

    def land(weights: Flat, dtypes: list[Any], count: jax.Array, units: Measure) -> list[Landing]:
        lows = weights.spread(at_step(low, count), names[0])
        highs = weights.spread(at_step(high, count), names[1])
        landed = []
        for i, (x, dtype) in enumerate(zip(weights.arrays, dtypes, strict=True)):
            if jnp.iscomplexobj(x):
                raise ValueError(
                    f"the leaf {weights.path(i)}, of dtype {x.dtype}, cannot be bounded, since "
                    "complex numbers have no order; exclude it, in a transformation by mask="
                )
            least, most = (
                narrowed(
                    _validate.fitted(c, x.shape, name, f"the leaf {weights.path(i)}"),
                    x.dtype,
                    range_of=dtype,
                )
                for c, name in (
                    (-jnp.inf if lows[i] is None else lows[i], names[0]),
                    (jnp.inf if highs[i] is None else highs[i], names[1]),
                )
            )
            if is_narrow(dtype):
                least, most = _representable(least, most, dtype)
            value = jnp.where(x < least, least, jnp.where(x > most, most, x))
            limit = [jnp.max(jnp.abs(c), initial=0) for c in (least, most)]
            keep = (x >= least) & (x <= most) | jnp.isnan(x)
            towards = jnp.where(x > value, -jnp.ones_like(x), jnp.ones_like(x))
            landed.append(Landing(keep, value, jnp.maximum(*limit), towards=towards))
        return landed

    return land


def _representable(low: jax.Array, high: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The least and the largest number of a narrow dtype between two bounds.

    The numbers nearest to the bounds where there is none between them.
    """
    least, most = rounded(low, dtype, 1), rounded(high, dtype, -1)
    none = least > most
    return (
        jnp.where(none, rounded(low, dtype), least),
        jnp.where(none, rounded(high, dtype), most),
    )


def singular_values(
    max_norm: LimitTree, how: Spectral, method: Method | None, known: Any = How
) -> Set:
    """Matrices whose largest singular value is at most `max_norm`.

    Args:
        max_norm: the limit.
        how: one of the strings of `known`.
        method: how singular values are found; `None` to choose by the device.
        known: a `Literal`.
    """
    _validate.limits(max_norm, "max_norm", scalar=True)
    _validate.choice(how, known, "how")
    if method is not None:
        _validate.choice(method, Method, "method")

    def land(weights: Flat, dtypes: list[Any], count: jax.Array, units: Measure) -> list[Landing]:
        landed = []
        limits = weights.spread(at_step(max_norm, count), "max_norm")
        axes = zip(units.groups(weights), stacks.axes(units.stacked, weights), strict=True)
        leaves = zip(weights.arrays, dtypes, limits, axes, strict=True)
        for i, (x, dtype, c, (group, stack)) in enumerate(leaves):
            order, shape = _matrix(x.shape, group.axes or (), stack)
            if not order or jnp.iscomplexobj(x) or collectives.varying_axes(x):
                raise ValueError(
                    f"the leaf {weights.path(i)}, of shape {x.shape} and dtype {x.dtype}, must be "
                    "a real matrix that is whole on every device, with an axis of inputs and one "
                    "of outputs; exclude it, in a transformation by mask="
                )
            c, whole = _limit(c, x.dtype), collectives.gathered(x)
            c = jnp.maximum(c, jnp.zeros_like(c))
            matrices = whole.transpose(order).reshape(shape)
            keep, value, largest = spectral.bounded(matrices, c, dtype, how, method)
            value = value.reshape([x.shape[a] for a in order]).transpose(np.argsort(order))
            each = [n if a == stack else 1 for a, n in enumerate(x.shape)]
            keep, norm = keep.reshape(each), Norm(*(n.reshape(each) for n in largest))
            over, one = ~keep, jnp.ones_like(norm.value)
            ratio = jnp.where(over, Norm(c, 1 / norm.unit).number, one)  # c / sigma_1
            ratio = ratio / jnp.where(over, norm.value, one)
            factor = ratio
            if how == "soft":
                factor = jnp.where(over, ratio / hypot(ratio, one), one)
                over = over & (ratio < 1)
            scale = Scale(over, jnp.isfinite(norm.value), factor, Factors(one, factor))
            landed.append(Landing(keep, value, c, norm, scale))
        return landed

    return land


def _matrix(
    shape: tuple[int, ...], inputs: tuple[int, ...], stack: int | None
) -> tuple[list[int], tuple[int, int, int]]:
    """The order of axes, and the shape, that make a leaf matrices (matrices, inputs, outputs).

    The order is empty for a leaf without inputs or outputs.
    """
    outputs = [a for a in range(len(shape)) if a not in inputs and a != stack]
    stacked = [] if stack is None else [stack]
    order = [*stacked, *inputs, *outputs] if inputs and outputs else []
    rows, columns, count = (
        math.prod(shape[a] for a in part) for part in (inputs, outputs, stacked)
    )
    return order, (count, rows, columns)
