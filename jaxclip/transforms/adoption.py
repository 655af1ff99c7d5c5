"""Moving the state of a running optimizer into a chain with other rules.

The optimizer must be the same in both chains; rules, guards and monitors may come, go and change
places.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core.types import PyTree
from jaxclip.transforms.stable_adam import AdamMoments
from jaxclip.transforms.state_parts import Leaf, Parts, is_adam

_WITHOUT = "adopt old_state into a chain without {}, and the result into tx"


def adopt(
    tx: optax.GradientTransformation | optax.MultiSteps, params: PyTree, old_state: PyTree
) -> PyTree:
    """The state of `tx` that continues the run of another chain.

    Use it in mid-run, to replace Optax's clipping rules by these, or to add, remove or reorder
    rules, guards and monitors:

    | part of the state of `tx` | its arrays |
    |---|---|
    | the optimizer: moments, counts, schedules, hyperparameters | those of `old_state` |
    | a rule, guard or monitor that `old_state` has under this name | those of `old_state` |
    | any other; a hyperparameter that `old_state` does not have | those of `tx.init(params)` |

    Every array of the old optimizer arrives bit for bit, or an error names the first difference.
    Rules, guards and monitors that `tx` does not have are left out, and so is the record of
    `optax.apply_if_finite`. `scale_by_stable_adam` continues `optax.scale_by_adam`: it keeps the
    root of the second moment, which is rounded once. Two rules of one name are distinguished by
    their order.

    Args:
        tx: the new chain: the old optimizer, with other rules, guards or monitors.
        params: the parameters, as for `tx.init`.
        old_state: the state of the old chain. From a file it may also be the nested dicts and
            lists that Orbax and msgpack return without a target, from version 0.1.0 on; those do
            not name the rules, which their memory and their order then distinguish.

    Returns:
        The state of `tx`, with the shapes and dtypes of `tx.init(params)`. It shares arrays with
        `old_state`, so donating one deletes arrays of the other.

    Raises:
        ValueError: if a part of one optimizer has no place in the other, or another shape or dtype;
            if the memory of a rule has; if it is not known which of several rules continues.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> params, grads = jnp.zeros(2), jnp.array([3.0, 4.0])
        >>> old = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
        >>> _, old_state = old.update(grads, old.init(params))
        >>> new = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
        >>> tx = jaxclip.skip_nonfinite(new)
        >>> state = jaxclip.adopt(tx, params, old_state)
        >>> print(optax.tree_utils.tree_get(state, "trace"))
        [0.6 0.8]
    """
    new_state = tx.init(params)
    raw = not _any(old_state, lambda x: hasattr(x, "_fields"))
    stable = _any(new_state, lambda x: isinstance(x, AdamMoments))
    old = Parts(old_state, raw, stable_adam=stable and not _any(new_state, is_adam))
    new = Parts(new_state, raw)
    known = {leaf.names for leaf in old.optimizer}
    needed = [leaf for leaf in new.optimizer if leaf.names in known or not leaf.extra]
    moved = _matched(old.optimizer, needed, "Optimizer and parameters must be as before")
    for rule, *pair in _paired(old, new):
        fields = {x.names[0] for x in pair[0]} & {x.names[0] for x in pair[1]} | {"memory"}
        olds, news = ([x for x in part if x.names[0] in fields] for part in pair)
        moved |= _matched(olds, news, f"To start {rule} anew, {_WITHOUT.format(rule)}")
    return jax.tree_util.tree_map_with_path(lambda path, x: moved.get(path, x), new_state)


def _paired(old: Parts, new: Parts) -> Iterator[tuple[str, list[Leaf], list[Leaf]]]:
    """The records that continue, each with its rule and the new one; raises if unknown."""
    both = [
        key for key, parts in new.records.items() if len(old.records.get(key, ())) == len(parts)
    ]
    rest = ({key[:2] for key in state.records.keys() - both} for state in (old, new))
    for rule, _ in set.intersection(*rest):
        advice = f"To start {rule} anew, {_WITHOUT.format(rule)}"
        if old.raw:
            advice = (
                "Restore old_state with a target, init(params) of its own chain, to know the rules"
            )
        raise ValueError(
            f"old_state and tx have {rule} at other places or in other numbers, so it is not known "
            f"which one continues. {advice}"
        )
    for key in both:
        for pair in zip(old.records[key], new.records[key], strict=True):
            yield key[0], *pair


def _matched(olds: list[Leaf], news: list[Leaf], advice: str) -> dict[Any, Any]:
    """The old arrays by their new key paths; raises at the first that has no place."""
    moved = {}
    for old, new in itertools.zip_longest(olds, news):
        if old is None or new is None or old.kind != new.kind:
            raise ValueError(
                "old_state does not fit tx. The first difference:\n"
                f"old_state has {_described(old)}\ntx needs {_described(new)}\n{advice}"
            )
        kept = isinstance(old.value, jax.Array)  # jnp.asarray might move it to another device
        moved[new.path] = old.value if kept else jnp.asarray(old.value)
    return moved


def _described(leaf: Leaf | None) -> str:
    if leaf is None:
        return "nothing"
    owners = [name[0] for name in leaf.names if isinstance(name, tuple)]
    path = _validate.cut(jax.tree_util.keystr(leaf.path))
    place = f"{' '.join(owners[-1:])} {path}".strip() or "a leaf"
    return f"{place} of shape {leaf.kind[1]}, dtype {leaf.kind[2]}"


def _any(tree: PyTree, test: Callable[[Any], bool]) -> bool:
    """Whether some node passes the test."""
    return any(map(test, jax.tree.leaves(tree, is_leaf=test)))
