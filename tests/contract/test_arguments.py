"""Arguments of odd types and values: either correct, or refused with the argument's name."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional, norms
from tests.support import registry
from tests.support.contexts import once, one_by_one

G = jnp.array([3.0, 4.0])


# ---- numbers


@pytest.mark.slow
@pytest.mark.parametrize("big", [np.int64(2**32), 10**12, np.array(2**40), np.uint64(2**63)])
def test_whole_numbers_beyond_int32(big):
    """As an int32 they would be 0, and clip everything to 0."""
    rules = [
        jaxclip.clip(big),
        jaxclip.clip_by_norm(big),
        jaxclip.clip_by_global_norm(big),
        jaxclip.clip_by_global_norm(lambda count: big),
        jaxclip.zclip(max_norm=big, warmup_steps=1),
        jaxclip.adagc(warmup_norm=big),
        jaxclip.project_max_norm(big),
    ]
    for tx in rules:
        registry.assert_same_bits(once(tx, G, G)[0], G)
    registry.assert_same_bits(functional.clip_by_global_norm(G, big)[0], G)
    registry.assert_same_bits(functional.clip_by_norm(G, big), G)
    registry.assert_same_bits(functional.clip_by_value(G, -int(big), big), G)
    out, norm = functional.clip_by_global_norm(G, 1.0, norm=big)
    assert float(norm) == float(np.float32(int(big)))
    np.testing.assert_allclose(out, G / np.float32(int(big)), rtol=1e-6)


def test_warmup_steps_beyond_int32():
    for tx in (jaxclip.zclip(warmup_steps=10**12), jaxclip.adagc(warmup_steps=10**12)):
        np.testing.assert_allclose(once(tx, G)[0], G / 5, rtol=1e-6)


def test_clip_with_unsigned_threshold():
    u = jnp.array([-9.0, 3.0, 9.0])
    for five in (np.uint8(5), jnp.uint8(5)):
        np.testing.assert_array_equal(once(jaxclip.clip(five), u)[0], [-5.0, 3.0, 5.0])


@pytest.mark.parametrize("traced", [False, True])
def test_integer_clip_with_unrepresentable_bounds(traced):
    def clip(x, lo, hi):
        f = functional.clip_by_value
        return jax.jit(f)(x, lo, hi) if traced else f(x, lo, hi)

    cases = [
        (np.array([1, 2, 200], np.uint8), -1, 300),
        (np.array([1, 2, 100], np.int8), -200, 200),
        (np.array([1, 2, 3, 4], np.int32), 2.5, 3.5),
        (np.array([-5, 2, 2**31 - 1], np.int32), -np.inf, np.inf),
        (np.array([-5, 2, 2**31 - 1], np.int32), -2.5, 16777217),
        (np.array([-7, 0, 7], np.int16), np.float32(-6.5), 1e30),
    ]
    for x, lo, hi in cases:
        wide = x.astype(np.float64)
        want = np.minimum(np.maximum(wide, np.ceil(lo)), np.floor(hi)).astype(x.dtype)
        got = clip(jnp.asarray(x), lo, hi)
        assert got.dtype == x.dtype
        np.testing.assert_array_equal(got, want, err_msg=f"{x} in [{lo}, {hi}]")


def test_integer_clip_with_one_bound():
    x = jnp.array([-3, 0, 9])
    np.testing.assert_array_equal(functional.clip_by_value(x, None, 3.9), [-3, 0, 3])
    np.testing.assert_array_equal(functional.clip_by_value(x, -0.5, None), [0, 0, 9])


def test_clip_by_value_passes_bools_keys_and_float0():
    tree = {"flag": jnp.array([True]), "none": np.zeros(2, jax.dtypes.float0),
            "key": jax.random.key(0), "yes": True, "x": jnp.array([1.0])}  # fmt: skip
    out = functional.clip_by_value(tree, 2, 5)
    assert out["flag"] is tree["flag"]
    assert out["none"] is tree["none"]
    assert out["key"] is tree["key"]
    assert out["yes"] is True
    assert float(out["x"][0]) == 2.0


# ---- no limit, and less than none


@pytest.mark.slow
def test_infinite_factor_clips_nothing():
    steps = [1.0, 1.0, 1.0, 50.0, 1.0]
    rules = [
        jaxclip.clip_by_history(sigma=jnp.inf, window=4, min_history=2),
        jaxclip.zclip(z_threshold=jnp.inf, eps=0.0, warmup_steps=2, max_norm=None),
    ]
    for tx in rules:
        assert one_by_one(tx, steps)[0] == steps
        assert float(one_by_one(tx, steps[:3])[1].threshold) == np.inf
    guard = jaxclip.skip_spikes(optax.identity(), sigma=jnp.inf, window=4, min_history=2)
    assert one_by_one(guard, steps)[0] == steps
    assert float(one_by_one(guard, steps[:3])[1].norm_threshold) == np.inf
    for none in (None, jnp.inf):
        tx = jaxclip.adaptive_grad_clip(none, eps=0.0)
        registry.assert_same_bits(once(tx, G, jnp.zeros(2))[0], G)
    for large in (3e38, np.inf):
        zero = once(jaxclip.adaptive_grad_clip(0.0), G, jnp.array([large, large]))[0]
        np.testing.assert_array_equal(zero, [0.0, 0.0])


@pytest.mark.slow
def test_order_none_is_2():
    for make in (jaxclip.clip_by_norm, jaxclip.clip_by_global_norm):
        for u in (G, jnp.array([[3.0, 0.0], [0.0, 4.0]])):
            registry.assert_same_bits(once(make(1.0, ord=None), u), once(make(1.0, ord=2), u))
    assert float(norms.global_norm(G, None)) == 5.0


@pytest.mark.parametrize("name", ["eps", "floor"])
def test_infinite_eps_and_floor_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=inf must be finite"):
        jaxclip.clip_by(1.0, scope="global", **{name: float("inf")})


def test_traced_negative_threshold_is_recorded_as_0():
    tx = jaxclip.clip_by_global_norm(lambda count: count.astype(jnp.float32) - 1)
    _, state = jax.jit(lambda u: once(tx, u))(G)
    assert float(state.threshold) == 0.0


def test_functional_with_traced_negative_threshold():
    for run in (functional.clip_by_norm, lambda x, c: functional.clip_by_global_norm(x, c)[0]):
        np.testing.assert_array_equal(jax.jit(run)(G, -1.0), [0.0, 0.0])


# ---- schedules, masks and parameters


def test_schedule_that_is_a_pytree():
    half = jax.tree_util.Partial(lambda scale, count: scale * jnp.ones(()), 0.5)
    rules = [
        jaxclip.clip_by_global_norm(half),
        jaxclip.clip_by_norm({"w": half}),
        jaxclip.clip_by_norm(half),
    ]
    for tx in rules:
        np.testing.assert_allclose(once(tx, {"w": G})[0]["w"], G / 10, rtol=1e-6)
    out, _ = once(jaxclip.clip_by_value(None, half), {"w": G})
    np.testing.assert_allclose(out["w"], [0.5, 0.5])


@pytest.mark.parametrize("kind", [bool, np.bool_, np.array, jnp.array])
def test_masks_of_numpy_and_jax_bools(kind):
    mask = {"a": kind(True), "b": kind(False)}
    rule = jaxclip.clip_by_global_norm(1.0, norm_mask=mask, scale_mask=mask)
    out, state = once(rule, {"a": G, "b": G})
    assert float(state.norm) == 5.0
    np.testing.assert_allclose(out["a"], G / 5, rtol=1e-6)
    registry.assert_same_bits(out["b"], G)


def test_mask_that_is_a_callable_module():
    """It is callable, but still a tree of bools."""
    model = eqx.filter(eqx.nn.Linear(2, 2, key=jax.random.key(0)), eqx.is_inexact_array)
    model = jax.tree.map(jnp.ones_like, model)

    class Called(eqx.Module):
        weight: object
        bias: object

        def __call__(self, x):
            raise AssertionError

    u, mask = Called(model.weight, model.bias), Called(True, False)
    out, state = once(jaxclip.clip_by_global_norm(1.0, norm_mask=mask, scale_mask=mask), u)
    assert float(state.norm) == 2.0
    registry.assert_same_bits(out.bias, u.bias)
    np.testing.assert_allclose(out.weight, u.weight / 2)


def test_params_of_another_shape():
    """(2, 1) would broadcast to the units of (2, 3)."""
    p, u = {"w": jnp.ones((2, 1))}, {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"\(2, 1\) of params and \(2, 3\) of updates at \['w'\]"):
        once(jaxclip.adaptive_grad_clip(0.1), u, p)


def test_params_of_another_structure():
    p, u = {"w": jnp.ones(2), "v": jnp.ones(2)}, {"w": jnp.ones(2), "u": jnp.ones(2)}
    where = r"only params has \['v'\] and only updates has \['u'\]"
    with pytest.raises(ValueError, match=where):
        once(jaxclip.adaptive_grad_clip(0.1), u, p)


# ---- errors that name the argument


SCHEDULE = optax.constant_schedule(1.0)
WITHOUT_STATE = {
    "max_norm": [functional.clip_by_norm, functional.clip_by_global_norm],
    "min_value": [lambda w, low: functional.clip_by_value(w, low, 1.0)],
}


@pytest.mark.parametrize("value", [SCHEDULE, {"w": 1.0}], ids=["schedule", "tree"])
@pytest.mark.parametrize("name", WITHOUT_STATE)
def test_functional_refuses_schedules_and_trees(name, value):
    for function in WITHOUT_STATE[name]:
        with pytest.raises(TypeError, match=rf"{name}=.* must be a number or an array: schedules"):
            function(jnp.ones((2, 2)), value)


def test_arguments_of_odd_types():
    for make in (
        lambda n: jaxclip.clip_by(1.0, scope="leaf", name=n),
        lambda n: jaxclip.monitor(name=n),
    ):
        with pytest.raises(ValueError, match=r"name=\['a'\] must be a string"):
            make(["a"])
    with pytest.raises(TypeError, match=r"axis_name=\{'a'\} must be the name"):
        jaxclip.clip_by_global_norm(1.0, axis_name={"a"})
    rule = jaxclip.clip_by_norm(1.0, axis=np.array([0, 1]))
    np.testing.assert_allclose(once(rule, G[None])[0], G[None] / 5, rtol=1e-6)
    rule = jaxclip.clip_by_value(np.array([-1.0, -1.0]), np.array([1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"max_value has shape \(3,\), which does not broadcast"):
        once(rule, G)
