r"""The wrapper that keeps the norm of each matrix of weights, and turns it by a fixed angle."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core import record
from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat, alike, at_step, flatten
from jaxclip._core.measure import Measure, measure
from jaxclip._core.types import AxisName, LimitTree, Mask, PyTree, ScalarOrSchedule, Stacked
from jaxclip._numerics import collectives
from jaxclip._numerics.power_sums import reduced, sum_of, table_of
from jaxclip._numerics.rounding import is_narrow, rounded
from jaxclip._numerics.scaled_float import (
    Norm,
    accumulator,
    broadcast,
    narrowed,
    opaque,
    power_of_two_near,
    times,
    widened,
)
from jaxclip._validate import short
from jaxclip.projections.projection import chosen

# Elements above 2^k are measured as multiples of 2^s, those below 2^-k of 2^-s: their squares stay
# in range. By bytes of the dtype.
_FAR = {4: (40, 96), 8: (400, 700)}


class HyperballState(NamedTuple):
    """The state of `hyperball`.

    Attributes:
        directed_state: the state of `inner`.
        radii: the first norm of each matrix, arrays in the order of the leaves.
        norm: the largest norm of a direction in the last update; float32 scalar.
        angle: the largest angle by which it turned a matrix, in radians; float32 scalar.
        update_count: updates so far; int32 scalar.
        unchanged_count: updates that left a matrix as it was; int32 scalar.
    """

    directed_state: PyTree
    radii: PyTree
    norm: jax.Array
    angle: jax.Array
    update_count: jax.Array
    unchanged_count: jax.Array

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name."""
        return states.recorded(self, "directed_state", "radii")


