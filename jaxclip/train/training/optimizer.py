"""The Optax chain of a run: clipping rules, optimizer and projections, in guards, with monitors.

The monitors `weights`, `grads`, `clipped` and `updates` record the norm of every tensor: of the
parameters, of the gradient before and after clipping, and of the update. `rule_specs` reads rules.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxclip
from jaxclip.train.config import rule_specs
from jaxclip.train.config.presets import Config

Tree = Any
Rate = float | jax.Array
Transformation = optax.GradientTransformationExtraArgs


def _polynomial(c: Config, rate: Rate, steps: int) -> optax.Schedule:
    """Optax's schedule, but never NaN: its compiled `1 - n / n` is below 0 for some n."""
    last = c.decay_steps or steps

    def at(step: Any) -> jax.Array:
        left = (last - jnp.clip(step, 0, last)) / last
        return (rate - c.end_learning_rate) * left**c.power + c.end_learning_rate

    return at


SCHEDULES: dict[str, Callable[[Config, Rate, int], optax.Schedule]] = {
    "constant": lambda c, rate, steps: optax.constant_schedule(rate),
    "polynomial": _polynomial,
    "cosine": lambda c, rate, steps: optax.cosine_decay_schedule(
        rate, c.decay_steps or steps, c.end_learning_rate / rate
    ),
}


def _stable_adamw(c: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        jaxclip.scale_by_stable_adam(c.b1, c.b2),
        optax.add_decayed_weights(c.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


OPTIMIZERS: dict[str, Callable[[Config, optax.Schedule], optax.GradientTransformation]] = {
    "sgd": lambda c, rate: optax.sgd(rate),
    "momentum": lambda c, rate: optax.sgd(rate, momentum=c.momentum),
    "adam": lambda c, rate: optax.adam(rate, b1=c.b1, b2=c.b2),
    "adamw": lambda c, rate: optax.adamw(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay),
    "stable_adamw": _stable_adamw,
}


def schedule(config: Config, steps: int, rate: Rate | None = None) -> optax.Schedule:
    """Returns the learning rate as a function of the step, for a run of `steps` steps.

    `rate` replaces the run's learning rate: a traced number if several runs share a program.
    """
    return SCHEDULES[config.schedule](config, config.learning_rate if rate is None else rate, steps)


def clips(config: Config) -> list[rule_specs.Spec]:
    """Parses every `--clip RULE=VALUE[,key=value]`."""
    return [rule_specs.parse("clip", text) for text in config.clip]


def check(config: Config) -> None:
    """Raises `UserError` if a rule of `config` does not fit its network; needs no data."""
    sizes = (784, *config.sizes, 10)  # no rule depends on the number of inputs
    array = functools.partial(jax.ShapeDtypeStruct, dtype=config.dtype)
    pairs = enumerate(itertools.pairwise(sizes))
    layers = {i: {"bias": array((n,)), "kernel": array((m, n))} for i, (m, n) in pairs}
    build(config, {"layers": layers}, lambda step: 0.0)


def build(
    config: Config, params: Tree, rate: optax.Schedule, thresholds: Sequence[Any] | None = None
) -> Transformation:
    """Returns the chain.

    Guards wrap clipping rules, optimizer and projections, so a skipped step changes no state in
    them. The first guard is the innermost.

    Args:
      config: the run.
      params: its parameters.
      rate: the learning rate as a function of the step.
      thresholds: replace the thresholds of rules that accept a traced number.

    Raises:
      UserError: if a rule cannot be parsed, or does not fit `params`.
    """
    rules = clips(config)
    extra = functools.partial(_no_axis_name, config)
    if thresholds is not None:
        traced = iter(thresholds)
        rules = [s._replace(arguments=(next(traced),)) if s.traceable else s for s in rules]
    step = optax.chain(
        *(spec.build(params, **extra(spec)) for spec in rules),
        jaxclip.monitor(name="clipped"),
        OPTIMIZERS[config.optimizer](config, rate),
        *(p.build(params, **extra(p.spec)) for p in projections(config, params)),
    )
    for text in config.guard:
        step = rule_specs.parse("guard", text).build(params, step)
    return optax.chain(
        jaxclip.monitor(name="grads"),
        step,
        jaxclip.monitor(name="updates"),
        jaxclip.monitor(name="weights", of="params"),
    )


def _no_axis_name(config: Config, spec: rule_specs.Spec) -> dict[str, Any]:
    """Tells a rule in `shard_map` that its units are not sharded, which JAX cannot know."""
    needed = config.parallel == "shard_map" and spec.takes("axis_name") and spec.units
    return {"axis_name": ()} if needed else {}


def unit_axes(config: Config, params: Tree) -> frozenset[int]:
    """Returns the axes of kernels that some rule of a run reduces to norms of units."""
    specs = [*clips(config), *(p.spec for p in projections(config, params))]
    return frozenset(axis for spec in specs for axis in spec.units)


class Projection(NamedTuple):
    """A projection as the user wrote it, and the layers whose kernels it projects."""

    spec: rule_specs.Spec
    layers: tuple[int, ...]

    @property
    def limit(self) -> float | None:
        """The largest norm that it allows a unit, None if it does not bound units."""
        limit = self.spec.rule.limit
        return self.spec.value(limit) if isinstance(limit, str) else limit

    def build(self, params: Tree, **extra: Any) -> Transformation:
        """Builds the transformation for `params`."""
        kernels = [("layers", number, "kernel") for number in self.layers]
        mask = jax.tree_util.tree_map_with_path(lambda path, _: _keys(path) in kernels, params)
        return self.spec.build(params, mask=mask, **extra)


def projections(config: Config, params: Tree) -> list[Projection]:
    """Parses every `--project RULE=VALUE[,layers=LAYERS,key=value]`."""
    return [_projection(text, len(params["layers"])) for text in config.project]


def _projection(text: str, count: int) -> Projection:
    spec = rule_specs.parse("project", text)
    options = dict(spec.options)
    layers = options.pop("layers", "all")
    named = {"all": tuple(range(count)), "hidden": tuple(range(count - 1))}
    chosen = named.get(layers, layers if isinstance(layers, tuple) else (layers,))
    if not all(type(number) is int and 0 <= number < count for number in chosen):
        allowed = f"all, hidden, or numbers from 0 to {count - 1} as in 0:1"
        raise spec.error(f"layers={layers}: must be {allowed}")
    return Projection(spec._replace(options=options), chosen)


def _keys(path: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(entry.key for entry in path)
