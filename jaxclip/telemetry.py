"""Telemetry: the scalars that transformations recorded, for any logger.

Reading a state costs nothing: the scalars are there. This is not `optax.monitor`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.state import ClipState
from jaxclip._core.types import PyTree
from jaxclip.transforms.guard import GuardState
from jaxclip.transforms.hyperball import HyperballState
from jaxclip.transforms.monitor import MonitorState as MonitorState
from jaxclip.transforms.monitor import monitor as monitor
from jaxclip.transforms.noise import NoiseScaleState
from jaxclip.transforms.per_example import PerExampleState
from jaxclip.transforms.state_parts import INSIDE

__all__ = ["MonitorState", "metrics", "monitor", "to_floats"]


def metrics(opt_state: PyTree) -> dict[str, jax.Array]:
    """The scalars that rules, guards and monitors recorded, as one flat dict.

    Args:
        opt_state: the state of any transformation: of a rule, or of `optax.chain`, `named_chain`,
            `masked`, `partition`, `inject_hyperparams`, `MultiSteps` or a guard; an
            `nnx.Optimizer` or a `TrainState` that holds one.

    Returns:
        Scalars by `rule/field`, in the order of the chain: `clip_by_global_norm/norm`,
        `/threshold`, `/scale`, `/fraction`, `/count`, `/clipped_count`, `/nonfinite_count`, with
        groups also `/norm/<label>` and `/scale/<label>`. The fraction of updates clipped so far is
        `clipped_count / count`. Labels of `optax.partition`
        come first, those of an outer one before those of an inner one:
        `encoder/clip_by_global_norm/norm`. The second occurrence of a rule under the same labels
        is called `clip_by_global_norm_2`, and so on. Empty if the optimizer has no rule, guard or
        monitor of this library.

    Raises:
        TypeError: if `opt_state` cannot be the state of an optimizer: a transformation, parameters,
            or a state that was restored as dicts.

    Examples:
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
    if not isinstance(opt_state, tuple):  # a state of Optax is a tuple
        opt_state = getattr(opt_state, "opt_state", opt_state)
    for name, state in _recorded(opt_state):
        values = state.scalars().items()
        scalars = {key: leaf for key, value in values for leaf in jax.tree.leaves(value)}
        prefix, number = name, 1
        while any(f"{prefix}/{key}" in result for key in scalars):
            number += 1
            prefix = f"{name}_{number}"
        result |= {f"{prefix}/{key}": value for key, value in scalars.items()}
    if not result:
        _check_is_state(opt_state)
    return result


def _check_is_state(tree: PyTree) -> None:
    """Raises if a tree without a rule is not the state of an optimizer: tuples, some with names."""
    how = "pass what tx.init or tx.update returned, or an nnx.Optimizer or a TrainState"
    named = [x for x in jax.tree.leaves(tree, is_leaf=_is_named_tuple) if _is_named_tuple(x)]
    if any(isinstance(x, optax.GradientTransformation) for x in named):
        raise TypeError(f"opt_state is a transformation, not its state: {how}")
    if not named and not isinstance(tree, tuple):
        name = type(tree).__name__
        raise TypeError(f"opt_state of type {name} is not the state of an optimizer: {how}")


def _is_named_tuple(x: object) -> bool:
    return isinstance(x, tuple) and hasattr(x, "_fields")


def to_floats(
    metrics: Mapping[str, ArrayLike], *, nonfinite: Literal["keep", "none", "drop"] = "keep"
) -> dict[str, float | None]:
    """The metrics of one step as Python floats, for JSON and loggers; waits for the device once.

    Args:
        metrics: scalars by name, as `jaxclip.metrics` returns them; others may be among them.
        nonfinite: NaN and inf are kept by `"keep"`, are `None` by `"none"` (`null` in JSON, which
            has no NaN), and are left out by `"drop"`. A threshold of inf means no limit, as in the
            warm-up of a learned rule.

    Returns:
        A dict of the same keys in the same order, without those left out.

    Raises:
        TypeError: if a value is traced or not a real number.
        ValueError: if a value is no scalar, or `nonfinite` is not known. Of metrics that `lax.scan`
            stacked, pass one step after the other, as in the example.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxclip
        >>> stacked = {"norm": jnp.array([3.0, 2.0]), "threshold": jnp.array([jnp.inf, 2.5])}
        >>> stacked = jax.device_get(stacked)
        >>> for i in range(2):
        ...     step = {key: values[i] for key, values in stacked.items()}
        ...     print(jaxclip.to_floats(step, nonfinite="drop"))
        {'norm': 3.0}
        {'norm': 2.0, 'threshold': 2.5}
    """
    _validate.choice(nonfinite, Literal["keep", "none", "drop"], "nonfinite")
    if traced := [key for key, value in metrics.items() if _validate.is_traced(value)]:
        raise TypeError(f"metrics[{traced[0]!r}] is traced: call to_floats outside of jit")
    result: dict[str, float | None] = {}
    for key, value in zip(metrics, jax.device_get(list(metrics.values())), strict=True):
        name = f"metrics[{key!r}]"
        if np.ndim(value):
            text = "for each step or seed, pass {key: values[i] for key, values in metrics.items()}"
            raise ValueError(f"{name} of shape {np.shape(value)} is not a scalar; {text}")
        if value is None or isinstance(value, str) or np.iscomplexobj(value):
            raise TypeError(f"{name}={_validate.short(value)} must be a real number")
        number = float(value)
        if math.isfinite(number) or nonfinite == "keep":
            result[key] = number
        elif nonfinite == "none":
            result[key] = None
    return result


def _recorded(tree: PyTree, labels: str = "") -> Iterator[tuple[str, Any]]:
    """The states that record something, with labels and rule; a wrapper comes before those inside.

    The names in `optax.named_chain` are left out: they name places, of which each has its rule.
    """
    for state in jax.tree.leaves(tree, is_leaf=_is_known):
        if isinstance(state, optax.PartitionState):
            for label, inner in state.inner_states.items():
                yield from _recorded(inner, f"{labels}{label!s}/")
        elif _is_known(state):
            yield labels + state.rule, state
            for kind, field in INSIDE.items():
                if isinstance(state, kind):
                    yield from _recorded(getattr(state, field), labels)


def _is_known(x: Any) -> bool:
    ours = (ClipState, GuardState, HyperballState, MonitorState, NoiseScaleState, PerExampleState)
    return isinstance(x, (*ours, optax.PartitionState))
