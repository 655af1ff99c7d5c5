"""The tutorials `forward` and `explode` in eager, object-oriented TensorFlow 2.

They are rewritten from the tutorials and have their own hyper-parameters, so the comparison reveals
a wrong preset. `benchmarks.epoch` times `Explode`, and `Compiled`, the same under `tf.function`.
"""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.tutorials.history import History
from jaxclip.train.data import Data

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
import tensorflow as tf

Weights = Sequence[tuple[np.ndarray, np.ndarray]]  # kernel and bias, layer by layer
CLASSES = 10


class Forward:
    """Three dense layers as variables, trained by hand: no optimizer, no clipping."""

    hidden: tuple[int, ...] = (256, 128)
    rate = 1e-3
    batch = 128
    epochs = 10

    def __init__(self, inputs: int, std: float = 0.1, weights: Weights | None = None):
        """Draws the weights unless they are given."""
        sizes = itertools.pairwise((inputs, *self.hidden, CLASSES))
        drawn = weights or [
            (tf.random.truncated_normal([m, n], stddev=std), tf.zeros([n])) for m, n in sizes
        ]
        self.layers = [(tf.Variable(kernel), tf.Variable(bias)) for kernel, bias in drawn]
        self.variables = [variable for layer in self.layers for variable in layer]

    def outputs(self, x: Any) -> Any:
        """Returns the outputs of the last layer, without activation."""
        *hidden, (kernel, bias) = self.layers
        for w, b in hidden:
            x = tf.nn.relu(x @ w + b)
        return x @ kernel + bias

    def gradients(self, x: Any, y: Any) -> tuple[Any, list[Any]]:
        """Returns the loss, mean over batch and classes, and its gradients."""
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.reduce_mean(tf.square(y - self.outputs(x)), axis=1))
        return loss, tape.gradient(loss, self.variables)

    def step(self, x: Any, y: Any) -> tuple[Any, ...]:
        """Takes a step and returns the loss."""
        loss, grads = self.gradients(x, y)
        for variable, grad in zip(self.variables, grads, strict=True):
            variable.assign_sub(self.rate * grad)
        return (loss,)

    def epoch(self, batches: Any) -> np.ndarray:
        """Takes a step for every batch; returns the numbers of each step as a row."""
        return np.array([[float(value) for value in self.step(x, y)] for x, y in batches])

    def test(self, images: Any, labels: Any) -> tuple[float, float]:
        """Returns the loss and the accuracy on the test images."""
        outputs = self.outputs(images)
        loss = tf.reduce_mean(tf.square(tf.one_hot(labels, CLASSES) - outputs))
        right = tf.argmax(outputs, axis=1, output_type=tf.int32) == labels
        return float(loss), float(tf.reduce_mean(tf.cast(right, tf.float32)))


class Explode(Forward):
    """A wider network with clipping by global norm, and norms before and after it."""

    hidden = (512, 256)
    rate = 0.1
    batch = 256
    epochs = 30
    limit = 15

    def __init__(self, inputs: int, std: float = 0.1, weights: Weights | None = None):
        """Adds the optimizer."""
        super().__init__(inputs, std, weights)
        self.optimizer = tf.keras.optimizers.SGD(learning_rate=self.rate)

    def step(self, x: Any, y: Any) -> tuple[Any, ...]:
        """Takes a step; returns the loss, all norms before clipping and all norms after it."""
        loss, grads = self.gradients(x, y)
        before = [tf.norm(grad) for grad in grads]
        grads, _ = tf.clip_by_global_norm(grads, self.limit)
        after = [tf.norm(grad) for grad in grads]
        self.optimizer.apply_gradients(zip(grads, self.variables, strict=True))
        return loss, *before, *after


class Compiled(Explode):
    """The same with step and test under `tf.function`; the numbers are fetched once an epoch."""

    def __init__(self, inputs: int, std: float = 0.1, weights: Weights | None = None):
        """Compiles at the first call."""
        super().__init__(inputs, std, weights)
        self.optimizer.build(self.variables)
        self.recorded_step = tf.function(lambda x, y: tf.stack(self.step(x, y)))
        self.outputs_of_test = tf.function(self.outputs)

    def epoch(self, batches: Any) -> np.ndarray:
        """Keeps each step's numbers as one tensor, and reads them all at the end."""
        return tf.stack([self.recorded_step(x, y) for x, y in batches]).numpy()


PROGRAMS: dict[str, type[Forward]] = {"forward": Forward, "explode": Explode}


def dataset(data: Data, batch: int, *, drop: bool = False) -> Any:
    """Returns the training images in file order with one-hot labels; may `drop` the last batch."""
    labels = tf.one_hot(data.train_labels, CLASSES)
    pairs = tf.data.Dataset.from_tensor_slices((tf.constant(data.train_images), labels))
    return pairs.batch(batch, drop_remainder=drop)


def run(
    name: str,
    data: Data,
    seed: int,
    epochs: int | None = None,
    std: float = 0.1,
    weights: Weights | None = None,
) -> History:
    """Runs a program from random weights; or from given weights, on full batches only."""
    tf.random.set_seed(seed)
    program = PROGRAMS[name](data.train_images.shape[1], std, weights)
    batches = dataset(data, program.batch, drop=weights is not None)
    test = tf.constant(data.test_images), tf.constant(data.test_labels)
    rows, scores = [], []
    for _ in range(epochs or program.epochs):
        rows.append(program.epoch(batches))
        scores.append(program.test(*test))
    steps = np.stack(rows)
    before, after = np.split(steps[0, :, 1:], 2, axis=1)
    return History(steps[:, :, 0], np.array(scores), before, after)


def second_steps(data: Data, draws: int) -> list[float]:
    """Returns the global norm of the second gradient of `explode`, for many draws of weights."""
    found = []
    for seed in range(draws):
        tf.random.set_seed(seed)
        program = Explode(data.train_images.shape[1])
        row = program.epoch(dataset(_first(data, 2 * program.batch), program.batch))[1]
        found.append(float(np.linalg.norm(row[1 : 1 + len(program.variables)])))
    return found


def _first(data: Data, count: int) -> Data:
    images, labels = data.train_images[:count], data.train_labels[:count]
    return data._replace(train_images=images, train_labels=labels)
