"""Learned thresholds against their references, step by step, over a thousand updates.

In float32 the references differ by the rounding of a thousand steps; in float64, with x64, by
almost nothing, which shows that the formulas are the same. Windows are shorter than the run, so
that they come around many times. Norms that are zero or not finite are among the updates from the
first: the references leave them out.
"""

import functools

import jax.numpy as jnp
import pytest

import jaxclip
from jaxclip import thresholds
from tests.support import learned, modes
from tests.support import oracles_learned as ol
from tests.support.learned import Case

UNIT = {"scope": "unit", "axis": -1}


def _autoclip(percentile, **k):
    return Case(
        jaxclip.autoclip(percentile, **k), lambda: ol.Quantile(percentile / 100, **k), "global"
    )


SCOPES = {"unit": {"axis": -1}, "group": {"groups": learned.GROUPS}}


def _case(threshold, oracle, scope, **keywords):
    """A threshold at a scope that no named rule gives it."""
    bound = "set" if keywords.get("low") else "hard"
    more = SCOPES.get(scope, {})
    rule = jaxclip.clip_by(threshold(**keywords), scope=scope, bound=bound, **more)
    return Case(rule, lambda: oracle(**keywords), scope)


def _zclip(**k):
    return Case(jaxclip.zclip(**k), lambda: ol.ZScore(**k), "global")


def _quantiles():
    case = functools.partial(_case, thresholds.quantile, ol.Quantile)
    named = {f"autoclip {p}": _autoclip(p, window=90) for p in (99.5, 0)}
    return {
        "leaf": case("leaf", q=0.9, window=70, factor=0.75),
        "unit": case("unit", q=0.5, window=33),
        "the largest": _autoclip(100, window=90)._replace(clips=False),
        **named,
        "part of the largest": _autoclip(100, window=60, factor=0.8),
        "group": case("group", q=0.8, window=50),
        "twice the median": _autoclip(50, window=100, factor=2.0),
        "half of the last one": _autoclip(30, window=1, factor=0.5),
        "named, leaf": Case(
            jaxclip.autoclip(25, window=64, scope="leaf"), lambda: ol.Quantile(0.25, 64), "leaf"
        ),
    }


def _tracked_quantiles():
    case = functools.partial(_case, thresholds.tracked_quantile, ol.TrackedQuantile)
    return {
        "global": case("global"),
        "leaf": case("leaf", q=0.9, eta=0.05),
        "group": case("group", q=0.7),
        "unit": case("unit", q=0.25, eta=0.5, initial=2.0),
    }


def _zscores():
    named = {
        f"{mode} skip={skip}": _zclip(mode=mode, skip_update_on_spike=skip, max_norm=30.0)
        for mode, skip in [("mean", True), ("reciprocal", False), ("max", True)]
    }
    more = {"z_threshold": 2.0, "alpha": 0.9, "warmup_steps": 40, "eps": 0.01}
    leaf = {"mode": "max", "restart_after": 7, "max_norm": 3.0}
    return {
        "leaf": Case(jaxclip.zclip(scope="leaf", **leaf), lambda: ol.ZScore(**leaf), "leaf"),
        "unit": Case(
            jaxclip.clip_by(thresholds.zscore(max_norm=None), **UNIT),
            lambda: ol.ZScore(max_norm=None, added=0.0),
            "unit",
        ),
        "group": Case(
            jaxclip.zclip(scope="group", groups=learned.GROUPS, **leaf),
            lambda: ol.ZScore(**leaf),
            "group",
        ),
        "restart": _zclip(restart_after=5, max_norm=None),
        "other numbers": _zclip(**more, clip_factor=0.7, max_norm=None),
        **named,
        "defaults": _zclip(),
        "clip_factor above 1": _zclip(clip_factor=1.5, mode="max", max_norm=None),
        "published": _zclip(min_spread=0.0, max_norm=None, mode="max"),
        "wide spread": _zclip(min_spread=1.5, max_norm=None),
        "restart after one": _zclip(restart_after=1, max_norm=None, warmup_steps=3),
        "no restart": _zclip(restart_after=None, max_norm=None, skip_update_on_spike=True),
    }


