"""Bad values given to learned rules and thresholds: refused at construction, by name and value."""

import re

import optax
import pytest

import jaxclip
from jaxclip import thresholds

NAN = float("nan")
WHOLE = [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ("9", TypeError)]
SHARE = [(-0.1, ValueError), (1.1, ValueError), (NAN, ValueError), (True, TypeError),
         ("x", TypeError), (None, TypeError)]  # fmt: skip
SIZE = [(-1.0, ValueError), (NAN, ValueError), (True, TypeError), ("x", TypeError)]
GROWTH = [(0.5, ValueError), (NAN, ValueError), (float("inf"), ValueError), (1001, ValueError),
          (True, TypeError), ("a", TypeError)]  # fmt: skip
ARGUMENTS = [
    (jaxclip.autoclip, "percentile", [(-1.0, ValueError), (100.5, ValueError), *SHARE[2:]]),
    (jaxclip.autoclip, "window", WHOLE),
    (jaxclip.autoclip, "factor", SIZE),
    (thresholds.quantile, "q", SHARE),
    (lambda **k: thresholds.quantile(0.5, **k), "window", WHOLE),
    (thresholds.tracked_quantile, "q", SHARE),
    (thresholds.tracked_quantile, "eta", SIZE),
    (thresholds.tracked_quantile, "initial", SIZE),
    (jaxclip.clip_by_history, "sigma", SIZE),
    (jaxclip.clip_by_history, "window", WHOLE),
    (jaxclip.clip_by_history, "min_history", [*WHOLE, (129, ValueError)]),
    (jaxclip.clip_by_history, "min_spread", SIZE),
    (jaxclip.zclip, "min_spread", SIZE),
    (lambda **k: jaxclip.skip_spikes(optax.identity(), **k), "min_spread", SIZE),
    (thresholds.zscore, "min_spread", SIZE),
    (thresholds.mean_plus_sigma, "min_spread", SIZE),
    (jaxclip.adagc, "max_ratio", SIZE),
    (jaxclip.adagc, "beta", SHARE),
    (jaxclip.adagc, "warmup_norm", SIZE),
    (jaxclip.adagc, "floor", SIZE),
    (jaxclip.adagc, "warmup_steps", WHOLE[1:]),
    (jaxclip.zclip, "z_threshold", SIZE),
    (jaxclip.zclip, "alpha", SHARE),
    (jaxclip.zclip, "warmup_steps", WHOLE),
    (jaxclip.zclip, "restart_after", WHOLE),
    (jaxclip.zclip, "max_norm", SIZE),
    (jaxclip.zclip, "clip_factor", SIZE),
    (jaxclip.zclip, "mode", [("median", ValueError), (None, (TypeError, ValueError))]),
    (jaxclip.zclip, "skip_update_on_spike", [(1, TypeError), ("yes", TypeError)]),
    (thresholds.zscore, "z_threshold", SIZE),
    (thresholds.ema_ratio, "beta", SHARE),
    (thresholds.mean_plus_sigma, "sigma", SIZE),
    (jaxclip.autoclip, "max_growth", GROWTH),
    (jaxclip.clip_by_history, "max_growth", GROWTH),
    (jaxclip.zclip, "max_growth", GROWTH),
    (jaxclip.adagc, "max_growth", GROWTH),
    (lambda **k: thresholds.quantile(0.5, **k), "max_growth", GROWTH),
    (thresholds.tracked_quantile, "max_growth", GROWTH),
    (thresholds.mean_plus_sigma, "max_growth", GROWTH),
    (thresholds.zscore, "max_growth", GROWTH),
    (thresholds.ema_ratio, "max_growth", GROWTH),
]
NAMED = [jaxclip.autoclip, jaxclip.zclip, jaxclip.adagc, jaxclip.clip_by_history]


@pytest.mark.parametrize(
    ("make", "name", "values"), ARGUMENTS, ids=lambda x: getattr(x, "__name__", None)
)
def test_bad_values(make, name, values):
    for value, error in values:
        with pytest.raises(error, match=re.escape(f"{name}={value!r}")):
            make(**{name: value})


@pytest.mark.parametrize("make", NAMED)
def test_shared_keywords(make):
    """`scope`, `axis_name` and `nonfinite`; `clip_by` with the threshold has the others."""
    for keywords in ({"scope": "layer"}, {"nonfinite": "ignore"}):
        ((name, value),) = keywords.items()
        with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
            make(**keywords)
    for name in ("ord", "axis", "norm_mask", "scale_mask"):
        with pytest.raises(TypeError, match=name):
            make(**{name: None})


def test_keyword_only():
    with pytest.raises(TypeError):
        jaxclip.zclip(2.5)
    with pytest.raises(TypeError):
        jaxclip.adagc(1.05)
    with pytest.raises(TypeError):
        jaxclip.clip_by_history(3.0)
    with pytest.raises(TypeError):
        jaxclip.autoclip(10.0, 100)
    with pytest.raises(TypeError):
        thresholds.mean_plus_sigma(3.0, 128)
    assert thresholds.mean_plus_sigma(3.0)
    assert jaxclip.autoclip(10.0)
