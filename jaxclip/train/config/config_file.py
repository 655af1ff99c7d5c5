"""The file that a run's folder keeps its `Config` in, and that another run can begin from.

JSON, one key a field: what `jaxclip train --config FILE` reads is what an earlier run wrote, or a
few of its lines. What a value means, and whether it is sound, is for `presets`.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from jaxclip.train.config import presets
from jaxclip.train.config.presets import Config
from jaxclip.train.errors import UserError

NAME = "config.json"


def read(file: str | Path, flag: str = "--config") -> dict[str, Any]:
    """Reads the fields of a run from a file, any number of them.

    Args:
      file: the path.
      flag: what the user gave it with, for the errors.

    Returns:
      Values by field, `preset` among them where the file names it.

    Raises:
      UserError: if the file cannot be read, or holds anything but fields of the right types.
    """
    try:
        content = json.loads(Path(file).expanduser().read_text())
    except OSError as error:
        raise UserError(f"{flag}={file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{flag}={file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{flag}={file}: not a JSON object of fields and values")
    kinds = {field.name: field.type for field in presets.fields()}
    for key, value in content.items():
        if key not in kinds:
            raise UserError(f"{flag}={file}: unknown field {key!r}, choose from {', '.join(kinds)}")
        if not _fits(value, kinds[key]):
            raise UserError(f"{flag}={file}: {key}={value!r} must be {_described(kinds[key])}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}


def config(file: str | Path, flag: str = "--config") -> Config:
    """Reads a whole run: the preset that the file names, with the file's other fields."""
    values = read(file, flag)
    if "preset" not in values:
        raise UserError(f"{flag}={file}: names no preset, and none was given")
    name = values.pop("preset")
    return dataclasses.replace(presets.get(name), **values)


def _fits(value: Any, kind: Any) -> bool:
    """Returns whether a JSON value is of a field's type."""
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list) and all(_fits(v, typing.get_args(kind)[0]) for v in value)
    if kind is float:
        return type(value) is float or (type(value) is int and abs(value) < 2**1023)
    return type(value) is kind


def _described(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_described(one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list, each item {_described(typing.get_args(kind)[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return words.get(kind, "null")
