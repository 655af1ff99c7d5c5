"""`jaxclip.norms` against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import norms
from tests.support import modes, registry
from tests.support import oracles as o
from tests.support.contexts import case

INF = o.INF
ORDS = [1, 2, 3, 2.5, INF, "rms", "average"]
LIKE_OTHERS = [3, "average"]
by_ord = pytest.mark.parametrize(
    "ord", [pytest.param(p, marks=pytest.mark.slow) if p in LIKE_OTHERS else p for p in ORDS]
)


@functools.cache
def norm_of(ord):
    """The norm of a tree, compiled once for all tests with trees of the same types."""
    return jax.jit(lambda tree: norms.global_norm(tree, ord))


def halves(values):
    """A tree of one and two elements."""
    x = jnp.asarray(values, jnp.float32)
    return [x[:1], x[1:]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "complex64"])
def test_values(dtype):
    with modes.maybe_x64(dtype):
        tree = registry.build({"a": (2, 3, 4, 5), "b": (4, 3)}, dtype)
        leaves = registry.floats(tree)
        run = jax.jit(lambda t: [(norms.global_norm(t, p), norms.leaf_norms(t, p)) for p in ORDS])
        rtol = 1e-14 if dtype == "float64" else 6e-7
        for ord, (out, each) in zip(ORDS, run(tree), strict=True):
            with case(f"ord={ord}"):
                assert out.shape == ()
                assert out.dtype == ("float64" if dtype == "float64" else "float32")
                np.testing.assert_allclose(out, o.by_tree(ord)(leaves)[0], rtol=rtol)
                for a, b in zip(jax.tree.leaves(each), leaves, strict=True):
                    assert a.shape == ()
                    np.testing.assert_allclose(a, o.norm(b, ord).reshape(()), rtol=rtol)


@pytest.mark.slow
def test_unit_values():
    """Every axis for one order, every order for one axis."""
    tree = registry.build({"a": (2, 3, 4, 5), "b": (3, 2), "c": (4,), "d": ()})
    cases = [(axis, 2) for axis in (0, -1, (-3, -2), (1, 2, 3), (7,), None)]
    cases += [(-1, ord) for ord in (1, 3, INF, "rms")]
    found = jax.jit(lambda t: [norms.unit_norms(t, *given) for given in cases])(tree)
    for (axis, ord), out in zip(cases, found, strict=True):
        want = o.by_unit(axis, ord)(registry.floats(tree))
        with case(f"axis={axis}, ord={ord}"):
            for a, b in zip(jax.tree.leaves(out), want, strict=True):
                assert a.shape == b.shape
                np.testing.assert_allclose(a, b, rtol=6e-7)


def test_one_array():
    x = registry.build((4, 3))
    np.testing.assert_allclose(norms.rms(x), o.norm(x, "rms").item(), rtol=6e-7)
    np.testing.assert_allclose(norms.average_norm(x), o.norm(x, "average").item(), rtol=6e-7)
    np.testing.assert_allclose(norms.average_norm(jnp.array([3.0, 4.0])), 2.5, rtol=2e-7)


EXTREME = [[1e20, 1.0, 0.0], [1e-30, 2e-30, 0.0], [2e38, 1e38, 0.0], [4e-38, 3e-38, 0.0],
           [1e30, 1e-30, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 0.0]]  # fmt: skip


@by_ord
def test_extreme_values(ord):
    units = jax.jit(lambda x: norms.unit_norms(x, 0, ord))
    for values in EXTREME:
        x = np.float32(values)
        want = o.norm(x, ord).item()
        got = norm_of(ord)(halves(values))
        np.testing.assert_allclose(got, want, rtol=6e-7, err_msg=str(values))
        np.testing.assert_allclose(units(x[:, None]), [[want]], rtol=6e-7, err_msg=str(values))


@pytest.mark.parametrize("ord", [1, 2, INF])
def test_float64_keeps_its_range(ord):
    with modes.x64():
        for k in (1e200, 1e-200):
            x = np.array([3.0, -4.0])
            out = norm_of(ord)(jnp.asarray(x * k))
            np.testing.assert_allclose(out / k, o.norm(x, ord).item(), rtol=1e-15)


@pytest.mark.slow
def test_non_float_leaves_count_nothing():
    w = jnp.array([3.0, 4.0])
    tree = {"w": w, "i": jnp.array([7]), "b": jnp.array([True]), "n": None, "e": jnp.zeros((0, 2)),
            "f": np.zeros(2, jax.dtypes.float0)}  # fmt: skip
    assert float(norms.global_norm(tree)) == 5.0
    leaves = norms.leaf_norms(tree)
    assert float(leaves["w"]) == 5.0
    assert [float(leaves[k]) for k in "ibef"] == [0.0] * 4
    assert leaves["n"] is None
    assert norms.unit_norms(jnp.ones((3, 2), jnp.int32)).shape == (1, 1)
    # The number of elements is that of the leaves that are measured.
    np.testing.assert_allclose(norms.global_norm(tree, "average"), 2.5, rtol=2e-7)
    for empty in ({}, None, [], jnp.zeros((0,)), jnp.array([3])):
        for ord in ORDS:
            assert float(norms.global_norm(empty, ord)) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@by_ord
def test_non_finite_values_show(ord, bad):
    for values in ([1.0, bad, 2.0], [bad, 1.0, 1.0], [1.0, 1.0, bad]):
        got = float(norm_of(ord)(halves(values)))
        assert np.isnan(got) if np.isnan(bad) else got == np.inf
    assert np.isnan(norm_of(ord)(halves([np.inf, 1.0, np.nan])))


@pytest.mark.slow
def test_vmap():
    x = registry.build((5, 4))
    x = x.at[2].set(0.0)

    @jax.jit
    def run(x):
        each = [jax.value_and_grad(lambda v, ord=ord: norms.global_norm(v, ord)) for ord in ORDS]
        return [jax.vmap(norm)(x) for norm in each]

    for ord, (got, grads) in zip(ORDS, run(x), strict=True):
        with case(f"ord={ord}"):
            np.testing.assert_allclose(got, o.norm(x, ord, (1,))[:, 0], rtol=6e-7)
            assert np.isfinite(grads).all()
            assert not grads[2].any()


@pytest.mark.parametrize("ord", [0.5, 0, -1, float("nan"), -INF, "max", "2"])
def test_bad_order_value(ord):
    for f in (norms.global_norm, norms.leaf_norms):
        with pytest.raises(ValueError, match=f"ord={ord!r}".replace("'", ".")):
            f(jnp.ones(2), ord)


@pytest.mark.parametrize("ord", [True, [2]])
def test_bad_order_type(ord):
    with pytest.raises(TypeError, match="ord="):
        norms.global_norm(jnp.ones(2), ord)


def test_norm_does_not_depend_on_the_split():
    x = registry.build((6, 12))

    @jax.jit
    def run(x):
        trees = (x, [x], list(x), {"a": x[:5], "b": {"c": x[5:]}}, list(x.ravel()))
        return [norms.global_norm(tree) for tree in trees]

    whole, *parts = run(x)
    np.testing.assert_allclose(parts, whole, rtol=3e-7)


@pytest.mark.slow
def test_many_leaves_whose_squares_leave_the_range():
    """They are measured again in stacks of a type; a large one among them alone."""
    draw = np.random.default_rng(0)
    shapes = [(3,), (2, 3), (3,), (), (2, 3), (5000,), (1, 0)] * 2
    drawn = [draw.standard_normal(shape) for shape in shapes]
    run = jax.jit(lambda t: [norms.global_norm(t, ord) for ord in ORDS])
    for size in (1e25, 1e-25):
        tree = [jnp.asarray(size * x, jnp.float32) for x in drawn]
        tree += [x.astype(jnp.bfloat16) for x in tree[:3]]
        for ord, found in zip(ORDS, run(tree), strict=True):
            want = o.by_tree(ord)(registry.floats(tree))[0]
            np.testing.assert_allclose(
                float(found) / size, want / size, rtol=6e-7, err_msg=f"ord={ord}, {size}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("ord", [3, 2.5, 1.1, 7.3, 10, 100])
def test_other_orders_at_extreme_values(ord):
    """Within two units of the last place: neither a power nor a root may round its exponent."""
    draw = np.random.default_rng(0)
    for k in (-25, -12, -3, 0, 3, 12, 25, 37):
        x = (10.0**k * draw.standard_normal(7)).astype(np.float32)
        want = o.norm(x / 10.0**k, ord).item() * 10.0**k
        np.testing.assert_allclose(float(norm_of(ord)(jnp.asarray(x))), want, rtol=2.4e-7)


def test_exact_cube_roots():
    for power in (-40, -9, 0, 1, 2, 13, 30):
        assert float(norm_of(3)(jnp.full(8, 2.0**power))) == 2 * 2.0**power


def test_high_orders_of_tiny_float16():
    """The sixth power of its smallest numbers is none of float32, that of its largest is."""
    x = jnp.array([6e-8, 1.2e-7, -6e-8], jnp.float16)
    for ord in (6, 7):
        want = o.norm(x, ord).item()
        np.testing.assert_allclose(norms.global_norm(x, ord), want, rtol=6e-7)
