r"""Clipped gradients of single examples, as a pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.examples import Parts, Reduce, examples
from jaxclip._core.types import AxisName, Order, PyTree
from jaxclip.functional.clipping import clip_by_global_norm


def clip_per_example(
    gradients: PyTree | Callable[[PyTree], PyTree],
    max_norm: ArrayLike | None,
    *,
    batch: PyTree = None,
    mask: ArrayLike | None = None,
    axis: int = 0,
    reduce: Reduce = "mean",
    microbatch: int | None = None,
    ord: Order = None,
    axis_name: AxisName = None,
) -> tuple[PyTree, jax.Array]:
    r"""The mean of gradients of single examples, each clipped to a norm of at most `max_norm`.

    $$g = \frac1B \sum_{i=1}^B g_i \min\Big(1, \frac{c}{\|g_i\|}\Big)$$

    Args:
        gradients: a tree of gradients with an axis of B examples in every floating leaf; or a
            function from one example to its gradients, of which no more than `microbatch` are in
            memory.
        max_norm: c, a number >= 0, a scalar array, or `None` for no limit.
        batch: the examples for a function of one, a tree of arrays with an axis of B examples.
        mask: bools of shape (B,), False for rows of padding, which are not in B.
        axis: the axis of the examples.
        reduce: `"mean"`, over the examples that count, or `"sum"`.
        microbatch: the number of examples that are computed together, `None` for all.
        ord: the norm: p >= 1 or inf; `None` is 2.
        axis_name: mesh axes that split the examples. `None`: inside `shard_map` those over which
            `gradients`, or `batch`, vary by type. Norms are not summed over them.

    Returns:
        The mean or sum, in the shape and dtype of one example's gradients, and the norm of each
        example before clipping, float32 (float64) of shape (B,), 0 for padding. An example whose
        norm is not finite is left out of the sum.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or a leaf does not have the axis of examples.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxclip import functional
        >>> def gradients(x):
        ...     return jax.grad(lambda w: w @ x)(jnp.zeros(2))
        >>> batch = jnp.array([[3.0, 4.0], [0.0, 0.5]])
        >>> g, norms = functional.clip_per_example(gradients, 1.0, batch=batch, microbatch=1)
        >>> print(g, norms)
        [0.3  0.65] [5.  0.5]

    References:
        Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133, algorithm 1.
    """
    _validate.without_schedules(max_norm=max_norm)

    def change(tree: PyTree) -> tuple[PyTree, jax.Array]:
        return clip_by_global_norm(tree, max_norm, ord=ord)

    def parts(norm: Any, row: jax.Array, good: jax.Array) -> Parts:
        del row, good
        return Parts(kept=norm)

    how = examples(axis, reduce, microbatch, axis_name)
    found = how.reduced(gradients, change, parts, batch=batch, mask=mask, params=())
    return found.tree, found.parts.kept
