r"""Norms of groups of arrays, from sums of powers.

Sums are accumulated in at least float32. Where powers overflow or underflow, a branch that is
otherwise not taken sums them again with the arrays rescaled.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxclip._numerics import collectives, total_order
from jaxclip._numerics.collectives import MeshAxes
from jaxclip._numerics.scaled_float import (
    Norm,
    accumulator,
    in_unit,
    opaque,
    power_of_two_near,
    read_apart,
    times,
    widened,
)
from jaxclip._numerics.table import SMALL, STACKED, Table, wrong_number

# Rescaling by 2**k or 2**-k keeps the squares, and sums of up to 2**37 of them, in range.
_RESCALE = {4: 96, 8: 700}  # by bytes of the accumulator
_ROOT_LAST = (1, 2)  # powers whose root follows the branches

Arrays = tuple[jax.Array, ...]
AnyTable: TypeAlias = "Unjoined | Table"
_Sum: TypeAlias = "tuple[Arrays, Kind, jax.Array]"  # the plain sum of the powers of some arrays


class Kind(NamedTuple):
    """The norm of a group. Static: it decides which program is compiled.

    Attributes:
        power: p, with 1 <= p <= inf.
        axes: the axes reduced in the group's only array, which stay with size 1; `None` for all.
        mesh: the mesh axes over which each array is summed; `None` outside of meshes.
        elements: the elements that one norm is of, on all devices.
        mean: whether the sum is divided by them before the root; only for p = 2.
    """

    power: float
    axes: tuple[int, ...] | None
    mesh: tuple[MeshAxes, ...] | None
    elements: int
    mean: bool = False


@functools.partial(jax.jit, static_argnums=1, inline=True)
def norms(groups: tuple[Arrays, ...], kinds: tuple[Kind, ...]) -> list[Norm]:
    """The norms of groups of arrays, with one rarely taken branch for all of them.

    Args:
        groups: floating arrays of any dtypes; complex ones count by magnitude. No group is empty.
        kinds: one for each group.

    Returns:
        The vectors of the table of these groups, whose column is for each group a scalar in the
        accumulator's dtype, or an array if its kind has axes. Differentiate `derivatives.norms`.
    """
    every: MeshAxes = ()
    found: list[Any] = [None] * len(groups)
    sums: dict[Any, dict[int, _Sum]] = {}
    if any(map(operator.attrgetter("mesh"), kinds)):
        every = collectives.union([axes for k in kinds for axes in k.mesh or ()])
    for i, (group, kind) in enumerate(zip(groups, kinds, strict=True)):
        arrays = tuple(map(read_apart, group))
        if math.isinf(kind.power):
            found[i] = _peak(arrays, kind)
            continue
        total = _power_sum(arrays, kind, None, every)
        if _is_always_exact(arrays, kind, total):
            found[i] = Norm(_root(kind, total, kind.elements), jnp.ones_like(total))
            continue
        # Devices that differ in a sum take branches of their own.
        varying = () if kind.mesh is None else collectives.varying_axes(total)
        sums.setdefault((varying, kind.power, kind.mean), {})[i] = arrays, kind, total
    for alike in sums.values():
        own, vectors = _exact_norms(list(alike.values()), every)
        if len(alike) == len(groups):
            return vectors
        for i, norm in zip(alike, own.arrays(vectors), strict=True):
            found[i] = norm
    return table_of(list(map(type_of, groups, kinds))).vectors(found)


def type_of(arrays: Arrays, kind: Kind) -> jax.ShapeDtypeStruct:
    """The shape and the dtype of the norm of a group."""
    shape: tuple[int, ...] = ()
    if kind.axes is not None:
        shape = tuple([1 if d in kind.axes else n for d, n in enumerate(arrays[0].shape)])
    return jax.ShapeDtypeStruct(shape, accumulator(*arrays))


class Unjoined(NamedTuple):
    """The table of one number, or of numbers on a mesh: each is a vector of its own."""

    number: int

    def vectors(self, column: Sequence[Any]) -> list[Any]:
        """As `Table.vectors`."""
        if len(column) != self.number:
            raise wrong_number(column, self.number)
        return list(column)

    arrays = vectors

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
        """As `Table.map`."""
        return list(map(function, *map(self.vectors, columns)))


def table_of(like: Sequence[Any]) -> AnyTable:
    """The table of arrays of these shapes and dtypes."""
    unjoined = len(like) == 1 or not jax.sharding.get_abstract_mesh().empty
    return Unjoined(len(like)) if unjoined else Table(like)


def _exact_norms(sums: list[_Sum], every: MeshAxes) -> tuple[AnyTable, list[Norm]]:
    """A table of norms; where a plain sum overflowed or underflowed, of rescaled arrays.

    All sums are of one power, and all or none of them for means.
    """
    groups, kinds, totals = zip(*sums, strict=True)
    kind, own = kinds[0], table_of(totals)
    values, counts = own.vectors(totals), list(map(operator.attrgetter("elements"), kinds))
    elements = 0 if kind.power == 1 else min(max(counts), 2**37)
    divisors = own.vectors(list(map(float, counts))) if kind.mean else [1] * len(values)
    wrong, scales = zip(*map(functools.partial(_checked, elements), values), strict=True)
    root, root_last = functools.partial(_root, kind), kind.power in _ROOT_LAST

    def plain() -> tuple[list[jax.Array], list[jax.Array]]:
        found = values if root_last else list(map(root, values, divisors))
        return found, list(map(jnp.ones_like, values))

    def rescaled() -> tuple[list[jax.Array], list[jax.Array]]:
        if not root_last:
            peaks = map(functools.partial(_relative_to_peak, every), groups, kinds)
            again = own.vectors(list(peaks))
            return [n.value for n in again], [n.unit for n in again]
        again = map(functools.partial(_scaled_sum, every), groups, kinds, own.arrays(scales))
        return own.vectors(list(again)), list(map(jnp.reciprocal, scales))

    found, units = jax.lax.cond(joined(list(wrong), jnp.logical_or), rescaled, plain)
    if root_last:
        found = list(map(root, found, divisors))
    return own, list(map(Norm, found, units))


def _checked(elements: int, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether some of these sums are wrong, and the scale that each needs: 1 if it is right.

    In a wrong sum, of up to this many elements, powers that matter overflowed or underflowed.
    """
    info, up = jnp.finfo(value.dtype), 2.0 ** _RESCALE[value.dtype.itemsize]
    least = jnp.full_like(value, elements * (float(info.tiny) / float(info.eps)))
    wrong = value != jax.lax.clamp(least, value, jnp.full_like(value, info.max))
    scale = jax.lax.select(value < 1, jnp.full_like(value, up), jnp.full_like(value, 1 / up))
    scale = jax.lax.select(wrong, scale, jnp.ones_like(value))
    return jnp.any(wrong) if wrong.ndim else wrong, scale


