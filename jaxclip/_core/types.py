"""Types of the public signatures, by the names that their docstrings use."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import optax
from jax.typing import ArrayLike

PyTree: TypeAlias = Any  # of arrays, unless a docstring says otherwise

Limit: TypeAlias = ArrayLike | optax.Schedule | None
"""A number, an array, a schedule `count -> value`, or `None` for no limit; 0 allows only zeros."""

ScalarOrSchedule: TypeAlias = ArrayLike | optax.Schedule
"""A number, an array of one, or a schedule `count -> value`."""

LimitTree: TypeAlias = Limit | PyTree
"""One limit, or a prefix tree of limits."""

Axes: TypeAlias = int | Sequence[int] | None
"""Axes of an array that a norm reduces."""

UnitAxes: TypeAlias = Axes | Callable[[str, jax.Array], Axes]
"""Axes, or a function `(name, leaf) -> axes`."""

Stacked: TypeAlias = int | Callable[[str, jax.Array], int | None] | None
"""The axis along which leaves stack layers, or a function `(name, leaf) -> axis` or `None`."""

AxisName: TypeAlias = Hashable | Sequence[Hashable]
"""Mesh axes: one name, several, `()` for none, or `None` to find them."""

Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None
"""A prefix tree of bools, or a function from the tree to one."""

Groups: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None
"""A prefix tree of labels, strings or `None`, or a function from the tree to one."""

Order: TypeAlias = float | Literal["rms", "average"] | None
"""A number p >= 1, inf, or a mean; `None` is 2."""

Scope: TypeAlias = Literal["element", "unit", "leaf", "group", "global"]
Bound: TypeAlias = Literal["hard", "tanh", "rational", "set"]
NonFinite: TypeAlias = Literal["propagate", "nan", "zero", "drop"]
Mode: TypeAlias = Literal["reciprocal", "max", "mean"]
How: TypeAlias = Literal["clip", "scale"]
Spectral: TypeAlias = Literal["clip", "scale", "soft"]
Method: TypeAlias = Literal["eigh", "iterative"]
Transformation: TypeAlias = optax.GradientTransformationExtraArgs
