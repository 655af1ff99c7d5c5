"""NaN, inf and -inf in the first, the middle and the last leaf: every policy, rule and guard.

Each under `scan`, inside `shard_map` where one shard has it, and inside `optax.MultiSteps` where
one micro-step has it. Updates after a bad one must come out as if it had not occurred.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import learned, modes, registry
from tests.support import oracles as o
from tests.support.contexts import case, once
from tests.support.guards import GUARDS
from tests.support.registry import NORM_RULES

NAN = float("nan")

POLICIES = ("propagate", "nan", "zero", "drop")
BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
LEAVES = ("a", "b", "c")
CASES = list(itertools.product(BAD, LEAVES))
LIMIT = 0.5
FIRST = 4  # good updates before the first bad one
GOOD = registry.build({"a": (4, 3), "b": (4, 2), "c": (4,)}, scale=3)
PARAMS = jax.tree.map(jnp.ones_like, GOOD)


def _good(i):
    return jax.tree.map(lambda x: x * np.float32(1 + 0.1 * (i % 3)), GOOD)


def _with(value, leaf, i):
    """A good update with one element of one leaf, in the third of four rows, replaced."""
    u = _good(i)
    x = np.array(u[leaf])
    x[(2,) + (-1,) * (x.ndim - 1)] = value
    return u | {leaf: jnp.asarray(x)}


# Good ones, then bad and good ones in turn.
KINDS = [None] * FIRST + [kind for pair in CASES for kind in (pair, None)]
STEPS = [_good(i) if k is None else _with(BAD[k[0]], k[1], i) for i, k in enumerate(KINDS)]
CLEAN = [_good(i) if k is None else _with(0.0, k[1], i) for i, k in enumerate(KINDS)]
# The good ones alone, and more of them: both runs have one length and so one program.
GOOD_STEPS = [u for u, kind in zip(STEPS, KINDS, strict=True) if kind is None]
GOOD_STEPS += GOOD_STEPS[: len(STEPS) - len(GOOD_STEPS)]


def _steps(txs, trees, params):
    """Some transformations over the trees in one scan: their outputs and metrics, step by step."""

    def body(states, u):
        both = {k: tx.update(u, states[k], params) for k, tx in txs.items()}
        states = {k: state for k, (_, state) in both.items()}
        found = {k: jaxclip.metrics(state) for k, state in states.items()}
        return states, ({k: out for k, (out, _) in both.items()}, found)

    return jax.lax.scan(body, {k: tx.init(params) for k, tx in txs.items()}, trees)[1]


def _stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def scan(txs):
    run = jax.jit(functools.partial(_steps, txs))
    return lambda trees: run(_stacked(trees), PARAMS)


def shard_map(txs):
    """The rows of every leaf on four devices, one of which has the bad element."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rows = P(None, "x")
    mapped = jax.shard_map(
        functools.partial(_steps, txs), mesh=mesh, in_specs=(rows, P("x")),
        out_specs=(rows, P()),
    )  # fmt: skip
    run = jax.jit(mapped)
    return lambda trees: run(_stacked(trees), PARAMS)


def multi_steps(txs):
    """Each step two micro-steps, the second one as given: for the accumulated mean to be bad.

    Every step has a state of `MultiSteps` of its own, since that does not recover, around the state
    of the transformation, which goes on.
    """

    def many(tx):
        return optax.MultiSteps(tx, 2)

    def body(states, pair):
        outs, found = {}, {}
        for k, tx in txs.items():
            state = many(tx).init(PARAMS)._replace(inner_opt_state=states[k])
            for u in pair:
                outs[k], state = many(tx).update(u, state, PARAMS)
            states = states | {k: state.inner_opt_state}
            found[k] = jaxclip.metrics(state)
        return states, (outs, found)

    states = {k: tx.init(PARAMS) for k, tx in txs.items()}
    program = jax.jit(lambda pairs: jax.lax.scan(body, states, pairs)[1])

    def run(trees):
        second = _stacked(trees)
        first = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.ones_like(x)), second)
        with modes.relaxed():  # MultiSteps promotes
            return program((first, second))

    return run


