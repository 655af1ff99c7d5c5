r"""Rules that learn their threshold from a window of norms: quantiles, mean and deviation.

`jaxclip.clip_by` states their guarantees for any gradient, `jaxclip.thresholds.Threshold` those of
`max_growth` and for norms that are not finite. For another norm, mask or axis, pass their threshold
to `jaxclip.clip_by`.
"""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core.types import AxisName, Groups, NonFinite, Scope, Stacked
from jaxclip.thresholds.quantiles import quantile
from jaxclip.thresholds.window import mean_plus_sigma
from jaxclip.transforms.clip_by import clip_by


def autoclip(
    percentile: ArrayLike = 10.0,
    *,
    window: int = 10_000,
    factor: ArrayLike = 1.0,
    max_growth: ArrayLike | None = None,
    scope: Scope = "global",
    groups: Groups = None,
    stacked: Stacked = None,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips to a percentile of the norms so far.

    $$g \leftarrow g \min\Big(1, \frac{c_t}{n_t}\Big), \qquad
      c_t = \lambda \, \mathrm{percentile}_p(n_1, \dots, n_t)$$

    of norms before clipping, the current one included.

    Args:
        percentile: p, between 0 and 100. 10 clips nine gradients of ten, as in the paper.
        window: the number of norms in memory.
        factor: lambda. `autoclip(50, window=100, factor=2.0)` clips to twice the median, as
            icefall's ScaledAdam does.
        max_growth: the largest factor by which the threshold grows in an update, 1 to 1000, in the
            warm-up too; `None` for any. Without it a threshold follows an explosion.
        scope: `"global"`, or a norm and a history for each `"group"`, `"leaf"` or `"unit"`.
        groups: the labels of the leaves at scope `"group"`, as for `jaxclip.clip_by_group_norm`.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose memory is twice `window` numbers for every norm: 80 kB by default.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.autoclip(50)
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 2.0, 30.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates)
        [1.]
        [1.5]
        [2.]

    References:
        Seetharaman, Wichern, Pardo, Le Roux, AutoClip: adaptive gradient clipping for source
        separation networks, 2020, arXiv:2007.14469.
    """
    _validate.between(percentile, 0, 100, "percentile")
    limit = quantile(percentile / 100, window=window, factor=factor, max_growth=max_growth)
    return clip_by(
        limit,
        scope=scope,
        groups=groups,
        stacked=stacked,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="autoclip",
    )


def clip_by_history(
    *,
    sigma: ArrayLike = 3.0,
    window: int = 128,
    min_history: int = 64,
    min_spread: ArrayLike = 1e-3,
    max_growth: ArrayLike | None = None,
    scope: Scope = "global",
    groups: Groups = None,
    stacked: Stacked = None,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips to the mean of the last norms plus some standard deviations.

    $$g \leftarrow g \min\Big(1, \frac{\mu + \max(k \sigma, s \mu)}{n}\Big)$$

    with mean and population standard deviation of the last `window` norms before clipping, the
    current one excluded. Last in a chain it bounds the optimizer's update instead of the gradient,
    as Levanter does.

    Args:
        sigma: k, a number >= 0.
        window: the number of norms in memory.
        min_history: the number of earlier norms from which on norms are clipped.
        min_spread: s, the least relative spread, so that equal norms are no spikes; 0 for none.
        max_growth: the largest factor by which the threshold grows in an update, 1 to 1000, in the
            warm-up too; `None` for any. Without it a threshold follows an explosion.
        scope: `"global"`, or a norm and a history for each `"group"`, `"leaf"` or `"unit"`.
        groups: the labels of the leaves at scope `"group"`, as for `jaxclip.clip_by_group_norm`.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose memory is `window` numbers for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by_history(window=4, min_history=2)
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 3.0, 100.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates)
        [1.]
        [3.]
        [5.]

    References:
        The update-norm clipping of Levanter, `clip_update_by_historical_norm`.
    """
    limit = mean_plus_sigma(
        sigma,
        window=window,
        min_history=min_history,
        min_spread=min_spread,
        max_growth=max_growth,
    )
    return clip_by(
        limit,
        scope=scope,
        groups=groups,
        stacked=stacked,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="clip_by_history",
    )
