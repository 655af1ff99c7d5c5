"""Mutants: the library broken in one small way after the other, and the tests that notice.

By hand, from the root of a checkout: `python -m tests.mutants --report report.md`. Each mutant is a
copy in a temporary folder with one change, in which its tests must fail; on a copy without a change
they must pass. What is broken is in `mutants_norms`, `mutants_rules`, `mutants_around` and, undoing
what was found by looking for it, in `mutants_found`, by file.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from tests import mutants_around, mutants_found, mutants_norms, mutants_rules

COPIED = ("jaxclip", "tests", "docs", "README.md", "pyproject.toml")
FLAGS = ("-x", "-q", "-p", "no:cacheprovider", "-n", "0", "-m", "slow or not slow")
# All that the copy can run: `benchmarks` is not in it, and the table itself would be found broken.
WHOLE = (
    "tests --ignore tests/train --ignore tests/parity --ignore-glob '*/test_benchmarks*' "
    "--ignore tests/test_mutants.py -m 'not slow'"
)
ELSEWHERE = 99
# Run in the copy: its tests, and then the proof that it was the copy they tested.
INSIDE = f"""
import pathlib, sys, pytest
status = int(pytest.main(sys.argv[1:]))
import jaxclip
inside = pathlib.Path(jaxclip.__file__).resolve().is_relative_to(pathlib.Path.cwd().resolve())
sys.exit(status if inside else {ELSEWHERE})
"""


class Mutant(NamedTuple):
    """A change of one file, and a selection of tests, as for pytest, that should fail by it."""

    file: str
    name: str
    old: str
    new: str
    tests: str


class Outcome(NamedTuple):
    verdict: str  # caught, survived, or that it could not be told
    by: str  # the first test that failed
    seconds: float
    output: str


MUTANTS = [
    Mutant(file, *rest)
    for room in (mutants_norms, mutants_rules, mutants_around, mutants_found)
    for file, changes in room.CHANGES.items()
    for rest in changes
]


def changed(mutant, folder):
    """The text of the mutant's file with the change."""
    text = (folder / mutant.file).read_text()
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.file}: {mutant.old!r} is there {count} times, not once")
    return text.replace(mutant.old, mutant.new)


@contextlib.contextmanager
def copy(source, mutant=None):
    """A temporary folder with what is tested, and the one change."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in (source / part for part in COPIED):
            if part.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".*")
                shutil.copytree(part, folder / part.name, ignore=ignored)
            else:
                shutil.copy(part, folder)
        if mutant is not None:
            text = changed(mutant, source / "jaxclip")
            (folder / "jaxclip" / mutant.file).write_text(text)
        yield folder


def run(folder, tests, timeout):
    """Runs the tests in the folder."""
    start = time.monotonic()
    command = [sys.executable, "-c", INSIDE, *FLAGS, *shlex.split(tests)]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, timeout=timeout, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome("caught", f"did not end in {timeout} s", timeout, "")
    output = done.stdout + done.stderr
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.M)
    by = failed[1] if failed else ""
    verdict = "survived" if done.returncode == 0 else f"exit code {done.returncode}"
    if done.returncode == 1 and "::" in by:  # a test, and not a file that cannot be imported
        verdict = "caught"
    return Outcome(verdict, by, time.monotonic() - start, output)


def outcome(original, timeout, mutant):
    with copy(original, mutant) as folder:
        return run(folder, mutant.tests, timeout)


def joined(selections):
    """Fewer selections of the same tests: those of a file by name alone are run together."""
    files = {}
    for tests in dict.fromkeys(selections):
        files.setdefault(tests if " " in tests else tests.partition("::")[0], []).append(tests)
    return [" ".join(together) for together in files.values()]


def is_sound(original, selections, pool, timeout):
    """Whether the tests pass where nothing is broken; prints what does not."""
    sound = True
    every = pool.map(lambda tests: run(original, tests, 10 * timeout), selections)
    for tests, found in zip(selections, every, strict=True):
        if found.verdict != "survived":
            sound = False
            print(found.output, f"nothing is broken, but {found.verdict}: {tests}", sep="\n")
    return sound


def report(table, seconds):
    """All mutants and what caught them, in Markdown."""
    versions = f"Python {platform.python_version()}, JAX {metadata.version('jax')}"
    caught = sum(found.verdict == "caught" for _, found in table)
    lines = [
        f"{caught} of {len(table)} mutants caught; {seconds:.0f} s; {versions}.",
        "",
        "| | file | what is broken | caught by | s |",
        "|---|---|---|---|---|",
    ]
    for i, (mutant, found) in enumerate(table, 1):
        by = f"`{found.by}`" if found.verdict == "caught" else f"**{found.verdict}**"
        cells = (str(i), f"`{mutant.file}`", mutant.name, by, f"{found.seconds:.0f}")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", metavar="PART", help="of a file and name")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each mutant")
    parser.add_argument("--report", type=Path, help="a file to write, in Markdown")
    parser.add_argument("--survivors-whole", action="store_true", help="also the whole plain suite")
    return parser.parse_args()


def tried(original, mutants, pool, options):
    """Yields every mutant and what became of it."""
    every = pool.map(functools.partial(outcome, original, options.timeout), mutants)
    for mutant, found in zip(mutants, every, strict=True):
        if found.verdict == "survived" and options.survivors_whole:
            found = outcome(original, 10 * options.timeout, mutant._replace(tests=WHOLE))
        yield mutant, found


def main():
    options, start = arguments(), time.monotonic()
    mutants = [m for m in MUTANTS if options.only in f"{m.file}: {m.name}"]
    if not mutants:
        sys.exit(f"there is no mutant with {options.only!r} in its file and name")
    table = []
    pool = concurrent.futures.ThreadPoolExecutor(options.workers)
    # What is being edited meanwhile does not matter: all is copied once, before the first test.
    with copy(Path(__file__).parents[1]) as original, pool:
        for mutant in mutants:
            changed(mutant, original / "jaxclip")
        print(f"{len(mutants)} mutants; first their tests where nothing is broken", flush=True)
        if not is_sound(original, joined(m.tests for m in mutants), pool, options.timeout):
            return 1
        for mutant, found in tried(original, mutants, pool, options):
            table.append((mutant, found))
            what = f"{mutant.file}: {mutant.name}"
            print(f"{len(table):3} {found.verdict} {found.seconds:4.0f} s  {what}  {found.by}")
            if found.verdict not in ("caught", "survived"):
                print(found.output)
            sys.stdout.flush()
    text = report(table, time.monotonic() - start)
    print(text.partition("\n")[0])
    if options.report:
        options.report.write_text(text)
    return int(any(found.verdict != "caught" for _, found in table))


if __name__ == "__main__":
    sys.exit(main())
