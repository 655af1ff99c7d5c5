"""Rules with a given threshold: each a call of `clip_by`, which states their guarantees."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from jaxclip._core.types import (
    AxisName,
    Limit,
    LimitTree,
    Mask,
    NonFinite,
    Order,
    Stacked,
    UnitAxes,
)
from jaxclip.thresholds.fixed import given, relative
from jaxclip.transforms.clip_by import clip_by


def clip_by_global_norm(
    max_norm: Limit,
    *,
    ord: Order = None,
    eps: ArrayLike = 0.0,
    nonfinite: NonFinite = "propagate",
    norm_mask: Mask = None,
    scale_mask: Mask = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the whole update so that its norm is at most `max_norm`.

    $$g \leftarrow g \min\Big(1, \frac{c}{\|g\|}\Big)$$

    with the norm over all leaves together. The direction of the gradient is kept.

    Args:
        max_norm: c: a number >= 0, a scalar array, a schedule or `None` for no limit; 0 for zeros.
        ord: the norm: p >= 1 or inf; `None` is 2.
        eps: added to the norm in the quotient; 1e-6 gives `torch.nn.utils.clip_grad_norm_`.
        nonfinite: the effect of a NaN or infinite norm: `"propagate"`, `"nan"`, `"zero"` or
            `"drop"`, as for `jaxclip.clip_by`.
        norm_mask: the leaves that are measured, a prefix tree of bools or a function to one.
        scale_mask: the leaves that are scaled.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(0.1))
        >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(1)}
        >>> grads = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> print(jaxclip.metrics(state)["clip_by_global_norm/norm"])
        5.0

    References:
        Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, 2013,
        arXiv:1211.5063.
    """
    return clip_by(
        given(max_norm, "max_norm", "global"),
        scope="global",
        ord=ord,
        eps=eps,
        nonfinite=nonfinite,
        norm_mask=norm_mask,
        scale_mask=scale_mask,
        axis_name=axis_name,
        name="clip_by_global_norm",
    )


