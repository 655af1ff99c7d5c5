"""`project_max_norm`: lands on the limit, stays there, and leaves alone what is inside."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import jaxclip
from tests import oracles as o
from tests import registry

pytestmark = pytest.mark.relaxed  # optax.apply_updates adds float32 to bfloat16


def _params(dtype="float32", scale=3.0):
    return registry.build(
        {"kernel": (6, 4), "bias": (4,), "conv": (2, 3, 4, 5)}, dtype, scale=scale
    )


def _apply(tx, updates, params):
    new, _ = tx.update(updates, tx.init(params), params)
    return optax.apply_updates(params, new)


def _zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def _norms(w, axis=None):
    return o.norm(w, 2, o.unit_axes(np.ndim(w), axis))


def test_lands_on_the_projection():
    p, u = _params(), registry.build({"kernel": (6, 4), "bias": (4,), "conv": (2, 3, 4, 5)}, seed=1)
    tx = jaxclip.project_max_norm(2.0)
    out = jax.jit(lambda u, p: _apply(tx, u, p))(u, p)
    for key in ("kernel", "conv"):
        moved = o.wide(p[key]) + o.wide(u[key])
        want = o.scaled([moved], [_norms(moved)], [np.float64(2.0)])[0]
        np.testing.assert_allclose(out[key], want, rtol=1e-6, atol=1e-6)
        assert _norms(out[key]).max() <= 2.0 * (1 + 5e-7)
    np.testing.assert_allclose(out["bias"], p["bias"] + u["bias"], rtol=1e-7)


@pytest.mark.parametrize("axis", [0, 1, (0, 1, 2)])
def test_axis(axis):
    p = _params()
    tx = jaxclip.project_max_norm(1.0, axis=axis)
    out = jax.jit(lambda u, p: _apply(tx, u, p))(_zeros(p), p)
    for key in ("kernel", "conv"):
        want = o.scaled([p[key]], [_norms(p[key], axis)], [np.float64(1.0)])[0]
        np.testing.assert_allclose(out[key], want, rtol=1e-6, atol=1e-6)


def test_mask():
    p = _params()
    for mask, touched in [
        ({"kernel": False, "bias": True, "conv": False}, {"bias"}),
        (lambda tree: jax.tree.map(lambda x: x.ndim == 4, tree), {"conv"}),
        (True, {"kernel", "bias", "conv"}),
        (None, {"kernel", "conv"}),
    ]:
        out = _apply(jaxclip.project_max_norm(0.5, mask=mask), _zeros(p), p)
        for key in p:
            same = np.array_equal(out[key], p[key])
            assert same == (key not in touched), (key, touched)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_idempotent(dtype):
    """Once inside, the next projection of no update changes no bit."""
    tx = jaxclip.project_max_norm(2.0)
    once = _apply(tx, _zeros(_params(dtype)), _params(dtype))
    assert jax.tree.map(lambda x: x.dtype, once) == jax.tree.map(lambda x: x.dtype, _params(dtype))
    again = once
    for _ in range(3):
        again = _apply(tx, _zeros(again), again)
        registry.assert_same_bits(again, once)


_VECTORS = st.lists(st.floats(-1, 1, width=16), min_size=4, max_size=4)


@hypothesis.given(_VECTORS, _VECTORS, st.floats(2.0**-10, 1024.0, width=32))
def test_idempotent_whatever_the_step(start, step, limit):
    """From weights inside, any step lands on the limit at most, and then nothing moves."""
    tx = jaxclip.project_max_norm(limit)

    def column(values, k):
        return {"k": jnp.asarray(np.asarray(values) * k, jnp.float32)[:, None]}

    w, u = column(start, limit / 2), column(step, limit * 4)
    once = _apply(tx, u, w)
    moved = o.wide(w["k"]) + o.wide(u["k"])
    want = o.scaled([moved], [_norms(moved)], [np.float64(limit)])[0]
    np.testing.assert_allclose(once["k"], want, rtol=1e-6, atol=5e-7 * limit)
    assert _norms(once["k"]).max() <= limit * (1 + 5e-7)
    # By value and not by bits, since -0.0 + 0.0 is 0.0.
    np.testing.assert_array_equal(_apply(tx, _zeros(once), once)["k"], once["k"])
    np.testing.assert_array_equal(_apply(tx, _zeros(w), w)["k"], w["k"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_parameters(dtype):
    """The difference comes in float32, so that w + u rounds once."""
    p, u = _params(dtype), _params(dtype, scale=0.3)
    tx = jaxclip.project_max_norm(2.0)
    updates, _ = tx.update(u, tx.init(p), p)
    assert updates["kernel"].dtype == jnp.float32
    out = optax.apply_updates(p, updates)
    for key in ("kernel", "conv"):
        assert out[key].dtype == dtype
        moved = o.wide(p[key]) + o.wide(u[key])
        want = o.scaled([moved], [_norms(moved)], [np.float64(2.0)])[0]
        ulp = registry.eps(dtype) / 2 * (1 + 1e-3)
        tiny = float(jnp.finfo(dtype).smallest_normal)
        np.testing.assert_allclose(o.wide(out[key]), want, rtol=ulp, atol=tiny)


def test_500_steps_of_training():
    tx = optax.chain(optax.sgd(0.5), jaxclip.project_max_norm(1.5))
    p = _params()

    def body(carry, key):
        p, s = carry
        grads = jax.tree.map(lambda x: jax.random.normal(key, x.shape) - 0.3, p)
        updates, s = tx.update(grads, s, p)
        p = optax.apply_updates(p, updates)
        size = jnp.sqrt(jnp.sum(p["kernel"] ** 2, axis=0)).max()
        return (p, s), size

    keys = jax.random.split(jax.random.key(0), 500)
    (p, _), sizes = jax.jit(lambda c: jax.lax.scan(body, c, keys))((p, tx.init(p)))
    assert float(sizes.max()) <= 1.5 * (1 + 1e-6)
    assert float(sizes[-100:].max()) > 1.4  # the limit was reached, not avoided
    assert np.abs(p["bias"]).max() > 10  # biases run free


def test_1000_idle_steps_in_bfloat16():
    w = {"k": jnp.asarray([[0.5, 3.0], [0.25, -4.0]], jnp.bfloat16)}
    tx = jaxclip.project_max_norm(2.0)
    first = _apply(tx, _zeros(w), w)
    last = jax.lax.scan(lambda p, _: (_apply(tx, _zeros(p), p), None), first, length=1000)[0]
    registry.assert_same_bits(last, first)
    registry.assert_same_bits(last["k"][:, 0], w["k"][:, 0])
    np.testing.assert_allclose(_norms(last["k"])[0, 1], 2.0, rtol=registry.eps("bfloat16"))


def test_odd_weights():
    p = {
        "zero": jnp.zeros((3, 2)),
        "empty": jnp.zeros((0, 2)),
        "none": None,
        "int": jnp.array([[300, 400]]),
        "huge": jnp.full((2, 2), 3e38),
        "tiny": jnp.full((2, 2), 1e-30),
    }
    out = _apply(jaxclip.project_max_norm(2.0), _zeros(p), p)
    for key in ("zero", "empty", "none", "int", "tiny"):
        registry.assert_same_bits(out[key], p[key])
    # P(w) - w cannot be written in float32 at this size; what matters is that it is finite.
    assert np.isfinite(out["huge"]).all()


def test_limits():
    p = _params()
    registry.assert_same_bits(_apply(jaxclip.project_max_norm(float("inf")), _zeros(p), p), p)
    out = _apply(jaxclip.project_max_norm(0.0), _zeros(p), p)
    assert not np.any(out["kernel"])
    assert not np.any(out["conv"])
    falling = jaxclip.project_max_norm(lambda count: 2.0 - count.astype(jnp.float32))
    state = falling.init(p)
    for limit in (2.0, 1.0):
        updates, state = falling.update(_zeros(p), state, p)
        p = optax.apply_updates(p, updates)
        np.testing.assert_allclose(_norms(p["kernel"]).max(), limit, rtol=1e-6)


def test_needs_params_and_good_values():
    p = _params()
    tx = jaxclip.project_max_norm()
    with pytest.raises(ValueError, match="params"):
        tx.update(p, tx.init(p))
    for bad, error in [
        (-1.0, ValueError),
        (float("nan"), ValueError),
        (True, TypeError),
        ("2", TypeError),
    ]:
        with pytest.raises(error, match=f"max_norm={bad!r}"):
            jaxclip.project_max_norm(bad)


def test_records():
    p = _params()
    tx = jaxclip.project_max_norm(2.0)
    _, state = tx.update(_zeros(p), tx.init(p), p)
    found = jaxclip.metrics(state)
    sizes = np.concatenate([_norms(p[k]).ravel() for k in ("kernel", "conv")])
    np.testing.assert_allclose(found["project_max_norm/norm"], sizes.max(), rtol=1e-6)
    np.testing.assert_allclose(found["project_max_norm/fraction"], np.mean(sizes > 2), rtol=1e-6)
    np.testing.assert_allclose(found["project_max_norm/scale"], 2 / sizes.max(), rtol=1e-6)
    chexed = jax.eval_shape(tx.update, p, state, p)[1]
    assert jax.tree.structure(chexed) == jax.tree.structure(state)


def _held(w):
    assert _norms(w).max() <= 1.0 + 1e-6


def test_linen_train_state():
    tx = optax.chain(optax.adam(0.1), jaxclip.project_max_norm(1.0))
    state = train_state.TrainState.create(apply_fn=None, params=_params(), tx=tx)
    for _ in range(3):
        state = jax.jit(lambda s: s.apply_gradients(grads=s.params))(state)
    _held(state.params["kernel"])
    _held(state.params["conv"])


def test_nnx_optimizer():
    model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    tx = optax.chain(optax.sgd(5.0), jaxclip.project_max_norm(1.0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(lambda x: -jnp.ones_like(x), nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    _held(np.asarray(model.kernel))
    np.testing.assert_allclose(_norms(np.asarray(model.kernel)), np.ones((1, 4)), rtol=1e-6)
    assert float(np.asarray(model.bias).min()) >= 4.9


def test_state_is_a_fixed_point():
    for dtype in ("bfloat16", "float32"):
        p = _params(dtype)
        tx = jaxclip.project_max_norm()
        state = tx.init(p)
        _, after = jax.jit(tx.update)(p, state, p)
        for a, b in zip(*map(jax.tree.leaves, (after, state)), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
