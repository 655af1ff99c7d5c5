"""Learned thresholds and guards on three kinds of network, at a sound and a high learning rate.

    python -m benchmarks.spikes --data-dir mnist

Every rule trains, with five seeds:

- `mlp`: a ReLU network (784-64-64-10) on MNIST, with SGD and with Adam;
- `rnn`: 128 tanh units on the adding problem over 100 steps, with SGD. Its gradients explode;
- `transformer`: 4 layers of 128 on the characters of English text, with AdamW and a warm-up.

In `calm` runs no batch is bad, in `spiked` ones 2 to 4 % are, of two kinds by turns: with the MLP
the labels of other images, and inputs that are 10 to 30 times too large; with the RNN such inputs,
and losses that are 10 to 30 times too large; with the transformer the next characters of other
texts, and such losses. With the MLP there are also `rare` runs, with a quarter of the bad batches,
and `nan` runs, where the loss of every bad batch is NaN. All rules start from the same weights and
get the same batches and bad steps. A rule has its default hyper-parameters, which are those of its
paper, unless its name shows others. The guards `skip_spikes` and `skip_nonfinite` also get the
loss.

The learning rates come from `--sweep`. Final losses without a rule and without bad batches, medians
of five seeds:

| MLP, SGD | 0.0067 | 0.02 | 0.067 | 0.2 | 0.4 | 1 |
|---|---|---|---|---|---|---|
| | 0.19 | 0.10 | 0.09 | 0.22 | 2.1 | 2.3 |

| MLP, Adam | 0.001 | 0.003 | 0.01 | 0.03 | 0.06 | 0.15 |
|---|---|---|---|---|---|---|
| | 0.11 | 0.07 | 0.11 | 0.25 | 0.46 | 1.7 |

| RNN, SGD | 0.0017 | 0.005 | 0.017 | 0.05 | 0.1 | 0.25 |
|---|---|---|---|---|---|---|
| | 0.17 | 0.17 | 0.19 | not finite | not finite | not finite |
| with `clip_by_global_norm(1.0)` | 0.17 | 0.17 | 0.18 | 0.26 | 0.70 | 7.3 |

| transformer, AdamW | 0.001 | 0.003 | 0.01 | 0.03 | 0.06 | 0.15 |
|---|---|---|---|---|---|---|
| | 2.57 | 2.64 | 2.82 | 3.03 | 3.17 | 3.34 |

The sound rates, 0.02, 0.003, 0.005 and 0.003, end near the best loss. The high ones are ten times
that, and the highest of the table that leave something to compare: at the next one the constant
loses runs of the RNN and ends at twice the loss of the MLP, and the transformer ends at the entropy
of single characters.

It writes `spikes.json` (every number), `spikes.md` (the tables; text outside their markers is
written by hand and stays) and `figures/spikes.png` into the folder `--out`. `--only` prints the
tables of some sections and writes nothing.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks import report_files
from benchmarks.spikes import networks, report, rules, training
from jaxclip.train import data
from jaxclip.train.errors import UserError

SWEEP = (1 / 30, 0.1, 1 / 3, 1.0, 2.0, 5.0)  # in multiples of the high learning rates

SIZES = {
    "mlp": training.Size(seeds=5, steps=1000, batch=64, first_bad=200, quiet=100, bad_share=0.02),
    "rnn": training.Size(seeds=5, steps=300, batch=16, first_bad=130, quiet=20, bad_share=0.04),
    "transformer": training.Size(
        seeds=5, steps=300, batch=2, first_bad=130, quiet=40, bad_share=0.04
    ),
}
SMOKE = training.Size(seeds=2, steps=100, batch=8, first_bad=70, quiet=10, bad_share=0.2)


def task(name: str, data_dir: str | None, smoke: bool) -> report.Task:
    """Loads the data of a network, and draws its batches."""
    if name == "mlp":
        images = data.load("digits" if smoke else "mnist", data_dir)
        network = networks.mlp(images, (8,), 256) if smoke else networks.mlp(images)
    elif name == "rnn":
        network = networks.rnn(10, 8, 256) if smoke else networks.rnn()
    else:
        network = networks.transformer(1, 8, 2, 8, 4096) if smoke else networks.transformer()
    size = SMOKE if smoke else SIZES[name]
    scenarios = training.SCENARIOS.items()
    return report.Task(network, size, {n: training.plan(network, size, s) for n, s in scenarios})


def train(section: rules.Section, rule: str, given: report.Task) -> report.Row:
    """Trains a rule of a section at every learning rate and in every scenario."""
    run = training.program(given.network, section.optimizer(section.rules[rule]))
    plans = {name: given.plans[name] for name in section.scenarios}
    results = run(list(section.rates.values()), list(plans.values()))
    numbers, losses = {}, {}
    for i, rate in enumerate(section.rates):
        for j, (scenario, plan) in enumerate(plans.items()):
            result = training.Result(*(values[i, j] for values in results))
            numbers[rate, scenario] = training.measure(result, plan, given.size)
            losses[rate, scenario] = result.loss
    return report.Row(rule, numbers, losses)


def experiment(
    sections: Sequence[rules.Section],
    tasks: Mapping[str, report.Task],
    say: Callable[[str], None],
) -> list[report.Table]:
    """Trains every rule of every section; two at a time, since one run does not fill two cores."""

    def one(pair: tuple[rules.Section, str]) -> report.Row:
        section, rule = pair
        row = train(section, rule, tasks[section.network])
        say(f"{section.name}: {rule}")
        return row

    tables = []
    with ThreadPoolExecutor(2) as threads:
        rows = threads.map(one, [(s, rule) for s in sections for rule in s.rules])
        for section in sections:
            own = [next(rows) for _ in section.rules]
            tables.append(report.Table(section, own, tasks[section.network].network.lost))
    return tables


def main(argv: list[str] | None = None) -> int:
    parser = report_files.Plain(
        prog="python -m benchmarks.spikes", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--data-dir", help="folder with MNIST's original files, or prepared by TFDS"
    )
    parser.add_argument("--out", default="docs", help="output folder (default: docs)")
    parser.add_argument("--smoke", action="store_true", help="short runs of small networks")
    names = [section.name for section in rules.SECTIONS]
    parser.add_argument(
        "--only", nargs="+", choices=names, help="only print the tables of these sections"
    )
    parser.add_argument("--sweep", action="store_true", help="only print losses by learning rate")
    return parser.main(argv, run)


def run(options: argparse.Namespace) -> None:
    """Trains, prints and writes."""
    if options.smoke and options.data_dir is not None:
        raise UserError(f"--data-dir={options.data_dir}: --smoke takes scikit-learn's digits")
    prints = options.sweep or options.only
    folder = None if prints else report.open_folder(options.out)
    sections = [s for s in rules.SECTIONS if s.name in (options.only or s.name)]
    if options.sweep:
        sections = [_swept(s) for s in sections if s in rules.COMPARED]
    elif options.smoke:
        some = rules.SMOKE_RULES
        sections = [_some(s, some[s.name]) for s in sections if s.name in some]
    names = dict.fromkeys(section.network for section in sections)
    tasks = {name: task(name, options.data_dir, options.smoke) for name in names}
    tables = experiment(sections, tasks, print)
    numbers = report.content(options.smoke, tasks, tables)
    if folder is None:
        print(report.markdown(numbers, tables))
    else:
        report.write(folder, numbers, tables)
        print(f"written to {folder}")


def _some(section: rules.Section, names: Sequence[str]) -> rules.Section:
    return section._replace(rules={name: section.rules[name] for name in names})


def _swept(section: rules.Section) -> rules.Section:
    rates = {f"{rate:.2g}": rate for rate in (m * section.rates["high"] for m in SWEEP)}
    return _some(section, ("no rule", "clip_by_global_norm(1.0)"))._replace(rates=rates)


if __name__ == "__main__":
    sys.exit(main())
