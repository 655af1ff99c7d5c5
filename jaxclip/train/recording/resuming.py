"""Whether the run in a folder can be resumed, and with which settings."""

import contextlib
import re
from pathlib import Path
from typing import Any

from jaxclip.train.config import config_file, presets
from jaxclip.train.config.presets import Config
from jaxclip.train.errors import UserError, user_path
from jaxclip.train.recording import manifest

FOLDER = "checkpoints"
_NAME = re.compile(r"(\d+)(?:\+(\d+))?")
# A resumed run may change these fields: reports, length and devices, but nothing that it computes.
_MAY_CHANGE = (
    *("dataset", "epochs", "log_every", "checkpoint_every", "report", "allow_nonfinite"),
    "parallel",
)


def names(folder: Path) -> list[str]:
    """Returns the names of the checkpoints in a run's folder, the oldest first."""
    found: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(OSError):
        for path in (folder / FOLDER).iterdir():
            if match := _NAME.fullmatch(path.name):
                found[path.name] = int(match[1]), int(match[2] or 0)
    return sorted(found, key=lambda name: found[name])


def saved_config(folder: str, flag: str) -> Config:
    """Returns the settings of the run in a folder.

    They are in `config.json`, and in every checkpoint for the case that this file is damaged.

    Args:
      folder: the run's output folder.
      flag: the flag that named it, for errors.

    Raises:
      UserError: if there is no run.
    """
    path = user_path(folder, flag)
    try:
        return config_file.config(path / config_file.NAME, flag)
    except UserError as error:
        for name in reversed(names(path)):
            with contextlib.suppress(manifest.DamagedError):
                content = manifest.read(path / FOLDER / name)
                return config_file.of_fields(content["config"], f"{flag}={folder}")
        if not has_run(folder, flag):
            raise UserError(f"{flag}: no run in {folder}") from None
        raise error


def has_run(folder: str, flag: str = "--resume") -> bool:
    """Returns whether a folder holds the settings of a run, or its checkpoints."""
    path = user_path(folder, flag)
    return (path / config_file.NAME).exists() or bool(names(path))


def check(folder: str, config: Config) -> Config:
    """Checks that the run in a folder, if there is one, can be resumed with `config`.

    Returns:
      `config` with the data set that the run was trained on.

    Raises:
      UserError: if the run in the folder computed something else.
    """
    if not has_run(folder):
        return config
    saved = saved_config(folder, "--resume")
    config = presets.on(config, saved.dataset)
    if text := difference(saved, config):
        raise UserError(f"--resume: the run in {folder} has {text}")
    return config


def difference(saved: Config, config: Config) -> str | None:
    """Describes the first field in which two runs compute something else."""
    for field in presets.fields():
        if _differs(field.name, saved, config):
            was, given = (_shown(getattr(c, field.name)) for c in (saved, config))
            return f"{presets.flag(field.name)}={was}, not {given}"
    return None


def _differs(field: str, saved: Config, config: Config) -> bool:
    if field == "epochs" and config.schedule != "constant" and config.decay_steps is None:
        return saved.epochs != config.epochs  # the schedule depends on the run's length
    if field == "dataset" and None not in (saved.dataset, config.dataset):
        return saved.dataset != config.dataset
    return field not in _MAY_CHANGE and getattr(saved, field) != getattr(config, field)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
