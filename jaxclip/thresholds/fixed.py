"""Thresholds that are given: a number, a schedule, a multiple of the parameters' norm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import _validate as _checks
from jaxclip._core import flat_tree as _trees
from jaxclip._numerics import scaled_float as _wide
from jaxclip.thresholds.base import Measured, Threshold


def constant(value: Any, *, name: str = "threshold", scope: str | None = None) -> Threshold:
    """A given threshold.

    Args:
        value: a number; an array; a schedule `count -> value`; `None` or inf for no limit; or a
            prefix tree of those, where there is one norm per leaf. An array must broadcast to the
            norms of a leaf: to a scalar unless the scope is `unit` or `element`.
        name: what error messages call it.
        scope: where it will be used, if known: wrong shapes are then refused here and not when an
            update is traced.

    Returns:
        A threshold without memory.

    Raises:
        TypeError: if a value is a bool, a string or not a number.
        ValueError: if a value is negative or NaN, or has the wrong shape for the scope.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by(jaxclip.thresholds.constant(1.0), scope="leaf")
        >>> grads = {"w": jnp.array([3.0, 4.0])}
        >>> print(rule.update(grads, rule.init(grads))[0]["w"])
        [0.6 0.8]
    """
    if scope == "global" and _checks.is_tree(value):
        raise ValueError(
            f"{name}={value!r} must be one value: there is one norm for all leaves. For some "
            "of them use norm_mask and scale_mask; for a norm each, clip_by_norm"
        )
    _checks.threshold_tree(value, name, scalar=scope in ("global", "leaf"))

    def update(memory: Any, measured: Measured) -> tuple[list[jax.Array], Any]:
        values = measured.spread(_trees.at(value, measured.count), name)
        limits = []
        for v, n, where in zip(values, measured.norms, measured.where, strict=True):
            given = jnp.inf if v is None else v
            c = _checks.fitted(given, n.shape, name, f"the norms of {where}").astype(n.dtype)
            limits.append(jnp.maximum(c, jnp.zeros_like(c)) if _checks.is_traced(v) else c)
        return limits, memory

    return Threshold(lambda norms: (), update)


def relative_to_params(factor: Any, *, eps: Any = 1e-3, name: str = "factor") -> Threshold:
    r"""A multiple of the norm of the parameters: $c = \lambda \max(\|w\|, \epsilon)$.

    Args:
        factor: the multiple: a number, a scalar array, a schedule, or a prefix tree of those.
        eps: the least norm of parameters reckoned with, so that zeros can leave zero.
        name: what error messages call `factor`.

    Returns:
        A threshold without memory. `update` of the rule needs `params`.

    Raises:
        TypeError: if an argument is a bool, a string or not a number.
        ValueError: if an argument is negative or NaN.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by(jaxclip.thresholds.relative_to_params(0.1), scope="leaf")
        >>> params, grads = jnp.array([0.0, 10.0]), jnp.array([3.0, 4.0])
        >>> print(rule.update(grads, rule.init(params), params)[0])
        [0.6 0.8]
    """
    multiple = constant(factor, name=name)
    _checks.real_number(eps=eps)

    def update(memory: Any, measured: Measured) -> tuple[list[jax.Array], Any]:
        factors, memory = multiple.update(memory, measured)
        least = [_wide.of(_checks.number(eps).astype(f.dtype)).times(f) for f in factors]
        return [
            jnp.maximum(c, low) for c, low in zip(measured.of_params(factors), least, strict=True)
        ], memory

    return Threshold(multiple.init, update)
