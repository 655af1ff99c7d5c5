"""Settings of every wrong kind: one line that names key and value, before any data is read."""

import dataclasses
import json
import os
import random
import time

import pytest

from jaxclip.train import cli, data
from jaxclip.train.config import config_file, presets, rule_specs
from jaxclip.train.errors import UserError
from jaxclip.train.training import optimizer
from tests.train import runs

DEEP = 100_000


@pytest.fixture
def told(tmp_path, capsys, monkeypatch):
    """Runs the program with a config file; returns the one line that it must print in 2 s."""
    monkeypatch.setattr(data, "load", None)

    def run(content, command="train"):
        path = tmp_path / "config.json"
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        start = time.monotonic()
        assert cli.main([command, "explode", "--config", str(path)]) == 2
        assert time.monotonic() - start < 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert said.err.startswith("jaxclip: error: --")
        assert len(said.err) < 900
        return said.err.removeprefix("jaxclip: error: ").replace(f"--config={path}: ", "FILE: ")

    return run


NO_SETTINGS = [
    ("[" * DEEP, "FILE: nested too deeply for settings\n"),
    ("[" * DEEP + "]" * DEEP, "FILE: nested too deeply for settings\n"),
    ('{"a":' * DEEP + "1" + "}" * DEEP, "FILE: nested too deeply for settings\n"),
    (
        '{"sizes":' + "[" * 500 + "]" * 500 + "}",
        "FILE: sizes=[[[[[[[...]]]]]]] must be",
    ),
    ('{"epochs": ' + '{"a":' * 300 + "1" + "}" * 301, "FILE: epochs={'a': {'a': {'a': {'a': {"),
    ('{"epochs": 1, "seed": 2, "epochs": 3}', "FILE: 'epochs' is given twice"),
    ('{"epochs": {"a": 1, "a": 1}}', "FILE: 'a' is given twice"),
    ('{"' + "k" * 999 + '": 1}', "FILE: unknown field 'kkkkkkkkkkkk...kkkkkkkkkkkkk', choose from"),
    ('{"\\ud800": 1}', "FILE: unknown field '\\ud800', choose from"),
    ('{"epoch": 1}', "FILE: unknown field 'epoch', did you mean epochs?"),
    (b'{"loss": "\xe9"}', "FILE: not JSON ('utf-8' codec can't decode byte 0xe9 in position 10"),
    ('{"epochs": 3}'.encode("utf-16"), "FILE: not JSON ('utf-8' codec can't decode byte 0xff"),
    (b"\0" * 99, "FILE: not JSON (Expecting value"),
    (b"PK\x03\x04" + bytes(range(128, 200)), "FILE: not JSON ("),
    ('{"epochs": 1} {"epochs": 2}', "FILE: not JSON (Extra data"),
    ('{"epochs": 1,}', "FILE: not JSON ("),
    ("# epochs\n{}", "FILE: not JSON ("),
    (" " * (1 << 20) + "{}", "FILE: more than 1,048,576 bytes, too many for settings"),
]


@pytest.mark.parametrize(("content", "message"), NO_SETTINGS, ids=lambda x: str(x[:20]))
def test_files_that_hold_no_settings(content, message, told):
    assert told(content).startswith(message)


def test_a_file_of_a_gigabyte(told, tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    assert told(None) == "FILE: more than 1,048,576 bytes, too many for settings\n"


def test_what_is_no_file(told, tmp_path):
    path = tmp_path / "config.json"
    path.symlink_to(path)
    assert told(None) == "FILE: Too many levels of symbolic links\n"
    path.unlink()
    path.mkdir()
    assert told(None) == "FILE: Is a directory\n"
    path.rmdir()
    os.mkfifo(path)
    assert told(None) == "FILE: not a file, but a pipe or a device\n"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert told(None) == "FILE: not a file, but a pipe or a device\n"


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"preset": "forward", "epochs": 3}')
    assert config_file.config(path) == dataclasses.replace(presets.get("forward"), epochs=3)


