"""Several processes connect, train one run, and end with one line each after one of them dies."""

import io
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxclip.train import cli
from jaxclip.train.errors import RunError
from jaxclip.train.recording import resuming
from jaxclip.train.training import last_line, processes
from tests.train import runs

RUN = [
    *("train", "explode", "--dataset", "digits", "--sizes", "16", "--batch-size", "256"),
    *("--optimizer", "momentum", "--clip", "autoclip=50,window=8", "--checkpoint-every", "1"),
]
QUICK = """
import sys
from jaxclip import __main__
from jaxclip.train.training import processes
processes.HEARTBEAT_SECONDS, processes.GOODBYE_SECONDS = 5, 1
sys.exit(__main__.main())
"""


def start(*arguments, devices, program=("-m", "jaxclip"), errors=subprocess.STDOUT, **variables):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=os.environ | {"XLA_FLAGS": flags} | variables,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )


def is_free(port):
    with socket.socket() as tried:
        return tried.connect_ex(("localhost", port)) != 0


def start_two(*arguments, devices=2, **options):
    """Two processes of some devices each."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    others = ["--coordinator", f"localhost:{port}", "--process-count", "2", "--process-index"]
    return [start(*arguments, *others, str(i), devices=devices, **options) for i in range(2)]


def finish(*started, code=0):
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [code] * len(started), said
    return said


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The run in one process; how it is parallel makes a difference of roundings only."""
    out = tmp_path_factory.mktemp("one")
    runs.train(*RUN, "--epochs", "2", "--parallel", "jit", "--out", str(out))
    return out


def of_open_mpi(*arguments):
    """The same in a cluster: variables of Open MPI; JAX computes the port from the job number."""
    job = next(job for job in range(100, 4096) if is_free(2**16 - 2**12 + job))
    uri = f"{2**12 * job}.0;tcp://127.0.0.1:1"
    known = {"OMPI_MCA_orte_hnp_uri": uri, "OMPI_COMM_WORLD_SIZE": "2"}
    ranks = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    return [
        start(*arguments, "--cluster", devices=2, **known | dict.fromkeys(ranks, str(i)))
        for i in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "begin"), [("pmap", of_open_mpi), ("fsdp", start_two)])
def test_two_processes_equal_one(way, begin, one_process, tmp_path):
    """Whole and sharded parameters, by hand and by the compiler."""
    arguments = [*RUN, "--epochs", "2", "--parallel", way, "--out", str(tmp_path)]
    first, second = finish(*begin(*arguments))
    assert "epoch 2/2" in first
    assert "epoch" not in second  # process 0 prints
    one, two = runs.last_records(one_process), runs.last_records(tmp_path)
    assert one.keys() == two.keys()
    assert len(two) == len(runs.records(tmp_path)) - 1  # and writes
    for where, record in one.items():
        assert record.keys() == two[where].keys()
        for key, value in record.items():
            if isinstance(value, float):
                assert two[where][key] == pytest.approx(value, rel=1e-5, abs=1e-7), (where, key)
            else:
                assert two[where][key] == value
    (found, at), (wanted, also) = map(runs.last_state, (tmp_path, one_process))
    assert at == also
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_one_process_is_lost(victim, number, tmp_path):
    """The other process ends with one line in time, and one process goes on with the run."""
    out, errors = tmp_path / "run", subprocess.PIPE
    arguments = [*RUN, "--epochs", "5000", "--parallel", "fsdp", "--out", str(out)]
    both = start_two(*arguments, devices=1, program=("-c", QUICK), errors=errors)
    while not list(out.glob("checkpoints/2")):
        assert all(process.poll() is None for process in both), finish(*both)
        time.sleep(0.05)
    lost, other = both[victim], both[1 - victim]
    lost.send_signal(number)
    _, said = other.communicate(timeout=60)
    assert other.returncode in (1, -signal.SIGABRT), said
    assert said.startswith("jaxclip: error: another process was lost")
    assert said.endswith(f"go on with: jaxclip train --resume --out {out}\n")
    assert said.count("\n") == 1
    lost.send_signal(signal.SIGCONT)
    _, said = lost.communicate(timeout=60)
    assert said.count("\n") == (number == signal.SIGSTOP), said
    if number == signal.SIGSTOP:
        return
    last = ["--epochs", str(resuming.names(out)[-1]), "--parallel", "none", "--out"]
    runs.train("train", "--resume", *last, str(out))
    runs.train(*RUN, *last, str(tmp_path / "whole"))
    (found, at), (wanted, also) = (runs.last_state(tmp_path / name) for name in ("run", "whole"))
    assert at == also
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


