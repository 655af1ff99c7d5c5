r"""Clipping as pure functions, with the names and arguments of the transformations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.flat_tree import flatten, is_inexact, is_integer
from jaxclip._core.measure import measure
from jaxclip._core.types import AxisName, Order, PyTree, Stacked, UnitAxes
from jaxclip._numerics.scaled_float import Norm, accumulator, apply, clipped
from jaxclip._validate import short
from jaxclip.transforms import clipping as rules
from jaxclip.transforms import elementwise


def clip(x: PyTree, max_delta: ArrayLike | None) -> PyTree:
    r"""Each element between -max_delta and max_delta, as `optax.clip`; complex ones by magnitude.

    Args:
        x: an array or a tree of them; integers are clipped too.
        max_delta: a number >= 0 or an array that broadcasts to `x`; `None` for no bound.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if `max_delta` is not a real number.
        ValueError: if it is negative or NaN, or enlarges `x`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.clip(jnp.array([0.5, -3.0]), 1.0))
        [ 0.5 -1. ]
    """
    _validate.without_schedules(max_delta=max_delta)
    if max_delta is None:
        return x
    _validate.real_number(max_delta, "max_delta", scalar=False)
    high = _validate.number(max_delta)
    return _bounded(x, -high, high, symmetric=True)


def clip_by_value(x: PyTree, min_value: ArrayLike | None, max_value: ArrayLike | None) -> PyTree:
    r"""Each element between two bounds, $\min(\max(x, l), u)$, as `tf.clip_by_value`.

    Args:
        x: an array or a tree of them; integers are clipped too, to the integers in between.
        min_value: l, a number or an array that broadcasts to `x`; `None` for none.
        max_value: u, in the same forms.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if a bound is not a real number.
        ValueError: if a bound is NaN, enlarges `x`, or `min_value` exceeds `max_value`; if `x` is
            complex and the bounds are not -c and c.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.clip_by_value(jnp.arange(10), 2, 8))
        [2 2 2 3 4 5 6 7 8 8]
    """
    _validate.without_schedules(min_value=min_value, max_value=max_value)
    _validate.bounds(min_value, max_value, elementwise.NAMES)
    symmetric = elementwise.opposite(min_value, max_value)
    return _bounded(x, min_value, max_value, symmetric=symmetric)


def _bounded(x: PyTree, low: Any, high: Any, *, symmetric: bool) -> PyTree:
    def bounded(path: Any, leaf: Any) -> Any:
        if not (is_inexact(leaf) or is_integer(leaf)):
            return leaf
        key = jax.tree_util.keystr(path) or "x"
        return elementwise.bounded(jnp.asarray(leaf), low, high, symmetric=symmetric, path=key)

    return jax.tree_util.tree_map_with_path(bounded, x)


def clip_by_norm(
    x: PyTree,
    max_norm: ArrayLike | None,
    axis: UnitAxes = None,
    ord: Order = None,
    *,
    stacked: Stacked = None,
    axis_name: AxisName = None,
) -> PyTree:
    r"""`x`, or each slice of it, scaled to a norm of at most `max_norm`, as `tf.clip_by_norm`.

    Args:
        x: an array, or a tree whose leaves are clipped one by one.
        max_norm: a number >= 0, `None`, or an array that broadcasts to the norms.
        axis: the axes that are reduced; `None` for all, `()` for none.
        ord: the norm: p >= 1, inf, `"rms"` or `"average"`; `None` is 2.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        axis_name: mesh axes over which the norm of a leaf, or of each slice, is spread, where they
            cannot be found; `()` where every slice is whole on one device.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.clip_by_norm(jnp.array([2.0, 5.0]), 5.0))
        [1.8569534 4.6423836]
    """
    _validate.without_schedules(max_norm=max_norm)
    rule = rules.clip_by_norm(max_norm, axis=axis, stacked=stacked, ord=ord, axis_name=axis_name)
    return _applied(rule, x)


def clip_by_average_norm(
    x: PyTree,
    max_norm: ArrayLike | None,
    *,
    stacked: Stacked = None,
    axis_name: AxisName = None,
) -> PyTree:
    r"""`x` scaled so that its 2-norm divided by its number of elements is at most `max_norm`.

    Args:
        x: an array, or a tree whose leaves are clipped one by one.
        max_norm: a number >= 0, or `None`.
        stacked: as for `clip_by_norm`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if `max_norm` is not a number.
        ValueError: if it is negative or NaN.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.clip_by_average_norm(jnp.array([3.0, 4.0]), 1.0))
        [1.2 1.6]
    """
    _validate.without_schedules(max_norm=max_norm)
    return _applied(rules.clip_by_average_norm(max_norm, stacked=stacked, axis_name=axis_name), x)


def clip_by_block_rms(
    x: PyTree,
    threshold: ArrayLike | None,
    axis: UnitAxes = None,
    *,
    stacked: Stacked = None,
    axis_name: AxisName = None,
) -> PyTree:
    r"""`x`, or each block of it, scaled to a root mean square of at most `threshold`.

    Args:
        x: an array, or a tree whose leaves are clipped one by one.
        threshold: a number >= 0, `None`, or an array that broadcasts to the norms.
        axis: the axes that are reduced; `None` for all.
        stacked: as for `clip_by_norm`.
        axis_name: mesh axes over which a leaf, or each block, is spread, where they cannot be
            found.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.clip_by_block_rms(jnp.array([6.0, -8.0]), 1.0))
        [ 0.84852815 -1.1313709 ]
    """
    _validate.without_schedules(threshold=threshold)
    rule = rules.clip_by_block_rms(threshold, axis=axis, stacked=stacked, axis_name=axis_name)
    return _applied(rule, x)


def adaptive_grad_clip(
    updates: PyTree,
    params: PyTree,
    clipping: ArrayLike,
    eps: ArrayLike = 1e-3,
    axis: UnitAxes = None,
    *,
    ord: Order = None,
    stacked: Stacked = None,
    axis_name: AxisName = None,
) -> PyTree:
    r"""Each unit's gradient scaled to a norm of at most `clipping` times that of its parameters.

    Args:
        updates: an array or a tree of them.
        params: the parameters, with the same structure and shapes.
        clipping: a number >= 0.
        eps: lower bound on the parameter norm.
        axis: the axes that are reduced; `None` for all but the last.
        ord: the norm: p >= 1 or inf; `None` is 2.
        stacked: as for `clip_by_norm`.
        axis_name: mesh axes over which a unit is spread, where they cannot be found.

    Returns:
        The shapes and dtypes of the updates.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or the trees differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> params, grads = jnp.array([[3.0], [4.0]]), jnp.array([[0.0], [2.0]])
        >>> print(functional.adaptive_grad_clip(grads, params, 0.1))
        [[0. ]
         [0.5]]
    """
    _validate.without_schedules(clipping=clipping)
    rule = rules.adaptive_grad_clip(
        clipping, eps, axis, stacked=stacked, ord=ord, axis_name=axis_name
    )
    return _applied(rule, updates, params)


def clip_by_global_norm(
    tree: PyTree,
    max_norm: ArrayLike | None,
    *,
    norm: ArrayLike | None = None,
    ord: Order = None,
    axis_name: AxisName = None,
) -> tuple[PyTree, jax.Array]:
    r"""All leaves scaled by one factor, to a norm of at most `max_norm`.

    The same as `tf.clip_by_global_norm`.

    Args:
        tree: any pytree of arrays.
        max_norm: a number >= 0, a scalar array, or `None` for no limit; 0 gives zeros.
        norm: the norm, if it is known; TensorFlow's `use_norm`.
        ord: the norm: p >= 1 or inf; `None` is 2.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        The tree, and its norm before clipping, a float32 (float64) scalar.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> tree = [jnp.array([3.0]), jnp.array([4.0])]
        >>> clipped, norm = functional.clip_by_global_norm(tree, 1.0)
        >>> print(clipped[0], clipped[1], norm)
        [0.6] [0.8] 5.0
    """
    _validate.without_schedules(max_norm=max_norm, norm=norm)
    limit = jnp.inf if max_norm is None else max_norm
    _validate.real_number(limit, "max_norm")
    flat = flatten(tree)
    if norm is None:
        (found,) = measure("global", ord, axis_name=axis_name).norms(flat)
    elif jnp.shape(norm) != () or isinstance(norm, (bool, str)):
        raise ValueError(f"norm={short(norm)} must be a scalar")
    else:
        number = _validate.number(norm).astype(accumulator(*flat.arrays))
        found = Norm(number, jnp.ones_like(number))
    scale = clipped(found, found.number, jnp.maximum(_validate.number(limit), 0))
    return flat.rebuild([apply(x, scale.factors) for x in flat.arrays]), found.number


def _applied(
    rule: optax.GradientTransformationExtraArgs, updates: PyTree, params: PyTree = None
) -> PyTree:
    return rule.update(updates, rule.init(updates), params)[0]
