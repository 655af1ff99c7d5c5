"""Norms of kernels' units: which units, which limit, in the record and in the figure."""

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from jaxclip.train.config import presets
from jaxclip.train.recording.history import History
from jaxclip.train.reporting import figures
from jaxclip.train.training import kernel_norms
from jaxclip.train.training.kernel_norms import Kernel
from jaxclip.train.training.loop import State

PARAMS = {"layers": {i: {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)} for i in range(3)}}


@pytest.mark.parametrize(
    ("project", "found"),
    [
        ((), [((0,), None)] * 3),
        (("max_norm=1.5",), [((0,), 1.5)] * 3),
        (("max_norm",), [((0,), 2.0)] * 3),
        (("max_norm=1.0,axis=1,layers=hidden",), [((1,), 1.0)] * 2 + [((0,), None)]),
        (("max_norm=1,axis=-1,layers=2",), [((0,), None)] * 2 + [((1,), 1)]),
        (("max_norm=1,axis=0:1",), [((0, 1), 1)] * 3),
        (("max_norm=1,axis=5",), [((0, 1), 1)] * 3),  # no such axis: the leaf is one unit
        (("unit_norm,layers=1",), [((0,), None), ((0,), 1.0), ((0,), None)]),
        (("min_max_norm=0.5:3,axis=1",), [((1,), 3)] * 3),
        (("min_max_norm=0.5:none",), [((0,), None)] * 3),
        (("box=0.1", "non_negative", "spectral_norm=1"), [((0,), None)] * 3),
        (("max_norm=1,axis=1", "max_norm=2,layers=0"), [((0,), 2), ((1,), 1), ((1,), 1)]),
    ],
)
def test_units_and_limits_of_projections(project, found):
    config = presets.get("forward").override({"project": project})
    kernels = kernel_norms.kernels(config, PARAMS)
    assert [(k.axis, k.limit) for k in kernels] == found
    assert [k.name for k in kernels] == [f"layers/{i}/kernel" for i in range(3)]


def test_norms_of_units():
    rng = np.random.default_rng(0)
    layers = {i: {"kernel": rng.normal(size=(5, 7)), "bias": np.ones(7)} for i in range(3)}
    watched = (Kernel(0), Kernel(1, (1,), 1.0), Kernel(2, (0, 1)))
    seen = kernel_norms.watch(watched)(State({"layers": layers}, {}, {}, ()))
    wanted = [
        np.linalg.norm(layers[0]["kernel"], axis=0),
        np.linalg.norm(layers[1]["kernel"], axis=1),
        np.linalg.norm(layers[2]["kernel"]),
    ]
    np.testing.assert_allclose(seen, [(np.max(n), np.median(n)) for n in wanted], rtol=1e-6)
    record = kernel_norms.record(watched, seen)
    assert record["weights/largest/layers/1/kernel"] == seen[1, 0]
    assert record["weights/median/layers/2/kernel"] == seen[2, 1]
    assert len(record) == 6
    labels = ["layers/0, column", "layers/1, row ≤ 1", "layers/2, whole"]
    assert [k.label for k in watched] == labels


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 12])
def test_weights_figure(count, tmp_path):
    """One epoch or many layers, with values that span decades or are not finite."""
    past = History("any")
    values = np.exp(np.arange(2.0 * count)).reshape(count, 2)
    seen = [values, values * np.nan, np.full((count, 2), np.inf)][: 4 - min(count, 3)]
    kernels = tuple(Kernel(i, (0,), [None, 1.0, 3.0][i % 3]) for i in range(count))
    past.epochs = [kernel_norms.record(kernels, row) for row in seen]
    figures.weights(past, kernels, tmp_path / "weights.png")
    assert matplotlib.image.imread(tmp_path / "weights.png").shape == (550, 1320, 4)
