"""`jaxclip presets`: prints every hyper-parameter of every preset, as flags."""

import collections
from typing import Any

from rich.console import Console

from jaxclip.train.config import presets
from jaxclip.train.config.presets import Config
from jaxclip.train.reporting import terminal


def run(console: Console) -> None:
    """Prints what each preset shows, its own flags, and those that most presets share."""
    flags = {name: _flags(config) for name, config in presets.PRESETS.items()}
    uses = collections.Counter(flag for own in flags.values() for flag in own)
    usual = [flag for flag in uses if uses[flag] > len(flags) / 2]
    for name, own in flags.items():
        terminal.say(console, f"{name}: {presets.SUMMARIES[name]}", style="bold")
        terminal.say(console, f"  {presets.LESSONS[name]}")
        terminal.say(console, f"  {'  '.join(flag for flag in own if flag not in usual)}")
        terminal.say(console, "")
    terminal.say(console, "flags of every preset that lists no others", style="bold")
    terminal.say(console, f"  {'  '.join(usual)}")
    unset = "Without --dataset: mnist, or digits. Without --decay-steps: all steps of the run."
    terminal.say(console, f"  {unset} On the digits explode has --learning-rate 1.")
    terminal.say_next(console, "jaxclip train explode --dataset digits")


def _flags(config: Config) -> list[str]:
    """Returns the settings that have an effect, as flags."""
    used = [field.name for field in presets.fields()[1:] if config.uses(field.name)]
    values = {name: getattr(config, name) for name in used}
    return [_flag(name, value) for name, value in values.items() if value is not None]


def _flag(name: str, value: Any) -> str:
    flag = presets.flag(name)
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    if name == "sizes":
        return f"{flag} {','.join(map(str, value))}"
    if isinstance(value, tuple):
        return "  ".join(f"{flag} {rule}" for rule in value) or f"{flag} none"
    return f"{flag} {value}"
