r"""A rule on the gradient of each example, before their mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._core import state as states
from jaxclip._core.examples import Parts, Reduce, examples, lowest
from jaxclip._core.flat_tree import difference
from jaxclip._core.state import ByLabel, ClipState
from jaxclip._core.types import AxisName, PyTree
from jaxclip._numerics.scaled_float import accumulator, widened
from jaxclip._validate import short
from jaxclip.thresholds.window import Ring
from jaxclip.transforms.guard import GuardState
from jaxclip.transforms.monitor import MonitorState


class PerExampleState(NamedTuple):
    """The state of `per_example`.

    Attributes:
        rule_state: the state of the rule, one for all examples.
        example_count: examples that counted in the last update; int32 scalar.
        nonfinite_count: examples left out so far, as not finite; int32 scalar.
    """

    rule_state: PyTree
    example_count: jax.Array
    nonfinite_count: jax.Array

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name."""
        return states.recorded(self, "rule_state")


# How the fields of records are joined. All other floats are averaged, and integers are the largest.
_JOINED: dict[type[Any], dict[str, str]] = {
    ClipState: {
        "norm": "largest",
        "threshold": "smallest",
        "smallest_scale": "smallest",
        "fraction": "share",
    },
    ByLabel: {"norms": "largest", "scales": "smallest"},
    GuardState: {
        "norm": "largest",
        "norm_threshold": "smallest",
        "value_threshold": "smallest",
    },
    MonitorState: {"norm": "largest", "norms": "largest"},
}


