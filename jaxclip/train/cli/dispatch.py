"""The command line: reads it, starts what was asked for, and turns a user's error into one line.

Only commands and exit codes live here: 0 done, 1 a run that failed, 2 a request that cannot be met,
130 interrupted. Flags are in `flags`. Flax, tensorflow-datasets and matplotlib are loaded when a
command needs them.
"""

import argparse
import dataclasses
import os
import sys

from jaxclip.train.cli import flags
from jaxclip.train.config import config_file, presets
from jaxclip.train.config.presets import Config
from jaxclip.train.errors import UserError

_COMPARED = "explode"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    code = _run(argv)
    if not code or "jaxclip.train.training.processes" not in sys.modules:
        return code
    from jaxclip.train.training import processes

    return processes.leave(code)


def _run(argv: list[str] | None) -> int:
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


def _parser() -> flags.Parser:
    parser = flags.Parser(
        prog="jaxclip", description="Gradient clipping for JAX, shown on real data."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=flags.Parser)
    demo = commands.add_parser("demo", help="vanishing, exploding and max-norm, in a minute")
    flags.data(demo)
    demo.add_argument("--out", default="jaxclip-demo", help="folder for figures and metrics")
    demo.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    demo.set_defaults(command=_demo)
    train = commands.add_parser("train", help="one training run of a preset")
    names = ", ".join(presets.PRESETS)
    train.add_argument("preset", metavar="PRESET", nargs="?", help=f"{names}, or from --config")
    flags.data(train)
    train.add_argument("--out", help="output folder (default: runs/PRESET)")
    train.add_argument("--config", metavar="FILE", help="a run's config.json, or a part of one")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument("--tensorboard", action="store_true", help="write event files as well")
    flags.processes(train)
    flags.config(train)
    train.set_defaults(command=_train)
    evaluate = commands.add_parser("evaluate", help="test figures of a run's last checkpoint")
    evaluate.add_argument("folder", metavar="FOLDER", help="a run's output folder")
    evaluate.add_argument("--data-dir", help=flags.DATA_DIR)
    evaluate.set_defaults(command=_evaluate)
    compare = commands.add_parser("compare", help="the same run under several rules, side by side")
    what = f"{names} (default: {_COMPARED}), or from --config"
    compare.add_argument("preset", metavar="PRESET", nargs="?", help=what)
    flags.data(compare)
    compare.add_argument("--out", default="runs/compare", help="output folder")
    compare.add_argument("--config", metavar="FILE", help="a run's config.json, or a part of one")
    compare.add_argument(
        "--seeds", type=int, metavar="N", help="as many seeds, counted from --seed"
    )
    at_once = {"action": argparse.BooleanOptionalAction, "default": None}
    compare.add_argument("--at-once", help="train runs of one program together", **at_once)
    flags.config(compare, several=True)
    compare.set_defaults(command=_compare)
    listing = commands.add_parser("presets", help="what can be run, with every hyper-parameter")
    listing.set_defaults(command=_presets)
    return parser


def _console(quiet: bool = False):
    from rich.console import Console

    console = Console(quiet=quiet)
    # Rich takes a file for 80 columns wide, where the widest table would be folded.
    drawn = console.is_terminal or "COLUMNS" in os.environ
    return console if drawn else Console(width=120, quiet=quiet)


def _demo(options: argparse.Namespace) -> int:
    from jaxclip.train.commands import demo
    from jaxclip.train.data import sources

    size = demo.SMOKE if options.smoke else demo.FULL
    demo.demo(sources.load(options.dataset, options.data_dir), options.out, _console(), size)
    return 0


def _train(options: argparse.Namespace) -> int:
    continued = options.resume and options.out and options.preset is options.config is None
    if continued:
        from jaxclip.train.recording import checkpoints

        kept = checkpoints.kept_config(options.out, "--resume")
        config = kept.override(flags.overrides(options))
    else:
        config = _config(options)
    from jaxclip.train.training import optimizer

    optimizer.check(config)  # before the seconds that the rest takes to be imported
    from jaxclip.train.commands import train
    from jaxclip.train.data import sources
    from jaxclip.train.recording import checkpoints
    from jaxclip.train.training import processes

    who = options.coordinator, options.process_count, options.process_index
    processes.join(*who, cluster=options.cluster)
    out = options.out or f"runs/{config.preset}"
    if options.resume:
        config = checkpoints.check(out, config)
    images = sources.load(config.dataset, options.data_dir)
    how = {"resume": options.resume, "tensorboard": options.tensorboard}
    with processes.told_if_lost():
        train.train(config, images, out, _console(quiet=not processes.leads()), **how)
    return 0


def _config(options: argparse.Namespace) -> Config:
    """Returns the run that was asked for: a preset, a file's changes to it, then the flags'."""
    file = options.config
    if file is None and options.preset is None:
        raise UserError(f"PRESET: needed, choose from {', '.join(presets.PRESETS)}, or --config")
    values = {} if file is None else config_file.read(file)
    written = values.pop("preset", options.preset)
    name = options.preset or written
    if name is None:
        raise UserError(f"--config={file}: names no preset, and none was given")
    if name != written:
        raise UserError(f"--config={file}: names the preset {written}, not {name}")
    return dataclasses.replace(presets.get(name), **values).override(flags.overrides(options))


def _compare(options: argparse.Namespace) -> int:
    axes = flags.axes(options)
    fixed = argparse.Namespace(**{k: None if k in axes else v for k, v in vars(options).items()})
    fixed.preset = fixed.preset or (None if options.config else _COMPARED)
    base = _config(fixed)
    from jaxclip.train.commands import compare
    from jaxclip.train.data import sources
    from jaxclip.train.training import optimizer

    if options.seeds is not None:
        first = axes.get("seed", [base.seed])[0]
        axes["seed"] = [first + i for i in range(options.seeds)]
    variants = compare.variants(base, axes)
    for variant in variants:
        optimizer.check(variant.configs[0])
    images = sources.load(base.dataset, options.data_dir)
    compare.compare(variants, images, options.out, _console(), at_once=options.at_once)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from jaxclip.train.commands import evaluate
    from jaxclip.train.data import sources

    config = evaluate.config(options.folder)
    images = sources.load(config.dataset, options.data_dir)
    evaluate.evaluate(config, images, options.folder, _console())
    return 0


def _presets(options: argparse.Namespace) -> int:
    from jaxclip.train.reporting import terminal

    del options
    console = _console()
    console.print(terminal.presets_table())
    flags_of_runs = "and --out, --data-dir, --config, --resume and --tensorboard"
    terminal.say(console, f"Every flag can be given to `jaxclip train PRESET`, {flags_of_runs}.")
    return 0