def hyperball(
    inner: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    radius: LimitTree = None,
    mask: Mask = None,
    axis_name: AxisName = None,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the norm of each matrix of weights, and turns it by an angle: hyperball optimization.

    $$w \leftarrow R \, N\big(w - \eta R \, N(u)\big), \qquad N(x) = x / \|x\|$$

    with the direction u of `inner` and the Frobenius norm. R is the norm that the matrix had in
    `init`. Then the learning rate alone sets the angle of a step, at most about η, and neither the
    length of u nor weight decay has an effect. It replaces both learning rate and weight decay.

    It comes last, and `inner` has no learning rate: it gives a direction of ascent, as
    `optax.scale_by_adam()` and `optax.scale_by_rms()` do. Leaves outside the mask, such as biases
    and scales, take the plain step $-\eta u$. The paper also leaves out embeddings. For another
    rate or optimizer there, use `optax.partition`.

    | matrix | after the step |
    |---|---|
    | any | its norm is R to a rounding, in 16 bits to one of the dtype, and does not drift |
    | w of norm R, u orthogonal to it | turned by $\arctan \eta$ |
    | u zero, or with a NaN or inf | unchanged, and counted |
    | w with a NaN or inf, or $w = \eta R N(u)$ | unchanged, and counted |
    | R = 0: zeros in `init`, without `radius` | unchanged, and counted: mask it, or give a radius |
    | u whose squares overflow or underflow | as if computed in float64 |

    Args:
        inner: a transformation, such as a chain that ends with `optax.scale_by_adam()`.
        learning_rate: η: a number >= 0, a scalar array, or a schedule `count -> value`.
        radius: R: a number >= 0, a scalar array, a schedule, or a prefix tree of those; `None` for
            the norm that a matrix had in `init`.
        mask: the leaves whose norm is kept: a prefix tree of bools, or a function from the
            parameters to one. `None`: leaves of rank >= 2 that are not called `bias`, that is
            kernels and embeddings.
        axis_name: mesh axes over which a matrix is spread, where they cannot be found.
        stacked: the axis along which a leaf stacks layers, or a function `(name, leaf) -> axis or
            None`. Each slice is a matrix of its own.

    Returns:
        A transformation whose `update` needs `params`; its state is a `HyperballState`.
        `jaxclip.metrics` has the largest norm of a direction as `norm`, the largest `angle`, and
        in `unchanged_count` the updates that left a matrix unchanged. All extra arguments reach
        `inner`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, `params` is missing, or a direction is not
            like its parameters.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxclip, optax
        >>> tx = jaxclip.hyperball(optax.identity(), 0.1)
        >>> params = jnp.array([[3.0, 0.0], [0.0, 4.0]])
        >>> direction = jnp.array([[0.0, 7.0], [0.0, 0.0]])
        >>> updates, state = jax.jit(tx.update)(direction, tx.init(params), params)
        >>> params = optax.apply_updates(params, updates)
        >>> print(jnp.linalg.norm(params), jaxclip.metrics(state)["hyperball/angle"])
        5.0 0.09966865

    References:
        Wen et al., Fantastic pretraining optimizers and where to find them II: hyperball
        optimization, 2026, arXiv:2606.16899.
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner={short(inner)} must be an optax transformation")
    if learning_rate is None or _validate.is_tree(learning_rate):
        raise TypeError(f"learning_rate={short(learning_rate)} must be one number or schedule")
    _validate.limits(learning_rate, "learning_rate", scalar=True, finite=True)
    _validate.limits(radius, "radius", scalar=stacked is None, finite=True)
    directed, kind = optax.with_extra_args_support(inner), states.named(HyperballState, "hyperball")
    units = measure("leaf", axis_name=axis_name, stacked=stacked)

    def first(params: PyTree) -> HyperballState:
        flat = flatten(params)
        flat = flat.only(chosen(flat, mask, units.stacked))
        radii = states.without_leaves([n.number for n in units.norms(flat)] if flat.arrays else [])
        scalars = [jnp.zeros((), jnp.float32) for _ in range(2)]
        return kind((), radii, *scalars, *(jnp.zeros((), jnp.int32) for _ in range(2)))

    init, check = states.wrapping(first, kind, "directed_state", directed)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("params=None: hyperball needs update(..., params)")
        check(state, params)
        direction, after = directed.update(updates, state.directed_state, params, **extra_args)
        weights = flatten(params)
        steps = alike(direction, weights, ("the result of inner", "params"))
        count = state.update_count
        rate = _validate.number(at_step(learning_rate, count))
        own = chosen(weights, mask, units.stacked)
        weights, held = weights.only(own), steps.only(own)
        given = units.spread(weights, at_step(radius, count), "radius")
        pairs = zip(jax.tree.leaves(state.radii)[: len(given)], given, strict=True)
        radii = [r if g is None else _validate.number(g) for r, g in pairs]
        turns = _turns(weights, held, radii, rate, units) if held.arrays else []
        moved = map(_turned, weights.arrays, held.arrays, turns)
        every = zip(steps.arrays, own, strict=True)
        out = steps.rebuild([next(moved) if c else _plain(u, rate) for u, c in every])
        rows = [(one.norm, one.angle, ~one.good) for one in turns]
        norm, angle, unchanged = record.largest(rows, (0.0, 0.0, 0.0))
        return out, kind(
            after,
            state.radii,
            narrowed(norm, jnp.float32),
            angle,
            states.increased(count),
            states.increased(state.unchanged_count, unchanged > 0),
        )

    return optax.GradientTransformationExtraArgs(init, update)


class _Turn(NamedTuple):
    """The turn of the matrices of one leaf; each has its own numbers.

    Attributes:
        unit: a power of two near the radius.
        directed: the product of two factors that makes a direction as long as its step.
        radius: the factor that brings w minus that step, in units, to its radius.
        norm: the norm of the direction.
        angle: the angle between the weights before and after.
        good: whether the matrix is turned.
    """

    unit: jax.Array
    directed: tuple[jax.Array, jax.Array]
    radius: jax.Array
    norm: jax.Array
    angle: jax.Array
    good: jax.Array


def _plain(u: jax.Array, rate: jax.Array) -> jax.Array:
    """The step of a leaf whose norm is not kept."""
    wide = accumulator(u)
    return times(widened(u, wide), -rate.astype(wide)).astype(u.dtype)


def _turns(
    weights: Flat, steps: Flat, radii: list[Any], rate: jax.Array, rule: Measure
) -> list[_Turn]:
    kinds = rule.plan(weights)[1]
    every = collectives.union(axes for kind in kinds for axes in kind.mesh or ())
    units, sums = [], []
    for w, u, radius, kind in zip(weights.arrays, steps.arrays, radii, kinds, strict=True):
        dtype = accumulator(w, u)
        r = jnp.asarray(radius).astype(dtype)
        units.append(power_of_two_near(jnp.where((r > 0) & jnp.isfinite(r), r, jnp.ones_like(r))))
        x, y = times(widened(w, dtype), 1 / units[-1]), widened(u, dtype)
        sums.append(tuple(sum_of([_sums(x, y, kind.axes)], kind.mesh, every)))
    table = table_of([own[0] for own in sums])
    return table.map(functools.partial(_turn, rate), sums, radii, units)


def _turn(rate: jax.Array, sums: tuple[jax.Array, ...], radius: Any, unit: Any) -> _Turn:
    squares, dot, norm = _joined(sums)
    found, one = norm.value, jnp.ones_like(squares)
    r = broadcast(radius, one) / unit
    eta = rate.astype(r.dtype) * r
    dot = dot / jnp.where(found > 0, found, one)
    after = squares - 2 * eta * dot + eta * eta
    rounding = 4 * float(jnp.finfo(r.dtype).eps) * (squares + eta * eta)
    good = (found > 0) & jnp.isfinite(found) & (r > 0) & (after > rounding) & jnp.isfinite(after)
    length = jnp.sqrt(jnp.where(squares > 0, squares, one))
    along = jnp.clip(dot / length, -1, 1)
    angle = jnp.arctan2(eta * jnp.sqrt(1 - along * along), length - eta * along)
    return _Turn(
        unit=broadcast(unit, one),
        directed=(1 / norm.unit, jnp.where(good, eta / jnp.where(good, found, one), 0 * one)),
        radius=r / jnp.sqrt(jnp.where(good, after, one)),
        norm=norm.number,
        angle=jnp.where(good, angle, 0 * one),
        good=good,
    )


def _turned(w: jax.Array, u: jax.Array, turn: _Turn) -> jax.Array:
    """The update that turns w."""
    dtype = accumulator(w, u)
    start = widened(w, dtype)
    direction = functools.reduce(times, turn.directed, widened(u, dtype))
    moved = times(start, 1 / turn.unit) - direction
    step = times(times(moved, turn.radius), turn.unit) - start
    step = rounded(step, w.dtype) if is_narrow(w.dtype) else step
    return jnp.where(turn.good, step, jnp.zeros_like(step)).astype(w.dtype)


def _sums(x: jax.Array, y: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """The sums of x^2, and of y^2 and x y for elements of y far above 1, near it, and far below."""
    edge, far = _FAR[jnp.finfo(y.dtype).dtype.itemsize]
    pairs = [(x, y)]
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        pairs = [(jnp.real(x), jnp.real(y)), (jnp.imag(x), jnp.imag(y))]
    total: Any = 0.0
    for a, b in pairs:
        size = jnp.abs(b)
        above, below = size > 2.0**edge, size < 2.0**-edge
        a = opaque(a)
        parts = [a * a]
        for one, scale in ((above, 2.0**-far), (~(above | below), 1.0), (below, 2.0**far)):
            part = opaque(jnp.where(one, b, jnp.zeros_like(b)) * scale)
            parts += [part * part, part * a]
        total = total + jnp.stack([reduced(part, axes) for part in parts])
    return total


def _joined(sums: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, Norm]:
    """The sum of x^2, the sum of x y in units of y's norm, and that norm."""
    far = 2.0 ** _FAR[sums[0].dtype.itemsize][1]
    squares, large, by_large, near, by_near, small, by_small = sums
    down = 1 / far
    one = jnp.ones_like(squares)
    is_large, is_near = large != 0, near != 0  # NaN too
    rest = (jnp.sqrt(jnp.where(is_large, near, small)) * down) ** 2  # down ** 2 underflows
    square = jnp.where(is_large, large + rest, jnp.where(is_near, near + rest, small))
    dot = jnp.where(
        is_large, by_large + by_near * down, jnp.where(is_near, by_near + by_small * down, by_small)
    )
    unit = jnp.where(is_large, far * one, jnp.where(is_near, one, down * one))
    return squares, dot, Norm(jnp.sqrt(square), unit)
