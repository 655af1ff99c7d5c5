r"""StableAdamW's update clipping: Adam with a smaller step after an unexpected gradient.

It needs Adam's second moment, so it is an optimizer's scaling and not a rule on gradients.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from jaxclip import _validate
from jaxclip._core import record as records
from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat, is_inexact
from jaxclip._core.measure import measure
from jaxclip._core.state import ClipState
from jaxclip._numerics.scaled_float import accumulator, apply, clipped
from jaxclip._types import AxisName, LimitTree, PyTree
from jaxclip.thresholds.fixed import given
from jaxclip.transforms.clip_by import measured


def scale_by_stable_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    threshold: LimitTree = 1.0,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with update clipping, in place of `optax.scale_by_adam`.

    $$u_k \leftarrow \frac{\mathrm{adam}(g)_k}{\max(1, \mathrm{rms}_k)}, \qquad
      \mathrm{rms}_k = \sqrt{\mathrm{mean}\Big(\frac{g_k^2}{\max(\hat v_k, \epsilon^2)}\Big)}$$

    for every leaf k, with Adam's bias-corrected second moment $\hat v$, the current gradient
    included. Where gradients grow faster than $\hat v$ follows, Adam's step is too long, and this
    shortens it by as much. The bad gradient still enters the first moment and moves later steps:
    add a rule or a guard against bad batches. It is not `clip_by_block_rms` after Adam, which
    measures the step.

    Args:
        b1: the smoothing of the first moment.
        b2: the smoothing of the second moment. The paper recommends less than 0.999 for large
            batches, where spikes matter.
        eps: added to the root of the second moment, and its lower bound in rms_k.
        eps_root: added to the second moment under the root.
        mu_dtype: the dtype of the first moment; `None` for that of the parameters.
        nesterov: whether to use Nesterov momentum.
        threshold: the largest rms_k: a number >= 0, a schedule, or a prefix tree of those.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose state is a `ClipState` with `optax.ScaleByAdamState` as its memory;
        `norm` is the largest rms_k. Follow it by weight decay and the learning rate, as in
        `optax.chain(scale_by_stable_adam(), optax.add_decayed_weights(0.1), optax.scale(-1e-3))`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if `threshold` is negative or NaN.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> tx = jaxclip.scale_by_stable_adam(b1=0.0, b2=0.9)
        >>> params = jnp.zeros(1)
        >>> state = tx.init(params)
        >>> for grad in (1.0, 1.0, 10.0):
        ...     updates, state = tx.update(jnp.array([grad]), state, params)
        ...     print(updates.round(3), state.norm.round(3))
        [1.] 1.0
        [1.] 1.0
        [1.] 1.63...

    References:
        Wortsman et al., Stable and low-precision training for large-scale vision-language models,
        2023, arXiv:2304.13013.
    """
    limit = given(threshold, "threshold", "leaf")
    adam: Any = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    rule = measure("leaf", "rms", axis_name=axis_name)
    name = "scale_by_stable_adam"

    def first(params: PyTree) -> ClipState:
        return states.first(name, adam.init(_floating(params)))

    def step(flat: Flat, state: ClipState, params: PyTree) -> tuple[PyTree, ClipState]:
        weights = None if params is None else _floating(params)
        steps, moments = adam.update(_floating(flat.tree), state.memory, weights)
        ratios = [
            _ratio(g, _second_moment(v.astype(accumulator(v)), moments.count, b2), eps)
            for g, v in zip(flat.arrays, jax.tree.leaves(moments.nu), strict=True)
        ]
        norms = rule.norms(flat._replace(arrays=ratios))
        numbers = [n.number for n in norms]
        limits, _ = limit.update((), measured(rule, flat, numbers, state.update_count, params))
        scales = [clipped(*trio) for trio in zip(norms, numbers, limits, strict=True)]
        pairs = zip(jax.tree.leaves(steps), scales, strict=True)
        seen = records.of_norms(norms, limits, scales, [s.over for s in scales])
        arrays = [apply(step, scale) for step, scale in pairs]
        return flat.rebuild(arrays), states.following(state, seen, moments)

    return states.transformation(first, states.named(ClipState, name), step)


def _floating(tree: PyTree) -> PyTree:
    """The floating leaves only: Adam would turn integers into floats."""
    return jax.tree.map(lambda x: x if is_inexact(x) else optax.MaskedNode(), tree)


def _second_moment(v: jax.Array, count: jax.Array, b2: Any) -> jax.Array:
    """`v / (1 - b2^t)`, with all digits where b2 is a Python number close to 1."""
    if _validate.is_known_number(b2):
        log = jnp.asarray(math.log(b2) if b2 > 0 else -math.inf, v.dtype)
    else:
        log = jnp.log(jnp.asarray(b2).astype(v.dtype))
    return v / -jnp.expm1(count.astype(v.dtype) * log)


def _ratio(g: jax.Array, v: jax.Array, eps: Any) -> jax.Array:
    """|g| / max(sqrt(v), eps); the derivative of the root at 0 is 0."""
    root = jnp.where(v == 0, v, jnp.sqrt(jnp.where(v == 0, jnp.ones_like(v), v)))
    return jnp.abs(g).astype(v.dtype) / jnp.maximum(root, jnp.asarray(eps).astype(v.dtype))
