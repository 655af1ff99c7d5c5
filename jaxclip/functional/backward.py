r"""Rules for the derivatives that pass through a point of a network: `jaxclip.backward`.

Each function returns its input, bit for bit, and changes the cotangent on its way back, which is
the derivative of the loss with respect to that value. In a recurrent network this bounds the
derivative at every time step, where a rule in the optimizer sees only their sum, which may have
overflowed.

They have a vector-Jacobian product (`jax.custom_vjp`) and no other derivative: `jax.grad`, `vmap`,
`scan`, `jit`, `checkpoint`, `shard_map`, gradients of gradients and `jax.hessian` work, and
`jax.jvp` of a function that contains one raises JAX's `TypeError`. Limits may be traced; their
derivative is 0.

Of two calls, the outer one sees the cotangent first: `zero_nonfinite(clip(x, 1.0))` first zeroes
NaN and inf, then clips.
"""

from __future__ import annotations

from jax.typing import ArrayLike

from jaxclip._core.types import AxisName, Order, PyTree, UnitAxes
from jaxclip.functional import cotangents
from jaxclip.functional.cotangents import of_rule, passed
from jaxclip.transforms import clipping, elementwise

__all__ = [
    "clip",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "scale",
    "zero_nonfinite",
]


def clip(x: PyTree, max_delta: ArrayLike | None, *, probe: ArrayLike | None = None) -> PyTree:
    r"""`x`; each element of its cotangent goes back between -max_delta and max_delta.

    $$\bar x_i \leftarrow \min(\max(\bar x_i, -c), c)$$

    Complex elements are clipped by magnitude. NaN stays NaN.

    Args:
        x: any pytree of arrays. Integers have no cotangent and are passed through.
        max_delta: c, a number >= 0 or an array that broadcasts to `x`; `None` for no bound.
        probe: zeros of shape (2,), as for `clip_by_norm`; its norm is the largest magnitude.

    Returns:
        `x`, with the same shapes, dtypes and bits.

    Raises:
        TypeError: if `max_delta` is not a real number.
        ValueError: if it is negative or NaN; in the backward pass, if it does not broadcast.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxclip import backward
        >>> print(jax.grad(lambda x: jnp.sum(backward.clip(x, 1.0) ** 2))(jnp.array([0.25, 3.0])))
        [0.5 1. ]

    References:
        Graves, Generating sequences with recurrent neural networks, 2013, arXiv:1308.0850, section
        2.1.
    """
    rule = of_rule(elementwise.clip, record=probe is not None)
    return passed(rule, x, probe, max_delta=max_delta)


def clip_by_value(
    x: PyTree,
    min_value: ArrayLike | None,
    max_value: ArrayLike | None,
    *,
    probe: ArrayLike | None = None,
) -> PyTree:
    r"""`x`; each element of its cotangent goes back between two bounds.

    $$\bar x_i \leftarrow \min(\max(\bar x_i, l), u)$$

    Args:
        x: any pytree of arrays. Integers have no cotangent and are passed through.
        min_value: l, a number or an array that broadcasts to `x`; `None` for none.
        max_value: u, in the same forms.
        probe: zeros of shape (2,), as for `clip_by_norm`; its norm is the largest magnitude.

    Returns:
        `x`, with the same shapes, dtypes and bits.

    Raises:
        TypeError: if a bound is not a real number.
        ValueError: if a bound is NaN or `min_value` exceeds `max_value`; in the backward pass, if
            a bound does not broadcast, or `x` is complex and the bounds are not -c and c.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxclip import backward
        >>> f = lambda x: jnp.sum(backward.clip_by_value(x, 0.0, 1.0) ** 2)
        >>> print(jax.grad(f)(jnp.array([-0.25, 0.25, 3.0])))
        [0.  0.5 1. ]

    References:
        Graves, Generating sequences with recurrent neural networks, 2013, arXiv:1308.0850, section
        2.1.
    """
    rule = of_rule(elementwise.clip_by_value, record=probe is not None)
    return passed(rule, x, probe, min_value=min_value, max_value=max_value)


