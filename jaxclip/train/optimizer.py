"""The optax chain of a run: monitor, clipping rules, monitor, optimizer, projections.

The two monitors, `grads` and `clipped`, record the norm of every tensor before and after the rules.
What a rule does is the library's business; how it is written is in `specs`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import jaxclip
from jaxclip.train import specs
from jaxclip.train.presets import Config

Tree = Any
Transformation = optax.GradientTransformationExtraArgs

SCHEDULES: dict[str, Callable[[Config, int], optax.Schedule]] = {
    "constant": lambda c, steps: optax.constant_schedule(c.learning_rate),
    "polynomial": lambda c, steps: optax.polynomial_schedule(
        c.learning_rate, c.end_learning_rate, c.power, c.decay_steps or steps
    ),
    "cosine": lambda c, steps: optax.cosine_decay_schedule(
        c.learning_rate, c.decay_steps or steps, c.end_learning_rate / c.learning_rate
    ),
}

OPTIMIZERS: dict[str, Callable[[Config, optax.Schedule], optax.GradientTransformation]] = {
    "sgd": lambda c, rate: optax.sgd(rate),
    "momentum": lambda c, rate: optax.sgd(rate, momentum=c.momentum),
    "adam": lambda c, rate: optax.adam(rate, b1=c.b1, b2=c.b2),
    "adamw": lambda c, rate: optax.adamw(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay),
}


def schedule(config: Config, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, for a run of `steps` steps."""
    return SCHEDULES[config.schedule](config, steps)


def build(config: Config, params: Tree, rate: optax.Schedule) -> Transformation:
    """Returns the chain.

    Raises:
      UserError: if a rule cannot be read, or does not fit `params`.
    """
    clips = [specs.parse(text, "--clip", specs.CLIPS) for text in config.clip]
    return optax.chain(
        jaxclip.monitor(name="grads"),
        *(spec.build(params) for spec in clips),
        jaxclip.monitor(name="clipped"),
        OPTIMIZERS[config.optimizer](config, rate),
        *(bound.build(params) for bound in projections(config, params)),
    )


class Projection(NamedTuple):
    """A projection as the user wrote it, and the layers whose kernels it binds."""

    spec: specs.Spec
    layers: tuple[int, ...]

    @property
    def limit(self) -> float | None:
        """Returns the largest norm a unit may have, None where units are not what is bound."""
        limit = self.spec.rule.limit
        return self.spec.value(limit) if isinstance(limit, str) else limit

    @property
    def axis(self) -> tuple[int, ...]:
        """Returns the axes of a kernel that a unit reduces."""
        axis = self.spec.value("axis")
        axes = (0,) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        return tuple(sorted(a % 2 for a in axes if -2 <= a < 2)) or (0, 1)

    def build(self, params: Tree) -> Transformation:
        """Makes the transformation."""
        wanted = [("layers", number, "kernel") for number in self.layers]
        mask = jax.tree_util.tree_map_with_path(lambda path, _: _keys(path) in wanted, params)
        return self.spec.build(params, mask=mask)


def projections(config: Config, params: Tree) -> list[Projection]:
    """Reads every `PROJECTION=VALUE[,key=value]`, whose `layers=` says which kernels it binds."""
    return [_projection(text, len(params["layers"])) for text in config.project]


def _projection(text: str, count: int) -> Projection:
    spec = specs.parse(text, "--project", specs.PROJECTIONS, "layers")
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
