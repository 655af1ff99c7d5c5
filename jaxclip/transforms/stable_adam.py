r"""StableAdamW's update clipping: Adam with a smaller step after an unexpected gradient.

It needs Adam's second moment, so it is an optimizer's scaling and not a rule on gradients.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from jaxclip import _validate
from jaxclip._core import record as records
from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat, flatten, is_inexact
from jaxclip._core.measure import measure
from jaxclip._core.state import ClipState
from jaxclip._core.types import AxisName, LimitTree, PyTree, Stacked
from jaxclip._numerics.scaled_float import (
    accumulator,
    apply,
    clipped,
    in_unit,
    power_of_two_near,
    times,
    widened,
)
from jaxclip._validate import short
from jaxclip.thresholds.fixed import given
from jaxclip.transforms.clip_by import measured


class AdamMoments(NamedTuple):
    """Adam's moments without bias correction, each a tree like the parameters.

    Attributes:
        first_moment: m, the moving average of the gradients; in the dtype `mu_dtype`.
        root_second_moment: the root of v, the moving average of their squares; float32, or float64
            for float64 parameters. The squares themselves could overflow or underflow.
    """

    first_moment: PyTree
    root_second_moment: PyTree


def scale_by_stable_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    threshold: LimitTree = 1.0,
    stacked: Stacked = None,
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

    Moments are at least float32, and of the dtypes that `init` chose, whatever the dtype of a
    gradient; a step has the dtype of its gradient. Instead of the second moment the state holds its
    root, which is in range for every gradient: where squares overflow or underflow, at 300 in
    float16 or at 1e20 and 1e-30 in float32, the step is as if computed in float64. An element
    without any gradient has the step 0, with `eps=0` too.

    Args:
        b1: the smoothing of the first moment.
        b2: the smoothing of the second moment. The paper recommends less than 0.999 for large
            batches, where spikes matter.
        eps: added to the root of the second moment, and its lower bound in rms_k.
        eps_root: added to the second moment under the root.
        mu_dtype: the dtype of the first moment; `None` for float32, or float64 for float64
            parameters. `bfloat16` has the range of float32; `float16` ends at 65504.
        nesterov: whether to use Nesterov momentum.
        threshold: the largest rms_k: a number >= 0, a schedule, or a prefix tree of those.
        stacked: the axis along which leaves stack layers, or a function, as for `jaxclip.clip_by`.
        axis_name: mesh axes that shard the leaves, where they cannot be found.

    Returns:
        A transformation whose state is a `ClipState`; `norm` is the largest rms_k, and the fields
        of `memory` are `first_moment` and `root_second_moment`, trees like the parameters. Follow
        it by weight decay and the learning rate, as in
        `optax.chain(scale_by_stable_adam(), optax.add_decayed_weights(0.1), optax.scale(-1e-3))`.

    Raises:
        TypeError, ValueError: if an argument has a wrong type or value.

    Examples:
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
    for key, value in (("b1", b1), ("b2", b2)):
        _validate.between(value, 0, 1, key)
        if _is_known(value, 1):
            raise ValueError(f"{key}={value!r} must be below 1: the average would never move")
    _validate.real_number(eps, "eps", finite=True)
    _validate.real_number(eps_root, "eps_root", finite=True)
    _validate.flag(nesterov, "nesterov")
    stored = _moment_dtype(mu_dtype)
    rule = measure("leaf", "rms", axis_name=axis_name, stacked=stacked)
    limit = given(threshold, "threshold", "leaf" if stacked is None else None)
    adam = _Adam(b1, b2, eps, None if _is_known(eps_root, 0) else eps_root, nesterov)
    name = "scale_by_stable_adam"

    def first(params: PyTree) -> ClipState:
        flat = flatten(params)
        tree = _floating(flat.rebuild(flat.arrays))
        first_moment = jax.tree.map(lambda x: _zeros(x, stored), tree)
        root = jax.tree.map(lambda x: jnp.zeros_like(x, accumulator(x)), tree)
        return states.first(name, AdamMoments(first_moment, root))

    def step(flat: Flat, state: ClipState, params: PyTree) -> tuple[PyTree, ClipState]:
        means, form = jax.tree.flatten(state.memory.first_moment)
        roots = jax.tree.leaves(state.memory.root_second_moment)
        t = states.increased(state.update_count)
        trios = zip(flat.arrays, means, roots, strict=True)
        leaves = [adam.step(g, mean, root, t) for g, mean, root in trios]
        norms, table = rule.tabled(flat._replace(arrays=[leaf.ratio for leaf in leaves]))
        numbers = table.map(lambda norm: norm.number, norms)
        norm_input = measured(rule, flat, numbers, table, state.update_count, params)
        limits, _ = limit.update((), norm_input)
        scales = table.map(clipped, norms, numbers, limits)
        trios = zip(flat.arrays, leaves, scales, strict=True)
        arrays = [apply(leaf.step, scale.factors).astype(g.dtype) for g, leaf, scale in trios]
        seen = records.of_scales(norms, limits, scales)
        memory = AdamMoments(
            form.unflatten([leaf.mean for leaf in leaves]),
            form.unflatten([leaf.root for leaf in leaves]),
        )
        return flat.rebuild(arrays), states.following(state, seen, memory)

    return states.transformation(first, states.named(ClipState, name), step)


def _floating(tree: PyTree) -> PyTree:
    """The floating leaves only: integers have no moments."""
    return jax.tree.map(lambda x: x if is_inexact(x) else optax.MaskedNode(), tree)


def _moment_dtype(mu_dtype: DTypeLike | None) -> Any:
    """The dtype of the first moment, if it is given."""
    dtype = None if mu_dtype is None else jax.dtypes.canonicalize_dtype(mu_dtype)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"mu_dtype={short(mu_dtype)} must be a real floating-point dtype")
    return dtype


def _zeros(x: jax.Array, dtype: Any) -> jax.Array:
    """Zeros like `x`, complex where it is, of a given precision or of at least float32."""
    dtype = accumulator(x) if dtype is None else dtype
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        dtype = jnp.complex128 if dtype == jnp.float64 else jnp.complex64
    return jnp.zeros_like(x, dtype)


class _Leaf(NamedTuple):
    """The next moments of one leaf, Adam's step, and |g| / max(sqrt(v), eps)."""

    mean: jax.Array
    root: jax.Array
    step: jax.Array
    ratio: jax.Array


