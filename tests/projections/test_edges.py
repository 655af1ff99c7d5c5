"""Projections of unusual weights: empty, zero, not finite, very large or small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import oracles as o
from tests.support import registry, weights
from tests.support.weights import BY_NAME, UNITS, apply, for_each, functions, norms, steps, zeros


@pytest.mark.slow
def test_odd_leaves():
    """Nothing to project: empty arrays, no arrays, no floats; and zeros, which are in every set."""
    p = {"zero": jnp.zeros((3, 2)), "none": None, "int": jnp.array([[300, -400]])}
    p |= {"empty": jnp.zeros((0, 2)), "narrow": jnp.zeros((3, 0)), "flag": jnp.array([[True]])}
    for name, out in steps(for_each(zeros(p)), for_each(p)).items():
        with weights.case(name):
            registry.assert_same_bits(out, p)
    for name, out in functions(for_each(p)).items():
        with weights.case(name):
            registry.assert_same_bits(out, p)


@pytest.mark.slow
def test_odd_updates_and_bounds():
    """An integer update of float weights; bounds of weights without elements."""
    p = {"k": jnp.array([[3.0, 0.5], [4.0, 0.0]])}
    out = apply(jaxclip.project_max_norm(1.0), {"k": jnp.zeros((2, 2), jnp.int32)}, p)["k"]
    np.testing.assert_allclose(out, [[0.6, 0.5], [0.8, 0.0]], rtol=1e-6)
    none = {"k": jnp.zeros((3, 0))}
    registry.assert_same_bits(apply(jaxclip.project_box(jnp.zeros(0), None), none, none), none)


@pytest.mark.slow
def test_nonfinite_weights_stay_unchanged():
    """And so does their unit; the other units are projected."""
    bad = [jnp.nan, jnp.inf, -jnp.inf]
    p = {str(x): jnp.array([[x, 3.0], [9.0, 4.0]]) for x in bad}
    u = jax.tree.map(lambda w: jnp.where(jnp.isfinite(w), w, 1.0) * 0.25, p)
    for name, out in steps(for_each(u), for_each(p)).items():
        with weights.case(name):
            for key, w in p.items():
                assert np.array_equal(out[key][0, 0], w[0, 0], equal_nan=True)
                projection = BY_NAME[name]
                if projection.units:
                    np.testing.assert_array_equal(out[key][:, 0], [w[0, 0], 11.25])
                    moved = o.wide(w)[:, 1:] * 1.25
                    want = projection.want(moved, projection.c)
                    np.testing.assert_allclose(out[key][:, 1:], want, rtol=1e-6)
                elif projection.function == "project_spectral_norm":
                    np.testing.assert_array_equal(out[key], w + u[key])


@pytest.mark.slow
def test_infinite_step():
    p = {"k": jnp.array([[1.0, 3.0], [2.0, 4.0]])}
    u = {"k": jnp.array([[jnp.inf, 1.0], [0.0, 1.0]])}
    out = apply(jaxclip.project_box(-2.0, 2.0), u, p)["k"]
    np.testing.assert_array_equal(out, np.full((2, 2), 2.0))  # as min(max(w, lo), hi) says
    out = apply(jaxclip.project_max_norm(2.0), u, p)["k"]
    np.testing.assert_array_equal(out[:, 0], [np.inf, 2.0])  # neither hidden nor spread
    np.testing.assert_allclose(norms(out[:, 1:]), 2.0, rtol=1e-6)


@pytest.mark.slow
def test_extremes():
    """As if computed in float64, though squares overflow and underflow."""
    v = np.array([[0.6, 1.0], [0.8, -2.0]])
    cases = {f"{s:g}": jnp.asarray(v * s, jnp.float32) for s in (1e30, 1e-30)}
    for name, out in functions(for_each(cases)).items():
        projection = BY_NAME[name]
        with weights.case(name):
            for key, w in cases.items():
                want = projection.want(o.wide(w), projection.c)
                rtol = 1e-5 if name.startswith("spectral") else 2e-6  # 30 stages
                np.testing.assert_allclose(out[key], want, rtol=rtol)
    out = steps(for_each(cases, UNITS), for_each(zeros(cases), UNITS))
    for projection in UNITS:  # steps from 0 to there
        for key, w in cases.items():
            want = projection.want(o.wide(w), projection.c)
            np.testing.assert_allclose(out[projection.name][key], want, rtol=2e-6)
    whole = apply(jaxclip.project_max_norm(2.0), zeros(cases), cases)
    assert np.isfinite(whole["1e+30"]).all()  # P(w) - w cannot be written in float32 there


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 1.0])
def test_weights_near_the_largest_float_under_debug_infs(limit):
    """Outside of jit no infinity arises from a norm of 9e38."""
    w = jnp.full((9, 1), 3e38)
    project = jaxclip.project_max_norm(limit)
    with jax.debug_infs(True), jax.debug_nans(True):
        step, _ = project.update(jnp.zeros_like(w), project.init(w), w)
    want = np.zeros((9, 1)) if limit is None else 1 / 3 - np.float64(w)
    np.testing.assert_allclose(step, want, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: jaxclip.project_box(-1.0, 0.7),
                                  jaxclip.project_non_negative])  # fmt: skip
def test_derivative_of_a_bound(make):
    """Of the update in u: 1 inside, and 0 where it leads to the bound."""
    w, u = jnp.array([[0.5, 0.5, 0.1]]), jnp.array([[0.1, 9.0, -9.0]])

    def step(u):
        tx = make()
        return jnp.sum(tx.update(u, tx.init(w), w)[0])

    slope = jax.grad(step)(u)
    inside = [1.0, 0.0, 0.0] if make().init(w).rule == "project_box" else [1.0, 1.0, 0.0]
    np.testing.assert_array_equal(slope[0], inside)
