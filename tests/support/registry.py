"""The one list of rules, trees and dtypes that the contract tests multiply.

A new rule is one line in `RULES`; it is then checked in every tree, dtype, context and edge.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import oracles as o

INF = o.INF
NARROW = ("float16", "bfloat16", "float32", "complex64")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule, how to make it from a threshold, and its expected behaviour."""

    name: str
    make: Callable[..., Any]  # (threshold, **keywords) -> transformation
    kind: str  # value, element, unit, leaf, group, global
    norms: Callable[[list], list]
    argument: str = "threshold"
    limits: Callable[[Any, list], list] = o.constant
    params: bool = False
    named: bool = True  # a rule of the public surface; else a variant or a combination
    traced: tuple[str, ...] = NARROW  # the dtypes in which the threshold may be a traced number
    c: float = 0.75  # a threshold that some units of a normal random tree exceed and some do not
    oracle: Callable[..., list] | None = None  # (threshold, updates, params) -> result, if not hard

    def __str__(self):
        return self.name


def _by(scope, **fixed):
    return lambda c, **k: jaxclip.clip_by(c, scope=scope, **fixed, **k)


def _fixed(name, **fixed):
    # Looked up at the call, so that one missing rule does not hide the others' results.
    return lambda c, **k: getattr(jaxclip, name)(c, **fixed, **k)


def _value(c, **k):
    low = None if c is None else -c
    return jaxclip.clip_by_value(low, c, record=True, **k)


def in_turns(tree):
    """Two labels, of the floating leaves in turns."""
    turns = itertools.cycle(("even", "odd"))
    return jax.tree.map(lambda x: next(turns) if is_float(x) else None, tree)


def _relative(c, **k):
    return jaxclip.clip_by(jaxclip.thresholds.relative_to_params(c, eps=1e-3), scope="leaf", **k)


_AGC = {"limits": o.relative(o.by_unit(None)), "params": True, "argument": "clipping"}
_REL = {"limits": o.relative(o.by_leaf()), "params": True, "argument": "factor", "named": False}
_ENGINE = {"named": False}
_MAX = {"argument": "max_norm"}
_VARIANT = {"argument": "max_norm", "named": False}

RULES = [
    Rule("clip", _fixed("clip", record=True), "value", o.by_element, argument="max_delta"),
    Rule("clip_by_value", _value, "value", o.by_element, argument="max_value",
         traced=NARROW[:3]),  # -c and c must be seen to be opposite for complex leaves
    Rule("clip_by_norm", _fixed("clip_by_norm"), "leaf", o.by_leaf(), **_MAX),
    Rule("clip_by_norm_axis", _fixed("clip_by_norm", axis=0), "unit", o.by_unit(0), **_VARIANT),
    Rule("clip_by_norm_1", _fixed("clip_by_norm", ord=1), "leaf", o.by_leaf(1), **_VARIANT),
    Rule("clip_by_average_norm", _fixed("clip_by_average_norm"), "leaf", o.by_leaf("average"),
         **_MAX),
    Rule("clip_by_block_rms", _fixed("clip_by_block_rms"), "leaf", o.by_leaf("rms")),
    Rule("clip_by_block_rms_axis", _fixed("clip_by_block_rms", axis=(1, 2)), "unit",
         o.by_unit((1, 2), "rms"), **_ENGINE),
    Rule("clip_by_global_norm", _fixed("clip_by_global_norm"), "global", o.by_tree(), **_MAX),
    Rule("clip_by_global_norm_1", _fixed("clip_by_global_norm", ord=1), "global", o.by_tree(1),
         **_VARIANT),
    Rule("clip_by_global_norm_inf", _fixed("clip_by_global_norm", ord=INF), "global",
         o.by_tree(INF), **_VARIANT),
    Rule("clip_by_group_norm", _fixed("clip_by_group_norm", groups=in_turns), "group",
         o.by_group(2), **_MAX),
    Rule("adaptive_grad_clip", _fixed("adaptive_grad_clip"), "unit", o.by_unit(None), **_AGC),
    Rule("global_3", _by("global", ord=3), "global", o.by_tree(3), **_ENGINE),
    Rule("global_rms", _by("global", ord="rms"), "global", o.by_tree("rms"), **_ENGINE),
    Rule("global_average", _by("global", ord="average"), "global", o.by_tree("average"), c=0.1,
         **_ENGINE),
    Rule("leaf_2.5", _by("leaf", ord=2.5), "leaf", o.by_leaf(2.5), **_ENGINE),
    Rule("leaf_inf", _by("leaf", ord=INF), "leaf", o.by_leaf(INF), **_ENGINE),
    Rule("leaf_relative", _relative, "leaf", o.by_leaf(), **_REL),
    Rule("unit_rms", _by("unit", axis=-1, ord="rms"), "unit", o.by_unit(-1, "rms"), **_ENGINE),
    Rule("unit_1", _by("unit", axis=(0, 1), ord=1), "unit", o.by_unit((0, 1), 1), **_ENGINE),
    Rule("element", _by("element"), "element", o.by_element, **_ENGINE),
]  # fmt: skip

# Rules that do more than bound a norm from above: `contract/test_scaling_rules.py` has their edges.
MORE = [
    Rule("normalize_by_norm", _fixed("normalize_by_norm"), "global", o.by_tree(),
         argument="target_norm", oracle=o.set_to(o.by_tree())),
    Rule("clippy", _fixed("clippy", abs=1e-3), "leaf", o.by_leaf(INF), argument="rel", params=True,
         oracle=o.clippy(1e-3)),
    Rule("normalize_leaves", _fixed("normalize_by_norm", scope="leaf", ord=1), "leaf", o.by_leaf(1),
         argument="target_norm", oracle=o.set_to(o.by_leaf(1)), named=False),
]  # fmt: skip

