"""Every rule x tree x dtype x context against the float64 oracle."""

import jax
import numpy as np
import pytest

import jaxclip
from tests.support import contexts, learned, meshes, modes, registry
from tests.support.registry import EDGE_RULES, MORE, NAMED, RULES, SHARDABLE, TREES

CONTEXT_TREE = {"dense": {"bias": (3,), "kernel": (8, 3)}, "gain": ()}
PLAIN = ("clip_by_global_norm",)
by_edge_rule = registry.by_rule(EDGE_RULES, PLAIN)
# Of single elements, a tree, a unit, and rules that do more: a context sees no other difference.
KINDS = [r for r in [*NAMED, *MORE] if r.named and (r.name in registry.PLAIN or r in MORE)]
LEAF = ("clip_by_norm", "leaf_relative")  # the others of a leaf differ in a number alone
by_kind = registry.by_rule(KINDS, PLAIN)


def _check(context, rule, **keywords):
    u = registry.build(CONTEXT_TREE)
    p = registry.build(CONTEXT_TREE, seed=1)
    seen = 0
    for updates, params, result in context(rule, rule.c, u, p, **keywords):
        registry.assert_rule(rule, rule.c, updates, params, result)
        seen += 1
    assert seen
    clipped = registry.expected(rule, rule.c, u, p)
    assert any(
        (np.abs(a) < np.abs(b)).any() for a, b in zip(clipped, registry.floats(u), strict=True)
    )


def _check_cases(rule, cases, **keywords):
    for name, (result, _) in contexts.together(rule, cases, **keywords).items():
        with contexts.case(name):
            registry.assert_rule(rule, *cases[name], result)


@pytest.mark.slow
@by_edge_rule
def test_trees(rule):
    build = registry.build
    _check_cases(rule, {k: (rule.c, build(t), build(t, seed=1)) for k, t in TREES.items()})


@by_edge_rule
def test_dtypes(rule):
    """Each dtype, float64 too, and a tree of several in which each leaf keeps its own."""
    tree = registry.TREE
    for dtypes in (rule.traced, registry.WIDE[: 2 if "complex64" in rule.traced else 1]):
        with modes.maybe_x64(dtypes[0]):
            cases = {
                d: (rule.c, registry.build(tree, d, scale=3), registry.build(tree, d, seed=1))
                for d in dtypes
            }
            for name, (result, _) in contexts.updates(rule, cases, dtypes).items():
                with contexts.case(name):
                    registry.assert_rule(rule, *cases[name], result)
    mixed = [
        {d: registry.build((4, 3), d, seed=i + k) for i, d in enumerate(registry.NARROW)}
        for k in (0, 9)
    ]
    _check_cases(rule, {"mixed": (rule.c, *mixed)})


@pytest.mark.slow
@pytest.mark.parametrize("rule", [r for r in RULES if r not in EDGE_RULES], ids=str)
def test_other_variants(rule):
    """They differ from those above in one number or one axis: fewer trees and dtypes will do."""
    build = registry.build
    trees = {"float32": TREES["odd"], "bfloat16": TREES["nested"], "complex64": TREES["array"]}
    _check_cases(rule, {d: (rule.c, build(t, d), build(t, d, seed=1)) for d, t in trees.items()})


@by_kind
@pytest.mark.parametrize("context", contexts.PLAIN, ids=lambda f: f.__name__)
def test_context(context, rule):
    _check(context, rule)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [r for r in RULES if r not in KINDS], ids=str)
def test_engine_under_vmap(rule):
    """There the branch for sums that overflow becomes a choice by element, for every norm."""
    _check(contexts.vmap, rule)


@pytest.mark.slow
@pytest.mark.relaxed
@by_kind
@pytest.mark.parametrize("context", contexts.MODELS, ids=lambda f: f.__name__)
def test_model(context, rule):
    u = registry.build(CONTEXT_TREE, scale=4)
    p = registry.build(CONTEXT_TREE, seed=1)
    for updates, params, result in context(rule, rule.c, u, p):
        # p - (p - u) rounds once more, at the size of p.
        result = jax.tree.leaves(result)
        want = registry.expected(rule, rule.c, updates, params)
        for a, b in zip(result, want, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


@by_kind
@pytest.mark.parametrize("mesh", meshes.MESHES)
def test_mesh(mesh, rule):
    _check(meshes.MESHES[mesh], rule)


@pytest.mark.slow
@registry.by_rule([r for r in SHARDABLE if (r.named and r.kind != "leaf") or r.name in LEAF], PLAIN)
@pytest.mark.parametrize("context", meshes.SHARDED, ids=lambda f: f.__name__)
def test_sharded(context, rule):
    _check(context, rule)


def test_the_registry_has_every_rule():
    """A rule that is exported and not registered would be tested nowhere."""
    exported = {n for n in jaxclip.__all__ if "clip" in n}
    exported -= {"qk_clip", "clip_by_spectral_norm"}  # of matrices
    assert exported <= {r.name for r in RULES + registry.MORE} | learned.RULES.keys()
    assert learned.RULES.keys() >= {"autoclip", "zclip", "adagc", "clip_by_history"}
    assert {r.name for r in NAMED} >= {
        "clip", "clip_by_value", "clip_by_norm", "clip_by_average_norm", "clip_by_block_rms",
        "clip_by_global_norm", "adaptive_grad_clip",
    }  # fmt: skip