def clip_by_norm(
    x: PyTree,
    max_norm: ArrayLike | None,
    axis: UnitAxes = None,
    ord: Order = None,
    *,
    axis_name: AxisName = None,
    probe: ArrayLike | None = None,
) -> PyTree:
    r"""`x`; its cotangent goes back with a norm of at most `max_norm`.

    $$\bar x \leftarrow \bar x \min\Big(1, \frac{c}{\|\bar x\|}\Big)$$

    for each leaf, or each slice of a leaf along `axis`. Under `vmap` the norm is that of one
    example; in a batch without `vmap`, `axis` names the axes that are not the batch's. A cotangent
    whose norm is at most c is unchanged bit for bit; one with NaN or inf is unchanged as well, as
    it would be by the rule `jaxclip.clip_by_norm`.

    Args:
        x: any pytree of arrays. Integers have no cotangent and are passed through.
        max_norm: c, a number >= 0, `None`, or an array that broadcasts to the norms; 0 stops the
            gradient.
        axis: the axes that are reduced; `None` for all, `()` for none.
        ord: the norm: p >= 1, inf, `"rms"` or `"average"`; `None` is 2.
        axis_name: mesh axes over which a norm is spread, as for `jaxclip.clip_by_norm`. Inside
            `shard_map` a norm goes over all devices between which `x` differs; `()` keeps it on
            one.
        probe: zeros of shape (2,), float32. Its cotangent, so the gradient with respect to it, is
            [norm, clipped]: the norm before the rule, the largest where there are many, and 1 if
            something was changed, else 0. With a row for each time step among the `xs` of
            `jax.lax.scan`, the gradient has a row for each step. One probe at several places, or
            for several examples, has their sum.

    Returns:
        `x`, with the same shapes, dtypes and bits.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxclip import backward
        >>> def loss(x, probe):
        ...     return jnp.vdot(backward.clip_by_norm(x, 1.0, probe=probe), jnp.array([3.0, 4.0]))
        >>> gradient, seen = jax.grad(loss, (0, 1))(jnp.ones(2), jnp.zeros(2))
        >>> print(gradient, seen)
        [0.6 0.8] [5. 1.]

    References:
        Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, 2013,
        arXiv:1211.5063; Graves, 2013, arXiv:1308.0850, section 2.1.
    """
    rule = of_rule(clipping.clip_by_norm, axis=axis, ord=ord, axis_name=axis_name)
    return passed(rule, x, probe, max_norm=max_norm)


def clip_by_global_norm(
    tree: PyTree,
    max_norm: ArrayLike | None,
    *,
    ord: Order = None,
    axis_name: AxisName = None,
    probe: ArrayLike | None = None,
) -> PyTree:
    r"""`tree`; its cotangents go back with a norm of at most `max_norm`, all leaves together.

    $$\bar x \leftarrow \bar x \min\Big(1, \frac{c}{\|\bar x\|}\Big)$$

    with one norm of all leaves, as of the hidden and the cell state of an LSTM.

    Args:
        tree: any pytree of arrays. Integers have no cotangent and are passed through.
        max_norm: c, a number >= 0, a scalar array, or `None`; 0 stops the gradient.
        ord: the norm: p >= 1 or inf; `None` is 2.
        axis_name: mesh axes that shard the leaves, as for `clip_by_norm`.
        probe: zeros of shape (2,), as for `clip_by_norm`.

    Returns:
        `tree`, with the same shapes, dtypes and bits.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxclip import backward
        >>> def loss(state):
        ...     hidden, cell = backward.clip_by_global_norm(state, 1.0)
        ...     return 3 * hidden + 4 * cell
        >>> hidden, cell = jax.grad(loss)((1.0, 1.0))
        >>> print(hidden, cell)
        0.6 0.8

    References:
        Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, 2013,
        arXiv:1211.5063.
    """
    rule = of_rule(clipping.clip_by_global_norm, ord=ord, axis_name=axis_name)
    return passed(rule, tree, probe, max_norm=max_norm)


def scale(x: PyTree, factor: ArrayLike, *, probe: ArrayLike | None = None) -> PyTree:
    r"""`x`; its cotangent goes back multiplied: $\bar x \leftarrow a \bar x$.

    MuZero halves the gradient at each step of its dynamics, a = 0.5; a = -1 reverses it, as for
    domain-adversarial training.

    Args:
        x: any pytree of arrays. Integers have no cotangent and are passed through.
        factor: a, a finite number or a scalar array.
        probe: zeros of shape (2,), as for `clip_by_norm`, with the norm of all leaves; clipped is
            1 unless a is 1.

    Returns:
        `x`, with the same shapes, dtypes and bits.

    Raises:
        TypeError: if `factor` is not a real number.
        ValueError: if it is not finite, or no scalar.

    Examples:
        >>> import jax
        >>> from jaxclip import backward
        >>> print(jax.grad(lambda x: backward.scale(x, 0.5) ** 2)(3.0))
        3.0

    References:
        Schrittwieser et al., Mastering Atari, Go, chess and shogi by planning with a learned model,
        2020, arXiv:1911.08265, appendix G; Ganin et al., 2016, arXiv:1505.07818.
    """
    return passed(cotangents.scaled, x, probe, factor=factor)


def zero_nonfinite(x: PyTree, *, probe: ArrayLike | None = None) -> PyTree:
    r"""`x`; the elements of its cotangent that are NaN or infinite go back as 0.

    $$\bar x_i \leftarrow \bar x_i \text{ if it is finite, else } 0$$

    This hides a fault. Use it where a derivative is known not to exist, as that of a norm at 0.

    Args:
        x: any pytree of arrays. Integers have no cotangent and are passed through.
        probe: zeros of shape (2,), as for `clip_by_norm`, with the norm of all leaves: NaN or inf
            if something was zeroed.

    Returns:
        `x`, with the same shapes, dtypes and bits.

    Raises:
        ValueError: if `probe` is not an array of two floats.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxclip import backward
        >>> f = lambda x: jnp.sum(jnp.sqrt(backward.zero_nonfinite(x)))
        >>> print(jax.grad(f)(jnp.array([0.0, 4.0])))
        [0.   0.25]
    """
    return passed(cotangents.finite, x, probe)