def _ema_ratios():
    case = functools.partial(_case, thresholds.ema_ratio, ol.EmaRatio)
    fast = {"max_ratio": 1.5, "beta": 0.9, "warmup_steps": 30, "warmup_norm": 5.0}
    return {
        "adagc": Case(jaxclip.adagc(), ol.EmaRatio, "leaf"),
        "leaf": case("leaf", **fast, floor=0.5),
        "global": case("global", **fast),
        "unit": case("unit", max_ratio=1.2, warmup_steps=60, warmup_norm=2.0),
        "no warm-up": case("leaf", warmup_steps=0, max_ratio=1.1),
        "group": case("group", **fast),
    }


def _bands():
    case = functools.partial(_case, thresholds.aggc, ol.Aggc)
    return {
        "groups": case("group", high=1.5, low=0.7),
        "high": case("leaf", high=1.2),
        "unit": case("unit", high=2.0, low=0.9, beta=0.5),
        "schedule": Case(
            jaxclip.clip_by(
                thresholds.aggc(lambda t: jnp.where(t > 400, 2.5, 1.5), beta=0.9), scope="global"
            ),
            lambda: ol.Aggc(lambda t: 1.5 + (t > 400), beta=0.9),
        ),
    }


def _growths():
    def growth(most, scope, **more):
        rule = jaxclip.clip_by_growth(most, scope=scope, **more)
        return Case(rule, lambda: ol.Growth(most), scope)

    return {
        "leaf": growth(1.01, "leaf"),
        "global": growth(1.2, "global"),
        "group": growth(1.5, "group", groups=learned.GROUPS),
    }


def _means():
    def history(sigma, window, need, **k):
        rule = jaxclip.clip_by_history(sigma=sigma, window=window, min_history=need, **k)
        spread, scope = k.get("min_spread", 1e-3), k.get("scope", "global")
        return Case(rule, lambda: ol.MeanPlusSigma(sigma, window, need, spread), scope)

    case = functools.partial(_case, thresholds.mean_plus_sigma, ol.MeanPlusSigma)
    return {
        "defaults": history(3.0, 128, 64),
        "0 sigma": history(0.0, 20, 20),
        "one earlier": history(2.0, 50, 1),
        "named, leaf": history(1.5, 16, 2, scope="leaf"),
        "unit": case("unit", sigma=1.0, window=40, min_history=10),
        "group": history(2.0, 30, 3, scope="group", groups=learned.GROUPS),
        "published": history(0.0, 20, 5, min_spread=0.0),
        "wide spread": history(1.0, 30, 5, min_spread=0.4),
    }


def _stabilizers():
    def stabilizer(scope, **k):
        rule = jaxclip.stabilize_gradient(scope=scope, **SCOPES.get(scope, {}), **k)
        return Case(rule, lambda: ol.Stabilizer(**k), scope)

    return {
        "leaf": stabilizer("leaf"),
        "global": stabilizer("global", beta1=0.9, beta2=0.999, eps=0.01),
        "group": stabilizer("group", beta1=0.0, beta2=0.5),
    }


RULES = {
    "quantile": _quantiles, "tracked_quantile": _tracked_quantiles, "zscore": _zscores,
    "ema_ratio": _ema_ratios, "mean_plus_sigma": _means, "aggc": _bands, "growth": _growths,
    "stabilizer": _stabilizers,
}  # fmt: skip
# The tolerance for a thousand steps in float32. Percentiles: almost nothing. Averages: the rounding
# of some tens of steps, which is as long as they remember. A product of a thousand factors: a
# rounding for each.
ROUNDING = {
    "quantile": 1e-5, "tracked_quantile": 2e-5, "zscore": 2e-5, "ema_ratio": 1e-5,
    "mean_plus_sigma": 1e-5, "aggc": 1e-5, "growth": 2e-4, "stabilizer": 1e-5,
}  # fmt: skip


IN_EVERY_RUN = ("zscore", "ema_ratio")  # with one case


def _cases(name, *part):
    return dict(list(RULES[name]().items())[slice(*part)])


@pytest.mark.parametrize("name", IN_EVERY_RUN)
def test_float32(name):
    learned.check_all(_cases(name, 1), "float32", ROUNDING[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_more_in_float32(name):
    start = 1 if name in IN_EVERY_RUN else 0
    learned.check_all(_cases(name, start, None), "float32", ROUNDING[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_float64(name):
    """Every fourth case: a formula that is wrong in another one is wrong in float32 as well."""
    with modes.x64():
        learned.check_all(_cases(name, None, None, 4), "float64", 1e-9)
