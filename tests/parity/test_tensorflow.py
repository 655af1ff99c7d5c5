"""TensorFlow: `clip_by_value`, `clip_by_norm`, `clip_by_average_norm`, `clip_by_global_norm`."""

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
tf = pytest.importorskip(
    "tensorflow", reason="parity with TensorFlow needs it: pip install -e .[parity]"
)

import optax  # noqa: E402

import jaxclip  # noqa: E402
from jaxclip import functional  # noqa: E402
from tests.parity import data  # noqa: E402

SHAPES = [(4, 3), (5,), (2, 3, 2), ()]


def _tf(values, dtype):
    return [tf.cast(tf.constant(v, tf.float64), dtype) for v in values]


def _np(tensors):
    return [tf.cast(t, tf.float64).numpy() for t in tensors]


def _run(tx, leaves, **extra):
    return tx.update(leaves, tx.init(leaves), **extra)[0]


@data.by_dtype
@data.by_seed
def test_clip_by_value(dtype, seed):
    with data.context(dtype):
        values = data.arrays(dtype, SHAPES, seed)
        low, high = -0.5, 1.25
        want = _np(
            [
                tf.clip_by_value(t, tf.cast(low, dtype), tf.cast(high, dtype))
                for t in _tf(values, dtype)
            ]
        )
        leaves = data.ours(values, dtype)
        got = _run(jaxclip.clip_by_value(low, high), leaves)
        for a, b, leaf in zip(got, want, leaves, strict=True):
            assert a.dtype == leaf.dtype
            np.testing.assert_array_equal(np.asarray(a).astype(np.float64), b)  # nothing rounds
        data.assert_near([functional.clip_by_value(x, low, high) for x in leaves], want, dtype)


def test_clip_by_value_of_integers():
    x = np.array([-7, 0, 3, 9], np.int32)
    np.testing.assert_array_equal(
        functional.clip_by_value(x, -2, 5), tf.clip_by_value(x, -2, 5).numpy()
    )


@pytest.mark.parametrize("axes", [None, 0, 1, -1, (0, 1), ()], ids=str)
@data.by_dtype
@data.by_seed
def test_clip_by_norm(dtype, seed, axes):
    with data.context(dtype):
        values = data.arrays(dtype, [(4, 3), (2, 3, 2)], seed)
        tensors = _tf(values, dtype)
        tf_axes = list(axes) if isinstance(axes, tuple) else axes
        want = _np([tf.clip_by_norm(t, tf.cast(1.5, dtype), axes=tf_axes) for t in tensors])
        leaves = data.ours(values, dtype)
        data.assert_near(_run(jaxclip.clip_by_norm(1.5, axis=axes), leaves), want, dtype)
        data.assert_near([functional.clip_by_norm(x, 1.5, axes) for x in leaves], want, dtype)


def test_clip_by_norm_without_axes():
    """No axis is reduced: each element is clipped by itself."""
    x = np.array([[3, 4], [0.1, 0.2]], np.float32)
    want = tf.clip_by_norm(x, 1.0, axes=[]).numpy()
    np.testing.assert_allclose(want, [[1, 1], [0.1, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(functional.clip_by_norm(x, 1.0, axis=()), want, rtol=1e-6)
    np.testing.assert_allclose(_run(jaxclip.clip_by_norm(1.0, axis=()), x), want, rtol=1e-6)


@data.by_dtype
@data.by_seed
def test_max_norm_of_the_tutorial(dtype, seed):
    """`tf.clip_by_norm(w, c, axes=1)`: rows of a Dense kernel, one input's outgoing weights."""
    with data.context(dtype):
        values = data.arrays(dtype, [(6, 4)], seed)
        want = _np([tf.clip_by_norm(_tf(values, dtype)[0], tf.cast(1.5, dtype), axes=1)])
        (w,) = data.ours(values, dtype)
        data.assert_near([functional.project_max_norm(w, 1.5, axis=1)], want, dtype)
        tx = jaxclip.project_max_norm(1.5, axis=1)
        landed = optax.apply_updates(w, _run(tx, w * 0, params=w))
        near = max(data.near(dtype), 1e-6)
        np.testing.assert_allclose(np.asarray(landed, np.float64), want[0], rtol=near, atol=1e-6)
        rows = np.linalg.norm(values[0], axis=1)
        assert (rows > 1.5).any()


@data.by_dtype
@data.by_seed
def test_clip_by_average_norm(dtype, seed):
    """TensorFlow's takes float32 only: it is given the same numbers in that."""
    with data.context(dtype):
        values = data.arrays("float32" if dtype == "float64" else dtype, SHAPES, seed)
        theirs = tf.compat.v1.clip_by_average_norm
        want = _np([theirs(t, 0.4) for t in _tf(values, "float32")])
        leaves = data.ours(values, dtype)
        near = "float32" if dtype == "float64" else dtype
        data.assert_near(_run(jaxclip.clip_by_average_norm(0.4), leaves), want, near)
        data.assert_near([functional.clip_by_average_norm(x, 0.4) for x in leaves], want, near)


@pytest.mark.parametrize("use_norm", [None, 3.0])
@pytest.mark.parametrize("c", [1.5, 1e3])
@data.by_dtype
@data.by_seed
def test_clip_by_global_norm(dtype, seed, c, use_norm):
    with data.context(dtype):
        values = data.arrays(dtype, SHAPES, seed)
        norm = None if use_norm is None else tf.cast(use_norm, dtype)
        tensors, total = tf.clip_by_global_norm(
            _tf(values, dtype), tf.cast(c, dtype), use_norm=norm
        )
        leaves = data.ours(values, dtype)
        if use_norm is None:
            data.assert_near(_run(jaxclip.clip_by_global_norm(c), leaves), _np(tensors), dtype)
        got, n = functional.clip_by_global_norm(leaves, c, norm=use_norm)
        data.assert_near(got, _np(tensors), dtype)
        data.assert_near([n], _np([total]), dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_global_norm_of_non_finite_values(bad):
    """TensorFlow makes every tensor NaN: `nonfinite="nan"`."""
    values = [np.array([1.0, bad], np.float32), np.array([2.0], np.float32)]
    want, _ = tf.clip_by_global_norm([tf.constant(v) for v in values], 1.0)
    got = _run(jaxclip.clip_by_global_norm(1.0, nonfinite="nan"), values)
    for a, b in zip(got, want, strict=True):
        assert np.isnan(b.numpy()).all()
        assert np.isnan(a).all()
