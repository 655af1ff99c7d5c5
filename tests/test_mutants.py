"""The table of mutants: that every change can be made, and every file of the core has one."""

import collections
import pathlib
import shlex

import pytest

import jaxclip
from tests.mutants import MUTANTS, changed

PACKAGE = pathlib.Path(jaxclip.__file__).parent
TESTS = pathlib.Path(__file__).parent
FILES = {m.file for m in MUTANTS}


@pytest.mark.parametrize("file", sorted(FILES))
def test_every_change_can_be_made(file):
    for mutant in (m for m in MUTANTS if m.file == file):
        text = changed(mutant, PACKAGE)
        assert text != (PACKAGE / file).read_text(), mutant.name
        compile(text, mutant.name, "exec")
        assert mutant.tests.startswith("tests/"), mutant.name


def test_the_tests_that_must_fail_are_there():
    named = {test for m in MUTANTS for test in shlex.split(m.tests) if test.startswith("tests/")}
    for test in named:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (TESTS.parent / file).read_text(), test


def test_names_tell_mutants_apart():
    times = collections.Counter((m.file, m.name) for m in MUTANTS)
    assert max(times.values()) == 1, times.most_common(1)
    assert len(MUTANTS) >= 65


def test_every_file_of_the_core_has_one():
    core = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    core = {path for path in core if not path.startswith("train/")}
    assert core - FILES == {"__init__.py", "__main__.py", "thresholds/__init__.py"}
