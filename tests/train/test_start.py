"""Signals are held back during the imports of the program only."""

import signal

import pytest

from jaxclip._core import start

PROGRAMS = [
    (["-m"], ["python3", "-W", "error", "-m", "jaxclip", "train"], True),
    (["-m", "train"], ["python3", "-m", "jaxclip", "train"], True),
    (["/usr/local/bin/jaxclip", "demo"], ["python3", "/usr/local/bin/jaxclip", "demo"], True),
    (["C:\\venv\\Scripts\\jaxclip"], ["python.exe"], True),
    (["-m"], ["python3", "-m", "mine.training", "-m", "jaxclip"], False),
    (["scripts/mine.py"], ["python3", "mine.py", "-m", "jaxclip"], False),
    (["-c"], ["python3", "-c", "import jaxclip"], False),
    (["bin/pytest", "jaxclip"], ["python3", "bin/pytest", "jaxclip"], False),
    ([""], ["python3"], False),
    ([], [], False),
]


@pytest.mark.parametrize(("argv", "original", "expected"), PROGRAMS)
def test_program(argv, original, expected):
    assert start.is_program(argv, original) is expected


def test_a_library_leaves_signals_alone():
    assert start.HELD is False
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & start.NUMBERS
