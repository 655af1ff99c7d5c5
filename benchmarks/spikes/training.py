"""The training runs of `benchmarks.spikes`, and the numbers computed from them.

Nothing that is random depends on the rule: with the same seed, two rules get the same weights, the
same batches and the same bad steps.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from benchmarks.spikes.networks import INPUTS, LOSS, NAN, TARGETS, Network
from jaxclip import norms

Tree = Any
Optimizer = Callable[[jax.Array], optax.GradientTransformation]  # from a learning rate


class Size(NamedTuple):
    """The size of the runs of a network."""

    seeds: int
    steps: int
    batch: int
    first_bad: int  # the first step that may be bad, after every rule's warm-up
    quiet: int  # the last steps, without bad batches, which give the final loss
    bad_share: float  # of the steps between


class Scenario(NamedTuple):
    """How many of the steps that `Size.bad_share` makes bad are bad, and their kinds."""

    share: float
    kinds: tuple[int, ...] | None = None  # None for those of the network


SCENARIOS = {
    "calm": Scenario(0),
    "spiked": Scenario(1),
    "rare": Scenario(1 / 4),
    "nan": Scenario(1, (NAN,)),
}


class Plan(NamedTuple):
    """The batches of every seed; each array's first two axes are seed and step."""

    kind: np.ndarray
    examples: np.ndarray
    targets: np.ndarray  # the examples whose targets are given
    input_factor: np.ndarray
    loss_factor: np.ndarray


class Result(NamedTuple):
    """The results of runs; the last axes are seed and step."""

    loss: np.ndarray  # of the batch, before each step
    norm: np.ndarray  # of the gradient, before any rule
    touched: np.ndarray  # bool: clipped or skipped


def plan(network: Network, size: Size, scenario: Scenario) -> Plan:
    """Draws the batches of all seeds."""
    plans = [_plan(network, size, scenario, seed) for seed in range(size.seeds)]
    return Plan(*map(np.stack, zip(*plans, strict=True)))


def _plan(network: Network, size: Size, scenario: Scenario, seed: int) -> Plan:
    random = np.random.default_rng((seed, 3))
    # Everything is drawn in every scenario, so scenarios differ only in the bad steps.
    drawn = random.integers(0, len(network.inputs), (2, size.steps, size.batch), dtype=np.int32)
    large = np.exp(random.uniform(np.log(10), np.log(30), size.steps))
    where = random.permutation(np.arange(size.first_bad, size.steps - size.quiet))
    bad = where[: round(scenario.share * size.bad_share * len(where))]
    kind = np.zeros(size.steps, np.int8)
    kind[bad] = np.resize(scenario.kinds or network.kinds, len(bad))
    examples, others = drawn
    targets = np.where((kind == TARGETS)[:, None], others, examples)
    input_factor = np.where(kind == INPUTS, large, 1)
    loss_factor = np.select([kind == LOSS, kind == NAN], [large, np.nan], 1)
    return Plan(kind, examples, targets, np.float32(input_factor), np.float32(loss_factor))


def program(network: Network, optimizer: Optimizer) -> Callable[[Any, Any], Result]:
    """Returns the training with an optimizer: a function of learning rates and plans.

    The first axes of its result are rate and plan. All runs are one compiled program.
    """
    data = jax.device_put((network.inputs, network.targets))
    runs = jax.jit(partial(_runs, network, optimizer))

    def train(rates: Any, plans: Any) -> Result:
        several = Plan(*map(np.stack, zip(*plans, strict=True)))
        seeds = map(network.params, range(several.kind.shape[1]))
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
        recorded = runs(data, jnp.float32(rates), params, several)
        shape = len(rates), *several.kind.shape
        loss, norm, acted = (np.asarray(values).reshape(shape) for values in recorded)
        return Result(loss, norm, np.diff(acted, axis=-1, prepend=0) > 0)

    return train


def _runs(
    network: Network, optimizer: Optimizer, data: Any, rates: jax.Array, params: Tree, plans: Plan
) -> Any:
    """Trains rate by rate, plan by plan and seed by seed.

    One after the other: a network alone stays in the cache, and `vmap` takes up to twice as long.
    """

    def one(index: tuple[Any, Any, Any]) -> Any:
        rate, plan, seed = index
        first = jax.tree.map(lambda leaf: leaf[seed], params)
        batches = [leaf[plan, seed] for leaf in plans[1:]]
        return _run(network, optimizer(rates[rate]), data, first, batches)

    counts = len(rates), *plans.kind.shape[:2]
    return jax.lax.map(one, jnp.unravel_index(jnp.arange(np.prod(counts)), counts))


def _run(network: Network, transformation: Any, data: Any, params: Tree, batches: Any) -> Any:
    """Trains once: a scan over the steps."""
    tx = optax.with_extra_args_support(transformation)

    def loss(params: Tree, examples: Any, others: Any, input_factor: Any, loss_factor: Any) -> Any:
        x, y = data[0][examples], data[1][others]
        if jnp.issubdtype(x.dtype, jnp.floating):
            x = input_factor * x
        return loss_factor * network.loss(params, x, y)

    def step(state: tuple[Tree, Tree], batch: Any) -> tuple[Any, Any]:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = tx.update(grads, opt_state, params, value=value)
        params = optax.apply_updates(params, updates)
        acted = _actions(jaxclip.metrics(opt_state))
        return (params, opt_state), (value, norms.global_norm(grads), acted)

    return jax.lax.scan(step, (params, tx.init(params)), batches)[1]


def _actions(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the number of updates that any rule of the chain has clipped or skipped so far."""
    counts = [v for k, v in metrics.items() if k.endswith(("/clipped_count", "/skipped_count"))]
    return sum(counts, start=jnp.zeros((), jnp.int32))


def measure(result: Result, batches: Plan, size: Size) -> dict[str, list[Any]]:
    """Returns the numbers of the runs of a plan, a list with one entry for each seed."""
    bad = batches.kind > 0
    loss, norm = (values.astype(np.float64) for values in (result.loss, result.norm))
    later = np.arange(size.steps) >= size.first_bad
    return {
        "final_loss": loss[:, -size.quiet :].mean(axis=1).tolist(),
        "loss_beside_bad": _means(loss, later & ~bad),
        "touched_ordinary": _means(result.touched, ~bad),
        "touched_bad": _means(result.touched, bad),
        "missed_steps": [np.flatnonzero(missed).tolist() for missed in bad & ~result.touched],
        "median_norm_of_ordinary": _medians(norm, ~bad),
        "median_norm_of_bad": _medians(norm, bad),
        "first_nonfinite_step": [_first(~np.isfinite(seed)) for seed in loss],
    }


def _means(values: np.ndarray, where: np.ndarray) -> list[float | None]:
    pairs = zip(values, where, strict=True)
    return [float(v[w].mean()) if w.any() else None for v, w in pairs]


def _medians(norm: np.ndarray, where: np.ndarray) -> list[float | None]:
    pairs = zip(norm, where & np.isfinite(norm), strict=True)
    return [float(np.median(n[w])) if w.any() else None for n, w in pairs]


def _first(where: np.ndarray) -> int | None:
    return int(np.argmax(where)) if where.any() else None
