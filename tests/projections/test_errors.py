"""Bad values, trees and leaves given to projections: refused by name, value and key path."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import registry
from tests.support.weights import PROJECTIONS, apply, norms

BAD_LIMIT = [(-1.0, ValueError), (float("nan"), ValueError), (True, TypeError), ("2", TypeError)]
LIMITS = [
    (lambda x: jaxclip.project_max_norm(x), "max_norm"),
    (lambda x: jaxclip.project_min_max_norm(x, None), "min_norm"),
    (lambda x: jaxclip.project_min_max_norm(0.0, x), "max_norm"),
    (lambda x: jaxclip.project_spectral_norm(x), "max_norm"),
    (lambda x: jaxclip.functional.project_max_norm(jnp.ones((2, 2)), x), "max_norm"),
    (lambda x: jaxclip.functional.project_min_max_norm(jnp.ones((2, 2)), 0.0, x), "max_norm"),
    (lambda x: jaxclip.functional.project_spectral_norm(jnp.ones((2, 2)), x), "max_norm"),
]


@pytest.mark.parametrize(("make", "argument"), LIMITS)
@pytest.mark.parametrize(("bad", "error"), BAD_LIMIT)
def test_bad_limits(make, argument, bad, error):
    with pytest.raises(error, match=f"{argument}={bad!r}"):
        make(bad)


@pytest.mark.parametrize(
    "make", [jaxclip.project_box, lambda lo, hi: jaxclip.functional.project_box(1.0, lo, hi)]
)
def test_bad_bounds(make):
    for bad, error in BAD_LIMIT[1:]:
        with pytest.raises(error, match=f"min_value={bad!r}"):
            make(bad, 1.0)
        with pytest.raises(error, match=f"max_value={bad!r}"):
            make(-1.0, bad)
    with pytest.raises(ValueError, match=r"min_value=1\.0 exceeds max_value=-2\.0"):
        make(1.0, -2.0)


def test_bounds_of_each_leaf():
    """Prefix trees are held against each other, and against one value for all."""
    for make, names in [
        (jaxclip.project_box, ("min_value", "max_value")),
        (jaxclip.clip_by_value, ("min_value", "max_value")),
        (jaxclip.project_min_max_norm, ("min_norm", "max_norm")),
        (
            lambda lo, hi: jaxclip.functional.project_box({"a": 1.0}, lo, hi),
            ("min_value", "max_value"),
        ),
    ]:
        for low, high in [({"a": 2.0}, {"a": 1.0}), (2.0, {"a": 1.0}), ({"a": 2.0}, 1.0)]:
            message = r"{}\['a'\]=2\.0 exceeds {}\['a'\]=1\.0".format(*names)
            with pytest.raises(ValueError, match=message):
                make(low, high)
        make({"a": 0.5}, {"a": 1.0})
    jaxclip.project_box({"a": 0.5, "b": None}, {"a": {"x": 1.0, "y": None}, "b": -1.0})
    jaxclip.project_box([2.0], {"a": 1.0})  # neither fits the other: told when an update is traced


def test_bounds_of_shapes_that_do_not_fit():
    """Of two that do not fit each other one does not fit the leaf, which is named.

    Others are held against each other, also where neither has the other's shape.
    """
    with pytest.raises(ValueError, match=r"(?s)min_value=.* exceeds max_value="):
        jaxclip.project_box(jnp.ones((2, 1)), jnp.array([[2.0, 0.5, 2.0]]))
    w = {"k": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"max_value has shape \(4,\).*\['k'\]"):
        apply(jaxclip.project_box(jnp.zeros(3), jnp.ones(4)), w, w)


def test_infinite_min_norm_is_refused():
    w = {"k": jnp.ones((2, 2))}
    inf = float("inf")
    for make in (
        jaxclip.project_min_max_norm,
        lambda low, high: jaxclip.functional.project_min_max_norm(w, low, high),
    ):
        for high in (None, inf, 1.0):
            with pytest.raises(ValueError, match="min_norm=inf must be finite"):
                make(inf, high)
        with pytest.raises(ValueError, match=r"min_norm\['k'\]=inf must be finite"):
            make({"k": inf}, None)


def test_bad_arguments():
    for make, message in [
        (lambda: jaxclip.project_min_max_norm(2.0, 1.0), r"min_norm=2\.0 exceeds max_norm=1\.0"),
        (lambda: jaxclip.project_min_max_norm(0.0, 1.0, 2), "rate=2 must be between 0 and 1"),
        (lambda: jaxclip.project_min_max_norm(0.0, 1.0, -0.5), r"rate=-0\.5"),
        (lambda: jaxclip.project_min_max_norm(0.0, 1.0, float("nan")), "rate=nan"),
        (lambda: jaxclip.project_spectral_norm(1.0, how="cut"), "how='cut'.*'clip', 'scale'"),
        (lambda: jaxclip.project_spectral_norm(1.0, method="svd"), "method='svd'.*'eigh'"),
        (
            lambda: jaxclip.functional.project_spectral_norm(jnp.ones((2, 2)), 1.0, "cut"),
            "how='cut'",
        ),
        (lambda: jaxclip.project_max_norm(1.0, axis=(0, 0)), r"axis=\(0, 0\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    for make, message in [
        (lambda: jaxclip.project_min_max_norm(0.0, 1.0, "all"), "rate='all'"),
        (lambda: jaxclip.project_box(-1.0, 1.0, record=1), "record=1"),
        (lambda: jaxclip.project_unit_norm(axis=0.5), r"axis=0\.5"),
        (lambda: jaxclip.project_unit_norm(axis="0"), r"axis='0'.*or a function \(name, leaf\)"),
        (lambda: jaxclip.project_unit_norm(axis_name=True), "axis_name=True"),
        (lambda: jaxclip.project_max_norm(1.0, 0), "positional"),
    ]:
        with pytest.raises(TypeError, match=message):
            make()


@pytest.mark.parametrize("projection", PROJECTIONS, ids=str)
def test_bad_trees(projection):
    p = {"w": jnp.ones((3, 2))}
    tx = projection.make(1.0)
    with pytest.raises(ValueError, match=f"params=None: {projection.function} needs"):
        tx.update(p, tx.init(p))
    with pytest.raises(ValueError, match="params and updates differ in structure"):
        tx.update(p, tx.init(p), {"v": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"\(1, 2\) of updates and \(3, 2\) of params at \['w'\]"):
        tx.update({"w": jnp.ones((1, 2))}, tx.init(p), p)
    with pytest.raises(ValueError, match="mask is not a prefix"):
        projection.make(1.0, mask={"v": True}).update(p, tx.init(p), p)
    with pytest.raises(TypeError, match="mask has the leaf 'w'"):
        projection.make(1.0, mask={"w": "w"}).update(p, tx.init(p), p)


def test_complex_leaves_and_vectors_are_refused():
    complex_leaf = {"w": jnp.ones((3, 2), jnp.complex64)}
    for tx in (jaxclip.project_box(-1.0, 1.0), jaxclip.project_non_negative()):
        with pytest.raises(ValueError, match=r"\['w'\], of dtype complex64, cannot be bounded"):
            tx.update(complex_leaf, tx.init(complex_leaf), complex_leaf)
    spectral = jaxclip.project_spectral_norm(1.0, mask=True)
    for leaf in (complex_leaf, {"w": jnp.ones(3)}):
        with pytest.raises(ValueError, match=r"\['w'\], of shape \(3.* mask="):
            spectral.update(leaf, spectral.init(leaf), leaf)
    with pytest.raises(ValueError, match=r"min_value has shape \(3,\).*\['w'\]"):
        apply(
            jaxclip.project_box(jnp.zeros(3), 1.0), {"w": jnp.ones((3, 2))}, {"w": jnp.ones((3, 2))}
        )
    # Complex units have a norm, by magnitude.
    w = registry.build((3, 2), "complex64", scale=3)
    np.testing.assert_allclose(norms(jaxclip.functional.project_max_norm(w, 1.0)), 1.0, rtol=1e-6)
