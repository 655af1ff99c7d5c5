r"""Rules that bound each element: `clip` and `clip_by_value`.

They need no norm, so they measure something only for an optional record.
"""

from __future__ import annotations

import functools
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
from jaxclip._numerics.scaled_float import apply, clipped, magnitude, narrowed, unlimited

NAMES = ("min_value", "max_value")


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
        scale = clipped(size, size.number, jnp.maximum(high, 0))
        return apply(x, scale.factors)
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

    def step(flat: Flat, state: ClipState, params: PyTree) -> tuple[PyTree, ClipState]:
        del params
        paths = tuple([flat.path(i) for i in range(len(flat.arrays))])
        for x, path in zip(flat.arrays, paths, strict=True):
            collectives.sharded_axes(x, mesh, path)  # raises for a replicated leaf
        name = "max_delta" if magnitudes else "max_value"
        highs = _at_leaves(flat, high, name, state.update_count)
        lows = None if magnitudes else _at_leaves(flat, low, "min_value", state.update_count)
        arrays, seen = _bounded(
            flat.arrays, lows, highs, paths, symmetric, record, mesh, unlimited(jnp.float32)
        )
        return flat.rebuild(arrays), states.following(state, seen)

    kind = states.named(ClipState, name)
    return states.transformation(lambda params: states.first(name, record=record), kind, step)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7), inline=True)
def _bounded(
    arrays: list[jax.Array],
    lows: list[Any] | None,
    highs: list[Any],
    paths: tuple[str, ...],
    symmetric: bool,
    record: bool,
    mesh: collectives.MeshAxes | None,
    most: float,
) -> tuple[list[jax.Array], states.Record | None]:
    """The bounded leaves, and the record if it is wanted.

    Without `lows` the bounds are -c and c. Programs differ in `most`, which is `unlimited`.
    """
    del most
    if lows is None:
        highs = [c if c is None else jnp.maximum(c, jnp.zeros_like(c)) for c in highs]
        lows = [c if c is None else -c for c in highs]
    each = zip(arrays, lows, highs, paths, strict=True)
    found = [bounded(x, a, b, symmetric=symmetric, path=path) for x, a, b, path in each]
    if not record:
        return found, None
    limits = [
        jnp.maximum(*(jnp.max(jnp.abs(c), initial=0) for c in (low, high)))
        for low, high in zip(lows, highs, strict=True)
        if low is not None and high is not None
    ]
    changed = [(x != y) & (x == x) for x, y in zip(arrays, found, strict=True)]  # not NaN
    return found, records.of_elements(arrays, limits, changed, mesh)


def _at_leaves(flat: Flat, tree: LimitTree, name: str, count: jax.Array) -> list[jax.Array | None]:
    """The bound of every leaf at this step, as floats: unsigned integers have no negative."""
    values, wide = flat.spread(at_step(tree, count), name), jnp.result_type(float)
    made: dict[int, jax.Array | None] = {id(None): None}
    for c in values:
        if id(c) not in made:
            x = _validate.number(c)
            made[id(c)] = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(wide)
    return [made[id(c)] for c in values]
