"""The tables of the benchmark of speed, for the console and for `speed.md`."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import report_files
from benchmarks.speed import goals, timing
from benchmarks.speed.jobs import SECTIONS

Jobs = Mapping[str, Mapping[str, Any]]  # results of a section


class Table(NamedTuple):
    """A table, and a note that explains it."""

    title: str
    heads: Sequence[str]
    rows: list[list[str]]
    note: str = ""


def tables(sections: goals.Sections, *, smoke: bool) -> list[Table]:
    """Returns the table of goals, and a table for each measured section."""
    note = "A smoke run, of small trees: its figures say nothing about the goals." if smoke else ""
    return [_goals(sections, note), *(TABLES[name](name, jobs) for name, jobs in sections.items())]


def markdown(sections: goals.Sections, *, smoke: bool = False) -> str:
    parts = [
        f"## {table.title}\n\n{report_files.table(table.heads, table.rows)}"
        + (f"\n{table.note}\n" if table.note else "")
        for table in tables(sections, smoke=smoke)
    ]
    return "\n".join(parts)


def _goals(sections: goals.Sections, note: str) -> Table:
    rows = []
    for found in goals.verdicts(sections):
        goal, values = found.goal, found.values.values()
        bound = "" if goal.most is None else f"at most {goal.most:g}"
        measured = " ".join(f"{value:.2f}" for value in values)
        if len(values) > 3:
            measured = f"{min(values):.2f} to {max(values):.2f}"
        rows.append([goal.title, goal.how, bound, measured, found.words])
    return Table("Goals", ("goal", "measured as", "bound", "measured", ""), rows, note)


def _failed(result: Mapping[str, Any], columns: int) -> list[str]:
    return [result["failed"], *[""] * (columns - 2)]


def _rows(jobs: Jobs, heads: Sequence[str], cells: Callable[[Any], list[str]]) -> list[list[str]]:
    """Returns a row for each job: its name, and its cells or its error."""
    return [
        [job, *(_failed(result, len(heads)) if "failed" in result else cells(result))]
        for job, result in jobs.items()
    ]


def _steps(name: str, jobs: Jobs) -> Table:
    heads = ("step", "none, ms", "Optax", "jaxclip", "least", "norm", "jaxclip / Optax")
    heads = (*heads, "jaxclip / least", "reads, least", "reads, jaxclip")
    programs = ("none", "Optax", "jaxclip", "least", "norm")

    def cells(result: Any) -> list[str]:
        times = result["times"]

        def of(program: str, cell: Callable[..., Any], *arguments: str) -> str:
            return str(cell(times, *arguments)) if program in times else ""

        return [
            *(of(key, timing.milliseconds, key) for key in programs),
            *(of(base, timing.ratio, "jaxclip", base) for base in ("Optax", "least")),
            *(of(key, timing.reads, key) for key in ("least", "jaxclip")),
        ]

    note = (
        "Medians; ratios of medians, with the quartiles of single turns in brackets. *Reads*: the "
        "extra time over the step without a rule, in times of the norm alone. *Least*: a sum of "
        "squares and a product, without guarantees and records."
    )
    return Table(SECTIONS[name].title, heads, _rows(jobs, heads, cells), note)


def _alone(name: str, jobs: Jobs) -> Table:
    libraries = ("Optax", "PyTorch", "TensorFlow")
    heads = ("tree", "jaxclip, ms", *libraries, *(f"jaxclip / {library}" for library in libraries))

    def cells(result: Any) -> list[str]:
        times = result["times"]
        there = [timing.milliseconds(times, n) if n in times else "missing" for n in libraries]
        ratios = [str(timing.ratio(times, "jaxclip", n)) if n in times else "" for n in libraries]
        return [timing.milliseconds(times, "jaxclip"), *there, *ratios]

    note = (
        "On given gradients; JAX and PyTorch overwrite them, TensorFlow cannot. *missing*: not "
        "installed."
    )
    return Table(SECTIONS[name].title, heads, _rows(jobs, heads, cells), note)


def _compared(name: str, jobs: Jobs) -> Table:
    """Returns a row for each program of a job, relative to the job's first program."""
    heads = ("step", "program", "ms", "times the first")
    rows = []
    for job, result in jobs.items():
        times = result.get("times", {})
        for program in times:
            against = str(timing.ratio(times, program, next(iter(times))))
            rows.append([job, program, timing.milliseconds(times, program), against])
        if "failed" in result:
            rows.append([job, *_failed(result, len(heads))])
    return Table(SECTIONS[name].title, heads, rows)