def clip_by_norm(
    max_norm: LimitTree,
    *,
    axis: UnitAxes = None,
    ord: Order = None,
    stacked: Stacked = None,
    eps: ArrayLike = 0.0,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each leaf, or each slice of it, so that its norm is at most `max_norm`.

    $$g_k \leftarrow g_k \min\Big(1, \frac{c}{\|g_k\|}\Big)$$

    for every leaf k, or every slice along `axis`, as `tf.clip_by_norm(t, clip_norm, axes)`.

    Args:
        max_norm: c: a number >= 0, a scalar array, a schedule, `None`, or a prefix tree of those.
            With `axis` also an array that broadcasts to the norms of a leaf.
        axis: the axes of a leaf that are reduced; `None` for the whole leaf, `()` for none. Axes
            that a leaf does not have are left out; a leaf that has none of them is one slice.
        ord: the norm: p >= 1 or inf; `None` is 2.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        eps: added to the norm in the quotient.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by_norm(5.0)
        >>> grads = jnp.array([2.0, 5.0])
        >>> print(rule.update(grads, rule.init(grads))[0])
        [1.8569534 4.6423836]

    References:
        `tf.clip_by_norm`; `keras.optimizers`, argument `clipnorm`.
    """
    scope = "leaf" if axis is None else "unit"
    return clip_by(
        given(max_norm, "max_norm", scope if stacked is None else None),
        scope=scope,
        ord=ord,
        axis=axis,
        stacked=stacked,
        eps=eps,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="clip_by_norm",
    )


def clip_by_average_norm(
    max_norm: LimitTree,
    *,
    stacked: Stacked = None,
    eps: ArrayLike = 0.0,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each leaf so that its 2-norm divided by its number of elements is at most `max_norm`.

    $$g_k \leftarrow g_k \min\Big(1, \frac{c}{\|g_k\|_2 / N_k}\Big)$$

    as `tf.clip_by_average_norm`. This is not the root mean square: see `clip_by_block_rms`.

    Args:
        max_norm: c: a number >= 0, a scalar array, a schedule, `None`, or a prefix tree of those.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        eps: added to the norm in the quotient.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by_average_norm(1.0)
        >>> grads = jnp.array([3.0, 4.0])
        >>> print(rule.update(grads, rule.init(grads))[0])
        [1.2 1.6]

    References:
        `tf.compat.v1.clip_by_average_norm`.
    """
    return clip_by(
        given(max_norm, "max_norm", "leaf" if stacked is None else None),
        scope="leaf",
        stacked=stacked,
        ord="average",
        eps=eps,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="clip_by_average_norm",
    )


def clip_by_block_rms(
    threshold: LimitTree,
    *,
    axis: UnitAxes = None,
    stacked: Stacked = None,
    eps: ArrayLike = 0.0,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each leaf, or each block of it, so that its root mean square is at most `threshold`.

    $$g_k \leftarrow g_k \Big/ \max\Big(1, \frac{\mathrm{rms}(g_k)}{c}\Big)$$

    as `optax.clip_by_block_rms`.

    Args:
        threshold: c: a number >= 0, a scalar array, a schedule, `None`, or a prefix tree of those.
        axis: the axes of a leaf that are reduced; `None` for the whole leaf.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        eps: added to the root mean square in the quotient.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by_block_rms(1.0, stacked=0)
        >>> layers = jnp.array([[100.0, -100.0], [0.5, 0.5]])
        >>> print(rule.update(layers, rule.init(layers))[0])
        [[ 1. -1. ]
         [ 0.5 0.5]]

    References:
        Shazeer, Stern, Adafactor, 2018, arXiv:1804.04235, section 6.
    """
    scope = "leaf" if axis is None else "unit"
    return clip_by(
        given(threshold, "threshold", scope if stacked is None else None),
        scope=scope,
        ord="rms",
        axis=axis,
        stacked=stacked,
        eps=eps,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="clip_by_block_rms",
    )


def adaptive_grad_clip(
    clipping: LimitTree,
    eps: ArrayLike = 1e-3,
    axis: UnitAxes = None,
    *,
    ord: Order = None,
    stacked: Stacked = None,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each unit's gradient in proportion to the norm of the unit's parameters.

    $$g_u \leftarrow g_u \frac{c_u}{\max(\|g_u\|, 10^{-6})} \text{ if } \|g_u\| > c_u, \qquad
      c_u = \lambda \max(\|w_u\|, \epsilon)$$

    A unit is one output channel: by default all axes of a kernel but the last are reduced, and a
    vector is one unit. Optax guesses from the rank instead, and at rank 3 reduces axis 0 alone;
    name the axes wherever the rank cannot tell.

    Args:
        clipping: lambda: a number >= 0, a scalar array, a schedule, or a prefix tree of those.
        eps: lower bound on the parameter norm, so that zero-initialized parameters can train.
        axis: the axes of a leaf that are reduced. Axes that a leaf does not have are left out; a
            leaf that has none of them is one unit.
        ord: the norm: p >= 1 or inf; `None` is 2.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose `update` needs `params`; integers among them are measured as floats.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or `params` is missing.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.adaptive_grad_clip(0.1)
        >>> params, grads = jnp.array([[3.0], [4.0]]), jnp.array([[0.0], [2.0]])
        >>> print(rule.update(grads, rule.init(params), params)[0])
        [[0. ]
         [0.5]]

    References:
        Brock, De, Smith, Simonyan, High-performance large-scale image recognition without
        normalization, 2021, arXiv:2102.06171.
    """
    return clip_by(
        relative(clipping, eps, "clipping"),
        scope="unit",
        ord=ord,
        axis=axis,
        stacked=stacked,
        floor=1e-6,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="adaptive_grad_clip",
    )
