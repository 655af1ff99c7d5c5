r"""Rules that bound each element: `clip` and `clip_by_value`.

They need no norm, so they measure something only for an optional record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import _validate
from jaxclip._core import record as records
from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat, at_step
from jaxclip._core.state import ClipState
from jaxclip._core.types import AxisName, LimitTree, PyTree
from jaxclip._numerics import collectives
from jaxclip._numerics.scaled_float import apply, clipped, magnitude, narrowed

NAMES = ("min_value", "max_value")

_Bounds = list[tuple[jax.Array | None, jax.Array | None]]


def clip(
    max_delta: LimitTree, *, record: bool = False, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each element to [-max_delta, max_delta]; a complex one by its magnitude.

    $$g_i \leftarrow \min(\max(g_i, -c), c)$$

    The same as `optax.clip`. The direction of the gradient changes; `clip_by_global_norm` keeps it.

    Args:
        max_delta: c: a number >= 0, an array that broadcasts to a leaf, a schedule, `None` for no
            bound, or a prefix tree of those.
        record: whether to record the largest magnitude and the fraction of elements clipped, at
            the cost of an extra pass over memory.
        axis_name: mesh axes that shard the leaves, where they cannot be found: the record is then
            of all devices.

    Returns:
        A transformation. NaN stays NaN; integers, booleans and `float0` are passed through.

    Raises:
        TypeError: if `max_delta` is not a real number.
        ValueError: if it is negative or NaN; if it does not broadcast to a leaf; if `axis_name`
            names an axis over which a leaf is replicated.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip(1.0)
        >>> grads = jnp.array([0.5, -3.0])
        >>> print(rule.update(grads, rule.init(grads))[0])
        [ 0.5 -1. ]
    """
    _validate.limits(max_delta, "max_delta", scalar=False)

    return _rule("clip", None, max_delta, record, axis_name, symmetric=True)


