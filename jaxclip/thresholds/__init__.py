"""Thresholds: the largest norm allowed.

Given ones (`constant`, `relative_to_params`), and ones that learn from earlier norms. Each works at
any scope: `jaxclip.clip_by(thresholds.zscore(), scope="leaf")`. `Threshold` says what all learned
ones guarantee.
"""

from jaxclip.thresholds.base import Measured as Measured
from jaxclip.thresholds.base import Threshold as Threshold
from jaxclip.thresholds.fixed import constant as constant
from jaxclip.thresholds.fixed import relative_to_params as relative_to_params
from jaxclip.thresholds.moving_average import zscore as zscore
from jaxclip.thresholds.quantiles import quantile as quantile
from jaxclip.thresholds.quantiles import tracked_quantile as tracked_quantile
from jaxclip.thresholds.ratio import aggc as aggc
from jaxclip.thresholds.ratio import ema_ratio as ema_ratio
from jaxclip.thresholds.window import mean_plus_sigma as mean_plus_sigma

__all__ = [
    "Measured",
    "Threshold",
    "aggc",
    "constant",
    "ema_ratio",
    "mean_plus_sigma",
    "quantile",
    "relative_to_params",
    "tracked_quantile",
    "zscore",
]
