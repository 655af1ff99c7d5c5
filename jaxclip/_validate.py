"""Validation of arguments: every error names the argument and its value.

A Python value is checked where a transformation is constructed. The structure of a tree and the
shape of a leaf are checked when an update is traced, and the error has the leaf's key path.
"""

from __future__ import annotations

import contextlib
import operator
from typing import Any, get_args

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

_NO_NUMBERS = (bool, np.bool_, str, bytes, type(None))


def is_traced(x: Any) -> bool:
    """Whether the value of `x` is unknown until the program runs."""
    return isinstance(x, jax.core.Tracer)


def short(value: Any) -> str:
    """A value for an error, which may be a whole tree: one line of at most 200 characters."""
    return cut(repr(value))


def cut(text: Any) -> str:
    """A text on one line of at most 200 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def choice(value: Any, options: Any, name: str) -> None:
    """Checks that `value` is one of the strings of a `Literal`."""
    if not isinstance(value, str) or value not in get_args(options):
        known = ", ".join(map(repr, get_args(options)))
        raise ValueError(f"{name}={short(value)} is not known; choose one of {known}")


def real_number(
    value: Any, name: str, *, scalar: bool = True, signed: bool = False, finite: bool = False
) -> None:
    """Checks a real number or array: its type, its shape and, unless traced, its value."""
    dtype, shape = None, ()
    if not isinstance(value, _NO_NUMBERS):
        with contextlib.suppress(TypeError, ValueError):
            dtype, shape = jnp.result_type(value), jnp.shape(value)
    if dtype is None:
        raise TypeError(f"{name}={short(value)} must be a real number, not {type(value).__name__}")
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name}={short(value)} must be real, not of dtype {dtype}")
    if scalar and shape != ():
        raise ValueError(f"{name}={short(value)} must be a scalar, not an array of shape {shape}")
    if is_traced(value):
        return
    array = np.asarray(value).astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name}={short(value)} must not be NaN")
    if not signed and (array < 0).any():
        raise ValueError(f"{name}={short(value)} must not be negative")
    if finite and np.isinf(array).any():
        raise ValueError(f"{name}={short(value)} must be finite")


def between(value: Any, low: float, high: float, name: str) -> None:
    """Checks a real number in a closed interval."""
    real_number(value, name, signed=True)
    if not is_traced(value) and not low <= float(value) <= high:
        raise ValueError(f"{name}={short(value)} must be between {low} and {high}")


def whole_number(value: Any, name: str, least: int = 1) -> Any:
    """Returns a whole number of at least `least` as an int; a traced one as it is."""
    if is_traced(value):
        return value
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}={short(value)} must be a whole number, not {type(value).__name__}")
    whole = operator.index(value)
    if whole < least:
        raise ValueError(f"{name}={short(value)} must be at least {least}")
    return min(whole, np.iinfo(np.int32).max)  # counts saturate there


def known_size(value: Any, name: str) -> int:
    """Returns a whole number that decides the shape of a state, as an int."""
    if is_traced(value):
        raise TracedSizeError(
            f"{name} is traced, but it decides the shape of the state: call init outside of jit, "
            f"or name it in optax.inject_hyperparams(..., static_args=({name!r},))"
        )
    return int(value)


class TracedSizeError(TypeError):
    """A shape depends on a value that is unknown until the program runs."""


def is_bool(x: Any) -> bool:
    """Whether `x` is True or False, of Python, NumPy or JAX."""
    if isinstance(x, (np.ndarray, jax.Array)) and not is_traced(x):
        return x.shape == () and x.dtype == np.bool_
    return isinstance(x, (bool, np.bool_))


def flag(value: Any, name: str) -> None:
    """Checks True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={short(value)} must be True or False")


