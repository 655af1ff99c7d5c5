r"""Projections as pure functions, with the names and arguments of the transformations."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip._core.flat_tree import flatten
from jaxclip._core.measure import measure
from jaxclip._core.types import AxisName, How, Method, PyTree, Stacked, UnitAxes
from jaxclip._numerics.scaled_float import accumulator, widened
from jaxclip.projections.constraints import (
    Set,
    elements_between,
    norms_between,
    singular_values,
)


def project_max_norm(
    w: PyTree,
    max_norm: ArrayLike = 2.0,
    axis: UnitAxes = None,
    *,
    axis_name: AxisName = None,
    stacked: Stacked = None,
) -> PyTree:
    r"""Weights whose units are scaled to a norm of at most `max_norm`: $w \min(1, c/\|w\|_2)$.

    A unit inside is returned bit for bit. In bfloat16 and float16 the others are rounded towards
    zero, so that their norm is at most `max_norm` to 1e-5.

    Args:
        w: an array, or a tree of them.
        max_norm: c, a number >= 0.
        axis: the axes that are reduced; `None` for all but the last: one output's incoming weights.
        axis_name: mesh axes over which a unit is spread, where they cannot be found.
        stacked: the axis along which a leaf stacks layers, or a function of name and leaf.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if `max_norm` is not a number.
        ValueError: if it is negative or NaN.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.project_max_norm(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0, axis=0))
        [[0.6 0.3]
         [0.8 0.4]]
    """
    return _projected(
        w, norms_between(None, max_norm, ("min_norm", "max_norm")), axis, axis_name, stacked
    )


def project_unit_norm(
    w: PyTree, axis: UnitAxes = None, *, axis_name: AxisName = None, stacked: Stacked = None
) -> PyTree:
    r"""Weights whose units have the norm 1: $w / \|w\|_2$; a unit of zeros stays zero.

    Args:
        w: an array, or a tree of them.
        axis: the axes that are reduced; `None` for all but the last.
        axis_name: mesh axes over which a unit is spread, where they cannot be found.
        stacked: the axis along which a leaf stacks layers, or a function of name and leaf.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if `axis` is not an axis.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.project_unit_norm(jnp.array([[3.0, 0.0], [4.0, 0.0]]), axis=0))
        [[0.6 0. ]
         [0.8 0. ]]
    """
    return _projected(w, norms_between(1.0, 1.0, ("norm", "norm")), axis, axis_name, stacked)


def project_min_max_norm(
    w: PyTree,
    min_norm: ArrayLike = 0.0,
    max_norm: ArrayLike = 1.0,
    rate: ArrayLike = 1.0,
    axis: UnitAxes = None,
    *,
    axis_name: AxisName = None,
    stacked: Stacked = None,
) -> PyTree:
    r"""Weights whose units are brought between two norms.

    $$w \, \frac{r \min(\max(n, a), b) + (1 - r) n}{n}, \qquad n = \|w\|_2$$

    Args:
        w: an array, or a tree of them.
        min_norm: a, a finite number >= 0.
        max_norm: b, a number >= `min_norm`.
        rate: r, between 0 and 1: the fraction of the way back.
        axis: the axes that are reduced; `None` for all but the last.
        axis_name: mesh axes over which a unit is spread, where they cannot be found.
        stacked: the axis along which a leaf stacks layers, or a function of name and leaf.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if a bound is not a number.
        ValueError: if a bound is negative or NaN, `min_norm` is infinite or exceeds `max_norm`, or
            `rate` is not between 0 and 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> w = jnp.array([[3.0, 0.3], [4.0, 0.4]])
        >>> print(functional.project_min_max_norm(w, 1.0, 2.0, axis=0))
        [[1.2 0.6]
         [1.6 0.8]]
    """
    inside = norms_between(min_norm, max_norm, ("min_norm", "max_norm"), rate)
    return _projected(w, inside, axis, axis_name, stacked)


def project_non_negative(w: PyTree) -> PyTree:
    r"""Weights without their negative part: $\max(w, 0)$.

    Args:
        w: an array, or a tree of them.

    Returns:
        The same shapes and dtypes.

    Raises:
        ValueError: if a leaf is complex.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.project_non_negative(jnp.array([-1.0, 2.0])))
        [0. 2.]
    """
    return _projected(w, elements_between(0.0, None, ("min_value", "max_value")))


def project_box(w: PyTree, min_value: ArrayLike | None, max_value: ArrayLike | None) -> PyTree:
    r"""Weights each between two bounds: $\min(\max(w, l), h)$.

    Args:
        w: an array, or a tree of them.
        min_value: l: a number or an array that broadcasts to `w`; `None` for no bound.
        max_value: h, in the same forms.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if a bound is not a real number.
        ValueError: if a bound is NaN or enlarges `w`, if `min_value` exceeds `max_value`, or a leaf
            is complex.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.project_box(jnp.array([-1.0, 0.25]), -0.5, 0.5))
        [-0.5   0.25]
    """
    return _projected(w, elements_between(min_value, max_value, ("min_value", "max_value")))


def project_spectral_norm(
    w: PyTree,
    max_norm: ArrayLike,
    how: How = "clip",
    method: Method | None = None,
    *,
    axis: UnitAxes = None,
    stacked: Stacked = None,
) -> PyTree:
    r"""Matrices whose largest singular value is at most `max_norm`.

    Args:
        w: an array of rank >= 2, or a tree of them: matrices with the axes of inputs as rows and
            the others as columns.
        max_norm: a number >= 0.
        how: `"clip"` for the nearest such matrix, $U \min(\Sigma, c) V^\top$; `"scale"` for
            $w \min(1, c / \sigma_1)$.
        method: `"eigh"`, `"iterative"`, or `None` for the first on a CPU and the second elsewhere.
        axis: the axes of inputs; `None` for all but the last; or a function of name and leaf.
        stacked: the axis along which a leaf stacks matrices, or a function of name and leaf.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if `max_norm` is not a number.
        ValueError: if it is negative or NaN; if a leaf is complex, or has no axis of
            inputs or none of outputs.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.project_spectral_norm(jnp.diag(jnp.array([3.0, 0.5])), 1.0))
        [[1.  0. ]
         [0.  0.5]]
    """
    return _projected(w, singular_values(max_norm, how, method), axis, stacked=stacked)


def _projected(
    w: PyTree,
    inside: Set,
    axis: UnitAxes = None,
    axis_name: AxisName = None,
    stacked: Stacked = None,
) -> PyTree:
    units = measure("unit", axis=axis, axis_name=axis_name, stacked=stacked)
    flat = flatten(w)
    wide = flat._replace(arrays=[widened(x, accumulator(x)) for x in flat.arrays])
    dtypes = [x.dtype for x in flat.arrays]
    landed = inside(wide, dtypes, jnp.zeros((), jnp.int32), units)
    pairs = zip(flat.arrays, landed, strict=True)
    return flat.rebuild([jnp.where(to.keep, x, to.value.astype(x.dtype)) for x, to in pairs])
