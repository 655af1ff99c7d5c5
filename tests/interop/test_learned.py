"""Learned rules wherever they are used: what carries their state must change nothing.

All rules run in one program: it compiles in little more time than that of one.
"""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards, learned, modes, registry
from tests.support.learned import RULES

STEPS = 16


def _stacked(seed=1, dtype="float32"):
    return learned.updates(dtype, steps=STEPS, seed=seed)


def _row(stacked, i):
    return jax.tree.map(lambda x: jnp.asarray(x[i]), stacked)


def _scanned(tx):
    def run(stacked, state):
        return jax.lax.scan(lambda s, u: tx.update(u, s)[::-1], state, stacked)

    return run


def _close(got, want):
    """Other programs fuse otherwise, and so round otherwise."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True)
    for (path, a), b in pairs:
        np.testing.assert_allclose(a, b, rtol=3e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_types_never_change(name):
    """Whatever the gradient's dtype; the memory's is that of the parameters' norms."""
    tx, like = RULES[name](), _row(_stacked(), 0)
    state = tx.init(like)
    assert isinstance(state, jaxclip.ClipState)
    assert jax.tree.leaves(state.memory)
    abstract = jax.eval_shape(tx.init, like)
    assert guards.types(abstract) == guards.types(state)
    for dtype in ("float16", "bfloat16", "float32", "complex64"):
        u = jax.tree.map(lambda x, d=dtype: x.astype(d), like)
        assert guards.types(jax.eval_shape(tx.update, u, state)[1]) == guards.types(state), dtype
    half = tx.init(jax.tree.map(lambda x: x.astype(jnp.bfloat16), like))
    assert guards.types(half) == guards.types(state)
    with modes.x64():
        for params, memory in (("float32", jnp.float32), ("float64", jnp.float64)):
            p = jax.tree.map(lambda x, d=params: np.asarray(x, d), like)
            state = tx.init(p)
            floats = {x.dtype for x in jax.tree.leaves(state.memory) if registry.is_float(x)}
            assert floats == {jnp.dtype(memory)}
            for dtype in ("bfloat16", "float32", "float64"):
                u = jax.tree.map(lambda x, d=dtype: jnp.asarray(x, d), like)
                after = jax.eval_shape(tx.update, u, state)[1]
                assert guards.types(after) == guards.types(state), (params, dtype)


@pytest.mark.slow
def test_scan_vmap_loop_donation_pickle_and_one_trace():
    """A scan, runs at once, a loop with donated state, and a run read again from its bytes."""
    tx, stacked = learned.together(), _stacked()
    scan = jax.jit(_scanned(tx))
    start = tx.init(_row(stacked, 0))
    end, log = scan(stacked, start)
    others = [stacked, _stacked(seed=2)]
    at_once = jax.tree.map(lambda *x: np.stack(x), *others)
    found = jax.jit(jax.vmap(_scanned(tx), (0, None)))(at_once, start)
    for i, own in enumerate(others):
        _close(_row(found, i), scan(own, start))
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1), donate_argnums=1)
    state = tx.init(_row(stacked, 0))
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    for i in range(STEPS):
        out, state = update(_row(stacked, i), state)
        _close(out, _row(log, i))
        if i == STEPS // 2:
            again = pickle.loads(pickle.dumps(jax.device_get(state)))
            registry.assert_same_bits(again, state)
            state = jax.tree.map(jnp.asarray, again)
    _close(state, end)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == size
    for name in RULES:
        assert int(jaxclip.metrics(end)[f"{name}/clipped_count"]) > 1


INJECTED = {
    "autoclip": (jaxclip.autoclip, {"percentile": 60.0}, {"window": 6}),
    "zclip": (jaxclip.zclip, {"z_threshold": 2.5, "max_norm": 3.0}, {}),
    "adagc": (jaxclip.adagc, {"max_ratio": 1.05}, {}),
    "clip_by_growth": (jaxclip.clip_by_growth, {"max_growth": 1.5}, {}),
    "stabilize_gradient": (jaxclip.stabilize_gradient, {"beta1": 0.7, "eps": 1e-8}, {}),
    "clip_by_history": (jaxclip.clip_by_history, {"sigma": 1.0}, {"window": 6, "min_history": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INJECTED)
def test_inject_hyperparams(name):
    """The factory itself, with its defaults: its numbers are then traced."""
    factory, given, fixed = INJECTED[name]
    stacked = _stacked()
    tx = optax.inject_hyperparams(factory, static_args=tuple(fixed))(**given, **fixed)
    plain = factory(**given, **fixed)

    def run(stacked):
        like = jax.tree.map(lambda x: x[0], stacked)
        ends = []
        for one in (tx, plain):
            state = one.init(like)
            ends.append(jax.lax.scan(lambda s, u, t=one: t.update(u, s, u)[::-1], state, stacked))
        return ends

    (state, out), (_, want) = jax.jit(run)(stacked)
    _close(out, want)
    for key, value in given.items():
        np.testing.assert_allclose(state.hyperparams[key], value, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.relaxed
def test_multi_steps():
    """Inside, a rule learns from the means."""
    tx = optax.MultiSteps(optax.chain(RULES["clip_by_history"](), RULES["adagc"]()), 2)
    alone = optax.chain(RULES["clip_by_history"](), RULES["adagc"]())
    stacked = learned.updates(steps=STEPS, seed=1, broken=False)
    like = _row(stacked, 0)
    _, out = jax.jit(_scanned(tx))(stacked, tx.init(like))
    means = jax.tree.map(lambda x: (x[::2] + x[1::2]) / 2, stacked)
    _, want = jax.jit(_scanned(alone))(means, alone.init(like))
    _close(jax.tree.map(lambda x: x[1::2], out), want)
    assert not any(np.any(x[::2]) for x in jax.tree.leaves(out))
