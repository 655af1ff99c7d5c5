"""The presets of jaxclip compared with the TensorFlow programs of four tutorials.

    python -m benchmarks.tutorials --data-dir mnist

The four programs are written in TensorFlow like the originals: `forward` and `explode` are eager,
with variables and a gradient tape; `value-clip` and `max-norm` are graphs with placeholders, a
session and a saver. They contain their own hyper-parameters. Both sides read the same arrays. Each
program runs with several seeds for the weights and, if the tutorial shuffles, for the batches; the
table has medians and ranges.

Since different draws give different numbers, TensorFlow also trains one epoch of each program from
jaxclip's initial weights and on its batches. There both must agree up to rounding.

It writes `tutorials.json` (every number) and `tutorials.md` (the tables; text outside their markers
is written by hand and stays) into the folder `--out`.
"""

import argparse
import functools
import sys

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import report_files
from benchmarks.tutorials import report, runs
from jaxclip.train import data

NAME = "tutorials"
SEEDS = dict.fromkeys(runs.NAMES, 3) | {"forward": 8, "forward, std 1": 8}  # these runs are short
SMOKE_SEEDS, SMOKE_EPOCHS = dict.fromkeys(runs.NAMES, 2), 2
DRAWS, SMOKE_DRAWS = 100, 2  # of `explode`, whose second step varies much with the weights


def main(argv: list[str] | None = None) -> int:
    return report_files.Parser(NAME, __doc__.splitlines()[0]).main(argv, run)


def run(options: argparse.Namespace) -> None:
    """Trains, prints and writes."""
    folder = report_files.open_folder(options.out, NAME)
    dataset = "digits" if options.smoke else "mnist"
    images = data.load(dataset, options.data_dir)
    console = Console()
    say = functools.partial(console.print, soft_wrap=True, highlight=False, markup=False)
    say(images.describe())
    size = (SMOKE_SEEDS, SMOKE_EPOCHS) if options.smoke else (SEEDS, None)
    results = []
    with runs.pool(dataset, options.data_dir) as workers:
        draws = workers.submit(runs.second_steps, SMOKE_DRAWS if options.smoke else DRAWS)
        for result in runs.compare(images, workers, *size, say):
            results.append(result)
            console.print(shown(result))
        many = draws.result()
    content = report.content(report_files.facts(NAME, options), images.name, results, many)
    text = f"{report_files.head(content)}\n\n{report.markdown(results, many)}"
    report_files.write(folder, NAME, content, text)
    say(f"written to {folder}")


def shown(result: runs.Result) -> Table:
    """Returns a program's table for the console."""
    table = Table(title=result.name, title_justify="left", box=box.SIMPLE_HEAD)
    for head in report.HEADS:
        table.add_column(head, overflow="fold")
    for row in report.rows(result):
        table.add_row(*report.cells(row))
    return table


if __name__ == "__main__":
    sys.exit(main())
