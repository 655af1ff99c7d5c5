"""The rule with one norm for each named group of leaves: a call of `clip_by`."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from jaxclip._core.types import AxisName, Groups, LimitTree, Mask, NonFinite, Order
from jaxclip.thresholds.fixed import given
from jaxclip.transforms.clip_by import clip_by


def clip_by_group_norm(
    max_norm: LimitTree,
    groups: Groups,
    *,
    ord: Order = None,
    eps: ArrayLike = 0.0,
    nonfinite: NonFinite = "propagate",
    norm_mask: Mask = None,
    scale_mask: Mask = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each named group of leaves so that the norm of the group is at most `max_norm`.

    $$g_k \leftarrow g_k \min\Big(1, \frac{c_k}{\|g_k\|}\Big)$$

    with the norm over all leaves labelled k. One label for all leaves is `clip_by_global_norm`, a
    label for each leaf is `clip_by_norm`, and k labels are k rules in `optax.masked`, bit for bit;
    on devices all of them take one all-reduce.

    The norm and the factor of each group are recorded as `norm/<label>` and `scale/<label>`. For a
    threshold that learns, pass `scope="group"` and `groups` to `jaxclip.clip_by`.

    Args:
        max_norm: c: a number >= 0, a scalar array, a schedule or `None` for no limit; or a dict
            `{label: value}` of those.
        groups: the label of each leaf: a prefix tree of strings, or a function from the updates
            (in `init`, the parameters) to one, as `optax.partition` takes them. A leaf with the
            label `None` is neither measured nor scaled.
        ord: the norm: p >= 1 or inf; `None` is 2.
        eps: added to the norm in the quotient; 1e-6 gives `torch.nn.utils.clip_grad_norm_`, called
            for each group of parameters.
        nonfinite: the effect of a NaN or infinite norm, as for `jaxclip.clip_by`. `"propagate"`
            returns the leaves of its group unchanged, the others clipped; `"nan"` and `"zero"`
            concern all leaves with a label.
        norm_mask: the leaves that are measured, a prefix tree of bools or a function to one.
        scale_mask: the leaves that are scaled.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation.

    Raises:
        TypeError: if an argument has a wrong type, or a label is no string.
        ValueError: if an argument has a wrong value; if `max_norm` has no value for a label.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> groups = {"w": "body", "v": "head"}
        >>> rule = jaxclip.clip_by_group_norm({"body": 1.0, "head": 10.0}, groups)
        >>> grads = {"w": jnp.array([3.0, 4.0]), "v": jnp.array([3.0, 4.0])}
        >>> updates, state = rule.update(grads, rule.init(grads))
        >>> print(updates["w"], updates["v"])
        [0.6 0.8] [3. 4.]
        >>> print(jaxclip.metrics(state)["clip_by_group_norm/scale/body"])
        0.2

    References:
        Li, Wu, Chang, AGGC: adaptive group gradient clipping for stabilizing large language model
        training, 2026, arXiv:2601.11864; `torch.nn.utils.clip_grad_norm_` for each group.
    """
    return clip_by(
        given(max_norm, "max_norm", "group"),
        scope="group",
        groups=groups,
        ord=ord,
        eps=eps,
        nonfinite=nonfinite,
        norm_mask=norm_mask,
        scale_mask=scale_mask,
        axis_name=axis_name,
        name="clip_by_group_norm",
    )
