"""Norms with their derivatives, which are 0 where a norm is 0 or not finite."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._numerics import power_sums
from jaxclip._numerics.power_sums import Arrays, Kind, reduced, sum_of, table_of, type_of
from jaxclip._numerics.scaled_float import Norm, in_unit, times

norms = jax.custom_jvp(power_sums.norms, nondiff_argnums=(1,))


@norms.defjvp
def _norms_jvp(kinds: tuple[Kind, ...], primals: Any, tangents: Any) -> Any:
    (groups,), (dots,) = primals, tangents
    out, own = norms(groups, kinds), table_of(list(map(type_of, groups, kinds)))
    each = zip(groups, dots, own.arrays(out), kinds, strict=True)
    return out, own.vectors([_tangent(*one) for one in each])


def _tangent(arrays: Arrays, dots: Arrays, out: Norm, kind: Kind) -> Norm:
    """Dn = sum of slope * dx; 0 where n is 0 or not finite."""
    good = (out.value > 0) & jnp.isfinite(out.value)
    value = jnp.where(good, out.value, jnp.ones_like(out.value))
    unit = jnp.where(good, out.unit, jnp.ones_like(out.unit))
    inside = [jnp.where(good, in_unit(x, unit), 0) for x in arrays]
    slopes = [_slope(x, value, kind.power) for x in inside]
    pairs = zip(slopes, dots, strict=True)
    terms = [reduced(jnp.real(jnp.conj(s) * in_unit(dx, unit)), kind.axes) for s, dx in pairs]
    change = sum_of(terms, kind.mesh) / (float(kind.elements) if kind.mean else 1)
    if math.isinf(kind.power):  # the elements of largest magnitude share the derivative
        ties = [reduced(jnp.abs(slope), kind.axes) for slope in slopes]
        change = change / jnp.maximum(sum_of(ties, kind.mesh), 1)
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
