r"""Sets that weights are projected onto: which weights are inside, and where the others land.

The transformations and the functions share them, validation included. Nothing here knows updates or
states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.flat_tree import Flat, at_step
from jaxclip._core.measure import Measure
from jaxclip._numerics import collectives, spectral
from jaxclip._numerics.scaled_float import Norm, Scale, apply, broadcast, quotient
from jaxclip._types import How, LimitTree, Method


class Landing(NamedTuple):
    """The projection of one leaf.

    Attributes:
        keep: the weights inside the set, broadcastable to the leaf.
        value: the projected leaf, in at least float32; only used where not `keep`.
        limit: the largest norm, or the largest magnitude of an element, allowed.
        norm: the norms of the units; `None` for a set of single elements.
        scale: the scale of the units.
    """

    keep: jax.Array
    value: jax.Array
    limit: Any
    norm: Any = None
    scale: Any = None


Set = Callable[[Flat, list[Any], jax.Array, Measure], list[Landing]]
"""`land(weights, dtypes, count, units)` returns the projection of each floating leaf.

It is given the weights in at least float32, the dtypes that they are stored in, the number of
projections before, and a measure of units.
"""


def norms_between(
    low: LimitTree, high: LimitTree, names: tuple[str, str], rate: ArrayLike = 1.0
) -> Set:
    """Units whose norm is between two bounds; `None` for no bound."""
    _validate.limits(low, names[0], scalar=True, finite=True)
    _validate.limits(high, names[1], scalar=True)
    _validate.bounds(low, high, names)
    _validate.between(rate, 0, 1, "rate")

    def land(weights: Flat, dtypes: list[Any], count: jax.Array, units: Measure) -> list[Landing]:
        landed = []
        arguments = zip(
            weights.spread(at_step(low, count), names[0]),
            weights.spread(at_step(high, count), names[1]),
            weights.spread(at_step(rate, count), "rate"),
            strict=True,
        )
        leaves = zip(weights.arrays, units.norms(weights), dtypes, arguments, strict=True)
        for x, norm, dtype, (a, b, r) in leaves:
            least, most, share = (
                broadcast(_validate.number(value), norm.value)
                for value in (0.0 if a is None else a, jnp.inf if b is None else b, r)
            )
            scale = _between(norm, least, most, share, dtype)
            landed.append(Landing(~scale.over, apply(x, scale), most, norm, scale))
        return landed

    return land


def _between(norm: Norm, low: jax.Array, high: jax.Array, rate: jax.Array, dtype: Any) -> Scale:
    """The scale that brings norms of weights between `low` and `high`.

    Weights that were projected and stored in `dtype` may be outside by a rounding. They count as
    inside, or they would be scaled again and again. A norm of 0 has no direction and stays 0.
    """
    n, zero = norm.number, jnp.zeros_like(high)
    high = jnp.maximum(high, zero)  # a traced negative limit counts as 0
    # Storing takes half an epsilon; the rest is for the norm and for the arithmetic of landing.
    stored, measured = float(jnp.finfo(dtype).eps), float(jnp.finfo(n.dtype).eps)
    rounding = 4 * measured + (stored / 2 if stored > measured else 0.0)
    inside = (n <= high * (1 + rounding)) & (n >= low * (1 - rounding))
    target = jnp.clip(n, low, high)
    keep = inside | (norm.value == 0) | jnp.isinf(target) | (rate <= 0)
    partly = (rate < 1) & jnp.isfinite(n)
    target = jnp.where(partly, target + (1 - rate) * (n - target), target)
    return quotient(norm, n, target, ~keep)


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
                # As a number of the leaf's dtype, which the leaf can reach.
                _validate.fitted(c, x.shape, name, f"the leaf {weights.path(i)}")
                .astype(dtype)
                .astype(x.dtype)
                for c, name in (
                    (-jnp.inf if lows[i] is None else lows[i], names[0]),
                    (jnp.inf if highs[i] is None else highs[i], names[1]),
                )
            )
            value = jnp.where(x < least, least, jnp.where(x > most, most, x))
            limit = [jnp.max(jnp.abs(c), initial=0) for c in (least, most)]
            landed.append(
                Landing((x >= least) & (x <= most) | jnp.isnan(x), value, jnp.maximum(*limit))
            )
        return landed

    return land


def singular_values(max_norm: LimitTree, how: How, method: Method | None) -> Set:
    """Matrices whose largest singular value is at most `max_norm`."""
    _validate.limits(max_norm, "max_norm", scalar=True)
    _validate.choice(how, How, "how")
    if method is not None:
        _validate.choice(method, Method, "method")

    def land(weights: Flat, dtypes: list[Any], count: jax.Array, units: Measure) -> list[Landing]:
        landed = []
        limits = weights.spread(at_step(max_norm, count), "max_norm")
        for i, (x, dtype, c) in enumerate(zip(weights.arrays, dtypes, limits, strict=True)):
            if x.ndim < 2 or jnp.iscomplexobj(x) or collectives.varying_axes(x):
                raise ValueError(
                    f"the leaf {weights.path(i)}, of shape {x.shape} and dtype {x.dtype}, must be "
                    "a real matrix that is whole on every device; exclude it, in a transformation "
                    "by mask="
                )
            c = _validate.number(jnp.inf if c is None else c).astype(x.dtype)
            c, whole = jnp.maximum(c, jnp.zeros_like(c)), collectives.gathered(x)
            keep, value, largest = spectral.bounded(whole, c, dtype, how, method)
            one = jnp.ones_like(largest)
            factor = jnp.where(keep, one, c / jnp.where(keep, one, largest))
            scale = Scale(~keep, jnp.isfinite(largest), factor, one, factor)
            value = collectives.scattered(value, x)
            landed.append(Landing(keep, value, c, Norm(largest, one), scale))
        return landed

    return land
