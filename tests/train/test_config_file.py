"""Runs from a config file: round trips, precedence of flags, and errors in one line."""

import dataclasses
import json
import types

import pytest

from jaxclip.train import cli
from jaxclip.train.cli import parser, start
from jaxclip.train.config import config_file, presets
from jaxclip.train.errors import UserError
from jaxclip.train.recording import strict_json

# No field has a preset's value; numbers have more digits than float32; all types occur.
ODD = presets.get("max-norm").override(
    {
        "sizes": (7, 5, 3),
        "dataset": "digits",
        "learning_rate": 1 / 3,
        "init_std": 0.1 + 0.2,
        "b2": 1 - 1e-12,
        "batch_norm": True,
        "dropout": 0.25,
        "seed": 2**32 - 1,
        "clip": ("value=-1:2", "global_norm=1e+5,ord=inf"),
        "guard": ("skip_nonfinite,max_consecutive=3",),
        "checkpoint_every": 0,
    }
)


def file_of(folder, content):
    path = folder / "some.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def config_of(*arguments):
    return start.config_of(parser.build().parse_args(["train", *map(str, arguments)]))


@pytest.mark.parametrize("config", [*presets.PRESETS.values(), ODD], ids=lambda c: c.preset)
def test_config_round_trips(config, tmp_path):
    path = tmp_path / config_file.NAME
    strict_json.write(path, dataclasses.asdict(config), exact=True)
    assert config_file.config(path) == config
    assert config_of("--config", path) == config


def test_flags_override_the_file_which_overrides_the_preset(tmp_path):
    part = file_of(tmp_path, {"learning_rate": 1, "epochs": 7, "clip": [], "sizes": []})
    preset = presets.get("explode")
    config = config_of("explode", "--config", part, "--epochs", 3, "--seed", 5)
    assert config == dataclasses.replace(
        preset, learning_rate=1.0, epochs=3, seed=5, clip=(), sizes=()
    )
    assert config_of("explode", "--config", part, "--clip", "value=2").clip == ("value=2",)
    named = file_of(tmp_path, {"preset": "forward", "shuffle": True})
    for given in (["forward"], []):
        config = config_of(*given, "--config", named)
        assert config == dataclasses.replace(presets.get("forward"), shuffle=True)


def test_flags_override_the_file(tmp_path):
    part = file_of(tmp_path, {"preset": "explode", "clip": ["value=1"], "batch_norm": True})
    config = config_of("--config", part, "--clip", "none", "--no-batch-norm")
    assert config == presets.get("explode").override({"clip": ()})


def test_null_overrides_a_number_of_the_preset(tmp_path):
    part = file_of(tmp_path, {"preset": "max-norm", "decay_steps": None})
    assert presets.get("max-norm").decay_steps == 22_000
    assert config_of("--config", part).decay_steps is None
    assert config_of("--config", part, "--decay-steps", 9).decay_steps == 9


def test_compare_reads_a_config_file(tmp_path, monkeypatch):
    from jaxclip.train import data
    from jaxclip.train.commands import compare

    part = file_of(tmp_path, {"preset": "forward", "sizes": [3], "dataset": "digits", "seed": 4})
    seen = []
    monkeypatch.setattr(compare, "run", lambda variants, *rest, **more: seen.extend(variants))
    monkeypatch.setattr(data, "load", lambda *where: types.SimpleNamespace(key="mnist"))
    assert cli.main(["compare", "--config", str(part), "--seeds", "2", "--dropout", "0.5"]) == 0
    changes = {"sizes": (3,), "dataset": "digits", "dropout": 0.5, "allow_nonfinite": False}
    base = dataclasses.replace(presets.get("forward"), **changes)
    wanted = tuple(dataclasses.replace(base, seed=seed) for seed in (4, 5))
    assert [v.configs for v in seen] == [wanted]


