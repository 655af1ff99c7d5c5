r"""The engine: a norm at a scope, a threshold, a scaling, and a record of what happened.

Every rule is $g \min(1, c/n)$; they differ in where n is taken and where c comes from. `clip_by`
joins the two, and a named rule is a call of it. Norms, thresholds and the scaling itself live in
their own rooms; this one only puts them together.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxclip import _validate as _checks
from jaxclip import thresholds
from jaxclip._core import flat_tree as _trees
from jaxclip._core import record as _record
from jaxclip._core import state as _state
from jaxclip._core.flat_tree import Flat
from jaxclip._core.measure import SCOPES, Gauge, chosen
from jaxclip._core.state import ClipState
from jaxclip._numerics import rescale as _scaling
from jaxclip._numerics.rescale import Scale
from jaxclip._numerics.scaled_float import Norm
from jaxclip.thresholds import Measured, Threshold


def clip_by(
    threshold: Any,
    *,
    scope: str,
    ord: Any = _checks.TWO,
    axis: Any = None,
    shape: str = "hard",
    eps: Any = 0.0,
    floor: Any = 0.0,
    nonfinite: str = "propagate",
    norm_mask: Any = None,
    scale_mask: Any = None,
    axis_name: Any = None,
    name: str = "clip_by",
) -> optax.GradientTransformationExtraArgs:
    r"""Clips updates whose norm at a scope exceeds a threshold: the engine of every norm rule.

    $$g \leftarrow g \min\Big(1, \frac{c}{n + \epsilon}\Big)$$

    with the norm n of the update and the threshold c at the scope. What it guarantees:

    | input | result |
    |---|---|
    | n <= c | every leaf bit for bit unchanged |
    | n > c | direction kept; the new norm within the leaf dtype's machine epsilon of c |
    | c is `None` or inf | unchanged; the norm is still recorded |
    | c is 0 | zeros, also for a zero update |
    | zero update | unchanged, with a finite derivative |
    | finite, but squares overflow or underflow | as if computed in float64 |
    | subnormal | may count as 0, and become 0 where it is scaled: XLA flushes such numbers |
    | integer, boolean or `float0` leaves | passed through, not measured |
    | any dtype | kept; measured and multiplied in at least float32 |

    Args:
        threshold: how large the norm may be. A number >= 0, a scalar array, a schedule
            `count -> value` counted from 0, `None` for no limit; where there is one norm per leaf
            also a prefix tree of those; or an object of `jaxclip.thresholds`. A negative value that
            is only known when the program runs counts as 0.
        scope: what has one norm: each `"element"`, each `"unit"` of a leaf, each `"leaf"`, or the
            whole tree, `"global"`.
        ord: which norm: p >= 1 or inf, `"rms"` for the root mean square, `"average"` for
            TensorFlow's average norm, the 2-norm divided by the number of elements.
        axis: at scope `"unit"`, the axes that are reduced, per leaf, negative ones counted from the
            end. Axes that a leaf does not have are left out; a leaf that has none of them is one
            unit. `None`: all but the last.
        shape: what a norm n becomes. `"hard"`: min(n, c). `"tanh"`: c tanh(n/c). `"rational"`:
            n c/(n + c). The smooth ones shrink norms below c too, the less the smaller they are;
            `fraction` and `clipped_count` still tell of those above c.
        eps: added to the norm in the quotient. 1e-6 gives PyTorch's numbers.
        floor: the least that the norm counts for in the quotient.
        nonfinite: what a NaN or infinite norm does. `"propagate"`: what it is the norm of leaves as
            it came. `"nan"`: every leaf becomes NaN, as in TensorFlow. `"zero"`: the whole update
            becomes zero. `"drop"`: non-finite elements become zero, and the rest is clipped by the
            norm of what remains. It is counted in every case.
        norm_mask: which leaves are measured: a prefix tree of bools, or a function from the updates
            to one. Scope `"global"` only, as the next.
        scale_mask: which leaves are scaled.
        axis_name: mesh axes over which the leaves are sharded. `None`: found from the leaves' types
            inside `shard_map`. Names: needed under `pmap`, `vmap` and `shard_map(check_vma=False)`.
            `()`: never reduce.
        name: what `jaxclip.metrics` calls the rule.

    Returns:
        A transformation whose `update` also takes `norm=`, a norm computed elsewhere: a scalar, or
        a prefix tree where there is one per leaf. Its state is a `ClipState`.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value; when an update is traced, with the key path,
            if a shape or a tree does not fit.

    Example:
        Each row of a matrix held to a maximum norm of 1:

        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by(1.0, scope="unit", axis=1)
        >>> grads = jnp.array([[3.0, 4.0], [0.3, 0.4]])
        >>> updates, state = rule.update(grads, rule.init(grads))
        >>> print(updates)
        [[0.6 0.8]
         [0.3 0.4]]
        >>> print(state.norm, state.fraction)
        5.0 0.5
    """
    _checks.choice(SCOPES, scope=scope)
    _checks.choice(_scaling.SHAPES, shape=shape)
    _checks.choice(_scaling.POLICIES, nonfinite=nonfinite)
    _checks.real_number(finite=True, eps=eps)
    _checks.real_number(finite=True, floor=floor)
    if axis is not None and scope != "unit":
        raise ValueError(f"axis={axis!r} has a meaning only at scope='unit', not {scope!r}")
    for key, mask in (("norm_mask", norm_mask), ("scale_mask", scale_mask)):
        if mask is not None and scope != "global":
            raise ValueError(f"{key} has a meaning only at scope='global'; use optax.masked")
    if not isinstance(threshold, Threshold):
        threshold = thresholds.constant(threshold, scope=scope)
    _state.named(ClipState, name)
    gauge = Gauge(
        scope, _checks.norm_order(ord), _checks.axes(axis), _checks.mesh_axes(axis_name), norm_mask
    )

    def init(params: Any) -> ClipState:
        memory = threshold.init(gauge.zeros(_trees.flatten(params)))
        return _state.first(name, _state.of_nothing(memory))

    def update(
        updates: Any, state: Any, params: Any = None, *, norm: Any = None, **extra_args: Any
    ) -> tuple[Any, ClipState]:
        del extra_args
        state = _state.checked_or_first(state, init, updates)
        flat = _trees.flatten(updates)
        found, finite = _found(gauge, flat, norm, nonfinite)
        measured = _measured(gauge, flat, found, state.count, params)
        limits, memory = threshold.update(state.memory, measured) if found else ([], state.memory)
        added, least = _checks.number(eps), _checks.number(floor)
        hard = [
            _scaling.hard(n, _scaling.shaped(n, c, shape), added, least)
            for n, c in zip(found, limits, strict=True)
        ]
        scales = [
            _scaling.for_nonfinite(s, n.is_finite, nonfinite, finite)
            for s, n in zip(hard, found, strict=True)
        ]
        arrays = _scaled(flat, gauge.per_leaf(flat, scales), scale_mask, nonfinite, finite)
        over = [~scale.keep for scale in hard]
        if shape != "hard":
            over = [n.number > c for n, c in zip(found, limits, strict=True)]
        seen = _record.record(
            found, limits, scales, _clipped(over, found, nonfinite, finite), finite, gauge.differing
        )
        return flat.rebuild(arrays), _state.following(state, seen, memory)

    return optax.GradientTransformationExtraArgs(init, update)


def _found(gauge: Gauge, flat: Flat, norm: Any, policy: str) -> tuple[list[Norm], Any]:
    """The norms, and whether all of them were finite; `None` where the policy does not ask.

    Under `drop` they are of what remains when non-finite elements are left out, which costs a
    second measurement, and only when there are any; `norm=` cannot know it and is ignored.
    """
    is_given = norm is not None and policy != "drop"
    found = gauge.given(flat, norm) if is_given else gauge(flat)
    if policy == "propagate":
        return found, None
    finite = _record.all_finite(found, gauge.differing)
    if policy != "drop" or not found:
        return found, finite

    def of_the_rest(arrays: list[jax.Array]) -> list[Norm]:
        rest = flat.rebuild([_scaling.without_nonfinite(x) for x in arrays])
        return gauge(_trees.flatten(rest))

    # Arrays as operands: closed over, on an Explicit mesh, they would lose their sharding.
    return jax.lax.cond(finite, lambda arrays: found, of_the_rest, flat.arrays), finite


def _measured(
    gauge: Gauge, flat: Flat, found: list[Norm], count: jax.Array, params: Any
) -> Measured:
    def of_params(factors: list[jax.Array]) -> list[jax.Array]:
        if params is None:
            raise ValueError("params=None: this rule's threshold needs update(..., params=params)")
        own = _trees.params_like(params, flat)._replace(where=flat.where)
        _trees.check_shapes(own, flat)
        return [n.times(f) for n, f in zip(gauge(own), factors, strict=True)]

    numbers = [n.number for n in found]
    return Measured(
        norms=numbers,
        count=count,
        of_params=of_params,
        of_tree=lambda: gauge.of_tree(flat, numbers),
        spread=lambda tree, name: gauge.spread(flat, tree, name),
        where=gauge.where(flat),
    )


def _scaled(
    flat: Flat, scales: list[Scale], scale_mask: Any, policy: str, finite: Any
) -> list[jax.Array]:
    """The floating leaves after scaling and after what the policy does to the whole update."""
    which = [True] * len(scales)
    if scale_mask is not None:
        which = chosen(flat, scale_mask, "scale_mask")
    arrays = []
    for x, scale, scaled in zip(flat.arrays, scales, which, strict=True):
        if policy == "drop":
            x = _scaling.without_nonfinite(x)
        if scaled:
            x = _scaling.apply(x, scale)
        if policy == "zero":
            x = _scaling.zeroed(x, finite)
        if policy == "nan" and not scaled:
            x = _scaling.poisoned(x, finite)
        arrays.append(x)
    return arrays


def _clipped(over: list[jax.Array], found: list[Norm], policy: str, finite: Any) -> list[jax.Array]:
    """Which norms were clipped: none of them if the policy disposed of the whole update."""
    clipped = [o & norm.is_finite for o, norm in zip(over, found, strict=True)]
    return [c & finite for c in clipped] if policy in ("nan", "zero") else clipped
