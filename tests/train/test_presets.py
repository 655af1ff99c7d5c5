"""The presets teach: two sentences each, and figures on the digits that show what they say."""

import re

import numpy as np
import pytest

from jaxclip.train.config import presets
from jaxclip.train.training import loop, tensor_norms


def test_each_preset_says_in_two_sentences_what_is_to_be_seen():
    assert list(presets.LESSONS) == list(presets.SUMMARIES) == list(presets.PRESETS)
    for lesson in presets.LESSONS.values():
        assert len(re.findall(r"[.](?= [A-Z]|$)", lesson)) == 2
        assert lesson.endswith(".")


def test_flags_in_the_lessons_exist():
    flags = {presets.flag(field.name) for field in presets.fields()}
    for lesson in presets.LESSONS.values():
        assert set(re.findall(r"--[a-z-]+", lesson)) <= flags


def test_values_that_depend_on_the_data_set():
    plain = presets.get("explode")
    assert (plain.learning_rate, plain.dataset) == (0.1, None)
    digits = presets.get("explode", "digits")
    assert (digits.learning_rate, digits.dataset) == (1.0, "digits")
    assert presets.on(plain, "digits") == digits
    assert presets.on(plain, None) == plain
    assert presets.on(plain, "mnist") == plain.override({"dataset": "mnist"})
    assert presets.on(digits, "mnist") == digits
    for rate in (0.1, 0.3):  # a data set that is named: the rate is the user's
        chosen = digits.override({"learning_rate": rate})
        assert presets.on(chosen, "digits") == chosen
    assert presets.on(plain.override({"learning_rate": 0.3}), "digits").learning_rate == 0.3
    other = presets.get("forward")
    assert presets.on(other, "digits") == other.override({"dataset": "digits"})


def last_epoch(preset, data, **changes):
    config = presets.get(preset, data.key).override(changes)
    first, *_, last = loop.train(loop.prepare(config, data), data)
    return first.telemetry, last


@pytest.mark.slow
def test_explode_on_the_digits(digits):
    """The second gradient is above the limit; the run learns with clipping, and not without."""
    first, clipped = last_epoch("explode", digits, epochs=20)
    assert first["grads/norm"][0] < 15 < 20 < first["grads/norm"][1]
    assert first["clipped/norm"][1] == pytest.approx(15, rel=1e-5)
    assert clipped.test_accuracy > 0.85
    _, wild = last_epoch("explode", digits, epochs=20, clip=(), allow_nonfinite=True)
    assert wild.test_accuracy < 0.2


@pytest.mark.slow
def test_vanish_on_the_digits(digits):
    first, last = last_epoch("vanish", digits)
    kernels = [name for name in tensor_norms.names(first) if name.endswith("/kernel")]
    norms = np.median(tensor_norms.norms(first, "grads", kernels), axis=0)
    assert len(norms) == 9
    falls = (norms[0] / norms[-1]) ** (1 / 8)
    assert 1 / 5 < falls < 1 / 3
    assert last.test_accuracy < 0.2
    first, cured = last_epoch("vanish", digits, activation="relu", init="he")
    assert cured.test_accuracy > 0.8
    norms = np.median(tensor_norms.norms(first, "grads", kernels), axis=0)
    assert 1 / 1.3 < (norms[0] / norms[-1]) ** (1 / 8) < 1.3
