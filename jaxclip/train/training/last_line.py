"""Reads the errors of one of several processes, and ends them with one line if another was lost.

JAX's runtime then ends the process from C++, with a trace, where no Python code can come between.
So the errors go through a small process that lives a moment longer. It runs this file alone.
"""

import os
import re
import subprocess
import sys
from typing import BinaryIO

_START = re.compile(rb"[IWEF]\d{4} |jaxclip: |Traceback")  # of a message, which may have more lines
_RUNTIME = re.compile(rb"[IWE]\d{4} .*(coordination_service|preemption_sync_manager)")
_END = b"Terminating process because the JAX distributed service detected"


def add(line: str) -> None:
    """Sends this process's errors through a reader, which writes `line` if another is lost."""
    command = [sys.executable, "-I", "-S", __file__, line]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert reader.stdin is not None
    sys.stderr.flush()
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    reader.returncode = 0  # it ends after this process, which does not wait for it


def copy(errors: BinaryIO, out: BinaryIO, line: str) -> None:
    """Copies all messages but the runtime's; for its last one, `line` if nothing was said yet."""
    is_said, is_copied = False, True
    for text in errors:
        if _END in text:
            break
        is_said |= text.startswith(b"jaxclip: ")
        is_copied = not _RUNTIME.match(text) if _START.match(text) else is_copied
        if is_copied:
            out.write(text)
            out.flush()
    else:
        return
    if not is_said:
        out.write(line.encode() + b"\n")
        out.flush()
    for _ in errors:  # until the process has ended
        pass


if __name__ == "__main__":
    copy(sys.stdin.buffer, sys.stderr.buffer, sys.argv[1])
