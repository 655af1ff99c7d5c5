r"""Thresholds from quantiles of the norms: exact over a window, or tracked with one number."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._numerics.scaled_float import narrowed, unlimited
from jaxclip.thresholds.base import Threshold, check_growth, growth_factor, learned
from jaxclip.thresholds.window import Ring, empty


class Window(NamedTuple):
    """The last norms in two orders, so that no step sorts them.

    Attributes:
        ordered: the values of the ring, the smallest first, then the largest float for each
            empty place.
        ring: the values in the order of their updates.
    """

    ordered: jax.Array
    ring: Ring


def quantile(
    q: ArrayLike,
    *,
    window: int = 10_000,
    factor: ArrayLike = 1.0,
    max_growth: ArrayLike | None = None,
) -> Threshold:
    r"""A quantile of the last norms, or a multiple of it: $c = \lambda \, Q_q(n_1, \dots, n_t)$.

    The current norm is among them. Between two norms the quantile is interpolated linearly, as
    `jnp.quantile` does.

    Args:
        q: the quantile, between 0 and 1.
        window: the number of norms in memory.
        factor: lambda, a number >= 0.
        max_growth: the largest growth of the threshold from one norm to the next, a factor between
            1 and 1000; `None` for any. See `Threshold`.

    Returns:
        A threshold whose memory is twice `window` numbers for every norm. An update costs a few
        passes over them; nothing is sorted.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        Twice the median of the last 100 norms, for every leaf:

        >>> import jax.numpy as jnp, jaxclip
        >>> threshold = jaxclip.thresholds.quantile(0.5, window=100, factor=2.0)
        >>> rule = jaxclip.clip_by(threshold, scope="leaf")
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 3.0, 100.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates, state.threshold)
        [1.] 2.0
        [3.] 4.0
        [6.] 6.0

    References:
        Seetharaman, Wichern, Pardo, Le Roux, AutoClip, 2020, arXiv:2007.14469.
    """
    _validate.between(q, 0, 1, "q")
    _validate.real_number(factor, "factor")
    size = _validate.whole_number(window, "window")

    def first(zeros: jax.Array) -> Window:
        ring = empty(size, zeros)
        return Window(jnp.full_like(ring.observations, _largest(zeros)), ring)

    def following(
        memory: Window, n: jax.Array, seen: jax.Array
    ) -> tuple[jax.Array, jax.Array, Window]:
        old = jnp.sum(jnp.where(memory.ring.next_place, memory.ring.observations, 0), 0)
        old = jnp.where(memory.ring.filled < memory.ring.window, _largest(n), old)
        ordered = _replaced(memory.ordered, old, jnp.where(seen, n, old), memory.ring.places)
        ring = memory.ring.pushed(n, seen)
        c = _interpolated(ordered, ring, q) * narrowed(_validate.number(factor), n.dtype)
        c = jnp.where(ring.filled > 0, c, unlimited(c.dtype))
        return c, c, Window(ordered, ring)

    return learned(first, following, max_growth)


def _largest(x: jax.Array) -> float:
    return float(jnp.finfo(x.dtype).max)


def _replaced(ordered: jax.Array, old: jax.Array, new: jax.Array, place: jax.Array) -> jax.Array:
    """Ordered numbers with `new` instead of one `old`: those in between move by one place."""
    gap = jnp.sum(ordered < old[None], 0, dtype=jnp.int32)[None]
    after = jnp.concatenate([ordered[1:], jnp.full_like(ordered[:1], _largest(ordered))])
    rest = jnp.where(place < gap, ordered, after)
    target = jnp.sum(rest < new[None], 0, dtype=jnp.int32)[None]
    before = jnp.concatenate([rest[:1], rest[:-1]])
    return jnp.where(place < target, rest, jnp.where(place == target, new[None], before))


def _interpolated(ordered: jax.Array, ring: Ring, q: Any) -> jax.Array:
    last = jnp.maximum(ring.filled - 1, 0)
    whole, part = _rank(last, q, ordered.dtype, ring.window)

    def at(rank: jax.Array) -> jax.Array:
        chosen = ring.places == jnp.minimum(rank, last)[None]
        return jnp.sum(jnp.where(chosen, ordered, jnp.zeros_like(ordered)), 0)

    low, high = (jnp.where(ring.filled > 0, at(k), 0) for k in (whole, whole + 1))
    return low + part * (high - low)


def _rank(last: jax.Array, q: Any, dtype: Any, window: int) -> tuple[jax.Array, jax.Array]:
    """`last * q` as a whole number and a fraction.

    One product would leave the fraction few digits where the rank is large, so the leading digits
    of q, whose product is exact, are multiplied apart from the rest.
    """
    digits = 2.0 ** (jnp.finfo(dtype).nmant - window.bit_length())
    if _validate.is_traced(q):
        q = jnp.clip(jnp.asarray(q).astype(dtype), 0, 1)
        lead = jnp.floor(q * digits) / digits
    else:
        q = np.float64(q)
        lead = np.floor(q * digits) / digits
    number = last.astype(dtype)
    exact = number * jnp.asarray(lead, dtype)
    part = (exact - jnp.floor(exact)) + number * jnp.asarray(q - lead, dtype)
    whole = jnp.floor(exact) + jnp.floor(part)
    return whole.astype(jnp.int32), part - jnp.floor(part)


class Tracked(NamedTuple):
    """The next threshold; 0 before the first norm."""

    threshold: jax.Array


def tracked_quantile(
    q: ArrayLike = 0.5,
    *,
    eta: ArrayLike = 0.2,
    initial: ArrayLike | None = None,
    max_growth: ArrayLike | None = None,
) -> Threshold:
    r"""A quantile of the norms tracked with one number, for runs of any length.

    $$c \leftarrow c \, e^{-\eta (b - q)}, \qquad b = 1 \text{ if } n \le c \text{ else } 0$$

    A fraction q of the norms comes to lie below the threshold. An update multiplies it by at most
    $e^{\eta q}$, so it follows a change of scale in a time that grows with the logarithm of the
    change.

    Args:
        q: the quantile, between 0 and 1.
        eta: the rate at which it moves, a number >= 0.
        initial: the first threshold, whatever `max_growth`; `None` for the first norm.
        max_growth: the largest growth of the threshold from one norm to the next, a factor between
            1 and 1000: eta is at most ln(max_growth) / q. `None` for any.

    Returns:
        A threshold whose memory is one number for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by(jaxclip.thresholds.tracked_quantile(0.9), scope="leaf")
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 1.0, 100.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates, state.threshold)
        [1.] 1.0
        [0.98...] 0.98...
        [1.17...] 1.17...

    References:
        Andrew, Thakkar, McMahan, Ramaswamy, Differentially private learning with adaptive
        clipping, 2021, arXiv:1905.03871; here without noise.
    """
    _validate.between(q, 0, 1, "q")
    _validate.real_number(eta, "eta")
    if initial is not None:
        _validate.real_number(initial, "initial")
    check_growth(max_growth)

    def first(zeros: jax.Array) -> Tracked:
        start = 0 if initial is None else initial
        return Tracked(zeros + narrowed(_validate.number(start), zeros.dtype))

    def following(
        memory: Tracked, n: jax.Array, seen: jax.Array
    ) -> tuple[jax.Array, jax.Array, Tracked]:
        c = jnp.where(memory.threshold > 0, memory.threshold, n)
        below = (n <= c).astype(c.dtype)
        rate, share = narrowed(_validate.number(eta), c.dtype), _validate.number(q).astype(c.dtype)
        info = jnp.finfo(c.dtype)
        if max_growth is not None:
            # A slower rate keeps the quantile; a bound on the way up alone would not.
            most = jnp.log(growth_factor(max_growth, c.dtype))
            fast = rate * share > most
            rate = jnp.where(fast, most / jnp.where(fast, share, 1), rate)
        moved = jnp.clip(c * jnp.exp(rate * (share - below)), float(info.tiny), float(info.max))
        known = jnp.where(c > 0, c, unlimited(c.dtype))
        return known, known, Tracked(jnp.where(seen, moved, memory.threshold))

    return learned(first, following)