ERRORS = [
    (["--coordinator", "host:1234"], "--process-count: needed with several processes"),
    (["--coordinator", "host:1234", "--process-count", "2"], "--process-index: needed"),
    (["--process-count", "2", "--process-index", "0"], "--coordinator: needed"),
    (["--coordinator", "host", "--process-count", "2", "--process-index", "0"], "host: must be"),
    (["--coordinator", "h:0", "--process-count", "2", "--process-index", "0"], "h:0: must be"),
    (["--coordinator", "h:1", "--process-count", "0", "--process-index", "0"], "count=0: must be"),
    (["--coordinator", "h:1", "--process-count", "2", "--process-index", "2"], "index=2: must be"),
    (["--cluster", "--process-count", "2"], "--cluster: takes coordinator, count and index"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors_are_one_line(arguments, message, capsys, tmp_path):
    assert cli.main(["train", "explode", "--dataset", "digits", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxclip: error: --")
    assert message in said
    assert said.count("\n") == 1
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("error", [RuntimeError("no peer\nat all"), ValueError("no peer")])
def test_unreachable_processes(error, monkeypatch, capsys):
    def initialize(**options):
        assert options.pop("heartbeat_timeout_seconds") == processes.HEARTBEAT_SECONDS
        assert not options or set(options.values()) == {"localhost:1", 2, 1}
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    assert cli.main(["train", "explode", "--cluster"]) == 2
    said = "the environment does not say which process of a cluster this is (no peer)"
    assert capsys.readouterr().err == f"jaxclip: error: --cluster: {said}\n"
    who = ["--coordinator", "localhost:1", "--process-count", "2", "--process-index", "1"]
    assert cli.main(["train", "explode", *who]) == 2
    assert capsys.readouterr().err == "jaxclip: error: --coordinator=localhost:1: no peer\n"


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_a_lost_process_is_one_line(kind, monkeypatch):
    lost = kind("UNKNOWN: Connection closed by peer\nmore")
    with pytest.raises(kind, match="closed"), processes.explain_lost_process("again"):
        raise lost
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="a bug"), processes.explain_lost_process("again"):
        raise ValueError("a bug")
    said = r"lost \(UNKNOWN: Connection closed by peer\); go on with: again"
    with pytest.raises(RunError, match=said), processes.explain_lost_process("again"):
        raise lost


RUNTIME = b"""\
E1129 05:46:46.37 7873 coordination_service.cc:1549] propagate: UNAVAILABLE: tasks are unhealthy:
1
The tasks have crashed.
F1129 05:46:46.38 7884 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors.

*** Check failure stack trace: ***
    @     0x7fb4be840634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
ERROR = b"jaxclip: error: a disk is full\n"
OTHERS = b"W1129 05:46:46.37 1 cpu.cc:1] slow\nand more\nTraceback (most recent call last):\n  x\n"


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (b"", b""),
        (OTHERS, OTHERS),
        (OTHERS + RUNTIME, OTHERS + b"lost\n"),
        (ERROR + RUNTIME, ERROR),
        (RUNTIME.partition(b"F")[0] + ERROR, ERROR),
        (RUNTIME.partition(b"F")[0] + OTHERS, OTHERS),
    ],
)
def test_the_runtime_has_not_the_last_word(errors, expected):
    out = io.BytesIO()
    last_line.copy(io.BytesIO(errors), out, "lost")
    assert out.getvalue() == expected
