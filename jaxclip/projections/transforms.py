r"""Projections of weights: transformations that make `optax.apply_updates` land inside a set.

They come last in a chain, get the update u and the weights w, and return P(w + u) - w.
"""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from jaxclip._core.types import AxisName, LimitTree, Mask, Stacked, UnitAxes
from jaxclip.projections.constraints import elements_between, norms_between
from jaxclip.projections.projection import projection


def project_max_norm(
    max_norm: LimitTree = 2.0,
    *,
    axis: UnitAxes = None,
    mask: Mask = None,
    axis_name: AxisName = None,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the norm of each unit's weights at most `max_norm`.

    $$u \leftarrow P(w + u) - w, \qquad P(w) = w \min\Big(1, \frac{c}{\|w\|_2}\Big)$$

    for every unit.

    By default a unit is the incoming weights of one output: for a Dense kernel of shape (in, out),
    a column, as in Keras with `axis=0`. `axis=1` bounds the rows instead, the outgoing weights of
    one input, as `tf.clip_by_norm(weights, c, axes=1)`.

    The projection is idempotent: a unit inside the set is unchanged bit for bit, so weights are
    never eroded. `update` returns a difference in the weights' dtype, which lands to a rounding of
    the weights before the step: weights that start far outside the set, say at a thousand times the
    limit, need a second step.

    In bfloat16 and float16 the weights after the step, w + u in their dtype, have a norm of at most
    c to 1e-5, and of at least c minus a rounding: P(w + u) is rounded towards zero. Where it is
    within a factor of two of w, the difference is exact; elsewhere it is rounded to the same side.
    An update of another dtype inside the set becomes the one that leads to the number nearest to
    w + u.

    Args:
        max_norm: c: a number >= 0, a scalar array, a schedule, or a prefix tree of those.
        axis: the axes of a leaf that are reduced; `None` for all but the last; or a function
            `(name, leaf) -> axes`, such as `jaxclip.projections.flax_units`.
        mask: the leaves to project: a prefix tree of bools, or a function from the parameters
            to one. `None`: leaves of rank >= 2 that are not called `bias`, that is kernels. The
            only array of a wrapper, as of `nnx.Param`, has the name of its wrapper.
        axis_name: mesh axes over which a unit is spread, where they cannot be found.
        stacked: the axis along which a leaf stacks layers, or a function `(name, leaf) -> axis or
            None`. Each slice is a leaf of its own; `axis` counts the axes of a slice, and a
            function of `axis` gets its shape.

    Returns:
        A transformation, last in a chain, whose `update` needs `params` and returns updates in the
        weights' dtype.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or `params` is missing.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = optax.chain(optax.sgd(1.0), jaxclip.project_max_norm(1.0))
        >>> params = {"kernel": jnp.array([[0.6], [0.0]])}
        >>> grads = {"kernel": jnp.array([[0.0], [-0.8]])}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> print(optax.apply_updates(params, updates)["kernel"])
        [[0.6]
         [0.8]]

    References:
        Srebro, Rennie, Jaakkola, Maximum-margin matrix factorization, 2005; Srivastava et al.,
        Dropout, 2014; `keras.constraints.MaxNorm`.
    """
    inside = norms_between(None, max_norm, ("min_norm", "max_norm"))
    return projection(
        "project_max_norm", inside, axis=axis, mask=mask, axis_name=axis_name, stacked=stacked
    )


def project_unit_norm(
    *,
    axis: UnitAxes = None,
    mask: Mask = None,
    axis_name: AxisName = None,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the norm of each unit's weights at 1.

    $$u \leftarrow P(w + u) - w, \qquad P(w) = \frac{w}{\|w\|_2}$$

    for every unit. A unit of zeros has no direction and stays as it is. In bfloat16 and float16 the
    result is rounded to the nearest number, so a norm is 1 to half an epsilon of the dtype.

    Args:
        axis: the axes of a leaf that are reduced, as for `project_max_norm`.
        mask: the leaves to project, as for `project_max_norm`.
        axis_name: mesh axes over which a unit is spread, where they cannot be found.
        stacked: the axis along which a leaf stacks layers, as for `project_max_norm`.

    Returns:
        A transformation, last in a chain, whose `update` needs `params`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or `params` is missing.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = jaxclip.project_unit_norm()
        >>> params = jnp.array([[0.0], [1.0]])
        >>> updates, _ = tx.update(jnp.array([[0.75], [0.0]]), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [[0.6]
         [0.8]]

    References:
        `keras.constraints.UnitNorm`.
    """
    inside = norms_between(1.0, 1.0, ("norm", "norm"))
    return projection(
        "project_unit_norm", inside, axis=axis, mask=mask, axis_name=axis_name, stacked=stacked
    )


def project_min_max_norm(
    min_norm: LimitTree = 0.0,
    max_norm: LimitTree = 1.0,
    rate: ArrayLike = 1.0,
    *,
    axis: UnitAxes = None,
    mask: Mask = None,
    axis_name: AxisName = None,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the norm of each unit's weights between two bounds.

    $$u \leftarrow P(w + u) - w, \qquad
      P(w) = w \, \frac{r \min(\max(n, a), b) + (1 - r) n}{n}, \qquad n = \|w\|_2$$

    for every unit. A unit of zeros has no direction and stays as it is. Weights of 16 bits are
    rounded to the inside; to the nearest number where a and b differ by less than a rounding.

    Args:
        min_norm: a: a finite number >= 0, a scalar array, a schedule, `None` for no bound, or a
            prefix tree of those. Where a schedule gives inf, which no norm can reach, the unit
            stays as it is.
        max_norm: b, in the same forms; inf is no bound.
        rate: r, between 0 and 1: the fraction of the way back in one step.
        axis: the axes of a leaf that are reduced, as for `project_max_norm`.
        mask: the leaves to project, as for `project_max_norm`.
        axis_name: mesh axes over which a unit is spread, where they cannot be found.
        stacked: the axis along which a leaf stacks layers, as for `project_max_norm`.

    Returns:
        A transformation, last in a chain, whose `update` needs `params`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, if `min_norm` exceeds `max_norm`, or `params`
            is missing.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = jaxclip.project_min_max_norm(0.5, 1.0)
        >>> params = jnp.array([[0.0, 0.0], [2.0, 0.1]])
        >>> updates, _ = tx.update(jnp.zeros((2, 2)), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [[0.  0. ]
         [1.  0.5]]

    References:
        `keras.constraints.MinMaxNorm`.
    """
    inside = norms_between(min_norm, max_norm, ("min_norm", "max_norm"), rate)
    return projection(
        "project_min_max_norm", inside, axis=axis, mask=mask, axis_name=axis_name, stacked=stacked
    )


def project_non_negative(
    *, mask: Mask = None, record: bool = False, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps weights at 0 or above: $u \leftarrow \max(w + u, 0) - w$.

    Args:
        mask: the leaves to project, as for `project_max_norm`: by default kernels.
        record: whether to record the largest weight and the fraction of weights that were moved, at
            the cost of an extra pass over memory.
        axis_name: mesh axes that shard the leaves, where they cannot be found: the record is then
            of all devices.

    Returns:
        A transformation, last in a chain, whose `update` needs `params`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if `params` is missing, or a leaf is complex.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = jaxclip.project_non_negative()
        >>> params = jnp.array([[1.0, 2.0]])
        >>> updates, _ = tx.update(jnp.array([[-3.0, 1.0]]), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [[0. 3.]]

    References:
        `keras.constraints.NonNeg`.
    """
    inside = elements_between(0.0, None, ("min_value", "max_value"))
    return projection("project_non_negative", inside, mask=mask, axis_name=axis_name, record=record)


def project_box(
    min_value: LimitTree,
    max_value: LimitTree,
    *,
    mask: Mask = None,
    record: bool = False,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps each weight between two bounds: $u \leftarrow \min(\max(w + u, l), h) - w$.

    The bounds of 16-bit weights are the least and the largest number of their dtype in between.

    Args:
        min_value: l: a number, an array that broadcasts to a leaf, a schedule, `None` for no bound,
            or a prefix tree of those.
        max_value: h, in the same forms.
        mask: the leaves to project, as for `project_max_norm`: by default kernels.
            `mask=True` takes biases as well, as for the critic of a Wasserstein GAN.
        record: whether to record the largest weight and the fraction of weights that were moved, at
            the cost of an extra pass over memory.
        axis_name: mesh axes that shard the leaves, where they cannot be found: the record is then
            of all devices.

    Returns:
        A transformation, last in a chain, whose `update` needs `params`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if a bound is NaN, `min_value` exceeds `max_value`, or `params` is missing; if a
            bound does not broadcast to a leaf, or a leaf is complex.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = jaxclip.project_box(-0.01, 0.01)
        >>> params = jnp.array([[0.0, 0.005]])
        >>> updates, _ = tx.update(jnp.array([[0.5, 0.001]]), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [[0.01  0.006]]

    References:
        Arjovsky, Chintala, Bottou, Wasserstein GAN, 2017, arXiv:1701.07875; Elsayed et al., Weight
        clipping for deep continual and reinforcement learning, 2024, arXiv:2407.01704.
    """
    inside = elements_between(min_value, max_value, ("min_value", "max_value"))
    return projection("project_box", inside, mask=mask, axis_name=axis_name, record=record)
