"""Checks of the table: every change applies, and every module of the core has a mutant."""

import collections
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.mutants.mutant import Mutant


def problems(mutants: Sequence[Mutant], root: Path) -> Iterator[str]:
    """Yields a line for each problem of the table in this checkout."""
    for mutant in mutants:
        try:
            mutant.applied(root / "jaxclip")
        except (OSError, SyntaxError, ValueError) as error:
            yield f"{mutant}: {error}"
        tests = [test for test in shlex.split(mutant.tests) if test.startswith("tests/")]
        if not tests:
            yield f"{mutant}: names no test"
        yield from (f"{mutant}: there is no {test}" for test in tests if not _exists(root, test))
    counts = collections.Counter(map(str, mutants))
    yield from (f"{name}: {count} mutants" for name, count in counts.items() if count > 1)
    package, covered = root / "jaxclip", {mutant.module for mutant in mutants}
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).as_posix()
        if re.search(r"^(def|class) ", path.read_text(), re.M) and not (
            module in covered or module.startswith(("train/", "__main__"))
        ):
            yield f"{module}: no mutant"


def _exists(root: Path, test: str) -> bool:
    """Whether there is a test of this id, whatever its parameters."""
    path, _, name = test.partition("::")
    if not name or not (root / path).exists():
        return (root / path).exists()
    definition = rf"^def {name.partition('[')[0]}\("
    return re.search(definition, (root / path).read_text(), re.M) is not None
