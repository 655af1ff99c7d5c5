"""Rules that bound each element by itself: `clip` and `clip_by_value`.

They need no norm, so they do not measure anything unless asked to record it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import _validate as _checks
from jaxclip._core import flat_tree as _trees
from jaxclip._core import record as _record
from jaxclip._core import state as _state
from jaxclip._core.flat_tree import Flat
from jaxclip._core.state import ClipState, Record
from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import rescale as _scaling
from jaxclip._numerics import scaled_float as _wide


def clip(
    max_delta: Any, *, record: bool = False, axis_name: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each element to [-max_delta, max_delta]; complex ones by their magnitude.

    $$g_i \leftarrow \min(\max(g_i, -c), c)$$

    The same as `optax.clip`. The direction of the gradient changes; `clip_by_global_norm` keeps it.

    Args:
        max_delta: the bound: a number >= 0, an array that broadcasts to a leaf, a schedule, `None`
            for no bound, or a prefix tree of those.
        record: whether to record the largest magnitude and the share of elements clipped, at the
            cost of a pass over memory.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found: the
            record is then of all devices.

    Returns:
        A transformation. NaN stays NaN; integers, booleans and `float0` are passed through.

    Raises:
        TypeError: if `max_delta` is not a real number.
        ValueError: if it is negative or NaN; if it does not broadcast to a leaf; if `axis_name`
            names an axis a leaf is replicated over.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip(1.0)
        >>> grads = jnp.array([0.5, -3.0])
        >>> print(rule.update(grads, rule.init(grads))[0])
        [ 0.5 -1. ]
    """
    _checks.threshold_tree(max_delta, "max_delta", scalar=False)

    def bounds(flat: Flat, count: jax.Array) -> list[tuple[Any, Any]]:
        limits = _values(flat, max_delta, "max_delta", count)
        limits = [c if c is None else jnp.maximum(c, jnp.zeros_like(c)) for c in limits]
        return [(None, None) if c is None else (-c, c) for c in limits]

    return _rule("clip", bounds, record, axis_name, symmetric=True)


def clip_by_value(
    min_value: Any, max_value: Any, *, record: bool = False, axis_name: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each element to [min_value, max_value].

    $$g_i \leftarrow \min(\max(g_i, l), u)$$

    The same as `tf.clip_by_value`, and with bounds of equal size as
    `torch.nn.utils.clip_grad_value_`.

    Args:
        min_value: the lower bound: a number, an array that broadcasts to a leaf, a schedule, `None`
            for no bound, or a prefix tree of those.
        max_value: the upper bound, likewise.
        record: whether to record the largest magnitude and the share of elements clipped, at the
            cost of a pass over memory.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found: the
            record is then of all devices.

    Returns:
        A transformation. NaN stays NaN; integers, booleans and `float0` are passed through.

    Raises:
        TypeError: if a bound is not a real number.
        ValueError: if a bound is NaN; if `min_value` exceeds `max_value`; if a bound does not
            broadcast to a leaf; if a leaf is complex and the bounds are not -c and c, since then
            only magnitudes could be bounded; if `axis_name` names an axis a leaf is replicated
            over.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by_value(2.0, 5.0)
        >>> grads = jnp.array([[1.0, 1.0, 2.0, 4.0], [3.0, 4.0, 8.0, 5.0]])
        >>> print(rule.update(grads, rule.init(grads))[0])
        [[2. 2. 2. 4.]
         [3. 4. 5. 5.]]
    """
    _checks.bounds(min_value, max_value, NAMES)

    def bounds(flat: Flat, count: jax.Array) -> list[tuple[Any, Any]]:
        low = _values(flat, min_value, "min_value", count)
        high = _values(flat, max_value, "max_value", count)
        return list(zip(low, high, strict=True))

    symmetric = opposite(min_value, max_value)
    return _rule("clip_by_value", bounds, record, axis_name, symmetric=symmetric)


NAMES = ("min_value", "max_value")


def opposite(low: Any, high: Any) -> bool:
    """Whether the bounds are known to be -c and c, so that they bound magnitudes."""
    if not (_checks.is_known_number(low) and _checks.is_known_number(high)):
        return False
    low, high = np.asarray(low, np.float64), -np.asarray(high, np.float64)
    return low.shape == high.shape and bool((low == high).all())


def bounded(
    x: jax.Array,
    low: Any,
    high: Any,
    *,
    symmetric: bool,
    where: str,
    names: tuple[str, str] = NAMES,
) -> jax.Array:
    """One array between its bounds, in its own dtype."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        low, high = _whole(low, x.dtype, up=True), _whole(high, x.dtype, up=False)
    low, high = _fitted(low, x, names[0], where), _fitted(high, x, names[1], where)
    if not jnp.iscomplexobj(x):
        # Selected by comparison: what is kept then has the derivative 1, at the bounds too.
        if low is not None:
            x = jnp.where(x < low.astype(x.dtype), low.astype(x.dtype), x)
        if high is not None:
            x = jnp.where(x > high.astype(x.dtype), high.astype(x.dtype), x)
        return x
    if not symmetric:
        raise ValueError(
            f"{names[0]} and {names[1]} must be -c and c for the complex leaf {where}, whose "
            "magnitude is clipped: complex numbers have no order"
        )
    size = _wide.magnitude(x)
    scale = _scaling.hard(size, high)
    return _scaling.apply(x, scale._replace(keep=scale.keep | ~size.is_finite))


def _whole(bound: Any, dtype: Any, *, up: bool) -> Any:
    """The bound of integers, which may be no integer or none of theirs."""
    if bound is None:
        return None
    least, most = int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)
    if not isinstance(bound, jax.Array):  # without a detour by float32
        array = np.asarray(bound)
        if array.dtype.kind not in "iu":
            array = (np.ceil if up else np.floor)(array.astype(np.float64))
        whole = [int(min(max(x, least), most)) for x in array.ravel().tolist()]
        return jnp.asarray(np.array(whole, dtype).reshape(array.shape))
    if jnp.issubdtype(bound.dtype, jnp.integer):
        own = jnp.iinfo(bound.dtype)
        return jnp.clip(bound, max(least, int(own.min)), min(most, int(own.max))).astype(dtype)
    bound = jnp.ceil(bound) if up else jnp.floor(bound)
    inside = (bound > least) & (bound < most)
    ends = jnp.where(bound > 0, jnp.asarray(most, dtype), jnp.asarray(least, dtype))
    return jnp.where(inside, jnp.where(inside, bound, jnp.zeros_like(bound)).astype(dtype), ends)


