"""One norm of a group of arrays: exact, differentiable at zero, reduced over a mesh.

A group is what shares one norm: all leaves of a tree, one leaf, or one leaf with some axes kept.
Here are its derivative and the norms that are known already; how it is computed, whatever overflows
on the way, is in `_power_sums`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import power_sums as _power_sums
from jaxclip._numerics.power_sums import Kind as Kind
from jaxclip._numerics.scaled_float import Norm, in_unit, of, times

_KNOWN: contextvars.ContextVar[tuple[tuple[tuple[jax.Array, ...], Kind, Norm], ...]]
_KNOWN = contextvars.ContextVar("norms that are known", default=())


def norm(arrays: list[jax.Array], kind: Kind) -> Norm:
    """The `kind.power`-norm of the arrays together.

    Args:
        arrays: floating or complex arrays, of any dtypes; complex ones count by magnitude.
        kind: the power p (1 <= p <= inf), the axes to reduce per array and the mesh axes.

    Returns:
        A `Norm` in the accumulator's dtype: a scalar if `kind.reduced` is `None` for each, else of
        the one array's shape with the reduced axes kept at size 1. 0 for no elements.
    """
    return norms([arrays], [kind])[0]


def norms(groups: list[list[jax.Array]], kinds: list[Kind]) -> list[Norm]:
    """The norm of each group of arrays, as `norm` has it, with one branch for all of them."""
    found = [_without_measuring(arrays, kind) for arrays, kind in zip(groups, kinds, strict=True)]
    missing = [i for i, known_norm in enumerate(found) if known_norm is None]
    if missing:
        arrays, theirs = [tuple(groups[i]) for i in missing], [kinds[i] for i in missing]
        measured = dict(zip(missing, _norms(tuple(arrays), tuple(theirs)), strict=True))
        found = [measured.get(i, norm) for i, norm in enumerate(found)]
    return [norm for norm in found if norm is not None]


def _without_measuring(arrays: list[jax.Array], kind: Kind) -> Norm | None:
    if not arrays:
        return of(jnp.zeros((), jnp.float32))
    for known_arrays, known_kind, found in _KNOWN.get():
        if kind == known_kind and all(map(operator.is_, arrays, known_arrays)):
            return found
    return None


@contextlib.contextmanager
def known(arrays: list[jax.Array], kind: Kind, found: Norm) -> Iterator[None]:
    """Inside, this norm of these very arrays is not measured again.

    For what wraps a rule and has measured already what the rule is about to. Arrays are told by
    identity, which holds for tracers too: whatever changed on the way to the rule is measured.
    """
    token = _KNOWN.set((*_KNOWN.get(), (tuple(arrays), kind, found)))
    try:
        yield
    finally:
        _KNOWN.reset(token)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _norms(groups: tuple[tuple[jax.Array, ...], ...], kinds: tuple[Kind, ...]) -> list[Norm]:
    return _power_sums.measure(groups, kinds)


@_norms.defjvp
def _norms_jvp(kinds: tuple[Kind, ...], primals: Any, tangents: Any) -> Any:
    (groups,), (dots,) = primals, tangents
    out = _norms(groups, kinds)
    return out, [_change(*each) for each in zip(groups, dots, out, kinds, strict=True)]


def _change(arrays: Any, dots: Any, out: Norm, kind: Kind) -> Norm:
    """Returns d n = sum of slope * dx; 0 where n is 0 or infinite."""
    good = (out.value > 0) & out.is_finite
    value = jnp.where(good, out.value, jnp.ones_like(out.value))
    unit = jnp.where(good, out.unit, jnp.ones_like(out.unit))
    slopes = [_slope(in_unit(x, unit), value, kind.power) for x in arrays]
    terms = [
        jnp.real(jnp.conj(slope) * in_unit(dot, unit))
        for slope, dot in zip(slopes, dots, strict=True)
    ]
    change = _total(terms, kind) / jnp.asarray(kind.elements, value.dtype)
    if math.isinf(kind.power):  # shared among the elements that attain the largest magnitude
        change = change / jnp.maximum(_total([jnp.abs(slope) for slope in slopes], kind), 1)
    change = jnp.where(good, change, jnp.zeros_like(change))
    return Norm(change, jnp.zeros_like(out.unit))


def _total(terms: list[jax.Array], kind: Kind) -> jax.Array:
    parts = [
        _power_sums.reduced(term, axes) for term, axes in zip(terms, kind.reduced, strict=True)
    ]
    return _mesh.sum_over(parts, kind.mesh)


def _slope(x: jax.Array, value: jax.Array, power: float) -> jax.Array:
    """The derivative (|x| / n)^(p-1) sign(x) of the norm n in one element."""
    if power == 2:
        return times(x, 1 / value)
    size = jnp.abs(x)
    sign = jnp.sign(x)
    if power == 1:
        return sign
    if math.isinf(power):
        return times(sign, (size == value).astype(size.dtype))
    return times(sign, (size / value) ** jnp.asarray(power - 1, size.dtype))
