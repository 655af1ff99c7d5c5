"""Norms of groups of arrays, from the sums of their elements' powers.

The whole difficulty of norms is in this file: sums are taken in at least float32; where powers
overflow or underflow, the sum is taken again with the arrays rescaled; and where the norm itself
overflows, it is still known, as a value times a unit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import total_order as _largest
from jaxclip._numerics.collectives import Axes
from jaxclip._numerics.scaled_float import (
    Norm,
    accumulator,
    in_halves,
    in_unit,
    magnitude,
    of,
    times,
    widened,
)

# Rescaling by 2**k or 2**-k keeps the squares, and sums of up to 2**37 of them, in range.
_RESCALE = {4: 96, 8: 700}  # by bytes of the accumulator
_SUMMED = 2**37
_SMALL = 4096  # elements of arrays that are stacked when they are measured again


class Kind(NamedTuple):
    """What is summed, over what. Static: one kind, one program."""

    power: float
    reduced: tuple[tuple[int, ...] | None, ...]  # per array; `None` for all axes, to a scalar
    mesh: tuple[Axes, ...]  # per array
    elements: int = 1  # what the sum is divided by before the root; only for power 2


@functools.partial(jax.jit, static_argnums=1, inline=True)
def measure(groups: tuple[tuple[jax.Array, ...], ...], kinds: tuple[Kind, ...]) -> list[Norm]:
    """The norm of each group of arrays, with one branch for all of them."""
    # A norm and the scaling of the same leaf in one program would share the conversion of a
    # bfloat16 leaf to float32, and XLA then writes that out in full. The barrier keeps the two
    # reads apart; on float32 it costs nothing.
    groups = tuple(tuple(map(jax.lax.optimization_barrier, arrays)) for arrays in groups)
    every = _mesh.union([names for kind in kinds for names in kind.mesh])
    found: dict[int, Norm] = {}
    sums: dict[Axes, dict[int, _Sum]] = {}
    for i, (arrays, kind) in enumerate(zip(groups, kinds, strict=True)):
        if math.isinf(kind.power):
            found[i] = _peak(arrays, kind)
            continue
        total = _Sum(arrays, kind, every, _power_sum(arrays, kind, None, every))
        if total.is_always_safe:
            found[i] = total.plain()
        else:  # devices that differ in a sum take branches of their own
            sums.setdefault(_mesh.varying_axes(total.value), {})[i] = total
    for alike in sums.values():
        found |= zip(alike, _plain_or_rescued(list(alike.values())), strict=True)
    return [found[i] for i in range(len(groups))]


class _Sum(NamedTuple):
    """The plain sum of some arrays' powers, and what it is of."""

    arrays: tuple[jax.Array, ...]
    kind: Kind
    every: Axes  # the mesh axes of all sums
    value: jax.Array

    @property
    def is_safe(self) -> jax.Array:
        """Where nothing that counts has overflowed or underflowed."""
        smallest = _smallest_exact(self.arrays, self.kind, self.value.dtype)
        return (self.value >= smallest) & (self.value < jnp.inf)

    @property
    def is_always_safe(self) -> bool:
        """Whether no powers of such elements, and no sum of them, can overflow or underflow."""
        kinds, wide = [jnp.finfo(x.dtype) for x in self.arrays], jnp.finfo(self.value.dtype)
        power, elements = self.kind.power, _elements(self.arrays, self.kind)
        largest = max(float(kind.max) for kind in kinds)
        smallest = min(float(kind.smallest_subnormal) for kind in kinds)
        if math.log2(largest) * power + math.log2(max(elements, 1)) >= wide.maxexp:
            return False
        return math.log2(smallest) * power >= wide.minexp

    def plain(self) -> Norm:
        """The norm, if the sum is safe."""
        return Norm(_root(self.value, self.kind), jnp.ones_like(self.value))

    def rescued(self) -> Norm:
        """The norm by the sum of rescaled elements where the plain one is not safe."""
        arrays = _stacked(self.arrays, self.kind)
        if self.kind.power not in (1, 2):
            return _scaled_by_peak(*arrays, self.every)
        safe, one = self.is_safe, jnp.ones_like(self.value)
        k = _RESCALE[self.value.dtype.itemsize]
        up, down = _power(k, self.value), _power(-k, self.value)
        scale = jnp.where(safe, one, jnp.where(self.value < 1, up, down))
        unit = jnp.where(safe, one, jnp.where(self.value < 1, down, up))
        return Norm(_root(_power_sum(*arrays, scale, self.every), self.kind), unit)


def _plain_or_rescued(sums: list[_Sum]) -> list[Norm]:
    """Norms for which a program has one branch, and that is not taken as a rule.

    Only there are the arrays read again, all of them.
    """
    safe = _mesh.together([jnp.all(s.is_safe) for s in sums], jnp.all)
    return jax.lax.cond(
        safe, lambda: [sum.plain() for sum in sums], lambda: [sum.rescued() for sum in sums]
    )


