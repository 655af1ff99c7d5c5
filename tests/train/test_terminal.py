"""The terminal: numbers, lines, tables, epochs, and the flags that findings advise."""

import io
import re
import shlex

import numpy as np
import pytest
from rich.console import Console

from jaxclip import diagnosis
from jaxclip.train.reporting import comparison_table, terminal
from jaxclip.train.reporting.epoch_table import EpochTable, losses, name
from jaxclip.train.words import choose, count


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.08114, "0.0811"), (18.0234, "18.02"), (99999.0, "99999"), (100000.0, "1.000e+05"),
        (99999.6, "1.000e+05"), (-99999.6, "-1.000e+05"), (5.1620985e21, "5.162e+21"),
        (-302564.0, "-3.026e+05"), (0.00012, "1.20e-04"), (0.0, "0.0000"), (np.inf, "inf"),
        (np.nan, "nan"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert terminal.number(value) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1_437, "1,437 runs")],
)
def test_counts(number, text):
    assert count(number, "run") == text


def test_words_that_are_meant():
    assert choose("glbal_norm", ["norm", "global_norm"]).startswith("did you mean global_norm?")
    assert choose("sine", ["relu", "sigmoid"]) == "choose from relu, sigmoid"
    assert choose("x", []) == "choose from none"


def page(width, *, soft_wrap=False):
    """A console of a width, and the function that returns what it printed."""
    file = io.StringIO()
    return Console(file=file, width=width, soft_wrap=soft_wrap), file.getvalue


FINDING = (
    "exploding: the norm grew from 2.4e+05 at step 0 to 5.2e+21, in 24.44 % of the steps; see "
    "/a/path/that/is/longer/than/forty/characters and jaxclip.clip_by_global_norm(400). "
    "Try: --clip global_norm=400 or --learning-rate 0.0001"
)


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_no_word_number_or_flag_is_broken(width):
    console, printed = page(width)
    terminal.say(console, FINDING)
    lines = printed().splitlines()
    assert " ".join(line.strip() for line in lines) == FINDING
    assert all(line.startswith("  ") for line in lines[1:])
    for whole in ("24.44 %", "--clip global_norm=400", "--learning-rate 0.0001"):
        assert any(whole in line for line in lines)
    for line in lines:
        assert len(line) <= width or len(line.split()) <= 2


def test_lines_without_a_width_are_not_wrapped(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal.say(terminal.console(), FINDING)
    monkeypatch.setenv("COLUMNS", "40")
    terminal.say(terminal.console(), "[red]one[/red] :smile: two")
    assert capsys.readouterr().out == f"{FINDING}\n[red]one[/red] :smile: two\n"


def test_a_quiet_console_prints_nothing(capsys):
    console = terminal.console(quiet=True)
    terminal.say(console, FINDING)
    terminal.records(console, "title", {"name": "value"})
    terminal.table(console, ("a", "b"), [["1", "2"]])
    with terminal.doing(console, "reading"):
        assert capsys.readouterr().out == ""


HEADS = ("rule", "train loss", "clipped", "lost")
ROWS = [["global_norm=1", "0.0811", "99.01 %", "-"], ["none", "3.026e+05", "-", "-"]]


def test_a_table_that_fits():
    console, printed = page(80)
    assert terminal.table(console, HEADS, ROWS) == []
    assert printed() == (
        "                   train\n"
        "rule                loss  clipped\n"
        "global_norm=1     0.0811  99.01 %\n"
        "none           3.026e+05        -\n"
    )


def test_a_narrow_table_has_fewer_columns_or_becomes_records():
    console, printed = page(30)
    assert terminal.table(console, HEADS, ROWS, optional=("clipped", "train loss")) == ["clipped"]
    assert printed().splitlines()[-1] == "none           3.026e+05"
    console, printed = page(20)
    assert terminal.table(console, HEADS, ROWS, optional=("clipped",)) == ["clipped"]
    assert printed().splitlines() == [
        *("global_norm=1", "  train loss 0.0811", "none", "  train loss", "    3.026e+05")
    ]


def test_a_heading_among_records_has_no_numbers():
    console, printed = page(12)
    terminal.table(console, ("story", "test accuracy"), [["vanishing", ""], ["  none", "9.00 %"]])
    assert printed().splitlines() == ["vanishing", "  none", "  test", "    accuracy", "    9.00 %"]


SCORES = {
    "train_loss": 302564.0, "train_accuracy": 1.0, "test_loss": np.nan, "test_accuracy": 0.2444,
    "grad_norm_mean": 0.51, "grad_norm_max": 5.2e21, "clipped_fraction": 0.5,
    "learning_rate": 0.00999,
}  # fmt: skip


@pytest.mark.parametrize(("width", "columns"), [(120, 9), (80, 7), (40, 3), (10, 2)])
def test_epochs_fit(width, columns):
    console, _ = page(width)
    table = EpochTable(console, 30, clips=True, constant_rate=False)
    lines = [*table.head(), *(table.line(i, SCORES) for i in (0, 29))]
    assert len(re.split(r"\s{2,}", lines[-1])) == columns
    assert [line[:11].strip() for line in lines[-2:]] == ["epoch 1/30", "epoch 30/30"]
    assert max(map(len, lines)) <= max(width, 21)
    assert len({len(line) for line in lines[-2:]}) == 1
    assert "24.44 %" in lines[-1]


def test_columns_that_say_nothing_are_left_out():
    console, _ = page(120)
    table = EpochTable(console, 9, clips=False, constant_rate=True)
    assert not {"clipped", "rate"} & set(" ".join(table.head()).split())
    unrecorded = EpochTable(console, 9, clips=True, constant_rate=True)
    assert unrecorded.line(0, SCORES | {"clipped_fraction": None}).endswith("       -")
    assert name(0, 30) == "epoch 1/30"


def test_losses_name_their_steps():
    assert losses(0, 100, [0.4, 0.2]) == "  loss at steps 0 to 100, every 100: 0.4000 0.2000"
    assert losses(468, 1, [0.4, np.nan]) == "  loss at steps 468 to 469: 0.4000 nan"
    assert losses(11, 100, [0.4]) == "  loss at step 11: 0.4000"


def row(rule, rate, accuracy, lost=0):
    runs = len(accuracy) + lost
    scores = {key: [0.1] * len(accuracy) for key in ("train_loss", "test_loss", "grad_norm_max")}
    return {
        "rule": rule, "learning_rate": rate, "seeds": list(range(runs)), "test_accuracy": accuracy,
        "lost_at_step": [None] * len(accuracy) + [3] * lost, "clipped_fraction": [0.5] * runs,
        **scores,
    }  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 120])
