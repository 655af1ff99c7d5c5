"""What a threshold is, and how one that learns is made of a rule for a single norm.

No rule is in this file.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Measured(NamedTuple):
    """What a threshold may look at.

    Attributes:
        norms: the norms of this update, one array per group: a single scalar at the scope
            `global`, a scalar per leaf at `leaf`, an array per leaf at `unit` and `element`.
        count: how many updates there were before this one, an int32 scalar.
        of_params: `of_params(factors)` returns the same norms of the parameters, each times its
            factor; inf for an infinite factor and 0 for 0, whatever the norm.
        of_tree: returns the norm of everything together, non-finite norms left out; a scalar.
        spread: `spread(tree, name)` returns the value of a prefix tree for each group.
        where: the key path of each group, for messages.
    """

    norms: list[jax.Array]
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    of_params: Callable[[list[jax.Array]], list[jax.Array]]
    of_tree: Callable[[], jax.Array]
    spread: Callable[[Any, str], list[Any]]
    where: list[str]


class Threshold(NamedTuple):
    """How large each norm may be, given what was measured now and before.

    A pair of functions, like an optax transformation. It knows nothing of scopes: it is given one
    norm for the whole tree, one per leaf, or an array of norms per leaf, and answers in kind.

    The ones that learn observe a norm if it is finite and above 0. A NaN, an infinite or a zero
    norm changes nothing of what was learned, nor does it count for a warm-up: a bad gradient cannot
    spoil the statistics, and a leaf that had no gradient for a while is not held at zero after.
    Their memory has the dtype of the norms given to `init` and does not grow. To derivatives what
    they learned is a constant.

    Attributes:
        init: `init(norms) -> memory`, given zeros of the shapes and dtypes of the norms.
            The memory is a pytree of arrays whose structure, shapes and dtypes stay fixed.
        update: `update(memory, measured) -> (thresholds, memory)`, one threshold per norm,
            broadcastable to it.
    """

    init: Callable[[list[jax.Array]], Any]
    update: Callable[[Any, Measured], tuple[list[jax.Array], Any]]


def learned(
    first: Callable[[jax.Array], Any],
    following: Callable[..., tuple[jax.Array, Any]],
    shared: Callable[[Measured], tuple[Any, ...]] = lambda measured: (),
) -> Threshold:
    """A threshold that learns for each group by itself.

    Args:
        first: `first(zeros) -> memory` of one group.
        following: `following(memory, norm, seen, *shared) -> (threshold, memory)` of one group,
            with the norm in the memory's dtype. `seen` says where the norm is an observation; where
            it is not, the norm given is 0 and the memory must stay as it is.
        shared: what all groups are told besides.
    """

    def init(norms: list[jax.Array]) -> list[Any]:
        return [first(n) for n in norms]

    def update(memory: list[Any], measured: Measured) -> tuple[list[jax.Array], Any]:
        told = jax.lax.stop_gradient(shared(measured))
        thresholds, memories = [], []
        for group, norm in zip(memory, measured.norms, strict=True):
            n = jax.lax.stop_gradient(norm).astype(jax.tree.leaves(group)[0].dtype)
            seen = jnp.isfinite(n) & (n > 0)
            c, after = following(group, jnp.where(seen, n, jnp.zeros_like(n)), seen, *told)
            # What is kept in the memory's dtype is kept in the norm's.
            limit = c.astype(norm.dtype)
            if norm.dtype != n.dtype:
                limit = jnp.where(n <= c, jnp.maximum(limit, norm), limit)
            thresholds.append(limit)
            memories.append(after)
        return thresholds, memories

    return Threshold(init, update)
