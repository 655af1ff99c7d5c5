"""A guard that goes back to a snapshot of the parameters when a run goes astray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core.flat_tree import flatten
from jaxclip._core.state import increased
from jaxclip._core.types import AxisName, Limit, PyTree
from jaxclip._numerics.scaled_float import accumulator, widened
from jaxclip.guards.limits import Limits, Observed, limits
from jaxclip.thresholds.base import Threshold
from jaxclip.transforms.guard import GuardState, Judge, Seen, Verdict, guard, transformation


class Snapshots(NamedTuple):
    """The memory of `rollback`.

    Attributes:
        saved: for each place, the parameters and the inner state, whose tuples have no names here.
        newest: the place of the newest snapshot; int32 scalar.
        saved_count: the number of snapshots that may be returned to; int32 scalar.
        age: updates since the newest snapshot, or the last return; int32 scalar.
        rolled_back: whether the last update went back; bool scalar.
        rollback_count: updates that went back; int32 scalar.
        denied_count: updates that would have gone back, but for `max_rollbacks` or for want of a
            snapshot; int32 scalar.
        observed: the memories of the limits.
    """

    saved: tuple[tuple[PyTree, PyTree], ...]
    newest: jax.Array
    saved_count: jax.Array
    age: jax.Array
    rolled_back: jax.Array
    rollback_count: jax.Array
    denied_count: jax.Array
    observed: Observed

    def at(self, place: jax.Array) -> tuple[PyTree, PyTree]:
        """The snapshot at a place."""
        found = self.saved[0]
        for i, other in enumerate(self.saved[1:], 1):
            found = _selected(place == i, other, found)
        return found

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name."""
        names = ("rolled_back", "rollback_count", "denied_count", "saved_count")
        return {name: getattr(self, name) for name in names}


