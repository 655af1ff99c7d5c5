r"""The engine of every norm rule: measure a norm, compare it with a threshold, scale, record.

A named rule is a call of `clip_by`. Norms, thresholds and bounds live in the modules below.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core import record
from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat, alike, flatten
from jaxclip._core.measure import Measure, measure
from jaxclip._core.state import ClipState, Record
from jaxclip._core.types import (
    AxisName,
    Bound,
    Groups,
    LimitTree,
    Mask,
    NonFinite,
    Order,
    PyTree,
    Scope,
    Stacked,
    UnitAxes,
)
from jaxclip._numerics.bounds import BOUNDS
from jaxclip._numerics.power_sums import AnyTable, table_of
from jaxclip._numerics.scaled_float import Factors, Norm, Scale, apply
from jaxclip._validate import short
from jaxclip.thresholds.base import Measured, Threshold
from jaxclip.thresholds.fixed import given


def clip_by(
    threshold: LimitTree | Threshold,
    *,
    scope: Scope,
    groups: Groups = None,
    ord: Order = None,
    axis: UnitAxes = None,
    stacked: Stacked = None,
    bound: Bound = "hard",
    eps: ArrayLike = 0.0,
    floor: ArrayLike = 0.0,
    nonfinite: NonFinite = "propagate",
    norm_mask: Mask = None,
    scale_mask: Mask = None,
    axis_name: AxisName = None,
    name: str = "clip_by",
) -> optax.GradientTransformationExtraArgs:
    r"""Clips updates whose norm at a scope exceeds a threshold: the engine of every norm rule.

    $$g \leftarrow g \min\Big(1, \frac{c}{n + \epsilon}\Big)$$

    with the norm n of the update and the threshold c at the scope. Guarantees:

    | input | result |
    |---|---|
    | n <= c | every leaf bit for bit unchanged |
    | n > c | same direction; new norm within 2 machine epsilons of c, within 1 in 16 bits |
    | c is `None` or inf | unchanged; the norm is still recorded |
    | c is 0 | zeros: `None` turns clipping off, 0 stops training |
    | zero update | unchanged, with a finite derivative |
    | finite, but squares overflow or underflow | as if computed in float64 |
    | subnormal numbers | may count as 0, and become 0 where scaled: XLA flushes them |
    | integer, boolean or `float0` leaves | passed through, not measured |
    | any dtype | kept; measured and multiplied in at least float32 |

    Args:
        threshold: c: a number >= 0, a scalar array, a schedule `count -> value` counted from 0, or
            `None` for no limit; where each leaf has a norm also a prefix tree of those, in which a
            stack of L layers may have an array of shape (L,); at scope `"group"` also a dict by
            label; or an object of `jaxclip.thresholds`. A traced negative value counts as 0.
        scope: `"global"` for one norm of the whole tree, `"group"` for a norm of all leaves of a
            label, `"leaf"` for a norm of each leaf, `"unit"` for each unit of a leaf, `"element"`
            for each element.
        groups: the labels of the leaves at scope `"group"`, as for `jaxclip.clip_by_group_norm`.
        ord: the norm: p >= 1 or inf; `None` is 2; `"rms"` is the root mean square; `"average"` is
            TensorFlow's average norm, the 2-norm divided by the number of elements.
        axis: the axes of a leaf that a unit reduces, at scope `"unit"`; negative ones count from
            the end. Axes that a leaf does not have are left out, and a leaf that has none of them
            is one unit. `None`: all but the last. `()`: none, so that each element is a unit.
        stacked: the axis along which a leaf stacks layers for `jax.lax.scan`; each slice then
            counts as a leaf, and `axis` means axes of a slice. An int is for all leaves that have
            this axis. Where some are not stacked, as an embedding, pass a function
            `(name, leaf) -> axis` or `None`. Only at the scopes `"leaf"` and `"unit"`.
        bound: the norm that a norm n becomes. `"hard"`: min(n, c). `"tanh"`: c tanh(n/c).
            `"rational"`: n c/(n + c). The smooth ones also shrink norms below c, smaller ones less;
            `fraction` and `clipped_count` count norms above c. `"set"`: c, up or down, for n > 0;
            they count norms that changed.
        eps: added to the norm in the quotient. 1e-6 gives PyTorch's numbers.
        floor: lower bound on the divisor.
        nonfinite: the effect of a NaN or infinite norm. `"propagate"`: the arrays with that norm
            are returned unchanged. `"nan"`: every leaf becomes NaN, as in TensorFlow. `"zero"`:
            the whole update becomes zero. `"drop"`: non-finite elements become zero, and the rest
            is clipped by its own norm. Always counted.
        norm_mask: the leaves that are measured: a prefix tree of bools, or a function from the
            updates to one. Only at the scopes `"global"` and `"group"`.
        scale_mask: the leaves that are scaled, in the same form.
        axis_name: mesh axes that shard the leaves. `None`: found from the leaves' types inside
            `shard_map`. Names: needed under `pmap`, `vmap` and `shard_map(check_vma=False)`.
            `()`: never reduce.
        name: the name of the rule in `jaxclip.metrics`.

    Returns:
        A transformation whose state is a `ClipState`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value; when an update is traced, with the key path,
            if a shape or a tree does not fit.

    Examples:
        Each row of a matrix is held to a norm of at most 1:

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
    for key, mask in (("norm_mask", norm_mask), ("scale_mask", scale_mask)):
        if mask is not None and scope not in ("global", "group"):
            raise ValueError(
                f"{key} is only supported with scope='global' or 'group'; got "
                f"scope={short(scope)}. Use optax.masked"
            )
    _validate.choice(bound, Bound, "bound")
    _validate.choice(nonfinite, NonFinite, "nonfinite")
    needed = threshold.bound if isinstance(threshold, Threshold) else None
    if needed not in (None, bound):
        raise ValueError(f"bound={bound!r} has no use for this threshold: pass bound={needed!r}")
    rule = Rule(
        name=name,
        measure=measure(scope, ord, axis, axis_name, norm_mask, stacked, groups),
        limit=threshold
        if isinstance(threshold, Threshold)
        else given(threshold, scope=scope if stacked is None else None),
        bound=bound,
        eps=_unless_zero(eps, "eps"),
        floor=_unless_zero(floor, "floor"),
        nonfinite=nonfinite,
        scale_mask=scale_mask,
    )
    return rule.transformation()


