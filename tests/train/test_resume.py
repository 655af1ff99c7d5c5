"""An interrupted run is resumed and ends bit for bit as an undisturbed one."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from jaxclip.train import cli
from jaxclip.train.cli import parser, start
from jaxclip.train.recording import checkpoints, history
from jaxclip.train.training import loop
from tests.train import runs
from tests.train.runs import REMEMBERING, SMALL


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of four epochs."""
    out = tmp_path_factory.mktemp("whole")
    runs.train(*REMEMBERING, "--epochs", "4", "--out", str(out))
    return out


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """The same run, interrupted in its third epoch."""
    out = tmp_path_factory.mktemp("cut")
    with runs.interrupted_in(2):
        assert cli.main([*REMEMBERING, "--epochs", "4", "--out", str(out)]) == 130
    return out


@pytest.fixture
def interrupted(cut, tmp_path):
    """A copy of the interrupted run."""
    return shutil.copytree(cut, tmp_path / "interrupted")


@pytest.mark.slow
def test_resumes_bit_for_bit(whole, interrupted, capsys):
    assert runs.summary(interrupted)["status"] == "interrupted"
    assert runs.summary(interrupted)["epochs"] == 2
    runs.train(*REMEMBERING, "--epochs", "4", "--out", str(interrupted), "--resume")
    assert "resuming after 2 of 4 epochs" in capsys.readouterr().out
    runs.assert_same_end(whole, interrupted)
    assert [r["kind"] for r in runs.records(interrupted)].count("resume") == 1
    assert not list(interrupted.glob("earlier-*"))
    for name in ("run.png", "layers.png", "weights.png"):
        assert (whole / name).read_bytes() == (interrupted / name).read_bytes()


@pytest.mark.slow
def test_content_of_a_checkpoint(whole):
    state, position = runs.last_state(whole)
    assert position == checkpoints.Position(epochs=4, steps=20)
    names = " ".join(state)
    for part in ("params", "stats", "opt_state", "key"):
        assert f".{part}" in names
    assert any("mu" in name for name in state)
    assert any("memory" in name for name in state)
    begun = loop.prepare(*_settings(whole)).state.key
    assert (state[".key"] != np.asarray(begun)).any()


def _settings(folder):
    from jaxclip.train import data
    from jaxclip.train.config import config_file

    config = config_file.config(folder / "config.json")
    return config, data.load(config.dataset)


@pytest.mark.slow
def test_evaluate_prints_the_test_scores_of_the_run(whole, capsys):
    assert cli.main(["evaluate", str(whole)]) == 0
    said = capsys.readouterr().out
    assert "checkpoint after 4 epochs of 4" in said
    summary = runs.summary(whole)
    rows = dict(line.split(maxsplit=2)[1:] for line in said.splitlines() if "test " in line[:8])
    assert rows["accuracy"].strip() == f"{100 * summary['test_accuracy']:.2f} %"
    assert float(rows["loss"]) == pytest.approx(summary["test_loss"], abs=5e-5)


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "again")
    runs.train("train", "--resume", "--out", str(tmp_path / "again"))
    runs.assert_same_end(whole, tmp_path / "again")
    assert "resuming after 4 of 4 epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_resuming_with_more_epochs(tmp_path, capsys):
    command = ["train", "explode", *SMALL]
    runs.train(*command, "--epochs", "3", "--out", str(tmp_path / "three"))
    runs.train(*command, "--epochs", "1", "--out", str(tmp_path / "one"))
    runs.train(*command, "--epochs", "3", "--out", str(tmp_path / "one"), "--resume")
    runs.assert_same_end(tmp_path / "three", tmp_path / "one")
    capsys.readouterr()
    assert cli.main([*command, "--epochs", "2", "--out", str(tmp_path / "one"), "--resume"]) == 2
    said = capsys.readouterr().err
    problem = f"the run in {tmp_path / 'one'} has already trained 3"
    assert said == f"jaxclip: error: --epochs=2: {problem}\n"
    assert runs.summary(tmp_path / "one")["epochs"] == 3


CHANGES = [
    (["--sizes", "8,9"], "has --sizes=8, not 8,9"),
    (["--seed", "5"], "has --seed=0, not 5"),
    (["--dropout", "0.1"], "has --dropout=0.2, not 0.1"),
    (["--dtype", "bfloat16"], "has --dtype=float32, not bfloat16"),
    (["--epochs", "5"], "has --epochs=4, not 5"),  # the cosine schedule ends with the run
    (["--dataset", "mnist"], "has --dataset=digits, not mnist"),
]


@pytest.fixture
def pretended(tmp_path):
    """A run's folder with a `config.json` and an empty checkpoint."""
    options = parser.build().parse_args([*REMEMBERING, "--epochs", "4"])
    settings = dataclasses.asdict(start.config_of(options))
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_resuming_with_other_settings_is_an_error(pretended, capsys, change, message):
    before = sorted(pretended.rglob("*"))
    command = [*REMEMBERING, "--epochs", "4", "--out", str(pretended), "--resume", *change]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert said == f"jaxclip: error: --resume: the run in {pretended} {message}\n"
    assert sorted(pretended.rglob("*")) == before


@pytest.mark.slow
def test_checkpoint_of_another_network_is_an_error(whole, tmp_path, capsys):
    """`config.json` was edited, so the arrays do not match the network."""
    shutil.copytree(whole, tmp_path / "edited")
    path = tmp_path / "edited" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sizes": [8, 9]}))
    assert cli.main(["train", "--resume", "--out", str(tmp_path / "edited")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxclip: error: the checkpoint in ")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_resumes_with_the_config_of_the_folder(whole, interrupted):
    """An unfinished line is removed and written again."""
    with (interrupted / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "epoch": 2, "st')
    runs.train("train", "--resume", "--out", str(interrupted))
    runs.assert_same_end(whole, interrupted)


@pytest.mark.slow
def test_a_new_run_sets_the_earlier_one_aside(tmp_path, capsys):
    """And a quiet one prints nothing."""
    command = ["train", "explode", *SMALL, "--epochs", "1", "--out", str(tmp_path)]
    runs.train(*command, "--quiet")
    assert capsys.readouterr() == ("", "")
    for _ in range(2):
        runs.train(*command)
    assert f"held another run, which is now in {tmp_path / 'earlier-2'}" in capsys.readouterr().out
    kept = {"config.json", "summary.json", "checkpoints", "metrics.jsonl"}
    kept |= {"run.png", "layers.png", "weights.png"}
    for number in (1, 2):
        assert {p.name for p in (tmp_path / f"earlier-{number}").iterdir()} == kept
        assert len(history.read(tmp_path / f"earlier-{number}").epochs) == 1
    assert [r["kind"] for r in runs.records(tmp_path)].count("run") == 1


@pytest.mark.slow
def test_checkpoint_every(tmp_path, capsys):
    command = ["train", "explode", *SMALL, "--epochs", "5", "--checkpoint-every"]
    runs.train(*command, "2", "--out", str(tmp_path / "2"))
    kept = {path.name for path in (tmp_path / "2" / "checkpoints").iterdir()}
    assert kept in ({"2", "5"}, {"4", "5"})  # 4 is left out if 2 is still being written
    out = tmp_path / "0"
    runs.train(*command, "0", "--out", str(out))
    capsys.readouterr()
    runs.train(*command, "0", "--out", str(out), "--resume")
    assert f"no checkpoint in {out}: starting from the beginning\n" in capsys.readouterr().out
    assert not (out / "checkpoints").exists()
    assert (out / "earlier-1" / "config.json").exists()