def _compile(name: str, jobs: Jobs) -> Table:
    heads = ("leaves", "rule", "s", "of it trace, s", "times the first")
    rows = []
    for job, result in jobs.items():
        times = result.get("times", {})
        for program in times:
            medians = [statistics.median(result[key][program]) for key in ("times", "trace")]
            against = str(timing.ratio(times, program, next(iter(times))))
            rows.append([job, program, *(f"{median:.2f}" for median in medians), against])
        if "failed" in result:
            rows.append([job, *_failed(result, len(heads))])
    note = (
        "A rule and SGD, in turn, without JAX's caches. *One norm*: `clip_by_global_norm`; "
        "*Optax*: its rule of the same name."
    )
    return Table(SECTIONS[name].title, heads, rows, note)


def _import(name: str, jobs: Jobs) -> Table:
    heads = ("", "nothing, s", "Optax, s", "jaxclip, s", "jaxclip / Optax")

    def cells(result: Any) -> list[str]:
        times = result["times"]
        medians = [f"{statistics.median(values):.2f}" for values in times.values()]
        return [*medians, str(timing.beyond(times, "jaxclip", "Optax", "nothing"))]

    note = "Seconds of `python -c`; the ratio is taken after subtracting those of `pass`."
    return Table(SECTIONS[name].title, heads, _rows(jobs, heads, cells), note)


def _memory(name: str, jobs: Jobs) -> Table:
    heads = ("step", "rule", "temporaries, MB", "in trees", "arguments, MB", "accessed, in trees")
    heads = (*heads, "peak, MB")
    rows = []
    for job, result in jobs.items():
        tree, rule = job.split(", ")
        if "failed" in result:
            rows.append([job, *_failed(result, len(heads))])
        for program, found in result.get("programs", {}).items():
            peak = result["peak_bytes"] if program == "float32, AdamW" else None
            rows.append(
                [
                    f"{tree}, {program}",
                    rule,
                    f"{found['temporaries'] / 1e6:.0f}",
                    f"{found['temporaries_in_trees']:.2f}",
                    f"{found['arguments'] / 1e6:.0f}",
                    f"{found['accessed_in_trees']:.2f}",
                    "" if peak is None else f"{peak / 1e6:.0f}",
                ]
            )
    rows.sort(key=lambda row: row[0])
    note = (
        "Temporaries, arguments and bytes accessed, by the compiler; a tree is one copy of "
        "the parameters. Bytes accessed count both branches of a condition. *Peak*: resident "
        "memory of the process while it takes steps."
    )
    return Table(SECTIONS[name].title, heads, rows, note)


def _collectives(name: str, jobs: Jobs) -> Table:
    heads = ("tree", "Optax", "jaxclip")

    def cells(result: Any) -> list[str]:
        counts = (result["collectives"][library] for library in heads[1:])
        return [", ".join(f"{n} {kind}" for kind, n in found.items()) or "none" for found in counts]

    return Table(SECTIONS[name].title, heads, _rows(jobs, heads, cells))


TABLES = {
    "steps": _steps,
    "alone": _alone,
    "telemetry": _compared,
    "learned": _compared,
    "groups": _compared,
    "guards": _compared,
    "compile": _compile,
    "eager": _compared,
    "import": _import,
    "memory": _memory,
    "collectives": _collectives,
}
