r"""Thresholds from moving averages of the norms: a z-score, and a ratio to the average."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._numerics.scaled_float import hypot, narrowed, power_of_two_near, unlimited
from jaxclip._types import Mode
from jaxclip.thresholds.base import Measured, Threshold, learned


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

    Returns:
        A threshold whose memory is four numbers for every norm.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
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
    return learned(Moments.empty, rule.following)


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
    ) -> tuple[jax.Array, Moments]:
        """The threshold and the next memory of one group."""
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
        limit = jnp.where(warm & is_known, jnp.maximum(n, largest), unlimited(n.dtype))
        limit = jnp.where(spike, c, limit)
        learn = seen & ~spike if self.skip_update_on_spike else seen
        averages = memory.observed(jnp.where(spike, c, n), learn, warm, alpha)
        counts = memory.counted(seen, spike, self.restart_after)
        return jnp.minimum(limit, max_norm), Moments(*averages, *counts)


class Average(NamedTuple):
    """The moving average of the clipped norms; 0 before the first."""

    mean: jax.Array


def ema_ratio(
    *,
    max_ratio: ArrayLike = 1.05,
    beta: ArrayLike = 0.98,
    warmup_steps: int = 100,
    warmup_norm: ArrayLike = 1.0,
    floor: ArrayLike = 1e-8,
) -> Threshold:
    r"""A multiple of the moving average of the clipped norms: $c = \lambda \gamma$.

    $$\gamma \leftarrow \beta \gamma + (1 - \beta) \min(n, \lambda \gamma)$$

    The first `warmup_steps` updates are clipped together, by the norm of the whole tree, to
    `warmup_norm`, and $\gamma$ is the smallest clipped norm so far.

    An update multiplies the average by at most $1 + (1 - \beta) (\lambda - 1)$, 1.001 by default: a
    norm that really changes by a factor f is followed in $1000 \ln f$ updates.

    Args:
        max_ratio: lambda, a number >= 0.
        beta: the smoothing of the average, between 0 and 1.
        warmup_steps: the number of updates of the warm-up.
        warmup_norm: the bound on the norm of the tree in the warm-up.
        floor: lower bound on the average, so that a leaf with a tiny gradient in the warm-up can
            grow. A leaf without any gradient stays in the warm-up until it has one.

    Returns:
        A threshold whose memory is one number for every norm.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> threshold = jaxclip.thresholds.ema_ratio(warmup_steps=1, warmup_norm=10.0)
        >>> rule = jaxclip.clip_by(threshold, scope="leaf")
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 1.0, 100.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates)
        [1.]
        [1.]
        [1.05]

    References:
        Wang et al., AdaGC: improving training stability for large language model pretraining,
        2025, arXiv:2502.11034.
    """
    _validate.between(beta, 0, 1, "beta")
    for name, value in (("max_ratio", max_ratio), ("warmup_norm", warmup_norm), ("floor", floor)):
        _validate.real_number(value, name)
    warmup = _validate.whole_number(warmup_steps, "warmup_steps", 0)

    def following(
        memory: Average, n: jax.Array, seen: jax.Array, whole: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, Average]:
        ratio, weight, most, least = (
            narrowed(_validate.number(x), n.dtype) for x in (max_ratio, beta, warmup_norm, floor)
        )
        known = memory.mean > 0
        early = (count < warmup) | ~known
        # By a power of two, since the reciprocal of a large norm underflows.
        whole = whole.astype(n.dtype)
        over = whole > most
        whole = jnp.where(over, whole, jnp.ones_like(whole))
        down = 1 / power_of_two_near(whole)
        clipped = jnp.where(over, most, 1) * ((n * down) / (whole * down))
        clipped = jnp.where(over, clipped, n)
        c = jnp.where(early, clipped, ratio * memory.mean)
        left = jnp.minimum(n, c)
        smallest = jnp.where(known, jnp.minimum(memory.mean, left), left)
        mean = jnp.where(early, smallest, weight * memory.mean + (1 - weight) * left)
        mean = jnp.where(seen, jnp.maximum(mean, least), memory.mean)
        return jnp.where(early & ~seen, most, c), Average(mean)

    def together(measured: Measured) -> tuple[jax.Array, jax.Array]:
        return measured.of_tree(), measured.count

    return learned(lambda zeros: Average(jnp.zeros_like(zeros)), following, together)
