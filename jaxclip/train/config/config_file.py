"""`config.json`: a run's `Config` as JSON, one key a field, read again by `--config FILE`.

A file may hold any of the fields. `presets` checks the values.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from jaxclip.train.config import presets
from jaxclip.train.config.presets import Config
from jaxclip.train.errors import UserError, user_path

NAME = "config.json"


def config(file: str | Path, flag: str = "--config", preset: str | None = None) -> Config:
    """Reads a run: `preset`, or the preset that the file names, with the file's other fields.

    Args:
      file: the path.
      flag: the flag that named the file, for errors.
      preset: the preset that the user named.

    Raises:
      UserError: if the file cannot be read, or holds an unknown field or a wrong type.
    """
    try:
        content = json.loads(user_path(file, flag).read_text())
    except OSError as error:
        raise UserError(f"{flag}={file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{flag}={file}: not JSON ({error})") from None
    return of_fields(content, f"{flag}={file}", preset)


def of_fields(content: Any, source: str, preset: str | None = None) -> Config:
    """Returns the run with the fields of a JSON object, which `source` names in errors."""
    if not isinstance(content, dict):
        raise UserError(f"{source}: not a JSON object of fields and values")
    kinds = {field.name: field.type for field in presets.fields()}
    for key, value in content.items():
        if key not in kinds:
            raise UserError(f"{source}: unknown field {key!r}, choose from {', '.join(kinds)}")
        if not _has_type(value, kinds[key]):
            raise UserError(f"{source}: {key}={value!r} must be {_described(kinds[key])}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    name = values.pop("preset", preset)
    if name is None:
        raise UserError(f"{source}: names no preset, and none was given")
    if preset not in (None, name):
        raise UserError(f"{source}: names the preset {name}, not {preset}")
    return dataclasses.replace(presets.get(name), **values)


def _has_type(value: Any, kind: Any) -> bool:
    """Returns whether a JSON value has a field's type."""
    if isinstance(kind, types.UnionType):
        return any(_has_type(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return isinstance(value, list) and all(_has_type(v, item) for v in value)
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
