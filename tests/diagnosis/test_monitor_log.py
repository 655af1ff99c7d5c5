"""`diagnosis.of_metrics`: the monitors' records give the same diagnosis as the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import diagnosis
from tests.diagnosis.test_findings import gradients, weights_of
from tests.support.contexts import once

TX = optax.chain(
    jaxclip.monitor(name="grads"), jaxclip.clip_by_global_norm(1e-3),
    jaxclip.monitor(of="params", name="weights"), jaxclip.monitor(name="updates"),
)  # fmt: skip


@pytest.fixture(scope="module")
def network():
    return gradients(jax.nn.sigmoid, 24**-0.5, depth=5), weights_of(24**-0.5, 5)


def _logged(grads, params, scales):
    """The gradients times each of `scales`, with records stacked by `lax.scan`."""

    def step(state, scale):
        _, state = TX.update(jax.tree.map(lambda g: g * scale, grads), state, params)
        return state, jaxclip.metrics(state)

    return jax.lax.scan(step, TX.init(params), jnp.asarray(scales, jnp.float32))[1]


def _same(one, other):
    assert (one.finding, one.findings) == (other.finding, other.findings)
    np.testing.assert_allclose(one.factor, other.factor, rtol=1e-6)
    np.testing.assert_allclose(one.bias_factor, other.bias_factor, rtol=1e-6)
    assert str(one) == str(other)
    for a, b in zip(one.layers, other.layers, strict=True):
        assert (a.name, a.deep) == (b.name, b.deep)
        for x, y in zip(a[1:5], b[1:5], strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.slow
def test_one_step_equals_the_gradients(network):
    grads, params = network
    updates, state = once(TX, grads, params)
    got = diagnosis.of_metrics(jaxclip.metrics(state), "grads", "weights", "updates")
    _same(got, jaxclip.diagnose(grads, params, updates))
    alone = diagnosis.of_metrics(jaxclip.metrics(state))
    _same(alone, jaxclip.diagnose(grads))
    assert alone.layers[0].weight is alone.layers[0].ratio is None


@pytest.mark.slow
def test_scan_list_and_chunks_agree(network):
    scales = np.array([1.0, 3.0, 2.0, 5.0, 0.5])
    log = _logged(*network, scales)
    steps = [{k: v[i] for k, v in log.items()} for i in range(5)]
    chunks = [{k: v[a:b] for k, v in log.items()} for a, b in ((0, 2), (2, 5))]
    names = ("grads", "weights", "updates")
    whole = diagnosis.of_metrics(log, *names)
    for other in (steps, chunks, jax.device_get(log)):
        _same(diagnosis.of_metrics(other, *names), whole)
    assert whole.finding == "vanishing"
    once = jaxclip.diagnose(network[0])
    for row, first in zip(whole.layers, once.layers, strict=True):
        np.testing.assert_allclose(row.gradient, first.gradient * scales, rtol=1e-5)
    np.testing.assert_allclose(whole.factor, once.factor, rtol=1e-5)


def _table(rows):
    """A log of one leaf for each layer, from input to output."""
    return {f"grads/norm/Dense_{i}/kernel": np.asarray(row) for i, row in enumerate(rows)}


def test_first_nonfinite_step_and_layer():
    rows = 10.0 ** np.arange(4)[:, None] * np.ones((4, 9))
    rows[:2, 6] = np.nan
    rows[:, 7:] = np.inf
    found = diagnosis.of_metrics(_table(rows), first_step=100)
    assert found.nonfinite == (106, "Dense_1")
    assert "at step 106, the gradient of Dense_1" in found.findings[0]
    assert [s.partition(":")[0] for s in found.findings] == ["non-finite", "vanishing"]
    np.testing.assert_allclose(found.factor, 0.1)
    rows[:, 2] = np.nan
    found = diagnosis.of_metrics(_table(rows))
    assert found.nonfinite == (2, "Dense_3")
    np.testing.assert_allclose(found.factor, 0.1)
    found = diagnosis.of_metrics(_table(rows * np.nan))
    assert found.nonfinite == (0, "Dense_3")
    assert np.isnan(found.factor)


def test_nonfinite_steps_are_left_out_for_all_layers():
    """Else layers would be compared in different steps."""
    rows = np.ones((3, 5)) * 10.0 ** np.array([0, 0, 0, 6, 6])
    rows[0, 3:] = np.nan
    rows[:, 2] *= [1.0, 2.0, 4.0]
    found = diagnosis.of_metrics(_table(rows[:, 1:]))
    np.testing.assert_allclose(found.factor, 1 / np.sqrt(2.5))
    assert [s.partition(":")[0] for s in found.findings] == ["non-finite", "sound"]


@pytest.mark.parametrize(
    ("norms", "growth"),
    [
        (np.repeat([1.0, 2000.0], [10, 10]), 2000),
        (np.repeat([1.0, 900.0], [10, 10]), 900),
        (np.append(np.ones(20), 1e6), 1),  # a spike is not the rule
        ([1.0, 5000.0], 5000),
        ([1.0, np.nan, 5000.0, np.inf], 5000),
        ([1.0], np.nan),
        ([0.0, 1.0], np.nan),
    ],
)
def test_growth_over_time(norms, growth):
    found = diagnosis.of_metrics(_table([norms, norms]))
    np.testing.assert_allclose(found.growth, growth)
    grew = [s for s in found.findings if s.startswith("exploding: ")]
    assert bool(grew) == (growth > 1000)


def test_layers_by_name_alone():
    leaves = {"n/scale": 1e-9, "n/bias": 1.0, "a/kernel": 3.0, "a/bias": 4.0, "b/w": 50.0, "z": 0.1}
    found = diagnosis.of_metrics({f"g/norm/{k}": v for k, v in leaves.items()}, "g")
    assert [(row.name, row.deep) for row in found.layers] == [
        ("n", False), ("a", True), ("b", True), ("z", True),
    ]  # fmt: skip
    np.testing.assert_allclose(found.layers[1].gradient, [5.0])
    assert found.layers[1].bias is None
    ordered = diagnosis.of_metrics({f"g/norm/{k}": v for k, v in leaves.items()}, "g", order=["z"])
    assert [row.name for row in ordered.layers] == ["z", "n", "a", "b"]


def test_errors(network):
    records = jaxclip.metrics(jax.eval_shape(TX.init, network[1]))
    log = {key: np.ones((2, *record.shape)) for key, record in records.items()}
    with pytest.raises(ValueError, match=r"gradients='raw' .*\['grads', 'updates', 'weights'\]"):
        diagnosis.of_metrics(log, "raw")
    with pytest.raises(ValueError, match="weights='w' recorded nothing"):
        diagnosis.of_metrics(log, weights="w")
    with pytest.raises(ValueError, match=r"updates and the .*lacks \['Dense_1/kernel'\]"):
        diagnosis.of_metrics(_table([1.0, 1.0]) | {"u/norm/Dense_0/kernel": 1.0}, updates="u")
    short = log | {k: v[:1] for k, v in log.items() if k.startswith("weights")}
    with pytest.raises(ValueError, match="weights was recorded in 1 steps, but"):
        diagnosis.of_metrics(short, weights="weights")
    ragged = _table([[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match=r"gradients='grads' .*same steps: .*Dense_1/kernel': 1"):
        diagnosis.of_metrics(ragged)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        diagnosis.of_metrics(_table([np.ones((2, 2))]))
    with pytest.raises(ValueError, match="not empty"):
        diagnosis.of_metrics(_table([[]]))
    with pytest.raises(ValueError, match=r"metrics\[1\] has no 'grads/norm/Dense_1"):
        diagnosis.of_metrics([_table([1.0, 1.0]), _table([1.0])])
    for bad in (3, [3], "text"):
        with pytest.raises(TypeError, match="metrics="):
            diagnosis.of_metrics(bad)
    with pytest.raises(ValueError, match=r"metrics=\[\] has no step"):
        diagnosis.of_metrics([])
    with pytest.raises(ValueError, match="first_step=-1"):
        diagnosis.of_metrics(log, first_step=-1)
    with pytest.raises(ValueError, match="no layer 'x'"):
        diagnosis.of_metrics(log, order=["x"])
    with pytest.raises(TypeError, match=r"traced.*outside of jit"):
        jax.jit(lambda m: diagnosis.of_metrics(m).factor)(log)


def test_explosion_that_ends_in_nan():
    """Over depth, over time and non-finite at once: the worst first."""
    growing = 10.0 ** np.arange(0, 40, 4)
    rows = np.array([100.0, 10.0, 1.0, 0.1])[:, None] * np.append(growing, np.nan)
    found = diagnosis.of_metrics(_table(rows))
    assert [s.partition(":")[0] for s in found.findings] == ["exploding"] * 2
