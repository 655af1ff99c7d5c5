"""The command line: the files it writes, and errors in one line."""

import json
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from jaxclip.train import cli
from jaxclip.train.cli import flags, parser
from jaxclip.train.config import presets
from jaxclip.train.recording import strict_json
from tests.train import runs
from tests.train.runs import records, strictly, summary

SMALL = [*runs.SMALL, "--epochs", "2"]


ERRORS = [
    (["trian"], "COMMAND=trian: unknown, did you mean train? Choose from demo, presets, train"),
    (["fly"], "COMMAND=fly: unknown, choose from demo, presets, train"),
    (["train", "exploed"], "PRESET=exploed: unknown, did you mean explode? Choose from explode,"),
    (["train", "--lerning-rate=1"], "--lerning-rate: unknown argument, did you mean --learning-ra"),
    (["train", "forward", "extra"], "extra: unknown argument, see jaxclip train --help"),
    (["--wrong", "presets"], "--wrong: unknown argument, see jaxclip --help"),
    (["train", "explode", "--clip", "globl_norm=1"], "'globl_norm', did you mean global_norm? Cho"),
    (["train", "explode", "--clip", "norm=1,axs=0"], "'axs=0', did you mean axis? Choose from"),
    (["train", "explode", "--init", "glort"], "--init=glort: unknown, did you mean glorot? Choose"),
    (["train"], "PRESET"),
    (["train", "nope"], "PRESET=nope: unknown, choose from explode, forward"),
    (["train", "explode", "--clip", "foo=1"], "--clip foo=1: unknown rule"),
    (["train", "explode", "--clip", "global_norm=abc"], "--clip global_norm=abc: max_norm='abc'"),
    (["train", "explode", "--clip", "global_norm=-1"], "--clip global_norm=-1: max_norm=-1"),
    (["train", "explode", "--clip", "none", "--clip", "value=1"], "--clip none"),
    (["train", "explode", "--project", "min_norm=1"], "--project min_norm=1: unknown rule"),
    (["train", "explode", "--batch-size", "0"], "--batch-size=0: must be at least 1"),
    (["train", "explode", "--batch-size", "9999"], "--batch-size=9999: more than the 1,437"),
    (["train", "explode", "--batch-size", "1.5"], "--batch-size=1.5: must be a whole number"),
    (["train", "explode", "--epochs", "-3"], "--epochs=-3"),
    (["train", "explode", "--log-every", "0"], "--log-every=0"),
    (["train", "explode", "--sizes", "8,0"], "--sizes=8,0: must be widths"),
    (["train", "explode", "--sizes", "8;4"], "--sizes=8;4: must be widths, as 512,256"),
    (["train", "explode", "--sizes", "99999,99999"], "at most 500,000,000 parameters"),
    (["train", "explode", "--learning-rate", "nan"], "--learning-rate=nan"),
    (["train", "explode", "--learning-rate", "-1"], "--learning-rate=-1.0"),
    (["train", "explode", "--init-std", "0"], "--init-std=0.0"),
    (["train", "explode", "--momentum", "1"], "--momentum=1.0"),
    (["train", "explode", "--decay-steps", "0"], "--decay-steps=0"),
    (["train", "explode", "--seed", "-1"], "--seed=-1"),
    (["train", "explode", "--activation", "sine"], "--activation=sine: unknown, choose from relu"),
    (["train", "explode", "--dtype", "int8"], "--dtype=int8"),
    (["train", "explode", "--dataset", "cifar"], "--dataset=cifar: unknown"),
    (["train", "explode", "--data-dir", "/no/such"], "--data-dir=/no/such"),
    (["train", "explode", "--dataset", "mnist"], "--dataset=mnist"),
    pytest.param(
        *(["train", "explode", "--out", "/dev/null/x"], "--out=/dev/null/x: cannot be written"),
        marks=pytest.mark.slow,  # draws the network
    ),
    (["train", "explode", "--dropout", "1"], "--dropout=1.0: must be at least 0 and below 1"),
    (["train", "explode", "--checkpoint-every", "-1"], "--checkpoint-every=-1"),
    (["train", "explode", "--guard", "skip=1"], "--guard skip=1: unknown rule 'skip', choose from"),
    (["train", "explode", "--guard", "skip_nonfinite=3"], "takes no value"),
    (["train", "explode", "--guard", "skip_spikes,sigma=-1"], "skip_spikes,sigma=-1: sigma="),
    (["train", "explode", "--clip", "by=1"], "--clip by=1: "),
    (["train", "explode", "--clip", "by=zz,scope=leaf"], "zz is neither a number nor one of"),
    (["train", "--resume", "--out", "nowhere"], "PRESET: needed, choose from explode"),
    (["train", "--config", "/no/such"], "--config=/no/such: No such file or directory"),
    (["train", "explode", "--config", "/dev/null"], "--config=/dev/null: not "),
    (["train", "explode", "--parallel", "tpu"], "--parallel=tpu: unknown, choose from none, jit"),
    (["train", "explode", "--parallel", "jit", "--batch-size", "12"], "multiple of the 8 devices"),
    (["evaluate"], "FOLDER"),
    (["evaluate", "/no/such"], "FOLDER: no run in /no/such"),
    (["compare", "nope"], "PRESET=nope: unknown, choose from explode, forward"),
    (["compare", "--clip", "none", "--clip", "foo=1"], "--clip foo=1: unknown rule"),
    (["compare", "--clip", "global_norm=-1", "--dataset", "digits"], "max_norm=-1"),
    (["compare", "--seeds", "0"], "--seeds=0"),
    (["compare", "--parallel", "jit", "--at-once"], "--at-once: cannot be combined"),
    (["compare", "--parallel", "pmap", "--batch-size", "12"], "multiple of the 8 devices"),
    (["compare", "--learning-rate", "0"], "--learning-rate=0.0: must be positive and finite"),
    (["compare", "--dataset", "digits", "--out", "/dev/null/x"], "--out=/dev/null/x: cannot be"),
    (["demo", "--out", "/dev/null/x"], "--out=/dev/null/x: cannot be written"),
    (["demo", "--data-dir", "/no/such"], "--data-dir=/no/such"),
    (["demo", "--dataset", "mnist"], "--data-dir"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors_are_one_line(arguments, message, capsys, tmp_path):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxclip: error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.slow
def test_error_in_a_shell():
    command = [sys.executable, "-m", "jaxclip", "train", "explode", "--clip", "global_norm=-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr == "jaxclip: error: --clip global_norm=-1: max_norm=-1 must not be negative\n"
    )


@pytest.mark.slow
def test_missing_extra_names_the_package_to_install():
    code = (
        "import sys; sys.modules['flax'] = None; from jaxclip.train import cli; cli.main(['demo'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == (
        "jaxclip: error: no module flax; install it with: pip install 'jaxclip[train]'\n"
    )


@pytest.mark.slow
def test_train_writes_all_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # paths of any length in a line
    out = tmp_path / "out"
    command = ["train", "explode", *SMALL, "--out", str(out)]
    command += ["--project", "max_norm=0.2,axis=1,layers=hidden"]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "data: digits (8x8), 1,437 training and 360 test images" in said.out
    assert "gradient norms at step 1, the second\n" in said.out
    assert [line.split()[0] for line in said.out.splitlines() if line.startswith("layers/")] == [
        f"layers/{i}/{part}" for i in (0, 1) for part in ("kernel", "bias")
    ]
    assert [line[:9] for line in said.out.splitlines() if line.startswith("epoch")] == [
        *("epoch 1/2", "epoch 2/2")
    ]
    first = records(out)
    assert [r["kind"] for r in first] == ["run", "step", "step", "epoch", "step", "step", "epoch"]
    assert [r["step"] for r in first if r["kind"] == "step"] == [0, 1, 2, 3]
    assert [r["epoch"] for r in (first[3], first[6])] == [0, 1]  # on the screen they are 1 and 2
    step = first[1]
    tensors = [f"layers/{i}/{part}" for i in (0, 1) for part in ("kernel", "bias")]
    for monitor in ("grads", "clipped"):
        total = np.sqrt(sum(step[f"{monitor}/norm/{name}"] ** 2 for name in tensors))
        assert step[f"{monitor}/norm"] == pytest.approx(total, rel=1e-5)
    for line in (first[3], first[6], summary(out)):
        assert line["weights/largest/layers/0/kernel"] == pytest.approx(0.2, rel=1e-6)
        assert line["weights/median/layers/0/kernel"] <= 0.2 * (1 + 1e-6)
        assert line["weights/largest/layers/1/kernel"] > 0.2
    assert "  largest norm of a row of layers/0/kernel     0.2000 (limit 0.2)\n" in said.out
    assert re.search(
        r"  largest norm of a column of layers/1/kernel  0\.\d+ \(no limit\)\n", said.out
    )
    assert "findings from 4 recorded steps of 4, 0 to 3:\n" in said.out
    again = f"jaxclip train --config {out}/config.json --out {out}-2 --"
    assert said.out.splitlines()[-1].startswith(f"next: {again}")
    assert summary(out)["status"] == "finished"
    assert summary(out)["test_accuracy"] == first[-1]["test_accuracy"]
    assert strictly((out / "config.json").read_text())["sizes"] == [8]
    for name in ("run.png", "weights.png"):
        assert matplotlib.image.imread(out / name).shape == (550, 1320, 4)
    assert not list(out.glob("*.part"))


@pytest.mark.slow
def test_default_folder_and_printed_losses_of_an_interrupted_run(capsys, tmp_path):
    with runs.interrupted_in(1):
        assert cli.main(["train", "forward", *SMALL, "--log-every", "1"]) == 130
    said, start = capsys.readouterr(), "  loss at steps 0 to 1: "
    line = next(x for x in said.out.splitlines() if x.startswith(start))
    losses = [float(x) for x in line.removeprefix(start).split()]
    folder = tmp_path / "work" / "runs" / "forward"
    written = records(folder)
    assert losses == pytest.approx([r["loss"] for r in written if r["kind"] == "step"], abs=1e-4)
    assert "interrupted" in said.err
    assert [r["kind"] for r in written] == ["run", "step", "step", "epoch"]
    assert summary(folder)["status"] == "interrupted"
    assert summary(folder)["epochs"] == 1


@pytest.mark.slow
def test_non_finite_loss_exits_with_code_1(tmp_path, capsys):
    command = ["train", "explode", *SMALL, "--clip", "none", "--learning-rate", "1e30"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("jaxclip: error: the loss is ")
    assert "first non-finite gradient: layers/0/kernel" in said
    assert said.endswith("; try --learning-rate=1e+29 or --clip=global_norm=1\n")
    assert said.count("\n") == 1
    assert summary(tmp_path / "out")["status"] == "non-finite loss"
    assert records(tmp_path / "out")[-1]["train_loss"] in ("NaN", "Infinity")
    assert (tmp_path / "out" / "run.png").exists()
    assert (tmp_path / "out" / "weights.png").exists()


UNUSED = ("b1", "b2", "weight_decay")  # the presets use no Adam


def test_presets_prints_every_hyper_parameter(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["presets"]) == 0
    said = capsys.readouterr().out
    for field in presets.fields()[1:]:
        name = field.name.replace("_", "-")
        assert re.search(f"--(no-)?{name}", said) or field.name in UNUSED
    for value in (*presets.PRESETS, "512,256", "global_norm=15", "22000", "0.001", "max_norm=1.0"):
        assert value in said
    assert max(map(len, said.splitlines())) <= 80


def test_presets_have_the_tutorials_settings():
    rows = {
        "explode": ((512, 256), "relu", "truncated_normal", "mse", "sgd", 0.1, 256, 30, False),
        "forward": ((256, 128), "relu", "truncated_normal", "mse", "sgd", 1e-3, 128, 10, False),
        "value-clip": ((300, 100), "relu", "he", "cross_entropy", "sgd", 0.01, 50, 20, True),
        "max-norm": ((300, 100), "relu", "he", "cross_entropy", "momentum", 0.01, 50, 20, True),
    }
    names = ("sizes", "activation", "init", "loss", "optimizer", "learning_rate")
    for preset, row in rows.items():
        config = presets.get(preset)
        found = tuple(getattr(config, n) for n in (*names, "batch_size", "epochs", "shuffle"))
        assert found == row
    assert presets.get("explode").init_std == presets.get("forward").init_std == 0.1


def test_every_flag_sets_its_field():
    given = {
        "sizes": (3, 2),
        "dataset": "digits",
        "activation": "swish",
        "init": "lecun",
        "init_std": 0.2,
        "batch_norm": True,
        "dropout": 0.8,
        "dtype": "bfloat16",
        "loss": "sse",
        "optimizer": "adamw",
        "learning_rate": 0.3,
        "momentum": 0.4,
        "b1": 0.5,
        "b2": 0.6,
        "weight_decay": 0.7,
        "schedule": "cosine",
        "end_learning_rate": 0.01,
        "decay_steps": 9,
        "power": 2.0,
        "batch_size": 10,
        "epochs": 11,
        "shuffle": True,
        "clip": ("agc=0.1", "value=1"),
        "project": ("max_norm=1,axis=0",),
        "guard": ("skip_nonfinite", "skip_spikes"),
        "log_every": 12,
        "checkpoint_every": 14,
        "parallel": "fsdp",
        "report": "losses",
        "allow_nonfinite": True,
        "seed": 13,
    }
    assert set(given) == {f.name for f in presets.fields()} - {"preset"}
    arguments = ["train", "explode"]
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("clip", "project", "guard"):
            arguments += [x for rule in value for x in (flag, rule)]
        elif value is True:
            arguments.append(flag)
        else:
            arguments += [flag, ",".join(map(str, value)) if name == "sizes" else str(value)]
    options = parser.build().parse_args(arguments)
    config = presets.get("explode").override(flags.overrides(options))
    assert {name: getattr(config, name) for name in given} == given


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), '"NaN"'),
        (np.float32("inf"), '"Infinity"'),
        (np.array([1.5, -np.inf]), '[1.5, "-Infinity"]'),
        ({1: (np.int32(3), None, True, "x")}, '{"1": [3, null, true, "x"]}'),
    ],
)
def test_strict_json(value, text):
    assert json.dumps(strict_json.plain(value), allow_nan=False) == text


def test_float32_round_trips():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    read = json.loads(json.dumps(strict_json.plain(values)))
    np.testing.assert_array_equal(np.asarray(read, np.float32), values)