def per_example(
    rule: optax.GradientTransformation,
    *,
    axis: int = 0,
    reduce: Reduce = "mean",
    microbatch: int | None = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Applies a rule to the gradient of each example, and passes on their mean.

    $$g = \frac1B \sum_{i=1}^B \mathrm{rule}(g_i), \qquad
      \mathrm{rule}(g_i) = g_i \min\Big(1, \frac{c}{\|g_i\|}\Big) \text{ for a global norm}$$

    No example moves the mean by more than c/B, however bad it is. It comes first in a chain, since
    its input has an axis of examples in every leaf, and its output has none. Guarantees:

    | input | result |
    |---|---|
    | each example | the rule's result alone, with the rule's guarantees |
    | any dtype | kept; added in at least float32 |
    | an example whose result has a NaN or inf | left out and counted; B is not changed |
    | a row where `mask` is False | not in B, whatever it holds; never counted |
    | no row that counts | zeros |
    | integer, boolean or `float0` leaves | zeros: they are no gradients |

    `update(updates, state, params, mask=, batch=)` takes two more arguments. `mask`, of shape (B,)
    and bools, is False for padding. With `batch`, a tree with the axis of examples, `updates` is a
    function from one example to its gradients, such as
    `lambda example: jax.grad(loss)(params, example)`. Then no more than `microbatch` gradients are
    ever in memory; gradients with an axis of examples are in memory before they come here.

    The rule has one state. All examples of an update see the state before it. In the state after
    it counts have gone up by one; `metrics` has the largest norm, the smallest threshold and
    factor, and the fraction of examples clipped; the memory of a threshold is the mean of those
    that the examples leave. A window of norms cannot be averaged, so `autoclip`,
    `clip_by_history` and the thresholds `quantile` and `mean_plus_sigma` are refused: take
    `thresholds.tracked_quantile` or another that keeps averages.

    Args:
        rule: any rule of this library or of Optax, or a chain of them.
        axis: the axis of the examples, of every floating leaf of the updates or of `batch`.
        reduce: `"mean"`, over the examples that count, or `"sum"`. For differential privacy take
            the sum and divide by a constant: the number of examples that count is data too.
        microbatch: the number of examples that are computed together, `None` for all. The sums are
            added in another order, so a result changes by rounding only. On a mesh it should be a
            multiple of the devices that share the batch; with one that does not divide B, the
            batch is padded, which copies it.
        axis_name: mesh axes that split the examples. `None`: inside `shard_map` the axes over which
            the gradients vary by type and `params` do not, or over which `batch` varies. Names:
            needed under `pmap`, `vmap` and `shard_map(check_vma=False)`. The rule does not sum
            norms over them.

    Returns:
        A transformation whose state is a `PerExampleState`. All other extra arguments of `update`
        reach the rule, as does `params`, without an axis of examples.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument has a wrong value, or `rule` keeps a window of norms; in
            `update`, if a leaf does not have the axis of examples or does not fit `params`, or if
            the mesh axes cannot be known.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxclip, optax
        >>> tx = optax.chain(jaxclip.per_example(jaxclip.clip_by_global_norm(5.0)), optax.sgd(1.0))
        >>> params = jnp.zeros(2)
        >>> grads = jnp.array([[6.0, 8.0], [1.0, 2.0], [jnp.nan, 1.0], [0.0, 0.0], [9.0, 9.0]])
        >>> mask = jnp.array([True, True, True, True, False])
        >>> updates, state = tx.update(grads, tx.init(params), params, mask=mask)
        >>> print(updates)
        [-1.  -1.5]
        >>> print(jaxclip.metrics(state)["per_example/nonfinite_count"])
        1

    References:
        Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133, algorithm 1.
    """
    if not isinstance(rule, optax.GradientTransformation):
        raise TypeError(f"rule={short(rule)} must be an optax transformation")
    inner = optax.with_extra_args_support(rule)
    how = examples(axis, reduce, microbatch, axis_name)
    kind = states.named(PerExampleState, "per_example")

    def init(params: PyTree) -> Any:
        state = inner.init(params)
        if any(map(_is_ring, jax.tree.leaves(state, is_leaf=_is_ring))):
            raise ValueError(
                f"rule={short(rule)} keeps a window of norms, and windows of many examples cannot "
                "be averaged: take thresholds.tracked_quantile, or one that keeps moving averages"
            )
        return kind(state, *[jnp.zeros((), jnp.int32) for _ in range(2)])

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        mask: Any = None,
        batch: PyTree = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        if not isinstance(state, kind):
            raise states.other_type(state, kind)
        before = state.rule_state

        def change(gradients: PyTree) -> tuple[PyTree, PyTree]:
            return inner.update(gradients, before, params, **extra_args)

        def parts(after: PyTree, row: jax.Array, good: jax.Array) -> Parts:
            if jax.tree.structure(after) != jax.tree.structure(before):
                found = difference(before, after, ("the state", "the next state"))
                raise ValueError(f"the state is not that of rule: {found}")
            pairs = zip(_ways(before), *map(jax.tree.leaves, (before, after)), strict=True)
            each = [_part(way, old, new, row, good) for way, old, new in pairs]
            added = [x if way in ("mean", "share") else () for way, x in each]
            largest = [() if way in ("mean", "share") else x for way, x in each]
            return Parts((added, good.astype(jnp.float32)), largest)

        found = how.reduced(updates, change, parts, batch=batch, mask=mask, params=params)
        added, good = found.parts.added
        pairs = zip(_ways(before), jax.tree.leaves(before), added, found.parts.largest, strict=True)
        leaves = [_joined(way, old, a, x, found.examples, good) for way, old, a, x in pairs]
        after = jax.tree.unflatten(jax.tree.structure(before), leaves)
        number = states.increased(state.nonfinite_count, found.left_out)
        return found.tree, kind(after, found.examples, number)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_ring(x: Any) -> bool:
    return isinstance(x, Ring)


def _ways(state: PyTree) -> list[str]:
    """How each leaf of a state is joined."""

    def is_record(x: Any) -> bool:
        return isinstance(x, tuple(_JOINED))

    found: list[str] = []
    for node in jax.tree.leaves(state, is_leaf=is_record):
        if not is_record(node):
            is_float = jnp.issubdtype(jnp.result_type(node), jnp.inexact)
            found.append("mean" if is_float else "count")
            continue
        ways = next(ways for kind, ways in _JOINED.items() if isinstance(node, kind))
        for field, child in node._asdict().items():
            own = _ways(child)
            found += [ways[field]] * len(own) if field in ways else own
    return found


def _part(way: str, old: Any, new: Any, row: jax.Array, good: jax.Array) -> tuple[str, jax.Array]:
    """What one example adds to a leaf of the state, or of which the largest is taken."""
    new = jnp.asarray(new)
    if way == "count":
        if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
            new = jax.random.key_data(new)
        return way, new.astype(jnp.int32) if new.dtype == bool else new
    if way in ("mean", "share"):
        wide = accumulator(new)
        off = widened(new, wide) - (widened(_base(old), wide) if way == "mean" else 0)
        return way, jnp.where(good if way == "mean" else row, off, jnp.zeros_like(off))
    signed = -new if way == "smallest" else new
    return way, jnp.where(row, signed, jnp.full_like(signed, lowest(signed.dtype)))


def _joined(
    way: str, old: Any, added: Any, largest: Any, examples: jax.Array, good: jax.Array
) -> jax.Array:
    """A leaf of the state from the parts of all examples; as it was if there is none."""
    old = jnp.asarray(old)
    if way == "count":
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(largest, impl=jax.random.key_impl(old))
        return largest.astype(old.dtype)
    if way in ("mean", "share"):
        number = good if way == "mean" else examples
        mean = added / jnp.maximum(number, 1).astype(jnp.finfo(added.dtype).dtype)
        new = mean if way == "share" else mean + widened(_base(old), accumulator(old))
    else:
        number, new = examples, -largest if way == "smallest" else largest
    return jnp.where(number > 0, new.astype(old.dtype), old)


def _base(old: Any) -> jax.Array:
    """The number from which means are taken, so that the mean of equal ones is that number."""
    old = jnp.asarray(old)
    return jnp.where(jnp.isfinite(old), old, jnp.zeros_like(old))
