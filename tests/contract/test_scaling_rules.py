"""Rules that do more than bound a norm from above, in every tree, dtype, context and mesh."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxclip
from tests.support import contexts, meshes, modes, registry
from tests.support.registry import MORE, TREES

TREE = {"dense": {"bias": (3,), "kernel": (8, 3)}, "gain": ()}
by_rule = registry.by_rule(MORE, ())
by_named_rule = registry.by_rule([r for r in MORE if r.named], ())
INF, NAN = float("inf"), float("nan")


def _check(context, rule):
    u, p, seen = registry.build(TREE), registry.build(TREE, seed=1), 0
    for updates, params, result in context(rule, rule.c, u, p):
        registry.assert_rule(rule, rule.c, updates, params, result)
        seen += 1
    assert seen


def _check_cases(rule, cases):
    for name, (result, _) in contexts.together(rule, cases).items():
        with contexts.case(name):
            registry.assert_rule(rule, *cases[name], result)


@by_rule
def test_trees_and_dtypes(rule):
    """One program; leaves of several dtypes keep their own."""
    cases = {k: (rule.c, registry.build(t), registry.build(t, seed=1)) for k, t in TREES.items()}
    for dtype in registry.NARROW:
        tree = registry.build(registry.TREE, dtype, scale=3)
        cases[dtype] = (rule.c, tree, registry.build(registry.TREE, dtype, seed=1))
    _check_cases(rule, cases)


@by_named_rule
def test_float64(rule):
    with modes.x64():
        u, p = (registry.build(TREE, "float64", seed=i) for i in (0, 1))
        _check_cases(rule, {"": (rule.c, u, p)})


@by_named_rule
def test_sharded(rule):
    for context in meshes.SHARDED:
        with contexts.case(getattr(context, "__name__", str(context))):
            _check(context, rule)


@by_named_rule
def test_state(rule):
    """A type fixed point, whatever the dtype of the update."""
    p = registry.build(TREE, seed=1)
    tx = rule.make(rule.c)
    state = tx.init(p)
    assert isinstance(state, jaxclip.ClipState)
    for dtype in registry.NARROW:
        _, after = jax.eval_shape(tx.update, registry.build(TREE, dtype), state, p)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert [x.dtype for x in jax.tree.leaves(after)] == [
            x.dtype for x in jax.tree.leaves(state)
        ]


EXTREME = [[1e20, 1.0, -2e20, 3e19], [1e-30, 2e-30, -1e-30, 5e-31], [3e38, 3e38, -3e38, 3e38]]


@by_rule
def test_extreme_values(rule):
    """As if computed in float64, where squares overflow or underflow."""
    cases = {}
    for values in EXTREME:
        u, p = (registry.filled("float32", np.asarray(values) / k) for k in (1, 2))
        cases[str(values)] = (rule.c * (values[0] if not rule.params else 1), u, p)
    _check_cases(rule, cases)


@by_named_rule
def test_policies(rule):
    """For a NaN in one leaf, in one program."""
    u, p = registry.build(TREE), registry.build(TREE, seed=1)
    bad = u | {"gain": jnp.float32(NAN)}
    rules = {k: rule.make(rule.c, nonfinite=k) for k in ("propagate", "nan", "zero", "drop")}
    found = jax.jit(lambda u: {k: tx.update(u, tx.init(p), p) for k, tx in rules.items()})(bad)
    assert all(int(state.nonfinite_count) == 1 for _, state in found.values())
    assert np.isnan(found["propagate"][0]["gain"])
    assert all(np.isnan(x).all() for x in jax.tree.leaves(found["nan"][0]))
    assert not any(np.any(x) for x in jax.tree.leaves(found["zero"][0]))
    rest = u | {"gain": jnp.float32(0)}
    registry.assert_rule(rule, rule.c, rest, p, found["drop"][0])


def test_normalize_by_norm():
    """No change without a limit, zeros for 0, up and down; changes are counted."""
    u, zero = jnp.array([3.0, 4.0]), jnp.zeros(2)
    wanted = {None: 1.0, INF: 1.0, 0.0: 0.0, 10.0: 2.0, 0.5: 0.1}

    @jax.jit
    def run(u, zero):
        def step(target, u):
            tx = jaxclip.normalize_by_norm(target)
            return tx.update(u, tx.init(u))

        found = [step(target, u) for target in wanted]
        return found, step(1.0, zero), jax.jacobian(lambda u: step(1.0, u)[0])(zero)

    found, (out, state), slope = run(u, zero)
    for (got, record), want in zip(found, wanted.values(), strict=True):
        np.testing.assert_allclose(got, u * want, rtol=1e-6)
        assert int(record.clipped_count) == (want != 1)
    registry.assert_same_bits(out, zero)
    assert int(state.clipped_count) == 0
    np.testing.assert_array_equal(slope, np.eye(2))
