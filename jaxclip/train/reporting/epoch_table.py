"""The table of a run's epochs, printed line by line."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from jaxclip.train.reporting.terminal import heading, number, numbers, percent, row_of


class _Column(NamedTuple):
    head: str
    key: str  # of the scores
    width: int
    write: Callable[[float], str]


_COLUMNS = (
    _Column("train loss", "train_loss", 9, number),
    _Column("train accuracy", "train_accuracy", 8, percent),
    _Column("test loss", "test_loss", 9, number),
    _Column("test accuracy", "test_accuracy", 8, percent),
    _Column("mean gradient", "grad_norm_mean", 9, number),
    _Column("largest gradient", "grad_norm_max", 9, number),
    _Column("steps clipped", "clipped_fraction", 8, percent),
    _Column("learning rate", "learning_rate", 8, "{:.3g}".format),
)
# The order in which columns are left out of a table that is too wide.
_OPTIONAL = (
    *("grad_norm_mean", "learning_rate", "train_accuracy", "test_loss", "clipped_fraction"),
    *("grad_norm_max", "train_loss"),
)


class EpochTable:
    """A line for each epoch, with as many columns as the console is wide."""

    def __init__(self, console: Console, epochs: int, *, clips: bool, constant_rate: bool):
        """Chooses the columns.

        Args:
          console: where the table is printed.
          epochs: the number of epochs of the run.
          clips: whether a rule may clip.
          constant_rate: whether the learning rate stays the same.
        """
        self._epochs, first = epochs, len(name(epochs - 1, epochs))
        unused = {"clipped_fraction"} if not clips else set()
        unused |= {"learning_rate"} if constant_rate else set()
        self._columns = [column for column in _COLUMNS if column.key not in unused]
        for key in _OPTIONAL:
            if first + sum(column.width + 2 for column in self._columns) > console.width:
                self._columns = [column for column in self._columns if column.key != key]
        self._widths = [first, *(column.width for column in self._columns)]

    def head(self) -> list[str]:
        """Returns the lines above the first epoch."""
        return heading(["", *(column.head for column in self._columns)], self._widths)

    def line(self, number: int, scores: Mapping[str, Any]) -> str:
        """Returns an epoch's line; its number counts from 0."""
        found = [(column, scores[column.key]) for column in self._columns]
        cells = ["-" if value is None else column.write(value) for column, value in found]
        return row_of([name(number, self._epochs), *cells], self._widths)


def name(number: int, epochs: int) -> str:
    """Returns an epoch's name, from 1; `number` counts from 0, as in `metrics.jsonl`.

    >>> name(0, 30)
    'epoch 1/30'
    """
    return f"epoch {number + 1}/{epochs}"


def losses(first_step: int, every: int, values: Sequence[float]) -> str:
    """Returns a line with the losses of an epoch's recorded steps, whose numbers count from 0.

    >>> losses(468, 100, [0.0811, 0.0860])
    '  loss at steps 468 to 568, every 100: 0.0811 0.0860'
    """
    if len(values) == 1:
        return f"  loss at step {first_step}: {number(values[0])}"
    steps = f"{first_step} to {first_step + every * (len(values) - 1)}"
    each = f", every {every}" * (every > 1)
    return f"  loss at steps {steps}{each}: {numbers(values)}"
