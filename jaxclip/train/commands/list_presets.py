"""`jaxclip presets`: prints every hyper-parameter of every preset."""

from rich import box
from rich.console import Console
from rich.table import Table

from jaxclip.train.config import presets
from jaxclip.train.reporting import terminal


def run(console: Console) -> None:
    """Prints the table of presets, and how to change them."""
    console.print(_table())
    more = "and --out, --data-dir, --config, --resume and --tensorboard"
    terminal.say(console, f"`jaxclip train PRESET` takes each of these flags, {more}.")


def _table() -> Table:
    table = Table(title="jaxclip train PRESET", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("flag", no_wrap=True)
    for name in presets.PRESETS:
        table.add_column(name, overflow="fold")
    table.add_row("", *presets.SUMMARIES.values(), end_section=True)
    for field in presets.fields()[1:]:
        values = [_value(config, field.name) for config in presets.PRESETS.values()]
        table.add_row(presets.flag(field.name), *values)
    return table


def _value(config: presets.Config, field: str) -> str:
    """Returns a field's value as text; a dash if it has no effect."""
    value = getattr(config, field)
    if not config.uses(field):
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    defaults = {"dataset": "mnist, or digits", "decay_steps": "all steps"}
    return defaults[field] if value is None else str(value)
