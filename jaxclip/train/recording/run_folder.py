"""A run's output folder: created and checked, and cleared of an earlier run."""

import itertools
from pathlib import Path

from jaxclip.train.errors import UserError

_FILES_OF_A_RUN = (
    *("config.json", "summary.json", "checkpoints", "tensorboard", "compare.json"),
    *("run.png", "layers.png", "weights.png", "compare.png"),
)


def create(out: str) -> Path:
    """Creates the folder if it is missing.

    Raises:
      UserError: if it is not writable.
    """
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").open("a").close()
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written to ({error.strerror})") from None
    return folder


def set_aside(folder: Path) -> Path | None:
    """Moves the files of an earlier run into a new folder `earlier-N` below `folder`.

    `metrics.jsonl` stays: the new run appends to it.

    Returns:
      The new folder, None if there was no earlier run.
    """
    files = [folder / name for name in _FILES_OF_A_RUN if (folder / name).exists()]
    if not files:
        return None
    candidates = (folder / f"earlier-{number}" for number in itertools.count(1))
    earlier = next(path for path in candidates if not path.exists())
    earlier.mkdir()
    for file in files:
        file.rename(earlier / file.name)
    return earlier
