"""Keras: `constraints.MaxNorm`, and the optimizers' `clipnorm`, `clipvalue`, `global_clipnorm`."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow", reason="Keras runs on it here: pip install -e .[parity]")
keras = pytest.importorskip("keras", reason="parity with Keras needs it: pip install -e .[parity]")

import optax  # noqa: E402

import jaxclip  # noqa: E402
from tests.parity import data  # noqa: E402

AXES = [((6, 4), 0), ((6, 4), 1), ((2, 3, 4, 5), (0, 1, 2)), ((2, 3, 4), (0, 1))]


def _np(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64"))


@pytest.mark.parametrize(("shape", "axis"), AXES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@data.by_seed
def test_max_norm(dtype, seed, shape, axis):
    with data.context(dtype):
        (w,) = data.arrays(dtype, [shape], seed)
        axes = list(axis) if isinstance(axis, tuple) else axis
        theirs = keras.constraints.MaxNorm(1.5, axis=axes)
        want = _np(theirs(keras.ops.cast(keras.ops.convert_to_tensor(w, "float64"), dtype)))
        w = data.ours([w], dtype)[0]
        got = jaxclip.functional.max_norm(w, 1.5, axis)
        # Keras divides by norm + 1e-7, and so is off by that much.
        np.testing.assert_allclose(
            np.asarray(got, np.float64), want, rtol=max(data.near(dtype), 1e-6)
        )
        tx = jaxclip.project_max_norm(1.5, axis=axis)
        zero = w * 0
        update, _ = tx.update(zero, tx.init(w), w)
        landed = np.asarray(optax.apply_updates(w, update), np.float64)
        np.testing.assert_allclose(landed, want, rtol=max(data.near(dtype), 1e-6), atol=1e-6)


def test_keras_default_axis_is_a_column():
    (w,) = data.arrays("float32", [(6, 4)])
    want = _np(keras.constraints.MaxNorm(2.0)(w.astype(np.float32)))
    got = jaxclip.functional.max_norm(w.astype(np.float32), 2.0)
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
    got, _ = tx.update(leaves, tx.init(leaves))
    for a, v in zip(got, variables, strict=True):
        np.testing.assert_allclose(-np.asarray(a), _np(v), rtol=1e-6)
