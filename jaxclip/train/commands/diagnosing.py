"""The diagnosis of a run's gradients, from its records and its network."""

import math

import jax

from jaxclip import diagnosis
from jaxclip.diagnosis import Diagnosis, LayerOrder
from jaxclip.train.config.presets import Config
from jaxclip.train.data import Data
from jaxclip.train.recording.history import History
from jaxclip.train.training import loop

# The loss of the best constant outputs for a number of classes with equally many examples.
CHANCE = {
    "cross_entropy": math.log,
    "mse": lambda classes: (classes - 1) / classes**2,
    "sse": lambda classes: (classes - 1) / classes,
}


def of_run(past: History, config: Config, data: Data) -> Diagnosis:
    """Returns the diagnosis of the recorded steps."""
    classes = int(data.train_labels.max()) + 1
    return diagnosis.of_metrics(
        past.telemetry,
        *("grads", "weights", "updates"),
        order=_order(config, data),
        loss=past.loss,
        chance=CHANCE[config.loss](classes),
    )


def _order(config: Config, data: Data) -> LayerOrder:
    """Returns the depths of the network's parameters."""
    network = loop.build_network(config, data)
    image = jax.ShapeDtypeStruct((1, data.train_images.shape[1]), data.train_images.dtype)

    def outputs(params, stats, images):
        return network.apply(params, stats, images, train=False)[0]

    return diagnosis.layer_order(outputs, network.params, network.stats, image)
