"""The training runs of `benchmarks.spikes`, and the numbers computed from them.

All random numbers are drawn with NumPy, independently of the rule: with the same seed, two rules
get the same weights, the same batches and the same bad steps.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from jaxclip import norms
from jaxclip.train.data import Data
from jaxclip.train.training import losses, model

Tree = Any
LABELS, SCALED, NAN = 1, 2, 3  # the kinds of a bad batch; 0 is an ordinary one
KINDS = {LABELS: "random labels", SCALED: "inputs too large", NAN: "inputs NaN"}


class Size(NamedTuple):
    """The size of the experiment."""

    seeds: int
    steps: int
    batch: int
    hidden: tuple[int, ...]
    images: int  # training images, the first ones
    probe: int  # of these, the first ones, on which the loss is recorded
    first_bad: int  # the first step that may be bad, after every rule's warm-up
    quiet: int  # the last steps, without bad batches, which give the final loss
    bad_share: float  # of the steps between, unless the scenario is `rare`


class Scenario(NamedTuple):
    """The kinds of bad batches, which take turns, and a divisor of their number."""

    kinds: tuple[int, ...] = ()
    rarer: int = 1


class Plan(NamedTuple):
    """The batches of every seed; each array's first two axes are seed and step."""

    kind: np.ndarray
    examples: np.ndarray
    labels: np.ndarray
    factor: np.ndarray  # of the inputs


class Task(NamedTuple):
    """The images, and the networks of all seeds as one stacked tree."""

    data: Data
    size: Size
    params: Tree
    stats: Tree
    apply: Callable[..., Any]


class Result(NamedTuple):
    """The result of training with a rule; the first axis is the seed, the second the step."""

    loss: np.ndarray  # of the batch, before each step
    probe_loss: np.ndarray  # of the clean probe, after it
    norm: np.ndarray  # of the gradient, before any rule
    touched: np.ndarray  # bool: clipped or skipped
    test_accuracy: np.ndarray  # at the end


def task(data: Data, size: Size) -> Task:
    """Draws the networks."""
    data = data._replace(
        train_images=data.train_images[: size.images], train_labels=data.train_labels[: size.images]
    )
    sizes = (data.train_images.shape[1], *size.hidden, int(data.train_labels.max()) + 1)
    networks = [
        model.build(sizes, seed, activation="relu", init="he", init_std=1.0)
        for seed in range(size.seeds)
    ]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(n.params for n in networks))
    return Task(data, size, params, networks[0].stats, networks[0].apply)


def plan(given: Task, scenario: Scenario) -> Plan:
    """Draws the batches of all seeds."""
    plans = [_plan(given, seed, scenario) for seed in range(given.size.seeds)]
    return Plan(*map(np.stack, zip(*plans, strict=True)))


def _plan(given: Task, seed: int, scenario: Scenario) -> Plan:
    size, labels = given.size, given.data.train_labels
    random = np.random.default_rng((seed, 3))
    # Everything is drawn in every scenario, so scenarios differ only in the bad steps.
    examples = random.integers(0, len(labels), (size.steps, size.batch), dtype=np.int32)
    wrong = random.integers(0, labels.max() + 1, examples.shape, dtype=np.int32)
    large = np.exp(random.uniform(np.log(10), np.log(30), size.steps))
    where = random.permutation(np.arange(size.first_bad, size.steps - size.quiet))
    kind = np.zeros(size.steps, np.int8)
    if scenario.kinds:
        bad = where[: round(size.bad_share * len(where) / scenario.rarer)]
        kind[bad] = np.resize(scenario.kinds, len(bad))
    factor = np.select([kind == SCALED, kind == NAN], [large, np.nan], 1.0)
    given_labels = np.where((kind == LABELS)[:, None], wrong, labels[examples])
    return Plan(kind, examples, given_labels.astype(np.int32), factor.astype(np.float32))


def program(given: Task, tx: optax.GradientTransformation) -> Callable[[Plan], Result]:
    """Compiles the training of all seeds with a rule, for any plan."""
    training = _training(given, optax.with_extra_args_support(tx))
    trained = jax.jit(jax.vmap(training, in_axes=(None, 0, 0, 0, 0)))
    images = jax.device_put(given.data[2:])

    def run(batches: Plan) -> Result:
        arrays = trained(images, given.params, *batches[1:])
        loss, probe_loss, norm, actions, accuracy = map(np.asarray, arrays)
        touched = np.diff(actions, axis=1, prepend=0) > 0
        return Result(loss, probe_loss, norm, touched, accuracy)

    return run


