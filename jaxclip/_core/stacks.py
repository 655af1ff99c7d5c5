"""Leaves that stack layers along an axis for `lax.scan`: that axis, and the names of the slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip import _validate
from jaxclip._core.flat_tree import Flat
from jaxclip._core.types import Stacked
from jaxclip._numerics import collectives

_INDEX = "*"  # the key that stands for the index of a slice


def axes(stacked: Stacked, flat: Flat) -> list[int | None]:
    """The axis along which each floating leaf stacks layers; `None` if it is not stacked."""
    if not callable(stacked):
        return [_axis(stacked, x.ndim) for x in flat.arrays]
    found: list[int | None] = []
    for i, (name, x) in enumerate(zip(flat.names, flat.arrays, strict=True)):
        call = f"stacked({name!r}, leaf)"
        chosen = _validate.stack_axis(stacked(name, x), call)
        axis = _axis(chosen, x.ndim)
        if axis is None and chosen is not None:
            shape = f"shape {x.shape} of the leaf {flat.path(i)}"
            raise ValueError(f"{call} is {chosen}, which is no axis of the {shape}")
        found.append(axis)
    return found


def _axis(axis: int | None, rank: int) -> int | None:
    return axis % rank if axis is not None and -rank <= axis < rank else None


def names(stacked: Stacked, flat: Flat) -> list[str]:
    """The names of the floating leaves, with `*` for the index of a slice where one is stacked.

    It follows the first keys that no unstacked leaf shares, as in `blocks/*/attn/kernel` beside
    `embed/embedding`, but never the last key. If all leaves are stacked, it follows the key that
    all begin with, or comes first.
    """
    leaves = [tuple(name.split("/")) if name else () for name in flat.names]
    pairs = list(zip(leaves, axes(stacked, flat), strict=True))
    shared = {keys[:k] for keys, axis in pairs if axis is None for k in range(len(keys) + 1)}
    if len({keys[:1] for keys in leaves}) == 1:
        shared.add(())
    result: list[str] = []
    for keys, axis in pairs:
        own = [k for k in range(len(keys)) if keys[:k] not in shared]
        place = own[0] if own else max(len(keys) - 1, 0)
        index = () if axis is None else (_INDEX,)
        result.append("/".join((*keys[:place], *index, *keys[place:])))
    return result


def by_slice(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names of leaves and slices, from vectors at the names with a `*`.

    Args:
        values: an array for each of the `names`. The last axis of those of stacked leaves is that
            of the slices.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        keys = name.split("/")
        if _INDEX not in keys or not value.ndim:
            result[name] = value
            continue
        place = keys.index(_INDEX)
        for i, one in enumerate(_unstacked(value)):
            keys[place] = str(i)
            result["/".join(keys)] = one
    return result


def _unstacked(x: Any) -> Any:
    """The slices along the last axis, on the host if the array is there."""
    if isinstance(x, np.ndarray):
        return np.moveaxis(x, -1, 0)
    return jnp.unstack(collectives.gathered(x), axis=-1)
