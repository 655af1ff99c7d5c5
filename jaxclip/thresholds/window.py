r"""Statistics of a window: a ring of the last observations, and the rule that takes their spread.

The ring also serves the guards, which look at losses as well as at norms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import _validate as _checks
from jaxclip._numerics import scaled_float as _wide
from jaxclip.thresholds.base import Threshold, learned


class Ring(NamedTuple):
    """The last `window` observations of every norm of a group.

    Attributes:
        values: of shape (window, *shape of the norms).
        position: where the next one goes; int32 of the norms' shape.
        filled: how many there are; int32 of the norms' shape.
    """

    values: jax.Array
    position: jax.Array
    filled: jax.Array

    @property
    def window(self) -> int:
        return self.values.shape[0]

    @property
    def places(self) -> jax.Array:
        """The numbers 0, 1, ... of the places, broadcastable to the values."""
        ndim = self.values.ndim
        return jax.lax.broadcasted_iota(jnp.int32, (self.window,) + (1,) * (ndim - 1), 0)

    @property
    def next_place(self) -> jax.Array:
        """Which place the next observation takes, a bool for each value."""
        return self.places == self.position[None]

    def pushed(self, x: jax.Array, seen: jax.Array) -> Ring:
        """The ring with one more observation, where it is one."""
        # A selection and not a scatter: it is fused with what reads the ring, and shards.
        values = jnp.where(self.next_place & seen[None], x[None], self.values)
        position = jnp.where(seen, (self.position + 1) % self.window, self.position)
        filled = jnp.where(seen, jnp.minimum(self.filled + 1, self.window), self.filled)
        return Ring(values, position, filled)

    def mean_and_std(self, correction: int) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation, the squares divided by the number less `correction`.

        Taken of the values relative to the largest one: no square overflows or underflows, and
        equal values have exactly their own mean and the standard deviation 0.
        """
        there = self.places < self.filled[None]
        peak = jnp.max(jnp.where(there, jnp.abs(self.values), jnp.zeros_like(self.values)), 0)
        peak = jnp.where(peak > 0, peak, jnp.ones_like(peak))
        number = self.filled.astype(peak.dtype)
        # XLA takes the reciprocal of what is broadcast, and that of a large peak is not normal.
        down = 1 / _wide.power_of_two_near(peak)
        share = (self.values * down[None]) / (peak * down)[None]
        share = jnp.where(there, share, jnp.zeros_like(share))
        mean = jnp.sum(share, 0) / jnp.maximum(number, jnp.ones_like(number))
        off = jnp.where(there, share - mean[None], jnp.zeros_like(share))
        degrees = jnp.maximum(number - correction, jnp.ones_like(number))
        return mean * peak, jnp.sqrt(jnp.sum(off * off, 0) / degrees) * peak


def empty(window: int, like: jax.Array) -> Ring:
    """A ring without observations of norms like `like`."""
    # Made from `like`, zeros too, whose type may say how it is sharded.
    values = jnp.zeros_like(jnp.broadcast_to(like[None], (window, *like.shape)))
    return Ring(values, jnp.zeros_like(like, jnp.int32), jnp.zeros_like(like, jnp.int32))


def limit(ring: Ring, sigma: Any, min_history: Any, correction: int) -> jax.Array:
    """Mean + sigma * std of the ring; inf until it holds `min_history` observations."""
    mean, std = ring.mean_and_std(correction)
    k = _checks.number(sigma).astype(std.dtype)
    known = (ring.filled >= min_history) & (k < jnp.inf)
    return jnp.where(known, mean + k * std, jnp.full_like(mean, jnp.inf))


def check(sigma: Any, window: Any, min_history: Any, least: int) -> tuple[int, int]:
    """Checks the arguments of a rule on a window; returns the sizes as Python ints."""
    _checks.real_number(sigma=sigma)
    size = _checks.whole_number(window=window)
    need = _checks.whole_number(least, min_history=min_history)
    if need > size:
        raise ValueError(f"min_history={min_history!r} must not exceed window={window!r}")
    return size, need


def mean_plus_sigma(
    sigma: Any = 3.0, *, window: Any = np.int32(128), min_history: Any = np.int32(64)
) -> Threshold:
    r"""The mean of the last norms and some standard deviations more: $c = \mu + k \sigma$.

    Mean and population standard deviation are those of the last `window` norms before clipping,
    the current one excluded.

    Args:
        sigma: k, a number >= 0.
        window: how many norms are remembered.
        min_history: how many there must be before anything is clipped.

    Returns:
        A threshold whose memory is a ring of `window` numbers for every norm.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
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
    size, need = check(sigma, window, min_history, least=1)

    def following(ring: Ring, n: jax.Array, seen: jax.Array) -> tuple[jax.Array, Ring]:
        return limit(ring, sigma, need, correction=0), ring.pushed(n, seen)

    return learned(lambda zeros: empty(size, zeros), following)
