"""`Config`, all settings of a run, and the presets: four tutorial programs, and one more.

A `Config` is plain data: checked here, printed by `jaxclip presets`, written to `config.json`. This
module does not import the modules that use its values, so `jaxclip --help` does not load Flax.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from jaxclip.train.errors import UserError
from jaxclip.train.words import choose

DATASETS = ("mnist", "fashion_mnist", "digits")
CHOICES = {
    "activation": ("relu", "leaky_relu", "elu", "gelu", "swish", "sigmoid", "tanh"),
    "init": ("truncated_normal", "normal", "he", "lecun", "glorot"),
    "dtype": ("float32", "bfloat16", "float16"),
    "loss": ("mse", "sse", "cross_entropy"),
    "optimizer": ("sgd", "momentum", "adam", "adamw", "stable_adamw"),
    "parallel": ("none", "jit", "pmap", "shard_map", "fsdp"),
    "schedule": ("constant", "polynomial", "cosine"),
    "report": ("losses", "tensors", "accuracy"),
}
# Fields that have an effect only if another field has one of these values.
_DECAYING = ("schedule", ("polynomial", "cosine"))
_ADAMS = ("optimizer", ("adam", "adamw", "stable_adamw"))
_USED_WITH = {
    "init_std": ("init", ("truncated_normal", "normal")),
    "momentum": ("optimizer", ("momentum",)),
    "b1": _ADAMS,
    "b2": _ADAMS,
    "weight_decay": ("optimizer", ("adamw", "stable_adamw")),
    "end_learning_rate": _DECAYING,
    "decay_steps": _DECAYING,
    "power": ("schedule", ("polynomial",)),
}
MAX_PARAMETERS = 500_000_000
MAX_LAYERS = 200  # compilation takes a minute with 1,000
MAX_RULES = 20  # in a chain
MAX_WHOLE = 2**31  # steps are counted in int32
MAX_NUMBER = 1e38  # float32 has no larger ones
_IMAGES = 60_000  # for training; in the digits fewer


@dataclass(frozen=True)
class Config:
    """One run. A field's name is its flag's: `batch_size` is `--batch-size`."""

    preset: str
    sizes: tuple[
        int, ...
    ]  # of the hidden layers; the data set gives the number of inputs and outputs
    dataset: str | None = None  # None: MNIST, or the digits if MNIST is not available
    activation: str = "relu"
    init: str = "truncated_normal"
    init_std: float = 0.1
    batch_norm: bool = False
    dropout: float = 0.0  # the share of hidden activations that a training step sets to 0
    dtype: str = "float32"
    loss: str = "mse"
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    schedule: str = "constant"
    end_learning_rate: float = 0.0
    decay_steps: int | None = None  # None: all the steps of the run
    power: float = 1.0
    batch_size: int = 128
    epochs: int = 10
    shuffle: bool = True
    clip: tuple[str, ...] = ()
    project: tuple[str, ...] = ()
    guard: tuple[str, ...] = ()
    log_every: int = 10  # steps from one step record to the next; 1 records every step
    checkpoint_every: int = 1  # epochs from one checkpoint to the next; 0 writes none
    parallel: str = "none"  # the strategy on several devices: see `training.devices`
    report: str = "accuracy"
    allow_nonfinite: bool = False
    seed: int = 0

    def __post_init__(self):
        """Raises `UserError` with the flag and its value if a field is out of range."""
        if self.dataset not in (None, *DATASETS):
            raise UserError(
                f"--dataset={_short(self.dataset)}: unknown, {choose(self.dataset[:99], DATASETS)}"
            )
        for field, choices in CHOICES.items():
            _require(self, field, getattr(self, field) in choices, f"one of {', '.join(choices)}")
        for field in ("batch_size", "epochs", "log_every", "decay_steps", "checkpoint_every"):
            low, value = int(field != "checkpoint_every"), getattr(self, field)
            if value is not None:
                _require(self, field, value >= low, f"at least {low}")
                _require(self, field, value < MAX_WHOLE, f"below {MAX_WHOLE:,}")
        steps = self.epochs * _IMAGES // self.batch_size
        _require(self, "epochs", steps < MAX_WHOLE, f"fewer, for less than {MAX_WHOLE:,} steps")
        for field in ("init_std", "learning_rate", "power"):
            value = getattr(self, field)
            _require(self, field, 0 < value < math.inf, "positive and finite")
            _require(self, field, value < MAX_NUMBER, f"below {MAX_NUMBER}")
        for field in ("end_learning_rate", "weight_decay"):
            holds = 0 <= getattr(self, field) < MAX_NUMBER
            _require(self, field, holds, f"at least 0 and below {MAX_NUMBER}")
        for field in ("momentum", "b1", "b2", "dropout"):
            _require(self, field, 0 <= getattr(self, field) < 1, "at least 0 and below 1")
        _require(self, "seed", 0 <= self.seed < 2**32, "at least 0 and below 2**32")
        for field in ("clip", "project", "guard"):
            _require(self, field, len(getattr(self, field)) <= MAX_RULES, f"{MAX_RULES} at most")
        _require(self, "sizes", len(self.sizes) <= MAX_LAYERS, f"{MAX_LAYERS} widths at most")
        _require(self, "sizes", all(n >= 1 for n in self.sizes), "widths of at least 1")
        count = sum(m * n for m, n in zip((784, *self.sizes), (*self.sizes, 10), strict=True))
        _require(self, "sizes", count <= MAX_PARAMETERS, f"at most {MAX_PARAMETERS:,} parameters")

    def uses(self, field: str) -> bool:
        """Returns whether a field has an effect, given the others."""
        other, values = _USED_WITH.get(field, ("preset", (self.preset,)))
        return getattr(self, other) in values

    def override(self, values: dict[str, Any]) -> "Config":
        """Returns this run with some fields replaced; None keeps a field."""
        return dataclasses.replace(self, **{k: v for k, v in values.items() if v is not None})


def _require(config: Config, field: str, holds: bool, requirement: str) -> None:
    if not holds:
        value = getattr(config, field)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        raise UserError(f"{flag(field)}={_short(text)}: must be {requirement}")


def _short(text: str) -> str:
    return text if len(text) < 60 else f"{text[:40]}...{text[-10:]}"


_VALUE_CLIP = Config(
    preset="value-clip",
    sizes=(300, 100),
    init="he",
    loss="cross_entropy",
    learning_rate=0.01,
    batch_size=50,
    epochs=20,
    clip=("value=1,record=true",),
)

PRESETS: dict[str, Config] = {
    "explode": Config(
        preset="explode",
        sizes=(512, 256),
        learning_rate=0.1,
        batch_size=256,
        epochs=30,
        shuffle=False,
        clip=("global_norm=15",),
        log_every=1,
        report="tensors",
        # The norms depend on the seed: over 60 seeds, the global norm at the second step is between
        # 10 and 45, in the median 21. The published one is 35.7; this seed's is 36.1.
        seed=11,
    ),
    "forward": Config(
        preset="forward",
        sizes=(256, 128),
        learning_rate=1e-3,
        batch_size=128,
        epochs=10,
        shuffle=False,
        log_every=100,
        report="losses",
        allow_nonfinite=True,  # with --init-std 1 it shows a run without clipping explode
        # The first loss depends on the seed: 0.43 with a standard deviation of 0.15 over 30 seeds.
        # The published value is 0.404; this seed's is 0.43.
        seed=6,
    ),
    "value-clip": _VALUE_CLIP,
    "vanish": Config(
        preset="vanish",
        sizes=(64,) * 8,
        activation="sigmoid",
        init="glorot",
        loss="cross_entropy",
        learning_rate=0.1,
        batch_size=32,
        epochs=10,
    ),
    "max-norm": dataclasses.replace(
        _VALUE_CLIP,
        preset="max-norm",
        optimizer="momentum",
        schedule="polynomial",
        end_learning_rate=0.001,
        decay_steps=22_000,
        power=0.9,
        clip=(),
        # The tutorial bounds rows, the outgoing weights of an input; Keras bounds columns, axis=0.
        project=("max_norm=1.0,axis=1,layers=hidden",),
    ),
}

_ON_DIGITS = {"explode": {"learning_rate": 1.0}}

SUMMARIES = {
    "explode": "gradients clipped by global norm; prints each tensor's norm before and after",
    "forward": "no clipping; with --init-std 1 the loss explodes",
    "value-clip": "gradients clipped by value",
    "vanish": "nine layers, eight of them sigmoid: gradients vanish",
    "max-norm": "weights projected onto a ball after each step, with a decaying learning rate",
}

# What is to be seen, in two sentences.
LESSONS = {
    "explode": (
        "At the second step the gradient norm jumps far above the limit of 15, and clipping scales "
        "all six tensors by one factor. Compare with --clip none: on the digits, where the preset "
        "has a rate of 1, the loss then overflows."
    ),
    "forward": (
        "Without clipping, small initial weights train well: the loss falls to a fifth. With "
        "--init-std 1 it starts near 300,000 and overflows; add --clip global_norm=300 to keep it "
        "finite."
    ),
    "value-clip": (
        "Each element of the gradient is limited to [-1, 1], which can change its direction. With "
        "this initialization hardly any element reaches the limit, as the epochs' lines show."
    ),
    "vanish": (
        "The gradient norm falls by about a factor of four in each layer towards the input, so the "
        "accuracy stays at chance, and clipping cannot help. Cure it with --activation relu "
        "--init he, and compare the two layers.png."
    ),
    "max-norm": (
        "After each step, every row of the hidden kernels that is longer than 1 is scaled back to "
        "1. Compare weights.png with that of --project none, where the norms grow."
    ),
}


def fields() -> tuple[dataclasses.Field, ...]:
    """Returns the fields of a `Config`, the preset's name first."""
    return dataclasses.fields(Config)


def flag(field: str) -> str:
    """Returns the flag of a field: `--batch-size` for `batch_size`."""
    return f"--{field.replace('_', '-')}"


def get(name: str, dataset: str | None = None) -> Config:
    """Returns the preset called `name`, as it is on a data set if that is given."""
    if name not in PRESETS:
        raise UserError(f"PRESET={_short(name)}: unknown, {choose(_short(name), PRESETS)}")
    return on(PRESETS[name], dataset)


def on(config: Config, dataset: str | None) -> Config:
    """Returns a run on a data set; one that names its data set is returned unchanged.

    The digits have 64 pixels instead of 784. With the tutorial's rate, no gradient of `explode`
    reaches the limit there: so the preset's own value, unless it was changed, becomes another.
    """
    if config.dataset is not None or dataset is None:
        return config
    changes = _ON_DIGITS.get(config.preset, {}) if dataset == "digits" else {}
    preset = PRESETS.get(config.preset)
    kept = {k: v for k, v in changes.items() if getattr(config, k) == getattr(preset, k)}
    return config.override({"dataset": dataset} | kept)
