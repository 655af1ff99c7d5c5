"""The time of an epoch of the preset `explode`, compared with the tutorial's program.

    python -m benchmarks.epoch --data-dir mnist

Three programs train the same network on the same arrays: the tutorial's in eager TensorFlow, the
same with its step under `tf.function`, and `jaxclip train explode`. In every step they compute the
norm of every gradient before and after clipping, and after every epoch the loss and accuracy on the
test images. The eager program converts its norms to Python numbers in each step, since the tutorial
prints them (it does not print here); under `tf.function` they are fetched once an epoch. jaxclip
also writes them to disk, and does everything else that `jaxclip train` does after an epoch. A
fourth program is jaxclip's scan with gradient, SGD and evaluation alone, the lower bound for JAX.

Each program has a process of its own and trains on request, while the others sleep. They take
turns of three epochs. Work that a program leaves to its threads falls into its next epoch; that of
the last epoch is waited for and counted. The first turns are a warm-up and do not count. A
measurement is the time of a turn divided by its epochs; the report has medians and ratios of
medians.

It writes `epoch.json` (every turn) and `epoch.md` (the table; text outside its markers is written
by hand and stays) into the folder `--out`.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import report_files
from benchmarks.epoch import programs
from jaxclip.train import data
from jaxclip.train.errors import RunError

NAME = "epoch"
TITLES = {
    "eager": "TensorFlow, eager",
    "function": "TensorFlow, `tf.function`",
    "bare": "JAX scan without rule, norms and records",
    "jaxclip": "`jaxclip train explode`",
}
GOALS = {"eager": 5.0, "function": 1.3}  # lower bounds on the ratio to jaxclip's seconds
WARM_UP, TURNS, IN_A_ROW = 2, 9, 3  # epochs, turns, epochs a turn
SMOKE_TURNS = 2
Turns = Mapping[str, list[programs.Turn]]


def main(argv: list[str] | None = None) -> int:
    return report_files.Parser(NAME, __doc__.splitlines()[0]).main(argv, run)


def run(options: argparse.Namespace) -> None:
    """Measures, prints and writes."""
    folder = report_files.open_folder(options.out, NAME)
    console = Console()
    given = "digits" if options.smoke else "mnist", options.data_dir
    images = data.load(*given)
    say = functools.partial(console.print, soft_wrap=True, highlight=False, markup=False)
    say(images.describe())
    turns = SMOKE_TURNS if options.smoke else TURNS
    load = os.getloadavg()[0]
    with processes(*given, WARM_UP + turns * IN_A_ROW) as pipes:
        taken = measure(pipes, turns, say)
    known = report_files.facts(NAME, options) | {"data": images.name, "load_before": round(load, 2)}
    content = known | {"epochs_in_a_row": IN_A_ROW, "warm_up_epochs": WARM_UP} | numbers(taken)
    text = f"{report_files.head(content)}\n\n{markdown(content)}"
    report_files.write(folder, NAME, content, text)
    console.print(shown(content))
    say(f"written to {folder}")


@contextlib.contextmanager
def processes(dataset: str, data_dir: str | None, epochs: int) -> Iterator[dict[str, Connection]]:
    """Starts a process for each program; yields pipes to them when all are ready."""
    context = multiprocessing.get_context("spawn")
    pipes, started = {}, []
    for name in programs.PROGRAMS:
        pipes[name], theirs = context.Pipe()
        arguments = name, dataset, data_dir, epochs, theirs
        started.append(context.Process(target=programs.serve, args=arguments, daemon=True))
        started[-1].start()
        theirs.close()
    try:
        for name, pipe in pipes.items():
            _answer(name, pipe)
        yield pipes
        for pipe in pipes.values():
            pipe.send(0)
        for process in started:
            process.join(60)
    finally:
        for process in started:
            process.terminate()


def measure(pipes: Mapping[str, Connection], turns: int, say: Callable[[str], None]) -> Turns:
    """Lets the programs take turns; returns their times."""
    taken: dict[str, list[programs.Turn]] = {name: [] for name in pipes}
    for turn in range(turns + 1):
        for name, pipe in pipes.items():
            count = IN_A_ROW if turn else WARM_UP
            pipe.send(count)
            answer = _answer(name, pipe)
            if turn:
                taken[name].append(answer)
        if turn:
            seconds = ", ".join(f"{n} {t[-1].seconds / IN_A_ROW:.3f}" for n, t in taken.items())
            say(f"turn {turn}, seconds an epoch: {seconds}")
    return taken


def _answer(name: str, pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        answer = "its process ended"
    if isinstance(answer, str):
        raise RunError(f"{name}: {answer}")
    return answer


def numbers(taken: Turns) -> dict[str, Any]:
    """Returns medians and ratios, and the seconds an epoch of every turn."""
    parts = {
        part: {n: [getattr(t, part) / IN_A_ROW for t in turns] for n, turns in taken.items()}
        for part in ("seconds", "training", "waiting")
    }
    median = {name: statistics.median(values) for name, values in parts["seconds"].items()}
    ratio = {name: median[name] / median["jaxclip"] for name in GOALS}
    return {
        **parts,
        "median": median,
        "ratio": ratio,
        "goal": GOALS,
        "reached": {name: ratio[name] >= goal for name, goal in GOALS.items()},
        "test_accuracy": {name: turns[-1].test_accuracy for name, turns in taken.items()},
    }


HEADS = ("", "seconds an epoch", "times jaxclip's", "goal", "reached", "test accuracy, %")


def cells(name: str, content: Mapping[str, Any]) -> list[str]:
    """Returns a program's row."""
    seconds = content["seconds"][name]
    row = [
        TITLES[name],
        f"{content['median'][name]:.3f} ({min(seconds):.3f} to {max(seconds):.3f})",
    ]
    if name in GOALS:
        reached = "yes" if content["reached"][name] else "no"
        row += [f"{content['ratio'][name]:.2f}", f"at least {GOALS[name]:g}", reached]
    else:
        row += [f"{content['median'][name] / content['median']['jaxclip']:.2f}", "", ""]
    return [*row, f"{100 * content['test_accuracy'][name]:.2f}"]


def markdown(content: Mapping[str, Any]) -> str:
    """Returns the table and a note that explains it."""
    turns, row = len(content["seconds"]["jaxclip"]), content["epochs_in_a_row"]
    epochs = turns * row + content["warm_up_epochs"]
    training, waiting = (statistics.median(content[p]["jaxclip"]) for p in ("training", "waiting"))
    return report_files.table(HEADS, [cells(name, content) for name in TITLES]) + (
        f"\nMedian and range of {turns} turns of {row} epochs; accuracy after {epochs} epochs. "
        f"Of jaxclip's seconds, {training:.3f} are training and testing; the rest is recording, of "
        f"which {waiting:.3f} in threads after the last epoch of a turn. "
        f"Load average before the run: {content['load_before']:.2f}.\n"
    )


def shown(content: Mapping[str, Any]) -> Table:
    """Returns the table for the console."""
    table = Table(title="explode, all recording on", title_justify="left")
    for head in HEADS:
        table.add_column(head, overflow="fold")
    for name in TITLES:
        table.add_row(*cells(name, content))
    return table


if __name__ == "__main__":
    sys.exit(main())
