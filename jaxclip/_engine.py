r"""The engine: a norm at a scope, a threshold, a scaling, and a record of what happened.

Every rule is $g \min(1, c/n)$; they differ in where n is taken and where c comes from. `clip_by`
joins the two, and a named rule is a call of it. Norms, thresholds and the scaling itself live in
their own rooms; this one only puts them together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _checks, _group_norm, _mesh, _scaling, _state, _trees, norms, thresholds
from jaxclip._group_norm import Norm
from jaxclip._scaling import Scale
from jaxclip._state import ClipState, Record
from jaxclip._trees import Flat
from jaxclip.thresholds import Measured, Threshold

SCOPES = ("element", "unit", "leaf", "global")


def clip_by(
    threshold: Any,
    *,
    scope: str,
    ord: Any = _checks.TWO,
    axis: Any = None,
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
    _checks.choice(_scaling.POLICIES, nonfinite=nonfinite)
    _checks.real_number(eps=eps)
    _checks.real_number(floor=floor)
    if axis is not None and scope != "unit":
        raise ValueError(f"axis={axis!r} has a meaning only at scope='unit', not {scope!r}")
    for key, mask in (("norm_mask", norm_mask), ("scale_mask", scale_mask)):
        if mask is not None and scope != "global":
            raise ValueError(f"{key} has a meaning only at scope='global'; use optax.masked")
    if not isinstance(threshold, Threshold):
        threshold = thresholds.constant(threshold, scope=scope)
    _state.named(ClipState, name)
    gauge = _Gauge(
        scope, _checks.norm_order(ord), _checks.axes(axis), _checks.mesh_axes(axis_name), norm_mask
    )

    def init(params: Any) -> ClipState:
        return _state.first(name, threshold.init(gauge.zeros(_trees.flatten(params))))

    def update(
        updates: Any, state: Any, params: Any = None, *, norm: Any = None, **extra_args: Any
    ) -> tuple[Any, ClipState]:
        del extra_args
        state = _state.checked(state, init, updates)
        flat = _trees.flatten(updates)
        found, finite = _found(gauge, flat, norm, nonfinite)
        measured = _measured(gauge, flat, found, state.count, params)
        limits, memory = threshold.update(state.memory, measured)
        hard = [_scaling.hard(n, c, eps, floor) for n, c in zip(found, limits, strict=True)]
        scales = [
            _scaling.for_nonfinite(s, n.is_finite, nonfinite, finite)
            for s, n in zip(hard, found, strict=True)
        ]
        arrays = _scaled(flat, gauge.per_leaf(flat, scales), scale_mask, nonfinite, finite)
        seen = record(found, limits, scales, _clipped(hard, found, nonfinite, finite), finite)
        return flat.rebuild(arrays), _state.following(state, seen, memory)

    return optax.GradientTransformationExtraArgs(init, update)


class _Gauge(NamedTuple):
    """What is measured: the scope and the kind of norm."""

    scope: str
    ord: float | str
    axis: tuple[int, ...] | None
    axis_name: _mesh.Axes | None
    norm_mask: Any

    def __call__(self, flat: Flat) -> list[Norm]:
        which = None if self.norm_mask is None else chosen(flat, self.norm_mask, "norm_mask")
        return norms.measure(flat, self.scope, self.ord, self.axis, self.axis_name, which)

    def shapes(self, flat: Flat) -> list[tuple[int, ...]]:
        if self.scope == "global":
            return [()]
        if self.scope == "leaf":
            return [()] * len(flat.where)
        shapes = []
        for x in flat.arrays:
            reduced = _trees.reduced_axes(x.ndim, self.scope, self.axis)
            shapes.append(tuple(1 if i in reduced else n for i, n in enumerate(x.shape)))
        return shapes

    def zeros(self, flat: Flat) -> list[jax.Array]:
        return [jnp.zeros(shape, jnp.float32) for shape in self.shapes(flat)]

    def spread(self, flat: Flat, tree: Any, name: str) -> list[Any]:
        return [tree] if self.scope == "global" else flat.spread(tree, name)

    def where(self, flat: Flat) -> list[str]:
        if self.scope == "global":
            return ["the whole tree"]
        return [flat.at(i) for i in range(len(flat.where))]

    def per_leaf(self, flat: Flat, scales: list[Scale]) -> list[Scale]:
        return scales * len(flat.where) if self.scope == "global" else scales

    def given(self, flat: Flat, norm: Any) -> list[Norm]:
        """Norms measured elsewhere."""
        dtype = _group_norm.accumulator(*flat.arrays)
        found = []
        for value, shape in zip(self.spread(flat, norm, "norm"), self.shapes(flat), strict=True):
            if value is None or jnp.ndim(value) > len(shape):
                raise ValueError(f"norm={norm!r} must be a scalar, or one for each leaf")
            number = jnp.asarray(value).astype(dtype)
            number = number.reshape((1,) * (len(shape) - number.ndim) + number.shape)
            found.append(_group_norm.of(jnp.broadcast_to(number, shape)))
        return found


def chosen(flat: Flat, mask: Any, name: str) -> list[bool]:
    """Which leaves a mask selects, a prefix tree of bools or a function to one."""
    values = flat.spread(mask(flat.tree) if callable(mask) else mask, name)
    for value in values:
        if not isinstance(value, (bool, jnp.bool_)) or _checks.is_traced(value):
            raise TypeError(f"{name} has the leaf {value!r}; it must hold True and False only")
    return [bool(value) for value in values]


def _found(gauge: _Gauge, flat: Flat, norm: Any, policy: str) -> tuple[list[Norm], jax.Array]:
    """The norms, and whether all of them were finite.

    Under `drop` they are of what remains when non-finite elements are left out, which costs a
    second measurement, and only when there are any; `norm=` cannot know it and is ignored.
    """
    if norm is not None and policy != "drop":
        found = gauge.given(flat, norm)
        return found, all_finite(found)
    found = gauge(flat)
    finite = all_finite(found)
    if policy != "drop" or not found:
        return found, finite

    def of_the_rest() -> list[Norm]:
        rest = flat.rebuild([_scaling.without_nonfinite(x) for x in flat.arrays])
        return gauge(_trees.flatten(rest))

    return jax.lax.cond(finite, lambda: found, of_the_rest), finite


def _measured(
    gauge: _Gauge, flat: Flat, found: list[Norm], count: jax.Array, params: Any
) -> Measured:
    def of_params() -> list[jax.Array]:
        if params is None:
            raise ValueError("params=None: this rule's threshold needs update(..., params=params)")
        own = _trees.flatten(params)
        if own.treedef != flat.treedef or own.where != flat.where:
            raise ValueError(
                f"params and updates differ in structure: {own.treedef} against {flat.treedef}"
            )
        return [n.number for n in gauge(own)]

    return Measured(
        norms=[n.number for n in found],
        count=count,
        of_params=of_params,
        spread=lambda tree, name: gauge.spread(flat, tree, name),
        where=gauge.where(flat),
    )


def _scaled(
    flat: Flat, scales: list[Scale], scale_mask: Any, policy: str, finite: jax.Array
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


def _clipped(
    hard: list[Scale], found: list[Norm], policy: str, finite: jax.Array
) -> list[jax.Array]:
    """Which norms were clipped: none of them if the policy disposed of the whole update."""
    clipped = [~scale.keep & norm.is_finite for scale, norm in zip(hard, found, strict=True)]
    return [c & finite for c in clipped] if policy in ("nan", "zero") else clipped


def record(
    found: list[Norm],
    limits: list[jax.Array],
    scales: list[Scale],
    clipped: list[jax.Array],
    finite: jax.Array,
) -> Record:
    """What happened, over all norms and over the devices on which they differ."""
    units = sum(c.size * _mesh.shards(_mesh.varying_axes(c)) for c in clipped)
    number = _total([jnp.sum(c, dtype=jnp.float32) for c in clipped])
    return Record(
        norm=_largest([n.number for n in found], 0.0),
        threshold=-_largest([-jnp.asarray(c) for c in limits], -jnp.inf),
        scale=-_largest([-s.number for s in scales], -1.0),
        fraction=number / max(units, 1),
        clipped=number > 0,
        nonfinite=~finite,
    )


def all_finite(found: list[Norm]) -> jax.Array:
    """Whether all norms are finite, on every device."""
    return _largest([~n.is_finite for n in found], 0.0) == 0


def _largest(parts: list[jax.Array], default: float) -> jax.Array:
    parts = [jnp.max(part.astype(jnp.float32)) for part in parts if part.size]
    if not parts:
        return jnp.full((), default, jnp.float32)
    return _mesh.max_over(parts, [_mesh.varying_axes(part) for part in parts])


def _total(parts: list[jax.Array]) -> jax.Array:
    if not parts:
        return jnp.zeros((), jnp.float32)
    return _mesh.sum_over(parts, [_mesh.varying_axes(part) for part in parts])
