"""The moments of `scale_by_stable_adam` in every dtype and far from 1, against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import modes, registry
from tests.support import oracles_learned as ol

STEPS = 1000
FLOATS = ("float16", "bfloat16", "float32")


def _spikes(size, shape=(4,)):
    """Normal gradients, with three of `size` for the first element."""
    grads = np.random.default_rng(7).normal(size=(STEPS, *shape))
    grads[[0, 10, 500], 0] = size, -size, size
    return grads


@functools.cache
def _program(keywords):
    tx = jaxclip.scale_by_stable_adam(**dict(keywords))

    def run(state, grads):
        def body(state, g):
            out, state = tx.update(g, state)
            return state, (out, state.norm)

        return jax.lax.scan(body, state, grads)

    return tx.init, jax.jit(run)


def _run(grads, params, **keywords):
    """The last state, all steps and all norms."""
    init, run = _program(tuple(keywords.items()))
    return run(init(params), grads)


def _check(grads, weights="float32", rtol=5e-6, **keywords):
    """All steps equal those of float64, to `rtol` and a rounding of the gradients' dtype."""
    state, (steps, norms) = _run(grads, jnp.zeros(grads.shape[1:], weights), **keywords)
    oracle = ol.StableAdam(**keywords)
    wide = np.complex128 if np.iscomplexobj(grads) else np.float64
    rows = [oracle(g) for g in np.asarray(grads).astype(wide)]
    want = np.array([step for step, _ in rows])
    rounding = float(jnp.finfo(grads.dtype).eps) if jnp.finfo(grads.dtype).bits < 32 else 0
    scale = np.abs(want).max()  # absolute: the first moment cancels
    np.testing.assert_allclose(
        np.asarray(steps).astype(wide), want, rtol=rtol + rounding, atol=rtol * scale
    )
    np.testing.assert_allclose(norms, [rms for _, rms in rows], rtol=5e-6)
    assert steps.dtype == grads.dtype
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float16", 300), ("float16", 6e4), ("bfloat16", 1e20), ("float32", 1e20), ("float32", 1e38)],
)
def test_squares_that_overflow(dtype, size):
    """One finite gradient does not stop its weight for ever."""
    grads = jnp.asarray(_spikes(size), dtype)
    state = _check(grads, dtype)
    assert np.isfinite(state.memory.root_second_moment).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [3e38, 1e30, 1e19, 1e-19, 1e-30, 1e-34])
def test_all_gradients_far_from_one(size):
    grads = np.random.default_rng(3).uniform(0.25, 1, size=(STEPS, 6)) * size
    grads[:, ::2] *= -1
    _check(jnp.asarray(grads, jnp.float32), eps=0.0)
    _check(jnp.asarray(grads, jnp.float32), eps=0.0, nesterov=True)
    parts = grads[:, :3] + 1j * grads[:, 3:]
    _check(jnp.asarray(parts, jnp.complex64), "complex64", eps=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("weights", FLOATS)
@pytest.mark.parametrize("grads", FLOATS)
def test_dtypes_of_weights_and_gradients(grads, weights):
    """Moments of float16 weights are as good as those of float32 weights, and scan accepts them."""
    state = _check(jnp.asarray(_spikes(20), grads), weights)
    assert {x.dtype.name for x in jax.tree.leaves(state.memory)} == {"float32"}


def test_dtypes_are_those_of_init():
    weights = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2), "c": jnp.ones(2, jnp.complex64)}
    for mu_dtype, want in ((None, "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")):
        tx = jaxclip.scale_by_stable_adam(mu_dtype=mu_dtype)
        state = tx.init(weights)
        for dtypes in (("float32", "bfloat16"), ("float16", "float32")):
            grads = dict(zip("ab", map(weights["a"].astype, dtypes), strict=True))
            grads["c"] = weights["c"]
            out, after = jax.eval_shape(tx.update, grads, state, weights)
            assert jax.tree.map(lambda x: x.dtype, out) == jax.tree.map(lambda x: x.dtype, grads)
            assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
                lambda x: (x.shape, x.dtype), state
            )
        names = jax.tree.map(lambda x: x.dtype.name, state.memory)
        assert names.first_moment == {"a": want, "b": want, "c": "complex64"}
        assert set(names.root_second_moment.values()) == {"float32"}


