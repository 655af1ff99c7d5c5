"""Guards that skip steps: those that are not finite, and those above a threshold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxclip._core.types import AxisName, Limit, PyTree
from jaxclip.guards.limits import Limits, limits
from jaxclip.thresholds.base import Measured, Threshold
from jaxclip.thresholds.window import Ring, spread
from jaxclip.transforms.guard import GuardState, Judge, Seen, Verdict, guard, transformation


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
    return guard(
        "skip_nonfinite",
        transformation(inner),
        Judge(),
        axis_name,
        max_consecutive=max_consecutive,
        check_step=check_step,
    )


def skip_above(
    inner: optax.GradientTransformation | optax.MultiSteps,
    threshold: Limit | Threshold,
    *,
    loss_threshold: Limit | Threshold = None,
    max_consecutive: int | None = None,
    check_step: bool = True,
    axis_name: AxisName = None,
    name: str = "skip_above",
) -> optax.GradientTransformationExtraArgs:
    r"""Skips a step whose gradient norm, or whose loss, is above a threshold.

    | norm n of the gradient, loss l | result |
    |---|---|
    | n <= c and l <= d | the step of `inner` |
    | n > c or l > d | a zero update; the state of `inner` unchanged |
    | a NaN or inf in the gradient, the loss or the step of `inner` | the same |

    A learned threshold observes skipped norms too. So one with a window accepts a level that has
    really changed within its window; a threshold that forgets slowly takes as long as it does in a
    rule. Of losses it observes those above 0 only: `skip_spikes` observes all. One that bounds a
    spike by less than its limit, as `thresholds.zscore(max_norm=None)` does, skips the steps that
    the rule would clip, and records that bound.

    Args:
        inner: any Optax transformation, such as a whole chain with its optimizer, or an
            `optax.MultiSteps`.
        threshold: c, for the global norm of the gradient: a number >= 0, a schedule
            `count -> value` counted from 0, or an object of `jaxclip.thresholds`; `None` for no
            limit.
        loss_threshold: d, for the loss, which `update` then needs as `value=`, in the same form,
            but a number or a schedule may be negative; `None` for no limit.
        max_consecutive: after this many consecutive skipped updates, bad updates are applied, so a
            diverged run fails visibly; `None` for no limit.
        check_step: whether to look at the step of `inner` too. Under `jit` it is then computed
            twice, or waited for, so a small batch takes longer; on a mesh that shards the
            parameters, one more all-reduce. Without it a guard under `jit` costs nothing.
        axis_name: mesh axes that shard the leaves, where they cannot be found. The loss is averaged
            over them.
        name: the name of the guard in `jaxclip.metrics`.

    Returns:
        A transformation whose state is a `GuardState`, with the limits as `norm_threshold` and
        `value_threshold`. `value` and all other extra arguments of `update` reach `inner`. A rule
        inside that needs the same norm does not measure it again.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value; in `update`, if `loss_threshold` is given and
            no loss.

    Examples:
        Norms above ten times the median of the last 100 are skipped:

        >>> import jax.numpy as jnp, jaxclip, optax
        >>> threshold = jaxclip.thresholds.quantile(0.5, window=100, factor=10.0)
        >>> tx = jaxclip.skip_above(optax.sgd(1.0), threshold, loss_threshold=5.0)
        >>> params = jnp.zeros(1)
        >>> state = tx.init(params)
        >>> for grad, loss in ((1.0, 0.5), (2.0, 0.4), (90.0, 0.4), (1.5, 6.0)):
        ...     updates, state = tx.update(jnp.array([grad]), state, params, value=loss)
        ...     print(updates, state.norm_threshold, state.skipped)
        [-1.] 10.0 False
        [-2.] 15.0 False
        [0.] 20.0 True
        [0.] 17.5 True

    References:
        The `skip_and_clip_by_global_norm` of axlearn, whose learned threshold does not observe the
        norms that it skips, so that it never accepts a new level.
    """
    judge = _judge(limits(threshold, loss_threshold))
    return guard(
        name,
        transformation(inner),
        judge,
        axis_name,
        max_consecutive=max_consecutive,
        check_step=check_step,
    )


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

    It is `skip_above` with the mean and the unbiased standard deviation of the last `window` norms,
    the current one excluded, and the same for the loss, which may be passed as `value=`. A skipped
    norm is still remembered, so a level that really changed is accepted after a while; the price is
    that a spike raises the limit until it has left the window. A non-finite norm or loss is always
    skipped and never remembered. A step of `inner` that is not finite is skipped as by
    `skip_nonfinite`.

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

    def first(norms: list[jax.Array]) -> Ring:
        return history.empty(norms[0])

    def following(ring: Ring, measured: Measured) -> tuple[list[jax.Array], Ring]:
        x = measured.norms[0].astype(ring.observations.dtype)
        return [history.limit(ring, 1)], ring.pushed(x, jnp.isfinite(x))

    level = Threshold(first, following)  # of all finite numbers: a loss may be 0 or negative
    return guard(
        "skip_spikes",
        transformation(inner),
        _judge(Limits(level, level, needs_loss=False)),
        axis_name,
        max_consecutive=max_consecutive,
        check_step=check_step,
    )


def _judge(limit: Limits) -> Judge:
    """Skips steps whose norm or loss exceeds its limit."""

    def first(params: PyTree, zero: jax.Array) -> Any:
        return limit.first(zero)

    def judged(state: GuardState, seen: Seen, params: PyTree) -> Verdict:
        exceeds, found, memory = limit.compared(state.memory, seen)
        return Verdict(exceeds, exceeds, found, memory, state.guarded_state)

    return Judge(judged, first, limit.limited)
