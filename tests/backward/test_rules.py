"""Each rule for cotangents against float64 NumPy, in every dtype, and the edges of all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import backward
from tests.support import modes, registry
from tests.support import oracles as o

SHAPES = {"a": (4, 3), "b": (5,), "scalar": (), "empty": (0, 2)}
C = 1.5


def _bounded(x, low, high):
    if np.iscomplexobj(x):
        return x * np.minimum(1, high / np.maximum(np.abs(x), high))
    return np.clip(x, low, high)


def _by_norms(leaves, norms):
    return o.scaled(leaves, norms, [np.float64(C)] * len(leaves))


def _leaf(leaves):
    return _by_norms(leaves, o.by_leaf()(leaves)), max(n.max() for n in o.by_leaf()(leaves))


def _rows(leaves):
    norms = o.by_unit(1)(leaves)
    return _by_norms(leaves, norms), max(n.max(initial=0) for n in norms)


def _tree(leaves):
    norms = o.by_tree()(leaves)
    return _by_norms(leaves, norms), norms[0]


def _elements(low, high):
    def want(leaves):
        largest = max(np.abs(x).max(initial=0) for x in leaves)
        return [_bounded(o.wide(x), low, high) for x in leaves], largest

    return want


# By name: the function, and its oracle `leaves -> leaves, norm`.
RULES = {
    "clip": (lambda x, **k: backward.clip(x, C, **k), _elements(-C, C)),
    "clip_by_value": (lambda x, **k: backward.clip_by_value(x, -C, C, **k), _elements(-C, C)),
    "clip_by_norm": (lambda x, **k: backward.clip_by_norm(x, C, **k), _leaf),
    "rows": (lambda x, **k: backward.clip_by_norm(x, C, 1, **k), _rows),
    "clip_by_global_norm": (lambda x, **k: backward.clip_by_global_norm(x, C, **k), _tree),
    "scale": (lambda x, **k: backward.scale(x, -0.3, **k),
              lambda leaves: ([-0.3 * o.wide(x) for x in leaves], o.by_tree()(leaves)[0])),
    "zero_nonfinite": (backward.zero_nonfinite,
                       lambda leaves: ([o.wide(x) for x in leaves], o.by_tree()(leaves)[0])),
}  # fmt: skip


@jax.jit
def pulled(x, cotangent):
    """Every rule: the value and the cotangent of `x`, and the result of the probe."""
    found = {}
    for name, (rule, _) in RULES.items():
        value, pull = jax.vjp(lambda x, p, rule=rule: rule(x, probe=p), x, jnp.zeros(2))
        found[name] = value, *pull(cotangent)
    return found


def _tolerance(dtype):
    return 2 * float(jnp.finfo(dtype).eps)


def _check(dtype):
    x = registry.build(SHAPES, dtype, seed=1)
    for scale in (0.1, 3.0):  # below every limit, and above some
        cotangent = registry.build(SHAPES, dtype, seed=2, scale=scale)
        for name, (value, got, seen) in jax.device_get(pulled(x, cotangent)).items():
            registry.assert_same_bits(value, x)
            want, norm = RULES[name][1](list(cotangent.values()))
            changed = name == "scale" or (name != "zero_nonfinite" and norm > C)
            for key, leaf in zip(SHAPES, want, strict=True):
                assert got[key].dtype == x[key].dtype
                rtol = _tolerance(dtype)
                np.testing.assert_allclose(o.wide(got[key]), leaf, rtol, rtol * C, err_msg=name)
            if not changed:
                registry.assert_same_bits(got, cotangent)
            np.testing.assert_allclose(seen, [norm, changed], rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_float32():
    _check("float32")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "float64"])
def test_other_dtypes(dtype):
    with modes.maybe_x64(dtype):
        _check(dtype)


def test_integers_none_keys_and_float0():
    tree = {"x": jnp.ones(2), "i": jnp.arange(3), "none": None, "key": jax.random.key(0)}
    _, pull = jax.vjp(lambda t: backward.clip(t, 1.0), tree)
    no = jax.dtypes.float0
    (got,) = pull({"x": 5 * tree["x"], "i": np.zeros(3, no), "none": None, "key": np.zeros((), no)})
    np.testing.assert_array_equal(got["x"], [1, 1])
    assert got["i"].dtype == no
    assert got["none"] is None
    value = backward.clip(tree, 1.0)  # without a derivative
    assert value["i"].dtype == jnp.int32
    registry.assert_same_bits(backward.zero_nonfinite({}), {})


@jax.jit
def _edges(x, cotangent, limit):
    """The cotangent after each rule with a limit that is traced."""

    def through(rule):
        return jax.vjp(lambda x: rule(x, limit), x)[1](cotangent)[0]

    rules = (backward.clip, backward.clip_by_norm, backward.clip_by_global_norm)
    return [through(rule) for rule in rules]


def test_extreme_cotangents():
    """Squares that overflow; a limit of 0, inf and a negative one; NaN goes back as it came."""
    x = jnp.ones(2)
    for factor, limit in ((1e20, 0.5), (1e-30, 1e-31), (3.0, 0.0), (3.0, -1.0), (3.0, jnp.inf)):
        given = np.float32([3, -4]) * np.float32(factor)
        element, *norms = _edges(x, jnp.asarray(given), jnp.float32(limit))
        c = max(limit, 0.0)
        np.testing.assert_allclose(element, np.clip(o.wide(given), -c, c), rtol=3e-7)
        want = o.wide(given) * min(1.0, c / o.norm(given).item())
        for got in norms:
            np.testing.assert_allclose(got, want, rtol=3e-7)
    for bad in (np.nan, np.inf):
        given = np.float32([3, bad])
        for got in _edges(x, jnp.asarray(given), jnp.float32(0.5))[1:]:
            np.testing.assert_array_equal(got, given)
    for got in _edges(x, jnp.zeros(2), jnp.float32(0)):
        np.testing.assert_array_equal(got, [0, 0])


def test_zero_nonfinite_and_the_order_of_two_rules():
    given = jnp.array([3.0, jnp.nan, -jnp.inf, 4.0])

    @jax.jit
    def pulled(x):
        zeroed = jax.vjp(lambda x, p: backward.zero_nonfinite(x, probe=p), x, jnp.zeros(2))[1]
        both = jax.vjp(lambda x: backward.zero_nonfinite(backward.clip_by_norm(x, 1.0)), x)[1]
        return zeroed(given), both(given)

    (got, seen), (clipped,) = pulled(jnp.ones(4))
    np.testing.assert_array_equal(got, [3, 0, 0, 4])
    np.testing.assert_array_equal(seen, [np.nan, 1])
    np.testing.assert_allclose(clipped, [0.6, 0, 0, 0.8], rtol=1e-6)


def test_limits_of_none_and_of_each_row():
    given = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    none = (backward.clip, backward.clip_by_norm, backward.clip_by_global_norm)
    rules = [lambda x, rule=rule: rule(x, None) for rule in none]
    rules.append(lambda x: backward.clip_by_value(x, None, None))
    rules.append(lambda x: backward.clip_by_norm(x, jnp.array([[1.0], [2.0]]), axis=1))
    rules.append(lambda x: backward.clip_by_norm(x, 3.5, ord=1))
    pulled = jax.jit(lambda x: [jax.vjp(rule, x)[1](given)[0] for rule in rules])
    *same, rows, ones = pulled(jnp.ones((2, 2)))
    registry.assert_same_bits(same, [given] * 4)
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(ones, np.float64(given) * 3.5 / 7.7, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: backward.clip(x, -1.0), ValueError, "max_delta=-1.0"),
        (lambda x: backward.clip_by_value(x, 2.0, 1.0), ValueError, "min_value=2.0 exceeds"),
        (lambda x: backward.clip_by_norm(x, float("nan")), ValueError, "max_norm=nan"),
        (lambda x: backward.clip_by_norm(x, "1"), TypeError, "max_norm='1'"),
        (lambda x: backward.clip_by_norm(x, lambda t: t), TypeError, "schedules"),
        (lambda x: backward.clip_by_norm(x, 1.0, ord=0.5), ValueError, "ord=0.5"),
        (lambda x: backward.clip_by_global_norm(x, jnp.ones(2)), ValueError, "max_norm="),
        (lambda x: backward.scale(x, None), TypeError, "factor=None"),
        (lambda x: backward.scale(x, jnp.inf), ValueError, "factor=inf must be finite"),
        (lambda x: backward.scale(x, jnp.ones(2)), ValueError, "factor="),
        (lambda x: backward.clip(x, 1.0, probe=jnp.zeros(3)), ValueError, "probe="),
        (lambda x: backward.clip(x, 1.0, probe=jnp.zeros(2, int)), ValueError, "two floats"),
    ],
)
def test_errors(call, error, message):
    """In the forward pass: nothing is traced backwards."""
    with pytest.raises(error, match=message):
        call(jnp.ones(2))


def test_complex_needs_opposite_bounds():
    def loss(x):
        return jnp.sum(jnp.real(backward.clip_by_value(x, 0.0, 1.0)))

    with pytest.raises(ValueError, match="must be -c and c"):
        jax.grad(loss)(jnp.ones(2, complex))
