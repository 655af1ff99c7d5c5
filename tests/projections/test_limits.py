"""Limits of projections: none, zero, one for each leaf, schedules, numbers in the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import registry, weights
from tests.support.weights import apply, norms, zeros


def spectral(limit):
    """Each way to bound and each method once."""
    for how, method in (("clip", "eigh"), ("scale", "iterative")):
        yield jaxclip.project_spectral_norm(limit, how=how, method=method)


@pytest.mark.slow
def test_limits():
    p = registry.build({"a": (6, 4), "b": (5, 3)}, scale=3)
    p["b"] = p["b"].at[1:].set(p["b"][0])  # of rank 1
    u = zeros(p)
    inf = float("inf")
    free = [
        jaxclip.project_max_norm(inf), jaxclip.project_max_norm(None),
        jaxclip.project_min_max_norm(0.0, None), jaxclip.project_min_max_norm(None, inf),
        jaxclip.project_box(None, None), jaxclip.project_box(-inf, inf),
        jaxclip.project_spectral_norm(None),
    ]  # fmt: skip
    zero = [jaxclip.project_max_norm(0.0), jaxclip.project_box(0.0, 0.0), *spectral(0.0)]
    by_leaf = [
        jaxclip.project_max_norm({"a": 1.0, "b": None}),
        jaxclip.project_min_max_norm({"a": 0.0, "b": None}, {"a": 1.0, "b": inf}),
        jaxclip.project_box({"a": -0.5, "b": None}, {"a": jnp.full((4,), 0.5), "b": None}),
        jaxclip.project_spectral_norm({"a": 1.0, "b": None}),
    ]
    run = jax.jit(
        lambda u, p: [[apply(tx, u, p) for tx in group] for group in (free, zero, by_leaf)]
    )
    free, zero, by_leaf = run(u, p)
    for out in free:
        registry.assert_same_bits(out, p)
    for out in zero:
        assert not any(np.any(x) for x in jax.tree.leaves(out))
    for out in by_leaf:
        registry.assert_same_bits(out["b"], p["b"])
    for out in by_leaf[:2]:
        np.testing.assert_allclose(out["a"], weights.between(p["a"], 0, 1), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(by_leaf[2]["a"], np.clip(p["a"], -0.5, 0.5))
    np.testing.assert_allclose(weights.largest_singular(by_leaf[3]["a"]), 1.0, rtol=4e-6)


@pytest.mark.slow
def test_traced_negative_limit_counts_as_zero():
    """A sign would flip otherwise."""
    p = {"k": jnp.array([[3.0, 0.0], [4.0, 0.0]])}

    @jax.jit
    def run(c, p):
        made = [jaxclip.project_max_norm(c), jaxclip.project_min_max_norm(c, c), *spectral(c)]
        found = [tx.update(zeros(p), tx.init(p), p) for tx in made]
        return [(p["k"] + u["k"], jaxclip.metrics(state)) for u, state in found]

    for out, metrics in run(-1.0, p):
        np.testing.assert_array_equal(out, np.zeros((2, 2)))
        assert [float(v) for k, v in metrics.items() if k.endswith("/scale")] == [0.0]


@pytest.mark.parametrize("high", [None, float("inf")])
def test_traced_infinite_min_norm_changes_nothing(high):
    """Weights that have it to reach stay as they are; from a schedule too."""
    p = {"k": jnp.array([[3.0, 0.0], [4.0, 1e-3]])}

    @jax.jit
    def run(low, p):
        made = [
            jaxclip.project_min_max_norm(low, high), jaxclip.project_min_max_norm(low, high, 0.5),
            jaxclip.project_min_max_norm(lambda count: jnp.inf, high),
        ]  # fmt: skip
        pure = jaxclip.functional.project_min_max_norm(p, low, high)
        return [apply(tx, zeros(p), p) for tx in made], pure

    outs, pure = run(jnp.inf, p)
    for out in [*outs, pure]:
        registry.assert_same_bits(out, p)


def test_rate_of_zero():
    """Leaves every bit; a traced negative counts as 0, or units would go the other way."""
    p = {"k": registry.build((6, 4), scale=3)}

    @jax.jit
    def run(rate, p):
        tx = jaxclip.project_min_max_norm(0.5, 1.0, rate)
        state = tx.update(zeros(p), tx.init(p), p)[1]
        return (
            apply(tx, zeros(p), p),
            jaxclip.functional.project_min_max_norm(p, 0.5, 1.0, rate),
            state,
        )

    for rate in (0.0, -1.0):
        *outs, state = run(rate, p)
        for out in outs:
            registry.assert_same_bits(out, p)
        assert (float(state.fraction), float(state.smallest_scale)) == (0.0, 1.0)


@pytest.mark.slow
def test_schedules():
    p = registry.build((6, 4), scale=3)

    def falling(count):
        return 3.0 - count.astype(jnp.float32)

    makers = {
        "max_norm": lambda c: jaxclip.project_max_norm(c),
        "min_max_norm": lambda c: jaxclip.project_min_max_norm(0.0, c),
        "box": lambda c: jaxclip.project_box(None, c),
        "spectral_clip_eigh": lambda c: jaxclip.project_spectral_norm(c),
    }
    made = {name: make(falling) for name, make in makers.items()}

    @jax.jit
    def run(p, states):
        moved = {name: tx.update(p * 0, states[name], p) for name, tx in made.items()}
        return {k: (p + u, s) for k, (u, s) in moved.items()}

    states = {name: tx.init(p) for name, tx in made.items()}
    for limit in (3.0, 2.0):
        found = run(p, states)
        states = {name: state for name, (_, state) in found.items()}
        for name in ("max_norm", "min_max_norm"):
            np.testing.assert_allclose(norms(found[name][0]).max(), limit, rtol=1e-6)
        assert np.max(found["box"][0]) == limit
        largest = weights.largest_singular(found["spectral_clip_eigh"][0])
        np.testing.assert_allclose(largest, limit, rtol=4e-6)
        assert float(states["max_norm"].threshold) == limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "arguments", "dtype"),
    [
        ("project_max_norm", {"max_norm": 1.5}, "float32"),
        ("project_min_max_norm", {"min_norm": 0.5, "max_norm": 1.5, "rate": 0.5}, "bfloat16"),
        ("project_box", {"min_value": -0.25, "max_value": 1.5}, "bfloat16"),
        ("project_spectral_norm", {"max_norm": 1.5}, "bfloat16"),
    ],
)
def test_inject_hyperparams(function, arguments, dtype):
    """The limits are traced numbers in the state, which a run may change."""
    p = {"k": registry.build((6, 4), dtype, scale=2)}
    make = getattr(jaxclip, function)
    name = "max_value" if function == "project_box" else "max_norm"
    plain = [make(**arguments), make(**arguments | {name: 0.75})]
    want = jax.jit(lambda p: [tx.update(zeros(p), tx.init(p), p)[0] for tx in plain])(p)
    tx = optax.inject_hyperparams(make)(**arguments)
    update = jax.jit(tx.update)
    updates, state = update(zeros(p), tx.init(p), p)
    registry.assert_same_bits(updates, want[0])  # all of these numbers are bfloat16's as well
    state.hyperparams[name] = state.hyperparams[name] / 2
    registry.assert_same_bits(update(zeros(p), state, p)[0], want[1])


@pytest.mark.slow
def test_inject_keeps_what_decides_the_program():
    make = optax.inject_hyperparams(jaxclip.project_max_norm, static_args=("axis", "mask"))
    p = {"embed": {"embedding": registry.build((6, 4), scale=2)}}
    tx = make(1.0, axis=jaxclip.projections.flax_units, mask=lambda tree: tree)
    with pytest.raises(TypeError, match="mask"):
        tx.update(zeros(p), tx.init(p), p)  # the mask was called, and gave no bools
    tx = make(1.0, axis=jaxclip.projections.flax_units)
    out = apply(tx, zeros(p), p)["embed"]["embedding"]
    np.testing.assert_allclose(out, weights.between(p["embed"]["embedding"], 0, 1, 1), rtol=1e-6)