NUMBERS = [
    ("epochs", "1e9", "FILE: epochs=1000000000.0 must be a whole number"),
    ("epochs", "true", "FILE: epochs=True must be a whole number"),
    ("epochs", "-0", "--epochs=0: must be at least 1"),
    ("epochs", "-0.0", "FILE: epochs=-0.0 must be a whole number"),
    ("epochs", "9" * 299, f"--epochs={'9' * 40}...{'9' * 10}: must be below 2,147,483,648"),
    ("epochs", "9" * 5000, "FILE: epochs=inf must be a whole number"),
    (
        "epochs",
        "2000000000",
        "--epochs=2000000000: must be fewer, for less than 2,147,",
    ),
    ("batch_size", "1000000000000", "--batch-size=1000000000000: must be below 2,147,483,648"),
    ("log_every", str(2**31), "--log-every=2147483648: must be below 2,147,483,648"),
    ("checkpoint_every", str(2**63), "--checkpoint-every=9223372036854775808: must be below"),
    ("checkpoint_every", "-1", "--checkpoint-every=-1: must be at least 0"),
    ("decay_steps", str(10**20), "--decay-steps=100000000000000000000: must be below"),
    ("decay_steps", "0", "--decay-steps=0: must be at least 1"),
    ("seed", str(2**32), "--seed=4294967296: must be at least 0 and below 2**32"),
    ("seed", "-1", "--seed=-1: must be at least 0"),
    ("learning_rate", "1e400", "--learning-rate=inf: must be positive and finite"),
    ("learning_rate", "-1e400", "--learning-rate=-inf: must be positive and finite"),
    ("learning_rate", "NaN", "--learning-rate=nan: must be positive and finite"),
    ("learning_rate", "-0.0", "--learning-rate=-0.0: must be positive and finite"),
    ("learning_rate", "-0", "--learning-rate=0: must be positive and finite"),
    ("learning_rate", "1e-400", "--learning-rate=0.0: must be positive and finite"),
    ("learning_rate", "1e39", "--learning-rate=1e+39: must be below 1e+38"),
    (
        "learning_rate",
        "1" + "0" * 350,
        "--learning-rate=inf: must be positive and finite",
    ),
    ("learning_rate", "9" * 5000, "--learning-rate=inf: must be positive and finite"),
    ("init_std", "1e300", "--init-std=1e+300: must be below 1e+38"),
    ("power", "Infinity", "--power=inf: must be positive and finite"),
    ("weight_decay", "1e39", "--weight-decay=1e+39: must be at least 0 and below 1e+38"),
    ("end_learning_rate", "NaN", "--end-learning-rate=nan: must be at least 0"),
    ("dropout", "1", "--dropout=1: must be at least 0 and below 1"),
    ("momentum", "NaN", "--momentum=nan: must be at least 0 and below 1"),
    ("b2", "1e400", "--b2=inf: must be at least 0 and below 1"),
    ("sizes", "[1000000000]", "--sizes=1000000000: must be at most 500,000,000 parameters"),
    ("sizes", "[100000, 100000]", "--sizes=100000,100000: must be at most 500,000,000 parameters"),
    ("sizes", f"[{'9' * 299}]", f"--sizes={'9' * 40}...{'9' * 10}: must be at most"),
    ("sizes", str([1] * 2000), f"--sizes={'1,' * 20}...{',1' * 5}: must be 200 widths at most"),
    ("sizes", str([1] * 300_000), f"--sizes={'1,' * 20}...{',1' * 5}: must be 200 widths at most"),
    ("sizes", "[8, -8]", "--sizes=8,-8: must be widths of at least 1"),
    ("sizes", "[true]", "FILE: sizes=[True] must be a list, each item a whole number"),
    ("sizes", "[8.0]", "FILE: sizes=[8.0] must be a list, each item a whole number"),
    ("batch_norm", "0", "FILE: batch_norm=0 must be true or false"),
    ("dataset", '"mnits"', "--dataset=mnits: unknown, did you mean mnist?"),
    ("dataset", json.dumps("m" * 99_999), f"--dataset={'m' * 40}...{'m' * 10}: unknown, choose"),
    (
        "preset",
        json.dumps("p" * 99_999),
        "FILE: names the preset pppppppppppp...ppppppppppppp, ",
    ),
    ("loss", json.dumps("l" * 99_999), f"--loss={'l' * 40}...{'l' * 10}: must be one of mse, sse"),
]


@pytest.mark.parametrize(("key", "value", "message"), NUMBERS, ids=lambda x: x[:20])
def test_values_out_of_range(key, value, message, told):
    assert told(f'{{"{key}": {value}}}').startswith(message)


