r"""Thresholds from a moving average of the clipped norms: a multiple of it, or two."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.flat_tree import at_step
from jaxclip._core.types import ScalarOrSchedule
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
    _validate.real_number(max_ratio, "max_ratio")
    _validate.real_number(warmup_norm, "warmup_norm")
    warmup = _validate.whole_number(warmup_steps, "warmup_steps", 0)
    return _ratio(max_ratio, None, beta, floor, max_growth, (warmup, warmup_norm))


def aggc(
    high: ScalarOrSchedule,
    *,
    low: ScalarOrSchedule | None = None,
    beta: ArrayLike = 0.98,
    floor: ArrayLike = 1e-8,
) -> Threshold:
    r"""A multiple of the moving average of the norms, from above and, if asked for, from below.

    $$n \leftarrow \min(\max(n, l S), h S), \qquad S \leftarrow \beta S + (1 - \beta) n$$

    with the new n. The average starts from the first norm, which is left as it is. The published
    code starts it from 0, and so clips the second norm to 2 % of the first.

    An update multiplies the average by at most $1 + (1 - \beta) (h - 1)$: a norm that really
    changes is followed. The published rule has a norm for each group of parameters: see
    `jaxclip.clip_by_group_norm`.

    Args:
        high: h: a number >= 1, or a schedule `count -> value`.
        low: l: a number between 0 and 1, or a schedule; `None` for no lower limit. With one, the
            rule needs `bound="set"`, and its `threshold` is the new norm.
        beta: the smoothing of the average, between 0 and 1.
        floor: lower bound on the average, so that a tiny norm can grow.

    Returns:
        A threshold whose memory is one number for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> threshold = jaxclip.thresholds.aggc(2.0, low=0.5)
        >>> rule = jaxclip.clip_by(threshold, scope="group", groups="all", bound="set")
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 1.5, 100.0, 0.01):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates)
        [1.]
        [1.5]
        [2.02]
        [0.51...]

    References:
        Li, Wu, Chang, AGGC: adaptive group gradient clipping for stabilizing large language model
        training, 2026, arXiv:2601.11864.
    """
    for name, value, ends in (("high", high, (1, math.inf)), ("low", low, (0, 1))):
        if not (callable(value) or (name == "low" and value is None)):
            _validate.between(value, *ends, name)
    made = _ratio(high, low, beta, floor)
    return made if low is None else made._replace(bound="set")


def _ratio(
    high: ScalarOrSchedule,
    low: ScalarOrSchedule | None,
    beta: ArrayLike,
    floor: ArrayLike,
    max_growth: ArrayLike | None = None,
    warmup: tuple[Any, ArrayLike] | None = None,
) -> Threshold:
    """A multiple of the moving average of the norms that are left.

    Args:
        high: the multiple.
        low: a multiple below which no norm is left; `None` for none.
        beta: the smoothing of the average.
        floor: lower bound on the average.
        max_growth: the largest factor from one threshold to the next, or `None`.
        warmup: the number of updates and the bound on the norm of the tree in them; without it
            only the first norm is left as it is.
    """
    _validate.between(beta, 0, 1, "beta")
    _validate.real_number(floor, "floor")
    steps, warmup_norm = warmup or (0, None)

    def following(
        memory: Average, n: jax.Array, seen: jax.Array, count: jax.Array, *whole: jax.Array
    ) -> tuple[jax.Array, jax.Array, Average]:
        def as_number(x: ScalarOrSchedule) -> jax.Array:
            return narrowed(_validate.number(at_step(x, count)), n.dtype)

        weight, least, known = as_number(beta), as_number(floor), memory.mean > 0
        early = (count < steps) | ~known
        most = as_number(unlimited(n.dtype) if warmup_norm is None else warmup_norm)
        first = _together(n, whole[0].astype(n.dtype), most) if whole else n
        c = jnp.where(early, first, as_number(high) * memory.mean)
        left = jnp.minimum(n, c)
        if low is not None:
            left = jnp.where(early, n, jnp.clip(n, as_number(low) * memory.mean, c))
            c = jnp.where(seen, left, c)
        smallest = jnp.where(known, jnp.minimum(memory.mean, left), left)
        mean = jnp.where(early, smallest, weight * memory.mean + (1 - weight) * left)
        mean = jnp.where(seen, jnp.maximum(mean, least), memory.mean)
        allowed = jnp.where(early, unlimited(c.dtype), c)
        return jnp.where(early & ~seen, most, c), allowed, Average(mean)

    def shared(measured: Measured) -> tuple[jax.Array, ...]:
        return (measured.count,) if warmup is None else (measured.count, measured.of_tree())

    return learned(lambda zeros: Average(jnp.zeros_like(zeros)), following, max_growth, shared)


def growth(max_growth: ArrayLike, floor: ArrayLike) -> Threshold:
    """A multiple of the last norm that was left."""
    _validate.between(max_growth, 1, 1000, "max_growth")
    return _ratio(max_growth, None, 0.0, floor)


def _together(n: jax.Array, whole: jax.Array, most: jax.Array) -> jax.Array:
    """The norm `n` after the norm of the tree was clipped to `most`."""
    over = whole > most
    whole = jnp.where(over, whole, jnp.ones_like(whole))
    # By a power of two, since the reciprocal of a large norm underflows.
    down = 1 / power_of_two_near(whole)
    clipped = jnp.where(over, most, 1) * ((n * down) / (whole * down))
    return jnp.where(over, clipped, n)