@pytest.mark.slow
def test_float64_stays():
    with modes.x64():
        weights = {"a": jnp.ones(2, jnp.float64), "c": jnp.ones(2, jnp.complex128)}
        state = jaxclip.scale_by_stable_adam().init(weights)
        names = jax.tree.map(lambda x: x.dtype.name, state.memory)
        assert names.first_moment == {"a": "float64", "c": "complex128"}
        assert names.root_second_moment == {"a": "float64", "c": "float64"}
        narrow = jaxclip.scale_by_stable_adam(mu_dtype=jnp.float32).init(weights)
        assert narrow.memory.first_moment["a"].dtype == jnp.float32
        assert narrow.memory.first_moment["c"].dtype == jnp.complex64
        grads = jnp.asarray(_spikes(1e20))
        _check(grads, "float64", rtol=1e-12)
        _check(grads, "float32")  # moments of float32, steps of float64
        _check_scaled(grads, 2.0**800)


def _check_scaled(grads, factor):
    plain, scaled = (_run(g, jnp.zeros_like(g[0]), eps=0.0)[1] for g in (grads, factor * grads))
    registry.assert_same_bits(plain, scaled)


@pytest.mark.parametrize("factor", [2.0**100, 2.0**-90])
def test_steps_do_not_depend_on_the_scale(factor):
    _check_scaled(jnp.asarray(_spikes(100.0), jnp.float32), factor)


@pytest.mark.slow
@pytest.mark.parametrize("b2", [0.0, 0.05, 0.5, 0.95, 0.9999])
def test_root_that_jumps_and_falls(b2):
    """Sizes from 1e-6 to 1e6, one after the other: no digits cancel."""
    rng = np.random.default_rng(1)
    grads = rng.normal(size=(200, 8)) * 10.0 ** rng.integers(-6, 7, size=(200, 8))
    state, _ = _run(jnp.asarray(grads, jnp.float32), jnp.zeros(8), b2=b2)
    oracle = ol.StableAdam(b2=b2)
    for g in grads.astype("f4"):
        oracle(g)
    np.testing.assert_allclose(state.memory.root_second_moment, oracle.nu**0.5, rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["constant", "decaying"])
def test_roundings_do_not_add_up(name):
    """With sums of squares, or of sqrt(b2) r, the error would be above 5e-5."""
    steps = np.arange(10_000)[:, None]
    rate = 0.0 if name == "constant" else 8e-4
    grads = (1 + np.arange(64) / 64) * np.exp(-rate * steps)
    state, _ = _run(jnp.asarray(grads, jnp.float32), jnp.zeros(64), b2=0.9999)
    oracle = ol.StableAdam(b2=0.9999)
    for g in grads.astype("f4"):
        oracle(g)
    np.testing.assert_allclose(state.memory.root_second_moment, oracle.nu**0.5, rtol=1e-5)


@pytest.mark.relaxed  # Adam of Optax promotes
def test_unclipped_run_equals_adam_of_optax():
    """Over 1,000 steps in float32, where Optax's squares are in range; both beside float64."""
    grads = jnp.asarray(_spikes(1.0), jnp.float32)
    adam = optax.scale_by_adam()
    _, theirs = jax.lax.scan(
        lambda state, g: adam.update(g, state)[::-1], adam.init(grads[0]), grads
    )
    _, (ours, _) = _run(grads, grads[0], threshold=None)
    oracle = ol.StableAdam(threshold=np.inf)
    want = np.array([oracle(g)[0] for g in np.asarray(grads, np.float64)])
    np.testing.assert_allclose(ours, theirs, atol=3e-5)
    assert np.abs(ours - want).max() < np.abs(theirs - want).max() < 3e-5


def test_zero_gradient_with_eps_of_0():
    """Adam would divide 0 by 0."""
    out, state = jaxclip.scale_by_stable_adam(eps=0.0).update(
        jnp.array([0.0, 3.0]), jaxclip.scale_by_stable_adam().init(jnp.zeros(2))
    )
    np.testing.assert_allclose(out, [0.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(state.norm, 0.5**0.5, rtol=1e-6)


def test_moments_are_trees_like_the_parameters():
    """For Optax's tools that place or map states."""
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    tx = optax.chain(jaxclip.scale_by_stable_adam(), optax.scale_by_schedule(lambda n: -1e-3))
    state = tx.init(params)
    specs = {"w": "rows", "b": "all"}
    placed = optax.tree_utils.tree_map_params(
        tx, lambda _, spec: spec, state, specs, transform_non_params=lambda _: None
    )
    assert placed[0].memory == (specs, specs)
    assert int(optax.tree_utils.tree_get(state, "count")) == 0
    assert optax.tree_utils.tree_get(state, "first_moment").keys() == params.keys()
