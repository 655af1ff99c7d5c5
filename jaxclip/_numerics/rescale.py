r"""Scaling: given a norm and how large it may be, what becomes of the arrays.

The hard rule $x \min(1, c/n)$, written so that an array within its threshold comes back bit for bit
and nothing overflows, underflows or divides by zero on the way. What is measured, and where the
threshold comes from, do not belong here.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import _validate as _checks
from jaxclip._numerics import scaled_float as _wide
from jaxclip._numerics.scaled_float import Norm

POLICIES = ("propagate", "nan", "zero", "drop")
SHAPES = ("hard", "tanh", "rational")


class Scale(NamedTuple):
    """What happens to the arrays of one norm: kept if `keep`, else times the factor.

    The factor is `first * (second + rest)`. `rest` is what rounding took from `second`, and `first`
    is 1 as a rule. Where the factor would be no normal number, but the result may be, `first` is a
    power of two, hence exact, that makes the norm about 1, and `second` about the threshold.
    """

    keep: jax.Array
    first: jax.Array
    second: jax.Array
    rest: jax.Array

    @property
    def number(self) -> jax.Array:
        """The factor applied, as one float."""
        return jnp.where(self.keep, jnp.ones_like(self.second), self.first * self.second)


@functools.partial(jax.jit, inline=True)
def hard(norm: Norm, threshold: Any, eps: Any = 0.0, floor: Any = 0.0) -> Scale:
    """The scale min(1, c / max(n + eps, floor)) of arrays whose norm is n.

    Args:
        norm: n.
        threshold: c, broadcastable to the norm; a negative one counts as 0.
        eps: added to the norm; PyTorch takes 1e-6.
        floor: the least the divisor may be; adaptive clipping takes 1e-6.
    """
    dtype = norm.value.dtype
    c = jnp.broadcast_to(jnp.asarray(threshold).astype(dtype), norm.value.shape)
    c = jnp.maximum(c, jnp.zeros_like(c))
    eps = jnp.asarray(eps).astype(dtype)
    return _quotient(norm, c, norm.number + eps <= c, eps, jnp.asarray(floor).astype(dtype))


def _quotient(norm: Norm, c: jax.Array, keep: jax.Array, eps: Any, floor: Any) -> Scale:
    """The scale c / max(n + eps, floor), and none where `keep`."""
    one = jnp.ones_like(norm.value)
    unit = _wide.power_of_two_near(norm.number)
    divisor = jnp.where(keep, one, norm.value * (norm.unit / unit) + eps / unit)
    divisor = jnp.maximum(divisor, floor / unit)
    second = jnp.where(keep, one, c / divisor)
    rest = jnp.where(keep, jnp.zeros_like(one), _remainder(c, second, divisor) / divisor)
    return _joined(Scale(keep, 1 / unit, second, jax.lax.stop_gradient(rest)))


def _joined(scale: Scale) -> Scale:
    """The same factor in one where that and its remainder are normal numbers.

    Elements far smaller than the norm would underflow on the way otherwise.
    """
    info = jnp.finfo(scale.second.dtype)
    factor = scale.first * scale.second
    joins = (factor >= float(info.tiny) / float(info.eps)) & (factor < jnp.inf)
    first = jnp.where(joins, jnp.ones_like(factor), scale.first)
    second = jnp.where(joins, factor, scale.second)
    return Scale(scale.keep, first, second, scale.rest * (scale.first / first))


def shaped(norm: Norm, threshold: Any, shape: str) -> jax.Array:
    """How large the norm becomes: what the hard rule is then given as its threshold.

    `hard` is the threshold c itself; `tanh` gives c tanh(n/c) and `rational` n c/(n + c), which
    approach it smoothly. Where n/c is so small that neither differs from n by a rounding, it is n.
    """
    n = norm.number
    c = jnp.broadcast_to(jnp.asarray(threshold).astype(n.dtype), n.shape)
    if shape == "hard":
        return c
    one = jnp.ones_like(n)
    bounded = (c >= float(jnp.finfo(n.dtype).tiny)) & (c < jnp.inf)
    divisor = jnp.where(bounded, c, one)
    # In a unit, since XLA may take the reciprocal of c, which can be no normal number. The barrier
    # keeps it from joining the two.
    per_unit = jax.lax.optimization_barrier(1 / _wide.power_of_two_near(divisor))
    inside = jnp.where(bounded, norm.value, jnp.zeros_like(n))
    ratio = inside * (norm.unit * per_unit) / (divisor * per_unit)
    if shape == "tanh":
        small = ratio < float(jnp.finfo(n.dtype).eps) ** 0.5
        reached = c * jnp.tanh(jnp.where(small, one, ratio))
    else:
        small = ratio <= 1
        reached = c / (one + one / jnp.where(small, one, ratio))
    reached = jnp.where(small, n / (one + ratio) if shape == "rational" else n, reached)
    return jnp.where(bounded, reached, c)


def _remainder(c: jax.Array, quotient: jax.Array, divisor: jax.Array) -> jax.Array:
    """`c - quotient * divisor`, the product taken exactly, in halves of the mantissa (Dekker)."""
    info = jnp.finfo(c.dtype)
    q_high = jax.lax.reduce_precision(quotient, info.nexp, info.nmant // 2)
    d_high = jax.lax.reduce_precision(divisor, info.nexp, info.nmant // 2)
    q_low, d_low = quotient - q_high, divisor - d_high
    return (((c - q_high * d_high) - q_high * d_low) - q_low * d_high) - q_low * d_low


def between(norm: Norm, low: Any, high: Any, dtype: Any, rate: Any = 1.0) -> Scale:
    """The scale that brings norms of weights between `low` and `high`, and none inside.

    Weights that were projected and stored in `dtype` may be outside by a rounding. They count as
    inside, or they would be scaled again and again. A norm of 0 stays 0: it has no direction.

    Args:
        norm: n.
        low: the least it may be; 0 for no bound. Weights that only inf would satisfy are kept.
        high: the most it may be; inf for no bound. A negative one counts as 0.
        dtype: of the weights.
        rate: how much of the way outside norms are brought at once; 1 for all, and 0, or less, for
            none.
    """
    wide, n = norm.value.dtype, norm.number
    low, high, rate = (
        jnp.broadcast_to(_checks.number(x).astype(wide), n.shape) for x in (low, high, rate)
    )
    high = jnp.maximum(high, jnp.zeros_like(high))  # as in `hard`: or a sign would flip
    # Half an epsilon is what storing takes; the rest is for the norm and the arithmetic of landing.
    # With no more than that, weights that are let through and stored again stay within one epsilon.
    stored, measured = float(jnp.finfo(dtype).eps), float(jnp.finfo(wide).eps)
    rounding = 4 * measured + (stored / 2 if stored > measured else 0.0)
    inside = (n <= high * (1 + rounding)) & (n >= low * (1 - rounding))
    target = jnp.clip(n, low, high)
    keep = inside | (norm.value == 0) | ~norm.is_finite | jnp.isinf(target) | (rate <= 0)
    # `where` is given what has the norm's sharding: on a mesh of Explicit axes it must.
    partly = (rate < 1) & jnp.isfinite(n)
    target = jnp.where(partly, target + (1 - rate) * (n - target), target)
    zero = jnp.zeros((), wide)
    return _quotient(norm, jnp.where(keep, jnp.ones_like(n), target), keep, zero, zero)


def for_nonfinite(scale: Scale, finite: jax.Array, policy: str, all_finite: Any) -> Scale:
    """What the policy makes of a scale.

    Args:
        scale: the scale by the norm.
        finite: whether that norm is finite.
        policy: `propagate` keeps what has a non-finite norm as it came; `nan` makes NaN and `zero`
            makes zero of every array of the update.
        all_finite: whether every norm of the update is finite.
    """
    if policy == "nan":
        nan = jnp.full_like(scale.second, jnp.nan)
        second = jnp.where(all_finite, scale.second, nan)
        return scale._replace(keep=scale.keep & all_finite, second=second)
    if policy == "zero":
        second = jnp.where(all_finite, scale.second, jnp.zeros_like(scale.second))
        return scale._replace(keep=scale.keep & all_finite, second=second)
    return scale._replace(keep=scale.keep | ~finite)


@functools.partial(jax.jit, inline=True)
def apply(x: jax.Array, scale: Scale) -> jax.Array:
    """The scaled array, multiplied in at least float32 and rounded once to its own dtype.

    The factor is precomputed, so that nothing is divided per element, and the choice is made in the
    wide dtype: XLA then fuses both into whatever consumes the result. Compiled also where the
    update is not, so that product and sum are one fused multiply-add.
    """
    wide = _wide.accumulator(x, scale.second)
    value = _wide.widened(x, wide)
    near_one = _wide.times(value, scale.first.astype(wide))
    scaled = _wide.times(near_one, scale.second.astype(wide))
    if jnp.finfo(x.dtype).bits > 16:
        scaled = scaled + _wide.times(near_one, scale.rest.astype(wide))
    return _select(scale.keep, value, scaled).astype(x.dtype)


def zeroed(x: jax.Array, keep: jax.Array) -> jax.Array:
    """Zeros, NaN included, unless `keep`."""
    return _select(keep, x, jnp.zeros_like(x))


def poisoned(x: jax.Array, keep: jax.Array) -> jax.Array:
    """NaN unless `keep`."""
    return _select(keep, x, jnp.full_like(x, jnp.nan))


def without_nonfinite(x: jax.Array) -> jax.Array:
    """`x` with zeros for its non-finite elements."""
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def _select(keep: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.select(keep, x, y) if keep.ndim == 0 else jnp.where(keep, x, y)
