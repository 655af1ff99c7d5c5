r"""Projections of weights as pure functions: the part of `jaxclip.functional` on weights.

The transformations of the same sets are in `projections`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxclip import _validate as _checks
from jaxclip._core import flat_tree as _trees
from jaxclip._numerics import scaled_float as _wide
from jaxclip.projections import constraints as _weights
from jaxclip.projections.constraints import Set


def max_norm(w: Any, limit: Any, axis: Any = None, *, axis_name: Any = None) -> Any:
    r"""Weights whose units are scaled to a norm of at most `limit`: $w \min(1, c/\|w\|_2)$.

    A unit that is inside, up to the rounding of its own dtype, comes back bit for bit.

    Args:
        w: an array, or a tree of them.
        limit: c, a number >= 0.
        axis: the axes that are reduced; `None` for all but the last: one output's incoming weights.
        axis_name: mesh axes over which a unit is spread, where that cannot be found.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if `limit` is not a number.
        ValueError: if it is negative or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.max_norm(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0, axis=0))
        [[0.6 0.3]
         [0.8 0.4]]
    """
    return _projected(w, _weights.norms_between(None, limit, ("limit", "limit")), axis, axis_name)


def unit_norm(w: Any, axis: Any = None, *, axis_name: Any = None) -> Any:
    r"""Weights whose units have the norm 1: $w / \|w\|_2$; a unit of zeros stays zero.

    Args:
        w: an array, or a tree of them.
        axis: the axes that are reduced; `None` for all but the last.
        axis_name: mesh axes over which a unit is spread, where that cannot be found.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if `axis` is not an axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.unit_norm(jnp.array([[3.0, 0.0], [4.0, 0.0]]), axis=0))
        [[0.6 0. ]
         [0.8 0. ]]
    """
    return _projected(w, _weights.norms_between(1.0, 1.0, ("norm", "norm")), axis, axis_name)


def min_max_norm(
    w: Any,
    min_norm: Any = 0.0,
    max_norm: Any = 1.0,
    rate: Any = 1.0,
    axis: Any = None,
    *,
    axis_name: Any = None,
) -> Any:
    r"""Weights whose units are brought between two norms.

    $$w \, \frac{r \min(\max(n, a), b) + (1 - r) n}{n}, \qquad n = \|w\|_2$$

    Args:
        w: an array, or a tree of them.
        min_norm: a, a finite number >= 0.
        max_norm: b, a number >= `min_norm`.
        rate: r, between 0 and 1: how much of the way back is gone.
        axis: the axes that are reduced; `None` for all but the last.
        axis_name: mesh axes over which a unit is spread, where that cannot be found.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if a bound is not a number.
        ValueError: if a bound is negative or NaN, `min_norm` is infinite or exceeds `max_norm`, or
            `rate` is not between 0 and 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.min_max_norm(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0, 2.0, axis=0))
        [[1.2 0.6]
         [1.6 0.8]]
    """
    inside = _weights.norms_between(min_norm, max_norm, ("min_norm", "max_norm"), rate)
    return _projected(w, inside, axis, axis_name)


def non_negative(w: Any) -> Any:
    r"""Weights without their negative part: $\max(w, 0)$.

    Args:
        w: an array, or a tree of them.

    Returns:
        The same shapes and dtypes.

    Raises:
        ValueError: if a leaf is complex.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.non_negative(jnp.array([-1.0, 2.0])))
        [0. 2.]
    """
    return _projected(w, _weights.elements_between(0.0, None, ("low", "high")))


def box(w: Any, lo: Any, hi: Any) -> Any:
    r"""Weights each between two bounds: $\min(\max(w, l), h)$.

    Args:
        w: an array, or a tree of them.
        lo: l: a number or an array that broadcasts to `w`; `None` for no bound.
        hi: h, likewise.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if a bound is not a real number.
        ValueError: if a bound is NaN or enlarges `w`, if `lo` exceeds `hi`, or a leaf is complex.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.box(jnp.array([-1.0, 0.25, 2.0]), -0.5, 0.5))
        [-0.5   0.25  0.5 ]
    """
    return _projected(w, _weights.elements_between(lo, hi, ("lo", "hi")))


def spectral_norm(w: Any, max_norm: Any, how: str = "clip", method: str | None = None) -> Any:
    r"""Matrices whose largest singular value is at most `max_norm`.

    Args:
        w: an array of rank >= 2, or a tree of them; at higher ranks the matrix of all axes but the
            last against the last.
        max_norm: a number >= 0.
        how: `"clip"` for the nearest such matrix, $U \min(\Sigma, c) V^\top$; `"scale"` for
            $w \min(1, c / \sigma_1)$.
        method: `"eigh"`, `"iterative"`, or `None` for the first on a CPU and the second elsewhere.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if `max_norm` is not a number.
        ValueError: if it is negative or NaN; if a leaf is complex or of rank below 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.spectral_norm(jnp.diag(jnp.array([3.0, 0.5])), 1.0))
        [[1.  0. ]
         [0.  0.5]]
    """
    return _projected(w, _weights.spectral(max_norm, how, method))


def _projected(w: Any, inside: Set, axis: Any = None, axis_name: Any = None) -> Any:
    axes, mesh = _checks.axes(axis), _checks.mesh_axes(axis_name)
    flat = _trees.flatten(w)
    wide = flat.replaced([_wide.widened(x, _wide.accumulator(x)) for x in flat.arrays])
    dtypes = [x.dtype for x in flat.arrays]
    count = jnp.zeros((), jnp.int32)
    landings = _weights.landings(wide, dtypes, count, inside, axes, mesh)
    arrays = [
        jnp.where(landed.keep, x, landed.value.astype(x.dtype))
        for x, landed in zip(flat.arrays, landings, strict=True)
    ]
    return flat.rebuild(arrays)
