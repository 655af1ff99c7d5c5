"""The axes of a unit's incoming weights, by the layers of a framework."""

from __future__ import annotations

import jax

from jaxclip._core.types import Axes

_ATTENTION = ("query", "key", "value")
_EQUINOX_WEIGHTS = ("weight", "weight_ih", "weight_hh")


def flax_units(name: str, leaf: jax.Array) -> Axes:
    """The axes of a unit's incoming weights in Flax's layers, by their names.

    Pass it as `axis=` of a projection or a rule, where rank alone cannot tell:

    | leaf | shape | reduced | a unit is |
    |---|---|---|---|
    | kernel of `Dense`, `Linear` | (in, out) | 0 | one output |
    | kernel of `Conv` | (H, W, in, out) | all but the last | one output channel |
    | query, key, value of attention | (in, heads, head size) | 0 | one entry of one head |
    | out of attention | (heads, head size, out) | 0 and 1 | one output |
    | embedding of `Embed` | (words, features) | 1 | one word's vector |

    Args:
        name: the keys of the leaf, joined by `/`.
        leaf: the array.

    Returns:
        The axes to reduce; `None` for all but the last.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> params = {"embed": {"embedding": jnp.array([[3.0, 4.0], [0.3, 0.4]])}}
        >>> units = jaxclip.projections.flax_units
        >>> print(jaxclip.norms.unit_norms(params, axis=units)["embed"]["embedding"])
        [[5. ]
         [0.5]]
    """
    layer, _, kind = name.rpartition("/")
    if kind == "embedding" and leaf.ndim == 2:
        return 1
    if kind == "kernel" and layer.rpartition("/")[2] in _ATTENTION and leaf.ndim == 3:
        return 0
    return None


def equinox_units(name: str, leaf: jax.Array) -> Axes:
    """The axes of a unit's incoming weights in Equinox's layers, which put outputs first.

    Pass it as `axis=` of a projection or a rule:

    | leaf | shape | reduced | a unit is |
    |---|---|---|---|
    | weight of `Linear`, also in `MLP`, `MultiheadAttention` | (out, in) | 1 | one output |
    | weight of `Conv`, `ConvTranspose` | (out, in, H, W) | all but the first | one channel |
    | `weight_ih`, `weight_hh` of `GRUCell`, `LSTMCell` | (gates, in) | 1 | one entry of a gate |
    | weight of `Embedding` | (words, features) | 1 | one word's vector |

    Args:
        name: the keys of the leaf, joined by `/`.
        leaf: the array.

    Returns:
        The axes to reduce; `None` for all but the last.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> params = {"linear": {"weight": jnp.array([[3.0, 4.0], [0.3, 0.4]])}}
        >>> units = jaxclip.projections.equinox_units
        >>> print(jaxclip.norms.unit_norms(params, axis=units)["linear"]["weight"])
        [[5. ]
         [0.5]]
    """
    is_weight = name.rpartition("/")[2] in _EQUINOX_WEIGHTS and leaf.ndim >= 2
    return tuple(range(1, leaf.ndim)) if is_weight else None
