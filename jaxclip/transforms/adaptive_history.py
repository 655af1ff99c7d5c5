r"""The named rules that learn their threshold from a window of the last norms.

Each is a call of the engine on a threshold of `jaxclip.thresholds`. What they guarantee for any
gradient is the table of `jaxclip.clip_by`; what they do with norms that are not finite is told at
`jaxclip.thresholds.Threshold`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from jaxclip import _validate as _checks
from jaxclip.thresholds import mean_plus_sigma, quantile
from jaxclip.transforms.clip_by import clip_by


def autoclip(
    percentile: Any = 10.0,
    *,
    window: Any = np.int32(10_000),
    factor: Any = 1.0,
    scope: str = "global",
    ord: Any = _checks.TWO,
    axis: Any = None,
    eps: Any = 0.0,
    nonfinite: str = "propagate",
    norm_mask: Any = None,
    scale_mask: Any = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips to a percentile of the norms seen so far.

    $$g \leftarrow g \min\Big(1, \frac{c_t}{n_t}\Big), \qquad
      c_t = \lambda \, \mathrm{percentile}_p(n_1, \dots, n_t)$$

    The current norm is among them, and it is norms before clipping that are remembered.

    Args:
        percentile: p, between 0 and 100. 10 clips nine gradients of ten, as in the paper.
        window: how many of the last norms are remembered.
        factor: lambda. `autoclip(50, window=100, factor=2.0)` clips to twice the median, as
            icefall's ScaledAdam does.
        scope: what has a norm and a history of its own: `"global"`, each `"leaf"`, each `"unit"`.
        ord: which norm, as for `jaxclip.clip_by`.
        axis: the axes that are reduced at scope `"unit"`.
        eps: added to the norm in the quotient.
        nonfinite: what a NaN or infinite norm does, as for `jaxclip.clip_by`.
        norm_mask: which leaves are measured, at scope `"global"`.
        scale_mask: which leaves are scaled, at scope `"global"`.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found.

    Returns:
        A transformation whose memory is twice `window` numbers for every norm.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
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
    _checks.between(0, 100, percentile=percentile)
    return clip_by(
        quantile(percentile / 100, window=window, factor=factor),
        scope=scope,
        ord=ord,
        axis=axis,
        eps=eps,
        nonfinite=nonfinite,
        norm_mask=norm_mask,
        scale_mask=scale_mask,
        axis_name=axis_name,
        name="autoclip",
    )


def clip_by_history(
    *,
    sigma: Any = 3.0,
    window: Any = np.int32(128),
    min_history: Any = np.int32(64),
    scope: str = "global",
    ord: Any = _checks.TWO,
    axis: Any = None,
    eps: Any = 0.0,
    nonfinite: str = "propagate",
    norm_mask: Any = None,
    scale_mask: Any = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips to the mean of the last norms plus some standard deviations.

    $$g \leftarrow g \min\Big(1, \frac{\mu + k \sigma}{n}\Big)$$

    with mean and population standard deviation of the last `window` norms before clipping, the
    current one excluded. Last in a chain, it bounds the optimizer's update instead of the gradient,
    which is where Levanter has it.

    Args:
        sigma: k, a number >= 0.
        window: how many of the last norms are remembered.
        min_history: how many there must be before anything is clipped.
        scope: what has a norm and a history of its own: `"global"`, each `"leaf"`, each `"unit"`.
        ord: which norm, as for `jaxclip.clip_by`.
        axis: the axes that are reduced at scope `"unit"`.
        eps: added to the norm in the quotient.
        nonfinite: what a NaN or infinite norm does, as for `jaxclip.clip_by`.
        norm_mask: which leaves are measured, at scope `"global"`.
        scale_mask: which leaves are scaled, at scope `"global"`.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found.

    Returns:
        A transformation whose memory is `window` numbers for every norm.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
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
    return clip_by(
        mean_plus_sigma(sigma, window=window, min_history=min_history),
        scope=scope,
        ord=ord,
        axis=axis,
        eps=eps,
        nonfinite=nonfinite,
        norm_mask=norm_mask,
        scale_mask=scale_mask,
        axis_name=axis_name,
        name="clip_by_history",
    )
