"""The loop: an epoch is one jitted scan over its steps, and its telemetry comes back in one piece.

Nothing here prints or writes. `train` yields an `Epoch` after each, and whoever asked decides what
to record; a non-finite loss is noticed here, between two epochs, and raised or reported.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxclip
from jaxclip.train import losses, model, optimizer
from jaxclip.train.data import Data
from jaxclip.train.errors import RunError, UserError
from jaxclip.train.presets import Config

Tree = Any
Telemetry = dict[str, np.ndarray]


class State(NamedTuple):
    """What a step changes."""

    params: Tree
    stats: Tree
    opt_state: Tree


class Run(NamedTuple):
    """Where a run begins, and the two compiled functions that take it from there."""

    config: Config
    state: State
    epoch: Callable[..., tuple[State, dict[str, jax.Array]]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    steps_per_epoch: int


class Epoch(NamedTuple):
    """What came of an epoch. `telemetry` has one row a step; `state` lives until the next one."""

    number: int
    first_step: int
    telemetry: Telemetry
    test_loss: float
    test_accuracy: float
    seconds: float
    state: State


class NonFiniteLossError(RunError):
    """The loss became NaN or infinite."""


def prepare(config: Config, data: Data) -> Run:
    """Builds network, optimizer and the functions that train and evaluate; compiles nothing yet."""
    # A scan's steps have one shape, so the examples that do not fill a last batch are left out:
    # other ones in each epoch if shuffled, and 96 of MNIST's 60,000 for a batch of 256 if not.
    steps_per_epoch = len(data.train_labels) // config.batch_size
    if steps_per_epoch == 0:
        size = len(data.train_labels)
        raise UserError(f"--batch-size={config.batch_size}: more than the {size:,} training images")
    network = build_network(config, data)
    rate = optimizer.schedule(config, config.epochs * steps_per_epoch)
    chain = optimizer.build(config, network.params, rate)
    # Jitted, so that no two leaves share a buffer: the state is donated.
    state = State(network.params, network.stats, jax.jit(chain.init)(network.params))
    objective = _objective(network, losses.LOSSES[config.loss])
    run_epoch = jax.jit(_scan(objective, chain, rate), donate_argnums=0)
    return Run(config, state, run_epoch, jax.jit(_evaluation(objective)), steps_per_epoch)


def build_network(config: Config, data: Data) -> model.Network:
    """Draws the network of a run: as many inputs as pixels, as many outputs as classes."""
    sizes = (data.train_images.shape[1], *config.sizes, int(data.train_labels.max()) + 1)
    return model.build(
        sizes,
        config.seed,
        activation=config.activation,
        init=config.init,
        init_std=config.init_std,
        batch_norm=config.batch_norm,
        dtype=config.dtype,
    )


def train(run: Run, data: Data) -> Iterator[Epoch]:
    """Trains what was prepared for this data, and yields after every epoch. Good for once.

    Raises:
      NonFiniteLossError: after an epoch with a non-finite loss, which has been yielded then, unless
        the run allows it.
    """
    config, state = run.config, run.state
    train_images, train_labels = jax.device_put((data.train_images, data.train_labels))
    test = jax.device_put((data.test_images, data.test_labels))
    for number in range(config.epochs):
        start, first = time.perf_counter(), number * run.steps_per_epoch
        batches = batch_indices(config, len(data.train_labels), number)
        steps = np.arange(first, first + run.steps_per_epoch, dtype=np.int32)
        state, recorded = run.epoch(state, train_images, train_labels, batches, steps)
        telemetry = {k: np.asarray(v) for k, v in jax.device_get(recorded).items()}
        loss, accuracy = run.evaluate(state.params, state.stats, *test)
        seconds = time.perf_counter() - start
        yield Epoch(number, first, telemetry, float(loss), float(accuracy), seconds, state)
        if not config.allow_nonfinite and (problem := nonfinite_loss(first, telemetry)):
            raise NonFiniteLossError(f"{problem}; a smaller --learning-rate or a --clip may help")


def batch_indices(config: Config, count: int, epoch: int) -> np.ndarray:
    """Returns which examples make up each of an epoch's batches, shape (steps, batch)."""
    order = np.arange(count, dtype=np.int32)
    if config.shuffle:
        order = np.random.default_rng((config.seed, epoch)).permutation(order)
    steps = count // config.batch_size
    return order[: steps * config.batch_size].reshape(steps, config.batch_size)


def _objective(network: model.Network, loss: Callable) -> Callable:
    def objective(params, stats, images, labels, *, train):
        outputs, stats = network.apply(params, stats, images, train=train)
        return loss(outputs, labels), (losses.accuracy(outputs, labels), stats)

    return objective


def _scan(objective: Callable, chain: optimizer.Transformation, rate: optax.Schedule) -> Callable:
    """Returns the epoch: a scan whose step is gradient, chain, update."""
    gradient = jax.value_and_grad(objective, has_aux=True)

    def epoch(state, images, labels, batches, steps):
        def step(state, now):
            (batch, number), (params, stats, opt_state) = now, state
            batch_data = images[batch], labels[batch]
            (loss, (accuracy, stats)), grads = gradient(params, stats, *batch_data, train=True)
            updates, opt_state = chain.update(grads, opt_state, params, value=loss)
            params = optax.apply_updates(params, updates)
            scores = {"loss": loss, "accuracy": accuracy, "learning_rate": rate(number)}
            return State(params, stats, opt_state), scores | jaxclip.metrics(opt_state)

        return jax.lax.scan(step, state, (batches, steps))

    return epoch


def _evaluation(objective: Callable) -> Callable:
    def evaluate(params, stats, images, labels):
        loss, (accuracy, _) = objective(params, stats, images, labels, train=False)
        return loss, accuracy

    return evaluate


def nonfinite_loss(first_step: int, telemetry: Telemetry) -> str | None:
    """Says at which step the loss became non-finite, and where a gradient did so first."""
    bad = np.flatnonzero(~np.isfinite(telemetry["loss"]))
    if not bad.size:
        return None
    steps = f"steps {first_step} to {first_step + len(telemetry['loss']) - 1}"
    where = f"the loss is {telemetry['loss'][bad[0]]} at step {first_step + bad[0]} ({steps})"
    names = tensor_names(telemetry)
    rows, columns = np.nonzero(~np.isfinite(tensor_norms(telemetry, "grads", names)))
    if not rows.size:
        return f"{where}; no gradient was non-finite"
    at = first_step + rows[0]
    return f"{where}; first non-finite gradient: {names[columns[0]]} at step {at}"


def tensor_norms(telemetry: Telemetry, monitor: str, names: list[str]) -> np.ndarray:
    """Returns what a monitor recorded: a row for each step, a column for each name."""
    return np.stack([telemetry[f"{monitor}/norm/{name}"] for name in names], axis=1)


def tensor_names(telemetry: Telemetry) -> list[str]:
    """Returns the tensors' names as a reader goes through the network: W1 b1 W2 b2 ..."""
    prefix = "grads/norm/"
    names = [key.removeprefix(prefix) for key in telemetry if key.startswith(prefix)]
    return sorted(names, key=_reading_order)


def _reading_order(name: str) -> tuple[bool, int, bool]:
    group, number, part = name.split("/")
    return group != "layers", int(number), part != "kernel"