CONTEXTS = [scan, shard_map, multi_steps]
# Under `scan` and on several devices one of each kind of norm, in Optax's wrapper fewer.
ELSEWHERE = {
    scan: ("clip_by_norm", "clip_by_global_norm", "clip_by_group_norm", "adaptive_grad_clip",
           "leaf_inf", "element", *learned.RULES, *GUARDS),
    shard_map: ("clip_by_norm", "clip_by_global_norm", "adaptive_grad_clip", "leaf_inf",
                "autoclip", "zclip", *GUARDS),
    multi_steps: ("clip_by_global_norm", "adaptive_grad_clip", "adagc", "clip_by_history", *GUARDS),
}  # fmt: skip


def _cases(rules, plain):
    """Rules and contexts; those whose id does not begin so are slow."""
    cases = []
    for context, rule in itertools.product(CONTEXTS, rules):
        name = f"{rule}-{context.__name__}"
        if str(rule) in ELSEWHERE.get(context, [str(rule)]):
            marks = [] if name.startswith(plain) else pytest.mark.slow
            cases.append(pytest.param(rule, context, marks=marks, id=name))
    return cases


def _runs(context, txs, *runs):
    program = context(txs)  # one for all runs
    return [_by_step(txs, *jax.device_get(program(trees)), trees) for trees in runs]


def _by_step(txs, outs, found, trees):
    return {
        k: [
            (jax.tree.map(lambda x, i=i: x[i], outs[k]), {n: v[i] for n, v in found[k].items()})
            for i in range(len(trees))
        ]
        for k in txs
    }


def _unit_keywords(rule, context):
    """A unit's rows are on several devices."""
    return {"axis_name": "x"} if rule.kind == "unit" and context is shard_map else {}


def _check(rule, policy, u, clean, kind, out):
    """The result of the policy for one update."""
    if kind is None or policy == "drop":
        registry.assert_rule(rule, LIMIT, clean, PARAMS, out)
    elif policy == "nan":
        assert all(np.isnan(x).all() for x in jax.tree.leaves(out))
    elif policy == "zero":
        assert not any(x.any() for x in jax.tree.leaves(out))
    else:
        with np.errstate(invalid="ignore"):
            norms, limits = registry.norms_and_limits(rule, LIMIT, u, PARAMS)
            usual = o.scaled(registry.floats(clean), norms, limits)
        for got, came, n, want in zip(*map(registry.floats, (out, u)), norms, usual, strict=True):
            bad = np.broadcast_to(~np.isfinite(n), came.shape)
            np.testing.assert_array_equal(got[bad], came[bad])
            np.testing.assert_allclose(got[~bad], want[~bad], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "context"), _cases(NORM_RULES, "clip_by_global_norm-"))
def test_rules(rule, context):
    more = _unit_keywords(rule, context)
    txs = {p: rule.make(LIMIT, nonfinite=p, **more) for p in POLICIES}
    for policy, steps in _runs(context, txs, STEPS)[0].items():
        bad = 0
        for kind, u, clean, (out, found) in zip(KINDS, STEPS, CLEAN, steps, strict=True):
            bad += kind is not None
            with case(f"{policy} {kind}"):
                _check(rule, policy, u, clean, kind, out)
                (count,) = [v for k, v in found.items() if k.endswith("/nonfinite_count")]
                assert count == bad
                (clipped,) = [v for k, v in found.items() if k.endswith("/fraction")]
                if kind is not None and policy in ("nan", "zero"):
                    assert clipped == 0


@pytest.mark.parametrize(("name", "context"), _cases(learned.RULES, "none"))
def test_learned_rules(name, context):
    """A bad update leaves no trace in learned state, except where its finite part counts."""
    txs = {p: learned.RULES[name](nonfinite=p, scope="global") for p in POLICIES}
    good, given = _runs(context, txs, GOOD_STEPS, STEPS)
    without = {p: iter(steps) for p, steps in good.items()}
    for policy, steps in given.items():
        for kind, u, (out, found) in zip(KINDS, STEPS, steps, strict=True):
            with case(f"{policy} {kind}"):
                arrays = jax.tree.leaves(out)
                if kind is None and policy != "drop":
                    want, same = next(without[policy])
                    registry.assert_same_bits(out, want)
                    key = next(k for k in same if k.endswith("/threshold"))
                    assert found[key] == same[key]
                elif kind is None or policy == "drop":
                    assert all(np.isfinite(x).all() for x in arrays)
                    assert any(x.any() for x in arrays)
                elif policy == "propagate":
                    registry.assert_same_bits(out, jax.device_get(u))
                elif policy == "nan":
                    assert all(np.isnan(x).all() for x in arrays)
                else:
                    assert not any(x.any() for x in arrays)


