"""Metrics by key: the three forms agree; numbers of steps; names of rules and monitors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip.plot.log import Log
from tests.plot.logs import values, write

NAN, INF = float("nan"), float("inf")


def test_all_forms_are_one(tmp_path):
    """Of a scan, of a loop, and of its lines in a file."""
    tx = jaxclip.clip_by_global_norm(2.0)

    def step(state, scale):
        _, state = tx.update({"w": scale * jnp.ones(4)}, state)
        return state, jaxclip.metrics(state)

    scales = jnp.array([0.5, 2.0, 3.0])
    _, stacked = jax.lax.scan(step, tx.init({"w": jnp.ones(4)}), scales)
    state, rows = tx.init({"w": jnp.ones(4)}), []
    for scale in scales:
        state, row = step(state, scale)
        rows.append(row)
    file = write(tmp_path / "log.jsonl", *map(jaxclip.to_floats, rows))
    one, *others = (Log(form) for form in (stacked, rows, file, str(file)))
    assert values(stacked, "clip_by_global_norm/norm") == [(0, 1), (1, 4), (2, 6)]
    for other in others:
        assert set(other.keys) == set(one.keys)
        for key in one.keys:
            np.testing.assert_array_equal(other.series(key), one.series(key))
    assert Log(one).keys == one.keys


@pytest.mark.parametrize(
    ("metrics", "steps"),
    [
        ([{"x": 1.0}] * 3, [0, 1, 2]),
        ({"x": [1.0, 1.0]}, [0, 1]),
        ([{"x": [1.0, 1.0]}, {"x": 1.0}, {"x": jnp.ones(2)}], [0, 1, 2, 3, 4]),
        ([{"step": 5, "x": 1}, {"step": 3, "x": 1}], [3, 5]),
        ([{"_step": 5, "x": 1}, {"global_step": 7, "x": 1}], [5, 7]),
        ([{"a/count": 1, "x": 1}, {"a/count": 4, "b/count": 11, "x": 1}], [0, 10]),
        ({"step": [2, 4, 6], "a/count": [1, 2, 3], "x": 1.0}, [2, 4, 6]),
        ([{"y": 1.0}, {"x": 1.0}], [1]),
        ([{"a/count": math.inf, "x": 1.0}, {"a/count": math.nan, "b/count": 5, "x": 1.0}], [0, 4]),
        ([{"step": None, "x": 1.0}, {"step": 1e300, "global_step": 4, "x": 1.0}], [0, 4]),
        ([], []),
    ],
)
def test_numbers_of_steps(metrics, steps):
    assert Log(metrics).series("x").steps.tolist() == steps


def test_the_later_record_of_a_step_counts():
    log = [{"step": i, "x": x} for i, x in ((0, 1.0), (1, 2.0), (2, 9.0), (1, 3.0))]
    assert values(log, "x") == [(0, 1), (1, 3), (2, 9)]


def test_values_of_every_kind():
    kinds = [True, 2, 1.5, "Infinity", "-Infinity", jnp.bfloat16(0.5), np.float16(4), "word"]
    assert values([{"x": x} for x in kinds], "x") == [
        (0, 1), (1, 2), (2, 1.5), (3, INF), (4, -INF), (5, 0.5), (6, 4)
    ]  # fmt: skip
    for odd in (None, "NaN", NAN):
        assert math.isnan(values([{"x": odd}], "x")[0][1])
    assert values({"x": "some", "y": [1.0]}, "x") == []


def test_rows_join_the_entries_of_a_step():
    log = Log([{"step": 4, "a": 1, "b": 2}, {"step": 2, "a": 0.5}, {"step": 4, "a": 3, "c": 5}])
    assert log.rows() == {4.0: {"step": 4, "a": 3, "b": 2, "c": 5}, 2.0: {"step": 2, "a": 0.5}}
    assert list(Log([{"step": 0.5}, {"step": 0.75}]).rows()) == [0.5, 0.75]


@pytest.mark.parametrize(
    ("metrics", "error", "words"),
    [
        (3, TypeError, "metrics=3 must be a dict, a list of dicts or a path"),
        ([3], TypeError, r"metrics=\[3\] must be a dict"),
        ({"x": np.ones((2, 2))}, ValueError, r"'x' has shape \(2, 2\), but must be \(\) or"),
        (
            [{"x": [1, 2], "y": [1, 2, 3]}],
            ValueError,
            r"metrics\[0\] has arrays of dif.*2, 3",
        ),
    ],
)
def test_errors(metrics, error, words):
    with pytest.raises(error, match=words):
        Log(metrics)


def test_order_of_the_keys_stays():
    log = Log([{"g/norm/out/w": 1.0, "g/norm/in/w": jnp.ones(())}, {"a": 1}])
    assert log.keys == ["g/norm/out/w", "g/norm/in/w", "a"]
    assert [layer.name for layer in log.layers(gradient="g")[1]] == ["out", "in"]


def test_names_in_a_log():
    keys = ["b/norm/x/fraction", "b/norm", "p/fraction", "p/norm", "p/threshold", "a/threshold"]
    keys += ["l/project_max_norm/norm", "l/project_max_norm/threshold", "z/norm", "z/threshold"]
    keys += ["z/norm/body", "z/scale/fraction"]  # of groups
    log = Log(dict.fromkeys(keys, 1.0))
    assert log.ending("/fraction") == ["p"]
    assert log.rules() == ["p", "z", "l/project_max_norm"]
    assert log.monitors() == ["b"]


def test_layers_of_two_monitors_in_the_steps_of_both():
    steps = [
        {"step": i, "g/norm/1/w": 2.0 + i, "g/norm/1/b": 0.0, "g/norm/0/w": 1.0} for i in range(4)
    ]
    weights = {f"w/norm/{leaf}": 10.0 for leaf in ("0/w", "1/w", "1/b")}
    log = Log([row | (weights if row["step"] % 2 else {}) for row in steps])
    found, layers = log.layers(gradient="g", weight="w", update="g")
    assert found.tolist() == [1, 3]
    assert [layer.name for layer in layers] == ["0", "1"]
    np.testing.assert_allclose(layers[1].gradient, [3, 5])
    np.testing.assert_allclose(layers[1].ratio, np.array([3, 5]) / np.hypot(10, 10))
    for monitor, words in (("x", "monitor='x': no norms of layers; found"), ("h", "monitor='h'")):
        with pytest.raises(ValueError, match=words):
            Log([row | {"h/norm/2/w": 1.0} for row in steps]).layers(gradient="g", weight=monitor)
