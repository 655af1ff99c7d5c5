r"""The projection that bounds the logits of attention, at the weights of queries and keys."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxclip import _validate
from jaxclip._core import record, stacks
from jaxclip._core import state as states
from jaxclip._core.flat_tree import Flat, alike, at_step, flatten
from jaxclip._core.state import ClipState
from jaxclip._core.types import AxisName, Limit, PyTree
from jaxclip._numerics import collectives, total_order
from jaxclip._numerics.collectives import MeshAxes
from jaxclip._numerics.rounding import is_narrow, rounded
from jaxclip._numerics.scaled_float import Factors, Norm, Scale, apply, clipped, narrowed
from jaxclip.projections.attention_layers import Layer, Roles, layers, logits_of
from jaxclip.projections.constraints import Landing
from jaxclip.projections.projection import stepped

_RECORDS = ("norm", "clipped", "ignored")


class QKClipState(ClipState):
    """The state of `qk_clip`: norms are largest logits of heads.

    Its memory is the last record of each layer, by name: `norm`, the largest logit,
    and the numbers of heads that were `clipped` and `ignored`.
    """

    __slots__ = ()

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name."""
        found = super().scalars()
        for key, by_name in self.memory.items():
            values = stacks.by_slice(by_name) if isinstance(by_name, dict) else {}
            found |= {f"{key}/{name}": value for name, value in values.items()}
        return found


