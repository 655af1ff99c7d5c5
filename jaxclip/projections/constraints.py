r"""Sets that weights are projected onto: which weights are inside, and where the others land.

The transformations and the functions share them, validation included. Nothing here knows updates or
states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.flat_tree import Flat, at_step
from jaxclip._core.measure import Measure
from jaxclip._numerics import collectives, spectral
from jaxclip._numerics.scaled_float import Norm, Scale, apply, quotient
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


class Leaf(NamedTuple):
    """One leaf of weights.

    Attributes:
        array: the weights before the projection, in at least float32.
        path: their key path, for errors.
        dtype: the dtype that they are stored in.
        at: evaluates an argument, a prefix tree of numbers and schedules, for this leaf.
        norm: returns the norms of its units.
    """

    array: jax.Array
    path: str
    dtype: Any
    at: Callable[[Any, str], Any]
    norm: Callable[[], Norm]


Set = Callable[[Leaf], Landing]


def norms_between(
    low: LimitTree, high: LimitTree, names: tuple[str, str], rate: ArrayLike = 1.0
) -> Set:
    """Units whose norm is between two bounds; `None` for no bound."""
    _validate.limits(low, names[0], scalar=True, finite=True)
    _validate.limits(high, names[1], scalar=True)
    _validate.bounds(low, high, names)
    _validate.between(rate, 0, 1, "rate")

    def land(leaf: Leaf) -> Landing:
        norm = leaf.norm()
        least, most, share = (
            jnp.broadcast_to(
                _validate.number(default if x is None else x).astype(norm.value.dtype),
                norm.value.shape,
            )
            for x, default in (
                (leaf.at(low, names[0]), 0.0),
                (leaf.at(high, names[1]), jnp.inf),
                (leaf.at(rate, "rate"), 1.0),
            )
        )
        scale = _between(norm, least, most, share, leaf.dtype)
        return Landing(~scale.over, apply(leaf.array, scale), most, norm, scale)

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

    def land(leaf: Leaf) -> Landing:
        keep, value = jnp.ones(leaf.array.shape, bool), leaf.array
        if jnp.iscomplexobj(value):
            raise ValueError(
                f"the leaf {leaf.path}, of dtype {value.dtype}, cannot be bounded, since complex "
                "numbers have no order; exclude it, in a transformation by mask="
            )
        largest = jnp.zeros((), value.dtype)
        sides = ((low, names[0], jnp.less, -jnp.inf), (high, names[1], jnp.greater, jnp.inf))
        for bound, name, beyond, none in sides:
            limit = leaf.at(bound, name)
            limit = none if limit is None else limit
            limit = _validate.fitted(limit, value.shape, name, f"the leaf {leaf.path}")
            limit = limit.astype(leaf.dtype).astype(value.dtype)  # a number of the leaf's dtype
            outside = beyond(value, limit)
            keep, value = keep & ~outside, jnp.where(outside, limit, value)
            largest = jnp.maximum(largest, jnp.max(jnp.abs(limit), initial=0))
        return Landing(keep, value, largest)

    return land


def singular_values(max_norm: LimitTree, how: How, method: Method | None) -> Set:
    """Matrices whose largest singular value is at most `max_norm`."""
    _validate.limits(max_norm, "max_norm", scalar=True)
    _validate.choice(how, How, "how")
    if method is not None:
        _validate.choice(method, Method, "method")

    def land(leaf: Leaf) -> Landing:
        x = leaf.array
        if x.ndim < 2 or jnp.iscomplexobj(x) or collectives.varying_axes(x):
            raise ValueError(
                f"the leaf {leaf.path}, of shape {x.shape} and dtype {x.dtype}, must be a real "
                "matrix that is whole on every device; exclude it, in a transformation by mask="
            )
        c = leaf.at(max_norm, "max_norm")
        c = jnp.maximum(_validate.number(jnp.inf if c is None else c).astype(x.dtype), 0)
        whole = collectives.gathered(x)
        keep, value, largest = spectral.bounded(whole, c, leaf.dtype, how, method)
        one = jnp.ones_like(largest)
        factor = c / jnp.where(keep, one, largest)
        scale = Scale(~keep, jnp.isfinite(largest), jnp.where(keep, one, factor), one, factor)
        return Landing(keep, collectives.scattered(value, x), c, Norm(largest, one), scale)

    return land


def landings(
    weights: Flat, dtypes: list[Any], count: jax.Array, land: Set, units: Measure
) -> list[Landing]:
    """The projection of each floating leaf of a tree.

    Args:
        weights: the tree, in at least float32.
        dtypes: the dtypes that its floating leaves are stored in.
        count: the number of projections before.
        land: the set.
        units: measures the units.
    """
    measured = functools.cache(lambda: units.norms(weights))

    def leaf(i: int, array: jax.Array) -> Leaf:
        def at(value: Any, name: str) -> Any:
            return weights.spread(at_step(value, count), name)[i]

        return Leaf(array, weights.path(i), dtypes[i], at, lambda: measured()[i])

    return [land(leaf(i, array)) for i, array in enumerate(weights.arrays)]
