"""Several processes of one run: how they connect, which one writes, and how they exit.

JAX's runtime detects within `HEARTBEAT_SECONDS` that a process has died, and ends the others with
an error. The run can be resumed from its last checkpoint on any number of devices.
"""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.train import signals
from jaxclip.train.errors import RunError, UserError, first_line
from jaxclip.train.training import last_line

HEARTBEAT_SECONDS = 30
GOODBYE_SECONDS = 10  # at most, until the other processes have ended too


def connect(
    coordinator: str | None, count: int | None, index: int | None, cluster: bool, command: str
) -> None:
    """Connects this process to the other processes of its run; does nothing without arguments.

    Call it before anything else that uses JAX's devices.

    Args:
      coordinator: address and port of process 0.
      count: the number of processes.
      index: the number of this process.
      cluster: read all three from the environment of Slurm, Open MPI, Kubernetes or a TPU pod.
      command: the command that goes on with the run, for the error if another process is lost.

    Raises:
      UserError: if arguments are missing or wrong, or the other processes cannot be reached.
    """
    given = {"coordinator": coordinator, "process-count": count, "process-index": index}
    missing = [name for name, value in given.items() if value is None]
    if cluster and len(missing) < len(given):
        raise UserError("--cluster: takes coordinator, count and index from the environment")
    if cluster:
        problem = "--cluster: the environment does not say which process of a cluster this is"
        _initialize(problem, command)
    elif missing and len(missing) < len(given):
        raise UserError(f"--{missing[0]}: needed with several processes, as are the other two")
    elif not missing:
        _check(str(coordinator), int(count or 0), int(index or 0))
        who = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
        _initialize(f"--coordinator={coordinator}", command, **who)


def _check(coordinator: str, count: int, index: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={coordinator}: must be an address and a port, HOST:PORT")
    if count < 1:
        raise UserError(f"--process-count={count}: must be at least 1")
    if not 0 <= index < count:
        raise UserError(f"--process-index={index}: must be at least 0 and below {count}")


def _initialize(problem: str, command: str, **who: Any) -> None:
    try:
        jax.distributed.initialize(**who, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = f": {first_line(error)}" if who else f" ({first_line(error)})"
        raise UserError(problem + reason) from error
    signals.handle()  # the runtime has its own for SIGTERM
    last_line.add(f"jaxclip: error: another process was lost; go on with: {command}")


def is_leader() -> bool:
    """Returns whether this is process 0, the one that prints and writes files."""
    return jax.process_index() == 0


def wait_for_all() -> None:
    """Blocks until every process has called this."""
    smallest(0)


def smallest(number: int) -> int:
    """Returns the smallest of the numbers that the processes call this with, once all have."""
    if jax.process_count() == 1:
        return number
    mesh = jax.make_mesh((jax.device_count(),), ("all",), (AxisType.Auto,))
    sharding = NamedSharding(mesh, P("all"))
    mine = np.full(jax.device_count(), number, np.int32)
    sharded = jax.make_array_from_callback(mine.shape, sharding, lambda index: mine[index])
    return int(jax.jit(jnp.min, out_shardings=NamedSharding(mesh, P()))(sharded))


@contextlib.contextmanager
def explain_lost_process(command: str) -> Generator[None, None, None]:
    """Turns the runtime's error about a dead process into a `RunError` of one line.

    Args:
      command: the command that goes on with the run.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        is_runtime = re.match("[A-Z_]+: ", str(error))  # UNKNOWN, UNAVAILABLE, ...
        if jax.process_count() == 1 or not is_runtime:
            raise
        message = f"another process was lost ({first_line(error)}); go on with: {command}"
        raise RunError(message) from error


def exit_code(code: int) -> int:
    """Returns `code`; one of several processes that failed exits itself instead.

    If the others fail too, as after a wrong request, they all meet in the runtime's `shutdown`, so
    that the runtime ends none of them before it has printed its error. If they do not, an ordinary
    exit would wait for them, as they wait for this one.
    """
    if code and jax.distributed.is_initialized():
        signals.exit_with(code)
        sys.stdout.flush()
        sys.stderr.flush()
        goodbye = threading.Thread(target=_shut_down, daemon=True)
        goodbye.start()
        goodbye.join(GOODBYE_SECONDS)
        os._exit(code)
    return code


def _shut_down() -> None:
    with contextlib.suppress(Exception):  # one of them is lost
        jax.distributed.shutdown()
