"""Weights of 16 bits: updates have their dtype, and the new weights are inside the set."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional
from tests.support import modes, registry, weights
from tests.support import oracles as o
from tests.support.weights import apply, norms, zeros

by_dtype = pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
# Transformations with the distance of weights from the set, relative to its bound.
SETS = {
    "max": (jaxclip.project_max_norm(1.0), lambda w: norms(w).max() - 1),
    "min and max": (
        jaxclip.project_min_max_norm(0.5, 1.0),
        lambda w: max(norms(w).max() - 1, 1 - norms(w).min() / 0.5),
    ),
    "box": (jaxclip.project_box(-0.3, 0.1), lambda w: max(-0.3 - w.min(), w.max() - 0.1)),
    "above 0": (jaxclip.project_non_negative(), lambda w: -w.min()),
    "spectral": (jaxclip.project_spectral_norm(1.0), lambda w: weights.largest_singular(w) - 1),
    "spectral, scaled": (
        jaxclip.project_spectral_norm(1.0, how="scale"),
        lambda w: weights.largest_singular(w) - 1,
    ),
}
ADD = {"optax": optax.apply_updates, "equinox": eqx.apply_updates, "by hand": lambda w, u: w + u}


@functools.partial(jax.jit, static_argnums=0)
def update(tx, w, u):
    """The update of one leaf."""
    return tx.update({"k": u}, tx.init({"k": w}), {"k": w})[0]["k"]


def step(tx, w, u):
    """The update of one leaf, and the weights after it in three ways."""
    found = update(tx, w, u)
    return found, {name: add(w, found) for name, add in ADD.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "name"),
    [*(("bfloat16", name) for name in SETS), ("float16", "max"), ("float16", "spectral")],
)
def test_all_ways_to_add_an_update_end_inside(dtype, name):
    """From weights inside, by steps of every size, alone and compiled together."""
    tx, distance = SETS[name]
    rng = np.random.default_rng(0)
    # The norms of the columns are the singular values.
    start = np.linalg.qr(rng.normal(size=(24, 8)))[0] * np.linspace(0.55, 0.85, 8)
    start = np.abs(start) if name == "above 0" else start
    start = jnp.asarray(np.clip(start, -0.25, 0.09) if name == "box" else start, dtype)
    run = jax.jit(lambda w, u: step(tx, w, u))
    for size in (0.0, 0.01, 0.1, 1.0, 30.0):
        u = jnp.asarray(size / 5 * rng.normal(size=start.shape), dtype)
        found, after = run(start, u)
        assert found.dtype == dtype
        after |= {f"{name}, apart": add(start, found) for name, add in ADD.items()}
        for way, found in after.items():
            with weights.case(f"{way}, steps of {size}"):
                assert found.dtype == dtype
                assert distance(o.wide(found)) <= 1e-5
                registry.assert_same_bits(found, after["optax"])
        _, again = run(found, zeros(u))
        registry.assert_same_bits(again["optax"], found)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sum_inside_that_is_stored_outside(dtype):
    """The sum 1.0049 is inside of 1.005, and the bfloat16 nearest to it, 1.0078, is not."""
    w, u = jnp.ones((1, 3), jnp.bfloat16), jnp.asarray([[0.0049, 0.0, 0.003]], dtype)
    for tx in (
        jaxclip.project_max_norm(1.005),
        jaxclip.project_box(0.0, 1.005),
        jaxclip.project_min_max_norm(0.9, 1.005),
    ):
        _, after = step(tx, w, u)
        np.testing.assert_array_equal(o.wide(after["by hand"]), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 1.005), ("float16", 1.0006)])
def test_update_from_the_same_program(dtype, limit):
    """XLA may keep such an update in float32; sums lie on both sides of where rounding changes."""
    tx, ulp = jaxclip.project_max_norm(limit), registry.eps(dtype)
    w, sizes = jnp.ones((1, 4000), dtype), jnp.linspace(0.49 * ulp, 0.52 * ulp, 4000)[None]
    run = jax.jit(lambda w, sizes: step(tx, w, (3 * (sizes / 3)).astype(dtype)))
    there, after = run(w, sizes)
    for found in (*after.values(), w + there):
        assert o.wide(found).max() <= limit
        registry.assert_same_bits(found, after["optax"])


@pytest.mark.slow
def test_functions_end_inside():
    w = jnp.asarray(np.random.default_rng(1).normal(size=(24, 8)), jnp.bfloat16)
    run = jax.jit(
        lambda w: {
            "max": functional.project_max_norm(w),
            "min and max": functional.project_min_max_norm(w, 5.5, 6.0),
            "box": functional.project_box(w, -0.3, 0.1),
            "spectral": functional.project_spectral_norm(w, 1.0),
        }
    )
    found = {name: o.wide(x) for name, x in run(w).items()}
    assert norms(found["max"]).max() <= 2.00001
    assert norms(found["min and max"]).max() <= 6.00001
    assert norms(found["min and max"]).min() >= 5.49999
    assert (found["box"].min() >= -0.3) & (found["box"].max() <= 0.1)
    assert weights.largest_singular(found["spectral"]) <= 1.00001


@pytest.mark.slow
@by_dtype
def test_updates_inside_are_unchanged(dtype):
    """Bit for bit; one of another dtype leads to the weights nearest to the exact sum."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.uniform(0.5, 1, (30, 8)), dtype)
    u = jnp.asarray(rng.uniform(-0.2, 0.2, (30, 8)), jnp.float32).at[0, 0].set(-0.0)
    sets = [
        jaxclip.project_max_norm(50.0),
        jaxclip.project_min_max_norm(0.1, 50.0),
        jaxclip.project_box(-9.0, 9.0),
        jaxclip.project_spectral_norm(90.0),
    ]
    run = jax.jit(
        lambda w, u: [(update(tx, w, u), update(tx, w, u.astype(w.dtype))) for tx in sets]
    )
    for there, narrow in run(w, u):
        registry.assert_same_bits(narrow, u.astype(dtype))
        assert there.dtype == dtype
        registry.assert_same_bits(w + there, (w.astype(jnp.float32) + u).astype(dtype))


