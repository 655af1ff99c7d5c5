"""The experiment on bad batches in its short form: its runs are comparable."""

import json

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="the benchmarks are in a checkout only")
pytest.importorskip("matplotlib")

from benchmarks.spikes import __main__ as spikes
from benchmarks.spikes import rules as compared
from benchmarks.spikes import training as runs

pytestmark = pytest.mark.relaxed


@pytest.mark.slow
def test_smoke(tmp_path, capsys):
    (tmp_path / "spikes.md").write_text(
        "By hand.\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nToo.\n"
    )
    assert spikes.main(["--smoke", "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "spikes.json").read_text())
    _same_bad_steps(content)
    _touched_by_nobody_and_by_a_guard(content["sections"])
    text = (tmp_path / "spikes.md").read_text()
    assert text.startswith("By hand.\n")
    assert text.endswith("Too.\n")
    assert "old" not in text
    for section in content["sections"].values():
        assert section["title"] in text
        assert all(f"| `{rule}` |" in text for rule in section["rules"])
    assert (tmp_path / "figures" / "spikes.png").stat().st_size > 10_000


def _same_bad_steps(content):
    bad = {
        name: [{step for steps in seed.values() for step in steps} for seed in seeds]
        for name, seeds in content["bad_steps"].items()
    }
    first, end = content["size"]["first_bad"], content["size"]["steps"] - content["size"]["quiet"]
    assert bad["calm"] == [set(), set()]
    assert bad["spiked"] == bad["nan"]
    for few, many in zip(bad["rare"], bad["spiked"], strict=True):
        assert few < many <= set(range(first, end))


def _touched_by_nobody_and_by_a_guard(sections):
    for section in sections.values():
        for numbers in section["rules"]["no rule"].values():
            assert numbers["touched_all"] == [0, 0]
    # A guard that sees nothing to do, on the same weights, batches and bad steps.
    finite = sections["momentum"]["rules"]
    for scenario, numbers in finite["skip_nonfinite"].items():
        assert numbers["touched_all"] == [0, 0]
        loss = finite["no rule"][scenario]["final_loss"]
        np.testing.assert_allclose(numbers["final_loss"], loss, rtol=1e-3)
    poisoned = sections["nan"]["rules"]
    assert poisoned["no rule"]["nan"]["final_loss"] == ["NaN", "NaN"]
    assert None not in poisoned["no rule"]["nan"]["first_nonfinite_step"]
    assert poisoned["skip_nonfinite"]["nan"]["first_nonfinite_step"] == [None, None]
    assert poisoned["skip_nonfinite"]["nan"]["touched_bad"] == [1, 1]
    assert poisoned["skip_nonfinite"]["nan"]["touched_ordinary"] == [0, 0]


def test_a_section_compares_with_no_rule_and_the_constant():
    for section in compared.SECTIONS:
        assert next(iter(section.rules)) == "no rule"
        assert "clip_by_global_norm(1.0)" in section.rules


def test_spikes_are_counted_once_each():
    quiet = np.ones(400, np.float32)
    assert runs.count_spikes(quiet) == 0
    loss = quiet.copy()
    loss[50] = 9  # there are no 100 steps before it
    loss[150:155] = 3
    loss[160] = 3  # six steps after the last one: the same
    loss[250] = 2.1
    assert runs.count_spikes(loss) == 2
    loss[350:] = np.nan
    assert runs.count_spikes(loss) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--smoke", "--data-dir", "x"], "--data-dir=x: --smoke takes"),
        (["--data-dir", "nowhere"], "--data-dir=nowhere: No such file"),
        (["--smoke", "--out", "file"], "--out=file: cannot be written to"),
        (["--smoke", "--out", "unmarked"], "tables: begin --> and"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_errors_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "unmarked").mkdir()
    (tmp_path / "unmarked" / "spikes.md").touch()
    assert spikes.main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
