"""Several processes connect, train one run, and exit soon after one of them dies."""

import os
import re
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
from jaxclip.train.training import processes
from tests.train import runs

RUN = [
    *("train", "explode", "--dataset", "digits", "--sizes", "32,16", "--batch-size", "64"),
    *("--optimizer", "momentum", "--clip", "autoclip=50,window=8", "--checkpoint-every", "1"),
]
BOUND = 4 * processes.HEARTBEAT_SECONDS  # seconds; the machine may be busy


def start(*arguments, devices, **variables):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "jaxclip", *arguments],
        env=os.environ | {"XLA_FLAGS": flags} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def is_free(port):
    with socket.socket() as tried:
        return tried.connect_ex(("localhost", port)) != 0


def start_two(*arguments):
    """Two processes of four devices each."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    others = ["--coordinator", f"localhost:{port}", "--process-count", "2", "--process-index"]
    return [start(*arguments, *others, str(i), devices=4) for i in range(2)]


def finish(*started, code=0):
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [code] * len(started), said
    return said


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The run in one process; how it is parallel makes a difference of roundings only."""
    out = tmp_path_factory.mktemp("one")
    finish(start(*RUN, "--epochs", "2", "--parallel", "jit", "--out", str(out), devices=8))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pmap", "fsdp"])  # whole and sharded, by hand and by compiler
def test_two_processes_equal_one(way, one_process, tmp_path):
    arguments = [*RUN, "--epochs", "2", "--parallel", way, "--out", str(tmp_path)]
    first, second = finish(*start_two(*arguments))
    assert "epoch 1: loss" in first
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
@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_killed(victim, tmp_path):
    """The other process ends with an error in time, and one process resumes the run."""
    out = tmp_path / "run"
    both = start_two(*RUN, "--epochs", "500", "--parallel", "fsdp", "--out", str(out))
    while not list(out.glob("checkpoints/2")):
        assert all(process.poll() is None for process in both), finish(*both)
        time.sleep(0.05)
    both[victim].send_signal(signal.SIGKILL)
    finish(both[victim], code=-signal.SIGKILL)
    other, began = both[1 - victim], time.monotonic()
    said, _ = other.communicate(timeout=BOUND)
    assert other.returncode not in (0, 2), said
    assert re.search("another (task|process)", said)
    print(f"the other ended {time.monotonic() - began:.0f} s later, with {other.returncode}")
    done = max(int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit())
    last = str(done + 2)
    (said,) = finish(start("train", "--resume", "--out", str(out), "--epochs", last, devices=1))
    assert f"resuming after {done} of {last} epochs" in said
    finish(start(*RUN, "--epochs", last, "--out", str(tmp_path / "whole"), devices=1))
    (found, at), (wanted, also) = (runs.last_state(tmp_path / name) for name in ("run", "whole"))
    assert at == also
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_cluster_environment(tmp_path):
    """The variables of Open MPI; JAX computes the port from the job number."""
    job = next(job for job in range(100, 4096) if is_free(2**16 - 2**12 + job))
    uri = f"{2**12 * job}.0;tcp://127.0.0.1:1"
    known = {"OMPI_MCA_orte_hnp_uri": uri, "OMPI_COMM_WORLD_SIZE": "2"}
    arguments = [*RUN, "--epochs", "1", "--parallel", "jit", "--cluster", "--out"]
    both = [
        start(
            *(*arguments, str(tmp_path / "run")),
            **known | {"OMPI_COMM_WORLD_RANK": str(i), "OMPI_COMM_WORLD_LOCAL_RANK": str(i)},
            devices=4,
        )
        for i in range(2)
    ]
    first, second = finish(*both)
    assert "epoch 0: loss" in first
    assert "epoch" not in second
    (said,) = finish(start(*arguments, str(tmp_path / "none"), devices=1), code=2)
    assert "--cluster: the environment does not say which process of a cluster this is" in said


@pytest.mark.slow
def test_an_invalid_request_ends_all_processes(tmp_path):
    arguments = [*RUN, "--epochs", "1", "--out", str(tmp_path / "run")]
    for said in finish(*start_two(*arguments), code=2):
        assert "jaxclip: error: --parallel=none: there are several processes" in said
        assert "Traceback" not in said


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


def test_a_lost_process_is_one_line(monkeypatch):
    lost = jax.errors.JaxRuntimeError("Connection closed by peer\nmore")
    with pytest.raises(jax.errors.JaxRuntimeError), processes.explain_lost_process():
        raise lost
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    said = r"lost \(Connection closed by peer\); --resume continues"
    with pytest.raises(RunError, match=said), processes.explain_lost_process():
        raise lost
