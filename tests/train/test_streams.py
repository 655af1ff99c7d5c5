"""Output that nobody reads, or that has no place, does not end a run."""

import os
import subprocess
import sys

import pytest

from jaxclip.train import streams
from tests.train import runs

PROGRAM = """
import os, sys
import jaxclip_streams as streams
streams.install()
assert os.open(os.devnull, os.O_RDONLY) > 2
for i in range(100_000):
    print(i)
print("a\\u00fc\\udcff", flush=True)
print("note", file=sys.stderr)
sys.stderr.write(str(streams.failure()))
"""


@pytest.fixture
def program(tmp_path):
    """Runs a program with the module `streams` alone, by a shell's command with `$P` for it."""
    with open(streams.__file__) as source:
        (tmp_path / "jaxclip_streams.py").write_text(source.read())
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(command):
        variables = {"P": f"{sys.executable} program.py", "PYTHONIOENCODING": "ascii"}
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env=os.environ | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ("command", "output", "error"),
    [
        ("$P | tail -n 1", "a\\xfc\\udcff\n", "note\nNone"),
        ("$P | head -n 1", "0\n", "note\nNone"),
        ("$P > /dev/full", "", "note\nNo space left on device"),
        ("$P >&-", "", "note\nNone"),
        ("$P <&- >&- 2>&-", "", ""),
        ("$P 2>/dev/full | head -n 1", "0\n", ""),
    ],
)
def test_output_is_dropped(command, output, error, program):
    done = program(command)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, error)


@pytest.mark.slow
def test_a_run_whose_output_is_lost(tmp_path):
    """Its files are complete; the exit code says whether all was printed that was to be read."""
    run = [sys.executable, "-m", "jaxclip", "train", "explode", *runs.SMALL, "--epochs", "2"]
    one, other = tmp_path / "one", tmp_path / "other"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*run, "--out", one], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == (
        "jaxclip: error: standard output was cut off (No space left on device)\n"
    )
    assert done.returncode == 1
    pipe, closed = os.pipe()
    os.close(pipe)
    environment = os.environ | {"HOME": os.devnull, "PYTHONIOENCODING": "ascii"}
    environment.pop("MPLCONFIGDIR", None)
    done = subprocess.run(
        [*run, "--out", other],
        stdout=closed,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        check=False,
    )
    os.close(closed)
    assert (done.returncode, done.stderr) == (0, "")
    assert runs.last_records(one) == runs.last_records(other)
    assert runs.summary(one)["status"] == runs.summary(other)["status"] == "finished"
