r"""The attention layers of a tree: the roles of their leaves, and the logits given for each.

Nothing here scales a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxclip._core.flat_tree import Flat
from jaxclip._core.types import PyTree
from jaxclip._numerics.scaled_float import accumulator
from jaxclip._validate import choice, short

Role: TypeAlias = Literal["q", "k", "q_nope", "k_nope", "q_rope"]
"""The projection of attention that a leaf belongs to, as a kernel or a bias."""

Roles: TypeAlias = PyTree | Callable[[str, jax.Array], Role | None]
"""A prefix tree of roles and `None`, or a function `(name, leaf) -> role` or `None`."""

_FLAX: dict[str, Role] = {"query": "q", "key": "k"}


def linen_roles(name: str, leaf: jax.Array) -> Role | None:
    """The roles of the leaves of attention in Flax Linen, by their names.

    Pass it as `roles=` of `jaxclip.qk_clip`:

    | leaf | shape | role |
    |---|---|---|
    | `query/kernel`, `query/bias` | (features, heads, size), (heads, size) | `"q"` |
    | `key/kernel`, `key/bias` | the same, or with fewer heads | `"k"` |
    | all others | | `None` |

    It knows the layers of `nn.MultiHeadDotProductAttention`, also stacked by `nn.scan`. It takes
    those with `normalize_qk=True` too, where scaling a kernel changes no logit: leave these out.

    Args:
        name: the keys of the leaf, joined by `/`.
        leaf: the array.

    Returns:
        `"q"`, `"k"` or `None`.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> kernel = jnp.ones((16, 4, 8))
        >>> print(jaxclip.projections.linen_roles("block_0/attn/query/kernel", kernel))
        q
        >>> print(jaxclip.projections.linen_roles("block_0/attn/value/kernel", kernel))
        None
    """
    *_, layer, kind = ("", *name.split("/"))
    ranks = {"kernel": 3, "bias": 2}
    return _FLAX.get(layer) if leaf.ndim >= ranks.get(kind, leaf.ndim + 1) else None


def nnx_roles(name: str, leaf: jax.Array) -> Role | None:
    """The roles of the leaves of attention in Flax NNX, by their names.

    Pass it as `roles=` of `jaxclip.qk_clip`, for `nnx.MultiHeadAttention`. Names and shapes are
    those of Linen, in the table of `linen_roles`; an `nnx.Param` around an array does not change
    them.

    Args:
        name: the keys of the leaf, joined by `/`.
        leaf: the array.

    Returns:
        `"q"`, `"k"` or `None`.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> print(jaxclip.projections.nnx_roles("attn/key/bias", jnp.ones((4, 8))))
        k
    """
    return linen_roles(name, leaf)


class Part(NamedTuple):
    """A kernel or a bias.

    Attributes:
        place: its position among the floating leaves.
        role: its role.
        is_bias: whether it is a bias.
    """

    place: int
    role: str
    is_bias: bool


class Layer(NamedTuple):
    """An attention layer.

    Attributes:
        keys: the keys of its place.
        parts: its leaves that have a role.
        shape: the shape of its largest logits: (heads,), or (layers, heads) of a stack.
        grouped: whether there are fewer heads of keys than of queries.
    """

    keys: tuple[str, ...]
    parts: list[Part]
    shape: tuple[int, ...]
    grouped: bool

    @property
    def name(self) -> str:
        """The keys, joined by `/`."""
        return "/".join(self.keys)


def layers(flat: Flat, roles: Roles) -> list[Layer]:
    """The attention layers: the smallest parts of the tree with a query and a key each."""
    names = flat.names
    given = _given(flat, names, roles)
    keys = {i: tuple(names[i].split("/")) for i in given}
    places: dict[tuple[str, ...], list[int]] = {}
    for i, role in given.items():
        others = [keys[j] for j, other in given.items() if other[0] != role[0]]
        ends = range(len(keys[i]) - 1, -1, -1)
        shared = (keys[i][:end] for end in ends if any(o[:end] == keys[i][:end] for o in others))
        places.setdefault(next(shared, ()), []).append(i)
    if flat.arrays and not places:
        raise ValueError(
            "roles give no leaf a role: a kernel must have the shape (features, heads, size), with "
            "its heads on axis -2"
        )
    return [_layer(flat, place, [(i, given[i]) for i in own]) for place, own in places.items()]


def _given(flat: Flat, names: list[str], roles: Roles) -> dict[int, str]:
    """The roles by position among the floating leaves."""
    asks = callable(roles)
    found: list[Any] = list(map(roles, names, flat.arrays)) if asks else flat.spread(roles, "roles")
    for i, role in enumerate(found):
        if role is not None:
            choice(role, Role, f"the role of {flat.path(i)}")
    return {i: role for i, role in enumerate(found) if role is not None}


def _layer(flat: Flat, keys: tuple[str, ...], own: list[tuple[int, str]]) -> Layer:
    """One layer, checked: the leaf of a role with the largest rank is its kernel."""
    parts: list[Part] = []
    heads: dict[str, tuple[int, ...]] = {}
    for role in dict.fromkeys(role for _, role in own):
        kernel, *biases = sorted(
            (i for i, r in own if r == role), key=lambda i: -flat.arrays[i].ndim
        )
        shape = flat.arrays[kernel].shape
        heads[role] = (*shape[:-3], *shape[-2:-1])
        parts += [Part(kernel, role, False), *(Part(i, role, True) for i in biases)]
        bias = (*shape[:-3], *shape[-2:])
        wrong = [i for i in biases if len(biases) > 1 or flat.arrays[i].shape != bias]
        for i in wrong if len(shape) >= 3 else [kernel]:
            raise ValueError(
                f"roles: the leaf {flat.path(i)}, of shape {flat.arrays[i].shape}, cannot be "
                f"{role!r}, which needs one kernel (features, heads, size) in each attention "
                "layer, and at most one bias (heads, size)"
            )
    queries, others = ([h for r, h in heads.items() if r[0] == side] for side in "qk")
    if not (queries and others):
        i, role = own[0]
        other = "key" if queries else "query"
        raise ValueError(
            f"roles: the leaf {flat.path(i)} is {role!r}, but its layer has no {other}"
        )
    shape = queries[0]
    if any(s != shape for s in queries) or any(_misfits(s, shape) for s in others):
        raise ValueError(
            f"roles: the leaves of the layer {'/'.join(keys)!r} differ in heads: {heads}"
        )
    return Layer(keys, parts, shape, any(s != shape for s in others))


def _misfits(key: tuple[int, ...], query: tuple[int, ...]) -> bool:
    """Whether heads of keys cannot belong to these heads of queries."""
    return key[:-1] != query[:-1] or query[-1] % key[-1] != 0


def logits_of(found: list[Layer], max_logits: PyTree) -> list[jax.Array]:
    """The largest logits of each layer, in at least float32, from a tree of all of them.

    An array lies at the place of its layer, or below it under one name, as Flax sows it. Those of
    one tuple are several calls of one layer.
    """
    given: dict[int, dict[Any, jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(max_logits):
        where = f"max_logits{jax.tree_util.keystr(path)}"
        i, rest = _layer_at(found, path, where)
        x = jnp.asarray(leaf)
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = x.astype(jnp.float32)
        if x.shape != found[i].shape or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{where} has shape {x.shape} and dtype {x.dtype}, but the layer "
                f"{found[i].name!r} needs floats of shape {found[i].shape}, one for each head"
            )
        x, own = x.astype(accumulator(x)), given.setdefault(i, {})
        own[rest] = jnp.maximum(own[rest], x) if rest in own else x
        if len(own) > 1:
            raise ValueError(f"{where} is a second array of the layer {found[i].name!r}")
    for i, layer in enumerate(found):
        if i not in given:
            raise ValueError(f"max_logits has no array for the attention layer {layer.name!r}")
    return [next(iter(given[i].values())) for i in range(len(found))]


def _layer_at(found: list[Layer], path: Any, where: str) -> tuple[int, Any]:
    """The layer that a key path leads to, and the path without it and without indices."""
    keys = tuple([jax.tree_util.keystr((key,), simple=True) for key in path])
    for i in sorted(range(len(found)), key=lambda i: -len(found[i].keys)):
        depth = len(found[i].keys)
        rest = [key for key in path[depth:] if isinstance(key, jax.tree_util.DictKey)]
        if keys[:depth] == found[i].keys and len(rest) <= 1:
            return i, tuple(rest)
    names = short([layer.name for layer in found])
    raise ValueError(f"{where} is at no attention layer of the parameters: {names}")
