"""The notebooks: their first cell, their exercises, and that they teach the same without MNIST."""

import importlib.util
import json
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from tests.docs.test_docs import NOTEBOOKS, ROOT, cells, prose
from tests.support import modes

pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="the notebooks are not beside the tests")
VANISHING = ROOT / "notebooks" / "vanishing.ipynb"
WHEEL = "jaxclip-9.9-py3-none-any.whl"


def installed(monkeypatch, folder, *, source="jaxclip", missing=("jaxclip",), code=0):
    """The packages that the first cell asks pip for, in a folder where modules are missing."""
    asked = []

    def run(command):
        asked.append(command[-1])
        return SimpleNamespace(returncode=code)

    first = cells(VANISHING, "code")[0]
    assert 'SOURCE = "jaxclip"\n' in first
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else name)
        patch.setattr(subprocess, "run", run)
        exec(first.replace('SOURCE = "jaxclip"', f"SOURCE = {source!r}"), {})
    return asked


def test_all_first_cells_are_one():
    assert len({cells(path, "code")[0] for path in NOTEBOOKS}) == 1


def test_first_cell_installs_nothing_that_is_there(monkeypatch, tmp_path):
    assert installed(monkeypatch, tmp_path, missing=()) == []


def test_first_cell_finds_a_wheel_and_a_checkout(monkeypatch, tmp_path):
    assert installed(monkeypatch, tmp_path) == ["jaxclip[train]"]
    assert installed(monkeypatch, tmp_path, missing=("flax",)) == ["jaxclip[train]"]
    (tmp_path / WHEEL).touch()
    assert installed(monkeypatch, tmp_path) == [f"{tmp_path / WHEEL}[train]"]
    assert installed(monkeypatch, tmp_path, source="x.whl") == ["x.whl[train]"]
    for folder in (ROOT, ROOT / "notebooks"):
        assert installed(monkeypatch, folder) == [f"{ROOT}[train]"]


def test_first_cell_says_what_to_set(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match=r"SOURCE = 'jaxclip'.*set SOURCE above"):
        installed(monkeypatch, tmp_path, code=1)


def test_every_exercise_has_a_folded_answer():
    text = prose(VANISHING)
    exercises = re.findall(r"^\*\*(\d)\.\*\*", text, re.M)
    answers = re.findall(r"<details><summary>Answer</summary>\n\n.+?\n\n</details>", text, re.S)
    assert exercises == ["1", "2", "3", "4", "5", "6"]
    assert len(answers) == text.count("<details>") == 6


def printed(name):
    """The text that a notebook has printed, as it stands in the repository."""
    notebook = json.loads((ROOT / "notebooks" / name).read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output.get("text", "")) for output in outputs)


def row(text, name):
    """The numbers of the first line that begins with a name."""
    (line,) = re.findall(rf"^{re.escape(name)}  +(.*)$", text, re.M)[:1]
    return [float(number) for number in re.findall(r"[\d.e+-]+|nan", line)]


def test_transformer_holds_the_logits_and_the_loss():
    text = printed("transformer.ipynb")
    _, free, grown = row(text, "without qk_clip")
    _, held, bounded = row(text, "qk_clip")
    assert grown > 5 * 20
    assert bounded < 1.5 * 20
    assert held <= 1.05 * free < 0.01
    assert "the injected overflow, 160, is one of them" in text
    assert "with it: no worse" in text


def test_recurrent_needs_a_bound_at_each_step():
    text = printed("recurrent.ipynb")
    for name in ("no bound", "gradient"):
        norm, first, last = row(text, name)
        assert np.isnan([norm, last]).all()
        assert np.isfinite(first)
    for name in ("each time step", "both"):
        norm, first, last = row(text, name)
        assert np.isfinite(norm)
        assert last < first / 5
    ends = dict(re.findall(r"^bound (\S+): loss of the last 10 updates ([\d.]+)$", text, re.M))
    assert min(ends, key=lambda bound: float(ends[bound])) in ("1e-04", "1e-03")
    assert float(ends["1e-06"]) > 2 * float(ends["1e-03"]) < float(ends["1e-02"])


def test_private_training_bounds_each_example():
    text = printed("private.ipynb")
    moved = re.findall(r"the sum moves by ([\d.]+), at most (\d)$", text, re.M)
    assert len(moved) == 5
    assert all(float(by) <= float(most) for by, most in moved)
    plain, some, much = (row(text, f"   {noise}")[-2] for noise in ("0.0", "1.5", "5.0"))
    assert plain > some > 85 > much > 50


@pytest.mark.slow
def test_vanishing_teaches_the_same_on_the_digits(monkeypatch, capsys):
    """Its sentences about the runs hold for the data that is used without a network."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="pip install -e .[test]")
    from jaxclip.train import data

    monkeypatch.setattr(data, "load", lambda: data.sources.digits("scikit-learn"))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names = {}
    with modes.relaxed(), plt.rc_context():
        plt.switch_backend("agg")
        for code in cells(VANISHING, "code"):
            exec(compile(code, VANISHING.name, "exec"), names)
    printed = capsys.readouterr().out
    last = {name: log["loss"][-20:].mean() for name, log in names["trained"].items()}
    chance = np.log(10)
    assert abs(last["sigmoid"] - chance) < 0.02
    assert last["sigmoid, clipped to 1"] == pytest.approx(float(last["sigmoid"]), rel=1e-3)
    assert last["relu"] < chance / 4
    lost, bounded, slow, healthy = (log["loss"] for log in names["exploding"].values())
    assert np.isnan(lost[-1])
    assert lost[0] / 100 > bounded[-1] > 0.09
    assert slow[-1] > 20 * bounded[-1]
    assert healthy[-1] < 0.09
    factors = set(re.findall(r"factor (0\.0\d+)$", printed, re.M))
    assert len(factors) == 1  # every tensor is scaled by one factor, far from 1
    for scale, finding in ((0.5, "vanishing"), (1.5, "healthy"), (3.0, "exploding")):
        assert f"scale {scale}: {finding}" in printed
    free, held = map(float, re.findall(r"loss of the last 30 steps ([\d.]+)", printed))
    assert held < chance / 2 < free