# Variants that take the whole table of edges, beside every named rule: one of each kind of sum.
_EDGES = {"clip_by_norm_axis", "clip_by_global_norm_1", "global_3", "leaf_inf", "element"}
NORM_RULES = [r for r in RULES if r.kind != "value" and (r.named or r.name in _EDGES)]
EDGE_RULES = [r for r in RULES if r.named or r.name in _EDGES]
NAMED = [r for r in RULES if r.named]
# One norm may span the shards.
SHARDABLE = [r for r in RULES if r.kind in ("global", "group", "leaf")]

# In every run: a rule of single elements, one of a whole tree, one of units, with parameters.
# The others differ from one of these in the norm, the scope or the bounds alone.
PLAIN = ("clip", "clip_by_global_norm", "adaptive_grad_clip")


def by_rule(rules, plain=PLAIN):
    """A test of each rule, slow but for a few: an update takes half a second to compile."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "rule",
        [pytest.param(r, id=r.name, marks=[] if r.name in plain else slow) for r in rules],
        scope="module",  # the tests of a rule in a row: they share programs
    )


def rule(name):
    """The rule of that name."""
    return next(r for r in RULES if r.name == name)


class Pair(NamedTuple):
    """A NamedTuple, as a container of leaves."""

    first: Any
    second: Any


# Shapes stand for leaves of the dtype under test; arrays and None stand for themselves.
S = tuple[int, ...]
TREES = {
    "nested": {"dense": {"kernel": (4, 3), "bias": (3,)}, "gain": ()},
    "containers": Pair([(2,)], {"a": (2, 3), "b": None}),
    "scalar": (),
    "odd": {"empty": (0, 3), "step": np.int32([3, -400]), "mask": np.array([True]), "w": (2, 1, 3)},
    "empty": {},
    "array": (2, 3, 2, 2),
}
# The tree of those tests of a rule that share a program: matrix, vector and scalar.
TREE = {"dense": {"kernel": (40, 3), "bias": (3,)}, "gain": ()}
WIDE = ("float64", "complex128")  # with x64
DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64"]


def filled(dtype, values=(), value=0.0):
    """A tree like `TREE`: the first values of the matrix in rows of two, the rest `value`."""
    tree = build(TREE, dtype, scale=0.0)
    tree = jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), tree)
    rows = np.reshape(np.asarray(values, np.complex128), (-1, 2))
    rows = rows if jnp.issubdtype(dtype, jnp.complexfloating) else rows.real
    kernel = tree["dense"]["kernel"]
    kernel[: len(rows), :2] = rows
    return jax.tree.map(jnp.asarray, tree)


def _is_shape(x):
    return type(x) is tuple and all(isinstance(i, int) for i in x)


def build(spec, dtype="float32", seed=0, scale=1.0):
    """A tree of random arrays with the shapes of `spec`; integer leaves become JAX arrays."""
    rng = np.random.default_rng(seed)

    def leaf(x):
        if not _is_shape(x):
            return jnp.asarray(x)
        values = scale * rng.normal(size=x)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            values = values + 1j * scale * rng.normal(size=x)
        return jnp.asarray(values, dtype)

    return jax.tree.map(leaf, spec, is_leaf=_is_shape)


def is_float(x):
    """Whether a rule measures the leaf."""
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.inexact)


def floats(tree):
    """The leaves that are measured, as NumPy arrays of their own dtype."""
    return [np.asarray(x) for x in jax.tree.leaves(tree) if is_float(x)]


def norms_and_limits(rule, c, updates, params):
    """The oracle's norms and limits."""
    like = params if rule.params else updates
    pairs = zip(jax.tree.leaves(like), jax.tree.leaves(updates), strict=True)
    measured = [np.asarray(w) for w, u in pairs if is_float(u)]
    return rule.norms(floats(updates)), rule.limits(c, measured)


def expected(rule, c, updates, params):
    """The oracle's result for the measured leaves, in float64."""
    if rule.oracle is not None:
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(updates), strict=True)
        return rule.oracle(c, floats(updates), [np.asarray(w) for w, u in pairs if is_float(u)])
    return o.scaled(floats(updates), *norms_and_limits(rule, c, updates, params))


def eps(dtype):
    """The machine epsilon of a dtype, bfloat16 and complex included."""
    return float(jnp.finfo(dtype).eps)


def assert_same_bits(got, want):
    """Structure, dtypes, shapes and every bit."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        assert np.shape(a) == np.shape(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), (a, b)


def assert_kept(got, like):
    """Structure, dtypes and shapes; leaves that are not measured also their values."""
    assert jax.tree.structure(got) == jax.tree.structure(like)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(like), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        assert np.shape(a) == np.shape(b)
        if not is_float(b):
            np.testing.assert_array_equal(a, b)


def tolerance(dtype):
    """One rounding of a 16-bit dtype; of a wider one, the few of norm, quotient and product."""
    return eps(dtype) * (1 if np.dtype(dtype).itemsize == 2 else 6)


def assert_rule(rule, c, updates, params, got):
    """`got` equals the oracle's result, to a few roundings of each leaf's dtype."""
    assert_kept(got, updates)
    want = expected(rule, c, updates, params)
    for a, b in zip(floats(got), want, strict=True):
        tiny = float(jnp.finfo(a.dtype).smallest_subnormal)
        np.testing.assert_allclose(o.wide(a), b, rtol=tolerance(a.dtype), atol=tiny)
