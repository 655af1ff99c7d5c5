"""Starts each command with the options of the command line.

Modules that load Flax, tensorflow-datasets or matplotlib are imported by the command that needs
them, after its options have been checked.
"""

import argparse
import shlex

from jaxclip.train.cli import flags
from jaxclip.train.config import config_file, presets
from jaxclip.train.config.presets import Config
from jaxclip.train.errors import UserError, user_path

READING = "reading data"
COMPARED = "explode"  # the preset that `compare` takes by default


def demo(options: argparse.Namespace) -> None:
    """Starts `jaxclip demo`."""
    from jaxclip.train.reporting import terminal

    console = terminal.console(options.quiet)
    with terminal.doing(console, "starting"):
        from jaxclip.train import data
        from jaxclip.train.commands import demo

    size = demo.SMOKE if options.smoke else demo.FULL
    with terminal.doing(console, READING):
        images = data.load(options.dataset, options.data_dir)
    demo.run(images, options.out, console, size)


def train(options: argparse.Namespace) -> None:
    """Starts `jaxclip train`."""
    config = _config_to_resume(options) or config_of(options)
    from jaxclip.train.training import optimizer

    optimizer.check(config)  # before the slower imports
    from jaxclip.train.reporting import terminal

    one = terminal.console(options.quiet or bool(options.coordinator or options.cluster))
    with terminal.doing(one, "starting"):
        from jaxclip.train import data
        from jaxclip.train.commands import train
        from jaxclip.train.recording import resuming
        from jaxclip.train.training import processes

    out = f"runs/{config.preset}" if options.out is None else options.out
    command = _to_go_on(options, out)
    who = (options.coordinator, options.process_count, options.process_index, options.cluster)
    processes.connect(*who, command)
    console = terminal.console(quiet=options.quiet or not processes.is_leader())
    if options.resume:
        config = resuming.check(out, config)
        if not resuming.names(user_path(out, "--out")):
            terminal.say(console, f"no checkpoint in {out}: starting from the beginning")
    with terminal.doing(console, READING):
        images = data.load(config.dataset, options.data_dir)
    switches = {
        "again": _to_vary(options, out),
        "resume": options.resume,
        "tensorboard": options.tensorboard,
    }
    with processes.explain_lost_process(command):
        train.run(config, images, out, console, command=command, **switches)


def _to_vary(options: argparse.Namespace, out: str) -> str:
    """Returns the command that trains the same run into another folder."""
    words = ["jaxclip", "train", "--config", f"{out.rstrip('/')}/{config_file.NAME}"]
    words += ["--out", f"{out.rstrip('/')}-2"]
    return shlex.join(words + (["--data-dir", options.data_dir] if options.data_dir else []))


def _to_go_on(options: argparse.Namespace, out: str) -> str:
    """Returns the command that continues a run."""
    words = ["jaxclip", "train", "--resume", "--out", out]
    words += ["--data-dir", options.data_dir] if options.data_dir else []
    return shlex.join(words + ["--tensorboard"] * options.tensorboard)


def _config_to_resume(options: argparse.Namespace) -> Config | None:
    """Returns the run in the folder of `--resume --out FOLDER`, if nothing else names a run."""
    if not options.resume or options.out is None or options.preset or options.config:
        return None
    from jaxclip.train.recording import resuming

    if not resuming.has_run(options.out):
        return None
    saved = resuming.saved_config(options.out, "--resume")
    return saved.override(flags.overrides(options))


def config_of(options: argparse.Namespace) -> Config:
    """Returns the run of the options: a preset, changed by a file, changed by flags."""
    if options.config is not None:
        config = config_file.config(options.config, preset=options.preset)
    elif options.preset is not None:
        config = presets.get(options.preset, options.dataset)
    else:
        raise UserError(f"PRESET: needed, choose from {', '.join(presets.PRESETS)}, or --config")
    return config.override(flags.overrides(options))


def compare(options: argparse.Namespace) -> None:
    """Starts `jaxclip compare`."""
    axes = flags.axes(options)
    fixed = argparse.Namespace(**{k: None if k in axes else v for k, v in vars(options).items()})
    fixed.preset = fixed.preset or (None if options.config else COMPARED)
    base = config_of(fixed)
    from jaxclip.train.reporting import terminal

    console = terminal.console(options.quiet)
    with terminal.doing(console, "starting"):
        from jaxclip.train import data
        from jaxclip.train.commands import compare
        from jaxclip.train.training import optimizer

    if options.seeds is not None:
        first = axes.get("seed", [base.seed])[0]
        axes["seed"] = [first + i for i in range(options.seeds)]
    variants = compare.variants(base, axes)
    for variant in variants:
        optimizer.check(variant.configs[0])
    with terminal.doing(console, READING):
        images = data.load(base.dataset, options.data_dir)
    variants = compare.variants(presets.on(base, images.key), axes)
    compare.run(variants, images, options.out, console, at_once=options.at_once)


def evaluate(options: argparse.Namespace) -> None:
    """Starts `jaxclip evaluate`."""
    from jaxclip.train.reporting import terminal

    console = terminal.console()
    with terminal.doing(console, "starting"):
        from jaxclip.train import data
        from jaxclip.train.commands import evaluate

    config = evaluate.config(options.folder)
    with terminal.doing(console, READING):
        images = data.load(config.dataset, options.data_dir)
    evaluate.run(config, images, options.folder, console)


def diagnose(options: argparse.Namespace) -> None:
    """Starts `jaxclip diagnose`."""
    from jaxclip.train.reporting import terminal

    console = terminal.console()
    with terminal.doing(console, "starting"):
        from jaxclip.train.commands import diagnose_file

    names = {name: getattr(options, name) for name in ("gradients", "weights", "updates")}
    diagnose_file.run(options.file, console, options.out, names)


def plot(options: argparse.Namespace) -> None:
    """Starts `jaxclip plot`."""
    from jaxclip.train.reporting import terminal

    console = terminal.console()
    with terminal.doing(console, "starting"):
        from jaxclip.train.commands import plot

    plot.run(options.files, options.out, console)


def list_presets(options: argparse.Namespace) -> None:
    """Starts `jaxclip presets`."""
    del options
    from jaxclip.train.commands import list_presets
    from jaxclip.train.reporting import terminal

    list_presets.run(terminal.console())
