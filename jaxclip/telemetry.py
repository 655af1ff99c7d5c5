"""Telemetry: what the rules recorded, and a transformation that only records.

Reading a state costs nothing: the scalars are there. Writing them to a log is the caller's.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate as _checks
from jaxclip import norms
from jaxclip._core import flat_tree as _trees
from jaxclip._core import state as _state
from jaxclip._core.state import ClipState
from jaxclip.transforms.guard import GuardState

__all__ = ["MonitorState", "metrics", "monitor"]


class MonitorState(NamedTuple):
    """The state of `monitor`.

    Attributes:
        norm: the norm of all leaves together; float32 scalar.
        norms: the norm of each leaf, by name; float32 scalars.
        count: updates so far; int32 scalar.
        nonfinite_count: updates in which a norm was NaN or inf; int32 scalar.
    """

    norm: jax.Array
    norms: dict[str, jax.Array]
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    nonfinite_count: jax.Array

    def scalars(self) -> dict[str, Any]:
        """What is recorded, by name."""
        leaves = {f"norm/{name}": value for name, value in _by_name(self.norms).items()}
        own = {"norm": self.norm, "count": self.count, "nonfinite_count": self.nonfinite_count}
        return own | leaves


def monitor(
    *,
    of: str = "updates",
    ord: Any = _checks.TWO,
    axis_name: Any = None,
    name: str = "monitor",
) -> optax.GradientTransformationExtraArgs:
    """Changes nothing and records the norm of every leaf.

    Put one before a rule and one after it to see what the rule did to each layer, or one alone to
    find the layer in which a gradient first stops being finite. One first in a chain, one last and
    one of the parameters record what `jaxclip.diagnosis.of_metrics` looks at; that of the
    parameters costs least at the end of the chain.

    Args:
        of: what is measured: `"updates"`, as they pass, or `"params"`, the parameters given to
            `update`, which are those before the update.
        ord: which norm: p >= 1 or inf.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found.
        name: what `jaxclip.metrics` calls it. Leaves are named by their keys, joined by `/`.

    Returns:
        A transformation whose state is a `MonitorState`.

    Raises:
        TypeError: if `ord` is not a number.
        ValueError: if `of` is not known, `ord` is below 1, or `name` contains a `/`; in `update`,
            if `params` is missing where it is measured, or what is measured has other leaves than
            `init` saw.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> probe = jaxclip.monitor(name="grads")
        >>> grads = {"dense": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([1.0])}}
        >>> _, state = probe.update(grads, probe.init(grads))
        >>> print(jaxclip.metrics(state)["grads/norm/dense/kernel"])
        5.0
    """
    _checks.choice(("updates", "params"), of=of)
    power = _checks.norm_order(ord)
    if isinstance(power, str):
        raise TypeError(f"ord={ord!r} must be a number: norms of leaves are combined to one")
    mesh = _checks.mesh_axes(axis_name)
    kind = _state.named(MonitorState, name)

    def init(params: Any) -> MonitorState:
        leaves = _trees.flatten(params).names
        return kind(
            norm=jnp.zeros((), jnp.float32),
            norms=_state.of_nothing({leaf: jnp.zeros((), jnp.float32) for leaf in leaves}),
            count=jnp.zeros((), jnp.int32),
            nonfinite_count=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MonitorState]:
        del extra_args
        if of == "params" and params is None:
            raise ValueError(f"params=None: {name} needs update(..., params=params)")
        flat = _trees.flatten(params if of == "params" else updates)
        names = flat.names
        if not isinstance(state, kind):
            raise TypeError(f"state={state!r} is not a state of {name}; make one with init(params)")
        known = list(_by_name(state.norms))
        if set(names) != set(known):
            raise ValueError(f"{of} has the leaves {names}, but init saw {known}")
        found = [n.number for n in norms.measure(flat, "leaf", power, None, mesh)]
        by_name = {k: n.astype(jnp.float32) for k, n in zip(names, found, strict=True)}
        if of == "params":
            updates = _after(found, updates)
        whole = norms.together(found, power)
        broken = ~jnp.isfinite(whole)
        return updates, state._replace(
            norm=whole.astype(jnp.float32),
            norms=_state.of_nothing(by_name),
            count=optax.safe_increment(state.count),
            nonfinite_count=jnp.where(
                broken, optax.safe_increment(state.nonfinite_count), state.nonfinite_count
            ),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _after(found: list[jax.Array], updates: Any) -> Any:
    """The same updates, bit for bit, which XLA computes after these norms of the parameters.

    Parameters that are read at no certain time cannot be overwritten by what they become, and XLA
    would copy them in every step of a loop. No norm is below 0, which XLA does not know.
    """
    flat = _trees.flatten(updates)
    if len(found) != len(flat.where):
        return updates
    pairs = zip(found, flat.arrays, strict=True)
    return flat.rebuild([jnp.where(norm < 0, jnp.zeros_like(x), x) for norm, x in pairs])


def _by_name(norms: Any) -> dict[str, jax.Array]:
    return norms if isinstance(norms, dict) else {}


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """What the rules recorded, as one flat dict for any logger.

    Args:
        opt_state: the state of any transformation: a rule's own, or one of `optax.chain`,
            `named_chain`, `masked`, `partition`, `inject_hyperparams`, `MultiSteps`, a guard; an
            `nnx.Optimizer` or a `TrainState` that holds one.

    Returns:
        Scalars by `rule/field`, in the order of the chain: `clip_by_global_norm/norm`,
        `/threshold`, `/scale`, `/fraction`, `/count`, `/clipped_count`, `/nonfinite_count`. The
        share of updates clipped so far is `clipped_count / count`. The second occurrence of a rule
        is called `clip_by_global_norm_2`, and so on. Empty if there is no rule.

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
    result, seen = {}, set()
    if not isinstance(opt_state, tuple):  # as the states of Optax are
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


def _recorded(tree: Any) -> Iterator[Any]:
    """The states that record something: a guard's before those of what it guards."""
    for state in jax.tree.leaves(tree, is_leaf=_records):
        if _records(state):
            yield state
            if isinstance(state, GuardState):
                yield from _recorded(state.inner_state)


def _records(x: Any) -> bool:
    return isinstance(x, (ClipState, GuardState, MonitorState))
