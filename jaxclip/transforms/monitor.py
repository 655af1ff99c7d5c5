"""The monitor: a transformation that records the norm of every leaf and changes nothing."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core import stacks
from jaxclip._core import state as states
from jaxclip._core.flat_tree import flatten
from jaxclip._core.measure import measure, together
from jaxclip._core.types import AxisName, PyTree, Stacked
from jaxclip._validate import short

_Of = Literal["updates", "params"]


class MonitorState(NamedTuple):
    """The state of `monitor`.

    Attributes:
        norm: the norm of all leaves together; float32 scalar.
        norms: the norm of each leaf, by name; float32 scalars. Those of the slices of a stack are
            one vector, with `*` for their index in the name: `blocks/*/attn/kernel`.
        update_count: updates so far; int32 scalar.
        nonfinite_count: updates in which a norm was NaN or inf; int32 scalar.
    """

    norm: jax.Array
    norms: dict[str, jax.Array]
    update_count: jax.Array
    nonfinite_count: jax.Array

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name."""
        norms = stacks.by_slice(_by_name(self.norms))
        leaves = {f"norm/{name}": value for name, value in norms.items()}
        return {
            "norm": self.norm,
            "count": self.update_count,
            "nonfinite_count": self.nonfinite_count,
            **leaves,
        }


def monitor(
    *,
    of: Literal["updates", "params"] = "updates",
    ord: float | None = None,
    stacked: Stacked = None,
    axis_name: AxisName = None,
    name: str = "monitor",
) -> optax.GradientTransformationExtraArgs:
    """Changes nothing and records the norm of every leaf. This is not `optax.monitor`.

    Put one before a rule and one after it to see its effect on each layer, or one alone to find the
    layer in which a gradient first stops being finite. One first in a chain, one last and one of
    the parameters record the input of `jaxclip.diagnosis.of_metrics`; that of the parameters costs
    least at the end of the chain.

    Args:
        of: `"updates"`, or `"params"` for the parameters given to `update`, before the update.
        ord: the norm: p >= 1 or inf; `None` is 2.
        stacked: the axis along which a leaf stacks layers for `jax.lax.scan`, or a function, as for
            `jaxclip.clip_by`; each slice then has a norm. In its name, the index follows the first
            keys that no unstacked leaf shares: `blocks/3/attn/kernel` beside `embed/embedding`. If
            all leaves are stacked, it follows the key that all begin with, or comes first.
        axis_name: mesh axes that shard the leaves, where they cannot be found.
        name: the name in `jaxclip.metrics`. A leaf is named by its keys, joined by `/`.

    Returns:
        A transformation whose state is a `MonitorState`.

    Raises:
        TypeError: if `ord` is not a number.
        ValueError: if `of` is not known, `ord` is below 1, or `name` contains a `/`; in `update`,
            if `params` is needed and missing, or if the leaves are not those of `init`.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> probe = jaxclip.monitor(name="grads")
        >>> grads = {"dense": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([1.0])}}
        >>> _, state = probe.update(grads, probe.init(grads))
        >>> print(jaxclip.metrics(state)["grads/norm/dense/kernel"])
        5.0
    """
    _validate.choice(of, _Of, "of")
    rule = measure("leaf", ord, axis_name=axis_name, stacked=stacked)
    if isinstance(rule.order, str):
        raise TypeError(f"ord={short(ord)} must be a number: norms of leaves are joined to one")
    kind = states.named(MonitorState, name)

    def first(params: PyTree) -> MonitorState:
        flat = flatten(params)
        norms = _named(stacks.names(rule.stacked, flat), rule.zeros(flat))
        count, nonfinite_count = (jnp.zeros((), jnp.int32) for _ in range(2))
        return kind(
            jnp.zeros((), jnp.float32), states.without_leaves(norms), count, nonfinite_count
        )

    init, check = states.checked(first, kind)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, MonitorState]:
        del extra_args
        if of == "params" and params is None:
            raise ValueError(f"params=None: {name} needs update(..., params)")
        flat = flatten(params if of == "params" else updates)
        names = stacks.names(rule.stacked, flat)
        known = _by_name(state.norms) if isinstance(state, kind) else {}
        if known and set(known) != set(names):
            added, gone = (
                [x for x in a if x not in b] for a, b in ((names, known), (known, names))
            )
            raise ValueError(
                f"{of} has other leaves than init saw: new {short(added)}, missing {short(gone)}"
            )
        state = check(state, flat.tree)
        norms, table = rule.tabled(flat)
        found = table.map(lambda norm: norm.number, norms)
        if of == "params":
            updates = _after(found, updates)
        whole = together(table.vectors(found), rule.power) if found else jnp.zeros((), jnp.float32)
        return updates, state._replace(
            norm=whole.astype(jnp.float32),
            norms=states.without_leaves(_named(names, found)),
            update_count=states.increased(state.update_count),
            nonfinite_count=states.increased(state.nonfinite_count, ~jnp.isfinite(whole)),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _after(norms: list[jax.Array], updates: PyTree) -> PyTree:
    """The same updates, bit for bit, which XLA computes after these norms of the parameters.

    XLA would otherwise copy the parameters in every step of a loop, since it could read them after
    their successors are written. No norm is below 0, which XLA does not know.
    """
    flat = flatten(updates)
    if len(norms) != len(flat.arrays):
        return updates
    pairs = zip(norms, flat.arrays, strict=True)
    return flat.rebuild([jnp.where(norm < 0, jnp.zeros_like(x), x) for norm, x in pairs])


def _named(names: list[str], norms: list[jax.Array]) -> dict[str, jax.Array]:
    """The norms by name, those of the slices of a stack as one vector."""
    pairs = zip(names, norms, strict=True)
    return {k: (n.reshape(-1) if n.ndim else n).astype(jnp.float32) for k, n in pairs}


def _by_name(norms: Any) -> dict[str, jax.Array]:
    return norms if isinstance(norms, dict) else {}
