"""The training loop: an epoch is one jitted loop over its steps, run in a few `blocks` of them.

Nothing here prints or writes files. `train` yields an `Epoch` after its last block; the caller
records it. Between two epochs `train` checks that all losses are finite.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from jaxclip.train.config.presets import Config
from jaxclip.train.data import Data
from jaxclip.train.errors import UserError
from jaxclip.train.training import blocks, devices, evaluation, losses, model, optimizer
from jaxclip.train.training.blocks import Part
from jaxclip.train.training.devices import Strategy
from jaxclip.train.training.nonfinite import NonFiniteLossError, failure
from jaxclip.train.training.tensor_norms import Telemetry

Tree = Any
_ONE_DEVICE = Strategy()


class State(NamedTuple):
    """The arrays that a step changes and a checkpoint holds.

    Attributes:
      params: the parameters.
      stats: batch normalization's running averages.
      opt_state: the state of the chain of rules, guards and optimizer.
      key: the random key of dropout, as uint32 key data.
    """

    params: Tree
    stats: Tree
    opt_state: Tree
    key: jax.Array


class Run(NamedTuple):
    """A run that is ready to train: its first state, and functions that train and evaluate."""

    config: Config
    state: State
    epoch: Callable[..., tuple[State, dict[str, jax.Array]]]
    evaluate: Callable[..., dict[str, jax.Array]]
    steps_per_epoch: int
    strategy: Strategy = _ONE_DEVICE


class Epoch(NamedTuple):
    """The result of an epoch.

    Attributes:
      number: the epoch's number, from 0.
      first_step: the number of its first step.
      telemetry: arrays with a row for each step.
      test: the scores on the test images: `test_loss`, `test_accuracy`, `units/...`.
      seconds: its duration.
      state: the state at its end, valid until the next epoch begins.
      failure: a description of the non-finite loss that ends the run after this epoch, or None.
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
        """The accuracy on the test images."""
        return self.test["test_accuracy"]


def prepare(config: Config, data: Data) -> Run:
    """Builds network, optimizer, and the functions that train and evaluate; compiles no epoch."""
    per_epoch = steps_per_epoch(config, data)
    network = build_network(config, data)
    rate = optimizer.schedule(config, config.epochs * per_epoch)
    chain = optimizer.build(config, network.params, rate)
    unit_axes = optimizer.unit_axes(config, network.params)
    strategy = devices.strategy(config, network.params, unit_axes)
    init = first_state(config, network, chain)
    specs = strategy.state_specs(init, network.params)
    return Run(
        config,
        strategy.place(jax.jit(init)(network.params), specs),
        strategy.compile_epoch(scan(config, network, chain, rate, strategy), specs),
        strategy.jit(evaluation.build(config, network)),
        per_epoch,
        strategy,
    )


def check(config: Config, data: Data) -> None:
    """Raises `UserError` if the run does not fit the data; draws and compiles nothing."""
    params = jax.eval_shape(lambda: build_network(config, data).params)
    devices.strategy(config, params)
    rate = optimizer.schedule(config, config.epochs * steps_per_epoch(config, data))
    optimizer.build(config, params, rate)


def steps_per_epoch(config: Config, data: Data) -> int:
    """Returns the number of steps in an epoch.

    The steps of a scan have one shape, so an incomplete last batch is left out: other examples in
    each epoch if shuffled, else always the last ones (96 of MNIST's 60,000 for a batch of 256).
    """
    count = len(data.train_labels)
    if config.batch_size > count:
        problem = f"more than the {count:,} training images"
        raise UserError(f"--batch-size={config.batch_size}: {problem}")
    return count // config.batch_size


def build_network(config: Config, data: Data) -> model.Network:
    """Draws a run's network: one input for each pixel, one output for each class."""
    sizes = (data.train_images.shape[1], *config.sizes, int(data.train_labels.max()) + 1)
    return model.build(
        sizes,
        config.seed,
        config.dtype,
        activation=config.activation,
        init=config.init,
        init_std=config.init_std,
        batch_norm=config.batch_norm,
        dropout=config.dropout,
        axis=devices.manual_axis(config),
    )


def first_state(
    config: Config, network: model.Network, chain: optimizer.Transformation
) -> Callable[[Tree], State]:
    """Returns the state before the first step, as a function of the parameters.

    Jit it: the state is donated, so no two of its leaves may share a buffer.
    """

    def init(params: Tree) -> State:
        key = jax.random.key_data(jax.random.key(config.seed))
        return State(params, network.stats, chain.init(params), key)

    return init


