"""`config.json`: a run's `Config` as JSON, one key a field, read again by `--config FILE`.

A file may hold any of the fields. `presets` checks the values.
"""

import collections
import dataclasses
import errno
import json
import reprlib
import stat
import types
import typing
from pathlib import Path
from typing import Any

from jaxclip.train.config import presets
from jaxclip.train.config.presets import Config
from jaxclip.train.errors import UserError, user_path
from jaxclip.train.words import choose

NAME = "config.json"
_MAX_BYTES = 1 << 20
_MAX_DIGITS = 300  # of a whole number; a float has no more
_short = reprlib.repr  # long values are cut in the middle


def config(file: str | Path, flag: str = "--config", preset: str | None = None) -> Config:
    """Reads a run: `preset`, or the preset that the file names, with the file's other fields.

    Args:
      file: the path.
      flag: the flag that named the file, for errors.
      preset: the preset that the user named.

    Raises:
      UserError: if the file cannot be read, or holds an unknown field or a wrong type.
    """
    path, source = user_path(file, flag), f"{flag}={file}"

    def fields_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in collections.Counter(key for key, _ in pairs).items():
            if count > 1:
                raise UserError(f"{source}: {_short(key)} is given twice")
        return dict(pairs)

    try:
        text = _read(path).decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=fields_of, parse_int=_whole)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply for settings") from None
    except ValueError as error:
        raise UserError(f"{source}: not JSON ({error})") from None
    return of_fields(content, source, preset)


def _read(path: Path) -> bytes:
    """Reads a file; a pipe, a device or a large file never ends, or fills the memory."""
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "not a file, but a pipe or a device")
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"more than {_MAX_BYTES:,} bytes, too many for settings")
    return content


def _whole(text: str) -> float:
    """Reads a whole number; Python refuses the longest ones, which then count as infinite."""
    return int(text) if len(text) < _MAX_DIGITS else float(text)


def of_fields(content: Any, source: str, preset: str | None = None) -> Config:
    """Returns the run with the fields of a JSON object, which `source` names in errors."""
    if not isinstance(content, dict):
        raise UserError(f"{source}: not a JSON object of fields and values")
    kinds = {field.name: field.type for field in presets.fields()}
    for key, value in content.items():
        if key not in kinds:
            raise UserError(f"{source}: unknown field {_short(key)}, {choose(key[:99], kinds)}")
        if not _has_type(value, kinds[key]):
            raise UserError(f"{source}: {key}={_short(value)} must be {_described(kinds[key])}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    name = values.pop("preset", preset)
    if name is None:
        raise UserError(f"{source}: names no preset, and none was given")
    if preset not in (None, name):
        raise UserError(f"{source}: names the preset {_short(name)[1:-1]}, not {preset}")
    return dataclasses.replace(presets.get(name), **values)


def _has_type(value: Any, kind: Any) -> bool:
    """Returns whether a JSON value has a field's type."""
    if isinstance(kind, types.UnionType):
        return any(_has_type(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return isinstance(value, list) and all(_has_type(v, item) for v in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _described(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_described(one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list, each item {_described(typing.get_args(kind)[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return words.get(kind, "null")
