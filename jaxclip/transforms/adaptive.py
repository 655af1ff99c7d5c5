r"""The named rules that learn their threshold from moving averages of the norms.

Each is a call of the engine on a threshold of `jaxclip.thresholds`. What they guarantee for any
gradient is the table of `jaxclip.clip_by`; what they do with norms that are not finite is told at
`jaxclip.thresholds.Threshold`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import _validate as _checks
from jaxclip.thresholds import Measured, Threshold, ema_ratio, zscore
from jaxclip.transforms.clip_by import clip_by


def zclip(
    *,
    z_threshold: Any = 2.5,
    alpha: Any = 0.97,
    eps: Any = 1e-6,
    warmup_steps: Any = np.int32(25),
    max_norm: Any = 1.0,
    clip_factor: Any = 1.0,
    mode: str = "reciprocal",
    skip_update_on_spike: bool = False,
    restart_after: Any = np.int32(200),
    scope: str = "global",
    ord: Any = _checks.TWO,
    axis: Any = None,
    nonfinite: str = "propagate",
    norm_mask: Any = None,
    scale_mask: Any = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips norms that lie many standard deviations above their moving average.

    $$z = \frac{n - \mu}{\sigma + \epsilon}, \qquad
      g \leftarrow g \, \frac{e}{n + 10^{-6}} \text{ if } n > e, \qquad
      e = \min(c^* \text{ if } z > z^* \text{ else } n, c_{max})$$

    What c* is in each mode, and how the averages move, is told at `jaxclip.thresholds.zscore`. With
    `max_norm` at its published default of 1 this is `clip_by_global_norm(1.0)` with more clipping
    on spikes: where norms are larger than 1 by nature, raise it or pass `None`.

    Args:
        z_threshold: z*, the least z-score of a spike.
        alpha: the smoothing of the averages, between 0 and 1.
        eps: added to the standard deviation.
        warmup_steps: how many norms are collected first, in which only `max_norm` clips.
        max_norm: c_max, a threshold besides; `None` for none.
        clip_factor: a factor of the threshold of spikes.
        mode: `"reciprocal"`, `"max"` or `"mean"`.
        skip_update_on_spike: whether a spike leaves the averages as they are.
        restart_after: so many spikes in a row are a new scale; `None` is the published rule.
        scope: what has a norm and averages of its own: `"global"`, each `"leaf"`, each `"unit"`.
        ord: which norm, as for `jaxclip.clip_by`.
        axis: the axes that are reduced at scope `"unit"`.
        nonfinite: what a NaN or infinite norm does, as for `jaxclip.clip_by`. The published code
            takes it into the averages and never clips again.
        norm_mask: which leaves are measured, at scope `"global"`.
        scale_mask: which leaves are scaled, at scope `"global"`.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found.

    Returns:
        A transformation whose memory is four numbers for every norm.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.zclip(warmup_steps=2, max_norm=None)
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 3.0, 7.0, 100.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates)
        [1.]
        [3.]
        [3.25...]
        [2.10...]

    References:
        Kumar, Owen, Chowdhury, Guera, ZClip: adaptive spike mitigation for LLM pre-training, 2025,
        arXiv:2504.02507.
    """
    threshold = zscore(
        z_threshold=z_threshold,
        alpha=alpha,
        eps=eps,
        warmup_steps=warmup_steps,
        max_norm=max_norm,
        clip_factor=clip_factor,
        mode=mode,
        skip_update_on_spike=skip_update_on_spike,
        restart_after=restart_after,
    )
    return clip_by(
        _over_norm_plus(threshold, 1e-6),
        scope=scope,
        ord=ord,
        axis=axis,
        nonfinite=nonfinite,
        norm_mask=norm_mask,
        scale_mask=scale_mask,
        axis_name=axis_name,
        name="zclip",
    )


def _over_norm_plus(threshold: Threshold, eps: float) -> Threshold:
    """The threshold that makes g c/n, where n > c, the paper's g e/(n + eps).

    The engine's own `eps` would also scale norms that are at their threshold, as PyTorch does.
    """

    def update(memory: Any, measured: Measured) -> tuple[list[jax.Array], Any]:
        limits, memory = threshold.update(memory, measured)
        pairs = zip(limits, map(jax.lax.stop_gradient, measured.norms), strict=True)
        return [held(e, n) for e, n in pairs], memory

    def held(e: jax.Array, n: jax.Array) -> jax.Array:
        over = n > e
        return jnp.where(over, e / (1 + eps / jnp.where(over, n, 1)), e)

    return Threshold(threshold.init, update)


def adagc(
    *,
    max_ratio: Any = 1.05,
    beta: Any = 0.98,
    warmup_steps: Any = np.int32(100),
    warmup_norm: Any = 1.0,
    floor: Any = 1e-8,
    scope: str = "leaf",
    ord: Any = _checks.TWO,
    axis: Any = None,
    eps: Any = 0.0,
    nonfinite: str = "propagate",
    norm_mask: Any = None,
    scale_mask: Any = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each leaf to a multiple of the moving average of its clipped norms.

    $$g_k \leftarrow h_k g_k, \qquad
      h_k = \min\Big(\lambda \frac{\gamma_k}{\|g_k\|}, 1\Big), \qquad
      \gamma_k \leftarrow \beta \gamma_k + (1 - \beta) \|h_k g_k\|$$

    and in the first `warmup_steps` updates $h = \min(c_0 / \|g\|, 1)$ for all leaves together, with
    $\gamma_k$ the least clipped norm so far. See `jaxclip.thresholds.ema_ratio` for how fast
    $\gamma_k$ can grow.

    Args:
        max_ratio: lambda.
        beta: the smoothing of the average, between 0 and 1.
        warmup_steps: how many updates the warm-up has.
        warmup_norm: c_0.
        floor: the least that gamma may be. A leaf without any gradient in the warm-up stays in it
            until it has one, and so is not frozen.
        scope: what has a norm and an average of its own: each `"leaf"`, as in the paper, each
            `"unit"`, or `"global"`.
        ord: which norm, as for `jaxclip.clip_by`.
        axis: the axes that are reduced at scope `"unit"`.
        eps: added to the norm in the quotient.
        nonfinite: what a NaN or infinite norm does, as for `jaxclip.clip_by`.
        norm_mask: which leaves are measured, at scope `"global"`.
        scale_mask: which leaves are scaled, at scope `"global"`.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found.

    Returns:
        A transformation whose memory is one number for every norm.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument has a wrong value.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.adagc(warmup_steps=1)
        >>> state = rule.init({"w": jnp.zeros(1), "b": jnp.zeros(1)})
        >>> for w, b in ((0.3, 0.4), (0.3, 40.0)):
        ...     grads = {"w": jnp.array([w]), "b": jnp.array([b])}
        ...     updates, state = rule.update(grads, state)
        ...     print(updates["w"], updates["b"])
        [0.3] [0.4]
        [0.3] [0.42]

    References:
        Wang et al., AdaGC: improving training stability for large language model pretraining, 2025,
        arXiv:2502.11034.
    """
    threshold = ema_ratio(
        max_ratio=max_ratio,
        beta=beta,
        warmup_steps=warmup_steps,
        warmup_norm=warmup_norm,
        floor=floor,
    )
    return clip_by(
        threshold,
        scope=scope,
        ord=ord,
        axis=axis,
        eps=eps,
        nonfinite=nonfinite,
        norm_mask=norm_mask,
        scale_mask=scale_mask,
        axis_name=axis_name,
        name="adagc",
    )
