"""The scale of a loss in float16, as a guard: overflows are skipped, and the scale follows them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core.flat_tree import flatten
from jaxclip._core.measure import Measure
from jaxclip._core.state import increased
from jaxclip._core.types import AxisName, PyTree
from jaxclip._numerics.scaled_float import (
    Norm,
    accumulator,
    power_of_two_near,
    times,
    unlimited,
    widened,
)
from jaxclip._validate import short
from jaxclip.transforms.guard import GuardState, Judge, Seen, Verdict, guard, transformation

_LEAST, _MOST = 2.0**-60, 2.0**60  # the product of two is a normal float32


class LossScale(NamedTuple):
    """The memory of `scale_loss`.

    Attributes:
        loss_scale: the scale for the next loss, a power of two; float32 scalar.
        finite_run: finite steps in a row since the scale last grew; int32 scalar.
        overflow_count: overflows since the scale last grew; int32 scalar.
    """

    loss_scale: jax.Array
    finite_run: jax.Array
    overflow_count: jax.Array

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name."""
        return {"loss_scale": self.loss_scale}


def scale_loss(
    inner: optax.GradientTransformation | optax.MultiSteps,
    init: float = 2**15,
    *,
    period: int = 2000,
    factor: float = 2.0,
    min_scale: float = 2**-14,
    max_scale: float = 2**24,
    hysteresis: int = 1,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides gradients by the scale of the loss, and adapts the scale: for float16.

    $$g \leftarrow g / s, \quad s \leftarrow \begin{cases}
    \min(f s, s_{max}) & \text{after } \textit{period} \text{ finite steps in a row} \\
    \max(s / f, s_{min}) & \text{after a step that is not finite}
    \end{cases}$$

    The loss is multiplied by `loss_scale(opt_state)` before `grad`, so that small gradients do not
    become 0 in float16. The gradients are divided in at least float32 before anything inside sees
    them. Guarantees:

    | gradient g / s, and loss if given | result |
    |---|---|
    | finite | the step of `inner` on g / s; without an overflow, that of a run without a scale |
    | a NaN or inf anywhere, on any device | a zero update, the state of `inner` unchanged |
    | a leaf of 16 bits | float32 inside, and so is its step; its moments are kept in float32 |
    | a leaf of float32, float64 or complex | keeps its dtype |
    | integer, boolean or `float0` leaves | passed through |

    Every scale is a power of two, so multiplying and dividing by it is exact.

    The step of `inner` is not looked at: put `skip_nonfinite` inside for that. It goes around
    `optax.MultiSteps`, where one bad micro-step is left out.

    Args:
        inner: any Optax transformation, such as a whole chain with its optimizer, or an
            `optax.MultiSteps`. It is given parameters of 16 bits as float32.
        init: the first scale, a power of two between 2^-60 and 2^60, as are all scales.
        period: the number of finite steps in a row after which the scale grows.
        factor: f, a power of two, at least 2.
        min_scale: the least scale.
        max_scale: the largest scale.
        hysteresis: the scale falls from this many overflows on since it last grew; 1 for each.
        axis_name: mesh axes that shard the leaves, where they cannot be found. The loss is averaged
            over them.

    Returns:
        A transformation whose state is a `GuardState`; `jaxclip.metrics` has the scale as
        `scale_loss/loss_scale`, and the norm of g / s. If `update` is given a loss as `value=`, it
        should be the one without the scale, as `value` and all other extra arguments reach `inner`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if a scale or `factor` is no power of two in its range, or `period` or
            `hysteresis` is below 1.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxclip, optax
        >>> chain = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(1.0))
        >>> tx = jaxclip.scale_loss(chain, 2.0**15)
        >>> params = {"w": jnp.ones(2)}
        >>> state = tx.init(params)
        >>> def scaled_loss(params, x, scale):
        ...     y = params["w"].astype(jnp.float16) @ x
        ...     return y.astype(jnp.float32) * scale
        >>> for size in (0.6, 4.0, 0.6):
        ...     x = jnp.full(2, size, jnp.float16)
        ...     grads = jax.grad(scaled_loss)(params, x, jaxclip.loss_scale(state))
        ...     updates, state = tx.update(grads, state, params)
        ...     print(updates["w"], jaxclip.loss_scale(state))
        [-0.60009766 -0.60009766] 32768.0
        [0. 0.] 16384.0
        [-0.60009766 -0.60009766] 16384.0

    References:
        Micikevicius et al., Mixed precision training, 2018, arXiv:1710.03740; the
        `DynamicGradScaler` of Megatron-LM, whose `hysteresis` this is.
    """
    _power_of_two(min_scale, "min_scale")
    _power_of_two(max_scale, "max_scale", min_scale)
    _power_of_two(init, "init", min_scale, max_scale)
    _power_of_two(factor, "factor", 2.0)
    patience = _validate.whole_number(hysteresis, "hysteresis")
    long = _validate.whole_number(period, "period")

    def first(params: PyTree, zero: jax.Array) -> LossScale:
        return LossScale(_scale(init), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def judged(state: GuardState, seen: Seen, params: PyTree) -> Verdict:
        scale, run, overflows = state.memory
        run = jnp.where(seen.finite, increased(run), 0)
        overflows = increased(overflows, ~seen.finite)
        grows = run >= long
        falls = ~seen.finite & (overflows >= patience)
        least, most, f = _scale(min_scale), _scale(max_scale), _scale(factor)
        larger, smaller = jnp.minimum(scale * f, most), jnp.maximum(scale / f, least)
        scale = jnp.where(grows, larger, jnp.where(falls, smaller, scale))
        run, overflows = (jnp.where(grows, 0, count) for count in (run, overflows))
        no = jnp.zeros((), bool)
        memory = LossScale(scale, run, overflows)
        return Verdict(no, no, (None, None), memory, state.guarded_state)

    judge = Judge(judged, first, prepared=_divided)
    return guard("scale_loss", _in_float32(transformation(inner)), judge, axis_name)


def loss_scale(opt_state: PyTree) -> jax.Array:
    """The factor for the next loss, of an optimizer with `scale_loss`.

    Args:
        opt_state: the state of a transformation that has one `scale_loss` anywhere in it; an
            `nnx.Optimizer` or a `TrainState` that holds one.

    Returns:
        A float32 scalar, a power of two. Multiply a loss in float32 by it: in float16 the product
        overflows.

    Raises:
        ValueError: if there is no `scale_loss`, or more than one.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> state = jaxclip.scale_loss(optax.sgd(0.1), 2**10).init(jnp.zeros(2))
        >>> print(jaxclip.loss_scale(state))
        1024.0
    """
    if not isinstance(opt_state, tuple):  # a state of Optax is a tuple
        opt_state = getattr(opt_state, "opt_state", opt_state)
    found = list(_memories(opt_state))
    if len(found) != 1:
        raise ValueError(
            f"opt_state of type {type(opt_state).__name__} has {len(found)} states of scale_loss, "
            "not one: pass the state of tx.init or tx.update. metrics(opt_state) has all scales"
        )
    (scale,) = jax.tree.leaves(found[0].loss_scale)
    return scale


def _memories(tree: PyTree) -> Iterator[LossScale]:
    """The memories of `scale_loss` in a state; not those in the snapshots of `rollback`."""
    for state in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, GuardState)):
        if isinstance(state, GuardState):
            if isinstance(state.memory, LossScale):
                yield state.memory
            yield from _memories(state.guarded_state)


def _divided(rule: Measure, memory: LossScale, updates: PyTree) -> tuple[PyTree, Norm]:
    """The updates divided by the scale, and their norm.

    It is that of the scaled updates, divided: XLA would write divided ones to memory to measure
    them.
    """
    flat = flatten(updates)
    (norm,) = rule.norms(flat)
    inverse = 1 / memory.loss_scale
    arrays = []
    for x in flat.arrays:
        wide = accumulator(x)
        arrays.append(times(widened(x, wide), inverse.astype(wide)))
    norm = Norm(norm.value, norm.unit * inverse.astype(norm.unit.dtype))
    # By a scale below 1 a finite gradient may overflow.
    dtype = norm.value.dtype
    overflows = (inverse > 1) & (norm.number >= unlimited(dtype))
    value = jnp.where(overflows, jnp.finfo(dtype).max, norm.value)
    return flat.rebuild(arrays), norm._replace(value=value * jnp.where(overflows, 2, 1))


def _in_float32(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of parameters that are float32 where they have 16 bits."""

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        return inner.update(updates, state, _wide(params), **extra_args)

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(_wide(params)), update)