def _stacked(arrays: tuple[jax.Array, ...], kind: Kind) -> tuple[tuple[jax.Array, ...], Kind]:
    """Small arrays of one type stacked to one array, which XLA compiles faster."""
    if len(arrays) == 1:
        return arrays, kind
    groups: dict[Any, list[jax.Array]] = {}
    for i, (x, names) in enumerate(zip(arrays, kind.mesh, strict=True)):
        alone = i if x.size > _SMALL else None
        groups.setdefault((jax.typeof(x), names, alone), []).append(x)
    mesh = tuple(names for _, names, _ in groups)
    joined = tuple(jnp.stack(g) if len(g) > 1 else g[0] for g in groups.values())
    return joined, kind._replace(reduced=(None,) * len(mesh), mesh=mesh)


def _smallest_exact(arrays: tuple[jax.Array, ...], kind: Kind, dtype: Any) -> jax.Array:
    """The sum of powers below which powers that underflowed could be missed in it."""
    info = jnp.finfo(dtype)
    elements = 0 if kind.power == 1 else min(_elements(arrays, kind), _SUMMED)
    return jnp.asarray(elements * float(info.tiny) / float(info.eps), dtype)


def _elements(arrays: tuple[jax.Array, ...], kind: Kind) -> int:
    """How many elements there are on all devices."""
    return sum(x.size * _mesh.shards(m) for x, m in zip(arrays, kind.mesh, strict=True))


def _scaled_by_peak(arrays: tuple[jax.Array, ...], kind: Kind, every: Axes) -> Norm:
    """The norm by powers of elements relative to the largest one, which is looked for first."""
    peak, spare = _peak(arrays, kind)
    k = _RESCALE[peak.dtype.itemsize]
    small, large = peak < 2.0 ** (-k // 2), peak > 2.0 ** (k // 2)
    unit = jnp.where(large, _power(k, peak), _power(0, peak))
    unit = jnp.where(small & (peak > 0), _power(-k, peak), unit)
    largest = peak / unit * spare
    divisor = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    arrays = tuple(jnp.abs(in_unit(x, unit)) / divisor for x in arrays)
    return Norm(largest * _root(_power_sum(arrays, kind, None, every), kind), unit)


def _power_sum(
    arrays: tuple[jax.Array, ...], kind: Kind, scale: jax.Array | None, every: Axes
) -> jax.Array:
    dtype = accumulator(*arrays)
    parts = [
        reduced(_raised(x, dtype, scale, kind.power), axes)
        for x, axes in zip(arrays, kind.reduced, strict=True)
    ]
    return _mesh.sum_over(parts, kind.mesh, every if any(kind.mesh) else ())


def _peak(arrays: tuple[jax.Array, ...], kind: Kind) -> Norm:
    """The largest magnitude."""
    dtype = accumulator(*arrays)

    def largest(numbers: Iterable[jax.Array]) -> list[jax.Array]:
        pairs = zip(numbers, kind.reduced, strict=True)
        return [_largest.magnitude(x.astype(dtype), axes) for x, axes in pairs]

    sizes = [magnitude(x) for x in arrays]
    numbers = largest(size.number for size in sizes)
    if not any(jnp.iscomplexobj(x) for x in arrays):
        return of(_mesh.max_over(numbers, kind.mesh))
    halves = largest(size.half for size in sizes)
    parts = [jnp.stack(pair) for pair in zip(numbers, halves, strict=True)]
    return in_halves(*_mesh.max_over(parts, kind.mesh))


def reduced(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    return jnp.sum(x, axis=axes, keepdims=axes is not None)


def _raised(x: jax.Array, dtype: Any, scale: jax.Array | None, power: float) -> jax.Array:
    """`|x * scale| ** power`."""
    if jnp.iscomplexobj(x) and power == 2:
        real, imag = jnp.real(x), jnp.imag(x)
        return _raised(real, dtype, scale, power) + _raised(imag, dtype, scale, power)
    x = widened(x, dtype)
    x = x if scale is None else times(x, scale)
    return _to_the(jnp.abs(x) if power != 2 else x, power)


def _to_the(x: jax.Array, power: float) -> jax.Array:
    """`x ** power` for x >= 0 and a power that need not be one of the dtype's numbers.

    A power rounded to float32 would tell in the result as the logarithm of x times that rounding.
    """
    whole, rest = divmod(power, 1)
    found = jax.lax.integer_pow(x, int(whole))
    return found * x ** jnp.asarray(rest, x.dtype) if rest else found


def _root(total: jax.Array, kind: Kind) -> jax.Array:
    if kind.power == 1:
        return total
    if kind.power == 2:
        one = kind.elements == 1
        return jnp.sqrt(total if one else total / jnp.asarray(kind.elements, total.dtype))
    power = jnp.asarray(kind.power, total.dtype)
    root = total ** (1 / power)
    # One of Newton's steps: the reciprocal of the power is rounded as well.
    nearer = root - (root - total / _to_the(root, kind.power - 1)) / power
    return jnp.where((total > 0) & (total < jnp.inf), nearer, root)


def _power(k: int, like: jax.Array) -> jax.Array:
    return jnp.full_like(like, 2.0**k)
