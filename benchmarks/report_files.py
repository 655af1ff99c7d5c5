"""Shared by the benchmarks: options, versions, and report files.

A report is a JSON file with the numbers and a Markdown file with the tables. The text around the
tables is written by hand and stays.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jaxclip
from jaxclip.train.errors import UserError
from jaxclip.train.recording import strict_json

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


class Plain(argparse.ArgumentParser):
    """A parser that reports a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of exiting."""
        raise UserError(message)

    def main(self, argv: list[str] | None, run: Callable[[argparse.Namespace], None]) -> int:
        """Parses the options and runs the program; returns the exit code."""
        try:
            options = self.parse_args(argv)
            self.check(options)
            run(options)
        except UserError as error:
            print(f"{self.prog}: error: {error}", file=sys.stderr)
            return error.exit_code
        return 0

    def check(self, options: argparse.Namespace) -> None:
        """Raises if the options contradict each other or need a package that is missing."""


class Parser(Plain):
    """A parser with the options of the benchmarks that compare with TensorFlow."""

    def __init__(self, name: str, described: str):
        """Names the program."""
        super().__init__(prog=f"python -m benchmarks.{name}", description=described)
        self.add_argument(
            "--data-dir", help="folder with MNIST's original files, or prepared by TFDS"
        )
        self.add_argument("--out", default="docs", help="output folder (default: docs)")
        self.add_argument("--smoke", action="store_true", help="a short run on 8x8 digits")

    def check(self, options: argparse.Namespace) -> None:
        if options.smoke and options.data_dir is not None:
            raise UserError(f"--data-dir={options.data_dir}: --smoke takes the 8x8 digits")
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError('TensorFlow is missing: pip install -e ".[parity]"')


def facts(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the command, versions and machine of a benchmark that compares with TensorFlow."""
    arguments = "--smoke" if options.smoke else "--data-dir mnist"
    packages = ("tensorflow", "jax", "jaxlib", "optax", "flax", "numpy", "keras")
    return known(f"python -m benchmarks.{name} {arguments}", packages)


def known(command: str, packages: Sequence[str]) -> dict[str, Any]:
    """Returns the command, date, number of cores, and versions of the installed packages."""
    there = {name: _version(name) for name in packages if importlib.util.find_spec(name)}
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "versions": {"jaxclip": jaxclip.__version__} | there,
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str:
    """Returns the version of a package by its import name."""
    return importlib.metadata.version(importlib.metadata.packages_distributions()[package][0])


def head(content: dict[str, Any]) -> str:
    """Returns the line above the tables."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    data = f"; data: {content['data']}" if "data" in content else ""
    return f"`{content['command']}`, {content['date']}; {versions}; {content['cores']} cores{data}."


def open_folder(out: str, name: str) -> Path:
    """Creates the output folder; raises if an existing report has no markers."""
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _around(folder / f"{name}.md")
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written to ({error.strerror})") from None
    return folder


def _around(path: Path) -> tuple[str, str]:
    """Returns the text before and after the tables."""
    text = path.read_text() if path.exists() else f"# {path.stem}\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{path}: the lines {BEGIN} and {END} are missing")
    return before, after


def write(folder: Path, name: str, content: dict[str, Any], text: str) -> None:
    """Writes the numbers as JSON, each list on one line, and the text between the markers."""
    numbers = json.dumps(strict_json.plain(content), indent=1, allow_nan=False)
    in_one = r"\[\s*([^][{}]*?)\s*\]"
    lines = re.sub(in_one, lambda found: f"[{' '.join(found[1].split())}]", numbers)
    path = folder / f"{name}.md"
    try:
        (folder / f"{name}.json").write_text(lines + "\n")
        before, after = _around(path)
        path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    except OSError as error:
        raise UserError(f"--out={folder}: cannot be written to ({error.strerror})") from None


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
