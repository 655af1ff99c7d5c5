"""Flags: one for every field of `presets.Config`, and the values that the user gave.

`presets` checks the values.
"""

import argparse
import collections
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from jaxclip.train.config import presets, rule_specs
from jaxclip.train.config.presets import CHOICES, DATASETS, PRESETS, flag
from jaxclip.train.errors import UserError

Arguments: TypeAlias = Any  # a parser or a group of it: argparse has no public type for both
DATA_DIR = "folder with a prepared data set or its original files"
_MOST_SEEDS = 10_000
_RULES = {  # an example, and the name of VALUE
    "clip": "global_norm=15",
    "project": "max_norm=1,axis=0,layers=hidden",
    "guard": "skip_nonfinite,max_consecutive=10",
}
_GROUPS = {
    "network": {
        "sizes": "widths of the hidden layers, as 512,256",
        "activation": "",
        "init": "",
        "init_std": "standard deviation of the initial weights, if --init has one",
        "batch_norm": "normalize each hidden layer by its batch",
        "dropout": "share of hidden activations that a training step sets to 0",
        "dtype": "",
    },
    "training": {
        "epochs": "passes over the training images",
        "batch_size": "images in each step",
        "loss": "",
        "optimizer": "",
        "learning_rate": "learning rate of the first step",
        "schedule": "",
        "end_learning_rate": "learning rate of the last step, if --schedule changes it",
        "decay_steps": "steps until the learning rate reaches --end-learning-rate",
        "power": "exponent of the polynomial schedule",
        "momentum": "momentum, for --optimizer momentum",
        "b1": "decay rate of the first moment in adam, adamw, stable_adamw",
        "b2": "decay rate of the second moment in adam, adamw, stable_adamw",
        "weight_decay": "weight decay of adamw and stable_adamw",
        "shuffle": "shuffle the images before each epoch",
        "seed": "seed of the initial weights, the order of the images, and dropout",
        "allow_nonfinite": "continue after a loss that is NaN or infinite",
        "parallel": "",
    },
    "rules": dict.fromkeys(_RULES, ""),
    "records": {
        "log_every": "steps from one record in metrics.jsonl to the next",
        "checkpoint_every": "epochs from one checkpoint to the next; 0 for none",
        "report": "",
    },
}


def data(parser: Arguments) -> None:
    """Adds the flags that choose the images."""
    default = "mnist, or digits where mnist is not available"
    text = f"{', '.join(DATASETS)} (default: {default})"
    parser.add_argument("--dataset", metavar="NAME", choices=DATASETS, help=text)
    parser.add_argument("--data-dir", metavar="FOLDER", help=DATA_DIR)


def quiet(parser: Arguments) -> None:
    """Adds `--quiet`."""
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that connect several processes."""
    text = "Each of them runs this command."
    group = parser.add_argument_group("several processes", text)
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    whole: dict[str, Any] = {"metavar": "N", "type": _number("process_count", int)}
    group.add_argument("--process-count", help="number of processes", **whole)
    whole["type"] = _number("process_index", int)
    group.add_argument("--process-index", help="number of this process, from 0", **whole)
    text = "read all three from Slurm, Open MPI, Kubernetes or a TPU pod"
    group.add_argument("--cluster", action="store_true", help=text)


def seeds(parser: Arguments) -> None:
    """Adds `--seeds`."""
    text = "number of seeds, from --seed on (default: 1)"
    parser.add_argument("--seeds", type=_number("seeds", int), metavar="N", help=text)


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
    kinds = {field.name: field.type for field in presets.fields()}
    for title, texts in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, text in texts.items():
            options = _options(name, kinds[name], text, several)
            action = group.add_argument(flag(name), **options)
            if name in _RULES:  # for argcomplete, as VALUE is free
                names = [f"{rule}=" for rule in _names(name)]
                vars(action)["completer"] = lambda names=names, **_: names


def _options(name: str, kind: Any, text: str, several: bool) -> dict[str, Any]:
    """Returns what `add_argument` needs to know of a field."""
    many: dict[str, Any] = {"action": "append"} if several else {}
    if name in _RULES:
        chain = "several in a chain as A=1+B=2" if several else "repeat for a chain"
        example = f"as {_RULES[name]}; {chain}; none for no rule"
        metavar = "RULE[,k=v]" if name == "guard" else "RULE=VALUE[,k=v]"
        text = f"{', '.join(_names(name))}; {example} {_default(name)}"
        return {"action": "append", "metavar": metavar, "help": text}
    if name in CHOICES:
        text = f"{', '.join(CHOICES[name])} {_default(name)}"
        return {"choices": CHOICES[name], "metavar": "NAME", "help": text, **many}
    text = f"{text} {_default(name)}"
    if kind is bool:
        action = _Switch if several else argparse.BooleanOptionalAction
        return {"action": action, "default": None, "help": text}
    if name == "sizes":
        return {"type": _sizes, "metavar": "N,N", "help": text, **many}
    number, letter = (float, "X") if kind is float else (int, "N")
    return {"type": _number(name, number), "metavar": letter, "help": text, **many}


def _names(kind: str) -> list[str]:
    """Returns the shortest names of the rules that a flag takes."""
    return [rule.short[0] if rule.short else rule.function for rule in rule_specs.RULES[kind]]


def _default(name: str) -> str:
    """Returns a field's default as text, and those of at most two presets that have others."""
    values = {preset: getattr(config, name) for preset, config in PRESETS.items()}
    usual = collections.Counter(values.values()).most_common(1)[0][0]
    others = [f"{preset}: {_text(v)}" for preset, v in values.items() if v != usual]
    most = f"(default: {'; '.join([_text(usual), *others])})"
    return most if len(others) <= 2 else "(default: the preset's)"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return {"True": "yes", "False": "no", "None": "all"}.get(str(value), f"{value}")


def _number(name: str, kind: type) -> Callable[[str], Any]:
    """Returns a function that reads a flag's number."""

    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise UserError(f"{flag(name)}={text}: must be {wanted}") from None

    return read


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--sizes={text}: must be widths, as 512,256") from None


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
    if options.seeds is not None and options.seeds > _MOST_SEEDS:
        raise UserError(f"--seeds={options.seeds}: must be at most {_MOST_SEEDS:,}")
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
        raise UserError(f"--{name} none: cannot be combined with another --{name}, leave it out")
    return tuple(texts)
