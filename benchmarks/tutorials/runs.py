"""The runs of `benchmarks.tutorials`: TensorFlow in a pool of processes, jaxclip in this one.

TensorFlow's programs are single-threaded and run in parallel, one for each core, while jaxclip's
run here. Nothing is timed.
"""

import concurrent.futures
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.tutorials.history import History
from jaxclip.train import data as source
from jaxclip.train.config import presets
from jaxclip.train.data import Data
from jaxclip.train.training import loop

EAGER = ("forward", "forward, std 1", "explode")
NAMES = (*EAGER, "value-clip", "max-norm")
LONGEST_FIRST = ("explode", "max-norm", "value-clip", "forward", "forward, std 1")
Weights = Sequence[tuple[np.ndarray, np.ndarray]]


class Start(NamedTuple):
    """The initial weights and an epoch's batches of a run that is the same on both sides."""

    weights: Weights
    order: np.ndarray


# TensorFlow ---------------------------------------------------------------------------------

_given: list[Data] = []  # in a process of the pool: the data


def pool(dataset: str, data_dir: str | None) -> concurrent.futures.Executor:
    """Starts processes for TensorFlow, whose output is dropped."""
    return concurrent.futures.ProcessPoolExecutor(
        max_workers=os.cpu_count(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(dataset, data_dir),
    )


def _begin(dataset: str, data_dir: str | None) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # TensorFlow writes its messages from C++
    _given.append(source.load(dataset, data_dir))


def theirs(name: str, seed: int, epochs: int | None = None, start: Start | None = None) -> History:
    """Runs TensorFlow's program, in a process of the pool."""
    _one_thread()
    weights, order = start or (None, None)
    if name in EAGER:
        from benchmarks.tutorials import tensorflow_eager as eager

        std, epochs = (1.0, 1) if name.endswith("std 1") else (0.1, epochs)
        return eager.run(name.split(",")[0], _given[0], seed, epochs, std, weights)
    from benchmarks.tutorials import tensorflow_graph as graph

    return graph.run(name, _given[0], seed, epochs, weights, order)


def second_steps(draws: int) -> list[float]:
    """Runs `tensorflow_eager.second_steps` in a process of the pool."""
    from benchmarks.tutorials import tensorflow_eager as eager

    _one_thread()
    return eager.second_steps(_given[0], draws)


def _one_thread() -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


# jaxclip ------------------------------------------------------------------------------------


def config(name: str, seed: int, epochs: int | None = None) -> presets.Config:
    """Returns the preset of a program."""
    values: dict[str, Any] = {"seed": seed, "epochs": epochs}
    if name.endswith("std 1"):
        values |= {"init_std": 1.0, "epochs": 1}
    return presets.get(name.split(",")[0]).override(values)


def ours(name: str, data: Data, seed: int, epochs: int | None = None) -> History:
    """Runs a preset."""
    settings = config(name, seed, epochs)
    run = loop.prepare(settings, data)
    losses, scores, rates, norms, last = [], [], [], None, {}
    for epoch in loop.train(run, data):
        losses.append(epoch.telemetry["loss"])
        rates.append(epoch.telemetry["learning_rate"][-1])
        scores.append((epoch.test_loss, epoch.test_accuracy))
        norms = norms or _norms(epoch.telemetry)
        if name not in EAGER and epoch.number == settings.epochs - 1:
            last = _end(epoch, data)  # its state is valid until the next epoch begins
    return History(np.stack(losses), np.array(scores), *norms, np.array(rates), **last)


def _norms(telemetry: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Returns the norms of every gradient before and after clipping, in `TENSORS`' order."""
    names = [f"layers/{i}/{part}" for i in range(3) for part in ("kernel", "bias")]
    return tuple(
        np.stack([telemetry[f"{monitor}/norm/{name}"] for name in names], axis=1)
        for monitor in ("grads", "clipped")
    )


def _end(epoch: loop.Epoch, data: Data) -> dict[str, Any]:
    """Returns the fields of `History` that are computed after training."""
    layers = _layers(epoch.state.params)
    restored = _layers(saved_and_restored(epoch.state.params))
    return {
        "train_accuracy": _scores(layers, data.train_images, data.train_labels)[1],
        "restored": _scores(restored, data.test_images, data.test_labels),
        "largest_row": max(np.linalg.norm(np.float64(k), axis=1).max() for k, _ in layers[:-1]),
    }


def _scores(layers: Weights, x: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns cross-entropy and accuracy, computed by NumPy."""
    *hidden, (kernel, bias) = layers
    for w, b in hidden:
        x = np.maximum(x @ w + b, 0)
    outputs = np.float64(x @ kernel + bias)
    entropy = np.logaddexp.reduce(outputs, axis=1) - outputs[np.arange(len(labels)), labels]
    return float(entropy.mean()), float((outputs.argmax(axis=1) == labels).mean())


def saved_and_restored(params: Any) -> Any:
    """Returns the parameters after saving and restoring them with Orbax."""
    from orbax import checkpoint

    with tempfile.TemporaryDirectory() as folder, checkpoint.StandardCheckpointer() as disk:
        disk.save(Path(folder).absolute() / "params", params)
        disk.wait_until_finished()
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        return disk.restore(Path(folder).absolute() / "params", like)


def _layers(params: Any) -> Weights:
    """Returns copies of the kernel and bias of each layer, from input to output."""
    layers = params["layers"]
    return [(np.array(layers[i]["kernel"]), np.array(layers[i]["bias"])) for i in sorted(layers)]


def start(name: str, data: Data, seed: int) -> Start:
    """Returns the initial weights and batches of a run of jaxclip, for TensorFlow."""
    settings = config(name, seed)
    weights = _layers(loop.prepare(settings, data).state.params)
    return Start(weights, loop.batch_indices(settings, len(data.train_labels), 0))


# Both ---------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A program's runs: one for each seed and side, and an epoch from the same weights."""

    name: str
    theirs: list[History]
    ours: list[History]
    paired: tuple[History, History]  # theirs, ours


def compare(
    data: Data,
    workers: concurrent.futures.Executor,
    seeds: Mapping[str, int],
    epochs: int | None,
    say: Callable[[str], None],
) -> Iterator[Result]:
    """Runs every program on both sides; yields them in the order of `NAMES`."""
    paired = {n: workers.submit(theirs, n, 0, 1, start(n, data, 0)) for n in NAMES}
    asked: dict[str, list[concurrent.futures.Future[History]]] = {name: [] for name in NAMES}
    for name, seed in ((n, seed) for n in LONGEST_FIRST for seed in range(seeds[n])):
        asked[name].append(workers.submit(theirs, name, seed, epochs))
        done = f"TensorFlow has done {name}, seed {seed}"
        asked[name][-1].add_done_callback(lambda future, done=done: say(done))
    try:
        for name in NAMES:
            here = [ours(name, data, seed, epochs) for seed in range(seeds[name])]
            pair = paired[name].result(), ours(name, data, 0, 1)
            yield Result(name, [future.result() for future in asked[name]], here, pair)
    finally:
        workers.shutdown(wait=False, cancel_futures=True)
