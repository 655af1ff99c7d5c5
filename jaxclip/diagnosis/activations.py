"""Units without slope: how many of a layer's are dead, and how often they are saturated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip._core import flat_tree as _trees
from jaxclip.diagnosis import layers as _depth
from jaxclip.diagnosis import monitor_log as _log

_FLAT = 0.01  # a slope below this share of the largest is none
_REACH = 10.0  # where the largest slope is looked for


class Units(NamedTuple):
    """The units of one layer.

    Attributes:
        name: the name of its preactivations.
        dead: the share of units without slope at any example.
        saturated: the share of pairs of a unit and an example without slope.
        bounded: whether the activation saturates at both ends, as sigmoid and tanh do. Where it
            does not, as for ReLU, saturation is how such units work and no finding.
    """

    name: str
    dead: float
    saturated: float
    bounded: bool


def unit_shares(
    preactivation: Any, activation: Callable[[Any], Any]
) -> tuple[jax.Array, jax.Array]:
    r"""The share of units that are dead, and of units and examples that are saturated.

    A unit is saturated at an example where $|f'(z)| < 0.01 \max_{|x| \le 10} |f'(x)|$ or
    $f'(z) = 0$, and dead if it is at every example. Judge by a large batch: of one example, half of
    all ReLU units are dead. A NaN is not saturated.

    Args:
        preactivation: an array of shape (..., units), of which all axes but the last are examples.
        activation: an elementwise function. It is applied in float32, or float64 to float64.

    Returns:
        Two float32 scalars; works under `jit`.

    Raises:
        TypeError: if `preactivation` is not real.
        ValueError: if it has no axis or no elements, or `activation` changes its shape.

    Example:
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
    shares = jnp.all(flat, axis=0), flat
    dead, saturated = (jnp.mean(x, dtype=jnp.float32) for x in shares)
    return dead, saturated


def _is_flat(z: jax.Array, activation: Callable[[Any], Any]) -> jax.Array:
    grid = jnp.linspace(-_REACH, _REACH, 401, dtype=z.dtype)
    slope, steepest = _slope(z, activation), jnp.max(_slope(grid, activation))
    return (slope < _FLAT * steepest) | (slope == 0)


def _slope(z: jax.Array, activation: Callable[[Any], Any]) -> jax.Array:
    value, slope = jax.jvp(activation, (z,), (jnp.ones_like(z),))
    if value.shape != z.shape:
        raise ValueError(f"activation must be elementwise, but made {value.shape} of {z.shape}")
    return jnp.abs(slope)


def of_layers(preactivations: Any, activation: Any) -> tuple[Units, ...]:
    """The units of every array of preactivations, in natural order; none if there are none."""
    if preactivations is None and activation is None:
        return ()
    for name, value in (("preactivations", preactivations), ("activation", activation)):
        if value is None:
            raise ValueError(f"{name}=None: units need both preactivations= and activation=")
    flat = _trees.flatten(preactivations)
    _log.check_known(flat.leaves, "preactivations")
    arrays = dict(zip(flat.names, flat.arrays, strict=True))
    bounded, shares = jax.jit(lambda x: _of_all(x, activation))(arrays)
    rows = ((name, *shares[name]) for name in _depth.natural(flat.names))
    return tuple(Units(name, float(d), float(s), bool(bounded)) for name, d, s in rows)


def _of_all(arrays: dict[str, jax.Array], activation: Any) -> tuple[jax.Array, Any]:
    """Whether the activation is flat at both ends, and the shares of each array."""
    ends = jnp.array([-_REACH, _REACH], jnp.float32)
    shares = {name: unit_shares(z, activation) for name, z in arrays.items()}
    return jnp.all(_is_flat(ends, activation)), shares
