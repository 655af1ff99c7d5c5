"""The states of transformations: NamedTuples of arrays with the types that `init` made.

Each rule has a subclass of its own, so a state says which rule it belongs to while its leaves stay
arrays: `scan`, `cond`, donation, `MultiSteps` and checkpoints need that.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core.flat_tree import Flat, flatten
from jaxclip._core.types import PyTree
from jaxclip._numerics.scaled_float import narrowed, unlimited
from jaxclip._validate import short

_KEYS = {"smallest_scale": "scale", "update_count": "count"}  # of metrics, where not the field


class Record(NamedTuple):
    """The scalars that one update records."""

    norm: jax.Array
    threshold: jax.Array
    scale: jax.Array
    fraction: jax.Array
    clipped: jax.Array
    nonfinite: jax.Array


class ByLabel(NamedTuple):
    """The memory of a rule with a norm for each group of leaves.

    Attributes:
        memory: the memory of the threshold.
        norms: the norm of each group before clipping, by label; float32 scalars.
        scales: the factor applied to each group, by label; float32 scalars.
    """

    memory: PyTree
    norms: dict[str, jax.Array]
    scales: dict[str, jax.Array]

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name."""
        found: dict[str, jax.Array] = {}
        for key, values in (("norm", self.norms), ("scale", self.scales)):
            pairs = values.items() if isinstance(values, dict) else ()
            found |= {f"{key}/{label}": value for label, value in pairs}
        return found


