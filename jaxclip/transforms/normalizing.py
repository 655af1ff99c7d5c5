r"""Rules that set a norm instead of bounding it: each a call of `clip_by(bound="set")`."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from jaxclip._core.types import (
    AxisName,
    Groups,
    LimitTree,
    NonFinite,
    Order,
    Scope,
    Stacked,
    UnitAxes,
)
from jaxclip.thresholds.fixed import given
from jaxclip.thresholds.stabilizing import stabilized
from jaxclip.transforms.clip_by import clip_by


def normalize_by_norm(
    target_norm: LimitTree = 1.0,
    *,
    scope: Scope = "global",
    groups: Groups = None,
    axis: UnitAxes = None,
    ord: Order = None,
    stacked: Stacked = None,
    eps: ArrayLike = 0.0,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales updates up or down so that their norm is `target_norm`: normalized gradients.

    $$g \leftarrow g \, \frac{c}{\|g\|} \quad \text{for } \|g\| > 0$$

    The step then depends on the direction of the gradient alone. A zero update stays zero. Near a
    minimum, where gradients vanish, steps keep their length: let the learning rate decay. As
    `optax.normalize_by_update_norm`, whose `eps` leaves norms below 1e-6 small.

    `fraction` and `clipped_count` of the record count norms that changed.

    Args:
        target_norm: c: a number >= 0, a scalar array, a schedule, `None` for no change, or where
            each leaf has a norm a prefix tree of those.
        scope: `"global"` for one norm of the whole tree, or a norm for each `"group"`, `"leaf"` or
            `"unit"`.
        groups: the labels of the leaves at scope `"group"`, as for `jaxclip.clip_by_group_norm`.
        axis: the axes of a leaf that a unit reduces, as for `jaxclip.clip_by`.
        ord: the norm: p >= 1 or inf; `"rms"`; `None` is 2.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        eps: added to the norm in the quotient; 1e-6 gives Optax's numbers.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.normalize_by_norm()
        >>> state = rule.init(jnp.zeros(2))
        >>> for grads in (jnp.array([3.0, 4.0]), jnp.array([3e-30, 4e-30]), jnp.zeros(2)):
        ...     updates, state = rule.update(grads, state)
        ...     print(updates)
        [0.6 0.8]
        [0.6 0.8]
        [0. 0.]

    References:
        Hazan, Levy, Shalev-Shwartz, Beyond convexity: stochastic quasi-convex optimization, 2015,
        arXiv:1507.02030; `optax.normalize_by_update_norm`.
    """
    return clip_by(
        given(target_norm, "target_norm", scope if stacked is None else None),
        scope=scope,
        groups=groups,
        ord=ord,
        axis=axis,
        stacked=stacked,
        bound="set",
        eps=eps,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="normalize_by_norm",
    )


def stabilize_gradient(
    *,
    beta1: ArrayLike = 0.7,
    beta2: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    scope: Scope = "leaf",
    groups: Groups = None,
    stacked: Stacked = None,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Sets the norm of each leaf to one near 1 that depends little on the current gradient.

    $$g_k \leftarrow \frac{g_k}{\|g_k\|} \, \frac{m_k}{\sqrt{v_k} + \epsilon}$$

    with moving averages m and v of the norm and of its square, both corrected for their start from
    0. Norms that do not change become 1. A spike, the larger it is, tends to
    $(1 - \beta_1) / \sqrt{1 - \beta_2}$, 0.95 by default; no sequence of norms leads to more than
    1.41. The unit of the gradients is gone, so the learning rate alone sets the step.

    Args:
        beta1: the smoothing of m, at least 0 and below 1.
        beta2: the smoothing of v.
        eps: added to the root of v; norms far below it stay small.
        scope: a norm for each `"leaf"`, as in the paper, or each `"unit"` or `"group"`, or
            `"global"`.
        groups: the labels of the leaves at scope `"group"`, as for `jaxclip.clip_by_group_norm`.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`. The averages do
            not see it.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose memory is four numbers for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.stabilize_gradient()
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (2.0, 2.0, 2000.0, 2.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates.round(3))
        [1.]
        [1.]
        [0.7...]
        [0.5...]

    References:
        Huang et al., Stable-SPAM: how to train in 4-bit more stably than 16-bit Adam, 2025,
        arXiv:2502.17055, version 3.
    """
    return clip_by(
        stabilized(beta1, beta2, eps),
        scope=scope,
        groups=groups,
        stacked=stacked,
        bound="set",
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="stabilize_gradient",
    )
