"""Figure and table of a comparison mark a rule as best only if every seed bears it out."""

import io

import pytest
from rich.console import Console

from jaxclip.train.reporting import comparison, comparison_table

CASES = [
    # accuracies of each rule, lost runs of each rule, the headline
    ([[0.9]], [0], "r0: test accuracy 90.00 %"),
    ([[0.9], [0.8]], [0, 0], "80.00 % to 90.00 %: 1 seed, too few to say which is better"),
    ([[0.9, 0.91], [0.8, 0.7]], [0, 0], "70.00 % to 91.00 %: 2 seeds, too few to say which"),
    ([[0.9, 0.91, 0.92], [0.8, 0.7, 0.89]], [0, 0], "Best: r0, median accuracy 91.00 %, above all"),
    (
        [[0.9, 0.91, 0.92], [0.8, 0.7, 0.9]],
        [0, 0],
        "no rule is above all others in each of 3",
    ),
    ([[0.9, 0.91, 0.92], [0.8, 0.7]], [0, 1], "others in 3 seeds; 1 of 6 runs lost"),
    ([[], []], [1, 1], "2 of 2 runs lost"),
    ([[0.9, 0.91, 0.92], []], [0, 3], "r0: test accuracy 91.00 %; 3 of 6 runs lost"),
]


@pytest.mark.parametrize(("accuracies", "lost", "words"), CASES)
def test_headline(accuracies, lost, words):
    rows = [
        {
            "rule": f"r{i}",
            "learning_rate": 0.1,
            "seeds": list(range(len(scores) + gone)),
            "test_accuracy": scores,
            **dict.fromkeys(("train_loss", "test_loss", "grad_norm_max"), scores),
            "clipped_fraction": [],
            "lost_at_step": [None] * len(scores) + [3] * gone,
        }
        for i, (scores, gone) in enumerate(zip(accuracies, lost, strict=True))
    ]
    said = comparison._headline(rows).replace("\n", " ")
    assert words in said
    is_best = words.startswith("Best") or "others in 3 seeds;" in words
    assert ("Best" in said) == is_best
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system="standard")
    comparison_table.show(console, "title", rows)
    lines = console.file.getvalue().splitlines()
    bold = [line for line in lines[2:] if line.startswith("\x1b[1m")]
    assert [line[4:6] for line in bold] == ["r0"] * is_best