_Norms = Callable[[Flat], list[Norm]]
_VALUES = {"nan": jnp.nan, "zero": 0.0}  # of an update that is not finite


class Rule(NamedTuple):
    """The arguments of `clip_by`, validated; some have `None` for a default.

    Attributes:
        relative: `relative(params, flat) -> norms`, of other arrays than the updates.
    """

    name: str
    measure: Measure
    limit: Threshold
    nonfinite: NonFinite
    bound: Bound = "hard"
    eps: Any = None  # 0
    floor: Any = None  # 0
    scale_mask: Mask = None
    relative: Callable[[PyTree, Flat], list[Norm]] | None = None

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The transformation of the rule."""
        return states.transformation(self.first, states.named(ClipState, self.name), self.step)

    def first(self, params: PyTree) -> ClipState:
        """The state before the first update."""
        flat = flatten(params)
        zeros = self.measure.zeros(flat)
        memory = states.without_leaves(self.limit.init(zeros))
        if self.measure.labels is not None:
            scales = [jnp.ones_like(n) for n in zeros]
            memory = states.by_label(memory, self.measure.names(flat), zeros, scales)
        return states.first(self.name, memory)

    def step(self, flat: Flat, state: ClipState, params: PyTree) -> tuple[PyTree, ClipState]:
        """The clipped updates and the next state."""
        before, is_grouped = state.memory, self.measure.labels is not None
        if is_grouped:
            flat, before = self.measure.labeled(flat), state.memory.memory
        measured_by: _Norms = self.measure.norms
        if self.relative is None:
            norms, table = self.measure.tabled(flat)
        else:
            measured_by = functools.partial(self.relative, params)
            norms = measured_by(flat)
            table = table_of([n.value for n in norms])
        finite: Any = None
        if self.nonfinite != "propagate":
            finite = record.all_finite(table.vectors(norms), self.measure.differing)
        if self.nonfinite == "drop":
            flat, norms = _dropped(flat, norms, table, finite, measured_by)
        numbers = table.map(operator.attrgetter("number"), norms)
        seen = measured(self.measure, flat, numbers, table, state.update_count, params)
        limits, memory = self.limit.update(before, seen) if norms else ([], before)
        rows: list[tuple[Any, Any, Scale, Any]] = []
        factors: list[Factors] = []
        for norm, number, c in zip(*map(table.vectors, (norms, numbers, limits)), strict=True):
            scale, over = self.scaled(norm, number, c, finite)
            rows.append((number, c, scale, over))
            factors.append(scale.factors)
        arrays = list(map(apply, flat.arrays, self.measure.per_leaf(flat, table.arrays(factors))))
        if self.scale_mask is not None:
            chosen = flat.chosen(self.scale_mask, "scale_mask")
            arrays = [y if c else x for x, y, c in zip(flat.arrays, arrays, chosen, strict=True)]
        if is_grouped:
            scales = table.arrays([scale.factor for _, _, scale, _ in rows])
            memory = states.by_label(memory, self.measure.names(flat), numbers, scales)
        if self.nonfinite in ("nan", "zero"):
            arrays = [jnp.where(finite, x, _VALUES[self.nonfinite]) for x in arrays]
        if self.measure.scope == "global" and jax.sharding.get_abstract_mesh().empty:
            number, c, scale, over = rows[0]
            done = Record(number, jnp.asarray(c), scale.factor, over, over, ~scale.finite)
        else:
            done = record.of_rows(rows, self.measure.differing)
        done = done if finite is None else done._replace(nonfinite=~finite)
        return flat.rebuild(arrays), states.following(state, done, memory)

    def scaled(
        self, norm: Norm, number: jax.Array, limit: Any, finite: Any
    ) -> tuple[Scale, jax.Array]:
        """The scale of the arrays with a norm, and whether it counts as clipped."""
        scale = BOUNDS[self.bound](norm, number, limit, self.eps, self.floor)
        over = scale.over
        if self.bound in ("tanh", "rational"):
            over = (number > limit) & scale.finite
        if self.nonfinite in ("nan", "zero"):
            factor = jnp.where(finite, scale.factor, _VALUES[self.nonfinite])
            scale, over = scale._replace(factor=factor), over & finite
        return scale, over


def measured(
    rule: Measure, flat: Flat, numbers: list[jax.Array], table: AnyTable, count: Any, params: PyTree
) -> Measured:
    """The input of a threshold."""

    def of_params(factors: list[jax.Array]) -> list[jax.Array]:
        if params is None:
            raise ValueError("params=None: the threshold of this rule needs update(..., params)")
        return table.map(Norm.times, rule.norms(alike(params, flat)), factors)

    return Measured(
        norms=numbers,
        count=count,
        of_params=of_params,
        of_tree=lambda: rule.of_tree(flat, numbers),
        spread=lambda tree, name: rule.spread(flat, tree, name),
        path=lambda i: rule.path(flat, i),
        map=table.map,
    )


def _dropped(
    flat: Flat, norms: list[Norm], table: AnyTable, finite: jax.Array, measured_by: _Norms
) -> tuple[Flat, list[Norm]]:
    """The leaves without their non-finite elements, and the norms of the rest."""

    def of_the_rest(arrays: list[jax.Array]) -> list[Norm]:
        rest = flat._replace(arrays=[_finite_part(x) for x in arrays])
        return table.vectors(measured_by(rest))

    # Arrays as operands: closed over, on an Explicit mesh, they would lose their sharding.
    if norms:
        whole = table.vectors(norms)
        norms = table.arrays(jax.lax.cond(finite, lambda arrays: whole, of_the_rest, flat.arrays))
    return flat._replace(arrays=[_finite_part(x) for x in flat.arrays]), norms


def _finite_part(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def _unless_zero(value: ArrayLike, name: str) -> Any:
    """The number; `None` for a known 0, which needs no instruction."""
    _validate.real_number(value, name, finite=True)
    return None if _validate.is_known_number(value) and np.asarray(value) == 0 else value
