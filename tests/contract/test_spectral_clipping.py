"""`clip_by_spectral_norm` against NumPy's float64 singular values, by both of its methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional
from jaxclip.projections import flax_units
from tests.support import modes, registry
from tests.support import oracles as o

NAN, INF = float("nan"), float("inf")
EPS = registry.eps("float32")
WAYS = [(how, method) for method in ("iterative", "eigh") for how in ("clip", "soft", "scale")]


def bounded(s, c, how):
    """Singular values after the rule, in float64."""
    if not c:
        return 0 * s
    if how == "soft":
        return s / np.hypot(1, s / c)
    return np.minimum(s, c) if how == "clip" else s * c / max(s[0], c)


def oracle(x, c, how):
    """A matrix after the rule, in float64."""
    u, s, v = np.linalg.svd(o.wide(x), full_matrices=False)
    return (u * bounded(s, c, how)) @ v


def matrix(rows, columns, values, seed=0):
    """A matrix of those singular values in random directions."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, len(values))))[0] for n in (rows, columns))
    return (left * values) @ right.T


# A stack of matrices of 12 x 8: none may change the result of another.
STACK = {
    "just above": matrix(12, 8, np.linspace(1.001, 0.5, 8)),
    "level": matrix(12, 8, np.linspace(4, 2, 8), 1),
    "equal": matrix(12, 8, np.full(8, 30.0), 2),
    "thousand": matrix(12, 8, [1000, 900, 30, 1.5, 0.9, 0.5, 0.2, 0.1], 3),
    "rank one": matrix(12, 8, [50.0], 4),
    "inside": matrix(12, 8, np.linspace(1, 0.1, 8) - 1e-6, 5),
    "tiny": matrix(12, 8, np.linspace(1e-30, 1e-31, 8), 6),
    "huge": matrix(12, 8, np.linspace(1e20, 5e19, 8), 7),
    "near the largest float": matrix(12, 8, np.linspace(4e38, 3e38, 8), 8),
    "diagonal": np.eye(12, 8) * [1e20, 3, 0.5, 1e-3, 0, 0, 0, 0],
    "zeros": np.zeros((12, 8)),
    "nan": np.where(np.arange(8) == 3, NAN, np.ones((12, 8))),
    "inf": np.where(np.arange(8) == 3, -INF, np.ones((12, 8))),
}


@functools.partial(jax.jit, static_argnums=2)
def clipped(x, c, ways):
    """The rule on a stack, by some of `WAYS`, and its record."""
    found = {}
    for how, method in ways:
        tx = jaxclip.clip_by_spectral_norm(c, how=how, method=method, stacked=0)
        found[how, method] = tx.update(x, tx.init(x))
    return found


PLAIN = (("clip", "iterative"), ("soft", "eigh"))


@pytest.mark.parametrize(
    "ways", [PLAIN, pytest.param(tuple(set(WAYS) - set(PLAIN)), marks=pytest.mark.slow)], ids=len
)
def test_singular_values(ways):
    """Every case of the docstring's table, for three limits, of one program."""
    x = jnp.asarray(np.stack(list(STACK.values())), jnp.float32)
    for c in (1.0, 0.0, INF):
        for (how, method), (out, state) in clipped(x, c, ways).items():
            for name, before, after in zip(STACK, x, out, strict=True):
                message = f"{how} {method} {name} {c}"
                if not np.isfinite(before).all() or c == INF or (name == "tiny" and c):
                    registry.assert_same_bits(after, before)
                    continue
                if c and how != "soft" and name == "inside":
                    registry.assert_same_bits(after, before)
                want = oracle(before, c, how)
                few = {"thousand": 1e-4}.get(name, 2e-5) * c  # huge: 20 stages
                np.testing.assert_allclose(o.wide(after), want, rtol=0, atol=few, err_msg=message)
                largest = np.linalg.norm(o.wide(after), 2)
                assert largest <= c * (1 + (32 if how != "soft" else 100) * EPS), message
                values = np.linalg.svd(o.wide(after), compute_uv=False)
                wants = np.linalg.svd(want, compute_uv=False)
                np.testing.assert_allclose(values, wants, rtol=0, atol=few)
            assert (int(state.nonfinite_count), int(state.clipped_count)) == (1, int(c < INF))
            assert float(state.threshold) == c
            number = {1.0: 8, 0.0: 10, INF: 0}[c]  # not the three without norm, nor those inside
            assert float(state.fraction) == pytest.approx(number / len(STACK), rel=1e-6)


