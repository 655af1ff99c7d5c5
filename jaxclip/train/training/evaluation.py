"""What is measured on the test images after each epoch: scores, and units that do nothing."""

from collections.abc import Callable

import jax

import jaxclip
from jaxclip.train.config.presets import Config
from jaxclip.train.training import losses, model

_JUDGED = 1_000  # test images by which units are judged dead or saturated


def evaluation(config: Config, network: model.Network) -> Callable[..., dict[str, jax.Array]]:
    """Returns what measures the test images: loss, accuracy, and each hidden layer's idle units."""
    activation = model.ACTIVATIONS[config.activation]

    def evaluate(params, stats, images, labels):
        seen: list[jax.Array] = []
        outputs, _ = network.apply(params, stats, images, train=False, seen=seen)
        scores = {
            "test_loss": losses.LOSSES[config.loss](outputs, labels),
            "test_accuracy": losses.accuracy(outputs, labels),
        }
        for i, preactivation in enumerate(seen):
            some = preactivation[:_JUDGED]
            dead, saturated = jaxclip.diagnosis.unit_shares(some, activation)
            scores |= {f"units/dead/layers/{i}": dead, f"units/saturated/layers/{i}": saturated}
        return scores

    return evaluate
