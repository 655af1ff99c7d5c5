r"""Thresholds from moving averages of the norms: a z-score, and a ratio to the average."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import _validate as _checks
from jaxclip._numerics import scaled_float as _wide
from jaxclip.thresholds.base import Measured, Threshold, learned

MODES = ("reciprocal", "max", "mean")


class Moments(NamedTuple):
    """Mean and standard deviation of the norms, of each norm by itself.

    Attributes:
        mean: the average.
        std: the standard deviation, itself and not its square, which could overflow.
        count: observations since the warm-up began; int32.
        run: spikes in a row; int32.
    """

    mean: jax.Array
    std: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    run: jax.Array

    def collected(self, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and population standard deviation with one observation more (Welford)."""
        k = (self.count + 1).astype(n.dtype)
        off = n - self.mean
        mean = self.mean + off / k
        std = jnp.sqrt(1 - 1 / k) * jnp.hypot(self.std, off / jnp.sqrt(k))
        alone = self.count == 0
        return jnp.where(alone, n, mean), jnp.where(alone, jnp.zeros_like(n), std)

    def averaged(self, x: jax.Array, alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Exponential moving averages, the variance about the new mean."""
        mean = alpha * self.mean + (1 - alpha) * x
        return mean, jnp.hypot(jnp.sqrt(alpha) * self.std, jnp.sqrt(1 - alpha) * (x - mean))


def zscore(
    *,
    z_threshold: Any = 2.5,
    alpha: Any = 0.97,
    eps: Any = 1e-6,
    warmup_steps: Any = np.int32(25),
    max_norm: Any = 1.0,
    clip_factor: Any = 1.0,
    mode: str = "reciprocal",
    skip_update_on_spike: bool = False,
    restart_after: Any = np.int32(200),
) -> Threshold:
    r"""Bounds norms that lie many standard deviations above their moving average.

    With the average $\mu$ and the standard deviation $\sigma$ of the norms before, a norm is a
    spike if $z = (n - \mu) / (\sigma + \epsilon) > z^*$, and then may be at most

    | mode | threshold |
    |---|---|
    | `"reciprocal"` | $\phi (\mu + z^* \sigma \cdot z^* / z)$: the worse a spike, the less of it |
    | `"max"` | $\phi (\mu + z^* \sigma)$ |
    | `"mean"` | $\mu$ |

    Then $\mu \leftarrow \alpha \mu + (1 - \alpha) x$ and
    $\sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha) (x - \mu)^2$, where x is n, or on a spike
    the threshold. The first `warmup_steps` norms only give the first $\mu$ and $\sigma$.

    Args:
        z_threshold: z*, a number >= 0.
        alpha: the smoothing of the averages, between 0 and 1.
        eps: added to the standard deviation.
        warmup_steps: how many norms are collected first.
        max_norm: a threshold besides, in the warm-up the only one; `None` for none.
        clip_factor: phi.
        mode: see above.
        skip_update_on_spike: whether a spike leaves the averages as they are.
        restart_after: so many spikes in a row are no spikes but a new scale, and the warm-up begins
            again. `None` is the published rule, which holds a norm that has really changed at its
            old average for ever.

    Returns:
        A threshold whose memory is four numbers for every norm.

    Raises:
        TypeError: if an argument is of a wrong type.
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
    _checks.choice(MODES, mode=mode)
    _checks.real_number(z_threshold=z_threshold)
    _checks.real_number(eps=eps)
    _checks.real_number(clip_factor=clip_factor)
    _checks.between(0, 1, alpha=alpha)
    _checks.flag(skip_update_on_spike=skip_update_on_spike)
    warmup = _checks.whole_number(fixed=False, warmup_steps=warmup_steps)
    patience = restart_after
    if patience is not None:
        patience = _checks.whole_number(fixed=False, restart_after=restart_after)
    if max_norm is not None:
        _checks.real_number(max_norm=max_norm)

    def first(zeros: jax.Array) -> Moments:
        none = jnp.zeros_like(zeros, jnp.int32)
        return Moments(jnp.zeros_like(zeros), jnp.zeros_like(zeros), none, jnp.zeros_like(none))

    def following(
        memory: Moments, n: jax.Array, seen: jax.Array, most: jax.Array
    ) -> tuple[jax.Array, Moments]:
        bound, add, factor, weight = (
            _checks.number(x).astype(n.dtype) for x in (z_threshold, eps, clip_factor, alpha)
        )
        warm = memory.count >= jnp.maximum(warmup, 1)  # without any norm there is no average
        z = (n - memory.mean) / (memory.std + add)
        spike = seen & warm & (z > bound)
        reach = bound * memory.std
        if mode == "reciprocal":
            reach = reach * (bound / jnp.where(spike, z, jnp.ones_like(z)))
        c = memory.mean if mode == "mean" else factor * (memory.mean + reach)
        # Where nothing is clipped, what is told is the norm up to which nothing would have been.
        reached = memory.mean + bound * (memory.std + add)
        bearable = jnp.maximum(n, jnp.where(bound < jnp.inf, reached, bound))
        told = jnp.where(spike, c, jnp.where(warm, bearable, jnp.full_like(n, jnp.inf)))
        learn = seen & ~spike if skip_update_on_spike else seen
        x = jnp.where(spike, c, n)
        averages = zip(memory.averaged(x, weight), memory.collected(n), strict=True)
        mean, std = (jnp.where(warm, later, early) for later, early in averages)
        run = jnp.where(seen, jnp.where(spike, memory.run + 1, 0), memory.run)
        count = jnp.where(seen, optax.safe_increment(memory.count), memory.count)
        if patience is not None:
            restart = run >= jnp.maximum(patience, 1)  # a traced 0 would restart without a spike
            count, run = (jnp.where(restart, 0, x) for x in (count, run))
        mean, std = jnp.where(learn, mean, memory.mean), jnp.where(learn, std, memory.std)
        return jnp.minimum(told, most.astype(n.dtype)), Moments(mean, std, count, run)

    def limit(measured: Measured) -> tuple[jax.Array]:
        return (_checks.number(jnp.inf if max_norm is None else max_norm),)

    return learned(first, following, limit)


