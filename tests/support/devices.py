"""What docs/devices.md has: its code, run, and float64 NumPy that shares nothing with it."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
MARKS = [
    pytest.mark.relaxed,  # as in a user's session
    pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not beside the tests"),
]
DEVICES, LIMIT, RATE, MOMENTUM = 8, 1.0, 0.5, 0.9


def code():
    """The first block of the page, and every other one by the heading above it."""
    text = PAGE.read_text() if PAGE.exists() else ""
    found = re.findall(r"^(##+ [^\n]+)\n|```python\n(.*?)```", text, flags=re.DOTALL | re.MULTILINE)
    blocks, heading = [], None
    for title, code in found:
        heading = title.lstrip("# ") or heading
        if code:
            blocks.append((heading, code))
    return (blocks[0][1], dict(blocks[1:])) if blocks else ("", {})


PREAMBLE, WAYS = code()


def run(*code):
    names = {}
    for block in code:
        exec(compile(block, "docs/devices.md", "exec"), names)
    return names


def gradient(w, b, x, y):
    error = 2 * (x @ w + b - y) / y.size
    return x.T @ error, error.sum(0)


def clipped(gradients, limit):
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    return [g * min(1.0, limit / norm) for g in gradients], norm


def columns(w):
    return np.sqrt((w**2).sum(0))


def data(names):
    arrays = (names["start"]["w"], names["start"]["b"], names["x"], names["y"])
    return [np.asarray(a, np.float64) for a in arrays]


def trained(w, b, x, y):
    """Parameters after six steps, and the norms of the gradients."""
    velocity, norms = [np.zeros_like(w), np.zeros_like(b)], []
    for _ in range(6):
        gradients, norm = clipped(gradient(w, b, x, y), LIMIT)
        norms.append(norm)
        velocity = [MOMENTUM * v + g for v, g in zip(velocity, gradients, strict=True)]
        w, b = w - RATE * velocity[0], b - RATE * velocity[1]
    return {"w": w, "b": b}, norms


def trained_by_units(w, b, x, y):
    """The same, and how many columns were clipped and projected."""
    clipped = projected = 0
    for _ in range(6):
        gw, gb = gradient(w, b, x, y)
        limit, norm = 0.3 * np.maximum(columns(w), 1e-3), columns(gw)
        w, b = w - RATE * gw * np.minimum(1, limit / norm), b - RATE * gb
        clipped, projected = clipped + (norm > limit).sum(), projected + (columns(w) > 2).sum()
        w = w * np.minimum(1, 2.0 / columns(w))
    return {"w": w, "b": b}, clipped, projected


def close(got, want):
    for key, value in want.items():
        stacked = np.broadcast_to(value, got[key].shape)  # every copy, where there are several
        np.testing.assert_allclose(got[key], stacked, rtol=2e-5, atol=2e-6, err_msg=key)


def mesh():
    """Eight devices along one axis, `data`."""
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
