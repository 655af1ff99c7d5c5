"""Runs that share a program: the same but for their seed and for numbers that can be traced.

They are compiled once, and trained one after the other or, by `vmap`, all at once. What is compared
and how it is told is in `compare`.
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
from jaxclip.train.data.sources import Data
from jaxclip.train.training import loop, nonfinite, optimizer
from jaxclip.train.training.loop import Epoch, Run


class Numbers(NamedTuple):
    """What runs of one program may differ in besides their seed: float32 scalars.

    Attributes:
      learning_rate: that of the first step.
      thresholds: one for each clipping rule that takes a single number.
    """

    learning_rate: Any
    thresholds: tuple[Any, ...]


def groups(configs: Sequence[Config]) -> list[list[int]]:
    """Sorts runs by program: positions in `configs`, in the order in which they appear."""
    found: dict[Any, list[int]] = {}
    for i, config in enumerate(configs):
        found.setdefault(program(config), []).append(i)
    return list(found.values())


def program(config: Config) -> Any:
    """Returns what two runs must have in common to share a program."""
    rules = tuple(
        (spec.rule.function, spec.arguments[1:] if spec.traceable else spec.text, spec.options)
        for spec in optimizer.clips(config)
    )
    return dataclasses.replace(config, seed=0, learning_rate=1.0, clip=()), str(rules)


def train(configs: Sequence[Config], data: Data, *, at_once: bool) -> Iterator[tuple[int, Epoch]]:
    """Trains runs of one program.

    Args:
      configs: the runs.
      data: the images, the same for all.
      at_once: whether to train them together, by `vmap`. Runs that are spread over devices are
        trained in turn, each by a program of its own.

    Yields:
      Which run, and an epoch of it. A run whose loss becomes non-finite ends with that epoch.
    """
    runs = [loop.prepare(config, data) for config in configs]
    if configs[0].parallel != "none":
        yield from _in_turn(runs, data)
        return
    numbers = [_numbers(config) for config in configs]
    epoch = _shared_epoch(runs[0], data)
    if at_once and len(runs) > 1:
        yield from _at_once(runs, numbers, epoch, data)
        return
    compiled = jax.jit(epoch, donate_argnums=1)
    yield from _in_turn(
        [
            run._replace(epoch=partial(compiled, own), evaluate=runs[0].evaluate)
            for run, own in zip(runs, numbers, strict=True)
        ],
        data,
    )


def _in_turn(runs: Sequence[Run], data: Data) -> Iterator[tuple[int, Epoch]]:
    for which, run in enumerate(runs):
        with contextlib.suppress(nonfinite.NonFiniteLossError):
            for done in loop.train(run, data):
                yield which, done


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
    runs: Sequence[Run], numbers: Sequence[Numbers], epoch: Callable[..., Any], data: Data
) -> Iterator[tuple[int, Epoch]]:
    config, alive = runs[0].config, dict.fromkeys(range(len(runs)))
    state, own = _stacked([run.state for run in runs]), _stacked(numbers)
    order = 0 if config.shuffle else None  # in the order of the file all runs see the same batches
    axes = (0, 0, None, None, order, None)
    many = jax.jit(jax.vmap(epoch, in_axes=axes), donate_argnums=1)
    score = jax.jit(jax.vmap(runs[0].evaluate, in_axes=(0, 0, None, None)))
    images = jax.device_put((data.train_images, data.train_labels))
    test = jax.device_put((data.test_images, data.test_labels))
    for number in range(config.epochs):
        start, first = time.perf_counter(), number * runs[0].steps_per_epoch
        batches = [loop.batch_indices(r.config, len(data.train_labels), number) for r in runs]
        steps = np.arange(first, first + runs[0].steps_per_epoch, dtype=np.int32)
        chosen = np.stack(batches) if config.shuffle else batches[0]
        state, recorded = many(own, state, *images, chosen, steps)
        recorded, scores = jax.device_get((recorded, score(state.params, state.stats, *test)))
        seconds = (time.perf_counter() - start) / len(runs)
        for which in list(alive):
            telemetry = {key: values[which] for key, values in recorded.items()}
            one = {key: float(values[which]) for key, values in scores.items()}
            failed = nonfinite.failure(first, telemetry)
            if failed:
                alive.pop(which)
            yield which, Epoch(number, first, telemetry, one, seconds, state, failed)
        if not alive:
            return


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
