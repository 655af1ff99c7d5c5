r"""How a projection works: where w + u lands, and the update that takes w there.

Which set it is, is in `_weights`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate as _checks
from jaxclip._core import flat_tree as _trees
from jaxclip._core import measure as _gauge
from jaxclip._core import record as _record
from jaxclip._core import state as _state
from jaxclip._core.flat_tree import Flat
from jaxclip._core.state import ClipState, Record
from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import scaled_float as _wide
from jaxclip.projections import constraints as _weights
from jaxclip.projections.constraints import Landing, Set


def projection(
    name: str,
    inside: Set,
    *,
    axis: Any = None,
    mask: Any = None,
    axis_name: Any = None,
    record: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The transformation that projects the chosen leaves of w + u onto a set."""
    axes, mesh = _checks.axes(axis), _checks.mesh_axes(axis_name)
    _checks.flag(record=record)

    def init(params: Any) -> ClipState:
        del params
        return _state.first(name, record=record)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ClipState]:
        del extra_args
        if params is None:
            raise ValueError(f"params=None: {name} needs update(..., params=params)")
        state = _state.checked_or_first(state, init, updates)
        weights, steps = _flat(params, updates)
        chosen = _chosen(weights, mask)
        weights, steps = weights.only(chosen), steps.only(chosen)
        pairs = list(zip(weights.arrays, steps.arrays, strict=True))
        moved = weights.replaced([_moved(w, u) for w, u in pairs])
        _mesh.check_sharded(moved.arrays, mesh, moved.at)
        dtypes = [w.dtype for w, _ in pairs]
        landings = _weights.landings(moved, dtypes, state.count, inside, axes, mesh)
        trios = zip(pairs, moved.arrays, landings, strict=True)
        arrays = [_step(w, u, to, landed) for (w, u), to, landed in trios]
        seen = _seen(moved, landings, mesh) if record else None
        return steps.rebuild(arrays), _state.following(state, seen, state.memory)

    return optax.GradientTransformationExtraArgs(init, update)


def _flat(params: Any, updates: Any) -> tuple[Flat, Flat]:
    steps = _trees.flatten(updates)
    weights = _trees.params_like(params, steps)
    steps = steps._replace(where=weights.where)
    _trees.check_shapes(weights, steps)
    return weights, steps


def _chosen(weights: Flat, mask: Any) -> list[bool]:
    """Which leaves are projected. By default kernels: a bias of attention has rank 2 as well."""
    if mask is None:
        named = zip(weights.arrays, weights.last_keys, strict=True)
        return [w.ndim >= 2 and key != "bias" for w, key in named]
    return _gauge.chosen(weights, mask, "mask")


def _moved(w: jax.Array, u: jax.Array) -> jax.Array:
    """Returns w + u in at least float32."""
    wide = _wide.accumulator(w)
    return _wide.widened(w, wide) + _wide.widened(u, wide)


def _step(w: jax.Array, u: jax.Array, moved: jax.Array, landed: Landing) -> jax.Array:
    """The update that takes w where w + u lands; u itself where that is inside the set."""
    wide = _wide.accumulator(w)
    to_target = landed.value - _wide.widened(w, wide)
    if landed.norm is None:
        to_target = _not_beyond(_wide.widened(w, wide), to_target, moved, landed.value)
    keep = landed.keep | ~jnp.isfinite(w)  # from an infinite weight no difference leads anywhere
    return jnp.where(keep, _wide.widened(u, wide), to_target)


def _not_beyond(w: jax.Array, step: jax.Array, moved: jax.Array, bound: jax.Array) -> jax.Array:
    """The step from w to a bound of its element, shorter by one float if it would lead beyond.

    Not every float can be reached from every other one by adding a float.
    """
    above = moved > bound
    beyond = jnp.where(above, w + step > bound, w + step < bound)
    infinite = jnp.full_like(step, jnp.inf)
    here = jax.lax.stop_gradient(step)  # there is no derivative of `nextafter`
    shorter = jnp.nextafter(here, jnp.where(above, -infinite, infinite))
    return jnp.where(beyond, step + (shorter - here), step)


def _seen(moved: Flat, landings: list[Landing], mesh: Any) -> Record:
    """What happened to the units; to single elements, where they are what is bounded."""
    measured = [landed.norm for landed in landings]
    if not landings or measured[0] is not None:
        limits, scales = [[getattr(x, key) for x in landings] for key in ("limit", "scale")]
        clipped = [~scale.keep for scale in scales]
        return _record.record(measured, limits, scales, clipped)
    limits, outside = [x.limit for x in landings], [~x.keep for x in landings]
    return _record.of_elements(moved.arrays, limits, outside, mesh)
