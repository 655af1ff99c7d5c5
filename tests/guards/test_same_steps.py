"""A guard returns the steps of the optimizer, for every optimizer of Optax.

Outside of `jit` a step is that of the optimizer bit for bit. In one program XLA joins products and
sums otherwise than it does without the guard, so it is the same up to roundings; without fused
multiply-add, with XLA_FLAGS=--xla_cpu_max_isa=AVX, bit for bit. A skipped step leaves the state bit
for bit in both.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards, optimizers, registry

pytestmark = [pytest.mark.relaxed, pytest.mark.filterwarnings("ignore")]  # Optax's own

EXACT = "--xla_cpu_max_isa=AVX" in os.environ.get("XLA_FLAGS", "").split()
STEPS = 10 if EXACT else 3
PLAIN = ("adan",)
NAMES = [
    pytest.param(name, marks=() if name in PLAIN else pytest.mark.slow)
    for name in optimizers.OPTIMIZERS
]
by_name = pytest.mark.parametrize("name", NAMES, scope="module")  # its tests in a row: one program
# A guard does not look inside of the optimizer: some will do where each operation compiles alone.
SEARCHES = ("lbfgs", "noisy_sgd", "sophia")  # a loop, random numbers, a Hessian
WITHOUT_JIT = [n for n in NAMES if {*SEARCHES, *PLAIN} & {*n.values}]


def _params():
    draw = np.random.default_rng(0).standard_normal
    return {"w": jnp.asarray(draw((5, 40)), jnp.float32), "b": jnp.asarray(draw(7), jnp.float32)}


def _step(name, tx):
    def step(params, state, factor):
        value, grads = jax.value_and_grad(optimizers.loss)(params)
        grads = jax.tree.map(lambda x: x * factor, grads)
        return tx.update(grads, state, params, **optimizers.extra(name, value, grads))

    return step


def _numbers(tree):
    """Its leaves; keys of random numbers as integers."""
    leaves = jax.tree.leaves(tree)
    keys = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    return [jax.random.key_data(x) if k else x for x, k in zip(leaves, keys, strict=True)]


@functools.cache
def _guarded(name):
    return jaxclip.skip_nonfinite(optimizers.OPTIMIZERS[name])


@functools.cache
def _jitted(name, tx):
    return jax.jit(_step(name, tx))


def _runs(name, wrap):
    """Steps and states of an optimizer, and of one in a guard, each from the same state."""
    inner = optimizers.OPTIMIZERS[name]
    guarded = _guarded(name)
    alone, ours = wrap(name, inner), wrap(name, guarded)
    params, state, own = _params(), inner.init(_params()), guarded.init(_params())
    for _ in range(STEPS):
        updates, after = alone(params, state, 1.0)
        passed, own = ours(params, own._replace(guarded_state=state), 1.0)
        assert not bool(own.skipped)
        yield _numbers((updates, after)), _numbers((passed, own.guarded_state))
        params, state = optax.apply_updates(params, updates), after


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_JIT)
def test_same_bits_outside_of_jit(name):
    for want, got in _runs(name, _step):
        registry.assert_same_bits(got, want)


@pytest.mark.slow
@by_name
def test_same_up_to_roundings_under_jit(name):
    """The difference of two weights has the roundings of the weights."""
    for want, got in _runs(name, _jitted):
        if EXACT:
            registry.assert_same_bits(got, want)
        for x, y in zip(want, got, strict=True):
            size = max(3.0, float(np.abs(x).max(initial=0)))  # the largest weight is 3
            np.testing.assert_allclose(y, x, rtol=0, atol=32 * 2.0**-23 * size)


@by_name
def test_skipped_step_leaves_the_same_bits_under_jit(name):
    tx, params = _guarded(name), _params()
    update = _jitted(name, tx)
    _, before = update(params, tx.init(params), 1.0)
    out, after = update(params, before, jnp.nan)
    assert guards.is_zero(out)
    assert bool(after.skipped)
    registry.assert_same_bits(_numbers(after.guarded_state), _numbers(before.guarded_state))


def test_all_optimizers_are_there():
    assert len(optimizers.OPTIMIZERS) > 40
    assert {"adam", "adan", "nadam", "nadamw", "optimistic_adam", "lbfgs"} <= {
        *optimizers.OPTIMIZERS
    }
