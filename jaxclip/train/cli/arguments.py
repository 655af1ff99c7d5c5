"""An `argparse` parser whose errors are one line, with the word that was probably meant."""

import argparse
import textwrap
from typing import Any, NoReturn

from jaxclip.train import words
from jaxclip.train.errors import UserError


class _Help(argparse.HelpFormatter):
    """Breaks lines between words only, never at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = (self._split_lines(line, width) for line in text.splitlines())
        return "\n".join(indent + "\n  ".join(line) for line in lines)


class Parser(argparse.ArgumentParser):
    """Raises `UserError`; for an unknown command, flag or name it says which one resembles it."""

    def __init__(self, **options: Any):
        """Takes the options of `argparse.ArgumentParser`."""
        super().__init__(**{"formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        """Raises `UserError` instead of printing the usage and exiting."""
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            raise UserError(f"{missing}: needed, see {self.prog} --help")
        raise UserError(message.removeprefix("argument "))

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        """Parses arguments; none may be unknown, also not to the parser of a command."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            near = words.closest(word, self._option_string_actions)
            advice = f"did you mean {near}?" if near else f"see {self.prog} --help"
            raise UserError(f"{word}: unknown argument, {advice}")
        return options, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        name = action.option_strings[0] if action.option_strings else action.metavar
        raise UserError(f"{name}={value}: unknown, {words.choose(value, action.choices)}")
