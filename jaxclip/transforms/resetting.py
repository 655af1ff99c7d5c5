r"""Starts the state of a transformation anew at regular times."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core import state as states
from jaxclip._core.flat_tree import difference, flatten
from jaxclip._core.types import PyTree
from jaxclip._numerics.scaled_float import accumulator, times, widened
from jaxclip._validate import short
from jaxclip.transforms.selection import pick

_DEATH_RATE = 0.99  # the step after a reset is 1 % of itself


class ResetState(NamedTuple):
    """The state of `reset_every`.

    Attributes:
        restarted_state: the state of the transformation that is started anew.
        update_count: updates so far; int32 scalar.
    """

    restarted_state: PyTree
    update_count: jax.Array


def reset_every(
    inner: optax.GradientTransformation, steps: int, *, warmup_steps: int = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Starts the state of `inner` anew every so many updates: momentum reset.

    $$s \leftarrow \mathrm{init}(w) \text{ before the updates } T + 1, 2T + 1, \dots$$

    A bad gradient stays in Adam's moments for hundreds of steps. SPAM forgets them every 500 steps,
    and lets the step after a reset grow from 1 % over W = 150 updates:

    $$u \leftarrow u \, \Big(1 - 0.99 \, \frac{1 + \cos(\pi t / W)}{2}\Big)$$

    with t updates since the reset. All state of `inner` starts anew, its step counts, schedules and
    random keys too: leave schedules outside. Around `optax.MultiSteps` it would forget gradients
    that wait for their step; put it inside.

    Args:
        inner: any Optax transformation, such as `optax.scale_by_adam()`.
        steps: T, the number of updates between two resets.
        warmup_steps: W, the number of updates after a reset whose steps are shortened; 0 for none.
            The first updates of a run are not.

    Returns:
        A transformation whose state is a `ResetState`; `update` needs `params`. All extra arguments
        reach `inner`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if `steps` is below 1, `warmup_steps` is negative or `params` is missing.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = jaxclip.reset_every(optax.trace(decay=1.0), 3)
        >>> params = jnp.zeros(1)
        >>> state = tx.init(params)
        >>> for _ in range(5):
        ...     updates, state = tx.update(jnp.ones(1), state, params)
        ...     print(updates)
        [1.]
        [2.]
        [3.]
        [1.]
        [2.]

    References:
        Huang et al., SPAM: spike-aware Adam with momentum reset for stable LLM training, 2025,
        arXiv:2501.06842.
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner={short(inner)} must be an optax transformation")
    transformed = optax.with_extra_args_support(inner)
    period = _validate.whole_number(steps, "steps")
    warmup = _validate.whole_number(warmup_steps, "warmup_steps", 0)
    kind = states.named(ResetState, "reset_every")

    def init(params: PyTree) -> Any:
        return kind(transformed.init(params), jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        if not isinstance(state, kind):
            raise states.other_type(state, kind)
        if params is None:
            raise ValueError("params=None: reset_every needs update(..., params)")
        count, fresh = state.update_count, transformed.init(params)
        found = difference(fresh, state.restarted_state, ("init(params)", "the state"))
        if found:
            raise ValueError(f"the state is not that of inner for these params: {found}")
        since = count % period
        is_due = (since == 0) & (count > 0)
        own = jax.tree.map(lambda x, y: pick(is_due, x, y), fresh, state.restarted_state)
        step, after = transformed.update(updates, own, params, **extra_args)
        if not (_validate.is_known_number(warmup) and warmup == 0):
            step = _shortened(step, jnp.where(count >= period, since, warmup), warmup)
        return step, kind(after, states.increased(count))

    return optax.GradientTransformationExtraArgs(init, update)


def _shortened(step: PyTree, since: jax.Array, warmup: Any) -> PyTree:
    """The step, so many updates after a reset; as it is after the warm-up."""
    part = since / jnp.maximum(warmup, 1)
    factor = 1 - _DEATH_RATE * (1 + jnp.cos(jnp.pi * part)) / 2
    factor = jnp.where(since < warmup, factor, 1)
    flat = flatten(step)
    return flat.rebuild([_scaled(x, factor) for x in flat.arrays])


def _scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
    wide = accumulator(x)
    return times(widened(x, wide), factor.astype(wide)).astype(x.dtype)
