"""What a rule remembers and records: one NamedTuple of arrays, fixed by `init`.

Each rule has a subclass of its own, so that a state says which rule it belongs to while its leaves
stay arrays only: that is what `scan`, `cond`, donation, `MultiSteps` and checkpoints need.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_RECORD = ("norm", "threshold", "scale", "fraction", "count", "clipped_count", "nonfinite_count")


class Record(NamedTuple):
    """What one update has to tell, as scalars."""

    norm: jax.Array
    threshold: jax.Array
    scale: jax.Array
    fraction: jax.Array
    clipped: jax.Array
    nonfinite: jax.Array


class ClipState(NamedTuple):
    """The state of a rule.

    Attributes:
        norm: the norm before clipping, the largest where the rule has many; float32 scalar.
        threshold: what it was held against, the smallest where the rule has many; float32 scalar.
        scale: the smallest factor applied; float32 scalar.
        fraction: the share of the rule's units that were clipped; float32 scalar.
        count: updates so far; int32 scalar.
        clipped_count: updates in which something was clipped; int32 scalar.
        nonfinite_count: updates in which a norm was NaN or inf; int32 scalar.
        memory: what the threshold remembers, a pytree of arrays.

    A field is `None` where the rule does not record it.
    """

    norm: Any = None
    threshold: Any = None
    scale: Any = None
    fraction: Any = None
    count: Any = None
    clipped_count: Any = None
    nonfinite_count: Any = None
    memory: Any = ()

    def scalars(self) -> dict[str, Any]:
        """What is recorded, by name."""
        return {key: getattr(self, key) for key in _RECORD if getattr(self, key) is not None}


def named(base: type[Any], rule: str) -> type[Any]:
    """The type of the states of the rule of this name: `base`, with the attribute `rule`."""
    if not isinstance(rule, str) or not rule or "/" in rule:
        raise ValueError(f"name={rule!r} must be a string without '/', to be a key of metrics")
    return _named(base, rule)


@functools.cache
def _named(base: type[Any], rule: str) -> type[Any]:
    title = "".join(word.capitalize() for word in rule.split("_"))

    def reduce(state: Any) -> Any:
        return _rebuild, (base, rule, tuple(state))

    body = {"__slots__": (), "rule": rule, "__reduce__": reduce, "__doc__": base.__doc__}
    return type(f"{title}State", (base,), body)


def _rebuild(base: type[Any], rule: str, fields: tuple[Any, ...]) -> Any:
    kind = named(base, rule)
    if len(fields) != len(kind._fields):
        raise ValueError(
            f"a pickled state of {rule} has {len(fields)} fields, where this version of jaxclip "
            f"has {len(kind._fields)}: {', '.join(kind._fields)}"
        )
    return kind(*fields)


def first(rule: str, memory: Any = (), *, record: bool = True) -> ClipState:
    """The state before the first update. Every field has a buffer of its own, to be donated."""
    if not record:
        return named(ClipState, rule)(count=jnp.zeros((), jnp.int32), memory=memory)
    return named(ClipState, rule)(
        norm=jnp.zeros((), jnp.float32),
        threshold=jnp.full((), jnp.inf, jnp.float32),
        scale=jnp.ones((), jnp.float32),
        fraction=jnp.zeros((), jnp.float32),
        count=jnp.zeros((), jnp.int32),
        clipped_count=jnp.zeros((), jnp.int32),
        nonfinite_count=jnp.zeros((), jnp.int32),
        memory=memory,
    )


def of_nothing(memory: Any) -> Any:
    """A memory whose lists and dicts of what there is for each leaf are numbers if there is none.

    `optax.tree_utils.tree_map_params` asks for the state of a tree without leaves, and takes each
    of its leaves for the whole of what stands there in a state.
    """

    def is_empty(x: Any) -> bool:
        return isinstance(x, list | dict) and not x

    return jax.tree.map(
        lambda x: jnp.zeros((), jnp.float32) if is_empty(x) else x, memory, is_leaf=is_empty
    )


def checked_or_first(state: Any, init: Callable[[Any], ClipState], updates: Any) -> Any:
    """The state, or a first one where a stateless rule of Optax was replaced by one of ours."""
    if state is None or isinstance(state, optax.EmptyState):
        return init(updates)
    return checked(state, init, updates)


def checked(state: Any, init: Callable[[Any], Any], updates: Any) -> Any:
    """The state, if it is one of this rule with these arguments, for updates like these.

    A ring of another length, or the state of another rule, would often do, and tell what is not so.
    """
    own = jax.eval_shape(lambda: init(updates))
    if type(state) is not type(own):
        raise TypeError(f"state={state!r} is not a state of {own.rule}; make one with init(params)")
    shapes, wanted = _shapes(state), _shapes(own)
    for key in wanted | shapes:
        if shapes.get(key) != wanted.get(key):
            has, wants = (f"shape {x[key]}" if key in x else "nothing" for x in (shapes, wanted))
            raise ValueError(
                f"the state of {own.rule} has {has} at state{key}, where this rule has {wants}: it "
                "was made with other arguments, for other parameters or by another version of "
                "jaxclip; make one with init(params)"
            )
    return state


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}


def following(state: ClipState, record: Record | None, memory: Any = ()) -> ClipState:
    """The state after an update."""
    count = optax.safe_increment(state.count)
    if record is None:
        return state._replace(count=count, memory=memory)
    return state._replace(
        norm=record.norm.astype(jnp.float32),
        threshold=record.threshold.astype(jnp.float32),
        scale=record.scale.astype(jnp.float32),
        fraction=record.fraction.astype(jnp.float32),
        count=count,
        clipped_count=counted(state.clipped_count, record.clipped),
        nonfinite_count=counted(state.nonfinite_count, record.nonfinite),
        memory=memory,
    )


def counted(count: jax.Array, happened: jax.Array) -> jax.Array:
    """One more if it happened."""
    return jnp.where(happened, optax.safe_increment(count), count)
