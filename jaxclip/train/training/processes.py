"""Several processes of one run: how they connect, which one writes, and how they exit.

JAX's runtime detects within `HEARTBEAT_SECONDS` that a process has died, and ends the others with
an error. The run can be resumed from its last checkpoint on any number of devices.
"""

import contextlib
import os
import sys
import time
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.train import signals
from jaxclip.train.errors import RunError, UserError, first_line

HEARTBEAT_SECONDS = 30
LINGER_SECONDS = 2


def connect(coordinator: str | None, count: int | None, index: int | None, cluster: bool) -> None:
    """Connects this process to the other processes of its run; does nothing without arguments.

    Call it before anything else that uses JAX's devices.

    Args:
      coordinator: address and port of process 0.
      count: the number of processes.
      index: the number of this process.
      cluster: read all three from the environment of Slurm, Open MPI, Kubernetes or a TPU pod.

    Raises:
      UserError: if arguments are missing or wrong, or the other processes cannot be reached.
    """
    given = {"coordinator": coordinator, "process-count": count, "process-index": index}
    missing = [name for name, value in given.items() if value is None]
    if cluster and len(missing) < len(given):
        raise UserError("--cluster: takes coordinator, count and index from the environment")
    if cluster:
        _initialize("--cluster: the environment does not say which process of a cluster this is")
    elif missing and len(missing) < len(given):
        raise UserError(f"--{missing[0]}: needed with several processes, as are the other two")
    elif not missing:
        _check(str(coordinator), int(count or 0), int(index or 0))
        who = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
        _initialize(f"--coordinator={coordinator}", **who)


def _check(coordinator: str, count: int, index: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={coordinator}: must be an address and a port, HOST:PORT")
    if count < 1:
        raise UserError(f"--process-count={count}: must be at least 1")
    if not 0 <= index < count:
        raise UserError(f"--process-index={index}: must be at least 0 and below {count}")


def _initialize(problem: str, **who: Any) -> None:
    try:
        jax.distributed.initialize(**who, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        signals.handle()  # the runtime has its own for SIGTERM
    except (RuntimeError, ValueError) as error:
        reason = f": {first_line(error)}" if who else f" ({first_line(error)})"
        raise UserError(problem + reason) from error


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
def explain_lost_process() -> Generator[None, None, None]:
    """Turns the runtime's error about a dead process into a `RunError` of one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        message = f"another process was lost ({first_line(error)}); --resume continues without it"
        raise RunError(message) from error


def exit_code(code: int) -> int:
    """Returns `code`; one of several processes that failed exits at once instead.

    An ordinary exit would wait for the other processes, which wait for this one. Process 0 waits a
    moment first: the runtime ends the others once it is gone, and they may still have to print.
    """
    if code and jax.distributed.is_initialized():
        time.sleep(LINGER_SECONDS if is_leader() else 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