class _Adam(NamedTuple):
    """The arguments of Adam, validated; no `eps_root` for a known 0."""

    b1: ArrayLike
    b2: ArrayLike
    eps: ArrayLike
    eps_root: ArrayLike | None
    nesterov: bool

    def step(self, g: jax.Array, mean: jax.Array, root: jax.Array, t: jax.Array) -> _Leaf:
        """One update of one leaf, in the widest dtype among its gradient and its moments."""
        wide = accumulator(g, mean, root)
        new, time = widened(g, wide), t.astype(wide)
        first = _average(widened(mean, wide), new, self.b1)
        second = _root_mean_square(root.astype(wide), new, self.b2)
        # Written once and read twice, instead of computed three times.
        first, second = jax.lax.optimization_barrier((first, second))
        # In halves if complex, since a magnitude may then exceed the largest float.
        unit = jnp.asarray(0.5 if jnp.iscomplexobj(g) else 1.0, wide)
        eps = _validate.number(self.eps).astype(wide) * unit
        corrected = second * (unit / jnp.sqrt(_correction(self.b2, time)))
        ratio = jnp.abs(times(new, unit)) / _unless_zero(jnp.maximum(corrected, eps))
        if self.eps_root is not None:
            least = jnp.sqrt(_validate.number(self.eps_root).astype(wide)) * unit
            corrected = jnp.hypot(corrected, least)
        divisor = _unless_zero(corrected + eps)
        step = _divided(times(first, unit), divisor)
        if self.nesterov:
            later = _divided(step, _correction(self.b1, time + 1))
            now = _divided(_divided(times(new, unit), divisor), _correction(self.b1, time))
            step = _average(later, now, self.b1)
        else:
            step = _divided(step, _correction(self.b1, time))
        return _Leaf(first.astype(mean.dtype), second.astype(root.dtype), step, ratio)


def _shares(b: ArrayLike, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """`b` and `1 - b`, both with all digits where b is known."""
    rest = 1 - (_known(b) if _validate.is_known_number(b) else jnp.asarray(b))
    return _validate.number(b).astype(dtype), _validate.number(rest).astype(dtype)


def _average(old: jax.Array, new: jax.Array, b: ArrayLike) -> jax.Array:
    """`b * old + (1 - b) * new`."""
    keep, take = _shares(b, jnp.real(old).dtype)
    return times(old, keep) + times(new, take)


def _correction(b: ArrayLike, t: jax.Array) -> jax.Array:
    """`1 - b^t`, with all digits where b is known and close to 1."""
    if _validate.is_known_number(b):
        log = jnp.asarray(math.log(max(_known(b), 1e-300)), t.dtype)
    else:
        least = jnp.finfo(t.dtype).tiny  # no -inf, which `jax.debug_infs` would report
        log = jnp.log(jnp.maximum(jnp.asarray(b).astype(t.dtype), least))
    return -jnp.expm1(t * log)


def _root_mean_square(root: jax.Array, g: jax.Array, b2: ArrayLike) -> jax.Array:
    r"""The next root $r' = \sqrt{b_2 r^2 + (1 - b_2) |g|^2}$, in a unit near the larger of both.

    It is $r + (1 - b_2) (|g| - r) (|g| + r) / (r' + r)$, with the rounded r' in the divisor only:
    errors of rounding do not add up over the steps.
    """
    largest = root
    for part in (jnp.real(g), jnp.imag(g)) if jnp.iscomplexobj(g) else (g,):
        largest = jnp.maximum(largest, jnp.abs(part))
    unit = power_of_two_near(largest)
    old, new = in_unit(root, unit), jnp.abs(in_unit(g, unit))
    keep, take = _shares(b2, root.dtype)
    square = keep * old * old + take * new * new
    rough = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    exact = old + take * (new - old) * ((new + old) / _unless_zero(old + rough))
    # A root that falls by more than half would be the small difference of large numbers.
    return jnp.where(rough < old / 2, rough, exact) * unit


def _divided(x: jax.Array, divisor: jax.Array) -> jax.Array:
    """`x` divided by a real number; a complex `x` part by part, so that nothing overflows."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(jnp.real(x) / divisor, jnp.imag(x) / divisor)
    return x / divisor


def _unless_zero(x: jax.Array) -> jax.Array:
    """`x`, and 1 where it is 0: a divisor of 0."""
    return jnp.where(x == 0, jnp.ones_like(x), x)


def _known(x: ArrayLike) -> float:
    return np.asarray(x, np.float64).item()


def _is_known(x: ArrayLike, value: float) -> bool:
    return _validate.is_known_number(x) and _known(x) == value