def limits(
    tree: Any, name: str, *, scalar: bool, signed: bool = False, finite: bool = False
) -> None:
    """Checks a prefix tree of limits: real numbers, arrays, schedules and `None`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_one_limit):
        if leaf is not None and not callable(leaf):
            label = name + jax.tree_util.keystr(path)
            real_number(leaf, label, scalar=scalar, signed=signed, finite=finite)


def without_schedules(**arguments: Any) -> None:
    """Checks arguments of a pure function: each is one number or array."""
    for name, value in arguments.items():
        if value is not None and (callable(value) or is_tree(value)):
            raise TypeError(
                f"{name}={short(value)} must be a number or an array: schedules and trees are only "
                "supported by the transformations"
            )


def bounds(low: Any, high: Any, names: tuple[str, str]) -> None:
    """Checks a lower and an upper bound, which may be prefix trees, and their order."""
    limits(low, names[0], scalar=False, signed=True)
    limits(high, names[1], scalar=False, signed=True)
    for path, least, most in _pairs(low, high):
        if is_known_number(least) and is_known_number(most) and _exceeds(least, most):
            label, other = (name + jax.tree_util.keystr(path) for name in names)
            raise ValueError(f"{label}={short(least)} exceeds {other}={short(most)}")


def _pairs(low: Any, high: Any) -> list[tuple[Any, Any, Any]]:
    """Leaves of two trees, one a prefix of the other, with their paths; none if neither is."""
    for first, second, order in ((low, high, 1), (high, low, -1)):
        try:
            full = jax.tree.broadcast(first, second, is_leaf=is_one_limit)
        except ValueError:
            continue
        with_paths = jax.tree_util.tree_leaves_with_path(second, is_leaf=is_one_limit)
        pairs = zip(with_paths, jax.tree.leaves(full, is_leaf=is_one_limit), strict=True)
        return [(path, *(one, other)[::order]) for (path, other), one in pairs]
    return []


def _exceeds(low: Any, high: Any) -> bool:
    try:
        return bool((np.asarray(low, np.float64) > np.asarray(high, np.float64)).any())
    except ValueError:  # of these two shapes, one does not fit the leaf, which is checked later
        return False


def is_one_limit(x: Any) -> bool:
    """Whether JAX takes `x` for a tree that is one limit: `None` or a `Partial` schedule."""
    return x is None or isinstance(x, jax.tree_util.Partial)


def is_tree(x: Any) -> bool:
    """Whether `x` is a container of values."""
    return not jax.tree_util.all_leaves([x], is_leaf=is_one_limit)


def is_known_number(x: Any) -> bool:
    """Whether `x` is a number or an array with a known value."""
    return x is not None and not (is_traced(x) or callable(x) or is_tree(x))


def number(value: Any) -> jax.Array:
    """A real number or array as an array; integers, which may exceed int32, as floats.

    Under `jax.debug_infs` inf becomes the largest float.
    """
    whole = isinstance(value, (int, np.integer))
    if whole or (isinstance(value, np.ndarray) and value.dtype.kind in "iu"):
        value = np.asarray(value, np.float64)
    config: Any = jax.config  # whose attributes type checkers do not know
    if config.jax_debug_infs and jnp.issubdtype(jnp.result_type(value), jnp.floating):
        most = float(jnp.finfo(jnp.result_type(value)).max)
        xp = jnp if isinstance(value, jax.Array) else np
        value = xp.clip(value, -most, most)
    return jnp.asarray(value)


def broadcasts(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to the shape `onto` without enlarging it."""
    try:
        return jnp.broadcast_shapes(shape, onto) == onto
    except ValueError:
        return False


def fitted(value: Any, shape: tuple[int, ...], name: str, target: str) -> jax.Array:
    """`value` as an array of the rank of `shape`, or a scalar."""
    array = number(value)
    if not broadcasts(array.shape, shape):
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast to {target} of shape {shape}"
        )
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape) if array.ndim else array


def norm_order(ord: Any) -> float | str:
    """Returns `ord` as `"rms"`, `"average"` or a float >= 1; `None` is 2."""
    if ord is None or (isinstance(ord, str) and ord in ("rms", "average")):
        return 2.0 if ord is None else ord
    wanted = "must be a number >= 1, inf, 'rms' or 'average'"
    if is_traced(ord):
        raise TypeError(
            "ord is traced, but it decides which program is compiled; under "
            "optax.inject_hyperparams name it in static_args=('ord',)"
        )
    try:
        real_number(ord, "ord", signed=True)
    except TypeError as error:
        kind = ValueError if isinstance(ord, str) else TypeError
        raise kind(f"ord={short(ord)} {wanted}") from error
    if not float(ord) >= 1:
        raise ValueError(f"ord={short(ord)} {wanted}")
    return float(ord)


def axes(axis: Any, name: str = "axis") -> Any:
    """Returns `axis` as a tuple of ints, `None`, or a function of a leaf."""
    if axis is None or callable(axis):
        return axis
    if is_traced(axis):
        raise TypeError(
            f"{name} is traced, but it decides the shape of the norms; under "
            f"optax.inject_hyperparams pass a tuple, as in {name}=(1,)"
        )
    if isinstance(axis, np.ndarray) and axis.ndim == 1:
        axis = axis.tolist()
    entries: tuple[Any, ...] = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    for entry in entries:
        if isinstance(entry, bool) or not hasattr(entry, "__index__"):
            raise TypeError(
                f"{name}={short(axis)} must be an int, a tuple of ints, None, or a function "
                "(name, leaf) -> axes"
            )
    result = tuple(int(entry) for entry in entries)
    if len(set(result)) != len(result):
        raise ValueError(f"{name}={short(axis)} names an axis twice")
    return result


def stack_axis(stacked: Any, name: str = "stacked") -> int | None:
    """Returns the axis along which layers are stacked as an int; `None` is none."""
    if is_traced(stacked):
        raise TypeError(
            f"{name} is traced, but it decides the shape of the norms; under "
            "optax.inject_hyperparams name it in static_args=('stacked',)"
        )
    if stacked is None:
        return None
    if not is_bool(stacked):
        with contextlib.suppress(TypeError):
            return operator.index(stacked)
    raise TypeError(
        f"{name}={short(stacked)} must be an int, None, or a function (name, leaf) -> axis or None"
    )


def mesh_axes(axis_name: Any) -> tuple[Any, ...] | None:
    """Returns `axis_name` as a tuple of mesh axes, or `None`."""
    if axis_name is None:
        return None
    names = axis_name if isinstance(axis_name, (tuple, list)) else (axis_name,)
    for name in names:
        if isinstance(name, (bool, set, dict)) or name is None or callable(name):
            raise TypeError(
                f"axis_name={short(axis_name)} must be the name of a mesh axis, or several"
            )
    return tuple(names)
