"""Flags: one for every field of a run, what its text means, and which values were given.

What is done with them is in `cli`; whether a value is sound is for `presets`.
"""

import argparse
import re
from typing import Any, NoReturn

from jaxclip.train.config import presets
from jaxclip.train.config.presets import CHOICES, DATASETS
from jaxclip.train.errors import UserError

DATA_DIR = "folder with a prepared data set or its original files"
_RULES = {
    "clip": "global_norm=15",
    "project": "max_norm=1,axis=0",
    "guard": "skip_nonfinite,max_consecutive=10",
}


_NUMBERS = {
    "batch_size": "images a step",
    "epochs": "times that all images are seen",
    "log_every": "steps from one record in metrics.jsonl to the next",
    "checkpoint_every": "epochs from one checkpoint to the next; 0 for none",
    "decay_steps": "steps after which the learning rate has come down",
    "seed": "of the first weights, the order of the images, and dropout",
    "init_std": "standard deviation of the first weights, where --init has one",
    "learning_rate": "that of the first step",
    "end_learning_rate": "that of the last step, where --schedule brings it down",
    "power": "of the polynomial schedule",
    "momentum": "of the optimizer momentum",
    "b1": "of Adam and its kin: how long the first moment remembers",
    "b2": "likewise the second moment",
    "weight_decay": "of adamw and stable_adamw",
    "dropout": "share of hidden activations that a training step leaves out",
}
_SWITCHES = {
    "batch_norm": "normalise each hidden layer by its batch",
    "shuffle": "another order of the images in each epoch",
    "allow_nonfinite": "go on where a loss is NaN or infinite",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a `UserError`, and so one line as well."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and leaving."""
        raise UserError(message)


def data(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which images."""
    parser.add_argument("--dataset", metavar="|".join(DATASETS), help="default: mnist, or digits")
    parser.add_argument("--data-dir", help=DATA_DIR)


def processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which of several processes this one is."""
    group = parser.add_argument_group("one of several processes, each of which runs this command")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where the first one is reached")
    group.add_argument("--process-count", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-index", type=int, metavar="N", help="which this is, from 0")
    text = "take all three from Slurm, Open MPI, Kubernetes or a TPU pod"
    group.add_argument("--cluster", action="store_true", help=text)


class _Switch(argparse.BooleanOptionalAction):
    """`--flag` and `--no-flag`, both of which may be given: a list of them is kept."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Appends True or False."""
        del parser, values
        chosen = getattr(namespace, self.dest) or []
        said = not (option_string or "").startswith("--no-")
        setattr(namespace, self.dest, [*chosen, said])


def config(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds a flag for every field of `presets.Config`; none of them has a default here.

    With `several`, each may be repeated, and its values are collected in a list.
    """
    title = "overrides of the preset" + "; repeat one to compare its values" * several
    group = parser.add_argument_group(title)
    many: dict[str, Any] = {"action": "append"} if several else {}
    text = "widths of the hidden layers, as 512,256"
    group.add_argument("--sizes", type=_sizes, metavar="N,N", help=text, **many)
    for name in sorted(CHOICES):
        group.add_argument(_flag(name), metavar="NAME", help=", ".join(CHOICES[name]), **many)
    kinds = {field.name: field.type for field in presets.fields()}
    for name, text in _NUMBERS.items():
        number, letter = (float, "X") if kinds[name] is float else (int, "N")
        group.add_argument(_flag(name), type=number, metavar=letter, help=text, **many)
    for name, text in _SWITCHES.items():
        action = _Switch if several else argparse.BooleanOptionalAction
        group.add_argument(_flag(name), action=action, default=None, help=text)
    for name, example in _RULES.items():
        chain = "several in a chain as A=1+B=2" if several else "repeat for a chain"
        text = f"as {example}; {chain}; none for no rule"
        group.add_argument(_flag(name), action="append", metavar="RULE=VALUE[,k=v]", help=text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of widths as 512,256") from None


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields the user set. `--clip none` alone removes the preset's rules."""
    fields = {f.name for f in presets.fields()} - {"preset"}
    values = {k: v for k, v in vars(options).items() if k in fields and v is not None}
    for name in _RULES:
        if name in values:
            values[name] = _rules(name, values[name])
    return values


def axes(options: argparse.Namespace) -> dict[str, list[Any]]:
    """Returns the values that were given for each field, in the order of the fields."""
    if options.seeds is not None and (options.seeds < 1 or len(options.seed or []) > 1):
        raise UserError(f"--seeds={options.seeds}: must be at least 1, with one --seed or none")
    names = [field.name for field in presets.fields() if field.name not in ("preset", "dataset")]
    axes = {name: values for name in names if (values := getattr(options, name)) is not None}
    for name in _RULES:
        if name in axes:
            axes[name] = [() if text == "none" else _chain(text) for text in axes[name]]
    return {name: list(dict.fromkeys(values)) for name, values in axes.items()}


def _chain(text: str) -> tuple[str, ...]:
    """Takes `A=1+B=2` apart: a plus before a letter, since numbers have some too (1e+5)."""
    return tuple(part.strip() for part in re.split(r"\+(?=\s*[a-z])", text))


def _rules(name: str, texts: list[str]) -> tuple[str, ...]:
    if texts == ["none"]:
        return ()
    if "none" in texts:
        raise UserError(f"--{name} none: cannot be combined with another --{name}")
    return tuple(texts)
