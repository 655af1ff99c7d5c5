"""The parser of the whole command line: commands and their flags."""

import argparse

from jaxclip.train.cli import flags, start
from jaxclip.train.config import presets


def build() -> flags.Parser:
    """Returns the parser; `command` in its result is the function to call with the result."""
    parser = flags.Parser(
        prog="jaxclip", description="Gradient clipping for JAX, shown on real data."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=flags.Parser)
    _add_demo(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    text = "the presets, with every hyper-parameter"
    commands.add_parser("presets", help=text).set_defaults(command=start.list_presets)
    return parser


def _add_demo(commands) -> None:
    parser = commands.add_parser("demo", help="vanishing, exploding and max-norm, in a minute")
    flags.data(parser)
    parser.add_argument("--out", default="jaxclip-demo", help="folder for figures and metrics")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.set_defaults(command=start.demo)


def _add_run(parser: flags.Parser, default: str = "") -> None:
    text = f"{', '.join(presets.PRESETS)}{default}, or from --config"
    parser.add_argument("preset", metavar="PRESET", nargs="?", help=text)
    text = "a run's config.json, or some of its fields"
    parser.add_argument("--config", metavar="FILE", help=text)
    flags.data(parser)


def _add_train(commands) -> None:
    parser = commands.add_parser("train", help="trains a preset")
    _add_run(parser)
    parser.add_argument("--out", help="output folder (default: runs/PRESET)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--tensorboard", action="store_true", help="write event files too")
    flags.processes(parser)
    flags.config(parser)
    parser.set_defaults(command=start.train)


def _add_evaluate(commands) -> None:
    parser = commands.add_parser("evaluate", help="test scores of a run's last checkpoint")
    parser.add_argument("folder", metavar="FOLDER", help="a run's output folder")
    parser.add_argument("--data-dir", help=flags.DATA_DIR)
    parser.set_defaults(command=start.evaluate)


def _add_compare(commands) -> None:
    parser = commands.add_parser("compare", help="trains the same run under several rules")
    _add_run(parser, f" (default: {start.COMPARED})")
    parser.add_argument("--out", default="runs/compare", help="output folder")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds, from --seed on")
    switch = {"action": argparse.BooleanOptionalAction, "default": None}
    parser.add_argument("--at-once", help="train the runs of one program together", **switch)
    flags.config(parser, several=True)
    parser.set_defaults(command=start.compare)
