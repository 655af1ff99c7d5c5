"""Learned thresholds and guards in training with bad batches and a high learning rate.

    python -m benchmarks.spikes --data-dir mnist

A small ReLU network learns MNIST (its first 12,800 images) at a learning rate seven to ten times
the best one, and 2 % of the batches are bad: half of those have random labels, the inputs of the
other half are 10 to 30 times too large. All rules start from the same weights and get the same
batches and bad steps, with five seeds that are trained together: one `vmap` over one `scan`.

There are four scenarios: `calm` has no bad batch and shows the effect of the learning rate alone;
`spiked` has 14 bad batches; `rare` has 4 of these; in `nan` all 14 are NaN. A rule has its default
hyper-parameters, which are those of its paper, unless its name shows others. The guards
`skip_spikes` and `skip_nonfinite` also get the loss.

The learning rates come from `--sweep`: the final loss, median of five seeds, was

| SGD with momentum 0.9, learning rate | 0.01 | 0.03 | 0.1 | 0.2 | 0.3 | 0.5 |
|---|---|---|---|---|---|---|
| no rule, calm | 0.15 | 0.09 | 0.11 | 0.22 | 1.4 | 2.3 |
| no rule, spiked | 0.17 | 0.20 | 2.3 | 2.3 | 2.3 | 2.3 |
| clip_by_global_norm(1.0), spiked | 0.18 | 0.10 | 0.10 | 0.22 | 0.36 | 1.3 |

| Adam, learning rate | 0.001 | 0.003 | 0.01 | 0.03 | 0.05 | 0.1 |
|---|---|---|---|---|---|---|
| no rule, calm | 0.11 | 0.07 | 0.11 | 0.25 | 0.37 | 1.3 |
| no rule, spiked | 0.14 | 0.10 | 0.11 | 0.36 | 1.2 | 1.9 |
| clip_by_global_norm(1.0), spiked | 0.10 | 0.07 | 0.10 | 0.25 | 0.37 | 0.95 |

The benchmark uses 0.2 and 0.03: the highest rates at which a calm run without a rule ends within
four times the loss of the best rate.

It writes `spikes.json` (every number), `spikes.md` (the tables; text outside their markers is
written by hand and stays) and `figures/spikes.png` into the folder `--out`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import optax

from benchmarks.spikes import report, rules, training
from jaxclip.train import data
from jaxclip.train.errors import UserError

SWEEP = {  # in multiples of the learning rates of the benchmark
    "momentum": (0.05, 0.15, 0.5, 1.0, 1.5, 2.5),
    "adam": (1 / 30, 0.1, 1 / 3, 1.0, 5 / 3, 10 / 3),
}

FULL = training.Size(
    seeds=5,
    steps=1000,
    batch=64,
    hidden=(64, 64),
    images=12_800,
    probe=256,
    first_bad=200,
    quiet=100,
    bad_share=0.02,
)
SMOKE = training.Size(
    seeds=2,
    steps=160,
    batch=16,
    hidden=(8,),
    images=256,
    probe=64,
    first_bad=120,
    quiet=10,
    bad_share=0.2,
)


def experiment(
    given: training.Task,
    plans: Mapping[str, training.Plan],
    sections: Sequence[rules.Section],
    say: Callable[[str], None],
) -> list[report.Table]:
    """Trains every rule of every section in its scenarios."""
    compiled = {}  # by optimizer and rule, which several sections may share
    tables = []
    for section in sections:
        tables.append(report.Table(section.name, section.title, section.scenarios, []))
        for name, rule in section.rules.items():
            key = section.optimizer, name
            if key not in compiled:
                compiled[key] = training.program(given, rule(rules.OPTIMIZERS[section.optimizer]))
            results = {s: compiled[key](plans[s]) for s in section.scenarios}
            numbers = {s: training.measure(r, plans[s], given.size) for s, r in results.items()}
            curves = {s: r.probe_loss for s, r in results.items()}
            tables[-1].rows.append(report.Row(name, numbers, curves))
            say(f"{section.name}: {name}")
    return tables


def sweep(
    given: training.Task, plans: Mapping[str, training.Plan], say: Callable[[str], None]
) -> None:
    """Prints the final loss at other learning rates, the median of the seeds."""
    cases = {"no rule": ("calm", "spiked"), "clip_by_global_norm(1.0)": ("spiked",)}
    for optimizer, multiples in SWEEP.items():
        for multiple in multiples:
            slower = optax.chain(rules.OPTIMIZERS[optimizer], optax.scale(multiple))
            for name, scenarios in cases.items():
                compiled = training.program(given, rules.RULES[name](slower))
                for scenario in scenarios:
                    plan = plans[scenario]
                    numbers = training.measure(compiled(plan), plan, given.size)
                    loss = statistics.median(numbers["final_loss"])
                    rate = multiple * rules.RATES[optimizer]
                    say(f"{optimizer} {rate:.3g}, {name}, {scenario}: {loss:.3f}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(prog="python -m benchmarks.spikes", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir", help="folder with MNIST's original files, or prepared by TFDS"
    )
    parser.add_argument("--out", default="docs", help="output folder (default: docs)")
    parser.add_argument("--smoke", action="store_true", help="a short run on 8x8 digits")
    parser.add_argument("--sweep", action="store_true", help="only print losses by learning rate")
    try:
        run(parser.parse_args(argv))
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(options: argparse.Namespace) -> None:
    """Trains, prints and writes."""
    if options.smoke and options.data_dir is not None:
        raise UserError(f"--data-dir={options.data_dir}: --smoke takes scikit-learn's digits")
    folder = None if options.sweep else report.open_folder(options.out)
    images = data.load("digits" if options.smoke else "mnist", options.data_dir)
    given = training.task(images, SMOKE if options.smoke else FULL)
    plans = {name: training.plan(given, s) for name, s in rules.SCENARIOS.items()}
    print(images.describe())
    if folder is None:
        sweep(given, plans, print)
        return
    sections = rules.SECTIONS
    if options.smoke:
        some = rules.SMOKE_RULES
        sections = [
            s._replace(rules={n: s.rules[n] for n in some[s.name]})
            for s in sections
            if s.name in some
        ]
    tables = experiment(given, plans, sections, print)
    numbers = report.content(options.smoke, images.name, given.size, plans, tables)
    report.write(folder, numbers, tables, plans)
    print(f"written to {folder}")


if __name__ == "__main__":
    sys.exit(main())
