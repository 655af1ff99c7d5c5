"""Holds signals back while the program `jaxclip` imports; `jaxclip.train.signals` then takes them.

`import jaxclip` in any other program leaves signals alone.
"""

import signal
import sys


def is_program(argv: list[str], original: list[str]) -> bool:
    """Returns whether Python was started as `python -m jaxclip` or by the command `jaxclip`.

    Args:
      argv: `sys.argv`; its first item is `-m` while Python looks for the module of that option.
      original: `sys.orig_argv`.
    """
    if argv[:1] == ["-m"]:
        return original[original.index("-m") + 1 :][:1] == ["jaxclip"]
    return "".join(argv[:1]).replace("\\", "/").endswith(("/bin/jaxclip", "/Scripts/jaxclip"))


NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
NUMBERS = {int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)}
HELD = is_program(sys.argv, sys.orig_argv) and hasattr(signal, "pthread_sigmask")
_ = HELD and signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
