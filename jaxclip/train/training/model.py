"""The network: a multilayer perceptron in Flax NNX, and a functional view of it.

A scan trains a plain tree of arrays, so the module is split once and merged again inside the step.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

Tree = Any

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "swish": jax.nn.swish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}

_initializers = jax.nn.initializers
# Each takes the standard deviation; those that scale by fan-in or fan-out ignore it.
INITIALIZERS: dict[str, Callable[[float], Callable[..., jax.Array]]] = {
    # As TensorFlow's `truncated_normal`: cut at two standard deviations and not rescaled, so the
    # draws have a standard deviation of 0.88 `std`. JAX's does the same.
    "truncated_normal": lambda std: _initializers.truncated_normal(std),
    "normal": lambda std: _initializers.normal(std),
    "he": lambda std: _initializers.variance_scaling(2.0, "fan_in", "truncated_normal"),
    "lecun": lambda std: _initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
    "glorot": lambda std: _initializers.variance_scaling(1.0, "fan_avg", "uniform"),
}

DTYPES = ("float32", "bfloat16", "float16")


class MLP(nnx.Module):
    """Linear layers with an activation between them, and none after the last."""

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        rngs: nnx.Rngs,
        activation: str,
        init: str,
        init_std: float,
        batch_norm: bool = False,
        dropout: float = 0.0,
        dtype: str = "float32",
        axis: str | None = None,
    ):
        """Draws the kernels; biases start at 0.

        Args:
          sizes: the width of every layer, inputs and outputs included.
          rngs: the source of random numbers.
          activation: a name in `ACTIVATIONS`.
          init: a name in `INITIALIZERS`.
          init_std: the standard deviation, for initializers that take one.
          batch_norm: whether to normalize each hidden layer before its activation.
          dropout: the share of hidden activations that a training step sets to 0.
          dtype: the type of parameters, activations and gradients.
          axis: the mesh axis that shards a batch, if communication is manual.
        """
        kernel_init = INITIALIZERS[init](init_std)
        kind = jnp.dtype(dtype)
        self.activation = ACTIVATIONS[activation]
        self.layers = nnx.List(
            nnx.Linear(m, n, dtype=kind, param_dtype=kind, kernel_init=kernel_init, rngs=rngs)
            for m, n in itertools.pairwise(sizes)
        )
        normed = sizes[1:-1] if batch_norm else ()
        self.norms = nnx.List(
            nnx.BatchNorm(n, dtype=kind, param_dtype=kind, axis_name=axis, rngs=rngs)
            for n in normed
        )
        self.dropout = nnx.Dropout(dropout) if dropout else None

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
        preactivations: list[jax.Array] | None = None,
    ) -> jax.Array:
        """Computes the outputs.

        Args:
          x: a batch of inputs.
          train: whether to normalize by the batch, updating its statistics, and to drop out.
          key: the random key of dropout; needed to train with it.
          preactivations: a list to which each hidden layer's preactivations are appended.

        Returns:
          The last layer's outputs.
        """
        *hidden, last = self.layers
        rngs = None if key is None else nnx.Rngs(dropout=key)
        for i, layer in enumerate(hidden):
            x = layer(x)
            if self.norms:
                x = self.norms[i](x, use_running_average=not train)
            if preactivations is not None:
                preactivations.append(x)
            x = self.activation(x)
            if self.dropout is not None:
                x = self.dropout(x, deterministic=not train, rngs=rngs)
        return last(x)


class Network(NamedTuple):
    """A module's functional view: its parameters, its statistics, and a function of them."""

    params: Tree
    stats: Tree
    apply: Callable[..., tuple[jax.Array, Tree]]


def build(sizes: Sequence[int], seed: int, dtype: str = "float32", **settings: Any) -> Network:
    """Draws an `MLP` and splits it.

    Args:
      sizes: the width of every layer, inputs and outputs included.
      seed: the seed of the weights.
      dtype: the type of parameters, activations and gradients.
      **settings: the other keywords of `MLP`.

    Returns:
      A `Network` whose `apply(params, stats, x, train=..., key=..., preactivations=...)` returns
      the outputs and the new statistics. Both trees are plain dicts:
      `{"layers": {0: {"bias": ..., "kernel": ...}, ...}}`
    """
    module = MLP(sizes, rngs=nnx.Rngs(seed), dtype=dtype, **settings)
    graph, params, stats = nnx.split(module, nnx.Param, ...)

    def apply(params: Tree, stats: Tree, x: jax.Array, **options: Any) -> tuple[jax.Array, Tree]:
        model = nnx.merge(graph, params, stats)
        outputs = model(x.astype(dtype), **options)
        return outputs, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    return Network(nnx.to_pure_dict(params), nnx.to_pure_dict(stats), apply)
