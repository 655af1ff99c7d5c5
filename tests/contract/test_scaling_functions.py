"""Functions of groups, norms that are set, and bounds by weights: as their rules."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import functional
from tests.support import registry

TREE = {"a": {"x": (4, 3), "y": (5,)}, "b": (7,), "c": ()}
LABELS = {"a": {"x": "one", "y": "two"}, "b": "one", "c": None}


@pytest.mark.slow
def test_results_of_their_rules():
    """Bit for bit, in one program."""
    u, p = registry.build(TREE, scale=3), registry.build(TREE, seed=1)
    limits = {"one": 1.0, "two": None}
    rules = [
        jaxclip.clip_by_group_norm(limits, LABELS),
        jaxclip.normalize_by_norm(2.0, scope="leaf"),
        jaxclip.clippy(0.1, 1e-3),
    ]

    @jax.jit
    def run(u, p):
        clipped, norms = functional.clip_by_group_norm(u, limits, LABELS)
        known, _ = functional.clip_by_group_norm(u, limits, LABELS, norm=norms)
        return (
            [clipped, functional.normalize_by_norm(u, 2.0, scope="leaf"),
             functional.clippy(u, p, 0.1, 1e-3)],
            [tx.update(u, tx.init(p), p)[0] for tx in rules], known, norms,
        )  # fmt: skip

    got, want, known, norms = run(u, p)
    registry.assert_same_bits(got, want)
    registry.assert_same_bits(known, got[0])
    assert set(norms) == {"one", "two"}
    np.testing.assert_allclose(norms["two"], np.linalg.norm(u["a"]["y"]), rtol=1e-6)


def test_known_norms_of_groups():
    u = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([8.0])}
    out, norms = functional.clip_by_group_norm(u, 1.0, {"a": "k", "b": "l"}, norm={"k": 10, "l": 4})
    np.testing.assert_allclose(out["a"], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(out["b"], [2.0])
    assert (float(norms["k"]), float(norms["l"])) == (10, 4)
    assert functional.clip_by_group_norm({}, 1.0, {}) == ({}, {})


def test_errors():
    u = {"a": jnp.ones(2)}
    for call, error, message in (
        (lambda: functional.clip_by_group_norm(u, -1.0, "k"), ValueError, "max_norm=-1.0"),
        (lambda: functional.clip_by_group_norm(u, {"l": 1.0}, "k"), ValueError, "label 'k'"),
        (lambda: functional.clip_by_group_norm(u, lambda t: t, "k"), TypeError, "max_norm="),
        (lambda: functional.clip_by_group_norm(u, 1.0, "k", norm={}), ValueError, "norm={}"),
        (
            lambda: functional.clip_by_group_norm(u, 1.0, "k", norm={"k": "x"}),
            TypeError,
            "norm='x'",
        ),
        (lambda: functional.clip_by_group_norm(u, 1.0, None), ValueError, "groups=None"),
        (lambda: functional.normalize_by_norm(u, lambda t: t), TypeError, "target_norm="),
        (lambda: functional.clippy(u, None), ValueError, "params=None"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            call()
