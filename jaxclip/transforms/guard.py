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
from jaxclip._core.types import AxisName, PyTree
from jaxclip._numerics import collectives
from jaxclip._numerics.scaled_float import Norm, accumulator, narrowed, unlimited
from jaxclip._validate import short
from jaxclip.transforms import selection

_NO_COUNT: Any = np.int32(0)  # of states pickled by version 0.1.0


class GuardState(NamedTuple):
    """The state of a guard.

    Attributes:
        guarded_state: the state of the guarded transformation.
        norm: the norm of the last update; float32 scalar.
        norm_threshold: the limit of the norm; float32 scalar, `None` for `skip_nonfinite`.
        value_threshold: the limit of the loss; float32 scalar, `None` for `skip_nonfinite`.
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
        """The recorded scalars by name."""
        return states.recorded(self, "guarded_state", "memory")


class Judge(NamedTuple):
    """The reasons of a guard to skip a step, besides numbers that are not finite.

    Attributes:
        first: `first(dtype) -> memory`.
        limits: `limits(memory) -> (largest norm, largest loss)`, or `None` each.
        learned: `learned(memory, norm, loss) -> memory`; the loss is `None` if none was given.
    """

    first: Callable[[Any], Any] = lambda dtype: ()
    limits: Callable[[Any], tuple[Any, Any]] = lambda memory: (None, None)
    learned: Callable[[Any, jax.Array, Any], Any] = lambda memory, norm, loss: memory


def guard(
    name: str,
    inner: optax.GradientTransformation | optax.MultiSteps,
    judge: Judge,
    max_consecutive: int | None,
    axis_name: AxisName,
    check_step: bool,
) -> optax.GradientTransformationExtraArgs:
    """The transformation that skips the steps of another that its judge rejects."""
    guarded = _transformation(inner)
    rule = measures.measure("global", axis_name=axis_name)
    _validate.flag(check_step, "check_step")
    patience = max_consecutive
    if patience is not None:
        patience = _validate.whole_number(patience, "max_consecutive")
    kind = states.named(GuardState, name)

    def first(params: PyTree) -> GuardState:
        memory = judge.first(accumulator(*flatten(params).arrays))
        limits = [
            None if c is None else _number(unlimited(jnp.float32)) for c in judge.limits(memory)
        ]
        *counts, steps = [jnp.zeros((), jnp.int32) for _ in range(5)]
        return kind((), _number(0.0), *limits, jnp.zeros((), bool), *counts, memory, steps)

    own_init, check = states.checked(first, kind)

    def init(params: PyTree) -> Any:
        state: Any = own_init(params)
        return state._replace(guarded_state=guarded.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        if not isinstance(state, kind):
            raise states.other_type(state, kind)
        inner_state, own = state.guarded_state, check(state._replace(guarded_state=()), updates)
        loss = _loss(value, rule.axis_name)
        if value is not None:
            extra_args["value"] = value

        def inner_update() -> tuple[PyTree, PyTree]:
            step, after = guarded.update(updates, inner_state, params, **extra_args)
            if jax.tree.structure(after) != jax.tree.structure(inner_state):
                raise _other_structure(inner_state, after)
            return step, after

        with measures.shared(flatten(updates), rule) as norm:
            inputs = (updates, inner_state, params, extra_args)
            program = selection.program(inner_update, inner_state, inputs)
        written: list[Any] = []
        if check_step:
            program = program.computed()
            written = flatten(program.unselected()[0]).arrays
        good_step = record.all_elements_finite(written, rule.axis_name)
        skip, own = _judged(judge, own, norm, loss, good_step, patience)
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


def _judged(
    judge: Judge,
    state: GuardState,
    norm: Norm,
    loss: jax.Array | None,
    good_step: jax.Array,
    patience: int | None,
) -> tuple[jax.Array, GuardState]:
    """Whether the step is skipped, and the next state but for the inner one."""
    finite = jnp.isfinite(norm.value)
    finite = finite if loss is None else finite & jnp.isfinite(loss)
    limits = judge.limits(state.memory)
    exceeds = _exceeds(norm.number, limits[0]) | _exceeds(loss, limits[1])
    bad = exceeds | ~finite | ~good_step
    run = jnp.where(bad, states.increased(state.consecutive_count), 0)
    skip = bad if patience is None else bad & (run <= patience)
    return skip, state._replace(
        norm=narrowed(norm.number, jnp.float32),
        norm_threshold=_recorded(limits[0]),
        value_threshold=_recorded(limits[1]),
        skipped=skip,
        update_count=states.increased(state.update_count),
        skipped_count=states.increased(state.skipped_count, skip),
        consecutive_count=run,
        nonfinite_count=states.increased(state.nonfinite_count, ~finite),
        memory=judge.learned(state.memory, norm.number, loss),
        nonfinite_step_count=states.increased(state.nonfinite_step_count, finite & ~good_step),
    )


def _transformation(inner: Any) -> optax.GradientTransformationExtraArgs:
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


def _exceeds(x: Any, limit: Any) -> jax.Array:
    """Whether `x` and its limit are given, and `x` exceeds it."""
    if x is None or limit is None:
        return jnp.zeros((), bool)
    return x > narrowed(limit, x.dtype)


def _recorded(limit: Any) -> Any:
    return None if limit is None else narrowed(limit, jnp.float32)


def _zeros(u: Any) -> Any:
    return u if jnp.result_type(u) == jax.dtypes.float0 else jnp.zeros_like(u)
