"""The loop: an epoch is one jitted scan over its steps, and its telemetry comes back in one piece.

Nothing here prints or writes. `train` yields an `Epoch` after each, and whoever asked decides what
to record; a non-finite loss is noticed here, between two epochs, and raised or reported (what is
said of it is in `nonfinite`).
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxclip
from jaxclip.train.config.presets import Config
from jaxclip.train.data.sources import Data
from jaxclip.train.errors import UserError
from jaxclip.train.training import devices, evaluation, losses, model, optimizer
from jaxclip.train.training.devices import Spread
from jaxclip.train.training.nonfinite import NonFiniteLossError, failure
from jaxclip.train.training.tensor_norms import Telemetry

Tree = Any
_ONE_DEVICE = Spread()


class State(NamedTuple):
    """What a step changes: all that a checkpoint has to hold of the arrays.

    Attributes:
      params: the parameters.
      stats: what the network remembers besides, as batch normalisation's averages.
      opt_state: the state of the chain: of rules, guards and optimizer.
      key: the random key that dropout draws from; uint32 key data.
    """

    params: Tree
    stats: Tree
    opt_state: Tree
    key: jax.Array


class Run(NamedTuple):
    """Where a run begins, and the two compiled functions that take it from there."""

    config: Config
    state: State
    epoch: Callable[..., tuple[State, dict[str, jax.Array]]]
    evaluate: Callable[..., dict[str, jax.Array]]
    steps_per_epoch: int
    spread: Spread = _ONE_DEVICE


class Epoch(NamedTuple):
    """What came of an epoch.

    Attributes:
      number: which one, from 0.
      first_step: the number of its first step.
      telemetry: one row a step.
      test: the scores on the test images: `test_loss`, `test_accuracy`, `units/...`.
      seconds: how long it took.
      state: what it ended with; it lives until the next epoch.
      failure: what a non-finite loss ends the run with after this epoch, None where it goes on.
    """

    number: int
    first_step: int
    telemetry: Telemetry
    test: dict[str, float]
    seconds: float
    state: State
    failure: str | None = None

    @property
    def test_loss(self) -> float:
        """The loss on the test images."""
        return self.test["test_loss"]

    @property
    def test_accuracy(self) -> float:
        """The share of the test images that are recognised."""
        return self.test["test_accuracy"]


def prepare(config: Config, data: Data) -> Run:
    """Builds network, optimizer and the functions that train and evaluate; compiles nothing yet."""
    steps_per_epoch = steps(config, data)
    network = build_network(config, data)
    rate = optimizer.schedule(config, config.epochs * steps_per_epoch)
    chain = optimizer.build(config, network.params, rate)
    units = optimizer.units(config, network.params)
    spread = devices.spread(config, network.params, units)
    begin = beginning(config, network, chain)
    specs = spread.specs(begin, network.params)
    return Run(
        config,
        spread.place(jax.jit(begin)(network.params), specs),
        spread.epoch(scan(config, network, chain, rate, spread), specs),
        spread.jit(evaluation.evaluation(config, network)),
        steps_per_epoch,
        spread,
    )


def check(config: Config, data: Data) -> None:
    """Raises `UserError` if this run cannot be made for this data; draws and compiles nothing."""
    params = jax.eval_shape(lambda: build_network(config, data).params)
    devices.spread(config, params)
    optimizer.build(config, params, optimizer.schedule(config, config.epochs * steps(config, data)))


def steps(config: Config, data: Data) -> int:
    """Returns how many steps an epoch has.

    A scan's steps have one shape, so the examples that do not fill a last batch are left out: other
    ones in each epoch if shuffled, and 96 of MNIST's 60,000 for a batch of 256 if not.
    """
    count = len(data.train_labels)
    if config.batch_size > count:
        raise UserError(
            f"--batch-size={config.batch_size}: more than the {count:,} training images"
        )
    return count // config.batch_size


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
        dropout=config.dropout,
        dtype=config.dtype,
        axis=devices.axis(config),
    )


def beginning(
    config: Config, network: model.Network, chain: optimizer.Transformation
) -> Callable[[Tree], State]:
    """Returns the state before the first step, as a function of the parameters.

    To be jitted, so that no two leaves share a buffer: the state is donated.
    """

    def begin(params: Tree) -> State:
        key = jax.random.key_data(jax.random.key(config.seed))
        return State(params, network.stats, chain.init(params), key)

    return begin


def train(run: Run, data: Data, first_epoch: int = 0) -> Iterator[Epoch]:
    """Trains what was prepared for this data, and yields after every epoch. Good for once.

    Args:
      run: what `prepare` made, its state replaced by that of a checkpoint where one is resumed.
      data: the images.
      first_epoch: how many epochs that state has behind it.

    Yields:
      Every epoch, the one that fails included.

    Raises:
      NonFiniteLossError: after an epoch with a non-finite loss that no guard skipped, unless the
        run allows it.
    """
    config, state = run.config, run.state
    images = run.spread.place((data.train_images, data.train_labels))
    test = run.spread.divide((data.test_images, data.test_labels))
    for number in range(first_epoch, config.epochs):
        start, first = time.perf_counter(), number * run.steps_per_epoch
        batches = batch_indices(config, len(data.train_labels), number)
        numbers = np.arange(first, first + run.steps_per_epoch, dtype=np.int32)
        state, recorded = run.epoch(state, *images, batches, numbers)
        telemetry = {k: np.asarray(v) for k, v in jax.device_get(recorded).items()}
        scores = {k: float(v) for k, v in run.evaluate(state.params, state.stats, *test).items()}
        seconds = time.perf_counter() - start
        failed = None if config.allow_nonfinite else failure(first, telemetry)
        yield Epoch(number, first, telemetry, scores, seconds, state, failed)
        if failed:
            raise NonFiniteLossError(f"{failed}; a smaller --learning-rate or a --clip may help")


def batch_indices(config: Config, count: int, epoch: int) -> np.ndarray:
    """Returns which examples make up each of an epoch's batches, shape (steps, batch).

    The order follows from the seed and the epoch's number: a resumed run finds it again.
    """
    order = np.arange(count, dtype=np.int32)
    if config.shuffle:
        order = np.random.default_rng((config.seed, epoch)).permutation(order)
    steps = count // config.batch_size
    return order[: steps * config.batch_size].reshape(steps, config.batch_size)


def scan(
    config: Config,
    network: model.Network,
    chain: optimizer.Transformation,
    rate: optax.Schedule,
    spread: Spread = _ONE_DEVICE,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """Returns the epoch: a scan whose step is gradient, chain, update."""
    loss_of = losses.LOSSES[config.loss]

    def objective(params, stats, key, images, labels):
        whole = spread.whole(params)
        outputs, stats = network.apply(whole, stats, images, train=True, key=key)
        scores = loss_of(outputs, labels), losses.accuracy(outputs, labels)
        loss, accuracy = spread.mean(scores)
        return loss, (accuracy, stats)

    gradient = jax.value_and_grad(objective, has_aux=True)

    def epoch(state, images, labels, batches, numbers):
        def step(state, now):
            (batch, number), (params, stats, opt_state, key) = now, state
            key, own = _split(key, spread) if config.dropout else (key, None)
            # Which images these are is known to be right, and need not be looked at again.
            batch_data = (x.at[batch].get(mode="promise_in_bounds") for x in (images, labels))
            (loss, (accuracy, stats)), grads = gradient(params, stats, own, *batch_data)
            grads = spread.averaged(grads)
            updates, opt_state = chain.update(grads, opt_state, params, value=loss)
            params = optax.apply_updates(params, updates)
            scores = {"loss": loss, "accuracy": accuracy, "learning_rate": rate(number)}
            return State(params, stats, opt_state, key), scores | jaxclip.metrics(opt_state)

        return jax.lax.scan(step, state, (batches, numbers))

    return epoch


def _split(key: jax.Array, spread: Spread) -> tuple[jax.Array, jax.Array]:
    key, own = jax.random.split(jax.random.wrap_key_data(key))
    return jax.random.key_data(key), spread.own_key(own)
