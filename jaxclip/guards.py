r"""Guards: wrappers of a transformation that skip bad steps.

A rule makes a large gradient smaller; a guard does not let it in. A skipped step has a zero update
and leaves the inner state, momentum and step counts included, unchanged bit for bit. Any other step
is that of the inner transformation: bit for bit outside of `jit`, and up to roundings under `jit`,
where XLA may contract other products and sums than it does without the guard.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxclip._core.types import AxisName
from jaxclip.thresholds.window import Ring, spread
from jaxclip.transforms.guard import GuardState as GuardState
from jaxclip.transforms.guard import Judge, guard

__all__ = ["GuardState", "skip_nonfinite", "skip_spikes"]


def skip_nonfinite(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    max_consecutive: int | None = None,
    check_step: bool = True,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Skips a step if the gradient, the loss, or the step itself is not finite.

    | update, `value` and the step of `inner` | result |
    |---|---|
    | all finite | the step of `inner` |
    | a NaN or inf anywhere | a zero update; the state of `inner` unchanged |
    | the same, after `max_consecutive` in a row | the step of `inner`, so the run fails visibly |

    Inside `shard_map` one bad shard skips the step on every device.

    The step of `inner` may overflow or divide by zero where the gradient is finite, as that of Adam
    in float16. `nonfinite_step_count` counts such steps, `nonfinite_count` gradients and losses.
    The guard does not look at the state of `inner`, which may rightly hold inf. A second moment
    that overflows makes steps of 0, and no guard sees that: keep it in float32, as
    `jaxclip.scale_by_stable_adam` does.

    Around `optax.MultiSteps` it skips a single bad micro-step, and the accumulation goes on. Inside
    it cannot, since the accumulated gradients are NaN by then.

    Args:
        inner: any Optax transformation, such as a whole chain with its optimizer, or an
            `optax.MultiSteps`.
        max_consecutive: after this many consecutive skipped updates, bad updates are applied, so a
            diverged run fails visibly; `None` for no limit.
        check_step: whether to look at the step of `inner` too. Under `jit` it is then computed
            twice, or waited for, so a small batch takes longer; on a mesh that shards the
            parameters, one more all-reduce. Without it a guard under `jit` costs nothing.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose state is a `GuardState`. With `update(..., value=loss)` it also
        checks the loss. `value` and all other extra arguments reach `inner`. A rule inside that
        needs the same norm does not measure it again.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if `max_consecutive` is below 1.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> chain = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(1.0))
        >>> tx = jaxclip.skip_nonfinite(chain)
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> for grads in (jnp.array([0.6, 0.8]), jnp.array([jnp.nan, 1.0])):
        ...     updates, state = tx.update(grads, state, params)
        ...     print(updates, jaxclip.metrics(state)["skip_nonfinite/skipped_count"])
        [-0.6 -0.8] 0
        [0. 0.] 1
    """
    return guard("skip_nonfinite", inner, Judge(), max_consecutive, axis_name, check_step)


class Observed(NamedTuple):
    """The last finite norms and losses."""

    norms: Ring
    losses: Ring


def skip_spikes(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    sigma: ArrayLike = 6.0,
    window: int = 128,
    min_history: int = 64,
    min_spread: ArrayLike = 1e-3,
    max_consecutive: int | None = None,
    check_step: bool = True,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Skips a step whose gradient norm, or whose loss, is a spike.

    $$n > \mu + \max(k \sigma, s |\mu|)$$

    with the mean and the unbiased standard deviation of the last `window` norms, the current one
    excluded, and the same for the loss, if it is passed as `value=`. A skipped norm is still
    remembered, so a level that really changed is accepted after a while; the price is that a spike
    raises the limit until it has left the window. A non-finite norm or loss is always skipped and
    never remembered. A step of `inner` that is not finite is skipped as by `skip_nonfinite`.

    Args:
        inner: any Optax transformation, or an `optax.MultiSteps`.
        sigma: k, a number >= 0.
        window: the number of norms and losses in memory.
        min_history: the number of earlier ones from which on finite spikes are skipped.
        min_spread: s, the least relative spread, so that equal norms are no spikes; 0 for none.
        max_consecutive: after this many consecutive skipped updates, bad updates are applied, so a
            diverged run fails visibly; `None` for no limit.
        check_step: whether to look at the step of `inner` too. Under `jit` it is then computed
            twice, or waited for, so a small batch takes longer; on a mesh that shards the
            parameters, one more all-reduce. Without it a guard under `jit` costs nothing.
        axis_name: mesh axes that shard the leaves, where they cannot be found. The loss is averaged
            over them.

    Returns:
        A transformation whose state is a `GuardState`, with the limits as `norm_threshold` and
        `value_threshold`. `value` and all other extra arguments of `update` reach `inner`.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = jaxclip.skip_spikes(optax.sgd(1.0), window=4, min_history=2)
        >>> params = jnp.zeros(1)
        >>> state = tx.init(params)
        >>> for grad, loss in ((1.0, 0.5), (2.0, 0.4), (1.5, 90.0), (1.5, 0.3)):
        ...     updates, state = tx.update(jnp.array([grad]), state, params, value=loss)
        ...     print(updates, state.skipped)
        [-1.] False
        [-2.] False
        [0.] True
        [-1.5] False

    References:
        The `SkipStepOptimizer` of OLMo-core, which also skips norms and losses as far below the
        mean.
    """
    history = spread(sigma, window, min_history, min_spread, least=2)

    def first(dtype: Any) -> Observed:
        zero = jnp.zeros((), dtype)
        return Observed(history.empty(zero), history.empty(zero))

    def limits(memory: Observed) -> tuple[jax.Array, jax.Array]:
        return history.limit(memory.norms, 1), history.limit(memory.losses, 1)

    def learned(memory: Observed, norm: jax.Array, loss: Any) -> Observed:
        return Observed(_pushed(memory.norms, norm), _pushed(memory.losses, loss))

    return guard(
        "skip_spikes", inner, Judge(first, limits, learned), max_consecutive, axis_name, check_step
    )


def _pushed(ring: Ring, x: jax.Array | None) -> Ring:
    """The ring with one more observation, if it is given and finite."""
    return ring if x is None else ring.pushed(x.astype(ring.observations.dtype), jnp.isfinite(x))
