"""The limits of a guard: the largest norm and the largest loss, by any threshold."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import _validate
from jaxclip._core.flat_tree import at_step
from jaxclip._core.types import Limit
from jaxclip._numerics.scaled_float import narrowed
from jaxclip._validate import short
from jaxclip.thresholds.base import Measured, Threshold
from jaxclip.thresholds.fixed import given
from jaxclip.transforms.guard import Seen


class Observed(NamedTuple):
    """The memories of the limits of norms and losses."""

    norms: Any
    losses: Any


class Limits(NamedTuple):
    """The largest norm and the largest loss. Made by `limits`, which validates.

    Attributes:
        norm: the limit of the norm.
        loss: the limit of the loss, if there is one.
        needs_loss: whether an update without a loss is an error.
    """

    norm: Threshold
    loss: Threshold | None
    needs_loss: bool

    @property
    def limited(self) -> tuple[bool, bool]:
        """Whether there is a limit of the norm, and of the loss."""
        return True, self.loss is not None

    def first(self, zero: jax.Array) -> Observed:
        """The memories before the first step."""
        return Observed(self.norm.init([zero]), self.loss.init([zero]) if self.loss else ())

    def compared(
        self, memory: Observed, seen: Seen
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None], Observed]:
        """Whether the norm or the loss exceeds its limit, the limits, and the next memories."""
        limit, norms = _one(self.norm, memory.norms, seen.measured)
        exceeds = seen.norm > narrowed(limit, seen.norm.dtype)
        if seen.loss is None and self.needs_loss:
            raise ValueError("value=None: loss_threshold needs update(..., value=loss)")
        if self.loss is None or seen.loss is None:
            return exceeds, (limit, None), Observed(norms, memory.losses)
        loss = seen.loss
        alone = seen.measured._replace(norms=[loss], of_tree=lambda: loss)
        largest, losses = _one(self.loss, memory.losses, alone)
        exceeds |= loss > narrowed(largest, loss.dtype)
        return exceeds, (limit, largest), Observed(norms, losses)


def limits(threshold: Limit | Threshold, loss_threshold: Limit | Threshold) -> Limits:
    """Validates the limits of a guard."""
    norm = threshold if isinstance(threshold, Threshold) else given(threshold, scope="global")
    loss = loss_threshold
    if not (loss is None or isinstance(loss, Threshold)):
        loss = _given_loss(loss)
    return Limits(norm, loss, loss is not None)


def _one(threshold: Threshold, memory: Any, measured: Measured) -> tuple[jax.Array, Any]:
    """The threshold of a single number, and the next memory."""
    (limit,), memory = threshold.update(memory, measured)
    return jnp.asarray(limit), memory


def _given_loss(value: Limit) -> Threshold:
    """A given limit of losses, which may be negative."""
    if _validate.is_tree(value):
        raise ValueError(f"loss_threshold={short(value)} must be one value: there is one loss")
    _validate.limits(value, "loss_threshold", scalar=True, signed=True)

    def update(memory: Any, measured: Measured) -> tuple[list[jax.Array], Any]:
        limit = at_step(value, measured.count)
        return [_validate.fitted(limit, (), "loss_threshold", "the loss")], memory

    return Threshold(lambda norms: (), update)
