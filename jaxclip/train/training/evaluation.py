"""Evaluates the test images after each epoch: scores, and shares of dead and saturated units."""

from collections.abc import Callable

import jax

import jaxclip
from jaxclip.train.config.presets import Config
from jaxclip.train.training import losses, model

_IMAGES_FOR_UNITS = 1_000  # test images that decide whether a unit is dead or saturated


def build(config: Config, network: model.Network) -> Callable[..., dict[str, jax.Array]]:
    """Returns `evaluate(params, stats, images, labels) -> scores`."""
    activation = model.ACTIVATIONS[config.activation]

    def evaluate(params, stats, images, labels):
        hidden: list[jax.Array] = []
        outputs, _ = network.apply(params, stats, images, train=False, preactivations=hidden)
        scores = {
            "test_loss": losses.LOSSES[config.loss](outputs, labels),
            "test_accuracy": losses.accuracy(outputs, labels),
        }
        for i, preactivation in enumerate(hidden):
            some = preactivation[:_IMAGES_FOR_UNITS]
            dead, saturated = jaxclip.diagnosis.unit_shares(some, activation)
            scores |= {f"units/dead/layers/{i}": dead, f"units/saturated/layers/{i}": saturated}
        return scores

    return evaluate
