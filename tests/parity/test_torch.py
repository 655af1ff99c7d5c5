"""PyTorch: `clip_grad_norm_` with norms 1, 2, 3 and inf, `clip_grad_value_`, `renorm`."""

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity with PyTorch needs it: pip install -e .[parity]"
)

import jaxclip  # noqa: E402
from tests.parity import data  # noqa: E402

SHAPES = [(4, 3), (5,), (2, 3, 2), ()]
INF = float("inf")


def _parameters(values, dtype):
    tensors = [
        torch.nn.Parameter(torch.zeros(v.shape, dtype=getattr(torch, dtype))) for v in values
    ]
    for t, v in zip(tensors, values, strict=True):
        t.grad = torch.tensor(v).to(t.dtype)
    return tensors


def _np(tensors):
    return [t.detach().double().numpy() for t in tensors]


def _run(tx, leaves):
    return tx.update(leaves, tx.init(leaves))


@pytest.mark.parametrize("c", [1.5, 1e3])
@pytest.mark.parametrize("ord", [1, 2, 3, INF])
@data.by_dtype
@data.by_seed
def test_clip_grad_norm(dtype, seed, ord, c):
    with data.context(dtype):
        values = data.arrays(dtype, SHAPES, seed)
        parameters = _parameters(values, dtype)
        total = torch.nn.utils.clip_grad_norm_(parameters, c, norm_type=float(ord))
        got, state = _run(
            jaxclip.clip_by_global_norm(c, ord=ord, eps=1e-6), data.ours(values, dtype)
        )
        data.assert_near(got, _np(p.grad for p in parameters), dtype)
        loose = "float32" if dtype == "float64" else dtype  # what is recorded is float32
        data.assert_near([state.norm], _np([total]), loose)


def test_eps_is_visible():
    """At a norm of 1e-6 PyTorch's eps halves the result, and so does ours."""
    values = [np.array([6e-7, 8e-7])]
    parameters = _parameters(values, "float32")
    torch.nn.utils.clip_grad_norm_(parameters, 5e-7)
    got, _ = _run(jaxclip.clip_by_global_norm(5e-7, eps=1e-6), data.ours(values, "float32"))
    want = _np([parameters[0].grad])[0]
    np.testing.assert_allclose(want, values[0] / 4, rtol=1e-6)
    np.testing.assert_allclose(got[0], want, rtol=1e-6)


@data.by_dtype
@data.by_seed
def test_clip_grad_value(dtype, seed):
    with data.context(dtype):
        values = data.arrays(dtype, SHAPES, seed)
        parameters = _parameters(values, dtype)
        torch.nn.utils.clip_grad_value_(parameters, 0.75)
        for tx in (jaxclip.clip(0.75), jaxclip.clip_by_value(-0.75, 0.75)):
            got, _ = _run(tx, data.ours(values, dtype))
            for a, b in zip(got, _np(p.grad for p in parameters), strict=True):
                np.testing.assert_array_equal(np.asarray(a).astype(np.float64), b)


@data.by_seed
def test_renorm(seed):
    """`torch.renorm(p=2, dim=1)`: max-norm on each column."""
    (w,) = data.arrays("float32", [(6, 4)], seed)
    want = torch.renorm(torch.tensor(w, dtype=torch.float32), p=2, dim=1, maxnorm=1.5)
    got = jaxclip.functional.max_norm(data.ours([w], "float32")[0], 1.5, 0)
    np.testing.assert_allclose(got, want.numpy(), rtol=2e-6)  # it adds 1e-7 to the norm


@data.by_dtype
def test_per_parameter_norm(dtype):
    """One call of `clip_grad_norm_` for each parameter is `clip_by_norm`."""
    with data.context(dtype):
        values = data.arrays(dtype, SHAPES)
        parameters = _parameters(values, dtype)
        for p in parameters:
            torch.nn.utils.clip_grad_norm_([p], 0.8)
        got, _ = _run(jaxclip.clip_by_norm(0.8, eps=1e-6), data.ours(values, dtype))
        data.assert_near(got, _np(p.grad for p in parameters), dtype)