def _training(given: Task, tx: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """Returns the training of one seed: a scan over its steps, and the scores at the end."""

    def outputs(params: Tree, x: jax.Array) -> jax.Array:
        return given.apply(params, given.stats, x, train=False)[0]

    def loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        return losses.cross_entropy(outputs(params, x), y)

    def training(data: tuple[jax.Array, ...], params: Tree, *batches: jax.Array) -> Any:
        images, labels, test_images, test_labels = data
        probe = images[: given.size.probe], labels[: given.size.probe]

        def step(state: tuple[Tree, Tree], now: tuple[jax.Array, ...]) -> tuple[Any, Any]:
            (params, opt_state), (examples, given_labels, factor) = state, now
            batch = factor * images[examples], given_labels
            value, grads = jax.value_and_grad(loss)(params, *batch)
            updates, opt_state = tx.update(grads, opt_state, params, value=value)
            params = optax.apply_updates(params, updates)
            actions = _actions(jaxclip.metrics(opt_state))
            recorded = value, loss(params, *probe), norms.global_norm(grads), actions
            return (params, opt_state), recorded

        (params, _), recorded = jax.lax.scan(step, (params, tx.init(params)), batches)
        return *recorded, losses.accuracy(outputs(params, test_images), test_labels)

    return training


def _actions(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the number of updates that any rule of the chain has clipped or skipped so far."""
    counts = [v for k, v in metrics.items() if k.endswith(("/clipped_count", "/skipped_count"))]
    return sum(counts, start=jnp.zeros((), jnp.int32))


# Numbers of a result ------------------------------------------------------------------------

WINDOW, JUMP, APART = 100, 2.0, 10
FAILED = 1.0


def measure(result: Result, batches: Plan, size: Size) -> dict[str, list[Any]]:
    """Returns the numbers of a run, a list with one entry for each seed."""
    bad = batches.kind > 0
    return {
        "final_loss": result.loss[:, -size.quiet :].mean(axis=1).tolist(),
        "test_accuracy": result.test_accuracy.tolist(),
        "worst_loss": result.probe_loss[:, size.first_bad :].max(axis=1).tolist(),
        "spikes": [count_spikes(loss) for loss in result.probe_loss],
        "touched_all": _share(result.touched, np.ones_like(bad)),
        "touched_ordinary": _share(result.touched, ~bad),
        "touched_bad": _share(result.touched, bad),
        "missed_steps": [np.flatnonzero(missed).tolist() for missed in bad & ~result.touched],
        "median_norm_of_ordinary": _median(result.norm, ~bad),
        "median_norm_of_bad": _median(result.norm, bad),
        "first_nonfinite_step": [_first(~np.isfinite(loss)) for loss in result.probe_loss],
    }


def count_spikes(loss: np.ndarray) -> int:
    """Counts how often the loss exceeds `JUMP` times the median of the `WINDOW` steps before.

    Such steps less than `APART` steps apart belong to the same spike. A loss that is not finite
    counts; the first `WINDOW` steps do not.
    """
    before = np.lib.stride_tricks.sliding_window_view(loss, WINDOW)[:-1]
    now = loss[WINDOW:]
    above = np.flatnonzero(~np.isfinite(now) | (now > JUMP * np.median(before, axis=1)))
    return int(np.count_nonzero(np.diff(above, prepend=-APART) >= APART))


def failed(loss: float) -> bool:
    """Returns whether a run with this final loss has learned nothing or diverged."""
    return not loss <= FAILED


def _share(touched: np.ndarray, where: np.ndarray) -> list[float | None]:
    return [float(t[w].mean()) if w.any() else None for t, w in zip(touched, where, strict=True)]


def _median(norm: np.ndarray, where: np.ndarray) -> list[float | None]:
    pairs = zip(norm, where & np.isfinite(norm), strict=True)
    return [float(np.median(n[w])) if w.any() else None for n, w in pairs]


def _first(where: np.ndarray) -> int | None:
    return int(np.argmax(where)) if where.any() else None
