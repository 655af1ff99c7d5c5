"""`jaxclip demo`: vanishing gradients, exploding gradients and max-norm, on one data set.

Each story is a handful of runs of the same loop, a figure and a sentence; the sentences are made of
what was measured, not of what should have been. What is run and what is drawn is in `stories`.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from jaxclip.train.commands import demo_stories
from jaxclip.train.commands.demo_stories import Story, Variant
from jaxclip.train.data.sources import Data
from jaxclip.train.recording import metrics_file
from jaxclip.train.recording.trace import Trace
from jaxclip.train.reporting import terminal
from jaxclip.train.training import loop


class Size(NamedTuple):
    """How much is computed: the whole demo, or just enough to see that it runs."""

    images: int
    share_of_steps: float
    sizes: tuple[int, ...] | None  # of the hidden layers; None: as the story has them


FULL = Size(12_800, 1.0, None)
SMOKE = Size(256, 0.01, (16, 16))


def demo(data: Data, out: str, console: Console, size: Size = FULL) -> dict[str, Any]:
    """Tells the three stories into the folder `out`; returns what went into `summary.json`."""
    start = time.perf_counter()
    folder = metrics_file.open_folder(out)
    terminal.say(console, data.describe())
    data = first_images(data, size.images)
    terminal.say(console, f"each run trains on the first {len(data.train_labels):,} of them")
    told = {}
    with metrics_file.Recorder(folder) as recorder:
        recorder.write("run", preset="demo", data=data.name, source=data.source)
        for story in demo_stories.STORIES:
            told[story.name] = tell(story, data, folder, recorder, console, size)
    seconds = time.perf_counter() - start
    summary = {"status": "finished", "data": data.name, "source": data.source}
    summary |= {"stories": told, "seconds": seconds}
    metrics_file.write_json(folder / "summary.json", summary)
    console.print(_table(told))
    for result in told.values():
        terminal.say(console, f"- {result['finding']}")
    terminal.say(console, f"figures and metrics are in {folder} ({seconds:.0f} s)")
    return summary


def first_images(data: Data, count: int) -> Data:
    """Returns the same data with the first `count` training images."""
    return data._replace(
        train_images=data.train_images[:count], train_labels=data.train_labels[:count]
    )


def tell(
    story: Story,
    data: Data,
    folder: Path,
    recorder: metrics_file.Recorder,
    console: Console,
    size: Size,
) -> dict[str, Any]:
    """Runs a story's variants, draws its figure, and returns its part of the summary."""
    with terminal.progress(console) as bar:
        task = bar.add_task(story.name, total=len(story.variants))
        traces = []
        for variant in story.variants:
            traces.append(_run(story, variant, data, recorder, size))
            bar.advance(task)
    file = f"{story.name}.png"
    story.draw(traces, folder / file)
    finding = story.finding(traces)
    return {"finding": finding, "figure": file, "runs": {t.name: t.summary() for t in traces}}


def _run(
    story: Story, variant: Variant, data: Data, recorder: metrics_file.Recorder, size: Size
) -> Trace:
    """Trains one variant for its number of steps, in whole epochs, and records it."""
    batch = min(variant.config.batch_size, len(data.train_labels))
    steps = max(2, round(variant.steps * size.share_of_steps))
    epochs = -(-steps // (len(data.train_labels) // batch))
    sizes = size.sizes or variant.config.sizes
    config = dataclasses.replace(variant.config, batch_size=batch, epochs=epochs, sizes=sizes)
    labels = {"story": story.name, "run": variant.name}
    trace = Trace(variant.name)
    for epoch in loop.train(loop.prepare(config, data), data):
        trace.add(epoch, variant.watch)
        recorder.write_all(metrics_file.step_records(epoch, variant.config.log_every, **labels))
        recorder.write_all([metrics_file.epoch_record(epoch, **labels)])
    return trace


def _table(told: dict[str, Any]) -> Table:
    table = Table(title="jaxclip demo", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("story", "run", "first loss", "last loss", "test accuracy"):
        table.add_column(column, overflow="fold")
    for name, result in told.items():
        for i, (run, summary) in enumerate(result["runs"].items()):
            losses = [terminal.number(summary[key]) for key in ("first_loss", "last_loss")]
            last = i + 1 == len(result["runs"])
            accuracy = terminal.percent(summary["test_accuracy"])
            table.add_row(name if i == 0 else "", run, *losses, accuracy, end_section=last)
    return table
