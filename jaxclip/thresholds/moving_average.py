r"""A threshold from moving averages of the norms: a z-score."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.types import Mode
from jaxclip._numerics.scaled_float import hypot, narrowed, unlimited
from jaxclip.thresholds.base import Threshold, learned


class Moments(NamedTuple):
    """Mean and standard deviation of each norm.

    Attributes:
        mean: the average.
        std: the standard deviation; its square could overflow.
        observed_count: observations since the warm-up began; int32.
        run: consecutive spikes; int32.
    """

    mean: jax.Array
    std: jax.Array
    observed_count: jax.Array
    run: jax.Array

    @classmethod
    def empty(cls, zeros: jax.Array) -> Moments:
        """The moments before the first norm; every field has its own buffer."""
        count, run = (jnp.zeros_like(zeros, jnp.int32) for _ in range(2))
        return cls(jnp.zeros_like(zeros), jnp.zeros_like(zeros), count, run)

    def collected(self, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and population standard deviation with one more observation (Welford)."""
        k = (self.observed_count + 1).astype(n.dtype)
        off = n - self.mean
        mean = self.mean + off / k
        std = jnp.sqrt(1 - 1 / k) * hypot(self.std, off / jnp.sqrt(k))
        alone = self.observed_count == 0
        return jnp.where(alone, n, mean), jnp.where(alone, jnp.zeros_like(n), std)

    def averaged(self, x: jax.Array, alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Exponential moving averages, the variance about the new mean."""
        mean = alpha * self.mean + (1 - alpha) * x
        return mean, hypot(jnp.sqrt(alpha) * self.std, jnp.sqrt(1 - alpha) * (x - mean))

    def observed(
        self, x: jax.Array, learn: jax.Array, warm: jax.Array, alpha: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation after the observation `x`, where `learn`."""
        mean, std = (
            jnp.where(warm, later, early)
            for later, early in zip(self.averaged(x, alpha), self.collected(x), strict=True)
        )
        return jnp.where(learn, mean, self.mean), jnp.where(learn, std, self.std)

    def counted(
        self, seen: jax.Array, spike: jax.Array, restart_after: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The counts after an update; the warm-up restarts after so many consecutive spikes."""
        run = jnp.where(seen, jnp.where(spike, self.run + 1, 0), self.run)
        count = jnp.maximum(self.observed_count, self.observed_count + seen.astype(jnp.int32))
        if restart_after is None:
            return count, run
        restart = run >= jnp.maximum(restart_after, 1)  # a traced 0 counts as 1
        return jnp.where(restart, 0, count), jnp.where(restart, 0, run)


class Average(NamedTuple):
    """The moving average of the clipped norms; 0 before the first.

    `ema_ratio` keeps it; pickled states name this module.
    """

    mean: jax.Array


def zscore(
    *,
    z_threshold: ArrayLike = 2.5,
    alpha: ArrayLike = 0.97,
    eps: ArrayLike = 1e-6,
    warmup_steps: int = 25,
    max_norm: ArrayLike | None = 1.0,
    clip_factor: ArrayLike = 1.0,
    mode: Mode = "reciprocal",
    skip_update_on_spike: bool = False,
    restart_after: int | None = 200,
    min_spread: ArrayLike = 1e-3,
    max_growth: ArrayLike | None = None,
) -> Threshold:
    r"""Bounds norms that lie many standard deviations above their moving average.

    With the average $\mu$ and the standard deviation $\sigma$ of earlier norms, a norm is a spike
    if $z = (n - \mu) / (\sigma + \epsilon) > z^*$ and $n > \mu (1 + s)$. Its threshold is

    | mode | threshold |
    |---|---|
    | `"reciprocal"` | $\phi (\mu + z^* \sigma \cdot z^* / z)$: a worse spike is clipped to less |
    | `"max"` | $\phi (\mu + z^* \sigma)$ |
    | `"mean"` | $\mu$ |

    Then $\mu \leftarrow \alpha \mu + (1 - \alpha) x$ and
    $\sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha) (x - \mu)^2$, where x is n, or the threshold
    of a spike. The first `warmup_steps` norms only give the first $\mu$ and $\sigma$.

    Args:
        z_threshold: z*, a number >= 0.
        alpha: the smoothing of the averages, between 0 and 1.
        eps: added to the standard deviation.
        warmup_steps: the number of norms that are collected first.
        max_norm: a second threshold, in the warm-up the only one; `None` for none.
        clip_factor: phi.
        mode: the threshold of a spike, see above.
        skip_update_on_spike: whether a spike leaves the averages unchanged.
        restart_after: after this many consecutive spikes, restart the warm-up. `None` is the
            published rule, which clips a norm that has really changed to its old average for ever.
        min_spread: s, the least relative spread, so that equal norms are no spikes; 0 for none.
        max_growth: the largest growth of the largest norm that is no spike, from one norm to the
            next, a factor between 1 and 1000; `None` for any. See `Threshold`.

    Returns:
        A threshold whose memory is four numbers for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> threshold = jaxclip.thresholds.zscore(warmup_steps=2, max_norm=None, mode="max")
        >>> rule = jaxclip.clip_by(threshold, scope="leaf")
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 3.0, 100.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates)
        [1.]
        [3.]
        [4.5]

    References:
        Kumar, Owen, Chowdhury, Guera, ZClip, 2025, arXiv:2504.02507.
    """
    _validate.choice(mode, Mode, "mode")
    _validate.between(alpha, 0, 1, "alpha")
    _validate.flag(skip_update_on_spike, "skip_update_on_spike")
    patience = restart_after
    if patience is not None:
        patience = _validate.whole_number(patience, "restart_after")
    rule = _ZScore(
        z_threshold=_checked(z_threshold, "z_threshold"),
        alpha=alpha,
        eps=_checked(eps, "eps"),
        warmup_steps=_validate.whole_number(warmup_steps, "warmup_steps"),
        max_norm=_checked(jnp.inf if max_norm is None else max_norm, "max_norm"),
        clip_factor=_checked(clip_factor, "clip_factor"),
        mode=mode,
        skip_update_on_spike=skip_update_on_spike,
        restart_after=patience,
        min_spread=_checked(min_spread, "min_spread"),
    )
    return learned(Moments.empty, rule.following, max_growth)


def _checked(value: ArrayLike, name: str) -> ArrayLike:
    _validate.real_number(value, name)
    return value


class _ZScore(NamedTuple):
    """The arguments of `zscore`, validated."""

    z_threshold: ArrayLike
    alpha: ArrayLike
    eps: ArrayLike
    warmup_steps: Any
    max_norm: ArrayLike
    clip_factor: ArrayLike
    mode: Mode
    skip_update_on_spike: bool
    restart_after: Any
    min_spread: ArrayLike

    def following(
        self, memory: Moments, n: jax.Array, seen: jax.Array
    ) -> tuple[jax.Array, jax.Array, Moments]:
        """The threshold, the largest norm that is no spike, and the next memory of one group."""
        bound, add, factor, alpha, least, max_norm = (
            narrowed(_validate.number(x), n.dtype)
            for x in (
                self.z_threshold,
                self.eps,
                self.clip_factor,
                self.alpha,
                self.min_spread,
                self.max_norm,
            )
        )
        warm = memory.observed_count >= jnp.maximum(self.warmup_steps, 1)  # an average needs a norm
        off, spread = n - memory.mean, memory.std + add
        info = jnp.finfo(n.dtype)
        z = off / jnp.maximum(spread, float(info.tiny) * jnp.maximum(jnp.abs(off), 1))  # finite
        usual = memory.mean * (1 + least)
        spike = seen & warm & (z > bound) & (n > usual)
        is_known = bound < float(info.max)  # else nothing is a spike
        bound = jnp.where(is_known, bound, 1)
        reach = bound * memory.std
        if self.mode == "reciprocal":
            reach = reach * (bound / jnp.where(spike, z, jnp.ones_like(z)))
        c = memory.mean if self.mode == "mean" else factor * (memory.mean + reach)
        # Without a spike the threshold recorded is the largest norm that would not be one.
        largest = jnp.maximum(usual, memory.mean + bound * spread)
        kept = jnp.where(spike, largest, jnp.maximum(n, largest))
        kept = jnp.where(warm & is_known, kept, unlimited(n.dtype))
        limit, allowed = (jnp.minimum(x, max_norm) for x in (jnp.where(spike, c, kept), kept))
        learn = seen & ~spike if self.skip_update_on_spike else seen
        averages = memory.observed(jnp.where(spike, c, n), learn, warm, alpha)
        counts = memory.counted(seen, spike, self.restart_after)
        return limit, allowed, Moments(*averages, *counts)
