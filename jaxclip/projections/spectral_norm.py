r"""The projection of weights onto matrices with a bounded largest singular value."""

from __future__ import annotations

import optax

from jaxclip._core.types import How, LimitTree, Mask, Method, Stacked, UnitAxes
from jaxclip.projections.constraints import singular_values
from jaxclip.projections.projection import projection


def project_spectral_norm(
    max_norm: LimitTree,
    *,
    how: How = "clip",
    method: Method | None = None,
    mask: Mask = None,
    axis: UnitAxes = None,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the largest singular value of each matrix at most `max_norm`.

    $$u \leftarrow P(w + u) - w, \qquad
      P(U \Sigma V^\top) = U \min(\Sigma, c) V^\top \quad\text{or}\quad w \min(1, c / \sigma_1)$$

    The first, `how="clip"`, is the nearest matrix inside and leaves smaller singular values alone;
    the second, `how="scale"`, is spectral normalization that only shrinks.

    The matrix of a leaf has the axes of inputs as rows and the others as columns. For a kernel of
    attention in Flax, (in, heads, head size) or (heads, head size, out), pass
    `axis=jaxclip.projections.flax_units`. For a convolution, (H, W, in, out), the matrix is
    (H W in, out): c bounds the map from a patch of the input to one position of the output. The
    convolution amplifies up to sqrt(H W) times as much, since up to H W patches share an input:
    3 c for 3 x 3, and 2.8 c for a kernel of equal entries on an image of 9 x 9.

    The largest singular value lands at most 32 roundings above c (4e-6 in float32), by both
    methods: measured for up to 512 columns. A matrix inside, up to that, is unchanged bit for bit.
    The other values are right to a few roundings in training, where every step starts inside, and
    to 1e-4 of c where the largest one was a thousand times c: such a matrix is reduced in stages.
    In bfloat16 and float16 the largest value lands one epsilon of the dtype below c, since storing
    the matrix moves it by up to that.

    Args:
        max_norm: c: a number >= 0, a scalar array, a schedule, or a prefix tree of those.
        how: `"clip"` or `"scale"`.
        method: `"eigh"`, the eigenvectors of the smaller Gram matrix; `"iterative"`, matrix
            products alone; `None` for the first on a CPU and the second on accelerators.
        mask: the leaves to project, as for `project_max_norm`: by default kernels.
        axis: the axes of inputs of a leaf; `None` for all but the last; or a function `(name, leaf)
            -> axes`.
        stacked: the axis along which a leaf stacks layers, as for `project_max_norm`: each slice
            is a matrix of its own.

    Returns:
        A transformation, last in a chain, whose `update` needs `params`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or `params` is missing; if a leaf is complex,
            has no axis of inputs or none of outputs, or is sharded inside `shard_map`.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = jaxclip.project_spectral_norm(1.0)
        >>> params = jnp.diag(jnp.array([3.0, 0.5]))
        >>> updates, _ = tx.update(jnp.zeros((2, 2)), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [[1.  0. ]
         [0.  0.5]]

    References:
        Miyato et al., Spectral normalization for generative adversarial networks, 2018,
        arXiv:1802.05957; Newhouse et al., Training transformers with enforced Lipschitz constants,
        2025, arXiv:2507.13338.
    """
    inside = singular_values(max_norm, how, method)
    return projection("project_spectral_norm", inside, axis=axis, mask=mask, stacked=stacked)