def train(
    run: Run,
    data: Data,
    first_epoch: int = 0,
    *,
    begun: Part | None = None,
    after_block: Callable[[Part], None] = lambda part: None,
) -> Iterator[Epoch]:
    """Trains a run, and yields after every epoch. A run can be trained once.

    Args:
      run: the result of `prepare`, its state replaced by a checkpoint's to resume.
      data: the images.
      first_epoch: the number of epochs that the state has been trained.
      begun: the part of the next epoch that the state has been trained.
      after_block: called after each block of steps but an epoch's last.

    Yields:
      Every epoch, also one that fails.

    Raises:
      NonFiniteLossError: after an epoch with a non-finite loss that no guard skipped, unless the
        run allows it.
    """
    config, state = run.config, run.state
    images = run.strategy.place((data.train_images, data.train_labels))
    test = run.strategy.shard_examples((data.test_images, data.test_labels))
    length = blocks.Length()
    for number in range(first_epoch, config.epochs):
        start, first = time.perf_counter(), number * run.steps_per_epoch
        part = begun if begun and number == first_epoch else Part(number, 0, state)
        earlier, total = part.seconds, run.steps_per_epoch
        batches = batch_indices(config, len(data.train_labels), number)
        steps = np.arange(first, first + total, dtype=np.int32)
        arrays = (*images, batches, steps)
        for done in blocks.train(run.epoch, part, arrays, total, length):
            part = done
            if part.steps < total:
                after_block(part)
        state, telemetry = part.state, part.telemetry
        scores = {k: float(v) for k, v in run.evaluate(state.params, state.stats, *test).items()}
        seconds = earlier + time.perf_counter() - start
        failed = None if config.allow_nonfinite else failure(first, telemetry)
        yield Epoch(number, first, telemetry, scores, seconds, state, failed)
        if failed:
            advice = f"try --learning-rate={config.learning_rate / 10:.3g} or --clip=global_norm=1"
            raise NonFiniteLossError(f"{failed}; {advice}")


def batch_indices(config: Config, count: int, epoch: int) -> np.ndarray:
    """Returns the indices of the examples in each batch of an epoch, shape (steps, batch).

    The order depends on the seed and the epoch's number only, so a resumed run has the same one.
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
    strategy: Strategy = _ONE_DEVICE,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """Returns the epoch: a loop whose step computes the gradient, the update and new parameters.

    It is `(state, images, labels, batches, numbers, bounds) -> (state, telemetry)`: it takes the
    steps of the range `bounds`, or all of them without, and the other rows of its telemetry are 0.
    """
    loss_of = losses.LOSSES[config.loss]

    def objective(params, stats, key, images, labels):
        whole = strategy.gather(params)
        outputs, stats = network.apply(whole, stats, images, train=True, key=key)
        scores = loss_of(outputs, labels), losses.accuracy(outputs, labels)
        loss, accuracy = strategy.mean(scores)
        return loss, (accuracy, stats)

    gradient = jax.value_and_grad(objective, has_aux=True)

    def epoch(state, images, labels, batches, numbers, bounds=None):
        @partial(jax.jit, inline=True)  # traced once, for the shapes and for the loop
        def step(state, i):
            row = partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
            batch, number = row(batches), row(numbers)
            params, stats, opt_state, key = state
            key, step_key = _split(key, strategy) if config.dropout else (key, None)
            # The indices are valid, so `at` need not check them.
            batch_data = (x.at[batch].get(mode="promise_in_bounds") for x in (images, labels))
            (loss, (accuracy, stats)), grads = gradient(params, stats, step_key, *batch_data)
            grads = strategy.average_gradients(grads)
            updates, opt_state = chain.update(grads, opt_state, params, value=loss)
            params = optax.apply_updates(params, updates)
            scores = {"loss": loss, "accuracy": accuracy, "learning_rate": rate(number)}
            return State(params, stats, opt_state, key), scores | jaxclip.metrics(opt_state)

        def at(i, carry):
            state, telemetry = carry
            state, row = step(state, i)
            return state, {k: telemetry[k].at[i].set(v) for k, v in row.items()}

        count = len(numbers)
        start, stop = (0, count) if bounds is None else bounds
        shapes = jax.eval_shape(step, state, jnp.int32(0))[1]
        empty = {k: jnp.zeros((count, *v.shape), v.dtype) for k, v in shapes.items()}
        return jax.lax.fori_loop(start, stop, at, (state, empty))

    return epoch


def _split(key: jax.Array, strategy: Strategy) -> tuple[jax.Array, jax.Array]:
    key, step_key = jax.random.split(jax.random.wrap_key_data(key))
    return jax.random.key_data(key), strategy.device_key(step_key)
