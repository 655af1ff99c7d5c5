"""The command line: reads it, starts what was asked for, and turns a user's error into one line.

Only flags and exit codes live here: 0 done, 1 a run that failed, 2 a request that cannot be met,
130 interrupted. Flax, tensorflow-datasets and matplotlib are loaded when a command needs them.
"""

import argparse
import os
import sys
from typing import Any, NoReturn

from jaxclip.train import presets
from jaxclip.train.errors import UserError
from jaxclip.train.presets import CHOICES

DATASETS = ("mnist", "fashion_mnist", "digits")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are a `UserError`, and so one line as well."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and leaving."""
        raise UserError(message)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    try:
        options = _parser().parse_args(argv)
        code = options.command(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"jaxclip: error: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "jaxclip").partition(".")[0] == "jaxclip":
            raise
        hint = "install it with: pip install 'jaxclip[train]'"
        print(f"jaxclip: error: no module {error.name}; {hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxclip: interrupted; what was written so far is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `jaxclip presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # the disk is full, or a folder went away
        print(f"jaxclip: error: {error}", file=sys.stderr)
        return 1


def _parser() -> _Parser:
    parser = _Parser(prog="jaxclip", description="Gradient clipping for JAX, shown on real data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    demo = commands.add_parser("demo", help="vanishing, exploding and max-norm, in a minute")
    _data_flags(demo)
    demo.add_argument("--out", default="jaxclip-demo", help="folder for figures and metrics")
    demo.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    demo.set_defaults(command=_demo)
    train = commands.add_parser("train", help="one training run of a preset")
    train.add_argument("preset", metavar="PRESET", help=", ".join(presets.PRESETS))
    _data_flags(train)
    train.add_argument("--out", help="output folder (default: runs/PRESET)")
    _config_flags(train)
    train.set_defaults(command=_train)
    listing = commands.add_parser("presets", help="what can be run, with every hyper-parameter")
    listing.set_defaults(command=_presets)
    return parser


def _data_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", metavar="|".join(DATASETS), help="default: mnist, or digits")
    parser.add_argument("--data-dir", help="folder with a prepared data set or its original files")


def _config_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every field of `presets.Config`; none of them has a default here."""
    group = parser.add_argument_group("overrides of the preset")
    group.add_argument("--sizes", type=_sizes, help="widths of the hidden layers, as 512,256")
    for name in sorted(CHOICES):
        group.add_argument(_flag(name), metavar="NAME", help=", ".join(CHOICES[name]))
    for name in ("batch_size", "epochs", "log_every", "decay_steps", "seed"):
        group.add_argument(_flag(name), type=int, metavar="N")
    for name in (
        *("init_std", "learning_rate", "end_learning_rate", "power"),
        *("momentum", "b1", "b2", "weight_decay"),
    ):
        group.add_argument(_flag(name), type=float, metavar="X")
    for name in ("batch_norm", "shuffle", "allow_nonfinite"):
        group.add_argument(_flag(name), action=argparse.BooleanOptionalAction, default=None)
    for name, example in (("clip", "global_norm=15"), ("project", "max_norm=1,axis=0")):
        text = f"as {example}; repeat for a chain; none for no rule"
        group.add_argument(_flag(name), action="append", metavar="RULE=VALUE[,k=v]", help=text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of widths as 512,256") from None


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields the user set. `--clip none` alone removes the preset's rules."""
    fields = {f.name for f in presets.fields()} - {"preset"}
    values = {k: v for k, v in vars(options).items() if k in fields and v is not None}
    for name in ("clip", "project"):
        if name in values:
            values[name] = _rules(name, values[name])
    return values


def _rules(name: str, texts: list[str]) -> tuple[str, ...]:
    if texts == ["none"]:
        return ()
    if "none" in texts:
        raise UserError(f"--{name} none: cannot be combined with another --{name}")
    return tuple(texts)


def _console():
    from rich.console import Console

    return Console()


def _demo(options: argparse.Namespace) -> int:
    from jaxclip.train import data, demo

    size = demo.SMOKE if options.smoke else demo.FULL
    demo.demo(data.load(options.dataset, options.data_dir), options.out, _console(), size)
    return 0


def _train(options: argparse.Namespace) -> int:
    config = presets.get(options.preset).override(_overrides(options))
    from jaxclip.train import data, run

    run.check(config)
    out = options.out or f"runs/{config.preset}"
    run.train(config, data.load(options.dataset, options.data_dir), out, _console())
    return 0


def _presets(options: argparse.Namespace) -> int:
    from jaxclip.train import report

    del options
    console = _console()
    console.print(report.presets_table())
    report.say(console, "Every flag can be given to `jaxclip train PRESET`, and --out, --data-dir.")
    return 0
