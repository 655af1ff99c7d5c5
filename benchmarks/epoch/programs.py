"""The programs that `benchmarks.epoch` times, each in a process of its own that trains on request.

A process prepares, says that it is ready, and then sleeps until it is asked for some epochs. How
the turns go and what is made of the seconds is in `epoch`.
"""

import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
import optax

from jaxclip.train import data as source
from jaxclip.train.config import presets
from jaxclip.train.data import Data
from jaxclip.train.training import loop, optimizer

POLL, CALM, PATIENCE = 0.01, 3, 3.0  # seconds; polls in a row; seconds


class Turn(NamedTuple):
    """What a turn took, and the test accuracy it ended with."""

    seconds: float  # the whole of it
    training: float  # of these, spent on steps and on the test images
    waiting: float  # of these, after the last epoch, until threads had finished
    test_accuracy: float


class Gate:
    """Asked before every epoch: lets it begin when the turn is this process's."""

    def __init__(self, pipe: Connection):
        """Keeps the end of the pipe that requests come through."""
        self._pipe, self._left, self._start = pipe, 0, 0.0
        self._done: list[tuple[float, float]] = []

    def __call__(self) -> bool:
        """Waits for a turn, unless one is on; returns whether there is another epoch to do."""
        if not self._left:
            self._tell()
            self._left, self._start = self._pipe.recv(), time.perf_counter()
        self._left -= 1
        return self._left >= 0

    def trained(self, seconds: float, test_accuracy: float) -> None:
        """Takes note of an epoch."""
        self._done.append((seconds, test_accuracy))

    def _tell(self) -> None:
        """Says what the turn took, or for the first time that the process is ready: None."""
        if not self._done:
            self._pipe.send(None)
            return
        last, end = time.perf_counter(), quiet()
        training = sum(seconds for seconds, _ in self._done)
        self._pipe.send(Turn(end - self._start, training, end - last, self._done[-1][1]))
        self._done.clear()


def quiet() -> float:
    """Returns since when no thread of this process has been busy."""
    since = start = time.perf_counter()
    calm, used = 0, time.process_time()
    while calm < CALM and since - start < PATIENCE:
        time.sleep(POLL)
        before, used = used, time.process_time()
        calm = calm + 1 if used - before < POLL / 5 else 0
        since = since if calm else time.perf_counter()
    return since


def jaxclip(data: Data, epochs: int, gate: Gate) -> None:
    """Trains as `jaxclip train explode` does: all that it writes and says after an epoch counts."""
    from rich.console import Console

    from jaxclip.train.commands import train

    loop.train = gated(loop.train, gate)
    config = presets.get("explode").override({"epochs": epochs})
    with tempfile.TemporaryDirectory() as out, open(os.path.join(out, "said"), "w") as said:
        train.run(config, data, os.path.join(out, "run"), Console(file=said))


def bare(data: Data, epochs: int, gate: Gate) -> None:
    """Trains the same network by the same scan with SGD alone: what there is to be lost."""
    config = presets.get("explode").override({"epochs": epochs, "clip": ()})
    network, rate = loop.build_network(config, data), optimizer.schedule(config, 1)
    chain = optax.with_extra_args_support(optax.sgd(rate))
    epoch = jax.jit(loop.scan(config, network, chain, rate), donate_argnums=0)
    state = jax.jit(loop.first_state(config, network, chain))(network.params)
    run = loop.prepare(config, data)._replace(epoch=epoch, state=state)
    for _ in gated(loop.train, gate)(run, data):
        pass


def gated(train: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    """Returns a `loop.train` that waits for its turn before every epoch.

    What its caller does with an epoch happens before it asks for the next one: within the turn.
    """

    def turns(*args: Any, **options: Any) -> Any:
        epochs = train(*args, **options)
        while gate():
            epoch = next(epochs)
            gate.trained(epoch.seconds, epoch.test_accuracy)
            yield epoch

    return turns


def _tensorflow(name: str) -> Callable[[Data, int, Gate], None]:
    def train(data: Data, epochs: int, gate: Gate) -> None:
        from benchmarks.tutorials import tensorflow_eager as eager

        eager.tf.random.set_seed(0)
        kind = getattr(eager, name)
        program = kind(data.train_images.shape[1])
        batches = eager.dataset(data, kind.batch)
        test = eager.tf.constant(data.test_images), eager.tf.constant(data.test_labels)
        kept = []  # the record of every epoch, as the others keep theirs
        while gate():
            start = time.perf_counter()
            kept.append(program.epoch(batches))
            accuracy = program.test(*test)[1]
            gate.trained(time.perf_counter() - start, accuracy)

    return train


PROGRAMS: dict[str, Callable[[Data, int, Gate], None]] = {
    "eager": _tensorflow("Explode"),
    "function": _tensorflow("Compiled"),
    "bare": bare,
    "jaxclip": jaxclip,
}


def serve(name: str, dataset: str, data_dir: str | None, epochs: int, pipe: Connection) -> None:
    """Is a process: trains `epochs` in all, in turns, and says what went wrong if anything does."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # TensorFlow's own lines come from C++
    try:
        PROGRAMS[name](source.load(dataset, data_dir), epochs, Gate(pipe))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
