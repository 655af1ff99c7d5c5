r"""A threshold from a moving average of the clipped norms: a multiple of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._numerics.scaled_float import narrowed, power_of_two_near, unlimited
from jaxclip.thresholds.base import Measured, Threshold, learned
from jaxclip.thresholds.moving_average import Average


def ema_ratio(
    *,
    max_ratio: ArrayLike = 1.05,
    beta: ArrayLike = 0.98,
    warmup_steps: int = 100,
    warmup_norm: ArrayLike = 1.0,
    floor: ArrayLike = 1e-8,
    max_growth: ArrayLike | None = None,
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
        max_growth: the largest growth of the threshold from one norm to the next, a factor between
            1 and 1000; `None` for any. See `Threshold`.

    Returns:
        A threshold whose memory is one number for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
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
        memory: Average,
        n: jax.Array,
        seen: jax.Array,
        whole: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, jax.Array, Average]:
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
        allowed = jnp.where(early, unlimited(c.dtype), c)
        return jnp.where(early & ~seen, most, c), allowed, Average(mean)

    def together(measured: Measured) -> tuple[jax.Array, jax.Array]:
        return measured.of_tree(), measured.count

    return learned(lambda zeros: Average(jnp.zeros_like(zeros)), following, max_growth, together)
