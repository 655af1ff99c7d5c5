"""A run's history: of two records of a step the later counts, of several runs the last."""

import json

import numpy as np
import pytest

from jaxclip.train.recording import history, metrics_file, strict_json


def write(folder, *objects):
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(o) + "\n" for o in objects)


def run(preset):
    return {"kind": "run", "preset": preset, "seed": 0}


def step(number, loss, **more):
    numbers = {"epoch": number // 2, "step": number, "loss": loss, "grads/norm": 1.0}
    return {"kind": "step"} | numbers | more


def epoch(number, accuracy, steps):
    scores = dict.fromkeys(metrics_file.SCORES, 0.5) | {"test_accuracy": accuracy}
    return {"kind": "epoch", "epoch": number, "steps": steps} | scores


def test_steps_and_epochs_of_one_run(tmp_path):
    write(tmp_path, run("forward"), step(0, 0.5), step(1, 0.25, **{"grads/norm": 2}))
    write(tmp_path, epoch(0, 0.1, 2))
    past = history.read(tmp_path)
    assert past.name == "forward"
    np.testing.assert_array_equal(past.steps, [0, 1])
    assert set(past.telemetry) == {"loss", "grads/norm"}
    np.testing.assert_array_equal(past.loss, [0.5, 0.25])
    np.testing.assert_array_equal(past.telemetry["grads/norm"], [1, 2])
    np.testing.assert_array_equal(past.test_accuracy, [0.1])
    assert past.steps_done == [2]


def test_later_record_of_a_step_counts(tmp_path):
    """A run killed in epoch 1 and resumed after epoch 0 has two records of steps 2 and 3."""
    write(tmp_path, run("explode"), step(0, 1.0), step(1, 2.0), epoch(0, 0.1, 2))
    write(tmp_path, step(2, -1.0), step(3, -1.0), epoch(1, -1.0, 4), {"kind": "resume", "step": 2})
    write(tmp_path, step(2, 3.0), step(3, 4.0), epoch(1, 0.2, 4), step(4, 5.0))
    past = history.read(tmp_path)
    np.testing.assert_array_equal(past.steps, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(past.loss, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(past.test_accuracy, [0.1, 0.2])
    assert past.steps_done == [2, 4]


def test_steps_in_order_with_more_records_after_resuming(tmp_path):
    write(tmp_path, run("explode"), step(0, 1.0), step(2, 9.0), step(4, 9.0))
    write(tmp_path, step(2, 3.0), step(3, 4.0), step(4, 5.0))
    past = history.read(tmp_path)
    np.testing.assert_array_equal(past.steps, [0, 2, 3, 4])
    np.testing.assert_array_equal(past.loss, [1, 3, 4, 5])


def test_last_run_counts(tmp_path):
    write(tmp_path, run("explode"), step(0, 1.0), step(7, 2.0), epoch(0, 0.1, 8), epoch(1, 0.5, 9))
    write(tmp_path, run("forward"), step(0, 3.0), epoch(0, 0.2, 1))
    past = history.read(tmp_path)
    assert (past.name, list(past.loss), list(past.steps)) == ("forward", [3.0], [0])
    np.testing.assert_array_equal(past.test_accuracy, [0.2])


def test_run_without_records(tmp_path):
    write(tmp_path, run("explode"), step(0, 1.0), epoch(0, 0.1, 1), run("forward"))
    past = history.read(tmp_path)
    assert (past.name, past.epochs, past.telemetry, past.steps.size) == ("forward", [], {}, 0)


def test_non_finite_numbers(tmp_path):
    values = [1.5, float("nan"), float("inf"), float("-inf")]
    rows = [strict_json.plain(step(i, v, ok=True)) for i, v in enumerate(values)]
    assert [row["loss"] for row in rows] == [1.5, "NaN", "Infinity", "-Infinity"]
    write(tmp_path, run("explode"), *rows, epoch(0, "NaN", 4))
    past = history.read(tmp_path)
    assert past.loss.dtype == np.float64
    np.testing.assert_array_equal(past.loss, values)
    assert past.telemetry["ok"].dtype == bool
    assert past.first_nonfinite() == 1
    assert np.isnan(past.test_accuracy).all()


def test_first_nonfinite_ignores_skipped_steps(tmp_path):
    flags = [False, True, False]
    rows = (step(i, "NaN" if i else 1, **{"g/skipped": flag}) for i, flag in enumerate(flags))
    write(tmp_path, run("explode"), *rows)
    assert history.read(tmp_path).first_nonfinite() == 2


def test_first_nonfinite_of_every_tenth_step(tmp_path):
    """The result is the number of the step, not its row."""
    write(tmp_path, run("explode"), *(step(10 * i, v) for i, v in enumerate([1.0, "NaN", "NaN"])))
    assert history.read(tmp_path).first_nonfinite() == 10


DAMAGED = [
    b'{"kind": "step", "epoch": 0, "st',
    b"\xff\xfe\x00",
    b"[1, 2]",
    b"7",
    b"[" * 100_000,
    b'{"kind": "stop", "epoch": 0, "step": 1, "loss": 1.0}',
    b'{"kind": "step", "epoch": 0, "step": "1", "loss": 1.0, "grads/norm": 1.0}',
    b'{"kind": "step", "epoch": 0, "step": 1, "lo{s": 1.0, "grads/norm": 1.0}',
    b'{"kind": "step", "epoch": 0, "step": 1, "loss": "x", "grads/norm": 1.0}',
    b'{"kind": "step", "epoch": 0, "step": 1, "loss": null, "grads/norm": 1.0}',
    b'{"kind": "step", "epoch": 0, "step": 1, "loss": true, "grads/norm": 1.0}',
    b'{"kind": "step", "epoch": 0, "step": 1, "loss": 1.0, "grads/norm": [1.0]}',
    b'{"kind": "step", "epoch": 0, "step": 1, "loss": 1.0, "grads/norm": 1.0, "x": 0}',
    b'{"kind": "epoch", "epoch": 0, "steps": 4}',
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_left_out_and_counted(line, tmp_path):
    write(tmp_path, run("explode"), step(0, 1.0), step(2, 2.0), epoch(0, 0.1, 2))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    write(tmp_path, step(3, 3.0), epoch(1, 0.2, 4))
    past = history.read(tmp_path)
    assert past.damaged == 1
    np.testing.assert_array_equal(past.loss, [1, 2, 3])
    np.testing.assert_array_equal(past.test_accuracy, [0.1, 0.2])


def test_a_folder_without_the_file(tmp_path):
    past = history.read(tmp_path)
    assert (past.name, past.epochs, past.steps.size, past.damaged) == ("", [], 0, 0)
