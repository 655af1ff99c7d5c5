"""Trains runs that share one compiled program, in turn or all at once by `vmap`.

Runs share a program if they differ only in seed, learning rate and thresholds that can be traced.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.train.config.presets import Config
from jaxclip.train.data import Data
from jaxclip.train.training import blocks, loop, nonfinite, optimizer
from jaxclip.train.training.blocks import Part
from jaxclip.train.training.loop import Epoch, Run


class Numbers(NamedTuple):
    """Numbers in which runs of one program may differ: float32 scalars.

    Attributes:
      learning_rate: the learning rate of the first step.
      thresholds: one for each clipping rule that takes a single number.
    """

    learning_rate: Any
    thresholds: tuple[Any, ...]


def groups(configs: Sequence[Config]) -> list[list[int]]:
    """Groups runs by program: positions in `configs`, in order of appearance."""
    result: dict[Any, list[int]] = {}
    for i, config in enumerate(configs):
        result.setdefault(program(config), []).append(i)
    return list(result.values())


def program(config: Config) -> Any:
    """Returns a key that is equal for runs that share a program."""
    rules = tuple(
        (spec.rule.function, spec.arguments[1:] if spec.traceable else spec.text, spec.options)
        for spec in optimizer.clips(config)
    )
    return dataclasses.replace(config, seed=0, learning_rate=1.0, clip=()), str(rules)


def train(
    configs: Sequence[Config],
    data: Data,
    *,
    at_once: bool,
    after_block: Callable[[Part], None] = lambda part: None,
) -> Iterator[tuple[int, Epoch]]:
    """Trains runs of one program.

    Args:
      configs: the runs.
      data: the images, the same for all.
      at_once: train them together by `vmap`. Runs on several devices are always trained in turn,
        each by a separate program.
      after_block: called after each block of steps but an epoch's last.

    Yields:
      The run's position and its epoch. A run whose loss becomes non-finite ends with that epoch.
    """
    runs = [loop.prepare(config, data) for config in configs]
    if configs[0].parallel != "none":
        yield from _in_turn(runs, data, after_block)
        return
    numbers = [_numbers(config) for config in configs]
    epoch = _shared_epoch(runs[0], data)
    if at_once and len(runs) > 1:
        yield from _at_once(runs, numbers, epoch, data, after_block)
        return
    compiled, evaluate = jax.jit(epoch, donate_argnums=1), runs[0].evaluate
    shared = [
        run._replace(epoch=partial(compiled, numbers_of_run), evaluate=evaluate)
        for run, numbers_of_run in zip(runs, numbers, strict=True)
    ]
    yield from _in_turn(shared, data, after_block)


def _in_turn(
    runs: Sequence[Run], data: Data, after_block: Callable[[Part], None]
) -> Iterator[tuple[int, Epoch]]:
    for i, run in enumerate(runs):
        with contextlib.suppress(nonfinite.NonFiniteLossError):
            for epoch in loop.train(run, data, after_block=after_block):
                yield i, epoch


def _numbers(config: Config) -> Numbers:
    thresholds = [spec.arguments[0] for spec in optimizer.clips(config) if spec.traceable]
    as_arrays = tuple(jnp.asarray(c, jnp.float32) for c in thresholds)
    return Numbers(jnp.asarray(config.learning_rate, jnp.float32), as_arrays)


def _shared_epoch(run: Run, data: Data) -> Callable[..., Any]:
    """Returns `epoch(numbers, state, images, labels, batches, steps) -> (state, telemetry)`."""
    config = run.config
    network = loop.build_network(config, data)

    def epoch(numbers: Numbers, state: loop.State, *batches: Any) -> Any:
        total = config.epochs * run.steps_per_epoch
        rate = optimizer.schedule(config, total, numbers.learning_rate)
        chain = optimizer.build(config, network.params, rate, numbers.thresholds)
        return loop.scan(config, network, chain, rate)(state, *batches)

    return epoch


def _at_once(
    runs: Sequence[Run],
    numbers: Sequence[Numbers],
    epoch: Callable[..., Any],
    data: Data,
    after_block: Callable[[Part], None],
) -> Iterator[tuple[int, Epoch]]:
    config, per_epoch = runs[0].config, runs[0].steps_per_epoch
    train_all, evaluate_all = _vmapped(runs[0], epoch)
    state, stacked_numbers = _stacked([run.state for run in runs]), _stacked(numbers)
    images = jax.device_put((data.train_images, data.train_labels))
    test = jax.device_put((data.test_images, data.test_labels))
    train_all = partial(train_all, stacked_numbers)
    alive, length = list(range(len(runs))), blocks.Length()
    for number in range(config.epochs):
        start, first = time.perf_counter(), number * per_epoch
        batches = [loop.batch_indices(r.config, len(data.train_labels), number) for r in runs]
        batches = np.stack(batches) if config.shuffle else batches[0]
        steps = np.arange(first, first + per_epoch, dtype=np.int32)
        part = Part(number, 0, state)
        for done in blocks.train(train_all, part, (*images, batches, steps), per_epoch, length):
            part = done
            if part.steps < per_epoch:
                after_block(part)
        state, recorded = part.state, part.telemetry
        scored = jax.device_get(evaluate_all(state.params, state.stats, *test))
        seconds = (time.perf_counter() - start) / len(runs)
        for i in tuple(alive):
            telemetry = {key: values[:, i] for key, values in recorded.items()}
            scores = {key: float(values[i]) for key, values in scored.items()}
            failed = nonfinite.failure(first, telemetry)
            if failed:
                alive.remove(i)
            yield i, Epoch(number, first, telemetry, scores, seconds, state, failed)
        if not alive:
            return


def _vmapped(run: Run, epoch: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the epoch and the evaluation of all runs; without shuffling they share batches."""
    axes = (0, 0, None, None, 0 if run.config.shuffle else None, None, None)
    by_step = jax.vmap(epoch, in_axes=axes, out_axes=(0, 1))  # rows are steps
    train_all = jax.jit(by_step, donate_argnums=1)
    return train_all, jax.jit(jax.vmap(run.evaluate, in_axes=(0, 0, None, None)))


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
