"""Thresholds: how large a norm may be.

Given ones (`constant`, `relative_to_params`) and ones that learn from the norms seen so far. Any of
them goes with any scope: `jaxclip.clip_by(thresholds.zscore(), scope="leaf")`. What the learned
ones have in common is told in `jaxclip.thresholds.Threshold`.
"""

from jaxclip.thresholds._averages import ema_ratio as ema_ratio
from jaxclip.thresholds._averages import zscore as zscore
from jaxclip.thresholds._base import Measured as Measured
from jaxclip.thresholds._base import Threshold as Threshold
from jaxclip.thresholds._given import constant as constant
from jaxclip.thresholds._given import relative_to_params as relative_to_params
from jaxclip.thresholds._history import mean_plus_sigma as mean_plus_sigma
from jaxclip.thresholds._quantiles import quantile as quantile
from jaxclip.thresholds._quantiles import tracked_quantile as tracked_quantile

__all__ = [
    "Measured",
    "Threshold",
    "constant",
    "ema_ratio",
    "mean_plus_sigma",
    "quantile",
    "relative_to_params",
    "tracked_quantile",
    "zscore",
]
