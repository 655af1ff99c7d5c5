r"""The mechanism of guards: measure, judge, and select between the step and none.

The step is always computed and then selected element by element: XLA fuses a selection with the
computation before it, while a `lax.cond` would keep the optimizer from being fused with anything.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import _validate
from jaxclip._core import measure as measures
from jaxclip._core import record
from jaxclip._core import state as states
from jaxclip._core.flat_tree import difference, flatten
from jaxclip._core.measure import Measure
from jaxclip._core.types import AxisName, PyTree
from jaxclip._numerics import collectives
from jaxclip._numerics.power_sums import table_of
from jaxclip._numerics.scaled_float import Norm, accumulator, narrowed, unlimited
from jaxclip._validate import short
from jaxclip.thresholds.base import Measured
from jaxclip.transforms import selection
from jaxclip.transforms.clip_by import measured

_NO_COUNT: Any = np.int32(0)  # of states pickled by version 0.1.0


class GuardState(NamedTuple):
    """The state of a guard.

    Attributes:
        guarded_state: the state of the guarded transformation.
        norm: the norm of the last update; float32 scalar.
        norm_threshold: the limit of the norm; float32 scalar, `None` without one.
        value_threshold: the limit of the last loss given, inf before the first; float32 scalar,
            `None` without one.
        skipped: whether the last update was skipped; bool scalar.
        update_count: updates so far, skipped ones included; int32 scalar.
        skipped_count: updates that were skipped; int32 scalar.
        consecutive_count: consecutive bad updates, up to the last; int32 scalar.
        nonfinite_count: updates that came in with a non-finite element or loss; int32 scalar.
        memory: the memory of the guard.
        nonfinite_step_count: updates that came in finite and whose step was not; int32 scalar, 0
            without `check_step`.
    """

    guarded_state: PyTree
    norm: jax.Array
    norm_threshold: jax.Array | None
    value_threshold: jax.Array | None
    skipped: jax.Array
    update_count: jax.Array
    skipped_count: jax.Array
    consecutive_count: jax.Array
    nonfinite_count: jax.Array
    memory: PyTree
    nonfinite_step_count: jax.Array = _NO_COUNT

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name, with those of the memory if it records some."""
        own = states.recorded(self, "guarded_state", "memory")
        return own | getattr(self.memory, "scalars", dict)()


class Seen(NamedTuple):
    """The knowledge of a judge about a step.

    Attributes:
        norm: the norm of the update.
        loss: the loss, or `None` if none was given.
        finite: whether the update and the loss are finite.
        measured: the norm as the input of a threshold.
    """

    norm: jax.Array
    loss: jax.Array | None
    finite: jax.Array
    measured: Measured


class Verdict(NamedTuple):
    """The decision of a judge.

    Attributes:
        bad: whether the step counts as a bad one, though it may be finite.
        skip: whether the step is skipped for it.
        limits: the limits of the norm and of the loss; `None` each without one.
        memory: the next memory.
        guarded_state: the state from which the guarded transformation goes on.
    """

    bad: jax.Array
    skip: jax.Array
    limits: tuple[jax.Array | None, jax.Array | None]
    memory: Any
    guarded_state: PyTree


def only_finite(state: GuardState, seen: Seen, params: PyTree) -> Verdict:
    """Every step that is finite is good."""
    no = jnp.zeros((), bool)
    return Verdict(no, no, (None, None), state.memory, state.guarded_state)


class Judge(NamedTuple):
    """The reasons of a guard to skip a step, besides numbers that are not finite.

    Attributes:
        judged: `judged(state, seen, params) -> Verdict`.
        first: `first(params, zero) -> memory`, given a zero of the norm's dtype.
        limited: whether there is a limit of the norm, and of the loss.
        known: `known(memory)` is the part of it whose shapes do not depend on the guarded state.
        prepared: `prepared(measure, memory, updates) -> (updates, norm)`: the updates that the
            guarded transformation receives, and their norm, or `None` to measure it.
    """

    judged: Callable[[GuardState, Seen, PyTree], Verdict] = only_finite
    first: Callable[[PyTree, jax.Array], Any] = lambda params, zero: ()
    limited: tuple[bool, bool] = (False, False)
    known: Callable[[Any], Any] = lambda memory: memory
    prepared: Callable[[Measure, Any, PyTree], tuple[PyTree, Norm | None]] = (
        lambda measure, memory, updates: (updates, None)
    )


