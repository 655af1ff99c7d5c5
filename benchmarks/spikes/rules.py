"""The rules of `benchmarks.spikes`, and the sections that compare them.

To add a rule, add it to `RULES`: the MLP and the RNN train with it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxclip
from benchmarks.spikes.training import Optimizer

Transformation = optax.GradientTransformation
# From the direction of the optimizer, and its step along it, to the whole transformation.
Rule = Callable[[Transformation, Transformation], Transformation]


def _before(rule: Transformation) -> Rule:
    return lambda *optimizer: optax.chain(rule, *optimizer)


def _around(guard: Callable[[Transformation], Transformation], *rules: Transformation) -> Rule:
    return lambda *optimizer: guard(optax.chain(*rules, *optimizer))


def _stable_adam(_: Transformation, step: Transformation, b1: float = 0.9) -> Transformation:
    return optax.chain(jaxclip.scale_by_stable_adam(b1=b1), step)


_ONE = jaxclip.clip_by_global_norm(1.0)

RULES: dict[str, Rule] = {
    "no rule": optax.chain,
    "clip_by_global_norm(1.0)": _before(_ONE),
    "clip_by_global_norm(10.0)": _before(jaxclip.clip_by_global_norm(10.0)),
    "clip_by_global_norm(0.1)": _before(jaxclip.clip_by_global_norm(0.1)),
    "clip_by_norm(1.0)": _before(jaxclip.clip_by_norm(1.0)),
    "adaptive_grad_clip(0.01)": _before(jaxclip.adaptive_grad_clip(0.01)),
    "autoclip()": _before(jaxclip.autoclip()),
    "autoclip(50, window=100, factor=2)": _before(jaxclip.autoclip(50, window=100, factor=2)),
    "autoclip(50, window=100, factor=2, max_growth=1.001)": _before(
        jaxclip.autoclip(50, window=100, factor=2, max_growth=1.001)
    ),
    "clip_by(tracked_quantile())": _before(
        jaxclip.clip_by(jaxclip.thresholds.tracked_quantile(), scope="global")
    ),
    "zclip()": _before(jaxclip.zclip()),
    "zclip(max_norm=None)": _before(jaxclip.zclip(max_norm=None)),
    "zclip(max_norm=None, max_growth=1.001)": _before(
        jaxclip.zclip(max_norm=None, max_growth=1.001)
    ),
    "adagc()": _before(jaxclip.adagc()),
    "clip_by_history()": _before(jaxclip.clip_by_history()),
    "clip_by_history(max_growth=1.001)": _before(jaxclip.clip_by_history(max_growth=1.001)),
    "skip_nonfinite": _around(jaxclip.skip_nonfinite),
    "skip_spikes": _around(jaxclip.skip_spikes),
    "skip_spikes, clip_by_global_norm(1.0)": _around(jaxclip.skip_spikes, _ONE),
}
ADAM_RULES = RULES | {
    "scale_by_stable_adam()": _stable_adam,
    "skip_spikes, scale_by_stable_adam()": lambda *optimizer: jaxclip.skip_spikes(
        _stable_adam(*optimizer)
    ),
}
# One rule of each kind: a run of the transformer takes five times as long as one of the others.
TRANSFORMER_RULES = {
    name: ADAM_RULES[name]
    for name in (
        "no rule",
        "clip_by_global_norm(1.0)",
        "clip_by_global_norm(10.0)",
        "clip_by_norm(1.0)",
        "adaptive_grad_clip(0.01)",
        "autoclip(50, window=100, factor=2)",
        "autoclip(50, window=100, factor=2, max_growth=1.001)",
        "zclip(max_norm=None, max_growth=1.001)",
        "adagc()",
        "skip_nonfinite",
        "skip_spikes, clip_by_global_norm(1.0)",
        "scale_by_stable_adam()",
    )
}
MOMENT_RULES = {
    "no rule": RULES["no rule"],
    "clip_by_global_norm(1.0)": RULES["clip_by_global_norm(1.0)"],
    "scale_by_stable_adam(b1=0)": lambda *optimizer: _stable_adam(*optimizer, b1=0),
}
RARE_RULES = {
    name: RULES[name]
    for name in ("no rule", "clip_by_global_norm(1.0)", "clip_by_history()", "skip_spikes")
}
NAN_RULES = {name: RULES[name] for name in ("no rule", "clip_by_global_norm(1.0)", "zclip()")} | {
    'clip_by_global_norm(1.0, nonfinite="zero")': _before(
        jaxclip.clip_by_global_norm(1.0, nonfinite="zero")
    ),
    "skip_nonfinite": RULES["skip_nonfinite"],
    "skip_spikes": RULES["skip_spikes"],
    "skip_nonfinite, clip_by_global_norm(1.0)": _around(jaxclip.skip_nonfinite, _ONE),
}


class Section(NamedTuple):
    """Rules with one network and optimizer, at every rate and in every scenario: one table."""

    name: str
    title: str
    network: str
    direction: Transformation
    rates: Mapping[str, float]
    rules: Mapping[str, Rule]
    scenarios: tuple[str, ...] = ("calm", "spiked")
    decay: float = 0.0  # of the weights, as in AdamW
    warmup: int = 1  # steps in which the learning rate rises linearly

    def optimizer(self, rule: Rule) -> Optimizer:
        """Returns the transformation of a rule, a function of the learning rate."""

        def at(rate: jax.Array) -> Transformation:
            def now(count: jax.Array) -> jax.Array:
                return rate * jnp.minimum(1, (count + 1) / self.warmup)

            decay = [optax.add_decayed_weights(self.decay)] if self.decay else []
            return rule(self.direction, optax.chain(*decay, optax.scale_by_learning_rate(now)))

        return at


def _rates(high: float) -> dict[str, float]:
    return {"sound": high / 10, "high": high}


_MOMENTUM, _ADAM = optax.trace(0.9), optax.scale_by_adam()
_MLP_MOMENTUM = Section(
    "mlp-momentum", "MLP, SGD with momentum 0.9", "mlp", _MOMENTUM, _rates(0.2), RULES
)
_MLP_ADAM = Section("mlp-adam", "MLP, Adam", "mlp", _ADAM, _rates(0.03), ADAM_RULES)
COMPARED = (
    _MLP_MOMENTUM,
    _MLP_ADAM,
    Section("rnn", "RNN, SGD with momentum 0.9", "rnn", _MOMENTUM, _rates(0.05), RULES),
    Section(
        "transformer",
        "Transformer, AdamW",
        "transformer",
        _ADAM,
        _rates(0.03),
        TRANSFORMER_RULES,
        decay=0.01,
        warmup=30,
    ),
)
_HIGH = {"high": _MLP_MOMENTUM.rates["high"]}
SECTIONS = (
    *COMPARED,
    _MLP_ADAM._replace(
        name="mlp-adam-b1-0",
        title="MLP, Adam without a first moment (b1=0)",
        direction=optax.scale_by_adam(b1=0),
        rates={"high": _MLP_ADAM.rates["high"]},
        rules=MOMENT_RULES,
        scenarios=("spiked",),
    ),
    _MLP_MOMENTUM._replace(
        name="mlp-rare",
        title="Fewer bad batches: MLP, SGD with momentum 0.9",
        rates=_HIGH,
        rules=RARE_RULES,
        scenarios=("rare",),
    ),
    _MLP_MOMENTUM._replace(
        name="mlp-nan",
        title="NaN batches: MLP, SGD with momentum 0.9",
        rates=_HIGH,
        rules=NAN_RULES,
        scenarios=("nan",),
    ),
)
SMOKE_RULES = {  # by section
    "mlp-momentum": ("no rule", "skip_nonfinite"),
    "rnn": ("no rule", "clip_by_global_norm(1.0)"),
    "transformer": ("no rule", "scale_by_stable_adam()"),
    "mlp-nan": ("no rule", "skip_nonfinite"),
}
