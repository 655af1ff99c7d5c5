"""Lines at the terminal: numbers, and the flag for a rule that a finding recommends."""

import numpy as np
import pytest

from jaxclip import diagnosis
from jaxclip.train.reporting import terminal


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.08114, "0.0811"), (18.0234, "18.02"), (99999.0, "99999"), (100000.0, "1.000e+05"),
        (5.1620985e21, "5.162e+21"), (-302564.0, "-3.026e+05"), (0.00012, "1.20e-04"),
        (0.0, "0.0000"), (np.inf, "inf"), (np.nan, "nan"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert terminal.number(value) == text


def test_recommended_rule_as_a_flag():
    """A finding with a bound gets its flag; every other sentence stays as it is."""
    norms = 2.0 * 10.0 ** np.arange(20)
    norms[10:] = np.nan
    log = {f"grads/norm/layers/{i}/kernel": norms for i in range(3)}
    found = diagnosis.of_metrics(log)
    assert "jaxclip.clip_by_global_norm(3)" in found.findings[0]
    assert terminal.as_flag(found.findings[0]).endswith("rate. Here: --clip global_norm=3")
    for other in ("updates: far", "exploding: jaxclip.clip_by_global_norm bounds the step; (1)."):
        assert terminal.as_flag(other) == other