def guard(
    name: str,
    guarded: optax.GradientTransformationExtraArgs,
    judge: Judge,
    axis_name: AxisName,
    *,
    max_consecutive: int | None = None,
    check_step: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The transformation that skips the steps of another that its judge rejects."""
    rule = measures.measure("global", axis_name=axis_name)
    _validate.flag(check_step, "check_step")
    patience = max_consecutive
    if patience is not None:
        patience = _validate.whole_number(patience, "max_consecutive")
    kind = states.named(GuardState, name)

    def memory(params: PyTree) -> Any:
        return judge.first(params, jnp.zeros((), accumulator(*flatten(params).arrays)))

    def first(params: PyTree) -> GuardState:
        known = judge.known(memory(params))
        limits = [_number(unlimited(jnp.float32)) if c else None for c in judge.limited]
        *counts, steps = [jnp.zeros((), jnp.int32) for _ in range(5)]
        return kind((), _number(0.0), *limits, jnp.zeros((), bool), *counts, known, steps)

    own_init, check = states.checked(first, kind)

    def init(params: PyTree) -> Any:
        state: Any = own_init(params)
        return state._replace(guarded_state=guarded.init(params), memory=memory(params))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        if not isinstance(state, kind):
            raise states.other_type(state, kind)
        own = state._replace(guarded_state=())
        check(own._replace(memory=judge.known(state.memory)), updates)
        loss = _loss(value, rule.axis_name)
        if value is not None:
            extra_args["value"] = value
        updates, norm = judge.prepared(rule, own.memory, updates)
        flat = flatten(updates)

        with measures.shared(flat, rule, norm) as norm:
            finite = jnp.isfinite(norm.value)
            finite = finite if loss is None else finite & jnp.isfinite(loss)
            number = norm.number
            seen = measured(rule, flat, [number], table_of([number]), own.update_count, params)
            verdict = judge.judged(state, Seen(number, loss, finite, seen), params)
            inner_state = verdict.guarded_state

            def inner_update() -> tuple[PyTree, PyTree]:
                step, after = guarded.update(updates, inner_state, params, **extra_args)
                if jax.tree.structure(after) != jax.tree.structure(inner_state):
                    raise _other_structure(inner_state, after)
                return step, after

            inputs = (updates, inner_state, params, extra_args)
            program = selection.program(inner_update, inner_state, inputs)
        written: list[Any] = []
        if check_step:
            program = program.computed()
            written = flatten(program.unselected()[0]).arrays
        good_step = record.all_elements_finite(written, rule.axis_name)
        skip, own = _recorded(own, verdict, number, finite, good_step, patience)
        step, after = program.selected(skip)
        step = jax.tree.map(lambda u: selection.pick(skip, _zeros(u), u), step)
        return step, own._replace(guarded_state=after)

    return optax.GradientTransformationExtraArgs(init, update)


def _other_structure(state: PyTree, after: PyTree) -> ValueError:
    found = difference(state, after, ("the state", "the next state"))
    return ValueError(
        f"the guarded state is not that of the guarded transformation: {found}. Make one with "
        "init(params), or move the old one with jaxclip.adopt(tx, params, old_state)"
    )


def _recorded(
    state: GuardState,
    verdict: Verdict,
    norm: jax.Array,
    finite: jax.Array,
    good_step: jax.Array,
    patience: int | None,
) -> tuple[jax.Array, GuardState]:
    """Whether the step is skipped, and the next state but for the inner one."""
    broken = ~finite | ~good_step
    bad, skip = verdict.bad | broken, verdict.skip | broken
    run = jnp.where(bad, states.increased(state.consecutive_count), 0)
    skip = skip if patience is None else skip & (run <= patience)
    before = state.norm_threshold, state.value_threshold
    limits = [
        old if new is None else narrowed(new, jnp.float32)
        for old, new in zip(before, verdict.limits, strict=True)
    ]
    return skip, state._replace(
        norm=narrowed(norm, jnp.float32),
        norm_threshold=limits[0],
        value_threshold=limits[1],
        skipped=skip,
        update_count=states.increased(state.update_count),
        skipped_count=states.increased(state.skipped_count, skip),
        consecutive_count=run,
        nonfinite_count=states.increased(state.nonfinite_count, ~finite),
        memory=verdict.memory,
        nonfinite_step_count=states.increased(state.nonfinite_step_count, finite & ~good_step),
    )


def transformation(inner: Any) -> optax.GradientTransformationExtraArgs:
    """The transformation to guard, which takes extra arguments."""
    if isinstance(inner, optax.MultiSteps):
        inner = inner.gradient_transformation()
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"inner={short(inner)} must be an optax transformation or an optax.MultiSteps"
        )
    return optax.with_extra_args_support(inner)


def _loss(value: Any, axis_name: Any) -> jax.Array | None:
    """The loss as a float32 (float64) scalar, the same on all devices."""
    if value is None:
        return None
    if isinstance(value, (bool, str)) or _validate.is_tree(value):
        raise TypeError(f"value={short(value)} must be a number or an array")
    if jnp.shape(value) != ():
        raise ValueError(f"value={short(value)} must be a scalar, the loss")
    loss = jnp.asarray(value)
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        loss = loss.astype(jnp.float32)
    return collectives.averaged(loss.astype(accumulator(loss)), axis_name)


def _number(x: float) -> jax.Array:
    return jnp.full((), x, jnp.float32)


def _zeros(u: Any) -> Any:
    return u if jnp.result_type(u) == jax.dtypes.float0 else jnp.zeros_like(u)
