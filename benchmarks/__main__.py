"""The cost of clipping: time, memory, compilation and collectives, compared with other libraries.

    python -m benchmarks

Everything runs on the CPU, in ten to fifteen minutes on two cores. The programs to compare take
turns in one process, A B C A B C. The report has medians, ratios of medians, and the quartiles of
the ratios of single turns.

A step is `(params, state) -> (params, state)`, both donated. It computes its gradients by matrix
products, as a backward pass does. XLA would fuse elementwise gradients with the optimizer (its CPU
compiler drops an `optimization_barrier`), so a step without clipping would never write them.
PyTorch and TensorFlow are measured if they are installed.

It writes `speed.json` (every measurement) and `speed.md` (the tables; text outside their markers is
written by hand and stays) into the folder `--out`. A smoke run and a run with `--only` write
nothing without `--out`.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import rich.table
from rich import box
from rich.console import Console

from benchmarks import report_files
from benchmarks.speed import goals, jobs, report
from jaxclip.train.errors import RunError, UserError

NAME = "speed"
PACKAGES = ("jax", "jaxlib", "optax", "numpy", "torch", "tensorflow")


def parser() -> report_files.Plain:
    found = report_files.Plain(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    found.add_argument("--out", help="output folder (default: docs, for a complete run)")
    found.add_argument("--smoke", action="store_true", help="small trees, few turns")
    found.add_argument("--only", metavar="NAME,NAME", help=f"some of {', '.join(jobs.SECTIONS)}")
    return found


def main(argv: list[str] | None = None) -> int:
    return parser().main(argv, run)


def run(options: argparse.Namespace) -> None:
    """Measures, prints and writes."""
    names = chosen(options.only)
    partial = options.smoke or options.only is not None
    out = options.out or (None if partial else "docs")
    folder = None if out is None else report_files.open_folder(out, NAME)
    console = Console()
    say = functools.partial(console.print, soft_wrap=True, highlight=False, markup=False)
    load, start = os.getloadavg()[0], time.perf_counter()
    sections = measure(names, options.smoke, say)
    content = report_files.known(command(options), PACKAGES) | {
        "load_before": round(load, 2),
        "seconds": round(time.perf_counter() - start, 1),
        "smoke": options.smoke,
        "goals": [found.plain() for found in goals.verdicts(sections)],
        "sections": sections,
    }
    for table in report.tables(sections, smoke=options.smoke):
        console.print(shown(table))
        say(table.note)
    if folder is not None:
        report_files.write(folder, NAME, content, text(content))
        say(f"written to {folder}")
    failed = [f"{s}, {j}" for s in sections for j, r in sections[s].items() if "failed" in r]
    if failed:
        raise RunError(f"not measured: {'; '.join(failed)}")


def chosen(only: str | None) -> list[str]:
    """Returns the sections that `--only` names, in their usual order."""
    names = set(jobs.SECTIONS) if only is None else set(only.split(","))
    unknown = ", ".join(sorted(names - set(jobs.SECTIONS)))
    if unknown:
        raise UserError(
            f"--only={only}: no section {unknown}; there are {', '.join(jobs.SECTIONS)}"
        )
    return [name for name in jobs.SECTIONS if name in names]


def command(options: argparse.Namespace) -> str:
    only = [] if options.only is None else [f"--only {options.only}"]
    return " ".join(["python -m benchmarks", *(["--smoke"] if options.smoke else []), *only])


def measure(
    names: Sequence[str], smoke: bool, say: Callable[[str], None]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Runs the jobs one after the other; in a smoke run, whose times do not matter, two at once."""
    sections: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    planned = [(name, job) for name in names for job in jobs.jobs(name, smoke)]
    with ThreadPoolExecutor(2 if smoke else 1) as workers:
        results = workers.map(lambda job: jobs.run(*job, smoke), planned)
        for (name, job), result in zip(planned, results, strict=True):
            sections[name][job] = result
            say(f"{name}: {job}: {result.get('failed', 'done')}, {result['took']:.0f} s")
    return sections


def text(content: dict[str, Any]) -> str:
    """Returns the text between the markers."""
    about = (
        f"The whole run took {content['seconds']:.0f} s; load average before it: "
        f"{content['load_before']:.2f}. Every turn is in [speed.json](speed.json)."
    )
    tables = report.markdown(content["sections"], smoke=content["smoke"])
    return f"{report_files.head(content)}\n\n{about}\n\n{tables}"


def shown(table: report.Table) -> rich.table.Table:
    """Returns a table for the console."""
    found = rich.table.Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for head in table.heads:
        found.add_column(head, overflow="fold")
    for row in table.rows:
        found.add_row(*row)
    return found


if __name__ == "__main__":
    sys.exit(main())
