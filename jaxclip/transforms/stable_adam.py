r"""StableAdamW's update clipping: Adam, with a smaller step where a gradient was not expected.

It needs Adam's second moment, and so is an optimizer's scaling and not a rule on gradients.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate as _checks
from jaxclip._core import flat_tree as _trees
from jaxclip._core import state as _state
from jaxclip._core.state import ClipState
from jaxclip._numerics import collectives as _mesh
from jaxclip._numerics import scaled_float as _wide
from jaxclip.transforms import clip_by as _engine


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
    this shortens it by as much. The bad gradient still enters the first moment, and moves the steps
    that follow: against bad batches take a rule or a guard as well. It is not `clip_by_block_rms`
    after Adam, which looks at the step.

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
    name = "scale_by_stable_adam"
    rule: Any = _engine.clip_by(threshold, scope="leaf", axis_name=axis_name, name=name)

    def init(params: Any) -> ClipState:
        return _state.first(name, adam.init(_floating(params)))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ClipState]:
        del extra_args
        state = _state.checked(state, init, updates)
        moments: Any
        flat = _trees.flatten(updates)
        weights = None if params is None else _floating(params)
        steps, moments = adam.update(_floating(updates), state.memory, weights)
        second = jax.tree.leaves(moments.nu)
        found = []
        for i, (g, v) in enumerate(zip(flat.arrays, second, strict=True)):
            wide = _wide.accumulator(v)
            expected = _second_moment(v.astype(wide), moments.count, b2)
            axes = _mesh.sharded_axes(g, mesh, flat.at(i))
            found.append(_surprise(g, expected, jnp.asarray(eps).astype(wide), axes))
        steps, norm = flat.rebuild(jax.tree.leaves(steps)), flat.rebuild(found)
        steps, seen = rule.update(steps, state._replace(memory=()), params, norm=norm)
        return steps, seen._replace(memory=moments)

    return optax.GradientTransformationExtraArgs(init, update)


def _floating(tree: Any) -> Any:
    """The tree with nothing where a leaf is not floating: of integers Adam would make floats."""
    return jax.tree.map(lambda x: x if _trees.is_inexact(x) else optax.MaskedNode(), tree)


def _second_moment(v: jax.Array, count: jax.Array, b2: Any) -> jax.Array:
    """`v / (1 - b2^t)`, with all digits where b2 is a Python number close to 1."""
    if _checks.is_known_number(b2):
        log = jnp.asarray(math.log(b2) if b2 > 0 else -math.inf, v.dtype)
    else:
        log = jnp.log(jnp.asarray(b2).astype(v.dtype))
    return v / -jnp.expm1(count.astype(v.dtype) * log)


def _surprise(g: jax.Array, expected: jax.Array, eps: jax.Array, axes: Any) -> jax.Array:
    """The root mean square of g over what Adam expects of it.

    No square overflows here, since (1 - b2) g^2 is expected at least: a plain sum will do.
    """
    ratio = jnp.abs(g).astype(expected.dtype) / jnp.maximum(_root(expected), eps)
    total = _mesh.sum_over([jnp.sum(ratio * ratio)], [axes])
    return _root(total / float(max(g.size * _mesh.shards(axes), 1)))


def _root(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0."""
    return jnp.where(x == 0, x, jnp.sqrt(jnp.where(x == 0, jnp.ones_like(x), x)))