WRONG = [
    ("{", "not JSON (Expecting"),
    ("", "not JSON (Expecting"),
    (b"\xff\xfe", "not JSON ("),
    ([1, 2], "not a JSON object of fields and values"),
    ("null", "not a JSON object"),
    ({"preset": "explode", "rate": 1}, "unknown field 'rate', choose from preset, sizes, dataset"),
    ({"epochs": 2.0}, "epochs=2.0 must be a whole number"),
    ({"epochs": "2"}, "epochs='2' must be a whole number"),
    ({"epochs": True}, "epochs=True must be a whole number"),
    ({"seed": None}, "seed=None must be a whole number"),
    ({"learning_rate": "0.1"}, "learning_rate='0.1' must be a number"),
    ({"learning_rate": False}, "learning_rate=False must be a number"),
    ({"batch_norm": 1}, "batch_norm=1 must be true or false"),
    ({"batch_norm": "true"}, "batch_norm='true' must be true or false"),
    ({"activation": 3}, "activation=3 must be a string"),
    ({"activation": ["relu"]}, "activation=['relu'] must be a string"),
    ({"preset": 3}, "preset=3 must be a string"),
    ({"dataset": 1}, "dataset=1 must be a string or null"),
    ({"decay_steps": 1.5}, "decay_steps=1.5 must be a whole number or null"),
    ({"sizes": 8}, "sizes=8 must be a list, each item a whole number"),
    ({"sizes": [8, True]}, "sizes=[8, True] must be a list, each item a whole number"),
    ({"sizes": [[8]]}, "must be a list, each item a whole number"),
    ({"clip": "value=1"}, "clip='value=1' must be a list, each item a string"),
    ({"guard": [1]}, "guard=[1] must be a list, each item a string"),
    ({"clip": {"value": 1}}, "must be a list, each item a string"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_errors_are_one_line_and_name_the_file(content, message, command, tmp_path, capsys):
    path = file_of(tmp_path, "") if isinstance(content, bytes) else file_of(tmp_path, content)
    if isinstance(content, bytes):
        path.write_bytes(content)
    assert cli.main([command, "explode", "--config", str(path), "--dataset", "digits"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"jaxclip: error: --config={path}: ")
    assert message in said.err
    assert (said.err.count("\n"), said.out) == (1, "")
    assert not list((tmp_path / "work").iterdir())


INVALID = [
    ({}, [], "names no preset, and none was given"),
    ({"epochs": 1}, [], "names no preset, and none was given"),
    ({"preset": "forward"}, ["explode"], "names the preset forward, not explode"),
    ({"preset": "nope"}, [], "PRESET=nope: unknown, choose from explode"),
    ({"preset": "explode", "epochs": 0}, [], "--epochs=0: must be at least 1"),
    ({"preset": "explode", "activation": "sine"}, [], "--activation=sine: must be one of relu"),
    ('{"preset": "explode", "learning_rate": NaN}', [], "--learning-rate=nan: must be positive"),
    ('{"preset": "explode", "learning_rate": 1e999}', [], "--learning-rate=inf: must be positive"),
    ({"preset": "explode", "sizes": [8, 0]}, [], "--sizes=8,0: must be widths of at least 1"),
    ({"preset": "explode", "clip": ["foo=1"]}, [], "--clip foo=1: unknown rule 'foo'"),
    ({"preset": "explode", "guard": ["foo"]}, [], "--guard foo: unknown rule 'foo'"),
]


@pytest.mark.parametrize(("content", "given", "message"), INVALID)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_invalid_settings(content, given, message, command, tmp_path, capsys):
    path = file_of(tmp_path, content)
    assert cli.main([command, *given, "--config", str(path), "--dataset", "digits"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("jaxclip: error: ")
    assert said.count("\n") == 1
    assert not list((tmp_path / "work").iterdir())


def test_unreadable_files(tmp_path, capsys):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file")):
        assert cli.main(["train", "--config", str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"jaxclip: error: --config={path}: {reason}")
    with pytest.raises(UserError, match=r"^--resume=.*no: No such file"):
        config_file.config(tmp_path / "no", "--resume")
    assert not list((tmp_path / "work").iterdir())
