"""Flags: one for every field of `presets.Config`, and the values that the user gave.

`presets` checks the values.
"""

import argparse
import re
from typing import Any, NoReturn

from jaxclip.train.config import presets
from jaxclip.train.config.presets import CHOICES, DATASETS, flag
from jaxclip.train.errors import UserError

DATA_DIR = "folder with a prepared data set or its original files"
_RULES = {  # with an example
    "clip": "global_norm=15",
    "project": "max_norm=1,axis=0",
    "guard": "skip_nonfinite,max_consecutive=10",
}
_NUMBERS = {
    "batch_size": "images in each step",
    "epochs": "passes over the training images",
    "log_every": "steps from one record in metrics.jsonl to the next",
    "checkpoint_every": "epochs from one checkpoint to the next; 0 for none",
    "decay_steps": "steps until the learning rate reaches --end-learning-rate",
    "seed": "seed of the initial weights, the order of the images, and dropout",
    "init_std": "standard deviation of the initial weights, if --init has one",
    "learning_rate": "learning rate of the first step",
    "end_learning_rate": "learning rate of the last step, if --schedule changes it",
    "power": "exponent of the polynomial schedule",
    "momentum": "momentum, for --optimizer momentum",
    "b1": "decay rate of the first moment in adam, adamw, stable_adamw",
    "b2": "decay rate of the second moment in adam, adamw, stable_adamw",
    "weight_decay": "weight decay of adamw and stable_adamw",
    "dropout": "share of hidden activations that a training step sets to 0",
}
_SWITCHES = {
    "batch_norm": "normalize each hidden layer by its batch",
    "shuffle": "shuffle the images before each epoch",
    "allow_nonfinite": "continue after a loss that is NaN or infinite",
}


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError`, so its errors are one line too."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError` instead of printing the usage and exiting."""
        raise UserError(message)


def data(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose the images."""
    parser.add_argument("--dataset", metavar="|".join(DATASETS), help="default: mnist, or digits")
    parser.add_argument("--data-dir", help=DATA_DIR)


def processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that connect several processes."""
    group = parser.add_argument_group("several processes, each of which runs this command")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--process-count", type=int, metavar="N", help="number of processes")
    group.add_argument(
        "--process-index", type=int, metavar="N", help="number of this process, from 0"
    )
    text = "read all three from Slurm, Open MPI, Kubernetes or a TPU pod"
    group.add_argument("--cluster", action="store_true", help=text)


class _Switch(argparse.BooleanOptionalAction):
    """`--flag` and `--no-flag`, which may both be given: collects them in a list."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Appends True or False."""
        del parser, values
        earlier = getattr(namespace, self.dest) or []
        value = not (option_string or "").startswith("--no-")
        setattr(namespace, self.dest, [*earlier, value])


def config(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds a flag for every field of `presets.Config`, without defaults.

    Args:
      parser: receives the flags.
      several: collect the values of a repeated flag in a list.
    """
    title = "overrides of the preset" + "; repeat one to compare its values" * several
    group = parser.add_argument_group(title)
    many: dict[str, Any] = {"action": "append"} if several else {}
    text = "widths of the hidden layers, as 512,256"
    group.add_argument("--sizes", type=_sizes, metavar="N,N", help=text, **many)
    for name in sorted(CHOICES):
        group.add_argument(flag(name), metavar="NAME", help=", ".join(CHOICES[name]), **many)
    kinds = {field.name: field.type for field in presets.fields()}
    for name, text in _NUMBERS.items():
        number, letter = (float, "X") if kinds[name] is float else (int, "N")
        group.add_argument(flag(name), type=number, metavar=letter, help=text, **many)
    for name, text in _SWITCHES.items():
        action = _Switch if several else argparse.BooleanOptionalAction
        group.add_argument(flag(name), action=action, default=None, help=text)
    for name, example in _RULES.items():
        chain = "several in a chain as A=1+B=2" if several else "repeat for a chain"
        text = f"for example {example}; {chain}; none for no rule"
        group.add_argument(flag(name), action="append", metavar="RULE=VALUE[,k=v]", help=text)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of widths as 512,256") from None


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields that the user set; `--clip none` sets no rules."""
    fields = {f.name for f in presets.fields()} - {"preset"}
    values = {k: v for k, v in vars(options).items() if k in fields and v is not None}
    for name in _RULES:
        if name in values:
            values[name] = _rules(name, values[name])
    return values


def axes(options: argparse.Namespace) -> dict[str, list[Any]]:
    """Returns the values that the user gave for each field, in the order of the fields."""
    if options.seeds is not None and (options.seeds < 1 or len(options.seed or []) > 1):
        raise UserError(f"--seeds={options.seeds}: must be at least 1, with one --seed or none")
    names = [field.name for field in presets.fields() if field.name not in ("preset", "dataset")]
    axes = {name: values for name in names if (values := getattr(options, name)) is not None}
    for name in _RULES:
        if name in axes:
            axes[name] = [() if text == "none" else _chain(text) for text in axes[name]]
    return {name: list(dict.fromkeys(values)) for name, values in axes.items()}


def _chain(text: str) -> tuple[str, ...]:
    """Splits `A=1+B=2` at a plus before a letter; numbers have pluses too (1e+5)."""
    return tuple(part.strip() for part in re.split(r"\+(?=\s*[a-z])", text))


def _rules(name: str, texts: list[str]) -> tuple[str, ...]:
    if texts == ["none"]:
        return ()
    if "none" in texts:
        raise UserError(f"--{name} none: cannot be combined with another --{name}")
    return tuple(texts)