@pytest.mark.slow
@by_dtype
def test_weights_far_outside_need_two_steps(dtype):
    """And keep their signs: a unit of zeros has no direction."""
    w = jnp.asarray(1000 * np.random.default_rng(0).uniform(-1, 1, (12, 5)), dtype)
    names = ("max", "min and max", "spectral", "spectral, scaled")
    run = jax.jit(lambda ws: {k: apply(SETS[k][0], zeros(w), w) for k, w in ws.items()})
    once = run(dict.fromkeys(names, w))
    for name, found in run(once).items():
        assert not name.startswith("m") or (np.sign(once[name]) == np.sign(w)).all()
        assert SETS[name][1](o.wide(found)) <= 1e-5


@pytest.mark.slow
@by_dtype
def test_norms_of_one_are_right_to_a_rounding(dtype):
    """No direction of rounding ends on a sphere, so it is to the nearest number."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(50, 40)) / 7, dtype)
    tx = jaxclip.project_unit_norm()

    @jax.jit
    def run(w):
        updates, state = tx.update(zeros(w), tx.init(w), w)
        return w + updates, state

    once, _ = run(w)
    found = norms(once) - 1
    assert np.abs(found).max() <= registry.eps(dtype) / 2
    assert np.abs(found.mean()) <= registry.eps(dtype) / 20
    again, state = run(once)
    registry.assert_same_bits(again, once)
    assert float(state.fraction) == 0.0


@pytest.mark.slow
def test_bounds_that_16_bits_cannot_represent():
    """The bounds are the numbers of the dtype inside; the nearest ones where there is none."""
    w = jnp.full((2, 3), 0.3, jnp.bfloat16)
    assert float(w[0, 0]) > 0.3
    tx = jaxclip.project_box(-0.3, 0.3, record=True)
    updates, state = jax.jit(lambda w: tx.update(w * 0, tx.init(w), w))(w)
    np.testing.assert_array_equal(o.wide(w + updates), 0.298828125)
    assert float(state.fraction) == 1.0
    pure = jax.jit(lambda w: functional.project_box(w, 0.3, 0.3))
    for start in (w * 0, w * 2):
        registry.assert_same_bits(pure(start), w)


@pytest.mark.parametrize("step_dtype", ["float32", "bfloat16"])
def test_infinite_weights_and_wide_updates(step_dtype):
    """Neither becomes NaN."""
    w = jnp.asarray([[jnp.inf, 0.5], [0.0, 0.5]], jnp.bfloat16)
    u = jnp.asarray([[1.0, jnp.inf], [0.0, 0.0]], step_dtype)
    _, after = step(jaxclip.project_max_norm(1.0), w, u)
    np.testing.assert_array_equal(o.wide(after["optax"]), [[np.inf, np.inf], [0.0, 0.5]])


def test_no_limit_under_debug_infs():
    """A limit of `None` or inf is a number there, and so is every number that is made from it."""
    w = jnp.full((3, 2), 0.5, jnp.bfloat16)
    with jax.debug_infs(True):
        for tx in (
            jaxclip.project_max_norm(float("inf")),
            jaxclip.project_min_max_norm(0.1, None),
            jaxclip.project_box(None, None, record=True),
        ):
            _, after = step(tx, w, w)
            registry.assert_same_bits(after["optax"], w + w)


@pytest.mark.slow
def test_no_erosion_of_small_singular_values():
    """A matrix projected in every step keeps its singular values below the limit."""
    dtype = "bfloat16"
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(2))
    values = np.r_[1.0, np.full(15, 0.3)]
    w = jnp.asarray((left * values) @ right.T, dtype)
    push = jnp.asarray(0.02 * np.outer(left[:, 0], right[:, 0]), jnp.float32)
    tx = jaxclip.project_spectral_norm(1.0)
    state = tx.init(w)

    def body(carry, _):
        w, state = carry
        updates, state = tx.update(push, state, w)
        return (optax.apply_updates(w, updates), state), None

    with modes.relaxed():
        (w, state), _ = jax.lax.scan(body, (w, state), length=200)
    assert int(state.clipped_count) > 100
    found = np.linalg.svd(o.wide(w))[1]
    np.testing.assert_allclose(found[1:].mean(), 0.3, rtol=2 * registry.eps(dtype))


@pytest.mark.slow
@by_dtype
def test_single_weights_stay_within_one_epsilon_below(dtype):
    """Single weights, whose rounding nothing evens out, pushed at the limit by small steps."""
    steps, limits = 40, np.linspace(0.5, 4, 5)
    tx = jaxclip.project_max_norm(list(limits))
    p = [jnp.full((1, 1), c, dtype) for c in limits]
    sizes = np.random.default_rng(0).uniform(0, 2 * registry.eps(dtype), (steps, len(limits)))

    @jax.jit
    def run(p):
        def body(p, size):
            u = [size[i] * w.astype(jnp.float32) for i, w in enumerate(p)]
            p = apply(tx, u, p)
            return p, jnp.stack([w[0, 0].astype(jnp.float32) for w in p])

        return jax.lax.scan(body, p, jnp.asarray(sizes, jnp.float32))[1]

    reached = np.asarray(run(p), np.float64)[1:] / limits
    assert reached.max() <= 1 + 1e-6
    assert reached.min() >= 1 - registry.eps(dtype)
