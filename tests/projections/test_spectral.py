"""The spectral projection against NumPy's float64 singular values, by both of its methods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from jaxclip import functional
from tests.support import modes, registry, weights

EPS = registry.eps("float32")
WAYS = [(how, method) for how in ("clip", "scale") for method in ("eigh", "iterative")]
SHAPES = [(20, 7), (7, 20), (1, 5), (48, 32), (2, 3, 2, 6)]
SPECTRA = {
    "falling": lambda k: np.geomspace(1, 1e-6, k),
    "level": lambda k: np.linspace(1, 0.5, k),
    "equal": np.ones,
    "rank 1": lambda k: np.r_[1, np.zeros(k - 1)],
}


def matrix(shape, spectrum, seed):
    """A matrix of those singular values, as an array of that shape."""
    rng = np.random.default_rng(seed)
    m, n = np.prod(shape[:-1], dtype=int), shape[-1]
    left, right = (np.linalg.qr(rng.normal(size=(size, min(m, n))))[0] for size in (m, n))
    return ((left * spectrum(min(m, n))) @ right.T).reshape(shape)


@jax.jit
def bounded(arrays, c):
    return {way: [functional.project_spectral_norm(x, c, *way) for x in arrays] for way in WAYS}


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.001, 2, 30, 1000])
def test_singular_values_land_on_the_limit(ratio):
    """The largest to 32 roundings of c from above; the matrix as the docstring says."""
    c = 0.7
    for i, spectrum in enumerate(SPECTRA.values()):
        arrays = [
            jnp.asarray(c * ratio * matrix(shape, spectrum, i), jnp.float32) for shape in SHAPES
        ]
        for (how, method), outs in bounded(arrays, c).items():
            for x, out in zip(arrays, outs, strict=True):
                largest = weights.largest_singular(out) / c
                assert -(32 + ratio) * EPS <= largest - 1 <= 32 * EPS
                near = 32 + (0 if how == "scale" else ratio**2 if method == "eigh" else 4 * ratio)
                np.testing.assert_allclose(
                    out, weights.singular(x, c, how), rtol=0, atol=near * EPS * c
                )


@pytest.mark.slow
def test_matrices_inside_are_unchanged():
    """Below c, on it, above it by less than the docstring's 32 roundings: bit for bit."""
    for ratio in (0.0, 0.5, 1.0, 1 + 16 * EPS):
        arrays = [0.7 * ratio * matrix(shape, SPECTRA["level"], 0) for shape in SHAPES]
        arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
        for outs in bounded(arrays, 0.7).values():
            registry.assert_same_bits(outs, arrays)


@pytest.mark.slow
def test_limit_of_zero():
    arrays = [jnp.asarray(matrix(shape, SPECTRA["rank 1"], 0), jnp.float32) for shape in SHAPES]
    for outs in bounded(arrays, 0.0).values():
        assert not any(np.any(out) for out in outs)


@pytest.mark.slow
def test_both_methods_agree():
    """And the default is one of them."""
    arrays = [registry.build(shape) for shape in SHAPES]  # the program of the tests above
    outs = bounded(arrays, 1.5)
    for how in ("clip", "scale"):
        for a, b in zip(outs[how, "eigh"], outs[how, "iterative"], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=64 * EPS)
        default = jax.jit(lambda x, h=how: functional.project_spectral_norm(x, 1.5, h))(arrays[0])
        np.testing.assert_allclose(default, outs[how, "eigh"][0], rtol=0, atol=64 * EPS)
    assert np.abs(outs["clip", "eigh"][0] - outs["scale", "eigh"][0]).max() > 0.1


