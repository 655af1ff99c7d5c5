"""Dead and saturated units: where the derivative of an activation is close to 0."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxclip._core import flat_tree
from jaxclip._core.types import PyTree
from jaxclip.diagnosis import layers, monitor_log

Activation: TypeAlias = Callable[[jax.Array], jax.Array]

_FLAT = 0.01  # the activation is flat where its slope is below this share of the steepest
_REACH = 10.0  # the steepest slope is searched on [-_REACH, _REACH]


class Units(NamedTuple):
    """The units of one layer.

    Attributes:
        name: the name of its preactivations.
        dead: the share of units without slope at every example.
        saturated: the share of (unit, example) pairs without slope.
        bounded: whether the activation is flat at both ends, as sigmoid and tanh are. If it is
            not, as for ReLU, saturation is normal and not reported as a finding.
    """

    name: str
    dead: float
    saturated: float
    bounded: bool


def unit_shares(preactivation: ArrayLike, activation: Activation) -> tuple[jax.Array, jax.Array]:
    r"""The share of dead units, and the share of saturated (unit, example) pairs.

    A unit is saturated at an example if $|f'(z)| < 0.01 \max_{|x| \le 10} |f'(x)|$ or
    $f'(z) = 0$, and dead if it is saturated at every example. Use a large batch: with a single
    example, half of all ReLU units look dead. A NaN does not count as saturated.

    Args:
        preactivation: an array of shape (..., units); all axes but the last are examples.
        activation: an elementwise function. It is applied in float32, or float64 to float64.

    Returns:
        Two float32 scalars; works under `jit`.

    Raises:
        TypeError: if `preactivation` is not real.
        ValueError: if it has no axis or no elements, or `activation` changes its shape.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxclip
        >>> z = jnp.array([[-1.0, -1.0], [-2.0, 3.0]])  # 2 examples, 2 units
        >>> dead, saturated = jaxclip.diagnosis.unit_shares(z, jax.nn.relu)
        >>> print(dead, saturated)
        0.5 0.75
    """
    z = jnp.asarray(preactivation)
    if jnp.issubdtype(z.dtype, jnp.complexfloating):
        raise TypeError(f"preactivation of dtype {z.dtype} must be real")
    if z.ndim == 0 or z.size == 0:
        raise ValueError(f"preactivation of shape {z.shape} must be (..., units) and not empty")
    z = z.astype(jnp.float64 if z.dtype == jnp.float64 else jnp.float32)
    flat = _is_flat(z.reshape(-1, z.shape[-1]), activation)
    return jnp.mean(flat.all(axis=0), dtype=jnp.float32), jnp.mean(flat, dtype=jnp.float32)


def units(preactivations: PyTree, activation: Activation | None) -> tuple[Units, ...]:
    """The units of each array of preactivations, in natural order; none if both are `None`."""
    if preactivations is None and activation is None:
        return ()
    if preactivations is None or activation is None:
        name = "activation" if activation is None else "preactivations"
        raise ValueError(f"{name}=None: units need both preactivations= and activation=")
    flat = flat_tree.flatten(preactivations)
    monitor_log.check_concrete(flat.leaves, "preactivations")
    ends = jnp.array([[-_REACH], [_REACH]])  # a unit that is dead here has a bounded activation
    measured = jax.jit(lambda arrays: [unit_shares(z, activation) for z in arrays])
    (bounded, _), *shares = jax.device_get(measured([ends, *flat.arrays]))
    rows = {
        name: Units(name, float(dead), float(saturated), bool(bounded))
        for name, (dead, saturated) in zip(flat.names, shares, strict=True)
    }
    return tuple(rows[name] for name in layers.natural(flat.names))


def _is_flat(z: jax.Array, activation: Activation) -> jax.Array:
    grid = jnp.linspace(-_REACH, _REACH, 401, dtype=z.dtype)
    slope, steepest = _slope(z, activation), jnp.max(_slope(grid, activation))
    return (slope < _FLAT * steepest) | (slope == 0)


def _slope(z: jax.Array, activation: Activation) -> jax.Array:
    value, slope = jax.jvp(activation, (z,), (jnp.ones_like(z),))
    if value.shape != z.shape:
        raise ValueError(f"activation must be elementwise, but made {value.shape} of {z.shape}")
    return jnp.abs(slope)
