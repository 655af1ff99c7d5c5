"""Groups of leaves by label: which leaves have which label, and values by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxclip._core.flat_tree import Flat
from jaxclip._core.types import Groups
from jaxclip._validate import short


def check(groups: Groups, scope: str) -> None:
    """Checks that labels are given at scope `"group"`, and nowhere else."""
    if groups is None and scope == "group":
        raise ValueError(
            "groups=None: scope='group' needs a prefix tree of labels, or a function from the "
            "tree to one"
        )
    if groups is not None and scope != "group":
        raise ValueError(f"groups is only supported with scope='group'; got scope={short(scope)}")


def of_leaves(groups: Any, flat: Flat) -> list[str | None]:
    """The label of each floating leaf; `None` if it has none."""
    if not flat.places:  # a placeholder, which `optax.tree_utils.tree_map_params` gives to `init`
        return []
    asks = callable(groups) and not any(isinstance(x, str) for x in jax.tree.leaves(groups))
    found = flat.spread(groups(flat.tree) if asks else groups, "groups")
    for label in found:
        if not isinstance(label, (str, type(None))):
            raise TypeError(f"groups has the label {short(label)}; it must be a string or None")
    return found


def distinct(found: Sequence[str | None]) -> list[str]:
    """The labels in their order."""
    return sorted({label for label in found if label is not None})


def labeled(groups: Groups, flat: Flat) -> Flat:
    """The tree with the floating leaves that have a label."""
    return flat.only([label is not None for label in of_leaves(groups, flat)])


def members(groups: Groups, flat: Flat, chosen: Sequence[int]) -> list[list[int]]:
    """The positions of the leaves of each label, of those chosen."""
    found = of_leaves(groups, flat)
    return [[i for i in chosen if found[i] == label] for label in distinct(found)]


def values(tree: Any, names: Sequence[str], name: str) -> list[Any]:
    """The value for each label: of a dict by label, or one for all."""
    if not isinstance(tree, Mapping):
        return [tree] * len(names)
    missing = [label for label in names if label not in tree]
    if missing:
        raise ValueError(
            f"{name}={short(tree)} has no value for the label {missing[0]!r} of groups; "
            "None is no limit"
        )
    return [tree[label] for label in names]
