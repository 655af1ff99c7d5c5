r"""Norms of trees, exact in every dtype.

A norm is taken at a scope: of the whole tree (`global_norm`), of each leaf (`leaf_norms`, `rms`,
`average_norm`) or of each unit of a leaf (`unit_norms`). What all of them guarantee:

| input | norm |
|---|---|
| float16, bfloat16, float32 | accumulated and returned in float32 |
| float64 | accumulated and returned in float64 |
| finite elements whose squares overflow or underflow | as if computed in float64 |
| subnormal elements | may count as 0, since XLA flushes them |
| NaN or inf | NaN or inf |
| complex | of the magnitudes |
| integer, boolean, `float0` leaves, `None`, no elements | contribute nothing; alone, 0 |
| derivative where the norm is 0 | 0 |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip._core.flat_tree import Flat, flatten
from jaxclip._core.measure import measure
from jaxclip._core.types import AxisName, Order, PyTree, Stacked, UnitAxes
from jaxclip._numerics.scaled_float import Norm

__all__ = ["average_norm", "global_norm", "leaf_norms", "rms", "unit_norms"]


def global_norm(tree: PyTree, ord: Order = None, *, axis_name: AxisName = None) -> jax.Array:
    r"""The norm of all leaves of a tree together, as one vector.

    $$\|g\|_p = \Big(\sum_i |g_i|^p\Big)^{1/p}$$

    Args:
        tree: any pytree of arrays.
        ord: p >= 1 or inf; `None` is 2; `"rms"` or `"average"` divide the 2-norm by the root of
            the number of elements, or by their number.
        axis_name: mesh axes that shard the leaves; `None` finds them where JAX's types say them,
            `()` never reduces.

    Returns:
        A float32 scalar, float64 if a leaf is float64.

    Raises:
        ValueError: if `ord` is below 1, or `axis_name` names an axis a leaf is replicated over.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> print(jaxclip.norms.global_norm({"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}))
        5.0
        >>> print(jaxclip.norms.global_norm(jnp.array([1e20, 0.0])))  # its square overflows
        1e+20
    """
    return measure("global", ord, axis_name=axis_name).norms(flatten(tree))[0].number


def leaf_norms(
    tree: PyTree, ord: Order = None, *, stacked: Stacked = None, axis_name: AxisName = None
) -> PyTree:
    """The norm of each leaf, or of each slice of a leaf that stacks layers.

    Args:
        tree: any pytree of arrays.
        ord: as for `global_norm`.
        stacked: the axis along which leaves stack layers, or a function `(name, leaf) -> axis` or
            `None`. An int is for all leaves that have this axis.
        axis_name: as for `global_norm`; inside `shard_map`, as for `unit_norms` where leaves are
            stacked.

    Returns:
        A tree of the same structure with a float32 (float64) scalar per leaf. A stacked leaf keeps
        its rank, with all other axes of size 1.

    Raises:
        ValueError: as for `global_norm`.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> norms = jaxclip.norms.leaf_norms({"w": jnp.array([3.0, 4.0]), "b": jnp.ones(4)})
        >>> print(norms["w"], norms["b"])
        5.0 2.0
        >>> print(jaxclip.norms.leaf_norms(jnp.array([[3.0, 4.0], [0.0, 1.0]]), stacked=0))
        [[5.]
         [1.]]
    """
    flat = flatten(tree)
    found = measure("leaf", ord, axis_name=axis_name, stacked=stacked).norms(flat)
    return _as_tree(flat, found, lambda x: jnp.zeros((), jnp.float32))


def unit_norms(
    tree: PyTree,
    axis: UnitAxes = None,
    ord: Order = None,
    *,
    stacked: Stacked = None,
    axis_name: AxisName = None,
) -> PyTree:
    """The norm of each unit of each leaf: of each slice along the axes that are reduced.

    Args:
        tree: any pytree of arrays.
        axis: the axes to reduce, an int or several, negative ones counted from the end. Axes that a
            leaf does not have are left out; a leaf that has none of them is one unit. `None`
            reduces all axes but the last, to one output channel of a JAX kernel, (in, out) or
            (H, W, in, out); a vector is then one unit. `()` reduces none. A function
            `(name, leaf) -> axes` chooses for each leaf.
        ord: as for `global_norm`.
        stacked: as for `leaf_norms`; `axis` then means axes of a slice.
        axis_name: as for `global_norm`, but `None` cannot know which array axis is sharded: inside
            `shard_map` name the mesh axes over which a unit is spread, or pass `()`.

    Returns:
        A tree of the same structure; each leaf keeps its rank, with reduced axes of size 1.

    Raises:
        ValueError: as for `global_norm`, and where the mesh axes of a unit cannot be known.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> kernel = jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> print(jaxclip.norms.unit_norms(kernel, axis=0))
        [[5. 1.]]
    """
    flat = flatten(tree)
    found = measure("unit", ord, axis, axis_name, stacked=stacked).norms(flat)
    return _as_tree(flat, found, lambda x: jnp.zeros((1,) * jnp.ndim(x), jnp.float32))


def rms(x: ArrayLike, *, axis_name: AxisName = None) -> jax.Array:
    r"""The root mean square of one array, $\sqrt{\frac1N\sum_i |x_i|^2}$.

    Args:
        x: an array.
        axis_name: as for `global_norm`.

    Returns:
        A float32 (float64) scalar; 0 for an empty array.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> print(jaxclip.norms.rms(jnp.array([1.0, 7.0])))
        5.0
    """
    return global_norm(x, "rms", axis_name=axis_name)


def average_norm(x: ArrayLike, *, axis_name: AxisName = None) -> jax.Array:
    r"""TensorFlow's average norm of one array, $\|x\|_2 / N$: not the root mean square.

    Args:
        x: an array of N elements, those on other devices included.
        axis_name: as for `global_norm`.

    Returns:
        A float32 (float64) scalar; 0 for an empty array.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> print(jaxclip.norms.average_norm(jnp.array([3.0, 4.0])))
        2.5
    """
    return global_norm(x, "average", axis_name=axis_name)


def _as_tree(flat: Flat, norms: list[Norm], other: Callable[[Any], jax.Array]) -> PyTree:
    """Norms as a tree, with another value for leaves that are not measured."""
    leaves = [other(x) for x in flat.leaves]
    for i, norm in zip(flat.places, norms, strict=True):
        leaves[i] = norm.number
    return jax.tree.unflatten(flat.treedef, leaves)
