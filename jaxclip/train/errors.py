"""Errors that a user can correct, printed in one line. A bug keeps its traceback."""

from pathlib import Path


class UserError(Exception):
    """An invalid request; the message names the argument and its value."""

    exit_code = 2

    def __init__(self, message: str):
        """Keeps `message`, joined into one line: other libraries' messages may have several."""
        super().__init__(" ".join(message.split()))


class RunError(UserError):
    """A run with valid settings that failed."""

    exit_code = 1


class InterruptError(RunError):
    """A signal ended the run."""

    def __init__(self, message: str, number: int):
        """Keeps the message; the exit code is the shell's for the signal."""
        super().__init__(message)
        self.exit_code = 128 + number


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def user_path(path: str | Path, flag: str) -> Path:
    """Returns a path that the user gave to `flag`, with `~` replaced by the home folder.

    Raises:
      UserError: if the path is empty, has a null character or is not UTF-8, or if there is no such
        home folder.
    """
    if not str(path):
        raise UserError(f"{flag}=: empty, a path is needed")
    try:
        result = Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{flag}={path}: no such home folder") from None
    if "\0" in str(result):
        raise UserError(f"{flag}={path!r}: a path has no null character")
    try:
        str(result).encode()
    except UnicodeEncodeError:  # the system's bytes; TensorStore takes text only
        raise UserError(f"{flag}={path!r}: a path must be UTF-8") from None
    return result


def figure_path(path: str) -> Path:
    """Returns the path of a figure that the user gave to `--out`.

    Raises:
      UserError: if it is not that of a PNG file, so that no log is written over.
    """
    result = user_path(path, "--out")
    if result.suffix.lower() != ".png":
        raise UserError(f"--out={path}: a figure's name must end in .png")
    return result
