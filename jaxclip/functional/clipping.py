r"""The mathematics of the rules without state: on one array, or on a tree.

What the named rules guarantee holds here too. There is no telemetry and no memory; a threshold is a
number or an array. Inside a training step the transformations are more convenient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import _validate as _checks
from jaxclip import norms
from jaxclip._core import flat_tree as _trees
from jaxclip._core.measure import given
from jaxclip._numerics import rescale as _scaling
from jaxclip._numerics import scaled_float as _wide
from jaxclip.functional.projecting import box as box
from jaxclip.functional.projecting import max_norm as max_norm
from jaxclip.functional.projecting import min_max_norm as min_max_norm
from jaxclip.functional.projecting import non_negative as non_negative
from jaxclip.functional.projecting import spectral_norm as spectral_norm
from jaxclip.functional.projecting import unit_norm as unit_norm
from jaxclip.transforms import elementwise as _elementwise

__all__ = [
    "box",
    "clip_by_average_norm",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "max_norm",
    "min_max_norm",
    "non_negative",
    "spectral_norm",
    "unit_norm",
]


def clip_by_value(x: Any, lo: Any, hi: Any) -> Any:
    r"""Each element between `lo` and `hi`, $\min(\max(x, lo), hi)$, as `tf.clip_by_value`.

    Args:
        x: an array or a tree of them; integers are clipped too, to the integers in between.
        lo: the lower bound, a number or an array that broadcasts to `x`; `None` for none.
        hi: the upper bound, likewise.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if a bound is not a real number.
        ValueError: if a bound is NaN, enlarges `x`, or `lo` exceeds `hi`; if `x` is complex and the
            bounds are not -c and c.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.clip_by_value(jnp.arange(10), 2, 8))
        [2 2 2 3 4 5 6 7 8 8]
    """
    _checks.one_value(lo=lo, hi=hi)
    _checks.bounds(lo, hi, ("lo", "hi"))
    symmetric = _elementwise.opposite(lo, hi)

    def one(path: Any, leaf: Any) -> Any:
        where = jax.tree_util.keystr(path) or "x"
        if not (_trees.is_inexact(leaf) or _trees.is_integer(leaf)):
            return leaf
        return _elementwise.bounded(
            jnp.asarray(leaf), lo, hi, symmetric=symmetric, where=where, names=("lo", "hi")
        )

    return jax.tree_util.tree_map_with_path(one, x)


def clip_by_norm(
    x: Any, max_norm: Any, axis: Any = None, ord: Any = _checks.TWO, *, axis_name: Any = None
) -> Any:
    r"""`x`, or each slice of it, scaled to a norm of at most `max_norm`, as `tf.clip_by_norm`.

    Args:
        x: an array, or a tree whose leaves are each taken by themselves.
        max_norm: a number >= 0, `None`, or an array that broadcasts to the norms.
        axis: the axes that are reduced; `None` for all.
        ord: which norm: p >= 1, inf, `"rms"` or `"average"`.
        axis_name: mesh axes over which the norm of a leaf, or of each slice, is spread, where that
            cannot be found; `()` where every slice is whole on one device.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.clip_by_norm(jnp.array([2.0, 5.0]), 5.0))
        [1.8569534 4.6423836]
    """
    _checks.one_value(max_norm=max_norm)
    scope = "leaf" if axis is None else "unit"
    _checks.threshold_tree(max_norm, "max_norm", scalar=axis is None)
    flat = _trees.flatten(x)
    found = norms.measure(flat, scope, ord, _checks.axes(axis), _checks.mesh_axes(axis_name))
    limit = jnp.inf if max_norm is None else max_norm
    scales = []
    for i, n in enumerate(found):
        bound = _checks.fitted(limit, n.value.shape, "max_norm", f"the norms of {flat.at(i)}")
        scales.append(_kept_if_nonfinite(n, _scaling.hard(n, bound)))
    return flat.rebuild([_scaling.apply(a, s) for a, s in zip(flat.arrays, scales, strict=True)])


def clip_by_average_norm(x: Any, max_norm: Any, *, axis_name: Any = None) -> Any:
    r"""`x` scaled so that its 2-norm divided by its number of elements is at most `max_norm`.

    Args:
        x: an array, or a tree whose leaves are each taken by themselves.
        max_norm: a number >= 0, or `None`.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if `max_norm` is not a number.
        ValueError: if it is negative or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.clip_by_average_norm(jnp.array([3.0, 4.0]), 1.0))
        [1.2 1.6]
    """
    return clip_by_norm(x, max_norm, ord="average", axis_name=axis_name)


def clip_by_global_norm(
    tree: Any,
    max_norm: Any,
    *,
    norm: Any = None,
    ord: Any = _checks.TWO,
    axis_name: Any = None,
) -> tuple[Any, jax.Array]:
    r"""All leaves scaled by one factor, to a norm of at most `max_norm`.

    The same as `tf.clip_by_global_norm`.

    Args:
        tree: any pytree of arrays.
        max_norm: a number >= 0, a scalar array, or `None`.
        norm: the norm, if it is known; TensorFlow's `use_norm`.
        ord: which norm: p >= 1 or inf.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found.

    Returns:
        The tree, and its norm before clipping, a float32 (float64) scalar.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> tree = [jnp.array([3.0]), jnp.array([4.0])]
        >>> clipped, norm = functional.clip_by_global_norm(tree, 1.0)
        >>> print(clipped[0], clipped[1], norm)
        [0.6] [0.8] 5.0
    """
    _checks.one_value(max_norm=max_norm)
    _checks.threshold_tree(max_norm, "max_norm", scalar=True)
    flat = _trees.flatten(tree)
    if norm is None:
        (found,) = norms.measure(flat, "global", ord, None, _checks.mesh_axes(axis_name))
    else:
        found = given(norm, _wide.accumulator(*flat.arrays))
    limit = _checks.number(jnp.inf if max_norm is None else max_norm)
    scale = _kept_if_nonfinite(found, _scaling.hard(found, limit))
    return flat.rebuild([_scaling.apply(x, scale) for x in flat.arrays]), found.number


def _kept_if_nonfinite(norm: _wide.Norm, scale: _scaling.Scale) -> _scaling.Scale:
    return _scaling.for_nonfinite(scale, norm.is_finite, "propagate", norm.is_finite)
