"""A train step to be timed: gradients from matrix products, a rule, an optimizer.

All variants of a step take turns on the same parameters and the same optimizer state, so none has a
better place in memory; only the state of its rule is separate. Parameters start at zero, where
every update is visible in every dtype.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from benchmarks.speed.model_shapes import Shapes

LIMIT, SIZE = 1.0, 0.01  # the threshold; the standard deviation of the gradients' elements
DEPTH = 8  # of the matrix products
GUARDED = {jaxclip.GuardState: "guarded_state", optax.ApplyIfFiniteState: "inner_state"}
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "SGD": lambda: optax.sgd(0.5),
    "momentum": lambda: optax.sgd(0.5, momentum=0.9),
    "AdamW": lambda: optax.adamw(1e-3),
}


class Variant(NamedTuple):
    """A chain whose last member is the optimizer, or a guard around such a chain.

    Attributes:
        tx: the transformation.
        rule_state: the first state of the chain's first member, if not that of its `init`.
        read: whether the step also returns the metrics.
        forget: whether the step drops the state of all but the optimizer.
    """

    tx: optax.GradientTransformation
    rule_state: Any = None
    read: bool = False
    forget: bool = False


def compared(optimizer: str) -> dict[str, Variant]:
    """Returns the three variants of every step."""
    rules = {
        "none": optax.identity(),
        "Optax": optax.clip_by_global_norm(LIMIT),
        "jaxclip": jaxclip.clip_by_global_norm(LIMIT),
    }
    return {name: chained(rule, optimizer) for name, rule in rules.items()}


def chained(rule: optax.GradientTransformation, optimizer: str, **options: Any) -> Variant:
    return Variant(optax.chain(rule, OPTIMIZERS[optimizer]()), **options)


def zeros(tree: Shapes, dtype: Any) -> dict[str, jax.Array]:
    return {name: jnp.zeros(shape, dtype) for name, shape in tree.items()}


def ones_of(tree: Shapes) -> Shapes:
    """Returns the same leaves with one element each, for the state of a rule."""
    return dict.fromkeys(tree, (1,))


def factors(tree: Shapes, dtype: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns matrices a and b for each leaf; its gradient is a^T b."""
    draw = np.random.default_rng(0)
    scale = math.sqrt(SIZE / math.sqrt(DEPTH))

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(scale * draw.standard_normal(shape, np.float32), dtype)

    return {
        name: (normal(DEPTH, *([math.prod(rows)] if rows else [])), normal(DEPTH, last))
        for name, (*rows, last) in tree.items()
    }


def products(tree: Shapes, given: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
    """Returns the gradients."""
    return {name: (a.T @ b).reshape(tree[name]) for name, (a, b) in given.items()}


def inner(state: Any) -> Any:
    """Returns the optimizer's part of a chain's state, which comes last."""
    field = _guarded(state)
    return inner(getattr(state, field)) if field else state[-1]


def with_inner(state: Any, part: Any) -> Any:
    """Returns the state with another part for the optimizer."""
    field = _guarded(state)
    if field:
        return state._replace(**{field: with_inner(getattr(state, field), part)})
    return (*state[:-1], part)


def _guarded(state: Any) -> str | None:
    """Returns the field of a guard's state that holds the guarded one."""
    return next((field for kind, field in GUARDED.items() if isinstance(state, kind)), None)


class Bench:
    """Parameters and optimizer state, which the steps of all variants donate and replace."""

    def __init__(self, tree: Shapes, dtype: Any, *, given: bool = False):
        """Draws the matrices of the gradients, or computes the gradients if `given`."""
        self.tree, self.dtype, self._given = tree, dtype, given
        self._from: Any = factors(tree, dtype)
        if given:
            self._from = jax.jit(lambda x: products(tree, x))(self._from)
        self.params: Any = None
        self.inner: Any = None
        self._own: dict[str, Any] = {}

    def begin(self, variant: Variant) -> None:
        """Resets the parameters to zero and the optimizer to its first state."""
        self.params = zeros(self.tree, self.dtype)
        self.inner = inner(variant.tx.init(self.params))

    def norm(self) -> Callable[[], Any]:
        """Returns a function that reads the tree once: the norm of the parameters."""

        @jax.jit
        def norm(params: Any) -> jax.Array:
            squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(params)]
            return jnp.sqrt(sum(squares))

        return lambda: norm(self.params).block_until_ready()

    def lowered(self, variant: Variant) -> Any:
        """Returns the lowered step, without running it."""
        params = jax.eval_shape(lambda: zeros(self.tree, self.dtype))
        state = jax.eval_shape(variant.tx.init, params)
        return self._jitted(variant, None).lower(params, state, self._from)

    def step(self, name: str, variant: Variant) -> Callable[[], Any]:
        """Returns a function that takes a step and returns its metrics if `read`."""
        first = variant.tx.init(zeros(ones_of(self.tree), self.dtype))
        if variant.rule_state is not None:
            first = (variant.rule_state, *first[1:])
        first = with_inner(first, None)
        jitted = self._jitted(variant, first)
        self._own[name] = (None,) if variant.forget else first

        def run() -> Any:
            state = with_inner(self._own[name], self.inner)
            done = jitted(self.params, state, self._from)
            self.params, state, record = jax.block_until_ready(done)
            self.inner = inner(state)
            self._own[name] = with_inner(state, None)
            return record

        return run

    def _jitted(self, variant: Variant, first: Any) -> Any:
        tx = variant.tx

        def step(params: Any, state: Any, source: Any) -> tuple[Any, Any, Any]:
            grads = source if self._given else products(self.tree, source)
            full = with_inner(first, inner(state)) if variant.forget else state
            updates, after = tx.update(grads, full, params)
            record = jaxclip.metrics(after) if variant.read else None
            after = (inner(after),) if variant.forget else after
            return optax.apply_updates(params, updates), after, record

        return jax.jit(step, donate_argnums=(0, 1))
