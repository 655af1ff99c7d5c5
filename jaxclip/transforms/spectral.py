r"""The rule that bounds the singular values of updates."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from jaxclip._core import record
from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat
from jaxclip._core.measure import measure
from jaxclip._core.state import ClipState
from jaxclip._core.types import LimitTree, Mask, Method, PyTree, Spectral, Stacked, UnitAxes
from jaxclip._numerics.scaled_float import accumulator, widened
from jaxclip.projections.constraints import singular_values
from jaxclip.projections.projection import chosen


def clip_by_spectral_norm(
    max_norm: LimitTree,
    *,
    how: Spectral = "clip",
    method: Method | None = None,
    mask: Mask = None,
    axis: UnitAxes = None,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Bounds the singular values of each matrix of gradients or updates: spectral clipping.

    $$g = U \Sigma V^\top \leftarrow U f(\Sigma) V^\top$$

    | how | $f(\sigma)$ | |
    |---|---|---|
    | `"clip"` | $\min(\sigma, c)$ | the nearest matrix inside: smaller singular values stay |
    | `"scale"` | $\sigma \min(1, c / \sigma_1)$ | keeps the direction of the matrix |
    | `"soft"` | $\sigma / \sqrt{1 + \sigma^2 / c^2}$ | smooth, always below c, as in SPECTRA |

    Noise in gradients often makes a few singular values large. `"clip"` and `"soft"` bound these
    and keep the others. Put the rule before the optimizer to clip gradients, after it to clip
    updates.

    Guarantees:

    | input | result |
    |---|---|
    | `"clip"`, `"scale"`: largest singular value <= c | bit for bit unchanged |
    | `"clip"`, `"scale"`: above c | lands on c to 32 roundings; in 16 bits to one epsilon |
    | `"clip"`, `"soft"`: $\sigma_1 = 1000\,c$ | all singular values right to 1e-4 of c in float32 |
    | `"soft"`: $\sigma_1 / c$ below the root of a rounding | bit for bit unchanged |
    | c is `None` or inf | unchanged; the norm is still recorded |
    | c is 0 | zeros |
    | a matrix with a NaN or inf | unchanged, and counted |
    | finite, but squares overflow or underflow | as if computed in float64 |
    | leaves that are no kernels; integer, boolean or `float0` leaves | passed through |

    Cost, with n the smaller side of a matrix: the Gram matrix, one product with the whole matrix,
    and 20 products of n x n matrices to measure by `"iterative"`, one eigendecomposition by
    `"eigh"`. A matrix above c costs a stage more for each factor of ten of $\sigma_1 / c$, and
    one for the rest. A stage is two products with the whole matrix and one eigendecomposition, or
    for `"clip"` 64 products of n x n matrices and up to 36 more, for `"soft"` these 36.

    Args:
        max_norm: c: a number >= 0, a scalar array, a schedule `count -> value`, `None` for no
            limit, or a prefix tree of those.
        how: `"clip"`, `"scale"` or `"soft"`.
        method: `"eigh"`, the eigenvectors of the smaller Gram matrix; `"iterative"`, matrix
            products alone; `None` for the first on a CPU and the second on accelerators.
        mask: the leaves to clip: a prefix tree of bools, or a function from the updates to one.
            `None`: leaves of rank >= 2 that are not called `bias`, that is kernels.
        axis: the axes of a leaf that are the rows of its matrix, the inputs; `None` for all but the
            last, so that a convolution (H, W, in, out) is a matrix (H W in, out); or a function
            `(name, leaf) -> axes`, such as `jaxclip.projections.flax_units`.
        stacked: the axis along which a leaf stacks matrices, or a function `(name, leaf) -> axis`
            or `None`; `axis` then counts the axes of a slice.

    Returns:
        A transformation whose state is a `ClipState`; its norm is the largest singular value.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value; if a leaf is complex, has no axis of inputs or
            none of outputs, or is sharded inside `shard_map`.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxclip
        >>> grads = {"kernel": jnp.diag(jnp.array([3.0, 0.5])), "bias": jnp.ones(2)}
        >>> rule = jaxclip.clip_by_spectral_norm(1.0, how="soft")
        >>> updates, state = jax.jit(rule.update)(grads, rule.init(grads))
        >>> print(*(f"{s:.4f}" for s in jnp.diag(updates["kernel"])), updates["bias"], state.norm)
        0.9487 0.4472 [1. 1.] 3.0

    References:
        Jiang, Semenov, Stich, Enhancing LLM training via spectral clipping, 2026, arXiv:2603.14315.
    """
    inside = singular_values(max_norm, how, method, Spectral)
    units = measure("unit", axis=axis, stacked=stacked)

    def step(flat: Flat, state: ClipState, params: PyTree) -> tuple[PyTree, ClipState]:
        del params
        own = flat.only(chosen(flat, mask, units.stacked))
        wide = own._replace(arrays=[widened(x, accumulator(x)) for x in own.arrays])
        landed = inside(wide, [x.dtype for x in wide.arrays], state.update_count, units)
        pairs = zip(own.arrays, landed, strict=True)
        out = [jnp.where(to.keep, x, to.value.astype(x.dtype)) for x, to in pairs]
        norms, limits, scales = ([getattr(x, key) for x in landed] for key in _RECORDED)
        seen = record.of_scales(norms, limits, scales)
        return own.rebuild(out), states.following(state, seen)

    kind = states.named(ClipState, "clip_by_spectral_norm")
    return states.transformation(lambda params: states.first(kind.rule), kind, step)


_RECORDED = ("norm", "limit", "scale")  # of a landing
