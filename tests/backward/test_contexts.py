"""Rules for cotangents under JAX's transformations, and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip import backward
from tests.support import modes
from tests.support import oracles as o


def _repeated(h, c):
    def step(h, _):
        return 3 * h if c is None else backward.clip_by_norm(3 * h, c), None

    return jnp.sum(jax.lax.scan(step, h, length=20)[0])


@jax.jit
def _twenty(h, c):
    return *jax.grad(_repeated, (0, 1))(h, c), jax.grad(lambda h: _repeated(h, None))(h)


def test_twenty_steps():
    """3/sqrt(2) with a bound at each step, 3^20 without; a traced limit has no derivative."""
    bounded, of_limit, free = _twenty(jnp.ones(2), jnp.float32(1))
    np.testing.assert_allclose(bounded, [2.1213205, 2.1213205], rtol=3e-7)
    np.testing.assert_allclose(free, [3.0**20, 3.0**20], rtol=1e-6)
    assert of_limit == 0


def test_a_probe_in_scan_has_a_row_for_each_step():
    def loss(h, probes, wrap):
        def step(h, probe):
            return backward.clip_by_norm(3 * h, 1.0, probe=probe), None

        return jnp.sum(jax.lax.scan(wrap(step), h, probes)[0])

    @jax.jit
    def both(h, probes):
        plain, remat = (jax.grad(lambda *a, w=w: loss(*a, w), (0, 1))(h, probes)
                        for w in (lambda f: f, jax.checkpoint))  # fmt: skip
        shared = jax.grad(lambda p: loss(h, jnp.broadcast_to(p, (4, 2)), jax.jit))(probes[0])
        return plain, remat, shared

    (gradient, seen), remat, shared = both(jnp.ones(2), jnp.zeros((4, 2)))
    np.testing.assert_allclose(gradient, np.full(2, 3 / 2**0.5), rtol=1e-6)
    # The last step sees the derivative of the sum, [1, 1]; the others 3 times a norm of 1.
    np.testing.assert_allclose(seen, [[3, 1], [3, 1], [3, 1], [2**0.5, 1]], rtol=1e-6)
    np.testing.assert_array_equal(remat[1], seen)
    np.testing.assert_allclose(shared, [9 + 2**0.5, 4], rtol=1e-6)  # the sum


@pytest.mark.slow
def test_a_thousand_steps():
    """Random matrices, bounds and rules, step by step against float64 NumPy."""
    random = np.random.default_rng(0)
    factors = np.exp(random.normal(0.05, 0.3, size=(1000, 1, 1)))
    matrices = np.float32(np.linalg.qr(random.normal(size=(1000, 3, 3)))[0] * factors)
    bounds = random.uniform(0.05, 0.8, size=1000).astype(np.float32)

    def loss(h, probes):
        def step(h, now):
            matrix, c, probe = now
            return backward.clip(matrix @ backward.clip_by_norm(h, c, probe=probe), 0.5), None

        return jnp.sum(jax.lax.scan(step, h, (matrices, bounds, probes))[0])

    start = jnp.ones(3)
    got, seen = jax.jit(jax.grad(loss, (0, 1)))(start, jnp.zeros((1000, 2)))
    back, rows = np.ones(3), []
    for matrix, c in zip(o.wide(matrices)[::-1], bounds[::-1], strict=True):
        back = matrix.T @ np.clip(back, -0.5, 0.5)
        norm = np.linalg.norm(back)
        rows.append([norm, norm > c])
        back = back * min(1, c / norm)
    np.testing.assert_allclose(got, back, rtol=1e-4)
    np.testing.assert_allclose(seen, rows[::-1], rtol=1e-4)
    assert 50 < seen[:, 1].sum() < 900


def test_vmap_clips_each_example():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)

    def loss(x, c, probe):
        return jnp.sum(backward.clip_by_norm(x, c, probe=probe) ** 3)

    per_example = jax.vmap(jax.grad(loss, (0, 2)), in_axes=(0, None, 0))
    limits, probes = jnp.float32(1), jnp.zeros((6, 2))
    got, seen = jax.jit(per_example)(x, limits, probes)
    given = 3 * o.wide(x) ** 2
    norms = o.norm(given, 2, (1,))
    np.testing.assert_allclose(got, given * np.minimum(1, 1 / norms), rtol=2e-6)
    np.testing.assert_allclose(seen, np.stack([norms[:, 0], norms[:, 0] > 1], 1), rtol=2e-6)
    # The gradient of a batch's sum, through vmap inside, is the same; a shared probe has sums.
    summed = jax.grad(lambda x, p: jnp.sum(jax.vmap(loss, (0, None, None))(x, 1.0, p)), (0, 1))
    batch, total = jax.jit(summed)(x, jnp.zeros(2))
    np.testing.assert_allclose(batch, got, rtol=1e-6)
    np.testing.assert_allclose(total, np.sum(seen, 0), rtol=2e-6)


@pytest.mark.slow
def test_gradients_of_gradients():
    """Of c x |y|^2 / |2 y| for y = x / 2; where nothing is clipped, those without a rule."""
    x = jnp.array([0.5, -1.0, 2.0])

    def gradient(x, c):
        return jax.grad(lambda x: jnp.sum(backward.clip_by_norm(x, c) ** 2))(x)

    @jax.jit
    def found(x):
        second = jax.grad(lambda x, c: jnp.vdot(gradient(x, c), jnp.ones(3)))
        # Reverse over reverse, and forward over reverse.
        return second(x, 1.0), second(x, 100.0), jax.hessian(lambda x: _cubes(x))(x)

    clipped, free, hessian = found(x)
    y = np.float64(x)
    n = np.linalg.norm(y)  # the gradient is y / |y|
    np.testing.assert_allclose(clipped, (1 - y * y.sum() / n**2) / n, rtol=1e-5)
    np.testing.assert_allclose(free, [2, 2, 2], rtol=1e-6)
    np.testing.assert_allclose(hessian, np.diag(6 * y), rtol=1e-6)


def _cubes(x):
    return jnp.sum(backward.clip_by_global_norm(x, 1e3) ** 3)


@pytest.mark.slow
def test_finite_differences_where_nothing_is_clipped():
    def loss(x):
        y = backward.clip(x, 1e3)
        y = backward.clip_by_norm(jnp.tanh(y), 1e3)
        y = backward.clip_by_value(backward.zero_nonfinite(y), -1e3, 1e3)
        return jnp.sum(jnp.sin(backward.scale(backward.clip_by_global_norm(y, 1e3), 1.0)) * y)

    with modes.x64():
        x = jnp.array([0.3, -0.7, 1.1])
        value = jax.jit(loss)
        steps = 1e-6 * jnp.eye(3)
        slopes = [(value(x + e) - value(x - e)) / 2e-6 for e in steps]
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), slopes, rtol=1e-8)


def test_scale_by_one_changes_nothing():
    grad = jax.jit(jax.grad(lambda x, p: jnp.sum(backward.scale(x, 1, probe=p)), (0, 1)))
    got, seen = jax.jit(grad)(jnp.ones(4), jnp.zeros(2))
    np.testing.assert_array_equal(got, np.ones(4))
    np.testing.assert_array_equal(seen, [2, 0])


def test_forward_mode_raises():
    with pytest.raises(TypeError, match="jvp"):
        jax.jvp(lambda x: backward.clip(x, 1.0), (jnp.ones(2),), (jnp.ones(2),))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_eight_devices_under_jit(kind):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    x, given = (np.random.default_rng(i).normal(size=(8, 4)).astype(np.float32) for i in (0, 1))

    @jax.jit
    def pull(x, given):
        _, back = jax.vjp(
            lambda x, p: backward.clip_by_global_norm({"x": x}, 1.0, probe=p)["x"], x, jnp.zeros(2)
        )
        return back(given)

    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P("x"))
        got, seen = pull(jax.device_put(x, sharding), jax.device_put(given, sharding))
        assert got.sharding.is_equivalent_to(sharding, 2)
    norm = o.norm(given).item()
    np.testing.assert_allclose(got, o.wide(given) / norm, rtol=1e-6)
    np.testing.assert_allclose(seen, [norm, 1], rtol=1e-6)


def test_shard_map_on_eight_devices():
    """A norm over all shards, one of each device, and replicated values beside sharded ones."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    x = {"rows": np.ones((8, 4), np.float32), "same": np.ones(3, np.float32)}
    given = {k: np.random.default_rng(i).normal(size=v.shape).astype(np.float32)
             for i, (k, v) in enumerate(x.items())}  # fmt: skip
    specs = {"rows": P("x"), "same": P()}

    def pull(x, given, probe):
        def whole(x, p):
            return backward.clip_by_global_norm(x, 1.0, probe=p)

        def alone(rows):
            return backward.clip_by_norm(backward.zero_nonfinite(rows), 1.0, axis_name=())

        seen = jax.vjp(whole, x, probe[0])[1](given)
        return *seen, jax.vjp(alone, x["rows"])[1](given["rows"])[0]

    run = jax.shard_map(
        pull, mesh=mesh, in_specs=(specs, specs, P("x")), out_specs=(specs, P("x"), P("x"))
    )
    got, seen, alone = jax.jit(run)(x, given, np.zeros((8, 2), np.float32))
    norm = o.by_tree()(list(given.values()))[0]
    for key, value in given.items():
        np.testing.assert_allclose(got[key], o.wide(value) / norm, rtol=1e-6)
    np.testing.assert_allclose(np.reshape(seen, (8, 2)), np.tile([norm, 1], (8, 1)), rtol=1e-6)
    rows = o.wide(given["rows"])
    np.testing.assert_allclose(alone, rows * np.minimum(1, 1 / o.norm(rows, 2, (1,))), rtol=1e-6)