class Average(NamedTuple):
    """The moving average of the clipped norms; 0 before there was one."""

    mean: jax.Array


def ema_ratio(
    *,
    max_ratio: Any = 1.05,
    beta: Any = 0.98,
    warmup_steps: Any = np.int32(100),
    warmup_norm: Any = 1.0,
    floor: Any = 1e-8,
) -> Threshold:
    r"""A multiple of the moving average of the clipped norms: $c = \lambda \gamma$.

    $$\gamma \leftarrow \beta \gamma + (1 - \beta) \min(n, \lambda \gamma)$$

    In the first `warmup_steps` updates everything is clipped together, by the norm of the whole
    tree, to `warmup_norm`, and $\gamma$ is the least norm that was left of each.

    The average can grow by a factor of at most $1 + (1 - \beta) (\lambda - 1)$ in an update, 1.001
    as given: a norm whose scale really changes by a factor f is followed in $1000 \ln f$ updates.

    Args:
        max_ratio: lambda, a number >= 0.
        beta: the smoothing of the average, between 0 and 1.
        warmup_steps: how many updates the warm-up has.
        warmup_norm: what the norm of the tree is clipped to in the warm-up.
        floor: the least that the average may be, so that what had next to no gradient in the
            warm-up can grow. What had none at all stays in the warm-up until it has.

    Returns:
        A threshold whose memory is one number for every norm.

    Raises:
        TypeError: if an argument is of a wrong type.
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
    _checks.real_number(max_ratio=max_ratio)
    _checks.between(0, 1, beta=beta)
    _checks.real_number(warmup_norm=warmup_norm)
    _checks.real_number(floor=floor)
    warmup = _checks.whole_number(0, fixed=False, warmup_steps=warmup_steps)

    def following(
        memory: Average, n: jax.Array, seen: jax.Array, whole: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, Average]:
        ratio, weight, most, least = (
            _checks.number(x).astype(n.dtype) for x in (max_ratio, beta, warmup_norm, floor)
        )
        whole = whole.astype(n.dtype)
        known = memory.mean > 0
        early = (count < warmup) | ~known
        # By a power of two near it: the reciprocal of a large norm is none of the dtype's.
        over = whole > most
        whole = jnp.where(over, whole, jnp.ones_like(whole))
        down = 1 / _wide.power_of_two_near(whole)
        clipped = jnp.where(over, most * ((n * down) / (whole * down)), n)
        c = jnp.where(early, clipped, ratio * memory.mean)
        left = jnp.minimum(n, c)
        least_so_far = jnp.where(known, jnp.minimum(memory.mean, left), left)
        mean = jnp.where(early, least_so_far, weight * memory.mean + (1 - weight) * left)
        mean = jnp.where(seen, jnp.maximum(mean, least), memory.mean)
        return jnp.where(early & ~seen, most, c), Average(mean)

    def together(measured: Measured) -> tuple[jax.Array, jax.Array]:
        return measured.of_tree(), measured.count

    return learned(lambda zeros: Average(jnp.zeros_like(zeros)), following, together)
