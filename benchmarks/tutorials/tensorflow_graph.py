"""The tutorials `value-clip` and `max-norm` in TensorFlow 1: a graph, placeholders, a session.

They are rewritten from the tutorials with `tf.compat.v1`, and have their own hyper-parameters.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.tutorials.history import History
from jaxclip.train.data import Data

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

v1 = tf.compat.v1
HIDDEN, CLASSES = (300, 100), 10
BATCH, EPOCHS = 50, 20
LIMIT = 1.0  # of the elements of a gradient, and of the norm of a row
RATE, LAST_RATE, DECAY_STEPS, POWER, MOMENTUM = 0.01, 0.001, 22_000, 0.9, 0.9
Weights = Sequence[tuple[np.ndarray, np.ndarray]]  # kernel and bias, layer by layer


class Program(NamedTuple):
    """The graph's inputs and outputs."""

    images: Any
    labels: Any
    loss: Any
    accuracy: Any
    train: Any
    rate: Any
    clips: list[Any]  # assignments to run after each step
    hidden: list[Any]  # kernels
    saver: Any


def max_norm(limit: float) -> Callable[[Any], None]:
    """Returns a regularizer that adds an assignment to a collection, and nothing to the loss."""

    def regularizer(kernel: Any) -> None:
        clipped = tf.clip_by_norm(kernel, clip_norm=limit, axes=1)
        v1.add_to_collection("max_norm", v1.assign(kernel, clipped))

    return regularizer


def dense(x: Any, width: int, name: str, regularizer: Callable[[Any], None] | None = None) -> Any:
    """Returns a layer's outputs before the activation, and its kernel."""
    he = v1.variance_scaling_initializer(scale=2.0, mode="fan_in", distribution="truncated_normal")
    with v1.variable_scope(name):
        kernel = v1.get_variable("kernel", (x.shape[1], width), initializer=he)
        bias = v1.get_variable("bias", (width,), initializer=v1.zeros_initializer())
    if regularizer is not None:
        regularizer(kernel)
    return x @ kernel + bias, kernel


def build(name: str, inputs: int) -> Program:
    """Builds the graph of a program."""
    images = v1.placeholder(tf.float32, (None, inputs), name="X")
    labels = v1.placeholder(tf.int32, (None,), name="y")
    regularizer = max_norm(LIMIT) if name == "max-norm" else None
    x, hidden = images, []
    for number, width in enumerate(HIDDEN, start=1):
        x, kernel = dense(x, width, f"hidden{number}", regularizer)
        x = tf.nn.relu(x)
        hidden.append(kernel)
    logits, _ = dense(x, CLASSES, "outputs")
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    loss = tf.reduce_mean(entropy)
    right = tf.cast(tf.math.in_top_k(labels, logits, 1), tf.float32)
    train, rate = (_clipped_by_value if name == "value-clip" else _decaying)(loss)
    clips = v1.get_collection("max_norm")
    scores = loss, tf.reduce_mean(right)
    return Program(images, labels, *scores, train, rate, clips, hidden, v1.train.Saver())


def _clipped_by_value(loss: Any) -> tuple[Any, Any]:
    optimizer = v1.train.GradientDescentOptimizer(RATE)
    pairs = optimizer.compute_gradients(loss)
    clipped = [(tf.clip_by_value(grad, -LIMIT, LIMIT), variable) for grad, variable in pairs]
    return optimizer.apply_gradients(clipped), tf.constant(RATE)


def _decaying(loss: Any) -> tuple[Any, Any]:
    step = v1.train.get_or_create_global_step()
    rate = v1.train.polynomial_decay(RATE, step, DECAY_STEPS, LAST_RATE, power=POWER)
    optimizer = v1.train.MomentumOptimizer(rate, momentum=MOMENTUM)
    return optimizer.minimize(loss, global_step=step), rate


def shuffled(count: int, seed: int) -> Callable[[int], np.ndarray]:
    """Returns a function that draws an epoch's batches: all examples in random order."""
    random = np.random.default_rng(seed)
    return lambda epoch: random.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH)


def run(
    name: str,
    data: Data,
    seed: int,
    epochs: int | None = None,
    weights: Weights | None = None,
    order: np.ndarray | None = None,
) -> History:
    """Runs a program from random weights; or from given weights and with given batches."""
    draw = (lambda epoch: order) if order is not None else shuffled(len(data.train_labels), seed)
    with tf.Graph().as_default():
        v1.set_random_seed(seed)
        program = build(name, data.train_images.shape[1])
        with session() as sess, tempfile.TemporaryDirectory() as folder:
            sess.run(v1.global_variables_initializer())
            if weights is not None:
                for variable, value in zip(v1.trainable_variables(), sum(weights, ()), strict=True):
                    variable.load(value, sess)
            steps = [_epoch(program, sess, data, draw(e)) for e in range(epochs or EPOCHS)]
            return _history(program, sess, data, steps, Path(folder) / "model.ckpt")


def session() -> Any:
    """Opens a session with as many threads as TensorFlow has in this process."""
    threads = {
        "intra_op_parallelism_threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "inter_op_parallelism_threads": tf.config.threading.get_inter_op_parallelism_threads(),
    }
    return v1.Session(config=v1.ConfigProto(**threads))


def _epoch(program: Program, sess: Any, data: Data, batches: np.ndarray) -> tuple[Any, ...]:
    """Takes a step for every batch; returns the losses, the last rate and the test scores."""
    losses = []
    for batch in batches:
        rate = sess.run(program.rate) if len(losses) == len(batches) - 1 else None
        given = {program.images: data.train_images[batch], program.labels: data.train_labels[batch]}
        losses.append(sess.run([program.loss, program.train], given)[0])
        if program.clips:
            sess.run(program.clips)
    return losses, rate, _scores(program, sess, data.test_images, data.test_labels)


def _scores(program: Program, sess: Any, images: np.ndarray, labels: np.ndarray) -> tuple:
    given = {program.images: images, program.labels: labels}
    return tuple(map(float, sess.run([program.loss, program.accuracy], given)))


def _history(
    program: Program, sess: Any, data: Data, steps: list[tuple[Any, ...]], path: Path
) -> History:
    """Returns the numbers of a trained session, also after saving and restoring it."""
    losses, rates, scores = map(np.array, zip(*steps, strict=True))
    program.saver.save(sess, str(path))
    rows = [np.linalg.norm(np.float64(k), axis=1).max() for k in sess.run(program.hidden)]
    _, train_accuracy = _scores(program, sess, data.train_images, data.train_labels)
    with session() as other:
        program.saver.restore(other, str(path))
        restored = _scores(program, other, data.test_images, data.test_labels)
    none = np.empty((losses.shape[1], 0))
    return History(losses, scores, none, none, rates, train_accuracy, restored, float(max(rows)))
