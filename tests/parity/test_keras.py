"""Keras: its weight constraints, and the optimizers' `clipnorm`, `clipvalue`, `global_clipnorm`."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow", reason="Keras runs on it here: pip install -e .[parity]")
keras = pytest.importorskip("keras", reason="parity with Keras needs it: pip install -e .[parity]")

import jax  # noqa: E402
import optax  # noqa: E402

import jaxclip  # noqa: E402
from jaxclip import functional  # noqa: E402
from tests.parity import data  # noqa: E402
from tests.support.contexts import case  # noqa: E402

AXES = [((6, 4), 0), ((6, 4), 1), ((2, 3, 4, 5), (0, 1, 2)), ((2, 3, 4), (0, 1))]


def _np(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64"))


# Theirs by its arguments, ours as a transformation and as a function; the shapes and axes.
CONSTRAINTS = {
    "MaxNorm": (
        {"max_value": 1.5}, jaxclip.project_max_norm, functional.project_max_norm, (1.5,), AXES,
    ),
    "UnitNorm": ({}, jaxclip.project_unit_norm, functional.project_unit_norm, (), AXES[:1]),
    "MinMaxNorm": (
        {"min_value": 2.0, "max_value": 3.0, "rate": 1.0},
        jaxclip.project_min_max_norm, functional.project_min_max_norm, (2.0, 3.0), AXES[1:2],
    ),
    "MinMaxNorm, slow": (
        {"min_value": 2.0, "max_value": 3.0, "rate": 0.25},
        jaxclip.project_min_max_norm, functional.project_min_max_norm, (2.0, 3.0, 0.25), AXES[2:3],
    ),
    "NonNeg": (
        None, jaxclip.project_non_negative, functional.project_non_negative, (), AXES[3:],
    ),
}  # fmt: skip
CASES = [(name, shape, axis) for name, (*_, axes) in CONSTRAINTS.items() for shape, axis in axes]


def _theirs(name, w, axis, dtype):
    keywords = CONSTRAINTS[name][0]
    axes = list(axis) if isinstance(axis, tuple) else axis
    theirs = {} if keywords is None else keywords | {"axis": axes}
    tensor = keras.ops.cast(keras.ops.convert_to_tensor(w, "float64"), dtype)
    return _np(getattr(keras.constraints, name.split(",")[0])(**theirs)(tensor))


def _ours(name, w, axis):
    """The function's result, and where an update of zeros lands."""
    keywords, rule, function, arguments, _ = CONSTRAINTS[name]
    ours = {} if keywords is None else {"axis": axis}
    tx = rule(*arguments, **ours)
    update, _ = tx.update(w * 0, tx.init(w), w)
    return function(w, *arguments, **ours), optax.apply_updates(w, update)


@data.by_dtype
def test_constraints(dtype):
    with data.context(dtype):
        values = data.arrays(dtype, [shape for _, shape, _ in CASES])
        leaves = data.ours(values, dtype)
        run = jax.jit(
            lambda ws: [_ours(n, w, axis) for (n, _, axis), w in zip(CASES, ws, strict=True)]
        )
        # Keras divides by the norm + 1e-7, and so is off by that much.
        near = max(data.near(dtype), 1e-6)
        eps = float(jax.numpy.finfo(dtype).eps)
        for (name, shape, axis), w, results in zip(CASES, values, run(leaves), strict=True):
            got, landed = (np.asarray(x, np.float64) for x in results)
            want = _theirs(name, w, axis, dtype)
            with case(f"{name} of {shape}, {axis}"):
                np.testing.assert_allclose(got, want, rtol=near)
                # An update is rounded in the weight's dtype, and so is off by its rounding.
                off = near * np.abs(want) + eps * np.abs(w) + 1e-6
                assert (np.abs(landed - want) <= off).all()
                assert (np.abs(got - w) > 0.01).any()


def test_keras_erodes_what_is_inside():
    """A column of norm 1e-4, a thousand times: 5e-7 is left of it, and all of ours."""
    w = np.array([[6e-5], [8e-5]], np.float32)
    theirs, constraint = w, keras.constraints.MaxNorm(2.0)
    for _ in range(1000):
        theirs = constraint(theirs)
    assert np.linalg.norm(_np(theirs)) < 1e-6
    step = jax.jit(lambda w: functional.project_max_norm(w, 2.0))
    ours = w
    for _ in range(1000):
        ours = step(ours)
    np.testing.assert_array_equal(ours, w)


def test_keras_default_axis_is_a_column():
    (w,) = data.arrays("float32", [(6, 4)])
    want = _np(keras.constraints.MaxNorm(2.0)(w.astype(np.float32)))
    got = jaxclip.functional.project_max_norm(w.astype(np.float32), 2.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("keyword", "tx"),
    [
        ({"clipnorm": 0.8}, jaxclip.clip_by_norm(0.8)),
        ({"clipvalue": 0.3}, jaxclip.clip_by_value(-0.3, 0.3)),
        ({"global_clipnorm": 1.2}, jaxclip.clip_by_global_norm(1.2)),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_optimizer_arguments(keyword, tx):
    grads = data.arrays("float32", [(4, 3), (5,)])
    variables = [keras.Variable(np.zeros(g.shape, np.float32)) for g in grads]
    optimizer = keras.optimizers.SGD(1.0, **keyword)
    optimizer.apply([keras.ops.convert_to_tensor(g.astype(np.float32)) for g in grads], variables)
    leaves = data.ours(grads, "float32")
    got, _ = data.updated(tx, leaves)
    for a, v in zip(got, variables, strict=True):
        np.testing.assert_allclose(-np.asarray(a), _np(v), rtol=1e-6)
