"""Validation of what users pass: every error names the argument, its value and what would be right.

Python values are checked where a rule is constructed; what can only be known at trace time (the
structure of a tree, a shape) is checked there with the leaf's key path. Nothing here computes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

# `optax.inject_hyperparams` turns every Python number among a factory's arguments, defaults
# included, into a traced array. A NumPy scalar it leaves as it is. Defaults that decide which
# program is traced, such as the order of a norm, are therefore NumPy scalars.
TWO = np.int32(2)


def is_traced(x: Any) -> bool:
    """Whether `x` has no value yet."""
    return isinstance(x, jax.core.Tracer)


def choice(options: Sequence[str], **argument: Any) -> None:
    """Checks that the argument is one of `options`."""
    ((name, value),) = argument.items()
    if not isinstance(value, str) or value not in options:
        known = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name}={value!r} is not known; choose one of {known}")


def real_number(
    *, scalar: bool = True, signed: bool = False, finite: bool = False, **argument: Any
) -> None:
    """Checks a real number or real array: its type, its shape and, where it is known, its value."""
    ((name, value),) = argument.items()
    if isinstance(value, (bool, np.bool_, str, bytes)) or value is None:
        raise TypeError(f"{name}={value!r} must be a real number, not {type(value).__name__}")
    try:
        dtype = jnp.result_type(value)
        shape = jnp.shape(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}={value!r} must be a real number or array, not {type(value).__name__}"
        ) from error
    if not jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name}={value!r} must be real, not of dtype {dtype}")
    if scalar and shape != ():
        raise ValueError(f"{name}={value!r} must be a scalar, not an array of shape {shape}")
    if not is_traced(value):
        _real_values(name, value, signed, finite)


def between(low: float, high: float, **argument: Any) -> None:
    """Checks a real number in a closed interval; one that is traced only for its type."""
    ((name, value),) = argument.items()
    real_number(signed=True, **argument)
    if not is_traced(value) and not low <= float(value) <= high:
        raise ValueError(f"{name}={value!r} must be between {low} and {high}")


def whole_number(least: int = 1, *, fixed: bool = True, **argument: Any) -> Any:
    """Returns a whole number of at least `least` as an int; one that is traced only if not `fixed`.

    What decides the shape of a state, such as a window, is `fixed`.
    """
    ((name, value),) = argument.items()
    if is_traced(value):
        if fixed:
            raise TypeError(
                f"{name} is traced, but it decides the shape of the state; under "
                f"optax.inject_hyperparams name it in static_args=({name!r},)"
            )
        return value
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}={value!r} must be a whole number, not {type(value).__name__}")
    whole = operator.index(value)
    if whole < least:
        raise ValueError(f"{name}={value!r} must be at least {least}")
    return whole if fixed else min(whole, np.iinfo(np.int32).max)  # counts end there


def is_bool(x: Any) -> bool:
    """Whether `x` is True or False, as Python, NumPy or JAX have them."""
    if isinstance(x, (np.ndarray, jax.Array)) and not is_traced(x):
        return x.shape == () and x.dtype == np.bool_
    return isinstance(x, (bool, np.bool_))


def flag(**argument: Any) -> None:
    """Checks that an argument is True or False."""
    ((name, value),) = argument.items()
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r} must be True or False")


def shape(**argument: Any) -> tuple[int, ...]:
    """The shape of an argument whose value is not looked at: a number that a run computed."""
    ((name, value),) = argument.items()
    if value is None or isinstance(value, (bool, str)) or is_tree(value):
        raise TypeError(f"{name}={value!r} must be a number or an array")
    return jnp.shape(value)


def _real_values(name: str, value: Any, signed: bool, finite: bool) -> None:
    array = np.asarray(value).astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name}={value!r} must not be NaN")
    if not signed and (array < 0).any():
        raise ValueError(f"{name}={value!r} must not be negative")
    if finite and np.isinf(array).any():
        raise ValueError(f"{name}={value!r} must be finite")


def threshold_tree(
    tree: Any, name: str, *, scalar: bool, signed: bool = False, finite: bool = False
) -> None:
    """Checks a prefix tree whose leaves are `None`, real numbers, arrays or schedules."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_value):
        if leaf is not None and not callable(leaf):
            label = name + jax.tree_util.keystr(path)
            real_number(**{label: leaf}, scalar=scalar, signed=signed, finite=finite)


def one_value(**arguments: Any) -> None:
    """Checks that arguments of a function without state are one value each, and no schedule."""
    for name, value in arguments.items():
        if value is not None and (callable(value) or is_tree(value)):
            raise TypeError(
                f"{name}={value!r} must be a number or an array: schedules and trees are for the "
                "rules, which know the step and the leaves"
            )


def bounds(low: Any, high: Any, names: tuple[str, str]) -> None:
    """Checks two bounds, each by itself and against each other where both are known.

    Prefix trees are held against each other leaf by leaf.
    """
    threshold_tree(low, names[0], scalar=False, signed=True)
    threshold_tree(high, names[1], scalar=False, signed=True)
    for path, least, most in _paired(low, high):
        if is_known_number(least) and is_known_number(most) and _exceeds(least, most):
            label, other = (name + jax.tree_util.keystr(path) for name in names)
            raise ValueError(f"{label}={least!r} exceeds {other}={most!r}")