def test_comparisons_fit(width):
    console, printed = page(width)
    rows = [row("value=1 + global_norm=5", 0.1, [0.9, 0.95]), row("no clip", 0.1, [0.5], lost=1)]
    comparison_table.show(console, "explode on mnist", rows)
    said = printed()
    assert said.startswith("\nexplode on mnist, medians of 2 seeds\n")
    assert max(map(len, said.splitlines())) <= width
    assert re.search(r"92\.50 %", said)
    assert "1 of 2" in said
    assert ("more in compare.json: train loss" in said) == (width < 120)


RATE = {"learning_rate": 0.1}


def test_recommended_rule_and_rate_as_flags():
    norms = 2.0 * 10.0 ** np.arange(20)
    norms[10:] = np.nan
    log = {f"grads/norm/layers/{i}/kernel": norms for i in range(3)}
    found = diagnosis.of_metrics(log)
    assert "jaxclip.clip_by_global_norm(3)" in found.findings[0]
    wanted = "rate. Try: --clip global_norm=3 or --learning-rate 0.01"
    assert terminal.as_flag(found.findings[0], RATE).endswith(wanted)


@pytest.mark.parametrize(
    ("finding", "flags"),
    [
        ("updates: the learning rate may be too low.", ["--learning-rate 1"]),
        ("updates: the threshold or the learning rate may be too high.", ["--learning-rate 0.01"]),
        ("dead: Lower the learning rate, or take another.", ["--learning-rate 0.01"]),
        ("exploding: lower the threshold or the learning rate.", ["--learning-rate 0.01"]),
        ("vanishing: ReLU with He initialization can.", ["--activation relu --init he",
                                                         "--batch-norm"]),
        ("unclipped: zclip clipped none of 9 steps. Lower it, or leave the rule out.",
         ["--clip none"]),
        ("unclipped: project_box clipped none. Lower it, or leave the rule out.",
         ["--project none"]),
        ("updates: far", []),
        ("exploding: jaxclip.clip_by_global_norm bounds the step; (1).", []),
    ],
)  # fmt: skip
def test_advice_as_flags(finding, flags):
    assert terminal.flags_for(finding, RATE) == flags
    assert terminal.as_flag(finding, RATE) == finding + (
        f" Try: {' or '.join(flags)}" if flags else ""
    )


def test_advice_of_the_library_is_found():
    """The sentences of `jaxclip.diagnosis` still have the words that flags are made from."""
    falling = {f"grads/norm/layers/{i}/kernel": np.full(9, 10.0**i) for i in range(6)}
    (vanishing,) = diagnosis.of_metrics(falling).findings[:1]
    assert terminal.flags_for(vanishing, RATE) == ["--activation relu --init he", "--batch-norm"]
    cured = RATE | {"activation": "relu", "init": "he"}  # what is so already is not advised
    assert terminal.flags_for(vanishing, cured) == ["--batch-norm"]
    assert terminal.flags_for(vanishing, cured | {"batch_norm": True}) == []
    rule = {f"clip/{key}": np.full(20, value) for key, value in
            {"norm": 1.0, "threshold": 9.0, "count": 20, "clipped_count": 0}.items()}  # fmt: skip
    level = {f"grads/norm/layers/{i}/kernel": np.full(20, 1.0) for i in range(3)}
    last = diagnosis.of_metrics(level | rule).findings[-1]
    assert terminal.flags_for(last, RATE) == ["--clip none"]


@pytest.mark.parametrize(
    ("width", "lines"),
    [(40, ["  short   1", "  longer  22.5"]), (12, ["  short  1", "  longer", "    22.5"])],
)
def test_records_in_columns_or_one_after_the_other(width, lines):
    console, printed = page(width)
    terminal.records(console, "title", {"short": "1", "longer": "22.5"})
    assert printed().splitlines() == ["", "title", *lines]


def test_a_command_can_be_copied():
    command = "jaxclip train --config a/config.json --out b --clip global_norm=400"
    for width in (30, 80):
        console, printed = page(width)
        terminal.say_next(console, command)
        said = printed()
        assert said.startswith("\nnext: jaxclip train")
        assert shlex.split(said.replace("\\\n", ""))[1:] == command.split()
        assert max(map(len, said.splitlines())) <= width
