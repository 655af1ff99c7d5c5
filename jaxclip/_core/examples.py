"""Gradients of single examples: each is changed alone, and the results are added, some at a time.

A function of one example is mapped over a micro-batch by `jax.vmap`, and a loop adds up the
micro-batches, so that no more than one of them is in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import _validate
from jaxclip._core import record
from jaxclip._core.flat_tree import Flat, alike, flatten
from jaxclip._core.types import AxisName, PyTree
from jaxclip._numerics import collectives, total_order
from jaxclip._numerics.collectives import MeshAxes
from jaxclip._numerics.scaled_float import accumulator, widened
from jaxclip._validate import short

Reduce: TypeAlias = Literal["mean", "sum"]


class Parts(NamedTuple):
    """Results for one example.

    Attributes:
        added: a tree of arrays, to be summed over all examples.
        largest: a tree of real arrays, of which the largest is taken; NaN if one is NaN.
        kept: a tree of arrays, to be stacked.
    """

    added: Any = ()
    largest: Any = ()
    kept: Any = ()


class Reduced(NamedTuple):
    """The results for all examples.

    Attributes:
        tree: the mean or the sum of the changed gradients.
        examples: the number of examples that count; int32 scalar.
        left_out: the number of these whose changed gradient is not finite; int32 scalar.
        axes: the mesh axes that split the examples.
        parts: the parts of all examples together.
    """

    tree: PyTree
    examples: jax.Array
    left_out: jax.Array
    axes: MeshAxes
    parts: Parts


class Examples(NamedTuple):
    """How the examples of a batch are reduced. Made by `examples`, which validates.

    Attributes:
        axis: the axis of the examples in every leaf.
        reduce: `"mean"` or `"sum"`.
        microbatch: the number of examples in memory, or `None` for all.
        axis_name: the mesh axes that split the examples, or `None` to find them.
        leaves_out: whether an example is left out if its changed gradient is not finite.
    """

    axis: int
    reduce: Reduce
    microbatch: int | None
    axis_name: MeshAxes | None
    leaves_out: bool = True

    def reduced(
        self,
        gradients: Any,
        change: Callable[[PyTree], tuple[PyTree, Any]],
        parts: Callable[[Any, jax.Array, jax.Array], Parts],
        *,
        batch: PyTree = None,
        mask: Any = None,
        params: PyTree = None,
    ) -> Reduced:
        """Changes the gradient of each example, and adds them in at least float32.

        Args:
            gradients: a tree of gradients with an axis of examples; or with `batch` a function
                from an example to its gradients.
            change: `change(gradients) -> (changed, seen)` for one example.
            parts: `parts(seen, row, good) -> Parts` for one example: whether it counts, and
                whether it is added.
            batch: the examples.
            mask: which examples count.
            params: parameters of the gradients' shapes; `()` for none that vary over a mesh.
        """
        gradient, rows, paths = _source(gradients, batch, self.axis)
        size = _size(rows, paths, self.axis, mask)
        given = _flags(mask, size)
        rows = [jnp.moveaxis(x, self.axis, 0) for x in rows]
        given, devices = collectives.split_as(rows, given)
        if self.microbatch is not None and self.microbatch % devices:
            raise ValueError(
                f"microbatch={self.microbatch} must be a multiple of {devices}, the number of "
                "devices that share the batch"
            )
        axes = self._axes(rows, params if batch is None else ())
        made: list[Flat] = []

        def one(example: list[jax.Array], row: jax.Array) -> Parts:
            flat = flatten(gradient(example))
            if jax.tree.leaves(params):
                alike(params, flat, ("params", "the gradient of one example"))
            for i, x in enumerate(flat.arrays):
                collectives.check_varying(x, axes, flat.path(i))
            zeroed = [jnp.where(row, x, jnp.zeros_like(x)) for x in flat.arrays]
            with collectives.apart(axes):
                changed, seen = change(flat.rebuild(zeroed))
                out = flatten(changed)
                good = row & record.all_elements_finite(out.arrays if self.leaves_out else [])
            made.append(out)
            wide = [widened(x, accumulator(x)) for x in out.arrays]
            arrays = [jnp.where(good, x, jnp.zeros_like(x)) for x in wide]
            counts = [x.astype(jnp.float32) for x in (row, row & ~good)]
            own = parts(seen, row, good)
            return own._replace(added=(arrays, counts, own.added))

        found = _over_rows(one, rows, given, self.microbatch, axes)
        arrays, (examples, left_out), added = found.added
        examples, left_out = examples.astype(jnp.int32), left_out.astype(jnp.int32)
        number = jnp.maximum(examples, 1) if self.reduce == "mean" else None
        out = made[0]
        results = [_over(x, number) for x in arrays]
        results = [x.astype(y.dtype) for x, y in zip(results, out.arrays, strict=True)]
        tree = out._replace(leaves=[_still(x) for x in out.leaves]).rebuild(results)
        return Reduced(tree, examples, left_out, axes, found._replace(added=added))

    def _axes(self, rows: list[jax.Array], params: PyTree) -> MeshAxes:
        """The mesh axes over which the examples are split."""
        if self.axis_name is not None:
            return self.axis_name
        axes = collectives.union(map(collectives.varying_axes, rows))
        if axes and params is None:
            raise ValueError(
                f"axis_name=None: the gradients vary over the mesh axes {axes}, but whether these "
                "split the examples or the parameters cannot be known. Pass params to update, or "
                "axis_name= with the mesh axes that split the examples"
            )
        sharded = collectives.union(map(collectives.varying_axes, flatten(params).arrays))
        return tuple([name for name in axes if name not in sharded])


def examples(axis: int, reduce: Reduce, microbatch: int | None, axis_name: AxisName) -> Examples:
    """Validates the arguments that say how examples are reduced."""
    if _validate.is_bool(axis) or not hasattr(axis, "__index__"):
        raise TypeError(f"axis={short(axis)} must be an int, the axis of the examples")
    _validate.choice(reduce, Reduce, "reduce")
    if microbatch is not None:
        microbatch = _validate.known_size(
            _validate.whole_number(microbatch, "microbatch"), "microbatch"
        )
    return Examples(int(axis), reduce, microbatch, _validate.mesh_axes(axis_name))


def _source(
    gradients: Any, batch: PyTree, axis: int
) -> tuple[Callable[[list[jax.Array]], PyTree], list[Any], list[str]]:
    """The gradient of one example from its rows, the arrays of rows, and their names."""
    is_function = callable(gradients) and jax.tree_util.all_leaves([gradients])
    if is_function != (batch is not None):
        wanted = "a function needs batch=" if is_function else "batch= needs a function of one"
        raise TypeError(f"gradients={short(gradients)}, batch={short(batch)}: {wanted} example")
    if is_function:
        with_paths, treedef = jax.tree_util.tree_flatten_with_path(batch)
        paths = ["batch" + jax.tree_util.keystr(path) for path, _ in with_paths]
        arrays = [jnp.asarray(x) for _, x in with_paths]
        return lambda rows: gradients(jax.tree.unflatten(treedef, rows)), arrays, paths
    flat = flatten(gradients)
    flat = flat._replace(leaves=[_still(x, axis) for x in flat.leaves])
    return flat.rebuild, flat.arrays, list(map(flat.path, range(len(flat.arrays))))


def _size(rows: list[Any], paths: list[str], axis: int, mask: Any) -> int:
    """The number of examples."""
    sizes: dict[int, str] = {}
    for x, path in zip(rows, paths, strict=True):
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"axis={axis}: {path} of shape {x.shape} has no such axis of examples")
        sizes.setdefault(x.shape[axis], path)
    if len(sizes) > 1:
        found = " and ".join(f"{size} at {path}" for size, path in sizes.items())
        raise ValueError(f"axis={axis} has different numbers of examples: {found}")
    return next(iter(sizes), 0 if mask is None else jnp.size(mask))


def _flags(mask: Any, size: int) -> jax.Array:
    """The mask as bools, one for each example."""
    if mask is None:
        return jnp.ones(size, bool)
    flags = jnp.asarray(mask)
    if flags.dtype != jnp.bool_:
        raise TypeError(f"mask={short(mask)} must be of bools, True for examples that count")
    if flags.shape != (size,):
        raise ValueError(f"mask has shape {flags.shape}, but there are {size} examples")
    return flags


def _over_rows(
    one: Callable[[list[jax.Array], jax.Array], Parts],
    rows: list[jax.Array],
    counts: jax.Array,
    microbatch: int | None,
    axes: MeshAxes,
) -> Parts:
    """The parts of all examples together, from those of each."""
    size = len(counts)
    k = max(min(microbatch or size, size), 1)
    number = max(-(-size // k), 1)
    if number * k > size:
        rows = [_padded(x, number * k) for x in rows]
        counts = _padded(counts, number * k) & (jnp.arange(number * k) < size)

    def some(i: Any) -> Parts:
        found = jax.vmap(one)(*jax.tree.map(lambda x: _strided(x, number, i), (rows, counts)))
        return Parts(
            jax.tree.map(lambda x: jnp.sum(x, 0, dtype=x.dtype), found.added),
            jax.tree.map(_largest, found.largest),
            found.kept,
        )

    if number == 1:
        found = some(None)
    else:
        shapes = jax.eval_shape(some, 0)
        zeros = jax.tree.map(lambda s: collectives.like(s, 0), shapes.added)
        least = jax.tree.map(lambda s: collectives.like(s, lowest(s.dtype)), shapes.largest)

        def step(sofar: tuple[Any, Any], i: jax.Array) -> tuple[tuple[Any, Any], Any]:
            new = some(i)
            added = jax.tree.map(jnp.add, sofar[0], new.added)
            return (added, jax.tree.map(jnp.maximum, sofar[1], new.largest)), new.kept

        (added, largest), kept = jax.lax.scan(step, (zeros, least), jnp.arange(number))
        kept = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:size], kept)
        found = Parts(added, largest, kept)
    added = collectives.sums(found.added, axes)
    return found._replace(added=added, largest=collectives.maxima(found.largest, axes))


def _padded(x: jax.Array, size: int) -> jax.Array:
    """Rows up to this number: the first ones again, or zeros if there are none."""
    if not len(x):
        return jnp.zeros((size, *x.shape[1:]), x.dtype)
    return jnp.concatenate([x, x[: size - len(x)]])


def _strided(x: jax.Array, number: int, i: Any) -> jax.Array:
    """Every `number`-th row, from the i-th on: a batch stays sharded over its devices."""
    if number == 1:
        return x
    return jax.lax.dynamic_index_in_dim(x.reshape(-1, number, *x.shape[1:]), i, 1, keepdims=False)


def _largest(x: jax.Array) -> jax.Array:
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return total_order.largest(x, (0,)) if is_float else jnp.max(x, 0)


def lowest(dtype: Any) -> Any:
    """The least finite number of a dtype."""
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return (jnp.finfo if is_float else jnp.iinfo)(dtype).min


def _over(x: jax.Array, number: Any) -> jax.Array:
    """The sum divided by the number of examples, if given."""
    if number is None:
        return x
    divisor = number.astype(jnp.finfo(x.dtype).dtype)
    if jnp.iscomplexobj(x):
        return jax.lax.complex(jnp.real(x) / divisor, jnp.imag(x) / divisor)
    return x / divisor


def _still(x: Any, axis: int | None = None) -> Any:
    """Zeros in place of a leaf that is no gradient, without the axis of examples if given."""
    dtype, shape = jnp.result_type(x), jnp.shape(x)
    if axis is not None and -len(shape) <= axis < len(shape):
        shape = tuple(np.delete(shape, axis).tolist())
    return np.zeros(shape, dtype) if dtype == jax.dtypes.float0 else jnp.zeros(shape, dtype)
