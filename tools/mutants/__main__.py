"""`python -m tools.mutants`: see `tools.mutants`."""

import argparse
import concurrent.futures
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import tools.mutants
from tools.mutants.check import problems
from tools.mutants.mutant import Mutant
from tools.mutants.run import Outcome, copied, run
from tools.mutants.table import MUTANTS

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".pytest_cache" / "jax"  # that of tests/conftest.py
TIMEOUT = 300  # seconds for the tests of one mutant


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser("python -m tools.mutants", description=tools.mutants.__doc__)
    parser.add_argument("--check", action="store_true", help="check the table, run no tests")
    parser.add_argument("--only", default="", metavar="PART", help="of a module and fault")
    parser.add_argument("--tests", help="run these instead of the tests in the table")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", type=Path, help="a file to write, in Markdown")
    return parser.parse_args()


def joined(selections: Sequence[str]) -> list[str]:
    """Fewer selections of the same tests: those of one file without options become one."""
    files: dict[str, list[str]] = {}
    for tests in dict.fromkeys(selections):
        files.setdefault(tests if " " in tests else tests.partition("::")[0], []).append(tests)
    return [" ".join(group) for group in files.values()]


def outcomes(mutants: Sequence[Mutant], workers: int) -> Iterator[tuple[Mutant, Outcome]]:
    """Runs the tests without a fault, and then each mutant's tests; prints all results."""
    # The original is copied first, so the checkout may be edited while the mutants run.
    with copied(ROOT) as original, concurrent.futures.ThreadPoolExecutor(workers) as pool:

        def outcome(mutant: Mutant) -> Outcome:
            with copied(original, mutant) as folder:
                return run(folder, mutant.tests, CACHE, TIMEOUT)

        selections = joined([mutant.tests for mutant in mutants])
        sound = pool.map(lambda tests: run(original, tests, CACHE, 10 * TIMEOUT), selections)
        for tests, found in list(zip(selections, sound, strict=True)):
            if found.verdict != "survived":
                sys.exit(f"{found.output}\n{found.verdict} without a fault: {tests}")
        for mutant, found in zip(mutants, pool.map(outcome, mutants), strict=True):
            print(f"{found.verdict} {found.seconds:4.0f} s  {mutant}  {found.test}", flush=True)
            if found.verdict not in ("caught", "survived"):
                print(found.output)
            yield mutant, found


def report(table: Sequence[tuple[Mutant, Outcome]], seconds: float) -> str:
    """All mutants and the tests that caught them, in Markdown."""
    versions = f"Python {platform.python_version()}, JAX {metadata.version('jax')}"
    caught = sum(found.verdict == "caught" for _, found in table)
    lines = [f"{caught} of {len(table)} mutants caught; {seconds:.0f} s; {versions}.", ""]
    lines += ["| | module | fault | caught by | s |", "|---|---|---|---|---|"]
    for i, (mutant, found) in enumerate(table, 1):
        test = f"`{found.test}`" if found.verdict == "caught" else f"**{found.verdict}**"
        cells = (str(i), f"`{mutant.module}`", mutant.fault, test, f"{found.seconds:.0f}")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Checks the table or runs the mutants; 0 if there is no problem and no survivor."""
    options, start = arguments(), time.monotonic()
    if options.check:
        found = list(problems(MUTANTS, ROOT))
        print(*found, f"{len(MUTANTS)} mutants, {len(found)} problems", sep="\n")
        return int(bool(found))
    mutants = [mutant for mutant in MUTANTS if options.only in str(mutant)]
    if not mutants:
        sys.exit(f"no mutant has {options.only!r} in its module and fault")
    if options.tests:
        mutants = [mutant._replace(tests=options.tests) for mutant in mutants]
    table = list(outcomes(mutants, options.workers))
    text = report(table, time.monotonic() - start)
    print(text.partition("\n")[0])
    if options.report:
        options.report.write_text(text)
    return int(any(outcome.verdict != "caught" for _, outcome in table))


if __name__ == "__main__":
    sys.exit(main())