def qk_clip(
    tau: Limit = 100.0,
    *,
    roles: Roles,
    alpha: ArrayLike = 0.5,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Bounds the logits of attention at tau, by scaling the weights of queries and keys.

    $$W_q \leftarrow \gamma^\alpha W_q, \qquad W_k \leftarrow \gamma^{1 - \alpha} W_k, \qquad
      \gamma = \min\Big(1, \frac{\tau}{S}\Big)$$

    for each head, where S is the largest logit of the forward pass, and W the weights after the
    update; their biases are scaled as well. `update` returns the difference to the weights before.

    | attention | roles | factors |
    |---|---|---|
    | multi-head | `"q"`, `"k"` | $\gamma^\alpha$, $\gamma^{1-\alpha}$ |
    | grouped query: fewer heads of keys | `"q"`, `"k"` | $\gamma$, 1 |
    | latent (MLA) | `"q_nope"`, `"k_nope"`, `"q_rope"` | as multi-head; $\gamma$ for `"q_rope"` |

    All other leaves stay: values, and the rotary key that the heads of MLA share.

    S is the largest logit of a head before the softmax, with $1/\sqrt{d}$ included, before bias,
    mask and soft-cap; the largest over the batch, data-parallel devices and micro-steps. A head
    with S <= tau is unchanged bit for bit; so is one whose S is NaN, infinite or not above 0, which
    is counted as ignored. Gradients are not touched.

    Args:
        tau: a number >= 0, a scalar array, a schedule `count -> value`, or `None` for no bound; 0
            gives zeros.
        roles: a prefix tree of `"q"`, `"k"`, `"q_nope"`, `"k_nope"`, `"q_rope"` and `None`, or a
            function `(name, leaf)` to one, such as `jaxclip.projections.linen_roles` and
            `nnx_roles`. A kernel has the shape (features, heads, size) and its bias (heads, size),
            as in Flax, or both with an axis of stacked layers in front.
        alpha: the share of the query, between 0 and 1.
        axis_name: mesh axes over which the batch is split, so that the largest S is taken over
            them, where they cannot be found: under `pmap`, `vmap(axis_name=...)` and
            `shard_map(check_vma=False)`, or where weights are sharded over the same axes. `()` for
            none.

    Returns:
        A transformation, last in a chain, whose `update` needs `params` and `max_logits`: a tree
        with an array of S, of shape (heads,), at the place of each attention layer, or below it as
        Flax sows it, under one name and in a tuple. A stack of L layers has one of (L, heads).
        `jaxclip.metrics` has the largest S as `norm`, tau as `threshold`, the smallest gamma as
        `scale`, and for each layer `norm/<layer>`, and the numbers of heads as `clipped/<layer>`
        and `ignored/<layer>`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value; if `params` or `max_logits` is missing; if
            roles do not make layers of equal heads; with the key path, if an array of `max_logits`
            is at no layer or has another number of heads.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxclip
        >>> kernel = jnp.ones((3, 2, 4))  # (features, heads, size)
        >>> params = {"attn": {"query": {"kernel": kernel}, "key": {"kernel": kernel}}}
        >>> tx = jaxclip.qk_clip(100.0, roles=jaxclip.projections.linen_roles)
        >>> zeros, logits = jax.tree.map(jnp.zeros_like, params), {"attn": jnp.array([400.0, 50.0])}
        >>> updates, state = tx.update(zeros, tx.init(params), params, max_logits=logits)
        >>> print(updates["attn"]["query"]["kernel"][0, :, 0])
        [-0.5  0. ]
        >>> print(state.norm, state.fraction)
        400.0 0.5

    References:
        Kimi Team, Kimi K2: open agentic intelligence, 2025, arXiv:2507.20534, section 2.1.
    """
    _validate.limits(tau, "tau", scalar=True)
    if tau is not None and _validate.is_tree(tau):
        raise TypeError(f"tau={_validate.short(tau)} must be one number or schedule, not a tree")
    _validate.between(alpha, 0, 1, "alpha")
    names = _validate.mesh_axes(axis_name)
    kind = states.named(QKClipState, "qk_clip")

    def first(params: PyTree) -> ClipState:
        flat = flatten(params)
        memory = {key: {} for key in _RECORDS}
        for layer, name in _named(flat, layers(flat, roles)):
            shape = layer.shape[:-1] and (int(np.prod(layer.shape[:-1])),)
            for key in _RECORDS:
                memory[key][name] = jnp.zeros(shape, jnp.float32 if key == "norm" else jnp.int32)
        return kind(*states.first("qk_clip", states.without_leaves(memory)))

    init, check = states.checked(first, kind)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        max_logits: PyTree = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        del extra_args
        for key, tree in (("params", params), ("max_logits", max_logits)):
            if tree is None:
                raise ValueError(f"{key}=None: qk_clip needs update(..., params, max_logits=tree)")
        state, weights = check(state, updates), flatten(params)
        found = layers(weights, roles)
        logits = _over_batch(found, weights, logits_of(found, max_logits), names)
        limit = at_step(tau, state.update_count)
        limit = _validate.number(jnp.inf if limit is None else limit)
        norms = [Norm(s, jnp.ones_like(s)) for s in logits]
        scales = [clipped(n, n.value, jnp.maximum(limit, 0)) for n in norms]
        steps = alike(updates, weights, ("updates", "params"))
        new = _scaled(weights, steps, found, scales, alpha)
        memory = _by_layer(_named(weights, found), logits, scales)
        seen = record.of_scales(norms, [limit] * len(norms), scales)
        return new, states.following(state, seen, states.without_leaves(memory))

    return optax.GradientTransformationExtraArgs(init, update)


def _named(flat: Flat, found: list[Layer]) -> list[tuple[Layer, str]]:
    """The layers with their names in records, `*` for the index of a layer in a stack."""
    names = flat.names
    stacked = {names[p.place]: len(layer.shape) > 1 for layer in found for p in layer.parts}
    own = flat.only([name in stacked for name in names])
    starred = stacks.names(lambda name, leaf: 0 if stacked[name] else None, own)
    by_leaf = dict(zip(own.names, starred, strict=True))
    result: list[tuple[Layer, str]] = []
    for layer in found:
        leaf = names[layer.parts[0].place]
        below = leaf.count("/") + 1 - len(layer.keys)
        result.append((layer, "/".join(by_leaf[leaf].split("/")[:-below])))
    return result


def _over_batch(
    found: list[Layer], weights: Flat, logits: list[jax.Array], names: MeshAxes | None
) -> list[jax.Array]:
    """The largest logits over the mesh axes along which the batch is split."""
    mesh: list[MeshAxes] = []
    for layer, s in zip(found, logits, strict=True):
        if names is not None:
            mesh.append(tuple([name for name in names if collectives.may_vary(s, name)]))
            continue
        own = [collectives.varying_axes(weights.arrays[part.place]) for part in layer.parts]
        mesh.append(collectives.varying_axes(s))
        if both := [name for name in mesh[-1] if name in collectives.union(own)]:
            raise ValueError(
                f"axis_name=None: max_logits of the layer {layer.name!r} and its weights are both "
                f"sharded over the mesh axes {both}, but whether that divides the batch or the "
                "heads cannot be known. Pass axis_name= with the mesh axes over which the batch is "
                "split, or axis_name=() if it is not"
            )
    return _across(logits, mesh, collectives.maxima)


def _scaled(
    weights: Flat, steps: Flat, found: list[Layer], scales: list[Scale], alpha: ArrayLike
) -> PyTree:
    """The updates that scale the heads of the weights after the step."""
    rows: dict[int, tuple[Scale, bool]] = {}
    for layer, scale in zip(found, scales, strict=True):
        for part in layer.parts:
            share = alpha if part.role[0] == "q" else 1 - jnp.asarray(alpha)
            if layer.grouped or part.role == "q_rope":
                share = 1.0
            if part.role[0] == "q" or not layer.grouped:
                power = jnp.asarray(share, scale.factor.dtype)
                factors = Factors(*[x**power for x in scale.factors])
                powers = scale._replace(factor=scale.factor**power, factors=factors)
                rows[part.place] = powers, part.is_bias
    chosen = [i in rows for i in range(len(weights.arrays))]
    dtypes = [x.dtype for x in weights.arrays]

    def land(moved: Flat) -> list[Landing]:
        landed: list[Landing] = []
        for i, x in zip(sorted(rows), moved.arrays, strict=True):
            scale, is_bias = rows[i]
            place = (..., None) if is_bias else (..., None, slice(None), None)
            scale = jax.tree.map(operator.itemgetter(place), scale)
            value = apply(x, scale.factors)
            if is_narrow(dtypes[i]):
                value = rounded(value, dtypes[i])
            landed.append(Landing(~scale.over | (scale.factor == 1), value, jnp.inf, norm=scale))
        return landed

    return stepped(weights.only(chosen), steps.only(chosen), land)[0]


def _by_layer(
    named: list[tuple[Layer, str]], logits: list[jax.Array], scales: list[Scale]
) -> dict[str, dict[str, jax.Array]]:
    """The record of each layer: its largest logit, and how many heads were clipped and ignored."""
    mesh = [collectives.varying_axes(s) for s in logits]
    most = [total_order.largest(s, (s.ndim - 1,)) for s in logits]
    ignored = [~(jnp.isfinite(s) & (s > 0)) for s in logits]
    heads = [jnp.stack([c.over, i]) for c, i in zip(scales, ignored, strict=True)]
    numbers = [jnp.sum(x, -1, dtype=jnp.float32) for x in heads]
    most = _across(most, mesh, collectives.maxima)
    numbers = _across(numbers, mesh, collectives.sums)
    memory: dict[str, dict[str, jax.Array]] = {key: {} for key in _RECORDS}
    for (_, name), top, number in zip(named, most, numbers, strict=True):
        values = (narrowed(top, jnp.float32), *number.astype(jnp.int32))
        for key, value in zip(_RECORDS, values, strict=True):
            memory[key][name] = value.reshape(-1) if value.ndim else value
    return memory


def _across(
    arrays: list[jax.Array],
    mesh: Sequence[MeshAxes],
    reduce: Callable[[jax.Array, MeshAxes], jax.Array],
) -> list[jax.Array]:
    """Each array reduced over its mesh axes, those with the same axes by one collective."""
    found, groups = list(arrays), dict[MeshAxes, list[int]]()
    for i, axes in enumerate(mesh):
        groups.setdefault(axes, []).append(i)
    for axes, members in groups.items():
        if axes:
            own = [arrays[i] for i in members]
            whole = reduce(jnp.concatenate([x.ravel() for x in own]), axes)
            ends = np.cumsum([x.size for x in own])[:-1].tolist()
            for i, part in zip(members, jnp.split(whole, ends), strict=True):
                found[i] = part.reshape(arrays[i].shape)
    return found