def _paired(low: Any, high: Any) -> list[tuple[Any, Any, Any]]:
    """The leaves of two trees, one a prefix of the other, with their paths; none if neither is."""
    for first, second, order in ((low, high, 1), (high, low, -1)):
        try:
            first = jax.tree.broadcast(first, second, is_leaf=is_value)
        except ValueError:
            continue
        with_paths = jax.tree_util.tree_leaves_with_path(second, is_leaf=is_value)
        pairs = zip(with_paths, jax.tree.leaves(first, is_leaf=is_value), strict=True)
        return [(path, *(one, other)[::order]) for (path, other), one in pairs]
    return []


def _exceeds(low: Any, high: Any) -> bool:
    """Whether an element of `low` is above one of `high`; shapes are checked with the leaf's."""
    try:
        return bool((np.asarray(low, np.float64) > np.asarray(high, np.float64)).any())
    except ValueError:  # of shapes that do not fit each other one does not fit the leaf
        return False


def is_value(x: Any) -> bool:
    """Whether JAX takes `x` for a tree, but we for one value: `None`, or a schedule of JAX's."""
    return x is None or isinstance(x, jax.tree_util.Partial)


def is_known_number(x: Any) -> bool:
    """Whether `x` is a number or an array whose value is known now."""
    return x is not None and not (is_traced(x) or callable(x) or is_tree(x))


def broadcasts(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to the shape `onto` without enlarging it."""
    try:
        return jnp.broadcast_shapes(shape, onto) == onto
    except ValueError:
        return False


def number(value: Any) -> jax.Array:
    """A real number or array that was given, as an array: whole ones beyond int32 as floats."""
    whole = isinstance(value, (int, np.integer))
    if whole or (isinstance(value, np.ndarray) and value.dtype.kind in "iu"):
        value = np.asarray(value, np.float64)
    return jnp.asarray(value)


def fitted(value: Any, shape: tuple[int, ...], name: str, what: str) -> jax.Array:
    """`value` as an array of the rank of `shape`, if it broadcasts to it without enlarging it."""
    array = number(value)
    if not broadcasts(array.shape, shape):
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast to {what}, of shape {shape}"
        )
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape) if array.ndim else array


def is_tree(x: Any) -> bool:
    """Whether `x` is a container of several values rather than one value."""
    return not jax.tree_util.all_leaves([x], is_leaf=is_value)


def norm_order(ord: Any) -> float | str:
    """Returns `ord` as a Python value: `"rms"`, `"average"`, or a float >= 1."""
    if isinstance(ord, str):
        choice(("rms", "average"), ord=ord)
        return ord
    if is_traced(ord):
        raise TypeError(
            "ord is traced, but which norm is taken must be known when the program is made; under "
            "optax.inject_hyperparams name it in static_args=('ord',)"
        )
    if isinstance(ord, (bool, np.bool_)) or np.ndim(ord) != 0:
        raise TypeError(f"ord={ord!r} must be a number >= 1, inf, 'rms' or 'average'")
    try:
        value = float(ord)
    except (TypeError, ValueError) as error:
        raise TypeError(f"ord={ord!r} must be a number >= 1, inf, 'rms' or 'average'") from error
    if math.isnan(value) or value < 1:
        raise ValueError(f"ord={ord!r} must be a number >= 1, inf, 'rms' or 'average'")
    return value


def axes(axis: Any, name: str = "axis") -> Any:
    """Returns `axis` as a tuple of Python ints, or `None`, or the function of a leaf that it is."""
    if axis is None or callable(axis):
        return axis
    if is_traced(axis):
        raise TypeError(
            f"{name} is traced, but it decides the shape of the norms; under "
            f"optax.inject_hyperparams pass it as a tuple, as in {name}=(1,)"
        )
    if isinstance(axis, np.ndarray) and axis.ndim == 1:
        axis = axis.tolist()
    entries: tuple[Any, ...] = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    for entry in entries:
        if isinstance(entry, bool) or not hasattr(entry, "__index__"):
            raise TypeError(
                f"{name}={axis!r} must be an int, a tuple of ints, None, or a "
                "function (name, leaf) -> axes"
            )
    result = tuple(int(entry) for entry in entries)
    if len(set(result)) != len(result):
        raise ValueError(f"{name}={axis!r} names an axis twice")
    return result


def mesh_axes(axis_name: Any) -> tuple[Any, ...] | None:
    """Returns `axis_name` as a tuple of mesh axes, or `None`."""
    if axis_name is None:
        return None
    names = axis_name if isinstance(axis_name, (tuple, list)) else (axis_name,)
    for name in names:
        if isinstance(name, (bool, set, dict)) or name is None or callable(name):
            raise TypeError(f"axis_name={axis_name!r} must be the name of a mesh axis, or several")
    return tuple(names)
