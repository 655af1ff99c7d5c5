"""`jaxclip demo`: vanishing gradients, exploding gradients and max-norm, on one data set.

Each story is a few runs, a figure, and a sentence made from the measured numbers. `demo_stories`
defines them.
"""

import dataclasses
import time
from typing import Any, NamedTuple

from rich.console import Console

from jaxclip.train.commands import demo_stories
from jaxclip.train.commands.demo_stories import Story, Variant
from jaxclip.train.commands.train import set_earlier_run_aside
from jaxclip.train.data import Data
from jaxclip.train.recording import strict_json
from jaxclip.train.recording.history import History
from jaxclip.train.recording.metrics_file import MetricsFile
from jaxclip.train.recording.run_folder import RunFolder
from jaxclip.train.reporting import terminal
from jaxclip.train.training import loop


class Size(NamedTuple):
    """How much the demo computes."""

    images: int
    share_of_steps: float
    sizes: tuple[int, ...] | None  # of the hidden layers; None: those of the story


FULL = Size(12_800, 1.0, None)
SMOKE = Size(256, 0.01, (16, 16))


def run(data: Data, out: str, console: Console, size: Size = FULL) -> dict[str, Any]:
    """Runs the three stories into the folder `out`; returns the content of `summary.json`."""
    start = time.perf_counter()
    with RunFolder(out) as folder:
        terminal.say(console, data.describe())
        set_earlier_run_aside(folder, console)
        return _run(data, folder, console, size, start)


def _run(
    data: Data, folder: RunFolder, console: Console, size: Size, start: float
) -> dict[str, Any]:
    data = first_images(data, size.images)
    count = len(data.train_labels)
    terminal.say(console, f"each run trains on the first {count:,} of them")
    results = {}
    with MetricsFile(folder.path) as metrics:
        first = {"kind": "run", "preset": "demo"}
        metrics.write(first | {"data": data.name, "source": data.source})
        for story in demo_stories.STORIES:
            results[story.name] = _run_story(story, data, folder, metrics, console, size)
    seconds = time.perf_counter() - start
    summary = {"status": "finished", "data": data.name, "source": data.source}
    summary |= {"stories": results, "seconds": seconds}
    strict_json.write(folder.path / "summary.json", summary)
    _show_table(results, console)
    for result in results.values():
        terminal.say(console, f"- {result['finding']}")
    terminal.say(console, f"figures and metrics are in {folder.path} ({seconds:.0f} s)")
    return summary


def first_images(data: Data, count: int) -> Data:
    """Returns the data with the first `count` training images only."""
    return data._replace(
        train_images=data.train_images[:count], train_labels=data.train_labels[:count]
    )


def _run_story(
    story: Story,
    data: Data,
    folder: RunFolder,
    metrics: MetricsFile,
    console: Console,
    size: Size,
) -> dict[str, Any]:
    """Trains a story's variants and draws its figure; returns its part of the summary."""
    histories = []
    with terminal.progress(console) as bar:
        task = bar.add_task(story.name, total=len(story.variants))
        for variant in story.variants:
            histories.append(_run_variant(story, variant, data, metrics, size))
            folder.check()
            bar.advance(task)
    file = f"{story.name}.png"
    story.draw(histories, folder.path / file)
    runs = {history.name: history.summary() for history in histories}
    return {"finding": story.finding(histories), "figure": file, "runs": runs}


def _run_variant(
    story: Story, variant: Variant, data: Data, metrics: MetricsFile, size: Size
) -> History:
    """Trains and records one variant, for whole epochs with at least its number of steps."""
    batch = min(variant.config.batch_size, len(data.train_labels))
    steps = max(2, round(variant.steps * size.share_of_steps))
    epochs = -(-steps // (len(data.train_labels) // batch))
    sizes = size.sizes or variant.config.sizes
    config = dataclasses.replace(variant.config, batch_size=batch, epochs=epochs, sizes=sizes)
    history = History(variant.name)
    for epoch in loop.train(loop.prepare(config, data), data):
        history.add(epoch, variant.watch)
        metrics.write_epoch(epoch, config.log_every, story=story.name, run=variant.name)
    return history


def _show_table(results: dict[str, Any], console: Console) -> None:
    cells = []
    for name, result in results.items():
        cells.append([name, "", "", ""])
        for run, summary in result["runs"].items():
            losses = [terminal.number(summary[key]) for key in ("first_loss", "last_loss")]
            cells.append([f"  {run}", *losses, terminal.percent(summary["test_accuracy"])])
    terminal.say(console, "")
    heads = ("story and run", "first loss", "last loss", "test accuracy")
    terminal.table(console, heads, cells, optional=("first loss",))
    terminal.say(console, "")
