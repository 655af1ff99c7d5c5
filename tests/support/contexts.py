"""Where a transformation is used: each context runs a rule once and yields what went in and out.

A context takes `(rule, c, updates, params)` and yields `(updates, params, result)` triples, which
the test compares with the oracle. `PLAIN` are JAX's and Optax's own, `MODELS` other libraries'
training states; those with several devices are in `meshes`.
"""

import contextlib
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training import train_state

from tests.support import modes, registry


def step(rule, c, **keywords):
    """`(updates, params) -> result` in one call, state included."""
    tx = rule.make(c, **keywords)
    return lambda u, p: tx.update(u, tx.init(p), p)[0]


def once(tx, u, p=None, **extra):
    """`(result, state)` of one compiled update of a transformation, state included."""
    return jax.jit(lambda u, p: tx.update(u, tx.init(u if p is None else p), p, **extra))(u, p)


def one_by_one(tx, values, dtype=jnp.float32):
    """The outputs for single numbers, one after the other, and the state after them."""
    state, update, outs = tx.init(jnp.zeros(1, dtype)), jax.jit(tx.update), []
    for value in values:
        out, state = update(jnp.full(1, value, dtype), state)
        outs.append(float(out[0]))
    return outs, state


def together(rule, cases, **keywords):
    """Many cases in one program, `{name: (c, updates, params)} -> {name: (result, state)}`.

    For trees and thresholds of different types; `updates` has one program for all values.
    """

    def one(c, u, p):
        tx = rule.make(c, **keywords)
        return tx.update(u, tx.init(p), p)

    limits = {name: case[0] for name, case in cases.items()}
    run = jax.jit(lambda trees: {name: one(limits[name], *tree) for name, tree in trees.items()})
    return run({name: case[1:] for name, case in cases.items()})


@functools.cache
def _program(rule, keywords):
    """One update for each dtype; threshold, state and trees are arguments."""

    def one(c, u, state, p):
        return rule.make(c, **dict(keywords)).update(u, state, p)

    def update(cases):
        return {dtype: one(*case) for dtype, case in cases.items()}

    return jax.jit(update)


def updates(rule, cases, dtypes=None, states=None, **keywords):
    """As `together`, for cases that differ in values and dtypes alone: trees like `registry.TREE`.

    All tests of a rule share its program: compiling it takes a thousand times as long as a run.
    """
    run, found = _program(rule, tuple(sorted(keywords.items()))), {}
    waiting = {dtype: [] for dtype in dtypes or rule.traced}
    for name, (c, u, p) in cases.items():
        waiting[str(jax.tree.leaves(u)[0].dtype)].append((name, c, u, p))
    while any(waiting.values()):
        batch = {d: queue.pop(0) if queue else _nothing(d) for d, queue in waiting.items()}
        given = {}
        for dtype, (name, c, u, p) in batch.items():
            state = (states or {}).get(name) or rule.make(1.0, **keywords).init(p)
            given[dtype] = (jnp.asarray(c, float), u, state, p)
        result = run(given)
        found |= {name: result[d] for d, (name, *_) in batch.items() if name is not None}
    return {name: found[name] for name in cases}


@functools.cache
def _nothing(dtype):
    tree = registry.build(registry.TREE, dtype, scale=0.0)
    return None, 1.0, tree, tree


@contextlib.contextmanager
def case(name):
    """Names the case in the message of whatever fails inside."""
    try:
        yield
    except Exception as error:
        error.add_note(f"case: {name}")
        raise


def eager(rule, c, u, p):
    yield u, p, step(rule, c)(u, p)


def jit(rule, c, u, p):
    yield u, p, jax.jit(step(rule, c))(u, p)


def grad(rule, c, u, p):
    """The updates are themselves a gradient, taken in the same trace."""

    def loss(p, u):
        pairs = zip(jax.tree.leaves(p), jax.tree.leaves(u), strict=True)
        return sum(jnp.vdot(a, b) for a, b in pairs)

    yield u, p, jax.jit(lambda u, p: step(rule, c)(jax.grad(loss)(p, u), p))(u, p)


def _scales(u):
    batch = [jax.tree.map(lambda x, s=s: np.asarray(x) * np.float32(s), u) for s in (1, 0.125, 8)]
    return batch, jax.tree.map(lambda *x: np.stack(x), *batch)


def _rows(tree, n):
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], tree) for i in range(n)]


def vmap(rule, c, u, p):
    batch, stacked = _scales(u)
    out = jax.jit(jax.vmap(step(rule, c), (0, None)))(stacked, p)
    yield from ((b, p, x) for b, x in zip(batch, _rows(out, 3), strict=True))


def scan(rule, c, u, p):
    batch, stacked = _scales(u)
    tx = rule.make(c)

    @jax.jit
    def run(state, stacked):
        def body(s, u):
            return tx.update(u, s, p)[::-1]

        return jax.lax.scan(body, state, stacked)[1]

    out = run(tx.init(p), stacked)
    yield from ((b, p, x) for b, x in zip(batch, _rows(out, 3), strict=True))


def pmap(rule, c, u, p):
    """Data parallel: the gradients are averaged, then the rule sees the same on every device."""

    def run(weight, u, p):
        u = jax.tree.map(lambda x: jax.lax.pmean(x * weight, "data"), u)
        return step(rule, c)(u, p)

    weights = np.array([0.5, 1.5], np.float32)
    out = jax.pmap(run, "data", in_axes=(0, None, None))(weights, u, p)
    yield from ((u, p, x) for x in _rows(out, 2))


