"""JSON without NaN and Infinity, which the standard does not have.

Numbers that are not finite are written as the strings "NaN", "Infinity" and "-Infinity".
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxclip.train.recording import files

_NOT_FINITE = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}


def plain(value: Any) -> Any:
    """Returns `value` as strict JSON can hold it: arrays as lists, non-finite numbers as words."""
    if type(value) is float:  # most values are floats
        if math.isfinite(value):
            return float(f"{value:.9g}")  # nine digits tell any two float32 apart
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def line(value: Any) -> str:
    """Returns `value` as one line of JSON."""
    return json.dumps(plain(value), allow_nan=False) + "\n"


def number(value: Any) -> Any:
    """Returns the number that one of the words of `plain` stands for, other values unchanged."""
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def write(path: Path, content: Any, *, exact: bool = False) -> None:
    """Writes a JSON file atomically.

    Args:
      path: the file.
      content: the value to write.
      exact: keep every digit; `content` must be strict JSON already.
    """
    content = content if exact else plain(content)
    files.replace(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