@pytest.mark.slow
def test_clip_keeps_small_singular_values():
    x = jnp.asarray(np.diag([5.0, 0.5, 0.01]), jnp.float32)
    outs = bounded([x], 1.0)
    for method in ("eigh", "iterative"):
        np.testing.assert_allclose(outs["clip", method][0], np.diag([1, 0.5, 0.01]), atol=1e-6)
        np.testing.assert_allclose(outs["scale", method][0], np.diag([1, 0.1, 0.002]), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_16_bit_weights_land_an_epsilon_below(dtype):
    x = registry.build((24, 10), dtype)
    for out in [outs[0] for outs in bounded([x], 1.5).values()]:
        assert out.dtype == dtype
        over = weights.largest_singular(out) / 1.5 - 1
        assert -1.5 * registry.eps(dtype) <= over <= 1e-5
    registry.assert_same_bits(functional.project_spectral_norm(out, 1.5), out)


@pytest.mark.slow
def test_float64():
    with modes.x64():
        x = registry.build((12, 7), "float64", scale=3)
        for (how, _), outs in bounded([x], 1.5).items():
            np.testing.assert_allclose(outs[0], weights.singular(x, 1.5, how), rtol=0, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["clip", "scale"])
@pytest.mark.parametrize("method", ["eigh", "iterative"])
def test_derivatives(how, method):
    """Against differences of the oracle, where several singular values are clipped to the same."""
    x, toward, slope = (np.random.default_rng(i).normal(size=(7, 5)) for i in range(3))
    h = 1e-6
    with modes.x64():
        slopes = jax.jit(
            jax.grad(
                lambda x, c: (functional.project_spectral_norm(x, c, how, method) * slope).sum()
            )
        )
        for c in (0.5, 1.5, 3.0):
            want = (weights.singular(x + h * toward, c, how) * slope).sum()
            want = (want - (weights.singular(x - h * toward, c, how) * slope).sum()) / (2 * h)
            found = slopes(jnp.asarray(x), c)
            np.testing.assert_allclose((found * toward).sum(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [WAYS[0], *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:])], ids=str
)
def test_derivatives_where_singular_values_coincide(way):
    """Inside it is the identity; outside, and at zero, at least finite."""
    slope = jax.jit(jax.grad(lambda x: functional.project_spectral_norm(x, 1.0, *way).sum()))
    for x in (0.1 * jnp.eye(3), 3 * jnp.eye(3), jnp.ones((3, 2)), jnp.zeros((3, 2))):
        found = slope(x)
        assert np.isfinite(found).all()
        if np.linalg.norm(x, 2) < 1:
            np.testing.assert_array_equal(found, np.ones(x.shape))


@pytest.mark.slow
def test_records_matrices():
    p = {"a": registry.build((6, 4), scale=2), "b": registry.build((2, 3, 5), scale=0.01)}
    tx = jaxclip.project_spectral_norm(1.5)
    _, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
    largest = weights.largest_singular(p["a"])
    np.testing.assert_allclose(state.norm, largest, rtol=1e-5)
    np.testing.assert_allclose(state.smallest_scale, 1.5 / largest, rtol=1e-5)
    assert (float(state.fraction), float(state.threshold)) == (0.5, 1.5)
    assert (int(state.clipped_count), int(state.nonfinite_count)) == (1, 0)


def test_on_a_mesh_of_explicit_axes():
    """Rows or columns sharded: there JAX refuses products that contract a sharded axis."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:4])
    tx = jaxclip.project_spectral_norm(1.5)
    p = {"rows": registry.build((8, 3)), "columns": registry.build((2, 3, 4))}
    specs = {"rows": P("x"), "columns": P(None, None, "x")}
    put = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in p.items()}

    @jax.jit
    def run(p):
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
        return jax.tree.map(jnp.add, p, updates), functional.project_spectral_norm(p, 1.5)

    with jax.set_mesh(mesh):
        landed = run(put)
    for tree in landed:
        for k, x in tree.items():
            assert x.sharding.is_equivalent_to(put[k].sharding, x.ndim)
            want = weights.singular(p[k], 1.5)
            np.testing.assert_allclose(x, want, rtol=0, atol=64 * EPS)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eigh", "iterative"])
def test_many_steps_in_a_scan(method):
    """Pushed outwards at every step, the largest singular value stays where it was put."""
    tx = optax.chain(optax.sgd(0.1), jaxclip.project_spectral_norm(1.0, method=method))
    p = jnp.asarray(matrix((8, 5), SPECTRA["level"], 0), jnp.float32)

    def body(carry, key):
        p, s = carry
        updates, s = tx.update(jax.random.normal(key, p.shape) - p, s, p)
        p = optax.apply_updates(p, updates)
        return (p, s), p

    keys = jax.random.split(jax.random.key(0), 200)
    run = jax.jit(lambda c: jax.lax.scan(body, c, keys), donate_argnums=0)
    largest = [weights.largest_singular(x) for x in np.asarray(run((p, tx.init(p)))[1])]
    assert max(largest) <= 1 + 33 * EPS
    assert np.mean(np.array(largest) > 0.999) > 0.5


@pytest.mark.slow
def test_singular_values_near_float32_max():
    w = jnp.diag(jnp.array([3e38, 1e38]))
    for method in ("eigh", "iterative"):
        run = jax.jit(lambda w, m=method: functional.project_spectral_norm(w, 2e38, method=m))
        np.testing.assert_allclose(run(w), np.diag([2e38, 1e38]), rtol=1e-5)


def test_empty_matrix_and_derivative_by_eigh():
    empty = jnp.zeros((0, 2))
    assert jaxclip.functional.project_spectral_norm(empty, 1.0).shape == (0, 2)

    def total(w):
        return jaxclip.functional.project_spectral_norm(w, 1.0, method="eigh").sum()

    slope = jax.jit(jax.grad(total))(jnp.diag(jnp.array([3.0, 0.5])))
    np.testing.assert_allclose(slope[0, 0], 0.0, atol=1e-5)  # held at its limit
    np.testing.assert_allclose(slope[1, 1], 1.0, rtol=1e-5)
