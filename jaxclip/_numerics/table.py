"""Numbers of many leaves in a few vectors, outside of meshes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STACKED = 64  # arrays in one kernel
SMALL = 4096  # elements of an array that is joined with others


class Table:
    """Small arrays of many leaves as a few vectors: few instructions for many leaves.

    `power_sums.table_of` makes it.

    A vector has the arrays of one dtype, or one array that is large. A column is an array for each
    leaf. A table knows the columns that it has made, so nothing is read from a vector to be joined
    again.
    """

    def __init__(self, like: Sequence[Any]) -> None:
        groups: dict[Any, list[int]] = {}
        for i, x in enumerate(like):
            apart = i if x.size > SMALL else None
            groups.setdefault((x.dtype, apart), []).append(i)
        self._groups, self._number = list(groups.values()), len(like)
        self._shapes = [tuple([tuple(like[i].shape) for i in own]) for own in self._groups]
        self._dtypes = [dtype for dtype, _ in groups]
        # By an array's identity: the array, which stays alive, its vector, and its place there.
        self._made: dict[int, tuple[Any, Any, int]] = {}

    def map(self, function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
        """The results of a function that works element by element, for each leaf.

        Args:
            function: from arrays of one shape to a tree of such arrays.
            columns: as `vectors` takes them.
        """
        rows = zip(*map(self.vectors, columns), strict=True)
        return self.arrays([function(*row) for row in rows])

    def vectors(self, column: Sequence[Any]) -> list[Any]:
        """The vectors of a column; a number that is the same for the leaves of one stays a number.

        Args:
            column: for each leaf a tree of arrays of its shape, or of numbers.
        """
        if len(column) != self._number:
            raise wrong_number(column, self._number)
        found: list[Any] = []
        for k, group in enumerate(self._groups):
            own = [column[i] for i in group]
            leaves, kind = jax.tree.flatten(own[0])
            if len(own) > 1:
                trees = [leaves, *map(jax.tree.leaves, own[1:])]
                leaves = [self._vector(k, part) for part in zip(*trees, strict=True)]
            found.append(jax.tree.unflatten(kind, leaves))
        return found

    def arrays(self, vectors: Sequence[Any]) -> list[Any]:
        """The column of some vectors, or of trees of vectors."""
        found: list[Any] = [None] * self._number
        for group, shapes, tree in zip(self._groups, self._shapes, vectors, strict=True):
            if len(group) == 1:
                found[group[0]] = tree
                continue
            leaves, kind = jax.tree.flatten(tree)
            columns = enumerate(zip(group, _apart(leaves, shapes), strict=True))
            for place, (i, arrays) in columns:
                for x, vector in zip(arrays, leaves, strict=True):
                    self._made[id(x)] = x, vector, place
                found[i] = jax.tree.unflatten(kind, arrays)
        return found

    def _vector(self, k: int, column: Sequence[Any]) -> Any:
        one, known = column[0], all(isinstance(x, float) for x in column)
        if jnp.ndim(one) == 0 and all(x is one or (known and x == one) for x in column):
            return one
        if known and not any(self._shapes[k]):
            return jnp.asarray(np.asarray(column, self._dtypes[k]))
        made = [self._made.get(id(x), (x, None, 0))[1:] for x in column]
        vector = made[0][0]
        if vector is not None and all(v is vector and p == i for i, (v, p) in enumerate(made)):
            return vector
        return _together(tuple(column), self._shapes[k], self._dtypes[k])


def wrong_number(column: Sequence[Any], number: int) -> ValueError:
    """The error for a column that does not have a value for each norm."""
    return ValueError(f"{len(column)} values for {number} norms: each needs one")


_Shapes = tuple[tuple[int, ...], ...]


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _together(column: tuple[Any, ...], shapes: _Shapes, dtype: Any) -> jax.Array:
    """Arrays, which are broadcast to some shapes, in one vector."""
    parts = []
    for x, shape in zip(map(jnp.asarray, column), shapes, strict=True):
        x = x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        parts.append(jnp.ravel(jnp.broadcast_to(x, shape)))
    return _concatenated(parts)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _apart(vectors: list[jax.Array], shapes: _Shapes) -> list[list[jax.Array]]:
    """For each shape its part of each vector, which may be a number.

    XLA compiles equal kernels once. So the place of a part is an operand of the kernel that reads
    it, an array of two numbers, which XLA does not read when it compiles.
    """
    sizes = [math.prod(shape) for shape in shapes]
    starts = [np.array([n, 2**32 - 1], np.uint32) for n in np.cumsum([0, *sizes[:-1]])]
    places = jax.lax.optimization_barrier([jnp.asarray(start) for start in starts])
    groups: dict[Any, list[int]] = {}
    for k, vector in enumerate(vectors):
        groups.setdefault(vector.dtype, []).append(k)
    found: list[list[Any]] = [[None] * len(vectors) for _ in shapes]
    for own in groups.values():
        rows = jnp.stack([jnp.broadcast_to(vectors[k], (sum(sizes),)) for k in own])
        rows = jax.lax.optimization_barrier(rows)
        for parts, place, size, shape in zip(found, places, sizes, shapes, strict=True):
            at = jax.lax.reshape(jax.lax.slice(place, (0,), (1,)), ())
            part = jax.lax.dynamic_slice(rows, (jnp.uint32(0), at), (len(own), size))
            for i, k in enumerate(own):
                parts[k] = jax.lax.reshape(jax.lax.slice(part, (i, 0), (i + 1, size)), shape)
    return found


def _concatenated(parts: list[jax.Array]) -> jax.Array:
    """Vectors in one.

    Without barriers XLA would make one kernel of a thousand vectors, and compile it for seconds.
    """
    while len(parts) > 1:
        chunks = [parts[i : i + STACKED] for i in range(0, len(parts), STACKED)]
        parts = [jax.lax.optimization_barrier(jnp.concatenate(chunk)) for chunk in chunks]
    return parts[0]
