"""Terminal output: lines, records, tables, and a progress bar.

Text is wrapped between words where the output has a width: on a terminal, or by COLUMNS. Elsewhere
a line has any length, so that a log can be searched. No word or number is broken.
"""

import contextlib
import math
import os
import re
import textwrap
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

_GLUE = "\0"  # a space at which no line ends
_TOGETHER = re.compile(r"( )(?=%)|(?<=--)(\S+ )(?=[^\s-])")  # 24.4 %, --clip global_norm=3


def console(quiet: bool = False) -> Console:
    """Returns Rich's console; without a width, tables have 120 columns and lines any length."""
    result = Console(quiet=quiet)
    has_width = result.is_terminal or "COLUMNS" in os.environ
    return result if has_width else Console(quiet=quiet, width=120, soft_wrap=True)


def number(value: float) -> str:
    """Formats a loss or a norm as the tutorials do: 0.0811, 18.02, 3.026e+05, nan."""
    if not math.isfinite(value):
        return str(float(value))
    size = abs(value)
    if size and size < 1e-3:
        return f"{value:.2e}"
    if size >= 99999.5:  # which has six digits when rounded
        return f"{value:.3e}"
    return f"{value:.{4 if size < 10 else 2 if size < 1e4 else 0}f}"


def percent(value: float) -> str:
    """Formats a fraction in percent."""
    return f"{100 * value:.2f} %"


def numbers(values) -> str:
    """Formats a row of numbers."""
    return " ".join(number(v) for v in values)


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints a text as it is, wrapped between words where the output has a width."""
    if not console.soft_wrap:
        text = wrapped(text, console.width)
    console.out(text, style=style, highlight=False)


def say_next(console: Console, command: str) -> None:
    """Prints the next command to type, after an empty line; it can be copied as it is."""
    text = f"next: {command}"
    if not console.soft_wrap:
        text = wrapped(text, console.width - 2).replace("\n", " \\\n")
    console.out("\n" + text, highlight=False)


def wrapped(text: str, width: int) -> str:
    """Returns a text in lines of at most `width` characters, unless a word is longer."""
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    glued = _TOGETHER.sub(lambda found: found[0].replace(" ", _GLUE), text)
    lines = textwrap.wrap(
        *(glued, width),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace(_GLUE, " ")


def records(console: Console, title: str, rows: Mapping[str, str]) -> None:
    """Prints an empty line, a title, and names and values, in columns if there is space."""
    say(console, "")
    say(console, title, style="bold")
    widest = max(map(len, rows), default=0)
    if widest + 4 + max(map(len, rows.values()), default=0) > console.width:
        widest = 0
    for name, value in rows.items():
        say(console, f"  {name:{widest}}  {value}")


def table(
    console: Console,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    optional: Sequence[str] = (),
    bold: int | None = None,
) -> list[str]:
    """Prints a table as wide as the console at most; returns the columns left out for that.

    Columns of dashes alone are left out. A table that is too wide without its optional columns is
    printed as records.

    Args:
      console: where to print.
      heads: the columns' names. The first column is text, the others are numbers.
      rows: the cells.
      optional: columns that may be left out, the first one first.
      bold: the row to print in bold.
    """
    columns = {head: [row[i] for row in rows] for i, head in enumerate(heads)}
    columns = {head: cells for head, cells in columns.items() if {*cells} != {"-"}}
    left_out = []
    for head in optional:
        if sum(_widths(columns)) + 2 * len(columns) - 2 <= console.width:
            break
        if columns.pop(head, None):
            left_out.append(head)
    widths = _widths(columns)
    cells = list(zip(*columns.values(), strict=True))
    if sum(widths) + 2 * len(columns) - 2 > console.width:
        for i, (name, *values) in enumerate(cells):
            pairs = zip(list(columns)[1:], values, strict=True)
            say(console, name, style="bold" if i == bold else None)
            if known := [f"{head} {value}" for head, value in pairs if value]:
                say(console, f"  {', '.join(known)}")
        return left_out
    for line in heading(list(columns), widths):
        console.out(line, highlight=False)
    for i, row in enumerate(cells):
        console.out(row_of(row, widths), style="bold" if i == bold else None, highlight=False)
    return left_out


def _widths(columns: Mapping[str, Sequence[str]]) -> list[int]:
    """Returns the widths of columns; a head takes several lines rather than a wide column."""
    return [max(map(len, [*head.split(), *cells])) for head, cells in columns.items()]


def heading(heads: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Returns the heads in lines, the last ones at the bottom."""
    lines = [textwrap.wrap(head, width) for head, width in zip(heads, widths, strict=True)]
    height = max(map(len, lines))
    padded = [[""] * (height - len(words)) + words for words in lines]
    return [row_of(row, widths) for row in zip(*padded, strict=True)]


def row_of(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Returns a row: the first cell flush left, the others flush right."""
    rest = zip(cells[1:], widths[1:], strict=True)
    return "  ".join([f"{cells[0]:{widths[0]}}", *(f"{c:>{w}}" for c, w in rest)]).rstrip()


def as_flag(finding: str, settings: Mapping[str, Any]) -> str:
    """Returns a finding of a run with these settings, with the flags that follow its advice."""
    flags = flags_for(finding, settings)
    return f"{finding} Try: {' or '.join(flags)}" if flags else finding


def flags_for(finding: str, settings: Mapping[str, Any]) -> list[str]:
    """Returns the flags that follow the advice of a finding, and that change the settings."""
    flags: list[str] = []
    learning_rate = settings["learning_rate"]
    if bound := re.search(r"jaxclip\.clip_by_(global_norm)\((\S+)\)", finding):
        flags.append(f"--clip {bound[1]}={bound[2]}")
    if re.search(r"lower [^.;:]*learning rate|rate may be too high", finding, re.IGNORECASE):
        flags.append(f"--learning-rate {learning_rate / 10:.3g}")
    if "rate may be too low" in finding:
        flags.append(f"--learning-rate {learning_rate * 10:.3g}")
    if "ReLU with He" in finding:
        if (settings.get("activation"), settings.get("init")) != ("relu", "he"):
            flags.append("--activation relu --init he")
        if not settings.get("batch_norm"):
            flags.append("--batch-norm")
    if rule := re.match(r"unclipped: (\w+) .* leave the rule out", finding):
        flags.append(f"--{'project' if rule[1].startswith('project') else 'clip'} none")
    return flags


@contextlib.contextmanager
def doing(console: Console, text: str) -> Generator[None, None, None]:
    """Shows what the program does, on a terminal only, until that is done."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.is_dumb_terminal,
    ) as shown:
        shown.add_task(text)
        yield


def progress(console: Console) -> Progress:
    """Returns a progress bar over epochs, shown on a terminal only, and removed at the end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal or console.is_dumb_terminal,
    )
