"""Errors that a user can correct, printed in one line. A bug keeps its traceback."""


class UserError(Exception):
    """An invalid request; the message names the argument and its value."""

    exit_code = 2

    def __init__(self, message: str):
        """Keeps `message`, joined into one line: other libraries' messages may have several."""
        super().__init__(" ".join(message.split()))


class RunError(UserError):
    """A run with valid settings that failed."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