def _wide(tree: PyTree) -> PyTree:
    """A tree with the floating leaves of 16 bits in float32."""
    flat = flatten(tree)
    arrays: list[Any] = []
    for x in flat.arrays:
        is_shape: Any = isinstance(x, jax.ShapeDtypeStruct)
        if jnp.finfo(x.dtype).bits > 16:
            arrays.append(x)
        else:
            arrays.append(x.update(dtype=jnp.float32) if is_shape else x.astype(jnp.float32))
    return flat.rebuild(arrays)


def _scale(value: Any) -> jax.Array:
    """A scale as a float32 scalar; a traced one is rounded to a power of two."""
    if _validate.is_traced(value):
        return power_of_two_near(jnp.clip(jnp.asarray(value, jnp.float32), _LEAST, _MOST))
    return jnp.full((), float(value), jnp.float32)


def _power_of_two(value: Any, name: str, least: Any = _LEAST, most: Any = _MOST) -> None:
    """Checks a power of two between two others, of which traced ones are not known."""
    low, high = (
        x if not _validate.is_traced(x) else default
        for x, default in ((least, _LEAST), (most, _MOST))
    )
    _validate.between(value, low, high, name)
    if not _validate.is_traced(value) and math.frexp(float(value))[0] != 0.5:
        raise ValueError(f"{name}={short(value)} must be a power of two, so that scaling is exact")