RULES = [
    ("clip", "autoclip=50,window=1e12", "window=1000000000000.0 must be a whole number"),
    ("clip", f"autoclip=50,window={10**12}", "remembers 4e+09 numbers, more than 500,000,000"),
    ("clip", f"autoclip=50,window={10**30}", "window=1e+30 must be a whole number"),
    ("clip", "autoclip=50,window=-0.0", "window=-0.0 must be a whole number"),
    ("clip", "autoclip=50,window=0", "window=0 must be"),
    ("clip", "autoclip=50,window=true", "window=True must be a whole number"),
    ("clip", "autoclip=50,window=nan", "window=nan must be a whole number"),
    ("clip", "global_norm=nan", "max_norm=nan"),
    ("clip", "global_norm=-1", "max_norm=-1"),
    ("clip", "global_norm=-1e400", "max_norm=-inf"),
    ("clip", "global_norm=true", "max_norm=True"),
    ("clip", f"norm=1,axis={10**30}", "axis=1e+30 must be an int"),
    ("project", f"max_norm=1,layers={10**20}", "layers=1e+20: must be all, hidden, or numbers"),
    ("project", "max_norm=1,layers=7", "layers=7: must be all, hidden, or numbers from 0 to 2"),
    ("project", "max_norm=nan", "max_norm=nan"),
    ("guard", "skip_spikes,window=1e12", "window=1000000000000.0 must be a whole number"),
    ("guard", f"skip_spikes,window={10**12}", "remembers 4e+09 numbers, more than 500,000,000"),
    ("guard", "skip_nonfinite,max_consecutive=-1", "max_consecutive=-1"),
]


@pytest.mark.parametrize(("kind", "text", "message"), RULES)
def test_rules_that_do_not_fit_the_network(kind, text, message, told):
    said = told(json.dumps({kind: [text]}))
    assert said.startswith(f"--{kind} {text}: ")
    assert message in said


@pytest.mark.parametrize("kind", rule_specs.RULES)
def test_rules_without_end(kind, told):
    said = told(json.dumps({kind: ["x" * 100_000]}))
    assert said == f"--{kind} {'x' * 40}...: longer than 500 characters\n"
    said = told(json.dumps({kind: ["x"] * 1000}))
    assert said == f"--{kind}={'x,' * 20}...{',x' * 5}: must be 20 at most\n"


def test_numbers_beyond_64_bits_are_floats():
    for text in (str(2**63), str(-(2**63)), "9" * 400, "-" + "9" * 400):
        value = rule_specs.literal(text)
        assert type(value) is float
        assert value == float(text)
    assert rule_specs.literal(str(2**63 - 1)) == 2**63 - 1


def test_compare_checks_rules_too(told):
    said = told(json.dumps({"project": ["max_norm=1,layers=7"]}), "compare")
    assert "layers=7: must be all, hidden, or numbers from 0 to 2" in said


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_presets_are_accepted(preset):
    for dataset, dtype in ((None, "float32"), ("digits", "float16")):
        config = presets.get(preset).override({"dataset": dataset, "dtype": dtype})
        optimizer.check(config)


VALUES = [
    *(
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-0.0",
        "1e400",
        "NaN",
        "-Infinity",
        "1e-400",
        "[]",
        "{}",
    ),
    *('""', '"\\u0000"', '"\\ud83d"', "[null]", "[[1]]", '["x=1"]', '["global_norm=1e400"]', "3.5"),
    *("9" * 30, "9" * 5000, "[1,2,3]", '{"a":{"b":[1]}}', str(2**31 - 1), str(2**32), '["none"]'),
]


def test_any_value_for_any_key(tmp_path):
    """It is taken, or refused in one line: nothing else."""
    path, choose = tmp_path / "config.json", random.Random(0)
    names = [field.name for field in presets.fields()]
    pairs = [(key, value) for key in names for value in VALUES]
    said = []
    for key, value in choose.sample(pairs, runs.tries(150, len(pairs))):
        path.write_text(f'{{"{key}": {value}}}')
        try:
            optimizer.check(config_file.config(path, preset="explode"))
        except UserError as error:
            said.append(str(error))
    assert [text for text in said if "\n" in text or len(text) > 900] == []
    assert len(said) > 75
