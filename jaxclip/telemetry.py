"""Telemetry: the scalars that transformations recorded, for any logger.

Reading a state costs nothing: the scalars are there. This is not `optax.monitor`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from jaxclip._core.state import ClipState
from jaxclip._types import PyTree
from jaxclip.transforms.guard import GuardState
from jaxclip.transforms.monitor import MonitorState as MonitorState
from jaxclip.transforms.monitor import monitor as monitor

__all__ = ["MonitorState", "metrics", "monitor"]


def metrics(opt_state: PyTree) -> dict[str, jax.Array]:
    """The scalars that rules, guards and monitors recorded, as one flat dict.

    Args:
        opt_state: the state of any transformation: of a rule, or of `optax.chain`, `named_chain`,
            `masked`, `partition`, `inject_hyperparams`, `MultiSteps` or a guard; an
            `nnx.Optimizer` or a `TrainState` that holds one.

    Returns:
        Scalars by `rule/field`, in the order of the chain: `clip_by_global_norm/norm`,
        `/threshold`, `/scale`, `/fraction`, `/count`, `/clipped_count`, `/nonfinite_count`. The
        fraction of updates clipped so far is `clipped_count / count`. The second occurrence of a
        rule is called `clip_by_global_norm_2`, and so on. Empty without a rule.

    Example:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.adam(1e-3))
        >>> params = jnp.zeros(2)
        >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
        >>> for key, value in jaxclip.metrics(state).items():
        ...     print(key, value)
        clip_by_global_norm/norm 5.0
        clip_by_global_norm/threshold 1.0
        clip_by_global_norm/scale 0.2
        clip_by_global_norm/fraction 1.0
        clip_by_global_norm/count 1
        clip_by_global_norm/clipped_count 1
        clip_by_global_norm/nonfinite_count 0
    """
    result: dict[str, jax.Array] = {}
    seen: set[str] = set()
    if not isinstance(opt_state, tuple):  # a state of Optax is a tuple
        opt_state = getattr(opt_state, "opt_state", opt_state)
    for state in _recorded(opt_state):
        prefix, number = state.rule, 1
        while prefix in seen:
            number += 1
            prefix = f"{state.rule}_{number}"
        seen.add(prefix)
        for key, value in state.scalars().items():
            result.update({f"{prefix}/{key}": leaf for leaf in jax.tree.leaves(value)})
    return result


def _recorded(tree: PyTree) -> Iterator[Any]:
    """The states that record something, a guard's before those inside it."""
    for state in jax.tree.leaves(tree, is_leaf=_records):
        if _records(state):
            yield state
            if isinstance(state, GuardState):
                yield from _recorded(state.guarded_state)


def _records(x: Any) -> bool:
    return isinstance(x, (ClipState, GuardState, MonitorState))
