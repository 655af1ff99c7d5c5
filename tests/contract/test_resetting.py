"""`reset_every`: the state of a transformation, started anew."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxclip
from tests.support import registry

pytestmark = pytest.mark.relaxed  # Adam of Optax promotes


def _outs(tx, grads, params):
    """The steps of a run, and its last state, of one scan."""

    @jax.jit
    def run(grads):
        return jax.lax.scan(lambda s, g: tx.update(g, s, params)[::-1], tx.init(params), grads)

    state, outs = run(jnp.asarray(grads))
    return np.asarray(outs), state


def _adam(grads, b1=0.9, b2=0.999, eps=1e-8):
    """Adam's steps from new moments, in float64."""
    m = v = 0.0
    steps = []
    for t, g in enumerate(np.asarray(grads, np.float64), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        steps.append(m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps))
    return np.array(steps)


@pytest.mark.slow
def test_a_thousand_steps():
    """Each stretch is a run of its own; after a reset the step grows from 1 % by a cosine."""
    grads = np.float32(np.random.default_rng(0).normal(size=(1000, 3)))
    params = jnp.zeros(3)
    plain, state = _outs(jaxclip.reset_every(optax.scale_by_adam(), 130), grads, params)
    want = np.concatenate([_adam(grads[i : i + 130]) for i in range(0, 1000, 130)])
    np.testing.assert_allclose(plain, want, rtol=2e-4, atol=1e-6)
    assert int(state.update_count) == 1000
    tx = jaxclip.reset_every(optax.scale_by_adam(), 130, warmup_steps=50)
    since = np.arange(1000) % 130
    factor = 1 - 0.99 * (1 + np.cos(np.pi * since / 50)) / 2
    factor = np.where((since < 50) & (np.arange(1000) >= 130), factor, 1)[:, None]
    np.testing.assert_allclose(_outs(tx, grads, params)[0], want * factor, rtol=2e-4, atol=1e-6)


def test_sums_start_anew():
    u = jnp.ones(1)
    tx = jaxclip.reset_every(optax.trace(1.0), 3)
    outs, _ = _outs(tx, np.ones((8, 1), np.float32), u)
    np.testing.assert_array_equal(outs[:, 0], [1, 2, 3, 1, 2, 3, 1, 2])
    longer = jaxclip.reset_every(optax.trace(1.0), 3, warmup_steps=5)
    outs, _ = _outs(longer, np.ones((8, 1), np.float32), u)
    np.testing.assert_allclose(outs[:3, 0], [1, 2, 3])
    factors = 1 - 0.99 * (1 + np.cos(np.pi * np.arange(3) / 5)) / 2
    np.testing.assert_allclose(outs[3:6, 0], factors * [1, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(outs[6, 0], factors[0], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(kind):
    """Rows on eight devices: the numbers of one device, and states that stay where they are."""
    tx = jaxclip.reset_every(optax.chain(jaxclip.clip_by_global_norm(1.0), optax.trace(0.5)), 2)
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    want, _ = _outs(tx, np.stack([w, 2 * w, 0.01 * w, w, w]), w)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("x"))
        w = jax.device_put(w, rows)
        update = jax.jit(tx.update)
        state = jax.jit(tx.init)(w)
        for factor, expected in zip((1.0, 2.0, 0.01, 1.0, 1.0), want, strict=True):
            out, state = update(w * factor, state, w)
            np.testing.assert_allclose(out, expected, rtol=1e-6)
            assert out.sharding.is_equivalent_to(rows, 2)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (8, 2)]
    assert moments
    assert all(x.sharding.is_equivalent_to(rows, 2) for x in moments)


@pytest.mark.slow
def test_state():
    """Integers and random keys start anew too; rules inside are in `metrics`."""
    params = {"w": jnp.ones(2, jnp.bfloat16), "n": jnp.arange(2)}
    inner = optax.chain(jaxclip.zclip(), optax.add_noise(0.1, 0.5, jax.random.key(3)))
    u = {"w": jnp.ones(2, jnp.bfloat16)}
    tx = jaxclip.reset_every(inner, 1, warmup_steps=2)
    state = tx.init(u)
    first, state = tx.update(u, state, u)
    second, after = tx.update(u, state, u)
    np.testing.assert_allclose(second["w"], 0.01 * first["w"].astype(jnp.float32), rtol=1e-2)
    assert second["w"].dtype == jnp.bfloat16
    assert int(jaxclip.metrics(after)["zclip/count"]) == 1
    assert jax.tree.structure(after) == jax.tree.structure(state)
    plain = jaxclip.reset_every(jaxclip.zclip(), 5)
    kept = plain.init(params)
    again = pickle.loads(pickle.dumps(jax.device_get(kept)))
    assert type(again) is type(kept)
    out, _ = plain.update(params, again, params)
    registry.assert_same_bits(out["n"], params["n"])


def test_inside_a_guard():
    """A skipped step does not count."""
    tx = jaxclip.skip_nonfinite(jaxclip.reset_every(optax.trace(1.0), 2))
    u = np.ones((6, 1), np.float32)
    u[2] = np.nan
    outs, state = _outs(tx, u, jnp.zeros(1))
    np.testing.assert_array_equal(outs[:, 0], [1, 2, 0, 1, 2, 1])
    assert int(state.guarded_state.update_count) == 5


def test_errors():
    u, tx = jnp.ones(2), jaxclip.reset_every(optax.scale_by_adam(), 5)
    with pytest.raises(ValueError, match="params=None: reset_every needs"):
        tx.update(u, tx.init(u))
    with pytest.raises(TypeError, match="ResetEveryState"):
        tx.update(u, optax.EmptyState(), u)
    with pytest.raises(ValueError, match="the state is not that of inner"):
        tx.update(u, tx.init({"w": u}), u)
    for call, error, message in (
        (lambda: jaxclip.reset_every(1.0, 5), TypeError, r"inner=1\.0 must be"),
        (lambda: jaxclip.reset_every(optax.identity(), 0), ValueError, "steps=0"),
        (lambda: jaxclip.reset_every(optax.identity(), 2.5), TypeError, r"steps=2\.5"),
        (
            lambda: jaxclip.reset_every(optax.identity(), 5, warmup_steps=-1),
            ValueError,
            "warmup_steps=-1",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
