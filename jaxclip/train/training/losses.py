"""Loss functions: outputs and labels to one number, in float32.

`mse` and `sse` differ by the number of classes, a factor. It scales the gradient too, so the same
clipping threshold clips more under `sse`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def mse(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the squared distance to the one-hot label, mean over batch and classes."""
    return jnp.mean(_squares(outputs, labels))


def sse(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the squared distance to the one-hot label, mean over the batch."""
    return jnp.mean(jnp.sum(_squares(outputs, labels), axis=-1))


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of the softmax, mean over the batch."""
    outputs = outputs.astype(jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))


def _squares(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    outputs = outputs.astype(jnp.float32)
    return jnp.square(jax.nn.one_hot(labels, outputs.shape[-1]) - outputs)


def accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the fraction of examples whose largest output is that of the label."""
    return jnp.mean((jnp.argmax(outputs, axis=-1) == labels).astype(jnp.float32))


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mse": mse,
    "sse": sse,
    "cross_entropy": cross_entropy,
}
