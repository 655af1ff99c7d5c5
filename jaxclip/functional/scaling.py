r"""Norms of groups, spectral norms, normalized updates, bounds by weights, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core import labels
from jaxclip._core.flat_tree import flatten
from jaxclip._core.measure import measure
from jaxclip._core.types import (
    AxisName,
    Groups,
    Mask,
    Method,
    Order,
    PyTree,
    Scope,
    Spectral,
    Stacked,
    UnitAxes,
)
from jaxclip._numerics.scaled_float import Norm, apply, clipped
from jaxclip.thresholds.fixed import given
from jaxclip.transforms import normalizing, relative, spectral

Limits = ArrayLike | Mapping[str, ArrayLike | None] | None


def clip_by_group_norm(
    tree: PyTree,
    max_norm: Limits,
    groups: Groups,
    *,
    norm: Mapping[str, ArrayLike] | None = None,
    ord: Order = None,
    axis_name: AxisName = None,
) -> tuple[PyTree, dict[str, jax.Array]]:
    r"""The leaves of each label scaled by one factor, to a norm of at most `max_norm` together.

    Args:
        tree: any pytree of arrays.
        max_norm: a number >= 0, a scalar array, or `None` for no limit; or a dict of those by
            label.
        groups: the label of each leaf, a prefix tree of strings or a function from the tree to
            one; leaves with the label `None` stay as they are.
        norm: the norms by label, if they are known.
        ord: the norm: p >= 1 or inf; `None` is 2.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        The tree, and the norms before clipping by label, float32 (float64) scalars.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or no value for a label.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> tree = [jnp.array([3.0]), jnp.array([4.0]), jnp.array([9.0])]
        >>> clipped, norms = functional.clip_by_group_norm(tree, 1.0, ["a", "a", "b"])
        >>> print(clipped[0], clipped[1], clipped[2], norms["a"])
        [0.6] [0.8] [1.] 5.0
    """
    given(max_norm, "max_norm", "group")
    rule = measure("group", ord, axis_name=axis_name, groups=groups)
    flat = rule.labeled(flatten(tree))
    names, limits, found = rule.names(flat), [], []
    for limit in labels.values(max_norm, names, "max_norm"):
        _validate.without_schedules(max_norm=limit)
        limits.append(_validate.number(jnp.inf if limit is None else limit))
    for zero, value in zip(rule.zeros(flat), labels.values(norm, names, "norm"), strict=True):
        if norm is not None:
            _validate.real_number(value, "norm", signed=True)
            number = _validate.number(value).astype(zero.dtype)
            found.append(Norm(number, jnp.ones_like(number)))
    found = found or rule.norms(flat)
    pairs = zip(found, limits, strict=True)
    scales = rule.per_leaf(flat, [clipped(n, n.number, jnp.maximum(c, 0)) for n, c in pairs])
    arrays = [apply(x, scale.factors) for x, scale in zip(flat.arrays, scales, strict=True)]
    return flat.rebuild(arrays), dict(zip(names, [n.number for n in found], strict=True))


def normalize_by_norm(
    x: PyTree,
    target_norm: ArrayLike | None = 1.0,
    *,
    scope: Scope = "global",
    groups: Groups = None,
    axis: UnitAxes = None,
    ord: Order = None,
    stacked: Stacked = None,
    axis_name: AxisName = None,
) -> PyTree:
    r"""`x` scaled up or down so that its norm is `target_norm`; 0 stays 0.

    Args:
        x: an array, or a tree of them, which has one norm unless `scope` says otherwise.
        target_norm: a number >= 0, a scalar array, or `None` for no change.
        scope: `"global"`, or a norm for each `"group"`, `"leaf"` or `"unit"`.
        groups: the labels of the leaves at scope `"group"`.
        axis: the axes of a leaf that a unit reduces.
        ord: the norm: p >= 1, inf, `"rms"` or `"average"`; `None` is 2.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> print(functional.normalize_by_norm(jnp.array([3e-30, 4e-30])))
        [0.6 0.8]
    """
    _validate.without_schedules(target_norm=target_norm)
    rule = normalizing.normalize_by_norm(
        target_norm, scope=scope, groups=groups, axis=axis, ord=ord, stacked=stacked,
        axis_name=axis_name,
    )  # fmt: skip
    return rule.update(x, rule.init(x))[0]


def clippy(
    updates: PyTree,
    params: PyTree,
    rel: ArrayLike = 0.1,
    abs: ArrayLike = 1e-7,
    *,
    stacked: Stacked = None,
    axis_name: AxisName = None,
) -> PyTree:
    r"""Each leaf scaled so that no element exceeds `rel` times its parameter, plus `abs`.

    Args:
        updates: an array or a tree of them: the steps, the learning rate included.
        params: the parameters, with the same structure and shapes.
        rel: a number >= 0.
        abs: a number >= 0. One parameter of 0 holds its leaf to steps of this size.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        The shapes and dtypes of the updates.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or the trees differ.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> steps, params = jnp.array([0.01, 0.5]), jnp.array([1.0, -2.0])
        >>> print(functional.clippy(steps, params, 0.125, 0.0))
        [0.005 0.25 ]
    """
    rule = relative.clippy(rel, abs, stacked=stacked, axis_name=axis_name)
    return rule.update(updates, rule.init(updates), params)[0]


def clip_by_spectral_norm(
    x: PyTree,
    max_norm: ArrayLike | None,
    how: Spectral = "clip",
    method: Method | None = None,
    *,
    mask: Mask = None,
    axis: UnitAxes = None,
    stacked: Stacked = None,
) -> PyTree:
    r"""Matrices whose singular values are bounded by `max_norm`.

    Args:
        x: an array of rank >= 2, or a tree: matrices with the axes of inputs as rows and the others
            as columns. Leaves that are no kernels stay as they are.
        max_norm: c: a number >= 0, a scalar array, or `None` for no limit.
        how: each singular value s becomes min(s, c) by `"clip"`, s min(1, c / s_1) by `"scale"`,
            s / sqrt(1 + s^2 / c^2) by `"soft"`.
        method: `"eigh"`, `"iterative"`, or `None` for the first on a CPU and the second elsewhere.
        mask: the leaves to clip, as for `jaxclip.clip_by_spectral_norm`.
        axis: the axes of inputs; `None` for all but the last; or a function of name and leaf.
        stacked: the axis along which a leaf stacks matrices, or a function of name and leaf.

    Returns:
        The same shapes and dtypes.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value; if a leaf is complex, or has no axis of
            inputs or none of outputs.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxclip import functional
        >>> x = jnp.diag(jnp.array([3.0, 0.5]))
        >>> for s in jnp.diag(functional.clip_by_spectral_norm(x, 1.0, "soft")):
        ...     print(f"{s:.4f}")
        0.9487
        0.4472
    """
    _validate.without_schedules(max_norm=max_norm)
    rule = spectral.clip_by_spectral_norm(
        max_norm, how=how, method=method, mask=mask, axis=axis, stacked=stacked
    )
    return rule.update(x, rule.init(x))[0]
