"""The norms of a tree at a scope: one for the whole tree, or for each group, leaf, unit or element.

A scope is resolved to groups of arrays. The sums themselves are in `power_sums`.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import _validate
from jaxclip._core import labels, stacks, units
from jaxclip._core.flat_tree import Flat
from jaxclip._core.types import AxisName, Groups, Mask, Order, Scope, Stacked, UnitAxes
from jaxclip._numerics import collectives, derivatives, power_sums
from jaxclip._numerics.collectives import MeshAxes
from jaxclip._numerics.power_sums import AnyTable, Arrays, Kind
from jaxclip._numerics.scaled_float import Norm, accumulator
from jaxclip._validate import short

_Known = tuple[Arrays, Kind, Norm]
_KNOWN: contextvars.ContextVar[tuple[_Known, ...]] = contextvars.ContextVar("_KNOWN", default=())


class Group(NamedTuple):
    """Arrays with one norm, or one array with a norm for each slice.

    Attributes:
        members: the positions of the arrays among the floating leaves.
        axes: the axes reduced in the only member, which stay with size 1; `None` for all.
        shape: the shape of the norms.
    """

    members: list[int]
    axes: tuple[int, ...] | None
    shape: tuple[int, ...]


class Measure(NamedTuple):
    """A scope and a norm. Made by `measure`, which validates.

    Attributes:
        scope: `"element"`, `"unit"`, `"leaf"`, `"group"` or `"global"`.
        order: a float >= 1, `"rms"` or `"average"`.
        power: the p of the norm; 2 for means.
        axis: the axes that a unit reduces.
        axis_name: the mesh axes that shard the leaves, or `None` to find them.
        mask: the leaves that are measured; scopes `"global"` and `"group"` only.
        stacked: the axis along which leaves stack layers; scopes `"leaf"` and `"unit"` only.
        labels: the labels of the leaves; scope `"group"` only.
    """

    scope: Scope
    order: float | str
    power: float
    axis: Any
    axis_name: MeshAxes | None
    mask: Mask
    stacked: Stacked = None
    labels: Groups = None

    @property
    def differing(self) -> MeshAxes | None:
        """The mesh axes on which norms differ between devices, if the user named them."""
        return self.axis_name if self.scope == "element" else None

    def groups(self, flat: Flat) -> list[Group]:
        """The groups of the floating leaves, in their order."""
        arrays = flat.arrays
        if self.scope in ("global", "group"):
            members = list(range(len(arrays)))
            if self.mask is not None:
                members = [i for i, c in enumerate(flat.chosen(self.mask, "norm_mask")) if c]
            if self.scope == "global":
                return [Group(members, None, ())]
            return [Group(own, None, ()) for own in labels.members(self.labels, flat, members)]
        if self.scope == "element":
            return [Group([i], (), x.shape) for i, x in enumerate(arrays)]
        result: list[Group] = []
        names = flat.names if callable(self.axis) else [""] * len(arrays)
        leaves = zip(names, arrays, stacks.axes(self.stacked, flat), strict=True)
        for i, (name, x, stack) in enumerate(leaves):
            axes = units.reduced(self.scope, self.axis, name, x, stack)
            shape = tuple(1 if d in (axes or ()) else n for d, n in enumerate(x.shape))
            result.append(Group([i], axes, () if axes is None else shape))
        return result

    def norms(self, flat: Flat) -> list[Norm]:
        """The norm of each group."""
        return self.tabled(flat)[0]

    def tabled(self, flat: Flat) -> tuple[list[Norm], AnyTable]:
        """The norm of each group, and their table."""
        groups, kinds = self.plan(flat)
        found, table = _norms(groups, kinds)
        if self.order == "average":
            found = table.map(_over, found, [float(kind.elements) for kind in kinds])
        return found, table

    def plan(self, flat: Flat) -> tuple[list[Arrays], list[Kind]]:
        """The arrays of each group, and the kind of its norm."""
        groups, mesh = self.groups(flat), None
        if self.axis_name is not None or not jax.sharding.get_abstract_mesh().empty:
            mesh = self._mesh(flat, groups)
        arrays, kinds = [], []
        power = math.inf if self.scope == "element" else self.power
        for group in groups:
            own = tuple(map(flat.arrays.__getitem__, group.members))
            axes = None if mesh is None else tuple(map(mesh.__getitem__, group.members))
            elements = _elements(own, group.axes, axes)
            arrays.append(own)
            kinds.append(Kind(power, group.axes, axes, elements, self.order == "rms"))
        return arrays, kinds

    def _mesh(self, flat: Flat, groups: list[Group]) -> list[MeshAxes]:
        """The mesh axes over which the norm of each leaf is summed."""
        mesh: list[MeshAxes] = []
        for i, x in enumerate(flat.arrays):
            names = self.axis_name
            if self.stacked is not None and names is not None:
                names = tuple([n for n in names if collectives.may_vary(x, n)])
            axes = collectives.sharded_axes(x, names, flat.path(i))
            reduced = groups[i].axes if self.scope in ("leaf", "unit") else None
            if axes and names is None and reduced is not None and len(reduced) < x.ndim:
                part = "slice" if self.scope == "leaf" else "unit"
                raise ValueError(
                    f"axis_name=None: the leaf {flat.path(i)} is sharded over the mesh axes "
                    f"{axes}, but whether that divides its {part}s cannot be known. Pass "
                    f"axis_name= with the mesh axes over which one {part} is spread, or "
                    f"axis_name=() if every {part} is whole"
                )
            mesh.append(() if self.scope == "element" else axes)
        return mesh

    def zeros(self, flat: Flat) -> list[jax.Array]:
        """Zeros with the types of the norms, for the first memory of a threshold."""
        result = []
        for group in self.groups(flat):
            own = [flat.arrays[i] for i in group.members]
            dtype, total = accumulator(*own), jnp.zeros(group.shape, accumulator(*own))
            for x in own:
                summed = self._summed(x)
                differs = any(name not in summed for name in collectives.varying_axes(x))
                if len(own) == 1 or differs:
                    axes = range(x.ndim) if group.axes is None else group.axes
                    total += collectives.zeros_like_sum(x, axes, summed, group.shape, dtype)
            result.append(total)
        return result

    def _summed(self, x: jax.Array) -> MeshAxes:
        if self.scope == "element":
            return ()
        return collectives.varying_axes(x) if self.axis_name is None else self.axis_name

    def of_tree(self, flat: Flat, numbers: list[jax.Array]) -> jax.Array:
        """The norm of everything together without non-finite norms; at most the largest float."""
        if isinstance(self.order, str) and self.scope != "global":
            # Means cannot be joined without sizes, so the finite rest is measured.
            pairs = zip(flat.arrays, self.per_leaf(flat, numbers), strict=True)
            rest = [jnp.where(jnp.isfinite(n), x, jnp.zeros_like(x)) for x, n in pairs]
            rule = self._replace(scope="global", axis=None, stacked=None, labels=None)
            numbers = [rule.norms(flat._replace(arrays=rest))[0].number]
        numbers = [jnp.where(jnp.isfinite(n), n, jnp.zeros_like(n)) for n in numbers]
        return jnp.minimum(together(numbers, self.power), jnp.finfo(numbers[0].dtype).max)

    def spread(self, flat: Flat, tree: Any, name: str) -> list[Any]:
        """The value of a prefix tree for each group, as its norms are shaped if one per slice."""
        if self.scope == "global":
            return [tree]
        if self.scope == "group":
            return labels.values(tree, self.names(flat), name)
        pairs = zip(flat.spread(tree, name), self.groups(flat), strict=True)
        return [units.per_slice(v, g.shape) if self.scope == "leaf" else v for v, g in pairs]

    def labeled(self, flat: Flat) -> Flat:
        """The leaves with a label, at scope `"group"`."""
        return labels.labeled(self.labels, flat)

    def names(self, flat: Flat) -> list[str]:
        """The label of each group, at scope `"group"`."""
        return labels.distinct(labels.of_leaves(self.labels, flat))

    def per_leaf(self, flat: Flat, values: list[Any]) -> list[Any]:
        """The value of its group for each floating leaf."""
        if self.scope == "group":
            by_label: dict[str | None, Any] = dict(zip(self.names(flat), values, strict=True))
            return [by_label[label] for label in labels.of_leaves(self.labels, flat)]
        return values * len(flat.arrays) if self.scope == "global" else values

    def path(self, flat: Flat, i: int) -> str:
        """The name of the i-th group, for errors."""
        if self.scope == "group":
            return f"the group {self.names(flat)[i]!r}"
        return "the whole tree" if self.scope == "global" else flat.path(i)


def measure(
    scope: Scope,
    ord: Order = None,
    axis: UnitAxes = None,
    axis_name: AxisName = None,
    mask: Mask = None,
    stacked: Stacked = None,
    groups: Groups = None,
) -> Measure:
    """Validates the arguments that all rules share."""
    _validate.choice(scope, Scope, "scope")
    labels.check(groups, scope)
    if stacked is not None and scope not in ("leaf", "unit"):
        raise ValueError(
            f"stacked is only supported with scope='leaf' or 'unit'; got scope={short(scope)}"
        )
    if axis is not None and scope != "unit":
        raise ValueError(
            f"axis={short(axis)} is only supported with scope='unit'; got scope={short(scope)}"
        )
    order, names = _validate.norm_order(ord), _validate.mesh_axes(axis_name)
    stack = stacked if callable(stacked) else _validate.stack_axis(stacked)
    power = 2.0 if isinstance(order, str) else order
    return Measure(scope, order, power, _validate.axes(axis), names, mask, stack, groups)


def _elements(
    arrays: Arrays, axes: tuple[int, ...] | None, mesh: tuple[MeshAxes, ...] | None
) -> int:
    """The number of elements that one norm is of, on all devices; at least 1."""
    total = 0
    for i, x in enumerate(arrays):
        size = x.size if axes is None else math.prod([x.shape[a] for a in axes])
        total += size * (1 if mesh is None else collectives.shards(mesh[i]))
    return max(total, 1)


def _over(norm: Norm, count: jax.Array | float) -> Norm:
    return Norm(norm.value / count, norm.unit)


def _norms(groups: list[Arrays], kinds: list[Kind]) -> tuple[list[Norm], AnyTable]:
    """The norms of groups, and their table; norms that are known are not computed again."""
    found: list[Any] = list(map(_known, groups, kinds))
    missing = range(len(found))
    if any(found):
        missing = [i for i, norm in enumerate(found) if norm is None]
    if missing:
        own = tuple(map(groups.__getitem__, missing)), tuple(map(kinds.__getitem__, missing))
        table = power_sums.table_of(list(map(power_sums.type_of, *own)))
        norms = table.arrays(derivatives.norms(*own))
        if len(missing) == len(groups):
            return norms, table
        for i, norm in zip(missing, norms, strict=True):
            found[i] = norm
    return found, power_sums.table_of([norm.value for norm in found])


def _known(arrays: Arrays, kind: Kind) -> Norm | None:
    """The norm of nothing, or one that a wrapper shares."""
    if not arrays:
        return Norm(jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32))
    for theirs, their_kind, norm in _KNOWN.get():
        if kind == their_kind and list(map(id, arrays)) == list(map(id, theirs)):
            return norm
    return None


@contextlib.contextmanager
def shared(flat: Flat, rule: Measure, norm: Norm | None = None) -> Generator[Norm, None, None]:
    """Lets a wrapper share a global norm with the rules inside; computes it if it is not given.

    Arrays are compared by identity, also tracers: an array that changed on the way is measured.
    """
    (arrays,), (kind,) = rule.plan(flat)
    if norm is None:
        ((norm,), _) = _norms([arrays], [kind])
    token = _KNOWN.set((*_KNOWN.get(), (arrays, kind, norm)))
    try:
        yield norm
    finally:
        _KNOWN.reset(token)


def together(numbers: list[jax.Array], power: float) -> jax.Array:
    """The norm of all groups from those of each; devices may have groups of their own."""
    if len(numbers) == 1 and numbers[0].ndim == 0:
        return numbers[0]
    outside = jax.sharding.get_abstract_mesh().empty
    mesh = None if outside else tuple(map(collectives.varying_axes, numbers))
    own = tuple(numbers)
    return _norms([own], [Kind(power, None, mesh, _elements(own, None, mesh))])[0][0].number