def _is_always_exact(arrays: Arrays, kind: Kind, total: jax.Array) -> bool:
    """Whether no power of any finite array of these dtypes can overflow or underflow."""
    wide = jnp.finfo(total.dtype)
    for x in arrays:
        info, elements = jnp.finfo(x.dtype), math.log2(kind.elements)
        if math.log2(float(info.max)) * kind.power + elements >= wide.maxexp:
            return False
        if math.log2(float(info.smallest_subnormal)) * kind.power < wide.minexp:
            return False
    return True


def _scaled_sum(every: MeshAxes, arrays: Arrays, kind: Kind, scale: jax.Array) -> jax.Array:
    """The sum of the powers of scaled arrays; small ones are stacked, which compiles faster."""
    mesh = kind.mesh or ((),) * len(arrays)
    groups: dict[Any, list[jax.Array]] = {}
    for i, (x, axes) in enumerate(zip(arrays, mesh, strict=True)):
        alone = i if x.size > SMALL else None
        groups.setdefault((axes, jax.typeof(x), alone), []).append(x)
    alike, axes_of = list[jax.Array](), list[MeshAxes]()
    for (axes, *_), own in groups.items():
        alike.append(own[0] if len(own) == 1 else jnp.stack(own))
        axes_of.append(axes)
    kind = kind._replace(mesh=kind.mesh and tuple(axes_of))
    return _power_sum(tuple(alike), kind, scale, every)


def _relative_to_peak(every: MeshAxes, arrays: Arrays, kind: Kind) -> Norm:
    """The norm and its unit, by powers of elements divided by the largest magnitude."""
    peak = _peak(arrays, kind)
    # Not beyond these units: a tangent in units of 2**126 would underflow.
    most = 2.0 ** _RESCALE[peak.value.dtype.itemsize]
    size = jnp.nan_to_num(peak.value * peak.unit, nan=1.0)
    unit = power_of_two_near(jnp.clip(size, 1 / most, most))
    largest = peak.value * (peak.unit / unit)
    divisor = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    arrays = tuple([jnp.abs(in_unit(x, unit)) / divisor for x in arrays])
    return Norm(largest * _root(kind, _power_sum(arrays, kind, None, every)), unit)


