"""TensorFlow: `clip_by_value`, `clip_by_norm`, `clip_by_average_norm`, `clip_by_global_norm`."""

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
tf = pytest.importorskip(
    "tensorflow", reason="parity with TensorFlow needs it: pip install -e .[parity]"
)

import jax  # noqa: E402
import optax  # noqa: E402

import jaxclip  # noqa: E402
from jaxclip import functional  # noqa: E402
from tests.parity import data  # noqa: E402
from tests.support.contexts import case  # noqa: E402

SHAPES = [(4, 3), (5,), (2, 3, 2), ()]


def _tf(values, dtype):
    return [tf.cast(tf.constant(v, tf.float64), dtype) for v in values]


def _np(tensors):
    return [tf.cast(t, tf.float64).numpy() for t in tensors]


def _run(tx, leaves, **extra):
    return tx.update(leaves, tx.init(leaves), **extra)[0]


@data.by_dtype
def test_clip_by_value(dtype):
    with data.context(dtype):
        values = data.arrays(dtype, SHAPES)
        low, high = -0.5, 1.25
        bounds = [tf.cast(x, dtype) for x in (low, high)]
        want = _np([tf.clip_by_value(t, *bounds) for t in _tf(values, dtype)])
        leaves = data.ours(values, dtype)
        rule = jaxclip.clip_by_value(low, high)
        got, pure = jax.jit(lambda u: (_run(rule, u), functional.clip_by_value(u, low, high)))(
            leaves
        )
        for a, b, leaf in zip(got, want, leaves, strict=True):
            assert a.dtype == leaf.dtype
            np.testing.assert_array_equal(np.asarray(a).astype(np.float64), b)  # nothing rounds
        data.assert_near(pure, want, dtype)


def test_clip_by_value_of_integers():
    x = np.array([-7, 0, 3, 9], np.int32)
    np.testing.assert_array_equal(
        functional.clip_by_value(x, -2, 5), tf.clip_by_value(x, -2, 5).numpy()
    )


AXES = [None, 0, 1, -1, (0, 1), ()]  # of none: each element is clipped by itself


@data.by_dtype
def test_clip_by_norm(dtype):
    @jax.jit
    def run(leaves):
        rules = [_run(jaxclip.clip_by_norm(1.5, axis=axes), leaves) for axes in AXES]
        pure = [functional.clip_by_norm(leaves, 1.5, axes) for axes in AXES]
        return list(zip(rules, pure, strict=True))

    with data.context(dtype):
        values = data.arrays(dtype, [(4, 3), (2, 3, 2)])
        tensors = _tf(values, dtype)
        for axes, found in zip(AXES, run(data.ours(values, dtype)), strict=True):
            given = list(axes) if isinstance(axes, tuple) else axes
            want = _np([tf.clip_by_norm(t, tf.cast(1.5, dtype), axes=given) for t in tensors])
            for got in found:
                with case(f"axes {axes}"):
                    data.assert_near(got, want, dtype)


@data.by_dtype
def test_max_norm_of_the_tutorial(dtype):
    """`tf.clip_by_norm(w, c, axes=1)`: rows of a Dense kernel, one input's outgoing weights."""
    with data.context(dtype):
        values = data.arrays(dtype, [(6, 4)])
        want = _np([tf.clip_by_norm(_tf(values, dtype)[0], tf.cast(1.5, dtype), axes=1)])
        (w,) = data.ours(values, dtype)
        tx = jaxclip.project_max_norm(1.5, axis=1)

        @jax.jit
        def run(w):
            landed = optax.apply_updates(w, _run(tx, w * 0, params=w))
            return functional.project_max_norm(w, 1.5, axis=1), landed

        pure, landed = run(w)
        data.assert_near([pure], want, dtype)
        near = max(data.near(dtype), 1e-6)
        np.testing.assert_allclose(np.asarray(landed, np.float64), want[0], rtol=near, atol=1e-6)
        rows = np.linalg.norm(values[0], axis=1)
        assert (rows > 1.5).any()


@data.by_dtype
def test_clip_by_average_norm(dtype):
    """TensorFlow's takes float32 only: it is given the same numbers in that."""
    with data.context(dtype):
        values = data.arrays("float32" if dtype == "float64" else dtype, SHAPES)
        theirs = tf.compat.v1.clip_by_average_norm
        want = _np([theirs(t, 0.4) for t in _tf(values, "float32")])
        leaves = data.ours(values, dtype)
        near = "float32" if dtype == "float64" else dtype
        rule = jaxclip.clip_by_average_norm(0.4)
        run = jax.jit(lambda u: (_run(rule, u), functional.clip_by_average_norm(u, 0.4)))
        for got in run(leaves):
            data.assert_near(got, want, near)


@data.by_dtype
def test_clip_by_global_norm(dtype):
    cases = [(1.5, None), (1e3, None), (1.5, 3.0)]  # limits, and norms that are given

    @jax.jit
    def run(leaves):
        pure = [functional.clip_by_global_norm(leaves, c, norm=norm) for c, norm in cases]
        return [_run(jaxclip.clip_by_global_norm(c), leaves) for c, _ in cases], pure

    with data.context(dtype):
        values = data.arrays(dtype, SHAPES)
        for given, by_rule, (got, n) in zip(cases, *run(data.ours(values, dtype)), strict=True):
            c, norm = (None if x is None else tf.cast(x, dtype) for x in given)
            tensors, total = tf.clip_by_global_norm(_tf(values, dtype), c, use_norm=norm)
            with case(f"limit, norm: {given}"):
                if norm is None:
                    data.assert_near(by_rule, _np(tensors), dtype)
                data.assert_near(got, _np(tensors), dtype)
                data.assert_near([n], _np([total]), dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_global_norm_of_non_finite_values(bad):
    """TensorFlow makes every tensor NaN: `nonfinite="nan"`."""
    values = [np.array([1.0, bad], np.float32), np.array([2.0], np.float32)]
    want, _ = tf.clip_by_global_norm([tf.constant(v) for v in values], 1.0)
    got, _ = data.updated(jaxclip.clip_by_global_norm(1.0, nonfinite="nan"), values)
    for a, b in zip(got, want, strict=True):
        assert np.isnan(b.numpy()).all()
        assert np.isnan(a).all()