def multi_steps(rule, c, u, p):
    """Two equal micro-steps: their mean is the update."""
    with modes.relaxed():
        tx = optax.MultiSteps(rule.make(c), 2).gradient_transformation()
        update = jax.jit(tx.update)
        first, state = update(u, tx.init(p), p)
        second, _ = update(u, state, p)
    assert not any(jnp.any(x) for x in jax.tree.leaves(first))
    yield u, p, second


def masked(rule, c, u, p):
    """Only the leaves of rank 1 or more; the others pass."""
    mask = jax.tree.map(lambda x: jnp.ndim(x) > 0, u)
    tx = optax.masked(rule.make(c), mask)
    out = jax.jit(lambda u, p: tx.update(u, tx.init(p), p)[0])(u, p)

    def pick(tree):
        return [x for x, m in zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True) if m]

    assert jnp.array_equal(out["gain"], u["gain"])
    yield pick(u), pick(p), pick(out)


def partition(rule, c, u, p):
    """Two labels, two thresholds."""
    labels = {"dense": "a", "gain": "b"}
    tx = optax.partition({"a": rule.make(c), "b": rule.make(2 * c)}, labels)
    out = jax.jit(lambda u, p: tx.update(u, tx.init(p), p)[0])(u, p)
    yield u["dense"], p["dense"], out["dense"]


def inject(rule, c, u, p):
    """The threshold is a traced number in the state."""
    tx = optax.inject_hyperparams(lambda threshold: rule.make(threshold))(threshold=c)
    state = tx.init(p)
    update = jax.jit(tx.update)
    out, state = update(u, state, p)
    yield u, p, out
    state.hyperparams["threshold"] = jnp.asarray(2 * c, jnp.float32)
    twice = jax.tree.map(lambda x: np.asarray(x) * 2, u)  # twice the limit, twice the size
    if not rule.params:
        yield u, p, jax.tree.map(lambda x: np.asarray(x) / 2, update(twice, state, p)[0])


def apply_if_finite(rule, c, u, p):
    tx = optax.apply_if_finite(rule.make(c), 3)
    bad = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), u)
    update = jax.jit(tx.update)
    skipped, state = update(bad, tx.init(p), p)
    assert not any(jnp.any(x) for x in jax.tree.leaves(skipped))
    yield u, p, update(u, state, p)[0]


def chain(rule, c, u, p):
    tx = optax.chain(optax.scale(1.0), rule.make(c), optax.identity())
    yield u, p, jax.jit(lambda u, p: tx.update(u, tx.init(p), p)[0])(u, p)


def named_chain(rule, c, u, p):
    tx = optax.named_chain(("clip", rule.make(c)), ("rest", optax.identity()))
    yield u, p, jax.jit(lambda u, p: tx.update(u, tx.init(p), p)[0])(u, p)


# ---- training states of other libraries: sgd(1) makes the update visible as p_old - p_new


def _optimizer(rule, c):
    return optax.chain(rule.make(c), optax.scale(-1.0))


def nnx_optimizer(rule, c, u, p):
    class Model(nnx.Module):
        def __init__(self):
            self.dense = nnx.Dict({k: nnx.Param(v) for k, v in p["dense"].items()})
            self.gain = nnx.Param(p["gain"])

    model = Model()
    tx = nnx.Optimizer(model, _optimizer(rule, c), wrt=nnx.Param)
    grads = nnx.state(model, nnx.Param)
    grads = jax.tree.unflatten(jax.tree.structure(grads), jax.tree.leaves(u))
    before = jax.tree.structure(tx.opt_state)
    nnx.jit(lambda model, tx, grads: tx.update(model, grads))(model, tx, grads)
    assert jax.tree.structure(tx.opt_state) == before
    new = jax.tree.leaves(nnx.state(model, nnx.Param))
    new = jax.tree.unflatten(jax.tree.structure(p), new)
    yield u, p, jax.tree.map(lambda a, b: a - b, p, new)


def linen_train_state(rule, c, u, p):
    state = train_state.TrainState.create(apply_fn=None, params=p, tx=_optimizer(rule, c))
    new = jax.jit(lambda s, g: s.apply_gradients(grads=g))(state, u)
    yield u, p, jax.tree.map(lambda a, b: a - b, p, new.params)


class _Model(eqx.Module):
    dense: dict
    gain: jax.Array
    name: str = "static"


def equinox_model(rule, c, u, p):
    model, grads = _Model(**p), _Model(**u)
    tx = _optimizer(rule, c)
    arrays = eqx.filter(model, eqx.is_array)
    grads = eqx.filter(grads, eqx.is_array)

    @eqx.filter_jit
    def run(model, grads):
        updates, _ = tx.update(grads, tx.init(arrays), eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates)

    new = run(model, grads)
    yield (
        u,
        p,
        {
            "dense": jax.tree.map(lambda a, b: a - b, p["dense"], new.dense),
            "gain": p["gain"] - new.gain,
        },
    )


PLAIN = [eager, jit, grad, vmap, scan, multi_steps, masked, partition, inject, apply_if_finite,
         chain, named_chain, pmap]  # fmt: skip
MODELS = [nnx_optimizer, linen_train_state, equinox_model]
