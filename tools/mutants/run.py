"""Runs tests in a copy of the checkout that may have a fault."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.mutants.mutant import Mutant

COPIED = ("jaxclip", "tests", "docs", "README.md", "pyproject.toml")
FLAGS = ("-x", "-q", "-p", "no:cacheprovider", "-n", "0", "-m", "slow or not slow")
ELSEWHERE = 99
# Run in the copy: pytest, then a check that it imported the jaxclip of the copy.
PROGRAM = f"""
import pathlib, sys, pytest
status = int(pytest.main(sys.argv[1:]))
import jaxclip
inside = pathlib.Path(jaxclip.__file__).resolve().is_relative_to(pathlib.Path.cwd().resolve())
sys.exit(status if inside else {ELSEWHERE})
"""


class Outcome(NamedTuple):
    """The result of tests: `caught` if one failed, `survived` if all passed, else an exit code."""

    verdict: str
    test: str  # the first that failed
    seconds: float
    output: str


@contextlib.contextmanager
def copied(root: Path, mutant: Mutant | None = None) -> Iterator[Path]:
    """A temporary copy of the checkout, with the mutant's change."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in (root / part for part in COPIED):
            if part.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".*")
                shutil.copytree(part, folder / part.name, ignore=ignored)
            else:
                shutil.copy(part, folder)
        if mutant is not None:
            text = mutant.applied(root / "jaxclip")
            (folder / "jaxclip" / mutant.module).write_text(text)
        yield folder


def run(folder: Path, tests: str, cache: Path, timeout: float) -> Outcome:
    """Runs the tests in the folder; the programs that they compile are kept in `cache`."""
    start = time.monotonic()
    command = [sys.executable, "-c", PROGRAM, *FLAGS, *shlex.split(tests)]
    variables = os.environ | {"PYTHONPATH": str(folder), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    try:
        done = subprocess.run(
            command, cwd=folder, env=variables, timeout=timeout, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return Outcome("caught", f"timeout of {timeout} s", timeout, "")
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.M)
    test = failed[1] if failed else ""
    verdict = "survived" if done.returncode == 0 else f"exit code {done.returncode}"
    if done.returncode == 1 and "::" in test:  # a test, not a file that cannot be imported
        verdict = "caught"
    return Outcome(verdict, test, time.monotonic() - start, done.stdout + done.stderr)
