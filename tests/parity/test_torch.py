"""PyTorch: `clip_grad_norm_` with norms 1, 2, 3 and inf, `clip_grad_value_`, `renorm`, `svd`."""

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity with PyTorch needs it: pip install -e .[parity]"
)

import jax  # noqa: E402
import optax  # noqa: E402

import jaxclip  # noqa: E402
from tests.parity import data  # noqa: E402
from tests.support.contexts import case  # noqa: E402

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


NORMS = [(1, 1.5), (2, 1.5), (3, 1.5), (INF, 1.5), (2, 1e3)]


@data.by_dtype
def test_clip_grad_norm(dtype):
    with data.context(dtype):
        values = data.arrays(dtype, SHAPES)
        rules = [jaxclip.clip_by_global_norm(c, ord=ord, eps=1e-6) for ord, c in NORMS]
        run = jax.jit(lambda u: [tx.update(u, tx.init(u)) for tx in rules])
        for (ord, c), (got, state) in zip(NORMS, run(data.ours(values, dtype)), strict=True):
            parameters = _parameters(values, dtype)
            total = torch.nn.utils.clip_grad_norm_(parameters, c, norm_type=float(ord))
            with case(f"norm {ord}, limit {c}"):
                data.assert_near(got, _np(p.grad for p in parameters), dtype)
                loose = "float32" if dtype == "float64" else dtype  # records are float32
                data.assert_near([state.norm], _np([total]), loose)


def test_eps_is_visible():
    """At a norm of 1e-6 PyTorch's eps halves the result, and so does ours."""
    values = [np.array([6e-7, 8e-7])]
    parameters = _parameters(values, "float32")
    torch.nn.utils.clip_grad_norm_(parameters, 5e-7)
    got, _ = data.updated(jaxclip.clip_by_global_norm(5e-7, eps=1e-6), data.ours(values, "float32"))
    want = _np([parameters[0].grad])[0]
    np.testing.assert_allclose(want, values[0] / 4, rtol=1e-6)
    np.testing.assert_allclose(got[0], want, rtol=1e-6)


@data.by_dtype
def test_clip_grad_value(dtype):
    with data.context(dtype):
        values = data.arrays(dtype, SHAPES)
        parameters = _parameters(values, dtype)
        torch.nn.utils.clip_grad_value_(parameters, 0.75)
        for tx in (jaxclip.clip(0.75), jaxclip.clip_by_value(-0.75, 0.75)):
            got, _ = data.updated(tx, data.ours(values, dtype))
            for a, b in zip(got, _np(p.grad for p in parameters), strict=True):
                np.testing.assert_array_equal(np.asarray(a).astype(np.float64), b)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_renorm(dtype):
    """`torch.renorm` names the axis that is kept, where ours names those that are reduced."""
    cases = [
        ((6, 4), 1, 0), ((6, 4), 0, 1), ((2, 3, 4, 5), 3, None), ((5, 4, 2, 3), 0, (1, 2, 3)),
    ]  # fmt: skip

    @jax.jit
    def run(weights):
        found = []
        for (_, _, axis), w in zip(cases, weights, strict=True):
            tx = jaxclip.project_max_norm(1.5, axis=axis)
            landed = optax.apply_updates(w, tx.update(w * 0, tx.init(w), w)[0])
            found.append((jaxclip.functional.project_max_norm(w, 1.5, axis), landed))
        return found

    with data.context(dtype):
        values = data.arrays(dtype, [shape for shape, _, _ in cases])
        weights = data.ours(values, dtype)
        for (_, dim, _), v, w, (got, landed) in zip(
            cases, values, weights, run(weights), strict=True
        ):
            tensor = torch.tensor(v, dtype=getattr(torch, dtype))
            want = torch.renorm(tensor, p=2, dim=dim, maxnorm=1.5).numpy()
            np.testing.assert_allclose(got, want, rtol=2e-6)  # it adds 1e-7 to the norm
            assert (np.asarray(got) != np.asarray(w)).any()
            np.testing.assert_allclose(landed, want, rtol=2e-6, atol=1e-6)


def test_a_linear_layer_of_pytorch_is_the_transpose():
    """`Linear.weight` is (out, in): its rows are the columns of a JAX kernel."""
    layer = torch.nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        layer.weight.mul_(4)
        kernel = layer.weight.numpy().T.copy()  # (in, out), the same layer
        bound = torch.renorm(layer.weight, p=2, dim=0, maxnorm=0.7).numpy()
    got = jaxclip.functional.project_max_norm(kernel, 0.7)
    np.testing.assert_allclose(got, bound.T, rtol=2e-6)
    assert (np.abs(kernel) > np.abs(bound.T) * 1.01).any()


METHODS = ("eigh", "iterative")


def _spectral(*given):
    """The projection by both methods."""
    project = jax.jit(
        lambda w: [jaxclip.functional.project_spectral_norm(w, *given, method=m) for m in METHODS]
    )
    return lambda w: zip(METHODS, project(w), strict=True)


def test_spectral_norm():
    """Its parametrization divides by the largest singular value, ours only where that is above c.

    Its power iteration starts anywhere: it is given the time to converge.
    """
    (w,) = data.arrays("float32", [(4, 6)])
    layer = torch.nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(w))
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=2000)
    want = layer.weight.detach().numpy().T  # (out, in): transposed
    (kernel,) = data.ours([w.T], "float32")
    project = _spectral(1.0, "scale")
    for method, got in project(kernel):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5, err_msg=method)
    inside = kernel * (0.9 / np.linalg.norm(w, 2))
    for method, got in project(inside):
        np.testing.assert_array_equal(got, inside, err_msg=method)


def test_singular_values():
    (w,) = data.arrays("float32", [(6, 4)])
    u, s, v = torch.linalg.svd(torch.tensor(w), full_matrices=False)
    want = (u * s.clamp(max=1.5)) @ v
    for method, got in _spectral(1.5)(data.ours([w], "float32")[0]):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-5, err_msg=method)


@data.by_dtype
def test_per_parameter_norm(dtype):
    """One call of `clip_grad_norm_` for each parameter is `clip_by_norm`."""
    with data.context(dtype):
        values = data.arrays(dtype, SHAPES)
        parameters = _parameters(values, dtype)
        for p in parameters:
            torch.nn.utils.clip_grad_norm_([p], 0.8)
        got, _ = data.updated(jaxclip.clip_by_norm(0.8, eps=1e-6), data.ours(values, dtype))
        data.assert_near(got, _np(p.grad for p in parameters), dtype)
