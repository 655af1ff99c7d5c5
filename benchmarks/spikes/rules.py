"""The rules, optimizers and scenarios of `benchmarks.spikes`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import optax

import jaxclip
from benchmarks.spikes import training

Transformation = optax.GradientTransformation
Rule = Callable[[Transformation], Transformation]  # from the optimizer to the whole transformation

RATES = {"momentum": 0.2, "adam": 0.03}
OPTIMIZERS = {
    "momentum": optax.sgd(RATES["momentum"], momentum=0.9),
    "adam": optax.adam(RATES["adam"]),
    "adam-b1-0": optax.adam(RATES["adam"], b1=0),
}

_FINITE = (training.LABELS, training.SCALED)
SCENARIOS = {
    "calm": training.Scenario(),
    "spiked": training.Scenario(_FINITE),
    "rare": training.Scenario(_FINITE, rarer=4),
    "nan": training.Scenario((training.NAN,)),
}


def _before(rule: Transformation) -> Rule:
    return lambda optimizer: optax.chain(rule, optimizer)


_ONE = jaxclip.clip_by_global_norm(1.0)
_ADAM_RATE = optax.scale_by_learning_rate(RATES["adam"])
_STABLE_ADAM = optax.chain(jaxclip.scale_by_stable_adam(), _ADAM_RATE)

RULES: dict[str, Rule] = {
    "no rule": lambda optimizer: optimizer,
    "no rule, a tenth of the rate": lambda optimizer: optax.chain(optimizer, optax.scale(0.1)),
    "clip_by_global_norm(1.0)": _before(_ONE),
    "clip_by_global_norm(10.0)": _before(jaxclip.clip_by_global_norm(10.0)),
    "clip_by_global_norm(0.1)": _before(jaxclip.clip_by_global_norm(0.1)),
    "adaptive_grad_clip(0.01)": _before(jaxclip.adaptive_grad_clip(0.01)),
    "autoclip()": _before(jaxclip.autoclip()),
    "autoclip(50, window=100, factor=2)": _before(jaxclip.autoclip(50, window=100, factor=2)),
    "clip_by(tracked_quantile())": _before(
        jaxclip.clip_by(jaxclip.thresholds.tracked_quantile(), scope="global")
    ),
    "zclip()": _before(jaxclip.zclip()),
    "zclip(max_norm=None)": _before(jaxclip.zclip(max_norm=None)),
    "adagc()": _before(jaxclip.adagc()),
    "clip_by_history()": _before(jaxclip.clip_by_history()),
    "skip_nonfinite": jaxclip.skip_nonfinite,
    "skip_spikes": jaxclip.skip_spikes,
    "skip_spikes, clip_by_global_norm(1.0)": lambda optimizer: jaxclip.skip_spikes(
        optax.chain(_ONE, optimizer)
    ),
}
ADAM_RULES = RULES | {
    "scale_by_stable_adam()": lambda optimizer: _STABLE_ADAM,
    "skip_spikes, scale_by_stable_adam()": lambda optimizer: jaxclip.skip_spikes(_STABLE_ADAM),
}
SMOKE_RULES = {  # by section
    "momentum": ("no rule", "clip_by_history()", "skip_nonfinite"),
    "adam": ("no rule", "scale_by_stable_adam()"),
    "rare": ("no rule", "clip_by_history()"),
    "nan": ("no rule", "skip_nonfinite"),
}
MOMENT_RULES = {
    "no rule": RULES["no rule"],
    "clip_by_global_norm(1.0)": RULES["clip_by_global_norm(1.0)"],
    "scale_by_stable_adam(b1=0)": lambda optimizer: optax.chain(
        jaxclip.scale_by_stable_adam(b1=0), _ADAM_RATE
    ),
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
    "skip_nonfinite, clip_by_global_norm(1.0)": lambda optimizer: jaxclip.skip_nonfinite(
        optax.chain(_ONE, optimizer)
    ),
}


class Section(NamedTuple):
    """Rules with one optimizer, in one or two scenarios: one table."""

    name: str
    title: str
    optimizer: str
    rules: Mapping[str, Rule]
    scenarios: tuple[str, ...]


_MOMENTUM = f"SGD with momentum 0.9, learning rate {RATES['momentum']}"
_ADAM = f"Adam, learning rate {RATES['adam']}"
SECTIONS = (
    Section("momentum", _MOMENTUM, "momentum", RULES, ("calm", "spiked")),
    Section("adam", _ADAM, "adam", ADAM_RULES, ("calm", "spiked")),
    Section(
        "adam-b1-0",
        f"{_ADAM}, no first moment (b1=0)",
        "adam-b1-0",
        MOMENT_RULES,
        ("spiked",),
    ),
    Section("rare", f"Fewer bad batches, {_MOMENTUM}", "momentum", RARE_RULES, ("rare",)),
    Section("nan", f"NaN batches, {_MOMENTUM}", "momentum", NAN_RULES, ("nan",)),
)
