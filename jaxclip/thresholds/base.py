"""The interface of a threshold, and a threshold that learns from a rule for a single norm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.types import Bound, PyTree
from jaxclip._numerics.scaled_float import narrowed, unlimited


class Measured(NamedTuple):
    """The input of a threshold.

    Attributes:
        norms: the norms of this update, one array per group: a single scalar at the scope
            `global`, a scalar per label at `group`, a scalar per leaf at `leaf`, an array per leaf
            at `unit` and `element`, and for a leaf that stacks layers.
        count: the number of updates before this one, an int32 scalar.
        of_params: `of_params(factors)` returns the same norms of the parameters, each times its
            factor; inf for an infinite factor and 0 for 0, whatever the norm.
        of_tree: returns the norm of everything together without non-finite norms; a scalar.
        spread: `spread(tree, name)` returns the value of a prefix tree for each group.
        path: `path(i)` returns the key path of the i-th group, for errors.
        map: `map(function, *columns)` returns the results of a function that works element by
            element, for each group. A column has an array for each norm, of its shape, or a tree
            of such arrays. The function is called for many norms at once, which compiles faster
            than a loop over them.
    """

    norms: list[jax.Array]
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    of_params: Callable[[list[jax.Array]], list[jax.Array]]
    of_tree: Callable[[], jax.Array]
    spread: Callable[[PyTree, str], list[PyTree]]
    path: Callable[[int], str]
    map: Callable[..., list[PyTree]]


class Threshold(NamedTuple):
    """The largest norm allowed, from the norms measured now and before.

    A pair of functions, like an Optax transformation. A threshold does not know the scope: it gets
    one norm for the whole tree, one per leaf, or an array of norms per leaf, and returns as many.

    Learned thresholds observe norms that are finite and above 0. Other norms change nothing, nor do
    they count for a warm-up: a bad gradient cannot spoil the statistics, and a leaf without a
    gradient for a while is not held at zero afterwards. The memory has the dtype of the norms given
    to `init` and does not grow. Derivatives treat it as a constant.

    A threshold that follows the norms follows an explosion too. With `max_growth=m` the largest
    norm allowed is at most m times the one before, in a warm-up too, and the first is at most m
    times the first norm. Norms that really rise by a factor f are reached in ln f / ln m updates:
    2,300 for ten times as much at 1.001. A first norm that is far too small, such as that of a
    leaf behind zero weights, holds its leaf back as long: take the scope `global`, or a larger m.

    Attributes:
        init: `init(norms) -> memory`, given zeros of the shapes and dtypes of the norms.
            The memory is a pytree of arrays whose structure, shapes and dtypes stay fixed.
        update: `update(memory, measured) -> (thresholds, memory)`, one threshold per norm,
            broadcastable to it.
        bound: the `bound` that `jaxclip.clip_by` must have for it; `None` for any.
    """

    init: Callable[[list[jax.Array]], PyTree]
    update: Callable[[PyTree, Measured], tuple[list[jax.Array], PyTree]]
    bound: Bound | None = None


_MOST_GROWTH = 1000.0


class Growth(NamedTuple):
    """A memory whose threshold grows by a bounded factor.

    Attributes:
        memory: the memory of the threshold.
        allowed_norm: the largest norm allowed at the last observation; 0 before the first.
    """

    memory: Any
    allowed_norm: jax.Array


def learned(
    first: Callable[[jax.Array], Any],
    following: Callable[..., tuple[jax.Array, jax.Array, Any]],
    max_growth: ArrayLike | None = None,
    shared: Callable[[Measured], tuple[Any, ...]] = lambda measured: (),
) -> Threshold:
    """A threshold that learns from each group separately.

    Args:
        first: `first(zeros) -> memory` of one group.
        following: `following(memory, norm, seen, *shared) -> (threshold, allowed, memory)` of one
            group, with the norm in the memory's dtype. `seen` says where the norm is an
            observation; elsewhere the norm is given as 0 and the memory must not change. `allowed`
            is the largest norm that would be left as it is: the threshold of a spike may be less.
        max_growth: the largest factor from one norm allowed to the next; `None` for any.
        shared: more arguments of `following`, the same for all groups.
    """
    check_growth(max_growth)

    def init(norms: list[jax.Array]) -> list[Any]:
        memories = [first(n) for n in norms]
        if max_growth is None:
            return memories
        return [Growth(m, jnp.zeros_like(n)) for m, n in zip(memories, norms, strict=True)]

    def update(memory: list[Any], measured: Measured) -> tuple[list[jax.Array], Any]:
        more = jax.lax.stop_gradient(shared(measured))

        def each(group: Any, norm: jax.Array) -> tuple[jax.Array, Any]:
            n = jax.lax.stop_gradient(norm).astype(jax.tree.leaves(group)[0].dtype)
            seen = jnp.isfinite(n) & (n > 0)
            x = jnp.where(seen, n, jnp.zeros_like(n))
            if max_growth is None:
                c, _, after = following(group, x, seen, *more)
            else:
                most = _grown(group.allowed_norm, x, max_growth)
                c, allowed, after = following(group.memory, x, seen, *more)
                c, allowed = jnp.minimum(c, most), jnp.minimum(allowed, most)
                after = Growth(after, jnp.where(seen, allowed, group.allowed_norm))
            limit = jnp.maximum(c, jnp.zeros_like(c)).astype(norm.dtype)  # of traced arguments
            if norm.dtype != n.dtype:  # a norm within its threshold in the memory's dtype is kept
                limit = jnp.where(n <= c, jnp.maximum(limit, norm), limit)
            return limit, after

        alike = all(map(_is_like, memory, measured.norms))
        found = (measured.map if alike else map)(each, memory, measured.norms)
        thresholds, memories = zip(*found, strict=True)
        return list(thresholds), list(memories)

    return Threshold(init, update)


def _is_like(memory: Any, norm: jax.Array) -> bool:
    """Whether a memory has numbers of the dtype of its norm, one for each."""
    return all(
        x.shape == norm.shape
        and (x.dtype == norm.dtype or not jnp.issubdtype(x.dtype, jnp.floating))
        for x in jax.tree.leaves(memory)
    )


def check_growth(max_growth: ArrayLike | None) -> None:
    """Checks the largest factor between two thresholds."""
    if max_growth is not None:
        _validate.between(max_growth, 1, _MOST_GROWTH, "max_growth")


def growth_factor(max_growth: ArrayLike, dtype: Any) -> jax.Array:
    """The factor in a dtype; a traced one is moved into its interval."""
    return jnp.clip(narrowed(_validate.number(max_growth), dtype), 1, _MOST_GROWTH)


def _grown(last: jax.Array, n: jax.Array, max_growth: ArrayLike) -> jax.Array:
    """The largest norm that may be allowed after `last`, or after the first norm; finite."""
    info = jnp.finfo(last.dtype)
    factor = growth_factor(max_growth, last.dtype)
    start = jnp.where(last > 0, last, n)
    least_that_overflows = float(info.max) * (1 - 2 * float(info.eps)) / factor
    most = jnp.maximum(start, jnp.minimum(start, least_that_overflows) * factor)
    return jnp.where(start > 0, most, unlimited(last.dtype))


def over_norm_plus(threshold: Threshold, eps: float) -> Threshold:
    """The threshold that makes g c/n, where n > c, the paper's g e/(n + eps).

    The engine's `eps` would also scale norms at their threshold, as PyTorch does.
    """

    def update(memory: Any, measured: Measured) -> tuple[list[jax.Array], Any]:
        limits, memory = threshold.update(memory, measured)
        pairs = zip(limits, map(jax.lax.stop_gradient, measured.norms), strict=True)
        return [
            jnp.where(n > e, e / (1 + eps / jnp.where(n > e, n, 1)), e) for e, n in pairs
        ], memory

    return Threshold(threshold.init, update)
