"""What the user can put right, told in one line. Bugs are not for here: they keep a traceback."""


class UserError(Exception):
    """Something the user asked for that cannot be done; the message names argument and value."""

    exit_code = 2

    def __init__(self, message: str):
        """Keeps `message`, folded into one line whatever library it was quoted from."""
        super().__init__(" ".join(message.split()))


class RunError(UserError):
    """A run that began and failed: its settings were valid, and did not work out."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
