r"""A threshold from two moving averages of the norms, as Adam's step is made of two moments."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._numerics.scaled_float import narrowed, power_of_two_near, unlimited
from jaxclip.thresholds.base import Threshold, learned


class NormMoments(NamedTuple):
    """Moving averages of each norm that start from 0, and the weights that they add up.

    Attributes:
        mean: the average of the norms.
        root_mean_square: the root of the average of their squares, which could overflow.
        mean_weight: the sum of the weights in the average of the norms, 1 in the end.
        square_weight: the same of the squares.
    """

    mean: jax.Array
    root_mean_square: jax.Array
    mean_weight: jax.Array
    square_weight: jax.Array


def stabilized(beta1: ArrayLike, beta2: ArrayLike, eps: ArrayLike) -> Threshold:
    r"""The corrected average of the norms, over the root of that of their squares."""
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        _validate.between(beta, 0, 1, name)
        if _validate.is_known_number(beta) and np.asarray(beta) == 1:
            raise ValueError(f"{name}={beta!r} must be below 1: the average would never move")
    _validate.real_number(eps, "eps", finite=True)

    def first(zeros: jax.Array) -> NormMoments:
        return NormMoments(*(jnp.zeros_like(zeros) for _ in range(4)))

    def following(
        memory: NormMoments, n: jax.Array, seen: jax.Array
    ) -> tuple[jax.Array, jax.Array, NormMoments]:
        b1, b2, least = (narrowed(_validate.number(x), n.dtype) for x in (beta1, beta2, eps))
        unit = power_of_two_near(jnp.maximum(memory.root_mean_square, n))
        root, new = memory.root_mean_square / unit, n / unit
        fresh = NormMoments(
            b1 * memory.mean + (1 - b1) * n,
            jnp.sqrt(b2 * root * root + (1 - b2) * new * new) * unit,
            b1 * memory.mean_weight + (1 - b1),
            b2 * memory.square_weight + (1 - b2),
        )
        after = NormMoments(*(jnp.where(seen, x, y) for x, y in zip(fresh, memory, strict=True)))
        known = after.mean_weight > 0
        mean = after.mean / jnp.where(known, after.mean_weight, 1)
        deviation = after.root_mean_square / jnp.sqrt(jnp.where(known, after.square_weight, 1))
        c = mean / jnp.where(known, deviation + least, 1)
        c = jnp.where(known, c, unlimited(n.dtype))
        return c, c, after

    return learned(first, following)