def _rule(
    name: str, bounds: Any, record: bool, axis_name: Any, *, symmetric: bool
) -> optax.GradientTransformationExtraArgs:
    _checks.flag(record=record)
    mesh = _checks.mesh_axes(axis_name)

    def init(params: Any) -> ClipState:
        del params
        return _state.first(name, record=record)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ClipState]:
        del params, extra_args
        state = _state.checked_or_first(state, init, updates)
        flat = _trees.flatten(updates)
        _mesh.check_sharded(flat.arrays, mesh, flat.at)
        pairs = bounds(flat, state.count)
        arrays = [
            bounded(x, low, high, symmetric=symmetric, where=flat.at(i))
            for i, (x, (low, high)) in enumerate(zip(flat.arrays, pairs, strict=True))
        ]
        seen = _seen(flat, pairs, arrays, mesh) if record else None
        return flat.rebuild(arrays), _state.following(state, seen, state.memory)

    return optax.GradientTransformationExtraArgs(init, update)


def _seen(flat: Flat, pairs: list[tuple[Any, Any]], arrays: list[jax.Array], mesh: Any) -> Record:
    """What was clipped. The threshold is the largest magnitude that the bounds allow."""
    two_sided = [(low, high) for low, high in pairs if low is not None and high is not None]
    limits = [jnp.maximum(_largest(low), _largest(high)) for low, high in two_sided]
    # What is NaN is not clipped.
    changed = [(x != y) & (x == x) for x, y in zip(flat.arrays, arrays, strict=True)]
    return _record.of_elements(flat.arrays, limits, changed, mesh)


def _largest(bound: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(bound), initial=0)


def _values(flat: Flat, tree: Any, name: str, count: jax.Array) -> list[Any]:
    """The bound of every leaf now."""
    values = flat.spread(_trees.at(tree, count), name)
    arrays = [None if v is None else _checks.number(v) for v in values]
    return [None if a is None else _as_float(a) for a in arrays]


def _as_float(bound: jax.Array) -> jax.Array:
    """What is unsigned has no negative."""
    inexact = jnp.issubdtype(bound.dtype, jnp.inexact)
    return bound if inexact else bound.astype(jnp.result_type(float))


def _fitted(bound: Any, x: jax.Array, name: str, where: str) -> jax.Array | None:
    """The bound as an array of the leaf's rank, if it broadcasts to the leaf."""
    if bound is None:
        return None
    return _checks.fitted(bound, x.shape, name, f"the leaf {where}")
