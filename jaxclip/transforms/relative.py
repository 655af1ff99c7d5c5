r"""The rule that bounds each element by its weight, with one factor for each leaf: `clippy`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.flat_tree import Flat, alike
from jaxclip._core.measure import measure
from jaxclip._core.types import AxisName, NonFinite, PyTree, Stacked
from jaxclip._numerics.scaled_float import Norm, accumulator, magnitude, narrowed, times, widened
from jaxclip.thresholds.fixed import given
from jaxclip.transforms.clip_by import Rule


def clippy(
    rel: ArrayLike = 0.1,
    abs: ArrayLike = 1e-7,
    *,
    stacked: Stacked = None,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales each leaf of the step so that no element changes its weight by more than a part.

    $$u_k \leftarrow u_k \min\Big(1, \min_i \frac{\rho |w_{k,i}| + \alpha}{|u_{k,i}|}\Big)$$

    Put it after the learning rate, as in `optax.chain(optax.adam(1e-3), jaxclip.clippy())`: it
    bounds the step of the weights, and not the gradient. The direction of each leaf is kept, so one
    element decides for its leaf. With the default `abs` one weight that is 0 freezes its leaf: a
    bias that starts from zeros grows by 1e-7 a step. Choose a larger `abs`, such as the least
    change that matters, or leave such leaves out with `optax.masked`.

    The recorded norm is the largest $|u| / (\rho |w| + \alpha)$ of all elements, its threshold 1.

    Args:
        rel: rho, a number >= 0.
        abs: alpha, a number >= 0.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        nonfinite: the effect of a leaf with NaN or inf, in the step or in the weights, as for
            `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose `update` needs `params`; integers among them are measured as floats.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or `params` is missing.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clippy(0.125, 0.0)
        >>> params, steps = jnp.array([1.0, -2.0]), jnp.array([0.01, 0.5])
        >>> print(rule.update(steps, rule.init(params), params)[0])
        [0.005 0.25 ]

    References:
        Tang et al., Improving training stability for multitask ranking models in recommender
        systems, 2023, arXiv:2302.09178.
    """
    for name, value in (("rel", rel), ("abs", abs)):
        _validate.real_number(value, name, finite=True)
    leaves = measure("leaf", math.inf, axis_name=axis_name, stacked=stacked)

    def relative(params: PyTree, flat: Flat) -> list[Norm]:
        if params is None:
            raise ValueError("params=None: clippy needs update(..., params)")
        pairs = zip(flat.arrays, alike(params, flat).arrays, strict=True)
        shares = [_share(u, w, rel, abs) for u, w in pairs]
        norms = leaves.norms(flat._replace(arrays=[share for share, _ in shares]))
        pairs = zip(norms, shares, strict=True)
        return [Norm(n.value, n.unit * jnp.asarray(unit, n.unit.dtype)) for n, (_, unit) in pairs]

    limit = given(1.0, "threshold", "leaf")
    return Rule("clippy", leaves, limit, nonfinite, relative=relative).transformation()


def _share(u: jax.Array, w: jax.Array, rel: ArrayLike, abs: ArrayLike) -> tuple[jax.Array, float]:
    """Each element as a part of its allowed change, divided by a power of two, which is next.

    A part may exceed the largest float where an element is large and its weight small. Parts that
    underflow in this unit are far below 1.
    """
    wide = accumulator(u, w)
    unit = 2.0 ** (jnp.finfo(wide).maxexp * 3 // 4)
    down = jnp.asarray(1 / unit, wide)
    if jnp.iscomplexobj(u):
        size, unit = magnitude(widened(u, wide)).value, 2 * unit
    else:
        size = jnp.abs(u.astype(wide))
    share, least = (narrowed(_validate.number(x), wide) for x in (rel, abs))
    most = share * jnp.abs(widened(w, wide)) + least
    frozen, is_large = most == 0, size >= 1
    part = jnp.where(is_large, times(size, down), size) / jnp.where(frozen, 1, most)
    part = jnp.where(is_large, part, times(part, down))
    largest = jnp.full_like(part, jnp.finfo(wide).max)
    part = jnp.where(frozen & (size > 0), largest, part)
    return jnp.where(jnp.isfinite(size), jnp.minimum(part, largest), size), unit
