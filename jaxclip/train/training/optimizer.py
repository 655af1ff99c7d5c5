"""The optax chain of a run: clipping rules, optimizer, projections, in guards, between monitors.

The monitors `weights`, `grads`, `clipped` and `updates` record the norm of every tensor: of the
parameters, of the gradient before and after the rules, and of the step. What a rule does is the
library's business; how it is written is in `specs`.
"""

import functools
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
    """As Optax's, whose `1 - n / n`, compiled, is below 0 for some n: NaN, to a power of 0.9."""
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

    `rate` stands in for the run's own: a traced one, where several runs share a program.
    """
    return SCHEDULES[config.schedule](config, config.learning_rate if rate is None else rate, steps)


def clips(config: Config) -> list[rule_specs.Spec]:
    """Reads every `--clip RULE=VALUE[,key=value]`."""
    return [rule_specs.parse(text, "--clip", rule_specs.CLIPS) for text in config.clip]


def check(config: Config) -> None:
    """Raises `UserError` if a rule of `config` cannot be read: before any data is sought."""
    clips(config)
    for text in config.project:
        rule_specs.parse(text, "--project", rule_specs.PROJECTIONS, "layers")
    for text in config.guard:
        rule_specs.parse(text, "--guard", rule_specs.GUARDS)


def build(
    config: Config, params: Tree, rate: optax.Schedule, thresholds: Sequence[Any] | None = None
) -> Transformation:
    """Returns the chain.

    `thresholds` stand in for those of the rules that can take a traced one.

    The guards, the first one innermost, are around all that a bad step should leave alone: the
    rules that learn, the optimizer and the projections.

    Raises:
      UserError: if a rule cannot be read, or does not fit `params`.
    """
    rules = clips(config)
    extra = functools.partial(_units_in_one_place, config)
    if thresholds is not None:
        given = iter(thresholds)
        rules = [s._replace(arguments=(next(given),)) if s.traceable else s for s in rules]
    step = optax.chain(
        *(spec.build(params, **extra(spec)) for spec in rules),
        jaxclip.monitor(name="clipped"),
        OPTIMIZERS[config.optimizer](config, rate),
        *(bound.build(params, **extra(bound.spec)) for bound in projections(config, params)),
    )
    for text in config.guard:
        step = rule_specs.parse(text, "--guard", rule_specs.GUARDS).build(params, step)
    return optax.chain(
        jaxclip.monitor(name="grads"),
        step,
        jaxclip.monitor(name="updates"),
        jaxclip.monitor(name="weights", of="params"),
    )


def _units_in_one_place(config: Config, spec: rule_specs.Spec) -> dict[str, Any]:
    """Says, where JAX cannot know, that no unit of a kernel is spread over devices."""
    by_hand = config.parallel == "shard_map" and spec.takes("axis_name")
    return {"axis_name": ()} if by_hand and spec.units else {}


def units(config: Config, params: Tree) -> frozenset[int]:
    """Returns the axes of kernels over which some rule of a run takes norms of units."""
    bounds = [bound.spec for bound in projections(config, params)]
    return frozenset(axis for spec in (*clips(config), *bounds) for axis in spec.units)


class Projection(NamedTuple):
    """A projection as the user wrote it, and the layers whose kernels it binds."""

    spec: rule_specs.Spec
    layers: tuple[int, ...]

    @property
    def limit(self) -> float | None:
        """Returns the largest norm a unit may have, None where units are not what is bound."""
        limit = self.spec.rule.limit
        return self.spec.value(limit) if isinstance(limit, str) else limit

    def build(self, params: Tree, **extra: Any) -> Transformation:
        """Makes the transformation."""
        wanted = [("layers", number, "kernel") for number in self.layers]
        mask = jax.tree_util.tree_map_with_path(lambda path, _: _keys(path) in wanted, params)
        return self.spec.build(params, mask=mask, **extra)


def projections(config: Config, params: Tree) -> list[Projection]:
    """Reads every `PROJECTION=VALUE[,key=value]`, whose `layers=` says which kernels it binds."""
    return [_projection(text, len(params["layers"])) for text in config.project]


def _projection(text: str, count: int) -> Projection:
    spec = rule_specs.parse(text, "--project", rule_specs.PROJECTIONS, "layers")
    options = dict(spec.options)
    layers = options.pop("layers", "all")
    named = {"all": tuple(range(count)), "hidden": tuple(range(count - 1))}
    chosen = named.get(layers, layers if isinstance(layers, tuple) else (layers,))
    if not all(type(number) is int and 0 <= number < count for number in chosen):
        what = f"all, hidden, or numbers from 0 to {count - 1} as in 0:1"
        raise spec.error(f"layers={layers}: must be {what}")
    return Projection(spec._replace(options=options), chosen)


def _keys(path: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(entry.key for entry in path)
