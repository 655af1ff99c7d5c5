"""The order of the layers in a network, from the program of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxclip._core.flat_tree import flatten
from jaxclip._core.types import PyTree

# A parameter that is added, multiplied or joined elementwise (a bias, a gain, a position, a class
# token) stands where its input stands; after any other use the data is one layer deeper.
_BESIDE = {"add", "add_any", "sub", "mul", "div", "max", "min", "select_n", "concatenate", "pad"}


class LayerOrder(NamedTuple):
    """The depth of each parameter in a network. Made by `layer_order`.

    Attributes:
        places: the depth of each leaf by name, from input to output. Leaves side by side, such as
            query, key and value, have the same. A leaf that stacks layers for `jax.lax.scan` has a
            tuple, with the depth of each slice. Leaves that the function does not use are left out,
            and so are those that it uses at several depths, such as tied embeddings.
        recurrent: the leaves that a loop uses in each of its steps, as the cell of an RNN.
    """

    places: dict[str, int | tuple[int, ...]]
    recurrent: frozenset[str]

    def place(self, name: str) -> int | None:
        """The depth of a leaf, or of a slice by its name in `jaxclip.monitor`; `None` if unknown.

        A leaf that stacks layers has no depth of its own.
        """
        found = self.places.get(name)
        if isinstance(found, int):
            return found
        keys = name.split("/")
        for k, key in enumerate(keys):
            slices = self.places.get("/".join(keys[:k] + keys[k + 1 :]))
            if key.isdigit() and isinstance(slices, tuple) and int(key) < len(slices):
                return slices[int(key)]
        return None


def layer_order(loss: Callable[..., PyTree], params: PyTree, *batch: PyTree) -> LayerOrder:
    """Finds the order in which a network uses its parameters.

    The function is traced, not run. The depth of an array is the number of weights between it and
    the data. The depth of a weight is that of its output; a bias, a gain or a position stands where
    it is added or multiplied. So the two sides of a residual connection stand at one depth. Calls
    under `jit`, `remat`, `scan`, `while_loop`, `cond`, `custom_jvp` and `custom_vjp` are entered.
    In layers stacked for `scan`, each slice has a depth of its own.

    For Flax Linen: `layer_order(model.apply, params, x)`. For Flax NNX, with
    `graph, params, rest = nnx.split(model, nnx.Param, ...)`:
    `layer_order(lambda p, rest, x: nnx.merge(graph, p, rest)(x), params, rest, x)`. For Equinox:
    `layer_order(lambda m, x: jax.vmap(m)(x), model, x)`.

    Args:
        loss: `loss(params, *batch)`, the loss or any other function with arrays as its result.
        params: the parameters, as any pytree of arrays or of `jax.ShapeDtypeStruct`.
        *batch: the data, in the same forms. Leaves that are no arrays reach the function as they
            are. Without data, all that the function makes or closes over counts as data.

    Returns:
        A `LayerOrder`, for `order=` of `jaxclip.diagnose` and of `of_metrics`.

    Raises:
        ValueError: if `params` has no floating-point leaf.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> params = {"hidden": jnp.ones((4, 3)), "entry": jnp.ones((2, 4)), "end": jnp.ones(3)}
        >>> def loss(p, x):
        ...     return jnp.mean(jnp.tanh(jnp.tanh(x @ p["entry"]) @ p["hidden"]) @ p["end"])
        >>> print(jaxclip.diagnosis.layer_order(loss, params, jnp.ones((5, 2))).places)
        {'entry': 1, 'hidden': 2, 'end': 3}
    """
    flat = flatten(params)
    if not flat.arrays:
        raise ValueError("params has no floating-point leaf: there is nothing to order")
    leaves, treedef = jax.tree.flatten(batch)
    traced = [i for i, x in enumerate(leaves) if hasattr(x, "shape") and hasattr(x, "dtype")]

    def program(arrays: list[Any], data: list[Any]) -> Any:
        filled = list(leaves)
        for i, x in zip(traced, data, strict=True):
            filled[i] = x
        return jax.tree.leaves(loss(flat.rebuild(arrays), *treedef.unflatten(filled)))

    jaxpr = jax.make_jaxpr(program)(flat.arrays, [leaves[i] for i in traced]).jaxpr
    values = [_Value(params=frozenset([i])) for i in range(len(flat.arrays))]
    values += [_Value(0)] * len(traced)
    walk = _Walk(_Value())
    walk.run(jaxpr, values)
    if not walk.places:  # without data: all that is not a parameter is data
        walk = _Walk(_Value(0))
        walk.run(jaxpr, values)
    order = sorted(walk.places.items(), key=lambda item: _first(item[1]))
    names = flat.names
    return LayerOrder(
        {names[i]: place for i, place in order if i not in walk.shared},
        frozenset(names[i] for i in walk.recurrent),
    )


class _Value(NamedTuple):
    """The origin of an array: the data with its depth, or parameters alone, or neither."""

    depth: int | None = None  # `None`: not made from the data
    params: frozenset[int] = frozenset()  # those it is made from, if not made from the data


def _joined(values: Sequence[_Value]) -> _Value:
    depths = [v.depth for v in values if v.depth is not None]
    return _Value(max(depths)) if depths else _Value(None, _params(values))


def _params(values: Sequence[_Value]) -> frozenset[int]:
    return frozenset[int]().union(*[v.params for v in values])


class _Walk:
    """Follows arrays through a program and notes the place of each parameter."""

    def __init__(self, constant: _Value):
        """Takes the origin of constants."""
        self.constant = constant
        self.places: dict[int, int | tuple[int, ...]] = {}
        self.recurrent: frozenset[int] = frozenset()
        self.shared: set[int] = set()  # used at several depths
        self.loop: frozenset[int] = frozenset()  # the parameters that the innermost loops hold
        self.notes = True

    def run(self, jaxpr: Any, values: Sequence[_Value]) -> list[_Value]:
        """The origins of the results of a program, from those of its arguments."""
        known: dict[Any, _Value] = dict(zip(jaxpr.invars, values, strict=True))

        def read(var: Any) -> _Value:
            return self.constant if hasattr(var, "val") else known.get(var, self.constant)

        for eqn in jaxpr.eqns:
            results = self._equation(eqn, list(map(read, eqn.invars)))
            known.update(zip(eqn.outvars, results, strict=True))
        return list(map(read, jaxpr.outvars))

    def _equation(self, eqn: Any, values: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, values)
        if name == "while":
            skip, held = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
            body = _opened(eqn.params["body_jaxpr"])
            return self._loop(body, values[skip:], held, len(values) - skip)
        if name == "cond":
            branches = [self.run(_opened(b), values[1:]) for b in eqn.params["branches"]]
            return [_joined(results) for results in zip(*branches, strict=True)]
        for inner in map(_opened, eqn.params.values()):
            if inner is not None and len(inner.invars) == len(values):
                return self.run(inner, values)
        return [self._used(eqn, values)] * len(eqn.outvars)

    def _used(self, eqn: Any, values: list[_Value]) -> _Value:
        """The result of a primitive, whose parameters get their places where they meet the data."""
        value, met = _joined(values), _params(values)
        if value.depth is None or not met:
            return value
        ranks = [x.aval.ndim for x, v in zip(eqn.invars, values, strict=True) if v.params]
        deeper = eqn.primitive.name not in _BESIDE and max(ranks) > 0
        depth = value.depth + deeper
        place = max(depth, 1)  # a bias of the data itself stands beside the first layer
        if self.notes:
            self.shared |= {i for i in met if self.places.setdefault(i, place) != place}
            self.recurrent |= met & self.loop
        return _Value(depth)

    def _scan(self, eqn: Any, values: list[_Value]) -> list[_Value]:
        # Counted by shapes: the parameters with these counts differ between versions of JAX.
        body = _opened(eqn.params["jaxpr"])
        carried = sum(map(_is_alike, body.outvars, eqn.outvars))
        end = sum(map(_is_alike, body.invars, eqn.invars))
        length, held = eqn.params["length"], end - carried
        before, entry = set(self.places), max([v.depth or 0 for v in values], default=0)
        results = self._loop(body, values, held, end)
        # A layer has a weight: a matrix in each slice. Positions, one vector a step, are no layer.
        pairs = list(zip(eqn.invars[end:], values[end:], strict=True))
        if not any(v.params and x.aval.ndim > 2 for x, v in pairs):
            return results
        gain = max([v.depth or 0 for v in results[:carried]], default=0) - entry
        steps = [max(gain, 0) * k for k in range(length)]
        if self.notes:
            for i in _params(values[end:]) - before:
                first = self.places.get(i)
                if isinstance(first, int):
                    places = tuple(first + k for k in steps)
                    self.places[i] = places[::-1] if eqn.params["reverse"] else places
        more = max(steps, default=0)
        return [v if v.depth is None else _Value(v.depth + more) for v in results]

    def _loop(self, body: Any, values: list[_Value], held: int, end: int) -> list[_Value]:
        """A loop: `values[:held]` are the same in each step, and those up to `end` are carried."""
        outer, self.loop = self.loop, self.loop | _params(values[:held])
        notes, self.notes = self.notes, False
        after = self.run(body, values)  # tells which carried arrays the data reaches
        entry = _Value(_joined([*values, _Value(0)]).depth)
        carried = [
            v if a.depth is None else entry for v, a in zip(values[held:end], after, strict=False)
        ]
        self.notes = notes
        results = self.run(body, [*values[:held], *carried, *values[end:]])
        self.loop = outer
        return results


def _first(place: int | tuple[int, ...]) -> int:
    return place if isinstance(place, int) else min(place, default=0)


def _is_alike(x: Any, y: Any) -> bool:
    return x.aval.shape == y.aval.shape


def _opened(x: Any) -> Any:
    """The program, if that is one, of a call."""
    x = getattr(x, "jaxpr", x)
    return x if hasattr(x, "eqns") and hasattr(x, "invars") else None