@pytest.mark.parametrize(("guard", "context"), _cases(GUARDS, "skip_nonfinite-scan"))
def test_guards(guard, context):
    """The inner state, momentum, goes on as if the bad updates had not been."""
    inner = optax.chain(jaxclip.clip_by_global_norm(LIMIT), optax.trace(0.9))
    txs = {guard: GUARDS[guard](inner)}
    good, given = _runs(context, txs, GOOD_STEPS, STEPS)
    without, bad = iter(good[guard]), 0
    for kind, (out, found) in zip(KINDS, given[guard], strict=True):
        with case(kind):
            bad += kind is not None
            assert found[f"{guard}/skipped"] == (kind is not None)
            assert found[f"{guard}/nonfinite_count"] == found[f"{guard}/skipped_count"] == bad
            assert found["clip_by_global_norm/nonfinite_count"] == 0
            if kind is None:
                registry.assert_same_bits(out, next(without)[0])
            else:
                assert not any(x.any() for x in jax.tree.leaves(out))


@pytest.mark.slow
@pytest.mark.parametrize(
    "context", [scan, *(pytest.param(f, marks=pytest.mark.slow) for f in CONTEXTS[1:])]
)
def test_monitor_names_the_nonfinite_leaf(context):
    """A monitor before a rule that hides the bad update, and around a guard."""
    cleaning = jaxclip.clip_by_global_norm(LIMIT, nonfinite="zero")
    txs = {
        "rule": optax.chain(jaxclip.monitor(name="grads"), cleaning),
        "guard": optax.chain(jaxclip.monitor(name="grads"), jaxclip.skip_nonfinite(cleaning)),
    }
    for key, steps in _runs(context, txs, STEPS)[0].items():
        for kind, (_, found) in zip(KINDS, steps, strict=True):
            with case(f"{key} {kind}"):
                norms = {leaf: found[f"grads/norm/{leaf}"] for leaf in LEAVES}
                bad = [leaf for leaf, norm in norms.items() if not np.isfinite(norm)]
                assert bad == ([] if kind is None else [kind[1]])


def test_drop_on_explicit_mesh_without_jit():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(8.0).at[2].set(jnp.nan), NamedSharding(mesh, P("x")))
        out, state = once(jaxclip.clip_by_global_norm(1.0, nonfinite="drop"), x)
        want = np.array([0, 1, 0, 3, 4, 5, 6, 7.0])
        np.testing.assert_allclose(out, want / np.linalg.norm(want), rtol=1e-6)
    assert int(state.nonfinite_count) == 1


def test_drop_inside_a_guard_that_lets_nan_through():
    """The guard's norm is NaN; the rule clips by the norm of the finite elements."""
    u = jnp.array([3.0, 4.0, NAN])
    rule = jaxclip.clip_by_global_norm(1.0, nonfinite="drop")
    tx = jaxclip.skip_nonfinite(rule, max_consecutive=1)
    state, update = tx.init(u), jax.jit(tx.update)
    _, state = update(u, state)
    out, _ = update(u, state)
    np.testing.assert_allclose(out, [0.6, 0.8, 0.0], rtol=1e-6)


@pytest.mark.parametrize("policy", ["nan", "zero"])
def test_nan_and_zero_count_nothing_as_clipped(policy):
    u = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([NAN])}
    _, state = once(jaxclip.clip_by_norm(1.0, nonfinite=policy), u)
    assert (float(state.fraction), int(state.clipped_count)) == (0.0, 0)
    np.testing.assert_array_equal(state.smallest_scale, NAN if policy == "nan" else 0.0)


@pytest.mark.parametrize(("policy", "check"), [("nan", np.isnan), ("zero", np.logical_not)])
def test_nan_and_zero_with_scale_mask(policy, check):
    u = {"a": jnp.array([1.0, NAN]), "b": jnp.array([2.0])}
    mask = {"a": True, "b": False}
    out, _ = once(jaxclip.clip_by_global_norm(1.0, nonfinite=policy, scale_mask=mask), u)
    assert all(check(x).all() for x in out.values())
