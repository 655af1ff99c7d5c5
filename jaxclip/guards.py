r"""Guards: transformations around others that leave a bad step out.

A rule makes a large gradient smaller; a guard does not let it in. Where a step is skipped the
update is zero and the state of everything inside, momentum and step counts included, stays as it
was. How that is done is in `_guard`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.thresholds import window as _history
from jaxclip.thresholds.window import Ring
from jaxclip.transforms.guard import GuardState as GuardState
from jaxclip.transforms.guard import Judge, guard

__all__ = ["GuardState", "skip_nonfinite", "skip_spikes"]


def skip_nonfinite(
    inner: Any, *, max_consecutive: int | None = None, axis_name: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Skips a step whose update, or whose loss, is not finite.

    | update and `value` | result |
    |---|---|
    | all finite | as `inner` alone, bit for bit |
    | a NaN or inf anywhere | a zero update; the state of `inner` as it was |
    | the same, after `max_consecutive` in a row | as `inner` alone: the run fails visibly |

    Inside `shard_map` one bad shard skips the step on every device.

    Around `optax.MultiSteps` it leaves a single bad micro-step out, and the accumulation goes on;
    inside it cannot, since the accumulated gradients are NaN by then.

    Args:
        inner: any optax transformation, a whole chain with its optimizer for instance, or an
            `optax.MultiSteps`.
        max_consecutive: how many bad updates in a row are skipped; `None` for any number.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found.

    Returns:
        A transformation whose state is a `GuardState`. `update(..., value=loss)` has it look at the
        loss too; `norm=` takes the 2-norm of the update if it is known. Both, and all other extra
        arguments, reach `inner`. A rule inside that needs the same norm does not measure it again.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if `max_consecutive` is below 1.

    Example:
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
    judge = Judge(lambda dtype: (), lambda memory: (None, None), lambda memory, norm, value: memory)
    return guard("skip_nonfinite", inner, judge, max_consecutive, axis_name)


class Observed(NamedTuple):
    """The last finite norms and losses."""

    norms: Ring
    values: Ring


def skip_spikes(
    inner: Any,
    *,
    sigma: Any = 6.0,
    window: Any = np.int32(128),
    min_history: Any = np.int32(64),
    max_consecutive: int | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Skips a step whose gradient norm, or whose loss, is a spike.

    $$n > \mu + k \sigma$$

    with the mean and the unbiased standard deviation of the last `window` norms, the current one
    excluded, and the same for the loss, if it is passed as `value=`. A skipped norm is remembered
    nevertheless, so that a level that really changed is accepted after a while; the price is that a
    spike raises the threshold for the next one, until it has left the window. A non-finite norm or
    loss is always skipped and never remembered.

    Args:
        inner: any optax transformation, or an `optax.MultiSteps`.
        sigma: k, a number >= 0.
        window: how many of the last norms and losses are remembered.
        min_history: how many there must be before anything finite is skipped.
        max_consecutive: how many bad updates in a row are skipped; `None` for any number.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found. Devices
            that differ in the loss take its mean over these.

    Returns:
        A transformation whose state is a `GuardState`, with what the norm and the loss were held
        against as `norm_threshold` and `value_threshold`. `update` takes `value=` and `norm=` and
        passes them and all other extra arguments on, as for `skip_nonfinite`.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
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
    size, need = _history.check(sigma, window, min_history, least=2)

    def first(dtype: Any) -> Observed:
        zero = jnp.zeros((), dtype)
        return Observed(_history.empty(size, zero), _history.empty(size, zero))

    def limits(memory: Observed) -> tuple[jax.Array, jax.Array]:
        one, other = (_history.limit(ring, sigma, need, correction=1) for ring in memory)
        return one, other

    def learned(memory: Observed, norm: jax.Array, value: Any) -> Observed:
        seen = memory.norms.pushed(norm.astype(memory.norms.values.dtype), jnp.isfinite(norm))
        if value is None:
            return memory._replace(norms=seen)
        loss = value.astype(memory.values.values.dtype)
        return Observed(seen, memory.values.pushed(loss, jnp.isfinite(loss)))

    judge = Judge(first, limits, learned)
    return guard("skip_spikes", inner, judge, max_consecutive, axis_name)
