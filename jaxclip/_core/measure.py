"""What a rule measures: a scope and a kind of norm, laid over a tree.

One norm for the whole tree, or one per leaf; where it is told which leaves count. The arithmetic of
norms is in `_power_sums`, what is done with them in `_engine`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import _validate as _checks
from jaxclip import norms
from jaxclip._core import flat_tree as _trees
from jaxclip._core.flat_tree import Flat
from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import scaled_float as _wide
from jaxclip._numerics.rescale import Scale
from jaxclip._numerics.scaled_float import Norm

SCOPES = ("element", "unit", "leaf", "global")


class Gauge(NamedTuple):
    """What is measured: the scope and the kind of norm."""

    scope: str
    ord: float | str
    axis: Any  # a tuple, `None` or a function of a leaf
    axis_name: _mesh.Axes | None
    norm_mask: Any

    def __call__(self, flat: Flat) -> list[Norm]:
        which = None if self.norm_mask is None else chosen(flat, self.norm_mask, "norm_mask")
        return norms.measure(flat, self.scope, self.ord, self.axis, self.axis_name, which)

    @property
    def differing(self) -> _mesh.Axes | None:
        """The mesh axes along which every device has norms of its own, if the user named them."""
        return self.axis_name if self.scope == "element" else None

    def shapes(self, flat: Flat) -> list[tuple[int, ...]]:
        if self.scope == "global":
            return [()]
        if self.scope == "leaf":
            return [()] * len(flat.where)
        axes = _trees.reduced_axes(flat, self.scope, self.axis)
        return [
            tuple(1 if i in reduced else n for i, n in enumerate(x.shape))
            for x, reduced in zip(flat.arrays, axes, strict=True)
        ]

    def zeros(self, flat: Flat) -> list[jax.Array]:
        """Zeros of the types of the norms."""
        arrays = flat.arrays
        axes = _trees.reduced_axes(flat, self.scope, self.axis)
        if self.scope == "global":
            own = [(x, a) for x, a in zip(arrays, axes, strict=True) if self._differs(x)]
            dtype = _wide.accumulator(*arrays)
            parts = [self._zeros(x, a, (), dtype) for x, a in own]
            return [functools.reduce(jnp.add, parts, jnp.zeros((), dtype))]
        every = zip(arrays, axes, self.shapes(flat), strict=True)
        return [self._zeros(x, a, shape, _wide.accumulator(x)) for x, a, shape in every]

    def _summed(self, x: jax.Array) -> _mesh.Axes:
        """The mesh axes over which the norms of a leaf are reduced, as far as its type says."""
        if self.scope == "element":
            return ()
        return _mesh.varying_axes(x) if self.axis_name is None else self.axis_name

    def _differs(self, x: jax.Array) -> bool:
        """Whether the norm of a leaf is one of each device."""
        return any(name not in self._summed(x) for name in _mesh.varying_axes(x))

    def _zeros(self, x: jax.Array, axes: tuple[int, ...], shape: Any, dtype: Any) -> jax.Array:
        return _mesh.zeros_like_sum(x, axes, self._summed(x), shape, dtype)

    def of_tree(self, flat: Flat, numbers: list[jax.Array]) -> jax.Array:
        """The norm of everything together, non-finite norms left out; the largest float at most."""
        if isinstance(self.ord, str) and self.scope != "global":
            # Means cannot be joined without the sizes: what is finite is measured once more.
            pairs = zip(flat.arrays, numbers, strict=True)
            rest = flat.rebuild(
                [jnp.where(jnp.isfinite(n), x, jnp.zeros_like(x)) for x, n in pairs]
            )
            (whole,) = self._replace(scope="global", axis=None)(_trees.flatten(rest))
            numbers = [whole.number]
        numbers = [jnp.where(jnp.isfinite(n), n, jnp.zeros_like(n)) for n in numbers]
        whole = norms.together(numbers, 2.0 if isinstance(self.ord, str) else self.ord)
        return jnp.minimum(whole, jnp.finfo(whole.dtype).max)  # all of them were finite

    def spread(self, flat: Flat, tree: Any, name: str) -> list[Any]:
        return [tree] if self.scope == "global" else flat.spread(tree, name)

    def where(self, flat: Flat) -> list[str]:
        if self.scope == "global":
            return ["the whole tree"]
        return [flat.at(i) for i in range(len(flat.where))]

    def per_leaf(self, flat: Flat, scales: list[Scale]) -> list[Scale]:
        return scales * len(flat.where) if self.scope == "global" else scales

    def given(self, flat: Flat, norm: Any) -> list[Norm]:
        """Norms measured elsewhere."""
        dtype = _wide.accumulator(*flat.arrays)
        what = "a scalar" if self.scope == "global" else "a scalar, or one for each leaf"
        pairs = zip(self.spread(flat, norm, "norm"), self.shapes(flat), strict=True)
        return [given(value, dtype, shape, what) for value, shape in pairs]


def given(norm: Any, dtype: Any, shape: tuple[int, ...] = (), what: str = "a scalar") -> Norm:
    """A norm measured elsewhere, as if measured here: in that dtype and of that shape.

    Args:
        norm: a number or an array that broadcasts to the shape.
        dtype: in which it would be measured.
        shape: of the norms of a leaf.
        what: what it must be, for messages.
    """
    if not _checks.broadcasts(_checks.shape(norm=norm), shape):
        raise ValueError(f"norm={norm!r} must be {what}")
    number = _checks.number(norm).astype(dtype)
    number = number.reshape((1,) * (len(shape) - number.ndim) + number.shape)
    return _wide.of(jnp.broadcast_to(number, shape))


def chosen(flat: Flat, mask: Any, name: str) -> list[bool]:
    """Which leaves a mask selects, a prefix tree of bools or a function to one."""
    # A mask that is a module may be callable as well.
    leaves = jax.tree.leaves(mask)
    asks = callable(mask) and not any(map(_checks.is_bool, leaves))
    values = flat.spread(mask(flat.tree) if asks else mask, name)
    for value in values:
        if not _checks.is_bool(value):
            raise TypeError(f"{name} has the leaf {value!r}; it must hold True and False only")
    return [bool(value) for value in values]
