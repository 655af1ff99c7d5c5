"""The one list of projections, with the result of each in float64 NumPy.

A projection takes the place of a rule in the contexts: it has `make`, a threshold `c` and `params`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from jaxclip import functional
from tests.support import modes, registry
from tests.support import oracles as o
from tests.support.contexts import case as case

# One leaf of every rank up to 5, and leaves that projections do not change by default.
TREE = {
    "dense": {"kernel": (6, 4), "bias": (4,), "scale": (4,)},
    "conv1": {"kernel": (3, 2, 4)},
    "conv2": {"kernel": (2, 3, 4, 5)},
    "conv3": {"kernel": (2, 2, 2, 3, 4)},
}
SMALL = {"kernel": (6, 4), "bias": (4,), "scale": (4,)}


@dataclasses.dataclass(frozen=True)
class Projection:
    """A projection: as a transformation, as a function, and as its oracle."""

    name: str
    make: Callable[..., Any]  # (c, **keywords) -> transformation
    pure: Callable[..., Any]  # (w, c) -> w
    want: Callable[..., Any]  # (w, c, axis) -> float64
    function: str = ""  # in `jaxclip`
    units: bool = False  # whether it takes an axis
    closed: bool = True  # whether one step lands in the set
    named: bool = True  # in every context of the plain tests; else of the slow ones
    params: bool = True
    c: float = 1.5

    def __str__(self):
        return self.name


def between(w, low, high, axis=None, rate=1.0):
    """Units whose norm is brought from n to rate * clip(n, low, high) + (1 - rate) * n."""
    n = o.norm(w, 2, o.unit_axes(np.ndim(w), axis))
    target = rate * np.clip(n, low, high) + (1 - rate) * n
    return o.wide(w) * np.divide(target, n, out=np.ones_like(n), where=n > 0)


def singular(w, c, how="clip"):
    """The singular values s of all axes but the last against the last become min(s, c)."""
    u, s, v = np.linalg.svd(o.wide(w).reshape(-1, np.shape(w)[-1]), full_matrices=False)
    kept = np.minimum(s, c) if how == "clip" else s * min(1.0, c / s[0])
    return ((u * kept) @ v).reshape(np.shape(w))


def largest_singular(w):
    return np.linalg.norm(o.wide(w).reshape(-1, np.shape(w)[-1]), 2)


def _units(name, function, arguments, bounds, **fields):
    def make(c, **keywords):
        return getattr(jaxclip, f"project_{function}")(*arguments(c), **keywords)

    def pure(w, c, **keywords):
        return getattr(functional, f"project_{function}")(w, *arguments(c), **keywords)

    def want(w, c, axis=None):
        return between(w, *bounds(c)[:2], axis, *bounds(c)[2:])

    return Projection(name, make, pure, want, f"project_{function}", units=True, **fields)


def _spectral(how, method):
    function = "project_spectral_norm"
    options = {"how": how, "method": method}
    return Projection(
        f"spectral_{how}_{method}",
        lambda c, **keywords: getattr(jaxclip, function)(c, **options, **keywords),
        functools.partial(functional.project_spectral_norm, **options),
        lambda w, c, axis=None: singular(w, c, how),
        function,
        named=False,
    )


PROJECTIONS = [
    _units("max_norm", "max_norm", lambda c: (c,), lambda c: (0, c)),
    _units("unit_norm", "unit_norm", lambda c: (), lambda c: (1, 1), named=False),
    _units("min_max_norm", "min_max_norm", lambda c: (c, 2 * c), lambda c: (c, 2 * c), named=False),
    _units("min_max_norm_slow", "min_max_norm", lambda c: (c, 2 * c, 0.25),
           lambda c: (c, 2 * c, 0.25), named=False, closed=False),
    Projection("non_negative", lambda c, **k: jaxclip.project_non_negative(**k),
               lambda w, c: functional.project_non_negative(w),
               lambda w, c, axis=None: np.maximum(w, 0),
               "project_non_negative", named=False),
    Projection("box", lambda c, **k: jaxclip.project_box(-c, c / 2, **k),
               lambda w, c: functional.project_box(w, -c, c / 2),
               lambda w, c, axis=None: np.clip(w, -c, c / 2), "project_box", named=False),
    *(_spectral(how, method) for how in ("clip", "scale") for method in ("eigh", "iterative")),
]  # fmt: skip
BY_NAME = {p.name: p for p in PROJECTIONS}
UNITS = [p for p in PROJECTIONS if p.units]


@functools.partial(jax.jit, static_argnums=0)
def apply(tx, updates, params):
    """One step, in JAX's default promotion: unprojected updates may be wider than parameters."""
    new, _ = tx.update(updates, tx.init(params), params)
    with modes.relaxed():
        return optax.apply_updates(params, new)


def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def norms(w, axis=None):
    return o.norm(w, 2, o.unit_axes(np.ndim(w), axis))


@jax.jit
def steps(updates, params):
    """Every projection once, `{name: tree}` to `{name: tree}`."""
    return {
        name: apply(BY_NAME[name].make(BY_NAME[name].c), updates[name], params[name])
        for name in params
    }


@jax.jit
def functions(params):
    return {name: BY_NAME[name].pure(w, BY_NAME[name].c) for name, w in params.items()}


def for_each(tree, which=PROJECTIONS):
    return {projection.name: tree for projection in which}


def descent(projection):
    """The projection after a step downhill, for contexts that subtract what comes out."""

    def make(c, **keywords):
        return optax.chain(optax.scale(-1.0), projection.make(c, **keywords), optax.scale(-1.0))

    return dataclasses.replace(projection, make=make)


def assert_lands(projection, c, params, updates, landed, axis=None, bound=None):
    """`landed` equals the oracle's result for params + updates, to a few roundings.

    Of the weights before the step and after it. In 16 bits w + u is rounded, its projection is
    rounded towards zero, and so is the step where it leads beyond a factor of two.

    Args:
        projection: a `Projection`.
        c: its limit.
        params: the leaves before the step.
        updates: the step as it would be without projection.
        landed: the leaves after it, in their own dtype or wider.
        axis: the axes reduced.
        bound: which leaves are projected; if None, those of rank 2 and more.
    """
    leaves = [jax.tree.leaves(tree) for tree in (params, updates, landed)]
    chosen = [np.ndim(p) >= 2 for p in leaves[0]] if bound is None else jax.tree.leaves(bound)
    for w, u, got, is_bound in zip(*leaves, chosen, strict=True):
        moved = o.wide(w) + o.wide(u)
        want = projection.want(moved, c, axis) if is_bound else moved
        dtype, got = np.asarray(got).dtype, o.wide(got)
        few = 32 if projection.function == "project_spectral_norm" else 8
        size = np.abs(o.wide(w)).max(initial=0) + np.abs(want).max(initial=0)
        near = few * registry.eps("float64" if dtype == np.float64 else "float32") * size
        eps = registry.eps(dtype)
        if dtype.itemsize == 2:
            ratio = np.divide(want, o.wide(w), out=np.zeros_like(want), where=o.wide(w) != 0)
            near = near + np.where((ratio < 0.5) | (ratio > 2), eps * np.abs(o.wide(w)), 0)
            near = near + (2 * eps * np.abs(want).max(initial=0) if few == 32 else 0)
            near = near + 0.51 * eps * np.abs(want)
        near = near + eps * np.abs(want)
        np.testing.assert_allclose(np.where(np.abs(got - want) <= near, want, got), want)
