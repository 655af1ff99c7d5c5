r"""How a guard works: it measures, judges, and chooses between the step and none.

The step is taken in any case and then selected or not, element by element: that is fused with what
made it, where a `lax.cond` would keep the optimizer from being fused with anything. What counts as
bad, besides numbers that are not finite, is up to the guards.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate as _checks
from jaxclip import norms
from jaxclip._core import flat_tree as _trees
from jaxclip._core import measure as _gauge
from jaxclip._core import state as _state
from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import scaled_float as _wide
from jaxclip._numerics.scaled_float import Norm


class GuardState(NamedTuple):
    """The state of a guard.

    Attributes:
        inner_state: the state of what is guarded.
        norm: the norm of the last update; float32 scalar.
        norm_threshold: what it was held against; float32 scalar, `None` for `skip_nonfinite`.
        value_threshold: what the loss was held against, likewise.
        skipped: whether the last update was skipped; bool scalar.
        count: updates so far, skipped ones included; int32 scalar.
        skipped_count: updates that were skipped; int32 scalar.
        consecutive_count: bad updates in a row, up to the last; int32 scalar.
        nonfinite_count: updates with a non-finite element or loss; int32 scalar.
        memory: what the guard has learned.
    """

    inner_state: Any
    norm: Any
    norm_threshold: Any
    value_threshold: Any
    skipped: Any
    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    skipped_count: Any
    consecutive_count: Any
    nonfinite_count: Any
    memory: Any = ()

    def scalars(self) -> dict[str, Any]:
        """What is recorded, by name."""
        own = {k: v for k, v in self._asdict().items() if k not in ("inner_state", "memory")}
        return {key: value for key, value in own.items() if value is not None}


class Judge(NamedTuple):
    """What a guard holds against an update besides non-finite numbers.

    Attributes:
        first: `first(dtype) -> memory`.
        limits: `limits(memory) -> (largest norm, largest value)`, or `None` each.
        learned: `learned(memory, norm, value) -> memory`; `value` is `None` if none was given.
    """

    first: Callable[[Any], Any]
    limits: Callable[[Any], tuple[Any, Any]]
    learned: Callable[[Any, jax.Array, Any], Any]


def guard(
    name: str, inner: Any, judge: Judge, max_consecutive: Any, axis_name: Any
) -> optax.GradientTransformationExtraArgs:
    guarded = _transformation(inner)
    mesh = _checks.mesh_axes(axis_name)
    patience = max_consecutive
    if patience is not None:
        patience = _checks.whole_number(fixed=False, max_consecutive=patience)

    def init(params: Any) -> GuardState:
        return first(params)._replace(inner_state=guarded.init(params))

    def first(params: Any) -> GuardState:
        """The state but for what is inside."""
        memory = judge.first(_wide.accumulator(*_trees.flatten(params).arrays))
        limits = [
            None if c is None else jnp.full((), jnp.inf, jnp.float32) for c in judge.limits(memory)
        ]
        return _state.named(GuardState, name)(
            (),
            jnp.zeros((), jnp.float32),
            *limits,
            jnp.zeros((), bool),
            *(jnp.zeros((), jnp.int32) for _ in range(4)),
            memory,
        )

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value: Any = None,
        norm: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, GuardState]:
        own = state._replace(inner_state=()) if isinstance(state, GuardState) else state
        _state.checked(own, first, updates)
        found, shared = _found(updates, norm, mesh)
        loss = _loss(value, mesh)
        finite = found.is_finite if loss is None else found.is_finite & jnp.isfinite(loss)
        limits = judge.limits(state.memory)
        over = _exceeds(found.number, limits[0]) | _exceeds(loss, limits[1])
        run = jnp.where(over | ~finite, optax.safe_increment(state.consecutive_count), 0)
        skip = run > 0 if patience is None else (run > 0) & (run <= patience)
        given = {"value": value, "norm": norm}
        extra_args |= {key: x for key, x in given.items() if x is not None}
        with shared:
            step, inner_state = guarded.update(updates, state.inner_state, params, **extra_args)
        step = jax.tree.map(lambda u: _chosen(skip, _zeros(u), u), step)
        kept = jax.tree.map(
            lambda old, new: _chosen(skip, old, new), state.inner_state, inner_state
        )
        return step, state._replace(
            inner_state=kept,
            norm=found.number.astype(jnp.float32),
            norm_threshold=_recorded(limits[0]),
            value_threshold=_recorded(limits[1]),
            skipped=skip,
            count=optax.safe_increment(state.count),
            skipped_count=_state.counted(state.skipped_count, skip),
            consecutive_count=run,
            nonfinite_count=_state.counted(state.nonfinite_count, ~finite),
            memory=judge.learned(state.memory, found.number, loss),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _transformation(inner: Any) -> optax.GradientTransformationExtraArgs:
    if isinstance(inner, optax.MultiSteps):
        inner = inner.gradient_transformation()
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner={inner!r} must be an optax transformation or an optax.MultiSteps")
    return optax.with_extra_args_support(inner)


def _found(updates: Any, norm: Any, mesh: Any) -> tuple[Norm, AbstractContextManager[None]]:
    """The norm, and a context in which rules inside know it too."""
    flat = _trees.flatten(updates)
    if norm is None:
        return norms.shared_global_norm(flat, mesh)
    return _gauge.given(norm, _wide.accumulator(*flat.arrays)), nullcontext()


def _loss(value: Any, mesh: Any) -> jax.Array | None:
    """The loss as a float32 (float64) scalar, the same on all devices."""
    if value is None:
        return None
    if _checks.shape(value=value) != ():
        raise ValueError(f"value={value!r} must be a scalar, the loss")
    loss = jnp.asarray(value)
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        loss = loss.astype(jnp.float32)
    return _mesh.averaged(loss.astype(_wide.accumulator(loss)), mesh)


def _exceeds(x: Any, limit: Any) -> Any:
    """Whether there is an `x` and it exceeds its limit, if there is one."""
    if x is None or limit is None:
        return jnp.zeros((), bool)
    return x > limit.astype(x.dtype)


def _recorded(limit: Any) -> Any:
    return None if limit is None else limit.astype(jnp.float32)


def _zeros(u: Any) -> Any:
    return u if jnp.result_type(u) == jax.dtypes.float0 else jnp.zeros_like(u)


def _chosen(first: jax.Array, x: Any, y: Any) -> Any:
    """`x` if `first`, else `y`: a selection, which is fused with what made the two."""
    return x if x is y else jnp.where(first, x, y)
