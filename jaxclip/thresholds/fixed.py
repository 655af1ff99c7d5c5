"""Given thresholds: a number, a schedule, a multiple of the parameters' norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.flat_tree import at_step
from jaxclip._core.types import LimitTree, Scope
from jaxclip._numerics.scaled_float import Norm, narrowed, unlimited
from jaxclip._validate import short
from jaxclip.thresholds.base import Measured, Threshold


def constant(value: LimitTree) -> Threshold:
    """A given threshold.

    Args:
        value: a number >= 0; an array; a schedule `count -> value`; `None` or inf for no limit; or,
            where each leaf has a norm, a prefix tree of those, and at the scope `group` a dict by
            label. An array must broadcast to the norms of a leaf: to a scalar unless the scope is
            `unit` or `element`. At the scope `leaf`, a stack of L layers may have an array of shape
            (L,).

    Returns:
        A threshold without memory.

    Raises:
        TypeError: if a value is a bool, a string or not a number.
        ValueError: if a value is negative or NaN; when an update is traced, if its shape does not
            fit the scope.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by(jaxclip.thresholds.constant(1.0), scope="leaf")
        >>> grads = {"w": jnp.array([3.0, 4.0])}
        >>> print(rule.update(grads, rule.init(grads))[0]["w"])
        [0.6 0.8]
    """
    return given(value, "value")


def given(value: LimitTree, name: str = "threshold", scope: Scope | None = None) -> Threshold:
    """A given threshold with the name of a rule's argument, refused here if the scope is known."""
    if scope == "global" and _validate.is_tree(value):
        raise ValueError(
            f"{name}={short(value)} must be one value, since all leaves have one norm. "
            "Use norm_mask and scale_mask to clip some leaves, or clip_by_norm for a norm per leaf"
        )
    if scope == "group":
        by_label = isinstance(value, Mapping)
        for label, one in value.items() if by_label else [(None, value)]:
            if _validate.is_tree(one):
                key = f"{name}[{label!r}]" if by_label else name
                raise ValueError(f"{key}={short(one)} must be one value, or a dict by label")
    _validate.limits(value, name, scalar=scope in ("global", "group", "leaf"))

    number = math.inf if value is None else None
    if isinstance(value, (int, float)):
        number = float(value)

    def update(memory: Any, measured: Measured) -> tuple[list[jax.Array], Any]:
        if number is not None:
            same: dict[Any, jax.Array] = {}  # one array for all norms, which are joined then
            limits: list[jax.Array] = []
            for n in measured.norms:
                if n.dtype not in same:
                    same[n.dtype] = jnp.asarray(min(number, unlimited(n.dtype)), n.dtype)
                limits.append(same[n.dtype])
            return limits, memory
        values = measured.spread(at_step(value, measured.count), name)
        limits = []
        for i, (v, n) in enumerate(zip(values, measured.norms, strict=True)):
            v = jnp.inf if v is None else v
            c = _validate.fitted(v, n.shape, name, f"the norms of {measured.path(i)}")
            limits.append(jnp.maximum(narrowed(c, n.dtype), jnp.zeros_like(c, n.dtype)))
        return limits, memory

    return Threshold(lambda norms: (), update)


def relative_to_params(factor: LimitTree, *, eps: ArrayLike = 1e-3) -> Threshold:
    r"""A multiple of the norm of the parameters: $c = \lambda \max(\|w\|, \epsilon)$.

    Args:
        factor: lambda: a number >= 0, a scalar array, a schedule, or a prefix tree of those.
        eps: lower bound on the parameter norm, so that zero-initialized parameters can train.

    Returns:
        A threshold without memory. `update` of the rule needs `params`; integers, as of quantized
        weights, are measured as floats.

    Raises:
        TypeError: if an argument is a bool, a string or not a number.
        ValueError: if an argument is negative or NaN.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by(jaxclip.thresholds.relative_to_params(0.1), scope="leaf")
        >>> params, grads = jnp.array([0.0, 10.0]), jnp.array([3.0, 4.0])
        >>> print(rule.update(grads, rule.init(params), params)[0])
        [0.6 0.8]
    """
    return relative(factor, eps, "factor")


def relative(factor: LimitTree, eps: ArrayLike, name: str) -> Threshold:
    """A multiple of the norm of the parameters, with the name of a rule's argument."""
    multiple = given(factor, name)
    _validate.real_number(eps, "eps")

    def update(memory: Any, measured: Measured) -> tuple[list[jax.Array], Any]:
        factors, memory = multiple.update(memory, measured)

        def at_least(c: jax.Array, f: jax.Array) -> jax.Array:
            least = narrowed(_validate.number(eps), f.dtype)
            return jnp.maximum(c, Norm(least, jnp.ones_like(least)).times(f))

        return measured.map(at_least, measured.of_params(factors), factors), memory

    return Threshold(multiple.init, update)
