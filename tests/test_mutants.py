"""The table of mutants: that every change can be made, and every file of the core has one."""

import collections
import pathlib

import pytest

import jaxclip
from tests.mutants import MUTANTS, changed

PACKAGE = pathlib.Path(jaxclip.__file__).parent
FILES = {m.file for m in MUTANTS}


@pytest.mark.parametrize("file", sorted(FILES))
def test_every_change_can_be_made(file):
    for mutant in (m for m in MUTANTS if m.file == file):
        text = changed(mutant, PACKAGE)
        assert text != (PACKAGE / file).read_text(), mutant.name
        compile(text, mutant.name, "exec")
        assert mutant.tests.startswith("tests/"), mutant.name


def test_names_tell_mutants_apart():
    times = collections.Counter((m.file, m.name) for m in MUTANTS)
    assert max(times.values()) == 1, times.most_common(1)
    assert len(MUTANTS) >= 65


def test_every_file_of_the_core_has_one():
    core = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    core = {path for path in core if not path.startswith("train/")}
    assert core - FILES == {"__init__.py", "__main__.py", "thresholds/__init__.py"}