def test_published_numbers():
    """SPECTRA's curve; leaves that are no kernels pass; the record."""
    grads = {"kernel": jnp.diag(jnp.array([3.0, 0.5])), "bias": jnp.full((2, 2), 9.0)}
    grads |= {"scale": jnp.full(2, 9.0), "step": jnp.array([[7]])}

    @jax.jit
    def run(grads):
        tx = jaxclip.clip_by_spectral_norm(1.0, how="soft", method="iterative")
        return *tx.update(grads, tx.init(grads)), functional.clip_by_spectral_norm(
            grads, 1.0, "soft", "iterative"
        )

    out, state, same = run(grads)
    want = np.diag([0.9486833, 0.4472136])
    np.testing.assert_allclose(out["kernel"], want, rtol=0, atol=1e-7)
    registry.assert_same_bits(same, out)
    for name in ("bias", "scale", "step"):
        registry.assert_same_bits(out[name], grads[name])
    found = {key.split("/")[1]: float(x) for key, x in jaxclip.metrics(state).items()}
    assert found == {
        "norm": 3, "threshold": 1, "scale": pytest.approx(0.1**0.5, rel=1e-6), "fraction": 1,
        "count": 1, "clipped_count": 1, "nonfinite_count": 0,
    }  # fmt: skip


