r"""Norms of groups of arrays, from sums of powers.

Sums are accumulated in at least float32. Where powers overflow or underflow, a branch that is
otherwise not taken sums them again with the arrays rescaled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip._numerics import collectives, joining, total_order
from jaxclip._numerics.collectives import MeshAxes
from jaxclip._numerics.joining import Table
from jaxclip._numerics.scaled_float import (
    Norm,
    accumulator,
    in_unit,
    opaque,
    power_of_two_near,
    read_apart,
    reciprocal,
    times,
    widened,
)

# Rescaling by 2**k or 2**-k keeps the squares, and sums of up to 2**37 of them, in range.
_RESCALE = {4: 96, 8: 700}  # by bytes of the accumulator
_SUMMED = 2**37
_ROOT_LAST = (1, 2)  # powers whose root follows the branches
_SMALL = 4096  # elements of arrays that are stacked before they are rescaled

Arrays = tuple[jax.Array, ...]


class Kind(NamedTuple):
    """The norm of a group. Static: it decides which program is compiled.

    Attributes:
        power: p, with 1 <= p <= inf.
        axes: the axes reduced in the group's only array, which stay with size 1; `None` to reduce
            all arrays of the group to a scalar.
        mesh: the mesh axes over which each array is summed; `None` outside of meshes.
        elements: a divisor of the sum before the root, for p = 2.
    """

    power: float
    axes: tuple[int, ...] | None
    mesh: tuple[MeshAxes, ...] | None = None
    elements: int = 1


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
@functools.partial(jax.jit, static_argnums=1, inline=True)
def norms(groups: tuple[Arrays, ...], kinds: tuple[Kind, ...]) -> list[Norm]:
    """The norms of groups of arrays, with one rarely taken branch for all of them.

    Args:
        groups: floating arrays of any dtypes; complex ones count by magnitude. No group is empty.
        kinds: one for each group.

    Returns:
        The vectors of `table(groups, kinds)`, whose column is for each group a scalar in the
        accumulator's dtype, or an array if its kind has axes. The derivative is 0 where the norm
        is 0 or not finite.
    """
    every = tuple(dict.fromkeys([a for k in kinds if k.mesh for a in collectives.union(k.mesh)]))
    found: list[Any] = [None] * len(groups)
    sums: dict[Any, dict[int, _Sum]] = {}
    for i, (group, kind) in enumerate(zip(groups, kinds, strict=True)):
        arrays = tuple(map(read_apart, group))
        if math.isinf(kind.power):
            found[i] = _peak(arrays, kind)
            continue
        total = _Sum(arrays, kind, every, _power_sum(arrays, kind, None, every))
        if _is_always_exact(total):
            found[i] = Norm(_root(total.value, kind, kind.elements), jnp.ones_like(total.value))
            continue
        # Devices that differ in a sum take branches of their own.
        varying = () if kind.mesh is None else collectives.varying_axes(total.value)
        sums.setdefault((varying, kind.power), {})[i] = total
    for alike in sums.values():
        own, vectors = _exact_norms(list(alike.values()))
        if len(alike) == len(groups):
            return vectors
        for i, norm in zip(alike, own.arrays(vectors), strict=True):
            found[i] = norm
    return table(groups, kinds).vectors(found)


def table(groups: Sequence[Arrays], kinds: Sequence[Kind]) -> Table:
    """The table of the norms of groups of arrays."""
    like = []
    for arrays, (_, axes, *_) in zip(groups, kinds, strict=True):
        shape = () if axes is None else arrays[0].shape
        kept = tuple([1 if d in (axes or ()) else n for d, n in enumerate(shape)])
        like.append(jax.ShapeDtypeStruct(kept, accumulator(*arrays)))
    return Table(like)


class _Sum(NamedTuple):
    """The plain sum of the powers of some arrays."""

    arrays: Arrays
    kind: Kind
    every: MeshAxes  # the mesh axes of all sums
    value: jax.Array


def _exact_norms(sums: list[_Sum]) -> tuple[Table, list[Norm]]:
    """A table of norms; where a plain sum overflowed or underflowed, of rescaled arrays.

    All sums are of one power.
    """
    table, root_last = Table([s.value for s in sums]), sums[0].kind.power in _ROOT_LAST
    values = table.vectors([s.value for s in sums])
    exact = list(map(_is_exact, values, table.vectors(_least(sums))))
    counts = table.vectors([float(s.kind.elements) for s in sums])

    def rooted(vectors: list[jax.Array]) -> list[jax.Array]:
        return [_root(x, sums[0].kind, n) for x, n in zip(vectors, counts, strict=True)]

    def plain() -> list[Norm]:
        return [Norm(x, jnp.ones_like(x)) for x in (values if root_last else rooted(values))]

    units = list(map(_unit, values, exact))
    down = list(map(reciprocal, units))

    def rescaled() -> list[Norm]:
        if not root_last:
            return table.vectors([_relative_to_peak(s.arrays, s.kind, s.every) for s in sums])
        pairs = zip(sums, table.arrays(down), strict=True)
        again = [_power_sum(*_stacked(s.arrays, s.kind), d, s.every) for s, d in pairs]
        return list(map(Norm, table.vectors(again), units))

    every = joining.joined([jnp.all(e) if e.ndim else e for e in exact], jnp.all)
    found = jax.lax.cond(every, plain, rescaled)
    if root_last:
        roots = rooted([n.value for n in found])
        found = [Norm(x, n.unit) for x, n in zip(roots, found, strict=True)]
    return table, found


def _unit(value: jax.Array, exact: jax.Array) -> jax.Array:
    """The unit that keeps a sum in range: 1 where it is exact."""
    k = _RESCALE[value.dtype.itemsize]
    unit = jax.lax.select(value < 1, jnp.full_like(value, 2.0**-k), jnp.full_like(value, 2.0**k))
    return jax.lax.select(exact, jnp.ones_like(value), unit)


def _least(sums: list[_Sum]) -> list[Any]:
    """For each sum the least value that is exact."""
    counts = [0 if s.kind.power == 1 else min(_elements(s), _SUMMED) for s in sums]
    infos = [jnp.finfo(s.value.dtype) for s in sums]
    return [n * (float(i.tiny) / float(i.eps)) for n, i in zip(counts, infos, strict=True)]


def _is_exact(value: jax.Array, least: Any) -> jax.Array:
    """Where no power that matters has overflowed or underflowed."""
    most = jnp.asarray(jnp.finfo(value.dtype).max, value.dtype)
    lowest = jnp.broadcast_to(jnp.asarray(least, value.dtype), value.shape)
    return value == jax.lax.clamp(lowest, value, most)


def _is_always_exact(total: _Sum) -> bool:
    """Whether no power of any finite array of these dtypes can overflow or underflow."""
    wide, power = jnp.finfo(total.value.dtype), total.kind.power
    elements = math.log2(max(_elements(total), 1))
    for x in total.arrays:
        info = jnp.finfo(x.dtype)
        smallest, largest = float(info.smallest_subnormal), float(info.max)
        if math.log2(largest) * power + elements >= wide.maxexp:
            return False
        if math.log2(smallest) * power < wide.minexp:
            return False
    return True


def _elements(total: _Sum) -> int:
    """The number of elements on all devices."""
    mesh = total.kind.mesh
    shards = [1] * len(total.arrays) if mesh is None else map(collectives.shards, mesh)
    return sum([x.size * n for x, n in zip(total.arrays, shards, strict=True)])


def _stacked(arrays: Arrays, kind: Kind) -> tuple[Arrays, Kind]:
    """Small arrays of one type stacked to one array, which compiles faster."""
    if len(arrays) == 1:
        return arrays, kind
    mesh = kind.mesh or ((),) * len(arrays)
    groups: dict[Any, list[jax.Array]] = {}
    for i, (x, axes) in enumerate(zip(arrays, mesh, strict=True)):
        groups.setdefault((jax.typeof(x), axes, i if x.size > _SMALL else None), []).append(x)
    alike = tuple([jnp.stack(g) if len(g) > 1 else g[0] for g in groups.values()])
    return alike, kind._replace(mesh=kind.mesh and tuple([axes for _, axes, _ in groups]))


def _relative_to_peak(arrays: Arrays, kind: Kind, every: MeshAxes) -> Norm:
    """The norm and its unit, by powers of elements divided by the largest magnitude."""
    peak = _peak(arrays, kind)
    unit = power_of_two_near(peak.value * peak.unit)
    largest = peak.value * (peak.unit / unit)
    divisor = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    arrays = tuple([jnp.abs(in_unit(x, unit)) / divisor for x in arrays])
    return Norm(largest * _root(_power_sum(arrays, kind, None, every), kind), unit)


def _power_sum(arrays: Arrays, kind: Kind, scale: jax.Array | None, every: MeshAxes) -> jax.Array:
    dtype = accumulator(*arrays)
    parts = [reduced(_raised(x, dtype, scale, kind.power), kind.axes) for x in arrays]
    return joining.sum_of(parts, kind.mesh, every)


def _peak(arrays: Arrays, kind: Kind) -> Norm:
    """The largest magnitude; NaN if an element is NaN."""
    dtype = accumulator(*arrays)
    # The magnitude of a complex number may be up to sqrt(2) times the largest float.
    unit = 2.0 if any(map(jnp.iscomplexobj, arrays)) else 1.0
    scale = jnp.asarray(1 / unit, dtype)
    sizes = [jnp.abs(times(widened(x, dtype), scale) if unit > 1 else x) for x in arrays]
    parts = [total_order.magnitude(x.astype(dtype), kind.axes) for x in sizes]
    most = joining.largest_of(parts, kind.mesh)
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


def _root(total: jax.Array, kind: Kind, elements: Any = 1) -> jax.Array:
    """The norm from the sum of powers, or for p = 2 from their mean over some elements."""
    if kind.power == 1:
        return total
    if kind.power == 2:
        mean = isinstance(elements, jax.Array) or elements != 1
        return jnp.sqrt(total / jnp.asarray(elements, total.dtype) if mean else total)
    power = jnp.asarray(kind.power, total.dtype)
    root, good = total ** (1 / power), (total > 0) & jnp.isfinite(total)
    # One Newton step, since the reciprocal of the power is rounded.
    slope = _raised(jnp.where(good, root, jnp.ones_like(root)), root.dtype, None, kind.power - 1)
    return jnp.where(good, root - (root - total / slope) / power, root)


@norms.defjvp
def _norms_jvp(kinds: tuple[Kind, ...], primals: Any, tangents: Any) -> Any:
    (groups,), (dots,) = primals, tangents
    out, own = norms(groups, kinds), table(groups, kinds)
    each = zip(groups, dots, own.arrays(out), kinds, strict=True)
    return out, own.vectors([_tangent(*one) for one in each])


def _tangent(arrays: Arrays, dots: Arrays, out: Norm, kind: Kind) -> Norm:
    """Dn = sum of slope * dx; 0 where n is 0 or infinite."""
    good = (out.value > 0) & jnp.isfinite(out.value)
    value = jnp.where(good, out.value, jnp.ones_like(out.value))
    unit = jnp.where(good, out.unit, jnp.ones_like(out.unit))
    slopes = [_slope(in_unit(x, unit), value, kind.power) for x in arrays]
    pairs = zip(slopes, dots, strict=True)
    terms = [reduced(jnp.real(jnp.conj(s) * in_unit(dx, unit)), kind.axes) for s, dx in pairs]
    change = joining.sum_of(terms, kind.mesh) / jnp.asarray(kind.elements, value.dtype)
    if math.isinf(kind.power):  # the elements of largest magnitude share the derivative
        ties = [reduced(jnp.abs(slope), kind.axes) for slope in slopes]
        change = change / jnp.maximum(joining.sum_of(ties, kind.mesh), 1)
    change = jnp.where(good, change, jnp.zeros_like(change))
    return Norm(change, jnp.zeros_like(out.unit))


def _slope(x: jax.Array, value: jax.Array, power: float) -> jax.Array:
    """The derivative (|x| / n)^(p-1) sign(x) of the norm n by one element."""
    if power == 2:
        return times(x, 1 / value)
    size, sign = jnp.abs(x), jnp.sign(x)
    if power == 1:
        return sign
    if math.isinf(power):
        return times(sign, (size == value).astype(size.dtype))
    return times(sign, (size / value) ** jnp.asarray(power - 1, size.dtype))
