"""The programs that `benchmarks.epoch` times, each in a process of its own.

A process prepares, reports that it is ready, and sleeps until it gets a number of epochs to train.
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
    """The times of a turn, and its final test accuracy."""

    seconds: float  # in all
    training: float  # of these, spent on steps and on the test images
    waiting: float  # of these, after the last epoch, until threads had finished
    test_accuracy: float


class Gate:
    """Lets an epoch begin when it is this process's turn."""

    def __init__(self, pipe: Connection):
        """Takes the pipe of the requests."""
        self._pipe, self._left, self._start = pipe, 0, 0.0
        self._done: list[tuple[float, float]] = []

    def __call__(self) -> bool:
        """Waits for a turn unless one is on; returns whether there is another epoch to train."""
        if not self._left:
            self._report()
            self._left, self._start = self._pipe.recv(), time.perf_counter()
        self._left -= 1
        return self._left >= 0

    def trained(self, seconds: float, test_accuracy: float) -> None:
        """Records an epoch."""
        self._done.append((seconds, test_accuracy))

    def _report(self) -> None:
        """Sends the times of the turn, or None at first, when the process is ready."""
        if not self._done:
            self._pipe.send(None)
            return
        last, end = time.perf_counter(), quiet()
        training = sum(seconds for seconds, _ in self._done)
        self._pipe.send(Turn(end - self._start, training, end - last, self._done[-1][1]))
        self._done.clear()


def quiet() -> float:
    """Waits until no thread of this process is busy; returns since when."""
    since = start = time.perf_counter()
    calm, used = 0, time.process_time()
    while calm < CALM and since - start < PATIENCE:
        time.sleep(POLL)
        before, used = used, time.process_time()
        calm = calm + 1 if used - before < POLL / 5 else 0
        since = since if calm else time.perf_counter()
    return since


def jaxclip(data: Data, epochs: int, gate: Gate) -> None:
    """Trains as `jaxclip train explode` does, including everything it writes and prints."""
    from rich.console import Console

    from jaxclip.train.commands import train

    loop.train = gated(loop.train, gate)
    config = presets.get("explode").override({"epochs": epochs})
    with tempfile.TemporaryDirectory() as out, open(os.path.join(out, "printed"), "w") as printed:
        train.run(config, data, os.path.join(out, "run"), Console(file=printed))


def bare(data: Data, epochs: int, gate: Gate) -> None:
    """Trains the same network by the same scan with SGD alone."""
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

    The caller processes an epoch before it asks for the next one, so within the turn.
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
        kept = []  # the numbers of every epoch, which the other programs keep too
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
    """The program of a process: trains `epochs` in turns; sends the message of an error."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # TensorFlow writes its messages from C++
    try:
        PROGRAMS[name](source.load(dataset, data_dir), epochs, Gate(pipe))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
