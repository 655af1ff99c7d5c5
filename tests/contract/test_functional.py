"""`jaxclip.functional`: the tutorials' figures, the oracle, the edges."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import functional, norms
from tests.support import modes, registry
from tests.support import oracles as o
from tests.support.contexts import case

# ---- the figures at the top of the formulas


def test_value_clip_of_a_matrix():
    x = jnp.array([[1.0, 1, 2, 4], [3, 4, 8, 5]])
    np.testing.assert_array_equal(functional.clip_by_value(x, 2, 5), [[2, 2, 2, 4], [3, 4, 5, 5]])


def test_value_clip_of_integers():
    out = functional.clip_by_value(jnp.arange(10), 2, 8)
    assert out.dtype == jnp.arange(10).dtype
    np.testing.assert_array_equal(out, [2, 2, 2, 3, 4, 5, 6, 7, 8, 8])


def test_norm_clip_of_two_and_five():
    x = jnp.array([2.0, 5.0])
    np.testing.assert_allclose(functional.clip_by_norm(x, 5.0), [1.8569534, 4.6423836], rtol=1e-7)
    _, norm = functional.clip_by_global_norm(x, 5.0)
    np.testing.assert_allclose(norm, 5.3851647, rtol=1e-7)


def test_average_norm_clip_of_three_and_four():
    out = functional.clip_by_average_norm(jnp.array([3.0, 4.0]), 1.0)
    np.testing.assert_allclose(out, [1.2, 1.6], rtol=2e-7)


def test_global_norm_clip_of_six_tensors():
    before = [18.01539, 2.9375393, 21.330334, 2.1504176, 21.820374, 2.0918982]
    after = [7.5730414, 1.2348388, 8.966527, 0.90396047, 9.172523, 0.8793609]
    direction = np.array([0.6, 0.0, -0.8])
    tree = [jnp.asarray(n * direction, jnp.float32) for n in before]
    out, norm = functional.clip_by_global_norm(tree, 15.0)
    np.testing.assert_allclose([o.norm(x).item() for x in out], after, rtol=3e-7)
    np.testing.assert_allclose(norm, o.norm(np.array(before)).item(), rtol=1e-6)


@pytest.mark.parametrize(
    ("factor", "slope"), [(0.99, 0.025517964452291125), (1.01, 37.78343433288728)]
)
def test_derivative_through_365_multiplications(factor, slope):
    """The derivative through 365 multiplications vanishes or explodes; then it is clipped to 15."""
    with modes.x64():

        def through(x):
            return jax.lax.fori_loop(0, 365, lambda _, y: y * factor, x)

        grad = jax.jacfwd(through)(jnp.asarray(1.0))
        clipped, norm = functional.clip_by_global_norm(grad, 15.0)
        np.testing.assert_allclose(norm, slope, rtol=1e-13)
        np.testing.assert_allclose(clipped, min(slope, 15.0), rtol=1e-13)


# ---- against the oracle


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "ord"),
    [(None, 2), (0, 1), (1, 2), (-1, 3), ((0, 1), 2), ((0, 2), float("inf")), ((5,), 2)],
)
def test_clip_by_norm(ord, axis):
    x = registry.build((3, 4, 2), scale=2)
    axes = None if axis is None else o.unit_axes(3, axis)
    norms = o.norm(x, ord, axes)
    want = o.scaled([x], [norms], [np.float64(1.5)])[0]
    out = jax.jit(lambda x: functional.clip_by_norm(x, 1.5, axis, ord))(x)
    np.testing.assert_allclose(out, want, rtol=1e-6)
    assert (np.abs(want) < np.abs(x)).any()


@pytest.mark.slow
def test_no_axis_makes_each_element_a_unit():
    x = {"a": jnp.array([[3.0, -4.0], [0.5, 1e-30]]), "b": jnp.array(-2.0)}
    for ord in (2, "average"):
        found, out = norms.unit_norms(x, (), ord), functional.clip_by_norm(x, 1.0, (), ord)
        for key, leaf in x.items():
            np.testing.assert_allclose(found[key], np.abs(leaf), rtol=3e-7)
            np.testing.assert_allclose(out[key], np.clip(leaf, -1, 1), rtol=3e-7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_trees(dtype):
    """All of them in one program."""
    names = ("clip_by_global_norm", "clip_by_norm", "clip_by_average_norm")
    trees = {k: registry.build(tree, dtype, scale=3) for k, tree in registry.TREES.items()}
    run = jax.jit(lambda u: {name: getattr(functional, name)(u, 0.75) for name in names})
    for key, (u, found) in {k: (u, run(u)) for k, u in trees.items()}.items():
        with case(key):
            found["clip_by_global_norm"], norm = found["clip_by_global_norm"]
            for name, out in found.items():
                registry.assert_rule(registry.rule(name), 0.75, u, u, out)
            want = max([n.item() for n in o.by_tree()(registry.floats(u))], default=0.0)
            np.testing.assert_allclose(norm, want, rtol=1e-6)
            assert norm.dtype == jnp.float32


@pytest.mark.parametrize("ord", [1, 2, 3, float("inf")])
def test_global_norm_orders(ord):
    u = registry.build(registry.TREES["nested"], scale=3)
    out, norm = jax.jit(lambda u: functional.clip_by_global_norm(u, 0.75, ord=ord))(u)
    norms = o.by_tree(ord)(registry.floats(u))
    np.testing.assert_allclose(norm, norms[0], rtol=1e-6)
    want = o.scaled(registry.floats(u), norms, [np.float64(0.75)] * len(norms))
    for a, b in zip(registry.floats(out), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_given_norm():
    u = [jnp.array([3.0]), jnp.array([4.0])]
    for n in (2.0, jnp.float32(2.0), jnp.bfloat16(2.0)):
        out, norm = functional.clip_by_global_norm(u, 1.0, norm=n)
        assert norm.dtype == jnp.float32
        np.testing.assert_allclose([float(x[0]) for x in out], [1.5, 2.0], rtol=1e-6)
        assert float(norm) == 2.0


@pytest.mark.parametrize("dtype", registry.DTYPES)
def test_dtypes_are_kept(dtype):
    def results(x):
        yield functional.clip_by_norm(x, 1.0)
        yield functional.clip_by_average_norm(x, 0.1)
        yield functional.clip_by_value(x, -1.0, 1.0)
        yield functional.clip_by_global_norm(x, 1.0)[0]
        yield functional.project_max_norm(x, 1.0, 0)

    with modes.maybe_x64(dtype):
        x = jax.ShapeDtypeStruct((4, 3), dtype)
        assert {r.dtype for r in jax.eval_shape(lambda x: [*results(x)], x)} == {x.dtype}


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8"])
def test_integers_are_clipped_by_value_only(dtype):
    x = jnp.array([0, 3, 100], dtype)
    out = functional.clip_by_value({"a": x}, 2, 8)["a"]
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, [2, 3, 8])
    registry.assert_same_bits(functional.clip_by_norm(x, 1.0), x)
    registry.assert_same_bits(functional.clip_by_global_norm([x], 1.0)[0], [x])


def test_value_bounds_may_be_arrays_but_not_enlarge():
    x = jnp.array([[-3.0, 6.0], [4.0, -8.0]])
    out = functional.clip_by_value(x, jnp.array([-1.0, -2.0]), jnp.array([[5.0], [6.0]]))
    np.testing.assert_array_equal(out, [[-1.0, 5.0], [4.0, -2.0]])
    with pytest.raises(ValueError, match=r"broadcast|enlarge"):
        functional.clip_by_value(x, -1.0, jnp.ones((3, 2, 2)))


def test_value_bounds_of_one_side():
    x = jnp.array([-3.0, 6.0])
    np.testing.assert_array_equal(functional.clip_by_value(x, None, 1.0), [-3.0, 1.0])
    np.testing.assert_array_equal(functional.clip_by_value(x, -1.0, None), [-1.0, 6.0])


def test_bad_values():
    x = jnp.ones(2)
    with pytest.raises(ValueError, match=r"max_norm=-1\.0"):
        functional.clip_by_norm(x, -1.0)
    with pytest.raises(ValueError, match="max_norm=nan"):
        functional.clip_by_average_norm(x, float("nan"))
    with pytest.raises(TypeError, match="max_norm='1'"):
        functional.clip_by_global_norm(x, "1")
    with pytest.raises(ValueError, match=r"max_norm=-1\.0"):
        functional.project_max_norm(x, -1.0, 0)
    with pytest.raises(ValueError, match=r"ord=0\.5"):
        functional.clip_by_norm(x, 1.0, ord=0.5)
    with pytest.raises(ValueError, match=r"5\.0.*1\.0"):
        functional.clip_by_value(x, 5.0, 1.0)


def test_traced_thresholds_and_vmap():
    x = registry.build((5, 4), scale=2)
    limits = jnp.array([-1.0, 0.0, 0.5, 2.0, jnp.inf])
    out = jax.jit(jax.vmap(functional.clip_by_norm))(x, limits)
    norms = o.norm(x, 2, (1,))
    want = o.scaled([x], [norms], [np.maximum(np.asarray(limits, np.float64), 0)[:, None]])[0]
    np.testing.assert_allclose(out, want, rtol=1e-6)


@pytest.mark.slow
def test_gradients():
    """The clipped part of a vector's derivative is the projection orthogonal to it."""
    x = np.array([3.0, 4.0])
    got = jax.jacobian(lambda v: functional.clip_by_norm(v, 1.0))(jnp.asarray(x, jnp.float32))
    want = (np.eye(2) - np.outer(x, x) / 25) / 5
    np.testing.assert_allclose(got, want, atol=1e-6)
    inside = jax.jacobian(lambda v: functional.clip_by_norm(v, 10.0))(jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(inside, np.eye(2))
    slope = jax.grad(lambda c: jnp.sum(functional.clip_by_norm(jnp.asarray(x, jnp.float32), c)))(
        1.0
    )
    np.testing.assert_allclose(slope, 1.4, rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_propagate(bad):
    u = {"a": jnp.array([bad, 1.0]), "b": jnp.array([2.0])}
    names = ("clip_by_global_norm", "clip_by_norm")
    run = jax.jit(lambda u: [getattr(functional, name)(u, 1.0) for name in names])
    (out, norm), leafwise = run(u)
    registry.assert_same_bits(out, u)
    assert not np.isfinite(norm)
    registry.assert_same_bits(leafwise["a"], u["a"])
    np.testing.assert_allclose(leafwise["b"], [1.0])


def test_returned_norm_of_extreme_values():
    run = jax.jit(lambda u: functional.clip_by_global_norm(u, 1.0)[1])
    for size in (1e30, 1e-30):
        norm = run(np.float32([3 * size, 4 * size]))
        np.testing.assert_allclose(np.float64(norm) / size, 5.0, rtol=1e-6)


def test_given_norm_must_be_a_scalar():
    for bad in (jnp.ones(2), [1.0, 2.0]):
        with pytest.raises((TypeError, ValueError), match=r"norm=.*scalar|norm=.*number"):
            functional.clip_by_global_norm(jnp.ones(2), 1.0, norm=bad)


# ---- each rule without memory has its function


def test_clip():
    x = jnp.array([-3.0, 0.5, 2.0])
    np.testing.assert_array_equal(functional.clip({"a": x}, 1.0)["a"], [-1.0, 0.5, 1.0])
    np.testing.assert_array_equal(functional.clip(x, max_delta=1.0), [-1.0, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"max_delta=-1\.0"):
        functional.clip(x, -1.0)


@pytest.mark.parametrize("axis", [None, 0, (1, 2)])
def test_clip_by_block_rms(axis):
    x = registry.build((3, 4, 2), scale=2)
    axes = None if axis is None else o.unit_axes(3, axis)
    want = o.scaled([x], [o.norm(x, "rms", axes)], [np.float64(0.5)])[0]
    out = jax.jit(lambda x: functional.clip_by_block_rms(x, 0.5, axis))(x)
    np.testing.assert_allclose(out, want, rtol=1e-6)
    assert (np.abs(want) < np.abs(x)).any()


@pytest.mark.parametrize("axis", [None, 1])
def test_adaptive_grad_clip(axis):
    u, p = registry.build((4, 3), scale=5), registry.build((4, 3), seed=1)
    axes = o.unit_axes(2, axis)
    limits = 0.5 * np.maximum(o.norm(p, 2, axes), 2.0)
    want = o.scaled([u], [o.norm(u, 2, axes)], [limits])[0]
    run = jax.jit(lambda u, p: functional.adaptive_grad_clip(u, p, 0.5, eps=2.0, axis=axis))
    out = run({"w": u}, {"w": p})["w"]
    np.testing.assert_allclose(out, want, rtol=1e-6)
    assert (np.abs(want) < np.abs(u)).any()


# `per_example` takes any rule, its function a norm.
@pytest.mark.parametrize("name", [n for n in functional.__all__ if n != "clip_per_example"])
def test_arguments_are_those_of_the_rule(name):
    """After the tree (and the parameters) the same names in the same order."""
    rule = inspect.signature(getattr(jaxclip, name)).parameters
    function = inspect.signature(getattr(functional, name)).parameters
    shared = [n for n in function if n in rule]
    assert shared == [n for n in rule if n in function]
    assert set(rule) - set(function) <= {
        "record", "nonfinite", "norm_mask", "scale_mask", "eps", "axis_name", "mask",
    }  # fmt: skip
    assert set(function) - set(rule) <= {"x", "w", "tree", "updates", "params", "norm"}


def test_clip_without_a_bound():
    x = jnp.array([-3.0, 4.0])
    assert functional.clip(x, None) is x
