r"""Rules that learn their threshold from moving averages: a z-score, a ratio to the average.

Their guarantees are those of the rules in `windows`.
"""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from jaxclip._core.types import AxisName, Groups, Mode, NonFinite, Scope, Stacked
from jaxclip.thresholds.base import over_norm_plus
from jaxclip.thresholds.moving_average import zscore
from jaxclip.thresholds.ratio import ema_ratio, growth
from jaxclip.transforms.clip_by import clip_by


def zclip(
    *,
    z_threshold: ArrayLike = 2.5,
    alpha: ArrayLike = 0.97,
    eps: ArrayLike = 1e-6,
    warmup_steps: int = 25,
    max_norm: ArrayLike | None = 1.0,
    clip_factor: ArrayLike = 1.0,
    mode: Mode = "reciprocal",
    skip_update_on_spike: bool = False,
    restart_after: int | None = 200,
    min_spread: ArrayLike = 1e-3,
    max_growth: ArrayLike | None = None,
    scope: Scope = "global",
    groups: Groups = None,
    stacked: Stacked = None,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips norms that lie many standard deviations above their moving average.

    $$z = \frac{n - \mu}{\sigma + \epsilon}, \qquad
      g \leftarrow g \, \frac{e}{n + 10^{-6}} \text{ if } n > e, \qquad
      e = \min(c^* \text{ if } z > z^* \text{ else } n, c_{max})$$

    See `jaxclip.thresholds.zscore` for c* in each mode, and for the averages. With `max_norm` at
    its published default of 1 this is `clip_by_global_norm(1.0)` that clips spikes further: where
    norms are larger than 1 by nature, raise it or pass `None`.

    Args:
        z_threshold: z*, the least z-score of a spike.
        alpha: the smoothing of the averages, between 0 and 1.
        eps: added to the standard deviation.
        warmup_steps: the number of norms that are collected first, while only `max_norm` clips.
        max_norm: c_max, a second threshold; `None` for none.
        clip_factor: a factor of the threshold of spikes.
        mode: `"reciprocal"`, `"max"` or `"mean"`.
        skip_update_on_spike: whether a spike leaves the averages unchanged.
        restart_after: after this many consecutive spikes, restart the warm-up; `None` is the
            published rule.
        min_spread: the least relative spread, so that equal norms are no spikes; 0 for none.
        max_growth: the largest factor by which the threshold grows in an update, 1 to 1000, in the
            warm-up too; `None` for any. Without it a threshold follows an explosion.
        scope: `"global"`, or a norm and averages for each `"group"`, `"leaf"` or `"unit"`.
        groups: the labels of the leaves at scope `"group"`, as for `jaxclip.clip_by_group_norm`.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`. The published
            code adds it to the averages and never clips again.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose memory is four numbers for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
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
    limit = zscore(
        z_threshold=z_threshold,
        alpha=alpha,
        eps=eps,
        warmup_steps=warmup_steps,
        max_norm=max_norm,
        clip_factor=clip_factor,
        mode=mode,
        skip_update_on_spike=skip_update_on_spike,
        restart_after=restart_after,
        min_spread=min_spread,
        max_growth=max_growth,
    )
    return clip_by(
        over_norm_plus(limit, 1e-6),
        scope=scope,
        groups=groups,
        stacked=stacked,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="zclip",
    )


def adagc(
    *,
    max_ratio: ArrayLike = 1.05,
    beta: ArrayLike = 0.98,
    warmup_steps: int = 100,
    warmup_norm: ArrayLike = 1.0,
    floor: ArrayLike = 1e-8,
    max_growth: ArrayLike | None = None,
    scope: Scope = "leaf",
    groups: Groups = None,
    stacked: Stacked = None,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each leaf to a multiple of the moving average of its clipped norms.

    $$g_k \leftarrow h_k g_k, \qquad
      h_k = \min\Big(\lambda \frac{\gamma_k}{\|g_k\|}, 1\Big), \qquad
      \gamma_k \leftarrow \beta \gamma_k + (1 - \beta) \|h_k g_k\|$$

    In the first `warmup_steps` updates $h = \min(c_0 / \|g\|, 1)$ for all leaves together, and
    $\gamma_k$ is the smallest clipped norm so far. See `jaxclip.thresholds.ema_ratio` for the
    growth of $\gamma_k$.

    Args:
        max_ratio: lambda.
        beta: the smoothing of the average, between 0 and 1.
        warmup_steps: the number of updates of the warm-up.
        warmup_norm: c_0.
        floor: lower bound on gamma. A leaf without any gradient in the warm-up stays in it until it
            has one, and so is not frozen.
        max_growth: the largest factor by which the threshold grows in an update, 1 to 1000, in the
            warm-up too; `None` for any. Without it a threshold follows an explosion.
        scope: a norm and an average for each `"leaf"`, as in the paper, or each `"unit"` or
            `"group"`, or `"global"`.
        groups: the labels of the leaves at scope `"group"`, as for `jaxclip.clip_by_group_norm`.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose memory is one number for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
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
    limit = ema_ratio(
        max_ratio=max_ratio,
        beta=beta,
        warmup_steps=warmup_steps,
        warmup_norm=warmup_norm,
        floor=floor,
        max_growth=max_growth,
    )
    return clip_by(
        limit,
        scope=scope,
        groups=groups,
        stacked=stacked,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="adagc",
    )


def clip_by_growth(
    max_growth: ArrayLike = 1.01,
    *,
    floor: ArrayLike = 1e-8,
    scope: Scope = "leaf",
    groups: Groups = None,
    stacked: Stacked = None,
    nonfinite: NonFinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each leaf to a multiple of its last clipped norm: the norm-growth limiter.

    $$g_k \leftarrow g_k \min\Big(1, \frac{\lambda n'_k}{\|g_k\|}\Big)$$

    with the norm n' that the leaf had after the update before. Norms may fall at once and rise by
    1 % a step: a norm that really grows by a factor f is reached in $100 \ln f$ updates, and after
    one small gradient the next ones are clipped for a while. The first norm is left as it is.

    This is `adagc` without smoothing and without its warm-up.

    Args:
        max_growth: lambda, between 1 and 1000.
        floor: lower bound on the last norm, so that a leaf with a tiny gradient can grow. A leaf
            without any gradient keeps its last norm.
        scope: a norm for each `"leaf"`, as in the papers, or each `"unit"` or `"group"`, or
            `"global"`.
        groups: the labels of the leaves at scope `"group"`, as for `jaxclip.clip_by_group_norm`.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose memory is one number for every norm.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> rule = jaxclip.clip_by_growth()
        >>> state = rule.init(jnp.zeros(1))
        >>> for grad in (1.0, 50.0, 50.0, 0.5, 50.0):
        ...     updates, state = rule.update(jnp.array([grad]), state)
        ...     print(updates)
        [1.]
        [1.01]
        [1.0201]
        [0.5]
        [0.505]

    References:
        Chen et al., Fira: can we achieve full-rank training of LLMs under low-rank constraint?,
        2024, arXiv:2410.01623; Zhu et al., APOLLO: SGD-like memory, AdamW-level performance, 2024,
        arXiv:2412.05270.
    """
    return clip_by(
        growth(max_growth, floor),
        scope=scope,
        groups=groups,
        stacked=stacked,
        nonfinite=nonfinite,
        axis_name=axis_name,
        name="clip_by_growth",
    )
