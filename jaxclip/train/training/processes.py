"""Several processes, one run: how they find each other, who writes, and how one leaves.

JAX's runtime does the rest. It notices within `HEARTBEAT_SECONDS` that a process has died, and ends
the others with an error; the run goes on from its last checkpoint, on any number of devices.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.train.errors import RunError, UserError, first_line

HEARTBEAT_SECONDS = 30
LINGER_SECONDS = 2


def join(coordinator: str | None, count: int | None, index: int | None, cluster: bool) -> None:
    """Connects this process to the others of its run; does nothing if it is the only one.

    Before anything else is asked of JAX's devices.

    Args:
      coordinator: address and port of the process with index 0.
      count: how many processes there are.
      index: which of them this is.
      cluster: take all three from the environment of Slurm, Open MPI, Kubernetes or a TPU pod.

    Raises:
      UserError: if they do not say who this process is, or the others cannot be reached.
    """
    given = {"coordinator": coordinator, "process-count": count, "process-index": index}
    missing = [name for name, value in given.items() if value is None]
    if cluster:
        if len(missing) < len(given):
            raise UserError("--cluster: takes coordinator, count and index from the environment")
    elif len(missing) == len(given):
        return
    elif missing:
        raise UserError(f"--{missing[0]}: needed with several processes, as are the other two")
    else:
        _check(str(coordinator), int(count or 0), int(index or 0))
    where: dict[str, Any] = {} if cluster else {"coordinator_address": coordinator}
    who: dict[str, Any] = {} if cluster else {"num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**where, **who, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        if cluster:
            problem = "the environment does not say which process of a cluster this is"
            raise UserError(f"--cluster: {problem} ({first_line(error)})") from error
        raise UserError(f"--coordinator={coordinator}: {first_line(error)}") from error


def _check(coordinator: str, count: int, index: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={coordinator}: must be an address and a port, HOST:PORT")
    if count < 1:
        raise UserError(f"--process-count={count}: must be at least 1")
    if not 0 <= index < count:
        raise UserError(f"--process-index={index}: must be at least 0 and below {count}")


def leads() -> bool:
    """Returns whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def wait() -> None:
    """Waits until all processes are here: until there is a sum over the devices of all of them."""
    if jax.process_count() == 1:
        return
    mesh = jax.make_mesh((jax.device_count(),), ("all",), (AxisType.Auto,))
    each = NamedSharding(mesh, P("all"))
    ones = np.ones(jax.device_count(), np.int32)
    mine = jax.make_array_from_callback(ones.shape, each, lambda index: ones[index])
    jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))(mine).block_until_ready()


@contextlib.contextmanager
def told_if_lost() -> Iterator[None]:
    """Makes one line of what the runtime says where a process that is waited for has died."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        message = f"another process was lost ({first_line(error)}); --resume goes on without it"
        raise RunError(message) from error


def leave(code: int) -> int:
    """Returns an exit code, or ends a process of several with it, if it is not 0.

    An ordinary end would wait for the others, who wait for this one. The first process lingers: the
    others are ended by the runtime when it is gone, and may have something to say.
    """
    if code and jax.distributed.is_initialized():
        time.sleep(LINGER_SECONDS if leads() else 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