class ClipState(NamedTuple):
    """The state of a rule. A field is `None` where the rule does not record it.

    Attributes:
        norm: the norm before clipping, the largest where the rule has many; float32 scalar.
        threshold: its threshold, the smallest where the rule has many; inf for none, or under
            `jax.debug_infs` the largest float; float32 scalar.
        smallest_scale: the smallest factor applied; float32 scalar.
        fraction: the fraction of the rule's norms that were clipped; float32 scalar.
        update_count: updates so far; int32 scalar.
        clipped_count: updates in which something was clipped; int32 scalar.
        nonfinite_count: updates in which a norm was NaN or inf; int32 scalar.
        memory: the memory of the threshold, a pytree of arrays; at scope `"group"` a `ByLabel`.
    """

    norm: jax.Array | None
    threshold: jax.Array | None
    smallest_scale: jax.Array | None
    fraction: jax.Array | None
    update_count: jax.Array
    clipped_count: jax.Array | None
    nonfinite_count: jax.Array | None
    memory: PyTree

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name."""
        own = self.memory.scalars() if isinstance(self.memory, ByLabel) else {}
        return recorded(self, "memory") | own


def by_label(memory: Any, names: Sequence[str], norms: Any, scales: Any) -> ByLabel:
    """The memory of a rule with the norms and the scales of groups of these names."""
    found = [
        {k: narrowed(x, jnp.float32) for k, x in zip(names, values, strict=True)}
        for values in (norms, scales)
    ]
    return ByLabel(memory, *map(without_leaves, found))


def recorded(state: Any, *unseen: str) -> dict[str, jax.Array]:
    """The fields of a state that are not `None`, but for some, by their keys in `metrics`.

    No field is called as one of Optax's states, so `optax.tree_utils.tree_get` and `tree_set` of
    a chain still mean Optax's.
    """
    fields: dict[str, Any] = {k: v for k, v in state._asdict().items() if k not in unseen}
    return {_KEYS.get(key, key): value for key, value in fields.items() if value is not None}


def named(base: type[Any], rule: Any) -> type[Any]:
    """The subclass of a state for the rule of this name, with the attribute `rule`."""
    if not isinstance(rule, str) or not rule or "/" in rule:
        raise ValueError(f"name={short(rule)} must be a string without '/', to be a key of metrics")
    return _named(base, rule)


@functools.cache
def _named(base: type[Any], rule: str) -> type[Any]:
    title = "".join(word.capitalize() for word in rule.split("_"))

    def reduce(state: Any) -> Any:
        return _rebuild, (base, rule, tuple(state))

    body = {"__slots__": (), "rule": rule, "__reduce__": reduce, "__doc__": base.__doc__}
    return type(f"{title}State", (base,), body)


def _rebuild(base: type[Any], rule: str, fields: tuple[Any, ...]) -> Any:
    """Unpickles a state. Fields that an older version did not have get their defaults."""
    kind = named(base, rule)
    if not 0 <= len(kind._fields) - len(fields) <= len(kind._field_defaults):
        raise ValueError(
            f"a pickled state of {rule} has {len(fields)} fields, but this version of jaxclip has "
            f"{len(kind._fields)}: {', '.join(kind._fields)}"
        )
    return kind(*fields)


def first(rule: str, memory: Any = (), *, record: bool = True) -> ClipState:
    """The state before the first update. Every field has its own buffer, for donation."""
    kind = named(ClipState, rule)
    if not record:
        return kind(*[None] * 4, jnp.zeros((), jnp.int32), None, None, memory)
    values = (0.0, unlimited(jnp.float32), 1.0, 0.0)
    scalars = [jnp.full((), value, jnp.float32) for value in values]
    counts = [jnp.zeros((), jnp.int32) for _ in range(3)]
    return kind(*scalars, *counts, memory)


def without_leaves(memory: Any) -> Any:
    """A memory in which an empty list or dict is a number.

    `optax.tree_utils.tree_map_params` asks for the state of a tree without leaves, and takes each
    of its leaves for the place of a tree.
    """

    def is_empty(x: Any) -> bool:
        return isinstance(x, list | dict) and not x

    def number(x: Any) -> Any:
        return jnp.zeros((), jnp.float32) if is_empty(x) else x

    return jax.tree.map(number, memory, is_leaf=is_empty)


def checked(
    first: Callable[[Any], Any], kind: type[Any]
) -> tuple[optax.TransformInitFn, Callable[[Any, PyTree], Any]]:
    """Makes `init(params)` and `check(state, updates)` from what makes a first state.

    `init` remembers the shapes of the states that it makes. `check` returns a state of this type
    and these shapes, makes one where a stateless rule of Optax was replaced, and raises for any
    other: a ring of another length would often work, and record falsehoods.
    """
    made: dict[Any, dict[Any, tuple[int, ...]]] = {}  # by the shapes of the parameters

    def init(params: PyTree) -> Any:
        state = first(params)
        made[tuple(map(jnp.shape, jax.tree.leaves(params)))] = _shapes(state)
        return state

    def check(state: Any, updates: PyTree) -> Any:
        if state is None or isinstance(state, optax.EmptyState):
            return first(updates)
        if not isinstance(state, kind):
            raise other_type(state, kind)
        key, own = tuple(map(jnp.shape, jax.tree.leaves(updates))), _shapes(state)
        if key not in made:
            try:
                made[key] = _shapes(jax.eval_shape(first, updates))
            except _validate.TracedSizeError:  # no window is known to compare with
                return state
        if own != made[key]:
            _raise_other_state(state, own, made[key])
        return state

    return init, check


def wrapping(
    first: Callable[[Any], Any], kind: type[Any], field: str, inner: optax.GradientTransformation
) -> tuple[optax.TransformInitFn, Callable[[Any, PyTree], None]]:
    """`checked` for the state of a wrapper, whose `field` holds the state of `inner`, unchecked."""
    own_init, own_check = checked(first, kind)

    def init(params: PyTree) -> Any:
        state: Any = own_init(params)
        return state._replace(**{field: inner.init(params)})

    def check(state: Any, tree: PyTree) -> None:
        if not isinstance(state, kind):
            raise other_type(state, kind)
        own_check(state._replace(**{field: ()}), tree)

    return init, check


def transformation(
    first: Callable[[PyTree], Any],
    kind: type[Any],
    step: Callable[[Flat, Any, PyTree], tuple[PyTree, Any]],
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a state.

    Args:
        first: `first(params) -> state`, the state before the first update.
        kind: the type of the state.
        step: `step(updates, state, params) -> (updates, state)`, given the updates taken apart.
    """
    init, check = checked(first, kind)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        del extra_args
        state = check(state, updates)
        return step(flatten(updates), state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def other_type(state: Any, kind: type[Any]) -> TypeError:
    """The error for a state of another transformation."""
    return TypeError(
        f"state is a {type(state).__name__}, but {kind.rule} needs its own {kind.__name__}; "
        "make one with init(params), or move the old one with jaxclip.adopt(tx, params, old_state)"
    )


def _shapes(tree: Any) -> dict[Any, tuple[int, ...]]:
    """The shape of every leaf by its path."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shapes[path] = jnp.shape(leaf)
    return shapes


def _raise_other_state(state: Any, has: dict[Any, Any], wants: dict[Any, Any]) -> None:
    path = next(path for path in wants | has if wants.get(path) != has.get(path))
    own, wanted = (f"shape {x[path]}" if path in x else "nothing" for x in (has, wants))
    raise ValueError(
        f"the state of {state.rule} has {own} at state{jax.tree_util.keystr(path)}, but this rule "
        f"needs {wanted}: the state was made with other arguments, for other parameters or by "
        "another version of jaxclip; make one with init(params)"
    )


def following(state: ClipState, seen: Record | None, memory: Any = ()) -> ClipState:
    """The state after an update."""
    count = increased(state.update_count)
    if seen is None:
        return state._replace(update_count=count, memory=memory)
    return state._replace(
        norm=narrowed(seen.norm, jnp.float32),
        threshold=narrowed(seen.threshold, jnp.float32),
        smallest_scale=narrowed(seen.scale, jnp.float32),
        fraction=seen.fraction.astype(jnp.float32),
        update_count=count,
        clipped_count=increased(state.clipped_count, seen.clipped),
        nonfinite_count=increased(state.nonfinite_count, seen.nonfinite),
        memory=memory,
    )


def increased(count: Any, by: Any = 1) -> jax.Array:
    """A count that went up, or not, and stays at its largest value: an overflow wraps below it."""
    return jnp.maximum(count + jnp.asarray(by, count.dtype), count)
