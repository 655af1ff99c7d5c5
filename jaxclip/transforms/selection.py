"""A transformation's step, selected against the old state where each part of the state is made.

Selected last, the old state would have to live until the step had been computed from the new one,
and XLA would copy it. So the update is traced to equations. Each leaf of the new state is selected
behind the equation that makes it, and later equations read the selected leaf. If the old state is
kept, their results are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxclip import _validate
from jaxclip._core.types import PyTree

# These cost more than a pass over memory, so no step is computed twice with them.
_NAMES = """
    all_gather all_to_all cholesky cond conv_general_dilated custom_linear_solve dot_general eig
    eigh fft ffi_call lu pallas_call pmax pmin ppermute psum psum2 psum_invariant pure_callback qr
    ragged_dot ragged_dot_general random_bits reduce_scatter scan schur shard_map sort svd
    threefry2x32 top_k triangular_solve tridiagonal tridiagonal_solve while
"""
_HEAVY = frozenset(_NAMES.split())


class Program(NamedTuple):
    """The equations of one update.

    Attributes:
        equations: those of the update, in their order.
        read: the variables that an equation reads, or that are results.
        values: the value of each variable that is known.
        results: the variables or literals of the leaves that are computed.
        old: the old leaf of each result; `None` for leaves of the step.
        part_of: `part_of(equations, inputs, outputs)` is a function from inputs to outputs.
        tree: `tree(leaves)` is the step and the new state, with those leaves that are computed.
    """

    equations: list[Any]
    read: frozenset[Any]
    values: dict[Any, Any]
    results: list[Any]
    old: list[Any]
    part_of: Any
    tree: Callable[[list[Any]], tuple[PyTree, PyTree]]

    def computed(self) -> Program:
        """The same with all values, nothing selected."""
        return self._replace(values=self.values | self._run(self.equations, self.values))

    def unselected(self) -> tuple[PyTree, PyTree]:
        """The step and the new state, once computed."""
        return self.tree([self._read(x, self.values) for x in self.results])

    def selected(self, keep: jax.Array) -> tuple[PyTree, PyTree]:
        """The step, and the old state if `keep`, else the new one; the step is not selected."""
        early = self._early()
        equations = self.equations
        if all(v in self.values for e in equations for v in self._made(e)):  # computed before
            equations = _dependents(equations, early)
            if any(map(_is_heavy, equations)):
                early, equations = {}, []
        again = {v for e in equations for v in e.outvars}
        values = dict(self.values)
        values |= {v: pick(keep, x, values[v]) for v, x in early.items() if v not in again}
        run: list[Any] = []
        waiting: set[Any] = set()  # made in this run, and not selected yet
        for equation in [*equations, None]:
            if equation is None or not waiting.isdisjoint(_read_by(equation)):
                values |= self._run(run, values)
                values |= {v: pick(keep, early[v], values[v]) for v in waiting}
                run, waiting = [], set()
            if equation is not None:
                run.append(equation)
                waiting |= early.keys() & set(equation.outvars)
        leaves = [self._read(x, values) for x in self.results]
        for i, (x, old) in enumerate(zip(self.results, self.old, strict=True)):
            if old is not None and not (_is_variable(x) and early.get(x) is old):
                leaves[i] = pick(keep, old, leaves[i])
        return self.tree(leaves)

    def _early(self) -> dict[Any, Any]:
        """The variables that are leaves of the new state, made by an equation; their old values."""
        made = {v for e in self.equations for v in e.outvars}
        found: dict[Any, Any] = {}
        for x, old in zip(self.results, self.old, strict=True):
            if old is not None and _is_variable(x) and x in made and _same_type(x.aval, old):
                found.setdefault(x, old)
        return found

    def _run(self, equations: list[Any], values: dict[Any, Any]) -> dict[Any, Any]:
        """The values that some equations make."""
        if not equations:
            return {}
        made = [v for e in equations for v in self._made(e)]
        own = set(made)
        inputs = list(dict.fromkeys(v for e in equations for v in _read_by(e) if v not in own))
        run = self.part_of(equations, inputs, made)
        return dict(zip(made, run(*[values[v] for v in inputs]), strict=True))

    def _made(self, equation: Any) -> list[Any]:
        return [v for v in equation.outvars if v in self.read]

    @staticmethod
    def _read(x: Any, values: dict[Any, Any]) -> Any:
        return values[x] if _is_variable(x) else x.val


def program(update: Callable[[], tuple[PyTree, PyTree]], state: PyTree, inputs: PyTree) -> Program:
    """The program of an update.

    Args:
        update: returns the step and the next state, which has the structure of the old one.
        state: the old state.
        inputs: all that `update` depends on. Outside of traces it has no equations.
    """
    leaves: list[Any] = []
    old: list[Any] = []
    places: list[int] = []
    trees: list[Any] = []

    def flat() -> list[Any]:
        step, after = update()
        found, tree = jax.tree.flatten((step, after))
        trees[:] = [tree]
        known = jax.tree.leaves(state)
        old[:] = [None] * (len(found) - len(known)) + known
        places[:] = [
            i for i, (x, y) in enumerate(zip(found, old, strict=True)) if x is not y and kept(x)
        ]
        made = set(places)  # which are not kept here: they would leak from the trace
        leaves[:] = [None if i in made else x for i, x in enumerate(found)]
        return [found[i] for i in places]

    def kept(x: Any) -> bool:
        return not is_traced or _validate.is_traced(x)

    def tree(computed: list[Any]) -> tuple[PyTree, PyTree]:
        all_leaves = list(leaves)
        for i, x in zip(places, computed, strict=True):
            all_leaves[i] = x
        return jax.tree.unflatten(trees[0], all_leaves)

    is_traced = any(_validate.is_traced(x) for x in jax.tree.leaves(inputs))
    if not is_traced:
        values = {_Known(): x for x in flat()}
        return Program([], frozenset(), values, list(values), [old[i] for i in places], None, tree)
    closed: Any = jax.make_jaxpr(flat)()
    whole = closed.jaxpr

    def part_of(equations: list[Any], inputs: list[Any], outputs: list[Any]) -> Any:
        effects = frozenset().union(*[e.effects for e in equations])
        part = whole.replace(
            constvars=[], invars=inputs, outvars=outputs, eqns=equations, effects=effects
        )
        return core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))

    equations, results = list(whole.eqns), list(whole.outvars)
    read = frozenset([*filter(_is_variable, results), *[v for e in equations for v in _read_by(e)]])
    values = dict(zip(whole.constvars, closed.consts, strict=True))
    return Program(equations, read, values, results, [old[i] for i in places], part_of, tree)


class _Known:
    """Stands for the variable of a leaf that was computed without a trace."""


def _dependents(equations: list[Any], variables: Iterable[Any]) -> list[Any]:
    """The equations that depend on some variables."""
    changed = set(variables)
    found: list[Any] = []
    for equation in equations:
        if not changed.isdisjoint(_read_by(equation)):
            found.append(equation)
            changed |= set(equation.outvars)
    return found


def _is_heavy(equation: Any) -> bool:
    if equation.primitive.name in _HEAVY or equation.effects:
        return True
    for value in equation.params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if any(map(_is_heavy, getattr(getattr(inner, "jaxpr", inner), "eqns", ()))):
                return True
    return False


def _is_variable(x: Any) -> bool:
    return not isinstance(x, core.Literal)


def _read_by(equation: Any) -> list[Any]:
    return [v for v in equation.invars if _is_variable(v)]


def _same_type(aval: Any, x: Any) -> bool:
    return aval.shape == jnp.shape(x) and aval.dtype == jnp.result_type(x)


def pick(first: jax.Array, x: Any, y: Any) -> Any:
    """`x` if `first`, else `y`."""
    return x if x is y else jnp.where(first, x, y)
