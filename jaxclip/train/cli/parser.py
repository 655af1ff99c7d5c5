"""The parser of the whole command line: commands and their flags."""

import argparse
import os

import jaxclip
from jaxclip.train.cli import flags, start
from jaxclip.train.cli.arguments import Parser
from jaxclip.train.config import presets

_NEXT = "Start with: jaxclip demo --dataset digits. Flags of a command: jaxclip COMMAND --help."


def build() -> Parser:
    """Returns the parser; `command` in its result is the function to call with the result."""
    parser = Parser(
        prog="jaxclip",
        description="Gradient clipping for JAX, shown on real data.",
        epilog=_NEXT,
    )
    version = f"jaxclip {jaxclip.__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    parser.set_defaults(command=lambda options: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    _add_demo(commands)
    _add_presets(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_diagnose(commands)
    _add_plot(commands)
    _complete(parser)
    return parser


def _complete(parser: Parser) -> None:
    """Answers the shell if it asks how a command line can go on, and ends the program."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _add(commands, name: str, command, text: str, usage: str) -> Parser:
    """Adds a command."""
    sentence = f"{text[0].upper()}{text[1:]}."
    usage = f"jaxclip {name} {usage}"
    parser: Parser = commands.add_parser(name, help=text, description=sentence, usage=usage)
    parser.set_defaults(command=command)
    return parser


def _add_demo(commands) -> None:
    text = "vanishing and exploding gradients and max-norm, in a minute"
    parser = _add(commands, "demo", start.demo, text, "[flags]")
    flags.data(parser)
    text = "folder for figures and metrics (default: jaxclip-demo)"
    parser.add_argument("--out", metavar="FOLDER", default="jaxclip-demo", help=text)
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    flags.quiet(parser)


def _add_presets(commands) -> None:
    text = "the presets: what each shows, and its hyper-parameters as flags"
    _add(commands, "presets", start.list_presets, text, "")


def _add_run(parser: Parser, default: str = "") -> flags.Arguments:
    """Adds the arguments that name a run and its images; returns the group for more of them."""
    names = ", ".join(presets.PRESETS)
    text = f"{names}{default}, or from --config"
    choices = presets.PRESETS
    parser.add_argument("preset", metavar="PRESET", nargs="?", choices=choices, help=text)
    group = parser.add_argument_group("run")
    text = "a run's config.json, or some of its fields"
    group.add_argument("--config", metavar="FILE", help=text)
    flags.data(group)
    return group


def _add_train(commands) -> None:
    text = "trains a preset, changed by flags"
    parser = _add(commands, "train", start.train, text, "[PRESET] [flags]")
    group = _add_run(parser)
    text = "output folder (default: runs/PRESET)"
    group.add_argument("--out", metavar="FOLDER", help=text)
    group.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    group.add_argument("--tensorboard", action="store_true", help="write event files too")
    flags.quiet(group)
    flags.config(parser)
    flags.processes(parser)


def _add_evaluate(commands) -> None:
    text = "test scores of a run's last checkpoint"
    parser = _add(commands, "evaluate", start.evaluate, text, "FOLDER [flags]")
    parser.add_argument("folder", metavar="FOLDER", help="a run's output folder")
    parser.add_argument("--data-dir", metavar="FOLDER", help=flags.DATA_DIR)


def _add_compare(commands) -> None:
    text = "trains a preset several times: a flag that is given again is another value to compare"
    parser = _add(commands, "compare", start.compare, text, "[PRESET] [flags]")
    group = _add_run(parser, f" (default: {start.COMPARED})")
    text = "output folder (default: runs/compare)"
    group.add_argument("--out", metavar="FOLDER", default="runs/compare", help=text)
    flags.seeds(group)
    text = "train the runs of one program together (default: where that is faster)"
    group.add_argument("--at-once", action=argparse.BooleanOptionalAction, help=text)
    flags.quiet(group)
    flags.config(parser, several=True)


def _add_diagnose(commands) -> None:
    text = "says whether gradients vanish or explode, from logged metrics"
    parser = _add(commands, "diagnose", start.diagnose, text, "FILE [flags]")
    text = (
        "JSON lines of jaxclip.metrics, as metrics.jsonl; a run's folder; or - for standard input"
    )
    parser.add_argument("file", metavar="FILE", help=text)
    text = "name of the monitor of the gradients (default: grads, else the first monitor)"
    parser.add_argument("--gradients", metavar="NAME", help=text)
    text = "name of the monitor of the parameters (default: weights or params)"
    parser.add_argument("--weights", metavar="NAME", help=text)
    text = "name of the monitor of the updates (default: updates)"
    parser.add_argument("--updates", metavar="NAME", help=text)
    text = "figure of the layers (default: layers.png in this folder)"
    parser.add_argument("--out", metavar="FILE", default="layers.png", help=text)


def _add_plot(commands) -> None:
    text = "draws logged metrics, several runs side by side"
    parser = _add(commands, "plot", start.plot, text, "FILE... [flags]")
    text = "JSON lines of jaxclip.metrics, as metrics.jsonl; or a run's folder"
    parser.add_argument("files", metavar="FILE", nargs="+", help=text)
    text = "the figure (default: plot.png in this folder)"
    parser.add_argument("--out", metavar="FILE", default="plot.png", help=text)
