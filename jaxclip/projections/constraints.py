r"""Sets that weights are projected onto: what of a leaf is inside, and where the rest lands.

Shared by the transformations in `projections` and the functions in `functional`, their arguments'
validation included. Nothing here knows of updates or of states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import _validate as _checks
from jaxclip import norms
from jaxclip._core import flat_tree as _trees
from jaxclip._core.flat_tree import Flat
from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import rescale as _scaling
from jaxclip._numerics import scaled_float as _wide
from jaxclip._numerics import spectral as _spectral
from jaxclip._numerics.rescale import Scale
from jaxclip._numerics.scaled_float import Norm


class Landing(NamedTuple):
    """What a projection makes of one leaf.

    Attributes:
        keep: what is inside the set, broadcastable to the leaf.
        value: where the leaf lands, in at least float32; only looked at where not `keep`.
        limit: how large a norm, or the magnitude of an element, may be.
        norm: the norms that were held against it; `None` for a set of single elements.
        scale: what they were multiplied by.
    """

    keep: jax.Array
    value: jax.Array
    limit: Any
    norm: Any = None
    scale: Any = None


class Leaf(NamedTuple):
    """One leaf of weights, in at least float32, and how it is stored.

    Attributes:
        array: the weights, before the projection.
        where: their key path, for messages.
        dtype: the dtype that they are stored in.
        count: how many projections there were before, an int32 scalar.
        at: evaluates an argument, a prefix tree of numbers and schedules, for this leaf.
        norm: returns the norms of its units.
    """

    array: jax.Array
    where: str
    dtype: Any
    at: Callable[[Any, str], Any]
    norm: Callable[[], Norm]


Set = Callable[[Leaf], Landing]


def norms_between(low: Any, high: Any, names: tuple[str, str], rate: Any = 1.0) -> Set:
    """Units whose norm is between two bounds; `None` for no bound."""
    _checks.threshold_tree(low, names[0], scalar=True, finite=True)
    _checks.threshold_tree(high, names[1], scalar=True)
    _checks.bounds(low, high, names)
    _checks.between(0, 1, rate=rate)

    def land(leaf: Leaf) -> Landing:
        least, most = leaf.at(low, names[0]), leaf.at(high, names[1])
        least = 0.0 if least is None else least
        most = jnp.inf if most is None else most
        norm = leaf.norm()
        scale = _scaling.between(norm, least, most, leaf.dtype, leaf.at(rate, "rate"))
        limit = _checks.number(most).astype(norm.value.dtype)
        return Landing(scale.keep, _scaling.apply(leaf.array, scale), limit, norm, scale)

    return land


def elements_between(low: Any, high: Any, names: tuple[str, str]) -> Set:
    """Elements between two bounds; `None` for no bound."""
    _checks.bounds(low, high, names)

    def land(leaf: Leaf) -> Landing:
        keep, value = jnp.ones(leaf.array.shape, bool), leaf.array
        if jnp.iscomplexobj(value):
            raise ValueError(
                f"the leaf {leaf.where}, of dtype {value.dtype}, cannot be bounded: complex "
                "numbers have no order; leave it out, in a transformation by mask="
            )
        largest = jnp.zeros((), value.dtype)
        sides = ((low, names[0], jnp.less, -jnp.inf), (high, names[1], jnp.greater, jnp.inf))
        for bound, name, beyond, none in sides:
            limit = leaf.at(bound, name)
            limit = none if limit is None else limit
            limit = _checks.fitted(limit, value.shape, name, f"the leaf {leaf.where}")
            limit = limit.astype(leaf.dtype).astype(value.dtype)  # so that it can be reached
            outside = beyond(value, limit)
            keep, value = keep & ~outside, jnp.where(outside, limit, value)
            largest = jnp.maximum(largest, jnp.max(jnp.abs(limit), initial=0))
        return Landing(keep, value, largest)

    return land


def spectral(limit: Any, how: str, method: str | None) -> Set:
    """Matrices whose largest singular value is at most `limit`, called `max_norm` in messages."""
    _checks.threshold_tree(limit, "max_norm", scalar=True)
    _checks.choice(_spectral.HOW, how=how)
    if method is not None:
        _checks.choice(_spectral.METHODS, method=method)

    def land(leaf: Leaf) -> Landing:
        x = leaf.array
        if x.ndim < 2 or jnp.iscomplexobj(x) or _mesh.varying_axes(x):
            raise ValueError(
                f"the leaf {leaf.where}, of shape {x.shape} and dtype {x.dtype}, must be a real "
                "matrix that is whole on every device; leave it out, in a transformation by mask="
            )
        c = leaf.at(limit, "max_norm")
        c = jnp.maximum(_checks.number(jnp.inf if c is None else c).astype(x.dtype), 0)
        keep, value, largest = _spectral.bounded(_mesh.gathered(x), c, leaf.dtype, how, method)
        one = jnp.ones_like(largest)
        scale = Scale(keep, one, c / jnp.where(keep, one, largest), jnp.zeros_like(one))
        return Landing(keep, _mesh.scattered(value, x), c, _wide.of(largest), scale)

    return land


def landings(
    weights: Flat, dtypes: list[Any], count: Any, land: Set, axis: Any = None, axis_name: Any = None
) -> list[Landing]:
    """Where each floating leaf of a tree lands.

    Args:
        weights: the tree, in at least float32.
        dtypes: what its floating leaves are stored in.
        count: how many projections there were before.
        land: the set.
        axis: the axes that a unit's norm reduces.
        axis_name: the mesh axes over which a unit is spread.
    """
    measured = functools.cache(lambda: norms.measure(weights, "unit", 2, axis, axis_name))

    def leaf(i: int, array: jax.Array) -> Leaf:
        def at(value: Any, name: str) -> Any:
            return weights.spread(_trees.at(value, count), name)[i]

        return Leaf(array, weights.at(i), dtypes[i], at, lambda: measured()[i])

    return [land(leaf(i, array)) for i, array in enumerate(weights.arrays)]
