r"""StableAdamW's update clipping: Adam, with a smaller step where a gradient was not expected.

It needs Adam's second moment, and so is an optimizer's scaling and not a rule on gradients.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import _checks, _engine, _state, _trees, norms
from jaxclip._state import ClipState


def scale_by_stable_adam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    threshold: Any = 1.0,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with update clipping, in place of `optax.scale_by_adam`.

    $$u_k \leftarrow \frac{\mathrm{adam}(g)_k}{\max(1, \mathrm{rms}_k)}, \qquad
      \mathrm{rms}_k = \sqrt{\mathrm{mean}\Big(\frac{g_k^2}{\max(\hat v_k, \epsilon^2)}\Big)}$$

    for every leaf k, with Adam's bias-corrected second moment $\hat v$, the current gradient
    included. Where gradients grow faster than $\hat v$ can follow, Adam's own step is too long;
    this shortens it by as much. It is not `clip_by_block_rms` after Adam, which looks at the step.

    Args:
        b1: the smoothing of the first moment.
        b2: the smoothing of the second moment. The paper recommends less than 0.999 for large
            batches, where spikes matter.
        eps: added to the root of the second moment, and the least that counts for it above.
        eps_root: added to the second moment under the root.
        mu_dtype: the dtype of the first moment; `None` for that of the parameters.
        nesterov: whether to use Nesterov momentum.
        threshold: how large rms_k may be: a number >= 0, a schedule, or a prefix tree of those.
        axis_name: mesh axes over which the leaves are sharded, where that cannot be found.

    Returns:
        A transformation whose state is a `ClipState` with `optax.ScaleByAdamState` as its memory;
        `norm` is the largest rms_k. Follow it by weight decay and the learning rate, as in
        `optax.chain(scale_by_stable_adam(), optax.add_decayed_weights(0.1), optax.scale(-1e-3))`.

    Raises:
        TypeError: if an argument is of a wrong type.
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
    _checks.threshold_tree(threshold, "threshold", scalar=True)
    adam: Any = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    mesh = _checks.mesh_axes(axis_name)
    rule: Any = _engine.clip_by(threshold, scope="leaf", axis_name=axis_name)

    def init(params: Any) -> ClipState:
        return _state.first("scale_by_stable_adam", adam.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ClipState]:
        del extra_args
        moments: Any
        steps, moments = adam.update(updates, state.memory, params)
        held = -jnp.expm1(moments.count.astype(jnp.float32) * _log(b2))  # 1 - b2^t

        def surprise(g: jax.Array, v: jax.Array) -> jax.Array:
            wide = jnp.promote_types(v.dtype, jnp.float32)
            expected = jnp.sqrt(v.astype(wide) / held.astype(wide))
            return jnp.abs(g).astype(wide) / jnp.maximum(expected, jnp.asarray(eps, wide))

        flat = _trees.flatten(jax.tree.map(surprise, updates, moments.nu))
        found = [n.number for n in norms.measure(flat, "leaf", "rms", None, mesh)]
        steps, seen = rule.update(
            steps, state._replace(memory=()), params, norm=flat.rebuild(found)
        )
        return steps, seen._replace(memory=moments)

    return optax.GradientTransformationExtraArgs(init, update)


def _log(b2: Any) -> jax.Array:
    """The logarithm of b2, with all digits where b2 is a Python number close to 1."""
    if _checks.is_known_number(b2):
        return jnp.asarray(math.log(b2) if b2 > 0 else -math.inf, jnp.float32)
    return jnp.log(jnp.asarray(b2).astype(jnp.float32))
