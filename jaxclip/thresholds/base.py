"""The interface of a threshold, and a threshold that learns from a rule for a single norm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip._types import PyTree


class Measured(NamedTuple):
    """The input of a threshold.

    Attributes:
        norms: the norms of this update, one array per group: a single scalar at the scope
            `global`, a scalar per leaf at `leaf`, an array per leaf at `unit` and `element`, and
            for a leaf that stacks layers.
        count: the number of updates before this one, an int32 scalar.
        of_params: `of_params(factors)` returns the same norms of the parameters, each times its
            factor; inf for an infinite factor and 0 for 0, whatever the norm.
        of_tree: returns the norm of everything together without non-finite norms; a scalar.
        spread: `spread(tree, name)` returns the value of a prefix tree for each group.
        path: `path(i)` returns the key path of the i-th group, for errors.
    """

    norms: list[jax.Array]
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    of_params: Callable[[list[jax.Array]], list[jax.Array]]
    of_tree: Callable[[], jax.Array]
    spread: Callable[[PyTree, str], list[PyTree]]
    path: Callable[[int], str]


class Threshold(NamedTuple):
    """The largest norm allowed, from the norms measured now and before.

    A pair of functions, like an Optax transformation. A threshold does not know the scope: it gets
    one norm for the whole tree, one per leaf, or an array of norms per leaf, and returns as many.

    Learned thresholds observe norms that are finite and above 0. Other norms change nothing, nor do
    they count for a warm-up: a bad gradient cannot spoil the statistics, and a leaf without a
    gradient for a while is not held at zero afterwards. The memory has the dtype of the norms given
    to `init` and does not grow. Derivatives treat it as a constant.

    Attributes:
        init: `init(norms) -> memory`, given zeros of the shapes and dtypes of the norms.
            The memory is a pytree of arrays whose structure, shapes and dtypes stay fixed.
        update: `update(memory, measured) -> (thresholds, memory)`, one threshold per norm,
            broadcastable to it.
    """

    init: Callable[[list[jax.Array]], PyTree]
    update: Callable[[PyTree, Measured], tuple[list[jax.Array], PyTree]]


def learned(
    first: Callable[[jax.Array], Any],
    following: Callable[..., tuple[jax.Array, Any]],
    shared: Callable[[Measured], tuple[Any, ...]] = lambda measured: (),
) -> Threshold:
    """A threshold that learns from each group separately.

    Args:
        first: `first(zeros) -> memory` of one group.
        following: `following(memory, norm, seen, *shared) -> (threshold, memory)` of one group,
            with the norm in the memory's dtype. `seen` says where the norm is an observation;
            elsewhere the norm is given as 0 and the memory must not change.
        shared: more arguments of `following`, the same for all groups.
    """

    def init(norms: list[jax.Array]) -> list[Any]:
        return [first(n) for n in norms]

    def update(memory: list[Any], measured: Measured) -> tuple[list[jax.Array], Any]:
        more = jax.lax.stop_gradient(shared(measured))
        thresholds, memories = [], []
        for group, norm in zip(memory, measured.norms, strict=True):
            n = jax.lax.stop_gradient(norm).astype(jax.tree.leaves(group)[0].dtype)
            seen = jnp.isfinite(n) & (n > 0)
            c, after = following(group, jnp.where(seen, n, jnp.zeros_like(n)), seen, *more)
            limit = jnp.maximum(c, jnp.zeros_like(c)).astype(norm.dtype)  # of traced arguments
            if norm.dtype != n.dtype:  # a norm within its threshold in the memory's dtype is kept
                limit = jnp.where(n <= c, jnp.maximum(limit, norm), limit)
            thresholds.append(limit)
            memories.append(after)
        return thresholds, memories

    return Threshold(init, update)


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
