r"""Thresholds from a window of the last norms: their mean and standard deviation.

Guards keep the same ring of losses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._numerics.scaled_float import narrowed, power_of_two_near, unlimited
from jaxclip.thresholds.base import Threshold, learned


class Ring(NamedTuple):
    """The last observations of every norm of a group.

    Attributes:
        observations: of shape (window, *shape of the norms).
        position: the place of the next one; int32 of the norms' shape.
        filled: the number of observations; int32 of the norms' shape.
    """

    observations: jax.Array
    position: jax.Array
    filled: jax.Array

    @property
    def window(self) -> int:
        """The number of places."""
        return self.observations.shape[0]

    @property
    def places(self) -> jax.Array:
        """The numbers 0, 1, ... of the places, broadcastable to the values."""
        shape = (self.window,) + (1,) * (self.observations.ndim - 1)
        return jax.lax.broadcasted_iota(jnp.int32, shape, 0)

    @property
    def next_place(self) -> jax.Array:
        """The place of the next observation, as a bool for each value."""
        return self.places == self.position[None]

    def pushed(self, x: jax.Array, seen: jax.Array) -> Ring:
        """The ring with one more observation, where `seen`."""
        # A selection instead of a scatter: it fuses with the readers of the ring, and shards.
        observations = jnp.where(self.next_place & seen[None], x[None], self.observations)
        position = jnp.where(seen, (self.position + 1) % self.window, self.position)
        filled = jnp.where(seen, jnp.minimum(self.filled + 1, self.window), self.filled)
        return Ring(observations, position, filled)

    def mean_and_std(self, correction: int) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation, its squares divided by the number less `correction`.

        Both are computed relative to the largest value: no square overflows or underflows, and
        equal values have their own value as mean and the standard deviation 0, exactly.
        """
        there = self.places < self.filled[None]
        peak = jnp.max(jnp.where(there, jnp.abs(self.observations), 0.0), 0)
        peak = jnp.where(peak > 0, peak, jnp.ones_like(peak))
        number = self.filled.astype(peak.dtype)
        # XLA takes the reciprocal of a broadcast divisor, and that of a large peak underflows.
        down = 1 / power_of_two_near(peak)
        share = (self.observations * down[None]) / (peak * down)[None]
        share = jnp.where(there, share, jnp.zeros_like(share))
        mean = jnp.sum(share, 0) / jnp.maximum(number, jnp.ones_like(number))
        off = jnp.where(there, share - mean[None], jnp.zeros_like(share))
        degrees = jnp.maximum(number - correction, jnp.ones_like(number))
        return mean * peak, jnp.sqrt(jnp.sum(off * off, 0) / degrees) * peak


class Spread(NamedTuple):
    """Mean + sigma * std of a ring. Made by `spread`, which validates."""

    sigma: Any
    window: Any
    min_history: Any
    min_spread: Any

    def empty(self, like: jax.Array) -> Ring:
        """A ring without observations of norms like `like`."""
        return empty(self.window, like)

    def limit(self, ring: Ring, correction: int) -> jax.Array:
        """The limit; inf until the ring holds `min_history` observations."""
        mean, std = ring.mean_and_std(correction)
        k, least = (narrowed(_validate.number(x), std.dtype) for x in (self.sigma, self.min_spread))
        most = unlimited(std.dtype)
        known = (ring.filled >= self.min_history) & (k < most)
        reach = jnp.maximum(jnp.where(known, k, 0) * std, least * jnp.abs(mean))
        return jnp.where(known, mean + reach, most)


def empty(window: Any, like: jax.Array) -> Ring:
    """A ring without observations of norms like `like`, whose type says how it is sharded."""
    size = _validate.known_size(window, "window")
    values = jnp.zeros_like(jnp.broadcast_to(like[None], (size, *like.shape)))
    return Ring(values, jnp.zeros_like(like, jnp.int32), jnp.zeros_like(like, jnp.int32))


def spread(
    sigma: ArrayLike, window: int, min_history: int, min_spread: ArrayLike, least: int
) -> Spread:
    """Validates the arguments of a limit; `least` is the smallest `min_history`."""
    _validate.real_number(sigma, "sigma")
    _validate.real_number(min_spread, "min_spread")
    size = _validate.whole_number(window, "window")
    need = _validate.whole_number(min_history, "min_history", least)
    if not (_validate.is_traced(need) or _validate.is_traced(size)) and need > size:
        raise ValueError(f"min_history={min_history!r} must not exceed window={window!r}")
    return Spread(sigma, size, need, min_spread)


def mean_plus_sigma(
    sigma: ArrayLike = 3.0,
    *,
    window: int = 128,
    min_history: int = 64,
    min_spread: ArrayLike = 1e-3,
    max_growth: ArrayLike | None = None,
) -> Threshold:
    r"""The mean of the last norms plus some standard deviations.

    $$c = \mu + \max(k \sigma, s \mu)$$

    with mean and population standard deviation of the last `window` norms before clipping, the
    current one excluded.

    Args:
        sigma: k, a number >= 0.
        window: the number of norms in memory.
        min_history: the number of earlier norms from which on norms are clipped.
        min_spread: s, the least relative spread, so that equal norms are no spikes; 0 for none.
        max_growth: the largest growth of the threshold from one norm to the next, a factor between
            1 and 1000; `None` for any. See `Threshold`.

    Returns:
        A threshold whose memory is a ring of `window` numbers for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> threshold = jaxclip.thresholds.mean_plus_sigma(2.0, window=4, min_history=2)
        >>> rule = jaxclip.clip_by(threshold, scope="leaf")
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 3.0, 100.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates, state.threshold)
        [1.] inf
        [3.] inf
        [4.] 4.0

    References:
        The update-norm clipping of Levanter.
    """
    history = spread(sigma, window, min_history, min_spread, least=1)

    def following(ring: Ring, n: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array, Ring]:
        c = history.limit(ring, correction=0)
        return c, c, ring.pushed(n, seen)

    return learned(history.empty, following, max_growth)