def counted(name, jaxpr):
    """The uses of a primitive, with one turn of each `while` and all of each `scan`."""
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += equation.primitive.name == name
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            total += times * counted(name, inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize(("how", "stage"), [("clip", 2 + 64 + 3), ("soft", 2 + 3), ("scale", 0)])
def test_cost(how, stage):
    """One for the Gram matrix, 20 to measure, and those of a stage; roots take up to 12 steps."""
    run = functools.partial(functional.clip_by_spectral_norm, how=how, method="iterative")
    x = jnp.ones((6, 4))
    assert counted("dot_general", jax.make_jaxpr(run)(x, 1.0).jaxpr) == 1 + 20 + stage
    slope = jax.make_jaxpr(jax.grad(lambda x: run(x, 1.0).sum()))(x).jaxpr
    assert counted("svd", slope) == 1


@pytest.mark.slow
def test_dtypes():
    """In 16 bits within one epsilon of c: computed in float32 and rounded once."""
    shapes = {"bfloat16": (20, 7), "float16": (7, 20), "float64": (3, 3, 2, 6), "float32": (1, 5)}
    ways = (*PLAIN, ("scale", "iterative"))
    with modes.x64():
        grads = {d: registry.build(shape, d, scale=3) for d, shape in shapes.items()}
        run = jax.jit(lambda x: [functional.clip_by_spectral_norm(x, 1.5, *way) for way in ways])
        for (how, _), outs in zip(ways, run(grads), strict=True):
            for dtype, out in outs.items():
                assert out.dtype == dtype
                columns = shapes[dtype][-1]
                want = oracle(o.wide(grads[dtype]).reshape(-1, columns), 1.5, how)
                got = o.wide(out).reshape(-1, columns)
                few = {"float64": 1e-14, "float32": 2e-6}.get(dtype, registry.eps(dtype))
                np.testing.assert_allclose(got, want, rtol=0, atol=1.5 * few)
                largest = np.linalg.norm(want, 2)
                np.testing.assert_allclose(np.linalg.norm(got, 2), largest, rtol=few)


@pytest.mark.slow
def test_small_singular_values_survive():
    """At a thousand times c, where an iteration on the whole range keeps a twentieth of them."""
    gap = np.r_[np.full(16, 1000.0), np.linspace(1, 0.1, 32)]
    spectra = [np.geomspace(1000, 1e-2, 48), gap]
    x = jnp.asarray(np.stack([matrix(64, 48, s, i) for i, s in enumerate(spectra)]), jnp.float32)
    for (how, _), (out, _) in clipped(x, 1.0, tuple(WAYS)).items():
        for before, after in zip(x, out, strict=True):
            want = np.linalg.svd(oracle(before, 1.0, how), compute_uv=False)
            got = np.linalg.svd(o.wide(after), compute_uv=False)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
            np.testing.assert_allclose(got[want > 0.3], want[want > 0.3], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eigh", "iterative"])
@pytest.mark.parametrize("how", ["clip", "soft", "scale"])
def test_derivatives(how, method):
    """Against differences of the oracle, by matrix and by limit; finite where values coincide."""
    x, toward, slope = (np.random.default_rng(i).normal(size=(7, 5)) for i in range(3))
    h = 1e-6
    with modes.x64():
        run = jax.jit(
            jax.grad(
                lambda x, c: (functional.clip_by_spectral_norm(x, c, how, method) * slope).sum(),
                argnums=(0, 1),
            )
        )
        for c in (0.5, 1.5, 3.0):
            by_x, by_c = run(jnp.asarray(x), c)
            want = oracle(x + h * toward, c, how) - oracle(x - h * toward, c, how)
            want = (want * slope).sum() / (2 * h)
            np.testing.assert_allclose((by_x * toward).sum(), want, rtol=1e-5, atol=1e-5)
            want = (oracle(x, c + h, how) - oracle(x, c - h, how)) * slope / (2 * h)
            np.testing.assert_allclose(by_c, want.sum(), rtol=1e-5, atol=1e-5)
        for same in (np.zeros((7, 5)), 3 * np.eye(7, 5), 0.1 * np.eye(7, 5)):
            assert all(np.isfinite(g).all() for g in run(jnp.asarray(same), 1.0))


@pytest.mark.slow
def test_limits_and_axes():
    """Schedules, prefix trees, `inject_hyperparams`; attention kernels; a mask."""
    grads = {
        "query": {"kernel": registry.build((6, 4, 2))},
        "bias": registry.build((3, 4), scale=9),
    }

    @jax.jit
    def run(grads):
        tx = jaxclip.clip_by_spectral_norm(
            lambda n: 2.0 - n.astype(jnp.float32), how="clip", axis=flax_units
        )
        _, state = tx.update(grads, tx.init(grads))
        second = tx.update(grads, state)[0]
        tree = jaxclip.clip_by_spectral_norm({"query": None, "bias": 1.0}, mask=True)
        third = tree.update(grads, tree.init(grads))[0]
        injected = optax.inject_hyperparams(jaxclip.clip_by_spectral_norm)(max_norm=1.0)
        fourth = injected.update(grads, injected.init(grads))[0]
        return second, third, fourth

    second, third, fourth = run(grads)
    kernel = o.wide(grads["query"]["kernel"])
    for out, rows in ((second, 6), (fourth, 24)):
        want = oracle(kernel.reshape(rows, -1), 1.0, "clip")
        got = o.wide(out["query"]["kernel"]).reshape(rows, -1)
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * EPS)
        registry.assert_same_bits(out["bias"], grads["bias"])
    registry.assert_same_bits(third["query"], grads["query"])
    want = oracle(grads["bias"], 1.0, "clip")
    np.testing.assert_allclose(third["bias"], want, rtol=0, atol=64 * EPS)


def test_errors():
    for call, error, message in (
        (lambda: jaxclip.clip_by_spectral_norm(-1.0), ValueError, r"max_norm=-1\.0"),
        (lambda: jaxclip.clip_by_spectral_norm("a"), TypeError, "max_norm='a'"),
        (lambda: jaxclip.clip_by_spectral_norm(1.0, how="cut"), ValueError, "how='cut'.*'soft'"),
        (lambda: jaxclip.clip_by_spectral_norm(1.0, method="svd"), ValueError, "method='svd'"),
        (lambda: jaxclip.project_spectral_norm(1.0, how="soft"), ValueError, "how='soft'"),
        (lambda: functional.clip_by_spectral_norm(jnp.ones(()), abs), TypeError, "max_norm="),
    ):
        with pytest.raises(error, match=message):
            call()
    tx, none = jaxclip.clip_by_spectral_norm(1.0), {"bias": jnp.ones(3)}
    registry.assert_same_bits(tx.update(none, tx.init(none))[0], none)
    leaf = {"w": jnp.ones((3, 2), jnp.complex64)}
    with pytest.raises(ValueError, match=r"\['w'\], of shape \(3, 2\) and dtype complex64"):
        tx.update(leaf, tx.init(leaf))