def rollback(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    every: int = 100,
    keep: int = 2,
    threshold: Limit | Threshold,
    loss_threshold: Limit | Threshold = None,
    patience: int = 8,
    max_rollbacks: int | None = 3,
    check_step: bool = True,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns to a snapshot when the norm or the loss stays above a threshold.

    | step | result |
    |---|---|
    | norm and loss within their limits | the step of `inner` |
    | one of them above: a bad step | the step of `inner` |
    | a NaN or inf in the gradient, the loss or the step of `inner`: a bad step | skipped |
    | the last of `patience` bad ones in a row | a return to the newest snapshot |
    | the same, after `max_rollbacks` returns | the step of `inner`; `denied_count` counts it |

    A skipped step has a zero update, and the state of `inner` stays. A return has the update s - w,
    for the parameters s of the snapshot, and the state of `inner` is that of the snapshot.

    The data is not taken back, so the batches that led astray are left out. A snapshot is taken of
    the parameters and the state of `inner` as they are before an update, `every` updates after the
    last one, and only if that update and the one before were good. A second return before the next
    snapshot goes to the one before; the oldest is kept. The parameters return to a rounding,
    w + (s - w).

    A learned threshold does not observe bad steps, so that they do not become normal, until
    `max_rollbacks` is reached; then it does, and a level that has really changed is accepted.

    Memory: `keep` times that of the parameters and the state of `inner`. Time: a snapshot is copied
    when it is taken; other steps copy nothing.

    Args:
        inner: any Optax transformation, such as a whole chain with its optimizer, or an
            `optax.MultiSteps`.
        every: the number of updates from one snapshot to the next.
        keep: the number of snapshots.
        threshold: for the global norm of the gradient: a number >= 0, a schedule `count -> value`
            counted from 0, or an object of `jaxclip.thresholds`; `None` for no limit.
        loss_threshold: for the loss, which `update` then needs as `value=`, in the same form, but a
            number or a schedule may be negative; `None` for no limit.
        patience: the number of bad updates in a row after which to return.
        max_rollbacks: the number of returns in a run; `None` for any.
        check_step: whether to look at the step of `inner` too. Under `jit` it is then computed
            twice, or waited for; on a mesh that shards the parameters, one more all-reduce.
        axis_name: mesh axes that shard the leaves, where they cannot be found. The loss is averaged
            over them.

    Returns:
        A transformation whose state is a `GuardState`. It needs `update(..., params)`.
        `jaxclip.metrics` has `rolled_back`, `rollback_count`, `denied_count` and `saved_count` as
        well; `consecutive_count` counts bad updates in a row, anew after a return that was due.
        `value` and all other extra arguments reach `inner`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value; in `update`, if there are no `params`, or if
            `loss_threshold` is given and no loss.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = jaxclip.rollback(optax.sgd(1.0), threshold=10.0, every=2, patience=2)
        >>> params = jnp.zeros(1)
        >>> state = tx.init(params)
        >>> for grad in (-1.0, -1.0, -1.0, -50.0, -50.0, -1.0):
        ...     updates, state = tx.update(jnp.array([grad]), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(params, state.memory.rolled_back)
        [1.] False
        [2.] False
        [3.] False
        [53.] False
        [2.] True
        [3.] False

    References:
        Chowdhery et al., PaLM, 2022, arXiv:2204.02311, section 5.1: restart from a checkpoint
        before the spike, and leave out the batches around it.
    """
    limit = limits(threshold, loss_threshold)
    rule = _Rollback(
        transformation(inner),
        limit,
        _validate.whole_number(every, "every"),
        _validate.known_size(_validate.whole_number(keep, "keep"), "keep"),
        _validate.whole_number(patience, "patience"),
        None if max_rollbacks is None else _validate.whole_number(max_rollbacks, "max_rollbacks"),
    )
    judge = Judge(rule.judged, rule.first, limit.limited, _without_snapshots)
    guarded = guard("rollback", rule.inner, judge, axis_name, check_step=check_step)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("params=None: rollback needs update(..., params)")
        found: Any = guarded.update(updates, state, params, **extra_args)
        step, after = found
        memory: Snapshots = after.memory

        def back(step: PyTree) -> PyTree:
            return jax.tree.map(_difference, memory.at(state.memory.newest)[0], params, step)

        step = _if(memory.rolled_back, back, step)
        due = memory.rolled_back | (memory.denied_count > state.memory.denied_count)
        run = jnp.where(due, 0, after.consecutive_count)
        return step, after._replace(consecutive_count=run)

    return optax.GradientTransformationExtraArgs(guarded.init, update)


class _Rollback(NamedTuple):
    """The arguments of `rollback`, validated."""

    inner: optax.GradientTransformationExtraArgs
    limit: Limits
    every: Any
    keep: int
    patience: Any
    most: Any

    def first(self, params: PyTree, zero: jax.Array) -> Snapshots:
        """The memory before the first update, without a snapshot."""
        current = params, _unnamed(self.inner.init(params), params)
        saved = tuple(jax.tree.map(jnp.zeros_like, current) for _ in range(self.keep))
        newest, saved_count, age, back, denied = [jnp.zeros((), jnp.int32) for _ in range(5)]
        no, observed = jnp.zeros((), bool), self.limit.first(zero)
        return Snapshots(saved, newest, saved_count, age, no, back, denied, observed)

    def judged(self, state: GuardState, seen: Seen, params: PyTree) -> Verdict:
        """Whether to go back, and the memory after it; the state to go on from."""
        memory: Snapshots = state.memory
        exceeds, found, observed = self.limit.compared(memory.observed, seen)
        bad = exceeds | ~seen.finite
        run = increased(state.consecutive_count, bad)
        due = run >= self.patience
        spent = jnp.asarray(False if self.most is None else memory.rollback_count >= self.most)
        back = due & ~spent & (memory.saved_count > 0)
        age = increased(memory.age)
        take = (run == 0) & ((age >= self.every) | (memory.saved_count == 0))
        place = jnp.where(take, (memory.newest + 1) % self.keep, memory.newest)
        current = params, _unnamed(state.guarded_state, params)
        memory = memory._replace(saved=_if(take, _put(current, place), memory.saved))

        def restored(state: PyTree) -> PyTree:
            leaves = jax.tree.leaves(memory.at(place)[1])
            known, tree = jax.tree.flatten(state)
            return tree.unflatten(map(_like, leaves, known))

        guarded_state = _if(back, restored, state.guarded_state)
        older = back & (memory.saved_count > 1)
        kept = increased(memory.saved_count, take)
        observed = jax.tree.map(
            lambda x, y: jnp.where(bad & ~spent, x, y), memory.observed, observed
        )
        memory = memory._replace(
            newest=jnp.where(older, (place - 1) % self.keep, place),
            saved_count=jnp.minimum(kept, self.keep) - older.astype(kept.dtype),
            age=jnp.where(take | back, 0, age),
            rolled_back=back,
            rollback_count=increased(memory.rollback_count, back),
            denied_count=increased(memory.denied_count, due & ~back),
            observed=observed,
        )
        return Verdict(exceeds, back, found, memory, guarded_state)


def _without_snapshots(memory: Snapshots) -> Snapshots:
    """The memory with a number for each snapshot."""
    return memory._replace(saved=(0,) * len(memory.saved))


def _if(flag: jax.Array, change: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    """A tree, changed if `flag`; otherwise nothing is copied."""
    if _validate.is_traced(flag):
        return jax.lax.cond(flag, change, lambda tree: tree, tree)
    return change(tree) if flag else tree


def _put(current: Any, place: jax.Array) -> Callable[[PyTree], PyTree]:
    """A function that replaces the snapshot at a place."""

    def put(saved: Any) -> Any:
        return tuple(_selected(place == i, current, old) for i, old in enumerate(saved))

    return put


def _selected(flag: jax.Array, first: PyTree, second: PyTree) -> PyTree:
    """The first tree if `flag`, else the second, whose types it gets."""
    return jax.tree.map(lambda x, y: jnp.where(flag, _like(x, y), y), first, second)


def _like(x: Any, y: Any) -> jax.Array:
    """`x` with the dtype of `y`."""
    x, dtype = jnp.asarray(x), jnp.result_type(y)
    return x if x.dtype == dtype else x.astype(dtype)


def _difference(snapshot: jax.Array, w: Any, u: Any) -> Any:
    """The update from the parameter to its snapshot; that of a leaf that is not floating is 0."""
    if not flatten(u).arrays:
        return u
    wide = accumulator(snapshot)
    return (widened(snapshot, wide) - widened(jnp.asarray(w), wide)).astype(u.dtype)


def _unnamed(state: PyTree, params: PyTree) -> PyTree:
    """A state without the names of its fields and hyperparameters.

    So `optax.tree_utils.tree_get` passes it by.

    Trees like the parameters stay as they are, so that `tree_map_params` finds them.
    """

    def without(node: Any, field: str = "") -> Any:
        if jax.tree.structure(node) == kept:
            return node
        if isinstance(node, dict):
            found = {key: without(node[key]) for key in sorted(node)}
            return tuple(found.values()) if field.startswith("hyperparams") else found
        if isinstance(node, list):
            return list(map(without, node))
        if not isinstance(node, tuple):
            return node
        return tuple(map(without, node, getattr(node, "_fields", [""] * len(node))))

    kept = jax.tree.structure(params)
    return without(state)
