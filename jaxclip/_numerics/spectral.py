"""Bounds the singular values of matrices: by eigenvectors, or by matrix products alone.

Both work on the Gram matrix of a / t, whose rounding moves a singular value near t by (s_1 / t)^2
roundings. So a matrix far above its limit is reduced in stages, each by a factor of ten at most.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._numerics.rounding import is_narrow, rounded
from jaxclip._numerics.scaled_float import Norm, power_of_two_near

_RATIO = 10  # the largest singular value over the limit of a stage
_LAST = 2  # the same of the last stage of `clip`, which lands on c
_SQUARINGS = 20

# The largest singular value lands at most this many roundings above c.
_ROUNDINGS = 32

# 16-bit weights land this many epsilons below c, since rounding adds a matrix of that norm.
_MARGIN = 1.0

# x (a + b x^2 + c x^4): the first raises small x 3.4-fold and keeps the others between 0.6 and 1.2,
# the second brings those to 1.
_RAISE, _SETTLE = (3.4445, -4.7750, 2.0315), (1.875, -1.25, 0.375)
_SETTLED = 6  # steps that bring numbers between 0.6 and 1.3 to 1


def bounded(
    x: jax.Array, c: jax.Array, dtype: Any, how: str, method: str | None
) -> tuple[jax.Array, jax.Array, Norm]:
    """Which matrices stay; the bounded matrices; and their largest singular values.

    The first and the last have the shape (matrices, 1, 1). A matrix stays whose largest singular
    value is at most c, or for `soft` so small beside c that nothing changes; and one of zeros, or
    with a number that is not finite.

    Args:
        x: an array of shape (matrices, rows, columns) in at least float32.
        c: the limit, a scalar >= 0.
        dtype: the dtype that stores the array.
        how: `clip` reduces only the singular values above c, which gives the nearest matrix;
            `scale` multiplies all of them by one factor; `soft` makes s / sqrt(1 + s^2 / c^2) of s.
        method: `eigh`, `iterative`, or `None` for the first on a CPU and the second elsewhere.
    """
    if not x.size:
        one = jnp.ones((len(x), 1, 1), x.dtype)
        return one > 0, x, Norm(0 * one, one)
    wide = x.shape[1] < x.shape[2]
    tall = _transposed(x) if wide else x
    size = jnp.max(jnp.abs(tall), (1, 2), keepdims=True)
    good = (size > 0) & jnp.isfinite(size)
    unit = power_of_two_near(jnp.where(good, size, jnp.ones_like(size)))
    work = jnp.where(good, tall * (1 / unit), jnp.zeros_like(tall))  # squares stay in range

    margin = _MARGIN * float(jnp.finfo(dtype).eps) if is_narrow(dtype) else 0.0
    slack = (1 + _ROUNDINGS * float(jnp.finfo(x.dtype).eps)) / (1 - margin) - 1
    c = c * (1 - margin)
    value, largest = _bounded(work, unit, c, slack, how, method)
    keep = _stays(largest, Norm(c, 1 / unit).number, slack, how)
    value = jnp.where(c > 0, value, jnp.zeros_like(value))  # rounding may leave a rest
    value = _transposed(value) if wide else value
    value = rounded(value, dtype) if is_narrow(dtype) else value
    return keep | ~good, value, Norm(jnp.where(good, largest, size), unit)


def _stays(largest: jax.Array, limit: jax.Array, slack: float, how: str) -> jax.Array:
    """Whether a matrix is its own result."""
    if how == "soft":
        return largest <= limit * float(jnp.finfo(largest.dtype).eps) ** 0.5
    return largest / (1 + slack) <= limit


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _bounded(
    a: jax.Array, unit: jax.Array, c: jax.Array, slack: float, how: str, method: str | None
) -> tuple[jax.Array, jax.Array]:
    """The bounded matrices, and the largest singular values of `a`.

    Args:
        a: tall matrices with elements near 1.
        unit: a power of two for each, by which they are divided; the result is not.
        c: the limit before the division.
        slack: the part of the limit above it that counts as inside.
        how: as for `bounded`.
        method: as for `bounded`.
    """

    def by(name: str) -> Any:
        return lambda a, unit, c: _landed(a, unit, c, slack, how, name)

    if method is not None:
        return by(method)(a, unit, c)
    return jax.lax.platform_dependent(a, unit, c, cpu=by("eigh"), default=by("iterative"))


def _landed(
    a: jax.Array, unit: jax.Array, c: jax.Array, slack: float, how: str, method: str
) -> tuple[jax.Array, jax.Array]:
    gram = _times(_transposed(a), a)
    exact = method == "eigh"
    largest = _largest_by_eigh(gram) if exact else _largest(gram)
    limit = Norm(c, 1 / unit).number
    stays = _stays(largest, limit, slack, how)
    if how == "scale":
        one = jnp.ones_like(largest)
        return a * (jnp.where(stays, one, c) / jnp.where(stays, one, largest)), largest

    def stage(state: Any) -> Any:
        """All singular values to at most t; `rest` is what remains of the limit after it."""
        a, unit, rest, now, going = state
        limit = Norm(rest, 1 / unit).number
        last = limit if how == "soft" else jnp.where(now <= _LAST * limit, limit, _LAST * limit)
        t = jnp.maximum(last, now / _RATIO)
        b = a / t
        reduce = _reduced_by_eigh if exact else _reduced
        reduced = t * reduce(b, _times(_transposed(b), b), now / t, how)
        share = jnp.where(t > limit, limit / t, jnp.zeros_like(t))
        after = rest / jnp.sqrt(1 - share * share) if how == "soft" else rest
        down = power_of_two_near(t)
        new = reduced / down, unit * down, after, t / down, going & (t > limit)
        return [jnp.where(going, x, y) for x, y in zip(new, state, strict=True)]

    start = [a, unit, jnp.broadcast_to(c, unit.shape), largest, ~stays & (c > 0)]
    a, unit, *_ = jax.lax.while_loop(lambda state: jnp.any(state[4]), stage, start)
    return a * unit, largest


def _largest_by_eigh(gram: jax.Array) -> jax.Array:
    largest = jnp.linalg.eigvalsh(gram, symmetrize_input=False)[:, None, -1:]
    return jnp.sqrt(jnp.maximum(largest, jnp.zeros_like(largest)))


def _reduced_by_eigh(b: jax.Array, gram: jax.Array, ratio: jax.Array, how: str) -> jax.Array:
    squares, vectors = jnp.linalg.eigh(gram, symmetrize_input=False)
    one = jnp.ones_like(squares)
    divisor = jnp.maximum(squares, 0 * one) + one if how == "soft" else jnp.maximum(squares, one)
    less = (1 - 1 / jnp.sqrt(divisor))[:, None]  # 0 for singular values that stay
    return b - _times(_times(b, vectors) * less, _transposed(vectors))


def _reduced(b: jax.Array, gram: jax.Array, ratio: jax.Array, how: str) -> jax.Array:
    """B M^(-1/2), with M = I + G for `soft` and M = max(I, G) for `clip`, by products alone."""
    one, most = _identity(gram), ratio * ratio
    if how == "soft":
        return _times(b, _inverse_root(one + gram, 1 + most))
    # max(1, s) = 1 + (s - 1 + |s - 1|) / 2, and |X| = X sign(X).
    over = gram - one
    size = _times(over, _sign(over / jnp.maximum(most - 1, jnp.ones_like(most))))
    size = (size + _transposed(size)) / 2
    return _times(b, _inverse_root(one + (over + size) / 2, jnp.maximum(most, jnp.ones_like(most))))


def _sign(x: jax.Array) -> jax.Array:
    """The symmetric matrices with the same eigenvectors, and 1 or -1 for all eigenvalues.

    Those of `x` are at most 1 in size. Those near 0, below a rounding of (s_1 / t)^2, are not
    raised to 1: they change |X| by less than that.
    """
    raises = 12 if jnp.finfo(x.dtype).bits < 64 else 29  # 3.4^k > _RATIO^2 / eps
    coefficients = jnp.asarray([_RAISE] * (raises + 5) + [_SETTLE] * 4, x.dtype)

    def step(x: jax.Array, by: jax.Array) -> tuple[jax.Array, None]:
        square = _times(x, x)
        return by[0] * x + _times(x, by[1] * square + by[2] * _times(square, square)), None

    return jax.lax.scan(step, x, coefficients)[0]


def _inverse_root(m: jax.Array, most: jax.Array) -> jax.Array:
    """M^(-1/2) for eigenvalues between 1 and `most`, by Newton's and Schulz's coupled iteration."""
    one = _identity(m)
    steps = jnp.ceil(jnp.max(jnp.log(most)) / (2 * jnp.log(jnp.asarray(1.5, m.dtype)))) + _SETTLED

    def step(_: Any, pair: Any) -> Any:
        y, z = pair
        t = (3 * one - _times(z, y)) / 2
        return _times(y, t), _times(t, z)

    start = m / most, jnp.broadcast_to(one, m.shape)
    _, z = jax.lax.fori_loop(0, steps.astype(jnp.int32), step, start)
    return z / jnp.sqrt(most)


def _largest(gram: jax.Array) -> jax.Array:
    """The root of the largest eigenvalue, as a mean weighted by a high power of the matrix."""

    def squared(_: Any, power: jax.Array) -> jax.Array:
        power = power / jnp.maximum(jnp.sqrt(_sum(power * power)), jnp.finfo(power.dtype).tiny)
        return _times(power, power)

    power = jax.lax.fori_loop(0, _SQUARINGS, squared, gram)
    weight = jnp.trace(power, axis1=1, axis2=2)[:, None, None]
    weight = jnp.where(weight > 0, weight, jnp.ones_like(weight))
    return jnp.sqrt(jnp.maximum(_sum(power * gram) / weight, jnp.zeros_like(weight)))


@_bounded.defjvp
def _bounded_jvp(
    slack: float, how: str, method: str | None, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    """The derivative, by singular vectors and quotients of differences of singular values.

    With F = U g(S) V', B = U' dA V and its symmetric and skew parts, dF is U K V' with
    K = B_sym (g_i - g_j) / (s_i - s_j) + B_skew (g_i + g_j) / (s_i + s_j), and outside of the
    columns of U it is dA V (g / s) V'. All quotients are finite, where singular values coincide
    too.
    """
    a, unit, c = primals
    da, _, dc = tangents
    out = _bounded(a, unit, c, slack, how, method)
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    inner = _times(_times(_transposed(u), da), _transposed(vt))
    top, largest = inner[:, :1, :1], out[1]
    one = jnp.ones_like(s)
    if how == "scale":
        size = jnp.where(largest > 0, largest, jnp.ones_like(largest))
        change = da * (c / size) + a * ((dc - c * (top / size)) / size)
        return out, (change, top)
    t = Norm(c, 1 / unit).number[:, 0]
    t = jnp.where(t > 0, t, jnp.ones_like(t))
    if how == "soft":
        root = 1 / jnp.sqrt(1 + (s / t) ** 2)
        g, by_limit = s * root, (s / t * root) ** 3
    else:
        root = jnp.where(s > t, jnp.zeros_like(s), one)
        g, by_limit = jnp.minimum(s, t), 1 - root
    plus = _quotient(g[:, :, None] + g[:, None], s[:, :, None] + s[:, None], jnp.ones_like(inner))
    if how == "soft":
        minus = (root[:, :, None] * root[:, None]) ** 2 / plus
    else:
        equal = root[:, :, None] * jnp.ones_like(inner)
        minus = _quotient(g[:, :, None] - g[:, None], s[:, :, None] - s[:, None], equal)
    skew = (inner - _transposed(inner)) / 2
    kept = minus * (inner - skew) + plus * skew
    kept = kept + (by_limit * (dc / unit[:, 0]))[:, :, None] * _identity(inner)
    outside = _times(da, _transposed(vt)) - _times(u, inner)
    change = _times(_times(u, kept) + outside * _quotient(g, s, one)[:, None], vt)
    return out, (change * unit, top)


def _quotient(x: jax.Array, y: jax.Array, default: jax.Array) -> jax.Array:
    return jnp.where(y == 0, default, x / jnp.where(y == 0, jnp.ones_like(y), y))


def _identity(like: jax.Array) -> jax.Array:
    return jnp.eye(like.shape[-1], dtype=like.dtype)[None]


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _transposed(a: jax.Array) -> jax.Array:
    return jnp.swapaxes(a, 1, 2)


def _sum(x: jax.Array) -> jax.Array:
    """The sum of the elements of each matrix, of shape (matrices, 1, 1)."""
    return jnp.sum(x, (1, 2), keepdims=True)
