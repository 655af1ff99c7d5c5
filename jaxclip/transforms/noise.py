r"""The gradient noise scale: how large a batch is worth its cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip import _validate
from jaxclip._core import state as states
from jaxclip._core.examples import Parts, examples
from jaxclip._core.flat_tree import flatten
from jaxclip._core.measure import measure
from jaxclip._core.types import AxisName, PyTree
from jaxclip._numerics import collectives
from jaxclip._numerics.scaled_float import narrowed, power_of_two_near, unlimited


class NoiseScaleState(NamedTuple):
    """The state of `noise_scale`.

    Attributes:
        noise_scale: the estimate; 0 before the first, inf where no gradient is seen in the noise,
            or under `jax.debug_infs` the largest float; float32 scalar.
        unit: the largest norm so far, as a power of two; float32 scalar.
        mean_signal: the average of the squared norm of the gradient, divided by `unit` twice.
        mean_noise: the average of the trace of its covariance, divided by `unit` twice.
        update_count: updates so far; int32 scalar.
        nonfinite_count: updates in which a norm was NaN or inf; int32 scalar.
    """

    noise_scale: jax.Array
    unit: jax.Array
    mean_signal: jax.Array
    mean_noise: jax.Array
    update_count: jax.Array
    nonfinite_count: jax.Array

    def scalars(self) -> dict[str, jax.Array]:
        """The recorded scalars by name."""
        return states.recorded(self, "unit", "mean_signal", "mean_noise")


def noise_scale(
    small_batch: int, big_batch: int, *, decay: float = 0.99, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    r"""Passes on the mean of the gradients of micro-batches, and records the gradient noise scale.

    $$G^2 = \frac{B n_B^2 - b \, n_b^2}{B - b}, \qquad S = \frac{n_b^2 - n_B^2}{1/b - 1/B}, \qquad
      \text{noise scale} = \frac{\overline S}{\overline{G^2}}$$

    with the norm $n_B$ of the mean, and the mean $n_b^2$ of the squared norms of the micro-batches.
    Their expected values are the squared norm of the true gradient and the trace of the covariance
    of one example's gradient. The bars are moving averages; both start at 0 and are short by the
    same factor, so their ratio needs no correction. An average of the ratios would be biased.

    The ratio is the batch size at which noise and gradient are equally large. A batch far below it
    gives nearly the same progress per example, and one far above it nearly none for the rest.

    It comes first in a chain: its input has an axis of micro-batches in every leaf, and its output
    has none. Nothing is measured twice: under `jit` a global norm right after it is the same
    computation as the norm of the mean, which XLA makes once. With gradients of single
    examples, b is 1.

    A step with a NaN or inf is passed on as its mean, changes no average and is counted. Where
    $\overline S$ is not above 0 the record is 0; else, where $\overline{G^2}$ is not, it is inf.

    Args:
        small_batch: b, the number of examples in a micro-batch.
        big_batch: B, the number of examples in all micro-batches of an update, on all devices.
        decay: the smoothing of the averages, at least 0 and below 1.
        axis_name: mesh axes that split the micro-batches, as for `jaxclip.per_example`.

    Returns:
        A transformation whose state is a `NoiseScaleState`.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if B is not a larger multiple of b, or `decay` is not in its range; in
            `update`, if a leaf does not have B/b micro-batches.

    Examples:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> tx = optax.chain(jaxclip.noise_scale(8, 16), jaxclip.clip_by_global_norm(1.0))
        >>> grads = jnp.array([[3.0, 0.0], [3.0, 2.0]])  # of two micro-batches
        >>> updates, state = tx.update(grads, tx.init(jnp.zeros(2)))
        >>> print(jaxclip.metrics(state)["noise_scale/noise_scale"])
        1.7777778

    References:
        McCandlish, Kaplan, Amodei, An empirical model of large-batch training, 2018,
        arXiv:1812.06162, appendix A.1.
    """
    b = _validate.known_size(_validate.whole_number(small_batch, "small_batch"), "small_batch")
    big = _validate.known_size(_validate.whole_number(big_batch, "big_batch"), "big_batch")
    if big <= b or big % b:
        raise ValueError(
            f"big_batch={big} must be a multiple of small_batch={b}, at least twice as large: "
            "one size of batch says nothing about noise"
        )
    _validate.between(decay, 0, 1, "decay")
    if not _validate.is_traced(decay) and float(decay) == 1:
        raise ValueError("decay=1 must be below 1: the averages would never move")
    how = examples(0, "mean", None, axis_name)._replace(leaves_out=False)
    rule = measure("global")
    kind = states.named(NoiseScaleState, "noise_scale")

    def first(params: PyTree) -> NoiseScaleState:
        del params
        numbers = [jnp.zeros((), jnp.float32) for _ in range(4)]
        return kind(*numbers, *[jnp.zeros((), jnp.int32) for _ in range(2)])

    init, check = states.checked(first, kind)

    def norm(tree: PyTree) -> jax.Array:
        return narrowed(rule.norms(flatten(tree))[0].number, jnp.float32)

    def parts(own: jax.Array, row: jax.Array, good: jax.Array) -> Parts:
        del row, good
        return Parts(largest=own, kept=own)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, Any]:
        del extra_args
        state = check(state, updates)
        found = how.reduced(updates, lambda tree: (tree, norm(tree)), parts, params=params)
        small, most, whole = found.parts.kept, found.parts.largest, norm(found.tree)
        number = small.size * collectives.shards(found.axes)
        if flatten(updates).arrays and number != big // b:
            raise ValueError(
                f"the updates have {number} micro-batches, but big_batch={big} and small_batch={b} "
                f"make {big // b}"
            )
        finite = jnp.isfinite(most) & jnp.isfinite(whole)
        unit = power_of_two_near(jnp.where(finite, most, 1))
        unit = jnp.maximum(state.unit, jnp.where(finite, unit, 0))
        by = jnp.where(unit > 0, unit, 1)
        squares = jnp.where(finite, jnp.square(small / by), 0)
        n_b = collectives.sums(jnp.sum(squares), found.axes) / number
        n_big = jnp.where(finite, jnp.square(whole / by), 0)
        signal = (big * n_big - b * n_b) / (big - b)
        noise = (n_b - n_big) / (1 / b - 1 / big)
        keep = jnp.where(finite, narrowed(_validate.number(decay), jnp.float32), 1)
        down = jnp.square(state.unit / by)
        signal = keep * state.mean_signal * down + (1 - keep) * signal
        noise = keep * state.mean_noise * down + (1 - keep) * noise
        ratio = noise / jnp.where(signal > 0, signal, 1)
        ratio = jnp.where(signal > 0, ratio, unlimited(jnp.float32))
        return found.tree, state._replace(
            noise_scale=jnp.where(noise > 0, ratio, 0),
            unit=unit,
            mean_signal=signal,
            mean_noise=noise,
            update_count=states.increased(state.update_count),
            nonfinite_count=states.increased(state.nonfinite_count, ~finite),
        )

    return optax.GradientTransformationExtraArgs(init, update)