def _power_sum(arrays: Arrays, kind: Kind, scale: jax.Array | None, every: MeshAxes) -> jax.Array:
    dtype, parts = accumulator(*arrays), []
    for x in arrays:
        parts.append(reduced(_raised(x, dtype, scale, kind.power), kind.axes))
    return sum_of(parts, kind.mesh, every)


def _peak(arrays: Arrays, kind: Kind) -> Norm:
    """The largest magnitude; NaN if an element is NaN."""
    dtype = accumulator(*arrays)
    # The magnitude of a complex number may be up to sqrt(2) times the largest float.
    unit = 2.0 if any(map(jnp.iscomplexobj, arrays)) else 1.0
    scale = jnp.asarray(1 / unit, dtype)
    sizes = [jnp.abs(times(widened(x, dtype), scale) if unit > 1 else x) for x in arrays]
    ranks = [total_order.magnitude_rank(x.astype(dtype), kind.axes) for x in sizes]
    most = largest_of(ranks, kind.mesh, dtype)
    return Norm(most, jnp.full_like(most, unit))


def reduced(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """The sum over some axes, which stay with size 1, or over all of them, to a scalar."""
    return jnp.sum(x, axis=axes, keepdims=axes is not None)


def _raised(x: jax.Array, dtype: Any, scale: jax.Array | None, power: float) -> jax.Array:
    """`|x * scale| ** power`, by an integer power and the rest.

    A power rounded to float32 would cost accuracy in proportion to the logarithm of x.
    """
    if jnp.iscomplexobj(x) and power == 2:
        real, imag = jnp.real(x), jnp.imag(x)
        return _raised(real, dtype, scale, power) + _raised(imag, dtype, scale, power)
    x = widened(x, dtype) if jnp.iscomplexobj(x) else x.astype(dtype)
    x = x if scale is None else opaque(times(x, scale))
    x = x if power == 2 else jnp.abs(x)
    whole, rest = divmod(power, 1)
    found = jax.lax.integer_pow(x, int(whole))
    return found * x ** jnp.asarray(rest, x.dtype) if rest else found


def _root(kind: Kind, total: jax.Array, elements: Any = 1) -> jax.Array:
    """The norm from the sum of powers, or for p = 2 from their mean over some elements."""
    if kind.power == 1:
        return total
    if kind.power == 2:
        return jnp.sqrt(total / jnp.asarray(elements, total.dtype) if kind.mean else total)
    power = jnp.asarray(kind.power, total.dtype)
    root, good = total ** (1 / power), (total > 0) & jnp.isfinite(total)
    # One Newton step, since the reciprocal of the power is rounded.
    slope = _raised(jnp.where(good, root, jnp.ones_like(root)), root.dtype, None, kind.power - 1)
    return jnp.where(good, root - (root - total / slope) / power, root)


def largest_of(ranks: list[jax.Array], mesh: tuple[MeshAxes, ...] | None, dtype: Any) -> jax.Array:
    """The largest float of some arrays of ranks of one shape, each over its mesh axes."""
    most = _over_mesh(ranks, mesh, jnp.maximum, collectives.max_over)
    return total_order.from_rank(most, dtype)


def sum_of(
    parts: list[jax.Array], mesh: tuple[MeshAxes, ...] | None, every: MeshAxes = ()
) -> jax.Array:
    """The sum of some arrays of one shape, each over its mesh axes."""
    if mesh is None:
        return joined(parts, jnp.add)
    return _over_mesh(parts, mesh, jnp.add, lambda sums: collectives.sum_over(sums, every))


def _over_mesh(parts: Any, mesh: Any, join: Any, across: Any) -> jax.Array:
    """Joins the parts of each mesh axes on their device, and then the results across devices."""
    if mesh is None or not any(mesh):
        return joined(parts, join)
    groups: dict[MeshAxes, list[jax.Array]] = {}
    for part, axes in zip(parts, mesh, strict=True):
        groups.setdefault(axes, []).append(part)
    return across({axes: joined(own, join) for axes, own in groups.items()})


def joined(parts: list[jax.Array], join: Any) -> jax.Array:
    """Small arrays of one shape, joined to one.

    Up to 64 are joined one by one. Of more, each 64 are stacked and reduced in one kernel, which
    compiles faster; the barrier keeps XLA from taking the stack apart.
    """
    while len(parts) > STACKED:
        stack = jax.lax.optimization_barrier(jnp.stack(parts[:STACKED]))
        parts = [*parts[STACKED:], join.reduce(stack)]
    return functools.reduce(join, parts)
