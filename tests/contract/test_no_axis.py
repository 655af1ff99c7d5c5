"""`axis=()` reduces nothing: every element is a unit. `None` is the default."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional, norms

X = np.array([[3.0, 4.0], [0.1, 0.2]], np.float32)
W = np.array([[50.0, 0.5], [-4.0, 0.0]], np.float32)
AT_MOST_1 = [[1.0, 1.0], [0.1, 0.2]]
RELATIVE = [[3.0, 0.05], [0.1, 1e-4]]  # a tenth of |w|, of 1e-3 at least
SIGN = [[1.0, 1.0], [-1.0, 0.0]]


def _updated(make):
    def run(x):
        tx = make()
        return tx.update(x, tx.init(x), W)[0]

    return run


def _landed(make):
    def run(w):
        tx = make(axis=(), mask=True)
        return optax.apply_updates(w, tx.update(w * 0, tx.init(w), w)[0])

    return run


CLIP = {
    "clip_by": _updated(lambda: jaxclip.clip_by(1.0, scope="unit", axis=())),
    "clip_by, p = 1": _updated(lambda: jaxclip.clip_by(1.0, scope="unit", axis=(), ord=1)),
    "clip_by_norm": _updated(lambda: jaxclip.clip_by_norm(1.0, axis=())),
    "clip_by_norm, a list": _updated(lambda: jaxclip.clip_by_norm(1.0, axis=[])),
    "clip_by_norm, a function": _updated(lambda: jaxclip.clip_by_norm(1.0, axis=lambda *_: ())),
    "clip_by_block_rms": _updated(lambda: jaxclip.clip_by_block_rms(1.0, axis=())),
    "functional.clip_by_norm": lambda x: functional.clip_by_norm(x, 1.0, ()),
    "functional.clip_by_block_rms": lambda x: functional.clip_by_block_rms(x, 1.0, ()),
    "functional.project_max_norm": lambda x: functional.project_max_norm(x, 1.0, ()),
    "functional.project_min_max_norm": lambda x: functional.project_min_max_norm(
        x, 0.0, 1.0, axis=()
    ),
    "project_max_norm": _landed(lambda **k: jaxclip.project_max_norm(1.0, **k)),
    "project_min_max_norm": _landed(lambda **k: jaxclip.project_min_max_norm(0.0, 1.0, **k)),
}
OTHERS = {
    "adaptive_grad_clip": (_updated(lambda: jaxclip.adaptive_grad_clip(0.1, axis=())), X, RELATIVE),
    "functional.adaptive_grad_clip": (
        lambda x: functional.adaptive_grad_clip(x, W, 0.1, axis=()), X, RELATIVE),
    "normalize_by_norm": (
        _updated(lambda: jaxclip.normalize_by_norm(scope="unit", axis=())), W, SIGN),
    "functional.normalize_by_norm": (
        lambda x: functional.normalize_by_norm(x, scope="unit", axis=()), W, SIGN),
    "functional.project_unit_norm": (lambda w: functional.project_unit_norm(w, ()), W, SIGN),
    "project_unit_norm": (_landed(jaxclip.project_unit_norm), W, SIGN),
    "norms.unit_norms": (lambda x: norms.unit_norms(x, ()), W, np.abs(W)),
}  # fmt: skip
ENTRIES = {name: (run, X, AT_MOST_1) for name, run in CLIP.items()} | OTHERS


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_each_element_is_a_unit(name):
    run, x, want = ENTRIES[name]
    np.testing.assert_allclose(jax.jit(run)(x), want, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENTRIES if "adaptive" not in name])
def test_three_axes_and_a_scalar(name):
    run, x, want = ENTRIES[name]
    got, one = jax.jit(lambda x, one: (run(x), run(one)))(x[:, None], x[1, 0])
    np.testing.assert_allclose(got, np.array(want)[:, None], rtol=3e-7)
    np.testing.assert_allclose(one, want[1][0], rtol=3e-7)


def test_every_function_with_axis_is_tested():
    tested = {name.split(",")[0] for name in ENTRIES}
    for prefix, module in (("", jaxclip), ("functional.", functional), ("norms.", norms)):
        functions = {n: getattr(module, n) for n in module.__all__}
        functions = {n: f for n, f in functions.items() if inspect.isfunction(f)}
        named = {n for n, f in functions.items() if "axis" in inspect.signature(f).parameters}
        named -= {n for n in named if "spectral" in n or "example" in n}  # these have no units
        assert {prefix + n for n in named} <= tested


def test_none_is_the_default():
    """All axes of a leaf for `clip_by_norm`, all but the last for `adaptive_grad_clip`."""
    for name in ("clip_by_norm", "adaptive_grad_clip", "project_max_norm", "clip_by_block_rms"):
        assert inspect.signature(getattr(jaxclip, name)).parameters["axis"].default is None
    got = functional.clip_by_norm(jnp.asarray(X), 1.0)
    np.testing.assert_allclose(got, X / np.linalg.norm(X.astype(np.float64)), rtol=3e-7)
