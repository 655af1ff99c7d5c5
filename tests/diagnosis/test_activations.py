"""`unit_shares` and what `diagnose` says of units, against slopes written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.diagnosis.test_findings import ladder
from tests.support import modes, oracles

Z = np.random.default_rng(3).normal(size=(50, 2, 7)) * 4 - np.arange(7)
SLOPES = {
    "relu": (jax.nn.relu, lambda z: 1.0 * (z > 0), 1.0),
    "leaky_relu": (jax.nn.leaky_relu, lambda z: np.where(z > 0, 1, 0.0101), 1.0),
    "sigmoid": (jax.nn.sigmoid, lambda z: 1 / (2 + np.exp(z) + np.exp(-z)), 0.25),
    "tanh": (jnp.tanh, lambda z: 1 / np.cosh(z) ** 2, 1.0),
    "swish": (jax.nn.swish, lambda z: (1 + np.exp(-z) * (1 + z)) / (1 + np.exp(-z)) ** 2, 1.0998),
    "gelu": (
        jax.nn.gelu,
        lambda z: oracles_gelu(z + 1e-5) / 2e-5 - oracles_gelu(z - 1e-5) / 2e-5,
        1.129,
    ),
    "identity": (lambda z: z, np.ones_like, 1.0),
    "constant": (jnp.zeros_like, np.zeros_like, 1.0),
}


def oracles_gelu(z):
    return z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float32") for name in SLOPES),
        *(("tanh", dtype) for dtype in ("bfloat16", "float16", "float64")),
    ],
)
def test_unit_shares(name, dtype):
    act, slope, steepest = SLOPES[name]
    with modes.maybe_x64(dtype):
        z = jnp.asarray(Z, dtype)
        dead, saturated = jax.jit(jaxclip.diagnosis.unit_shares, static_argnums=1)(z, act)
    flat = np.abs(slope(oracles.wide(z).reshape(-1, 7))) < 0.01 * steepest
    assert dead.dtype == saturated.dtype == jnp.float32
    np.testing.assert_allclose(saturated, flat.mean(), atol=1.01 / flat.size)
    np.testing.assert_allclose(dead, flat.all(axis=0).mean(), atol=1e-6)


def test_units_are_findings():
    z = {"h_10": jnp.full((4, 2), -1.0), "h_2": jnp.array([[1.0, -1.0, -2.0]] * 4)}
    found = jaxclip.diagnose(ladder(1.0, 1.0), preactivations=z, activation=jax.nn.relu)
    assert found.finding == "dead"
    assert [u.name for u in found.units] == ["h_2", "h_10"]
    np.testing.assert_allclose([u.dead for u in found.units], [2 / 3, 1], rtol=1e-6)
    assert [s.partition(":")[0] for s in found.findings] == ["dead", "note"]  # and not saturated
    assert "67 % of the units of h_2, 100 % of the units of h_10" in found.findings[0]
    assert str(found).splitlines()[-2:] == ["h_2     67 %", "h_10   100 %"]
    swing = jnp.array([[9.0, 0.0], [-9.0, 9.0], [0.0, 9.0]])
    found = jaxclip.diagnose(ladder(1.0), preactivations=[swing], activation=jnp.tanh)
    assert found.finding == "saturated"
    assert found.units[0].dead == 0
    vanishes = jaxclip.diagnose(ladder(1.0, 50.0, 2500.0), preactivations=z, activation=jax.nn.relu)
    assert [s.partition(":")[0] for s in vanishes.findings] == ["vanishing", "dead"]
