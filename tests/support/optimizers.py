"""Every optimizer of Optax and its contrib that a learning rate makes, and a loss for them."""

import inspect
import warnings

import jax.numpy as jnp
import optax

RATE = 0.01


def _makers():
    for module in (optax, optax.contrib):
        for name, value in vars(module).items():
            if not name.startswith("_") and callable(value) and not inspect.isclass(value):
                yield name, value


def _made(maker):
    """The transformation; `None` if it needs more arguments or is none."""
    try:
        if "learning_rate" not in inspect.signature(maker).parameters:
            return None
        tx = maker(learning_rate=RATE)
    except (TypeError, ValueError):
        return None
    if not isinstance(tx, optax.GradientTransformation):
        return None
    return optax.with_extra_args_support(tx)


with warnings.catch_warnings(action="ignore"):  # Optax's own
    _ALL = {name: _made(maker) for name, maker in sorted(_makers())}
OPTIMIZERS = {name: tx for name, tx in _ALL.items() if tx is not None}


def loss(params):
    """A sum of fourth powers: gradients of every size."""
    return sum(jnp.sum((x - 0.1) ** 4) for x in params.values())


def extra(name, value, grads):
    """The extra arguments of optimizers driven by the loss; the line search refuses others."""
    more = {"obj_fn": loss} if name == "sophia" else {}
    return {"value": value, "grad": grads, "value_fn": loss} | more
