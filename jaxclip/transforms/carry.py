r"""Adds the part that a rule clips away to the next update."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat, alike, flatten
from jaxclip._core.types import PyTree
from jaxclip._numerics.scaled_float import accumulator, widened
from jaxclip._validate import short


class CarryState(NamedTuple):
    """The state of `carry`.

    Attributes:
        rule_state: the state of the rule.
        carried: the part that was clipped away, a tree like the parameters; at least float32.
    """

    rule_state: PyTree
    carried: PyTree


def carry(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Adds to each update the part of the earlier ones that the rule clipped away: U-Clip.

    $$u = \mathrm{rule}(g + D), \qquad D \leftarrow g + D - u$$

    Clipping shortens large gradients only, so its mean is not that of the gradients. Here nothing
    is lost: the updates so far and the carried part add up to the gradients so far. The carried
    part stays small where most gradients are below the threshold. It grows without end where they
    are not, and a gradient that points the other way is then not seen for a while.

    The sum is computed in at least float32. An element whose sum is not finite leaves the carried
    element as it was. A gradient that is left out for its NaN, by `nonfinite="zero"`, is carried
    with its finite elements; with `jaxclip.skip_nonfinite` around `carry` it is not.

    Args:
        rule: any rule of this library or of Optax, or a chain of them.

    Returns:
        A transformation whose state is a `CarryState`: one copy of the parameters in at least
        float32. All extra arguments of `update` reach the rule.

    Raises:
        TypeError: if `rule` is not a transformation.
        ValueError: in `update`, if the updates are not like the parameters of `init`.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> tx = jaxclip.carry(jaxclip.clip(1.0))
        >>> state = tx.init(jnp.zeros(1))
        >>> for grad in (3.0, 0.5, -4.0, 0.0):
        ...     updates, state = tx.update(jnp.array([grad]), state)
        ...     print(updates, state.carried)
        [1.] [2.]
        [1.] [1.5]
        [-1.] [-1.5]
        [-1.] [-0.5]

    References:
        Elesedy, Hutter, U-Clip: on-average unbiased stochastic gradient clipping, 2023,
        arXiv:2302.02971.
    """
    if not isinstance(rule, optax.GradientTransformation):
        raise TypeError(f"rule={short(rule)} must be an optax transformation")
    inner = optax.with_extra_args_support(rule)
    kind = states.named(CarryState, "carry")

    def first(params: PyTree) -> CarryState:
        flat = flatten(params)
        zeros = [widened(jnp.zeros_like(x), accumulator(x)) for x in flat.arrays]
        return kind((), _floating(flat, zeros))

    init, check = states.wrapping(first, kind, "rule_state", inner)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        check(state, updates)
        flat = flatten(updates)
        before = jax.tree.leaves(state.carried)
        sums = [_sum(g, d) for g, d in zip(flat.arrays, before, strict=True)]
        given = flat.rebuild([_within(s, g) for s, g in zip(sums, flat.arrays, strict=True)])
        out, rule_state = inner.update(given, state.rule_state, params, **extra_args)
        left = alike(out, flat, ("the result of rule", "updates")).arrays
        carried = [_rest(*each) for each in zip(sums, left, before, strict=True)]
        return out, state._replace(rule_state=rule_state, carried=_floating(flat, carried))

    return optax.GradientTransformationExtraArgs(init, update)


def _floating(flat: Flat, arrays: list[jax.Array]) -> PyTree:
    """The tree with arrays at its floating leaves only."""
    leaves = [optax.MaskedNode() for _ in flat.leaves]
    return flat._replace(leaves=leaves).rebuild(arrays)


def _sum(g: jax.Array, carried: jax.Array) -> jax.Array:
    wide = accumulator(g, carried)
    return widened(g, wide) + widened(carried, wide)


def _within(total: jax.Array, g: jax.Array) -> jax.Array:
    """The sum in the dtype of the gradient: at most its largest number, if the gradient is finite.

    The carried part may exceed float16.
    """
    if jnp.iscomplexobj(total):
        parts = zip(_parts(total), _parts(g), strict=True)
        return jax.lax.complex(*(_within(t, x) for t, x in parts))
    most = jnp.asarray(jnp.finfo(g.dtype).max, total.dtype)
    return jnp.where(jnp.isfinite(g), jnp.clip(total, -most, most), total).astype(g.dtype)


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.real(x), jnp.imag(x)


def _rest(total: jax.Array, left: jax.Array, before: jax.Array) -> jax.Array:
    """The part that the rule clipped away; the part before where that is not finite."""
    dtype = jnp.finfo(before.dtype).dtype
    rest = widened(total - widened(left, jnp.finfo(total.dtype).dtype), dtype)
    return jnp.where(jnp.isfinite(rest), rest, before)
