r"""Projections of weights: transformations that make `optax.apply_updates` land inside a set.

They come last in a chain, see the update u and the weights w, and return P(w + u) - w. What bounds
gradients does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _checks, _gauge, _group_norm, _record, _scaling, _state, _trees, norms
from jaxclip._group_norm import Norm
from jaxclip._scaling import Scale
from jaxclip._state import ClipState, Record
from jaxclip._trees import Flat

__all__ = ["project_max_norm"]


def project_max_norm(
    max_norm: Any = 2.0, *, axis: Any = None, mask: Any = None, axis_name: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the norm of each unit's weights at most `max_norm`.

    $$u \leftarrow P(w + u) - w, \qquad P(w) = w \min\Big(1, \frac{c}{\|w\|_2}\Big)$$

    for every unit.

    A unit is by default what feeds one output: for a Dense kernel of shape (in, out), a column, as
    in Keras with `axis=0`. `axis=1` bounds the rows instead, what one input sends out, as
    `tf.clip_by_norm(weights, c, axes=1)`.

    The projection is idempotent: a unit inside the set, up to the rounding with which its own
    dtype can say so, is left alone bit for bit, so weights are never eroded. What `update` returns
    is a difference, and so lands to a rounding of the weights before the step: weights that start
    far outside the set, say at a thousand times the limit, come to lie in it after a second step.

    Args:
        max_norm: c: a number >= 0, a scalar array, a schedule, or a prefix tree of those.
        axis: the axes of a leaf that are reduced; `None` for all but the last.
        mask: which leaves are projected: a prefix tree of bools, or a function from the parameters
            to one. `None`: leaves of rank >= 2, that is kernels and not biases.
        axis_name: mesh axes over which a unit is spread, where that cannot be found.

    Returns:
        A transformation, last in a chain, whose `update` needs `params`. For parameters narrower
        than float32 the update is float32, so that rounding happens once, in `apply_updates`.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value, or `params` is missing.

    Example:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = optax.chain(optax.sgd(1.0), jaxclip.project_max_norm(1.0))
        >>> params = {"kernel": jnp.array([[0.6], [0.0]])}
        >>> grads = {"kernel": jnp.array([[0.0], [-0.8]])}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> print(optax.apply_updates(params, updates)["kernel"])
        [[0.6]
         [0.8]]

    References:
        Srebro, Rennie, Jaakkola, Maximum-margin matrix factorization, 2005; Srivastava et al.,
        Dropout, 2014; `keras.constraints.MaxNorm`.
    """
    _checks.threshold_tree(max_norm, "max_norm", scalar=True)
    axes, mesh = _checks.axes(axis), _checks.mesh_axes(axis_name)

    def projected(weights: Flat, count: jax.Array) -> list[Projected]:
        found = norms.measure(weights, "unit", 2, axes, mesh)
        limits = weights.spread(_trees.at(max_norm, count), "max_norm")
        limits = [jnp.asarray(jnp.inf if c is None else c).astype(jnp.float32) for c in limits]
        return [Projected(n, c) for n, c in zip(found, limits, strict=True)]

    return _projection("project_max_norm", projected, mask)


class Projected(NamedTuple):
    """What a projection knows of one leaf of weights."""

    norm: Norm
    limit: jax.Array

    def scale(self, dtype: Any) -> Scale:
        """The scale of weights stored in `dtype`."""
        return _scaling.within(self.norm, self.limit, dtype)


def _projection(
    name: str, projected: Callable[[Flat, jax.Array], list[Projected]], mask: Any
) -> optax.GradientTransformationExtraArgs:
    """The transformation that projects the chosen leaves of w + u."""

    def init(params: Any) -> ClipState:
        del params
        return _state.first(name)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ClipState]:
        del extra_args
        if params is None:
            raise ValueError(f"params=None: {name} needs update(..., params=params)")
        state = _state.checked(state, init, updates)
        steps, weights = _trees.flatten(updates), _trees.flatten(params)
        moved = [_moved(w, u) for w, u in zip(weights.arrays, steps.arrays, strict=True)]
        found = projected(_trees.flatten(weights.rebuild(moved)), state.count)
        chosen = [i for i, choose in enumerate(_chosen(weights, mask)) if choose]
        scales = {i: found[i].scale(weights.arrays[i].dtype) for i in chosen}
        arrays = steps.arrays
        for i in chosen:
            arrays[i] = _step(weights.arrays[i], arrays[i], moved[i], scales[i])
        seen = _seen([found[i] for i in chosen], list(scales.values()))
        return steps.rebuild(arrays), _state.following(state, seen, state.memory)

    return optax.GradientTransformationExtraArgs(init, update)


def _seen(found: list[Projected], scales: list[Scale]) -> Record:
    measured, limits = [p.norm for p in found], [p.limit for p in found]
    clipped = [~scale.keep for scale in scales]
    return _record.record(measured, limits, scales, clipped, _record.all_finite(measured))


def _chosen(weights: Flat, mask: Any) -> list[bool]:
    if mask is None:
        return [w.ndim >= 2 for w in weights.arrays]
    return _gauge.chosen(weights, mask, "mask")


def _moved(w: jax.Array, u: jax.Array) -> jax.Array:
    """Returns w + u in at least float32."""
    wide = _group_norm.accumulator(w)
    return _group_norm.widened(w, wide) + _group_norm.widened(u, wide)


def _step(w: jax.Array, u: jax.Array, moved: jax.Array, scale: Scale) -> jax.Array:
    """The update that lands on the projection of w + u; u itself where that is inside the set."""
    wide = _group_norm.accumulator(w)
    to_target = _scaling.apply(moved, scale) - _group_norm.widened(w, wide)
    return jnp.where(scale.keep, _group_norm.widened(u, wide), to_target)