def clip_by_value(
    min_value: LimitTree,
    max_value: LimitTree,
    *,
    record: bool = False,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each element to [min_value, max_value].

    $$g_i \leftarrow \min(\max(g_i, l), u)$$

    The same as `tf.clip_by_value`, and with bounds of equal size as
    `torch.nn.utils.clip_grad_value_`.

    Args:
        min_value: l: a number, an array that broadcasts to a leaf, a schedule, `None` for no bound,
            or a prefix tree of those.
        max_value: u, in the same forms.
        record: whether to record the largest magnitude and the fraction of elements clipped, at
            the cost of an extra pass over memory.
        axis_name: mesh axes that shard the leaves, where they cannot be found: the record is then
            of all devices.

    Returns:
        A transformation. NaN stays NaN; integers, booleans and `float0` are passed through.

    Raises:
        TypeError: if a bound is not a real number.
        ValueError: if a bound is NaN; if `min_value` exceeds `max_value`; if a bound does not
            broadcast to a leaf; if a leaf is complex and the bounds are not -c and c; if
            `axis_name` names an axis over which a leaf is replicated.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by_value(2.0, 5.0)
        >>> grads = jnp.array([[1.0, 1.0, 2.0, 4.0], [3.0, 4.0, 8.0, 5.0]])
        >>> print(rule.update(grads, rule.init(grads))[0])
        [[2. 2. 2. 4.]
         [3. 4. 5. 5.]]
    """
    _validate.bounds(min_value, max_value, NAMES)

    symmetric = opposite(min_value, max_value)
    return _rule("clip_by_value", min_value, max_value, record, axis_name, symmetric=symmetric)


def opposite(low: Any, high: Any) -> bool:
    """Whether the bounds are known to be -c and c, so that they bound magnitudes."""
    if not (_validate.is_known_number(low) and _validate.is_known_number(high)):
        return False
    low, high = np.asarray(low, np.float64), -np.asarray(high, np.float64)
    return low.shape == high.shape and bool((low == high).all())


def bounded(x: jax.Array, low: Any, high: Any, *, symmetric: bool, path: str) -> jax.Array:
    """One array between its bounds, in its own dtype."""
    if low is None and high is None:
        return x
    if jnp.issubdtype(x.dtype, jnp.integer):
        low, high = _integer(low, x.dtype, np.ceil), _integer(high, x.dtype, np.floor)
    low, high = (
        None if c is None else _validate.fitted(c, x.shape, name, f"the leaf {path}")
        for c, name in zip((low, high), NAMES, strict=True)
    )
    if jnp.iscomplexobj(x):
        if not symmetric:
            raise ValueError(
                f"min_value and max_value must be -c and c for the complex leaf {path}, whose "
                "magnitude is clipped: complex numbers have no order"
            )
        size = magnitude(x)
        return apply(x, clipped(size, size.number, jnp.maximum(high, 0)))
    # Selected by comparison: elements that are kept have the derivative 1, at the bounds too.
    if low is not None:
        low = narrowed(low, x.dtype)
        x = jnp.where(x < low, low, x)
    if high is not None:
        high = narrowed(high, x.dtype)
        x = jnp.where(x > high, high, x)
    return x


def _integer(bound: Any, dtype: Any, rounded: Callable[[Any], Any]) -> Any:
    """The bound of integers, which may not be an integer or exceed their range."""
    if bound is None:
        return None
    least, most = int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)
    if not isinstance(bound, jax.Array):  # exactly, without float32
        array = np.asarray(bound)
        array = array if array.dtype.kind in "iu" else rounded(array.astype(np.float64))
        whole = [int(min(max(x, least), most)) for x in array.ravel().tolist()]
        return jnp.asarray(np.array(whole, dtype).reshape(array.shape))
    if jnp.issubdtype(bound.dtype, jnp.integer):
        info = jnp.iinfo(bound.dtype)
        return jnp.clip(bound, max(least, int(info.min)), min(most, int(info.max))).astype(dtype)
    bound = jnp.ceil(bound) if rounded is np.ceil else jnp.floor(bound)
    inside = (bound > least) & (bound < most)
    ends = jnp.where(bound > 0, jnp.asarray(most, dtype), jnp.asarray(least, dtype))
    return jnp.where(inside, jnp.where(inside, bound, jnp.zeros_like(bound)).astype(dtype), ends)


def _rule(
    name: str,
    low: LimitTree,
    high: LimitTree,
    record: bool,
    axis_name: AxisName,
    *,
    symmetric: bool,
) -> optax.GradientTransformationExtraArgs:
    """The transformation for two bounds; `clip` has only a largest magnitude, `high`."""
    _validate.flag(record, "record")
    mesh = _validate.mesh_axes(axis_name)
    magnitudes = name == "clip"

    def pairs(flat: Flat, count: jax.Array) -> _Bounds:
        highs = _at_leaves(flat, high, "max_delta" if magnitudes else "max_value", count)
        if magnitudes:
            limits = [c if c is None else jnp.maximum(c, jnp.zeros_like(c)) for c in highs]
            return [(None, None) if c is None else (-c, c) for c in limits]
        return list(zip(_at_leaves(flat, low, "min_value", count), highs, strict=True))

    def step(flat: Flat, state: ClipState, params: PyTree) -> tuple[PyTree, ClipState]:
        del params
        for i, x in enumerate(flat.arrays):
            collectives.sharded_axes(x, mesh, flat.path(i))  # raises for a replicated leaf
        bounds = pairs(flat, state.update_count)
        arrays = [
            bounded(x, *pair, symmetric=symmetric, path=flat.path(i))
            for i, (x, pair) in enumerate(zip(flat.arrays, bounds, strict=True))
        ]
        seen = _seen(flat.arrays, bounds, arrays, mesh) if record else None
        return flat.rebuild(arrays), states.following(state, seen)

    kind = states.named(ClipState, name)
    return states.transformation(lambda params: states.first(name, record=record), kind, step)


def _seen(
    before: list[jax.Array], pairs: _Bounds, after: list[jax.Array], mesh: Any
) -> states.Record:
    """The record, with the largest magnitude that the bounds allow as threshold."""
    limits = [
        jnp.maximum(*(jnp.max(jnp.abs(c), initial=0) for c in (low, high)))
        for low, high in pairs
        if low is not None and high is not None
    ]
    changed = [(x != y) & (x == x) for x, y in zip(before, after, strict=True)]  # not NaN
    return records.of_elements(before, limits, changed, mesh)


def _at_leaves(flat: Flat, tree: LimitTree, name: str, count: jax.Array) -> list[jax.Array | None]:
    """The bound of every leaf at this step, as floats: unsigned integers have no negative."""
    arrays = [
        c if c is None else _validate.number(c) for c in flat.spread(at_step(tree, count), name)
    ]
    wide = jnp.result_type(float)
    return [
        c if c is None or jnp.issubdtype(c.dtype, jnp.inexact) else c.astype(wide) for c in arrays
    ]
