"""The manifest of a checkpoint: position, config, SHA-256 of every array, every file and itself.

It is written last, so a checkpoint without one is not whole.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclip.train.recording import files

NAME = "manifest.json"


class DamagedError(Exception):
    """A checkpoint is not as it was written; the message names the file or array."""


def array_sums(arrays: Mapping[str, jax.Array]) -> dict[str, dict[str, Any]]:
    """Returns shape, dtype and SHA-256 of arrays.

    The sum is None for an array of which other processes hold a part; its files have sums too.
    """
    return {
        name: {"shape": list(x.shape), "dtype": str(x.dtype), "sha256": _array_sum(x)}
        for name, x in arrays.items()
    }


def _array_sum(x: jax.Array | np.ndarray) -> str | None:
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return None
    return _sum(np.ascontiguousarray(x).tobytes())


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest of a checkpoint whose other files are there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder)): _sum(path.read_bytes()) for path in paths}
    whole = dict(content) | {"files": sums}
    text = json.dumps({"sha256": _content_sum(whole)} | whole, indent=1)
    files.replace(folder / NAME, text.encode())


def _content_sum(content: Mapping[str, Any]) -> str:
    return _sum(json.dumps(content, sort_keys=True).encode())


def read(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint.

    Raises:
      DamagedError: if it is missing or not as it was written.
    """
    try:
        content = json.loads((folder / NAME).read_bytes())
        if content.pop("sha256") == _content_sum(content):
            return content
    except OSError as error:
        raise DamagedError(f"{NAME}: {error.strerror}") from None
    except Exception:  # JSON of another form, or no JSON
        pass
    raise DamagedError(f"{NAME}: SHA-256 differs")


def check_files(folder: Path, content: Mapping[str, Any]) -> None:
    """Raises `DamagedError` if a file is missing or not as it was written."""
    for name, expected in content["files"].items():
        try:
            is_same = _sum((folder / name).read_bytes()) == expected
        except OSError as error:
            raise DamagedError(f"{name}: {error.strerror}") from None
        if not is_same:
            raise DamagedError(f"{name}: SHA-256 differs")


def check_arrays(arrays: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> None:
    """Raises `DamagedError` if an array is not as it was saved."""
    for name, expected in content["arrays"].items():
        if expected["sha256"] not in (None, _array_sum(arrays[name])):
            raise DamagedError(f"{name}: SHA-256 differs")
