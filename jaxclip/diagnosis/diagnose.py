r"""Do the gradients vanish or explode? An answer in words, for the gradients of any model.

| finding | what must be so |
|---|---|
| `non-finite` | a gradient is NaN or inf |
| `exploding` | towards the input the norm grows by more than 1.5 a layer and 100 in all |
| `exploding` | the norm in the last 5 steps is above 1000 times that in the first 5 |
| `vanishing` | towards the input the norm falls by more than 1.5 a layer and 100 in all |
| `vanishing` | the norm is exactly 0 from the input on |
| `dead` | more than half of a layer's units have no slope at any example |
| `saturated` | over half of units and examples have no slope, if f is flat at both ends |

A trend over depth takes 3 layers or more, and numbers of several steps are medians. An activation f
has no slope at z where $|f'(z)|$ is 0 or below 1 % of its largest on [-10, 10].

Everything here runs on the host, outside of `jit`, except `unit_shares`. The finding is a rule of
thumb; the numbers are what was measured. How layers are ordered is in `_depth`, how the table above
is applied in `_findings`, and what is printed in `_report`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxclip import _validate as _checks
from jaxclip import norms
from jaxclip._core import flat_tree as _trees
from jaxclip.diagnosis import activations as _units
from jaxclip.diagnosis import layers as _depth
from jaxclip.diagnosis import monitor_log as _log
from jaxclip.diagnosis import report as _report
from jaxclip.diagnosis.activations import Units as Units
from jaxclip.diagnosis.activations import unit_shares as unit_shares
from jaxclip.diagnosis.layers import Layer as Layer
from jaxclip.diagnosis.report import Diagnosis as Diagnosis

_measured = jax.jit(norms.leaf_norms)  # one program, and one transfer, for all leaves


def diagnose(
    grads: Any,
    params: Any = None,
    updates: Any = None,
    *,
    order: Sequence[str] | None = None,
    preactivations: Any = None,
    activation: Callable[[Any], Any] | None = None,
) -> Diagnosis:
    r"""Says whether the gradients of one step vanish or explode, layer by layer.

    A layer is the leaves whose keys differ only in the last, as `kernel` and `bias` do; its norm is
    their 2-norm together. With $n_1, \dots, n_L$ those from input to output, the factor is

    $$\exp\Big(-\operatorname*{median}_{i<j} \frac{\log n_j - \log n_i}{j - i}\Big)$$

    The layers that count for this trend are those with a leaf of rank 2 or more that is no bias, so
    that normalizations do not; all of them, if there is none such. Those of norm 0 are left out of
    the factor; from the input on, they are vanished gradients.

    Their order is the tree's, but siblings that differ in a number follow it: `Dense_2` comes
    before `Dense_10`. JAX sorts the keys of a dict, so for names without numbers give `order`.

    The gradient of a weight is the error on its way back times the activation on its way forward.
    In deep linear and ReLU networks one grows (or falls) towards the input as the other does
    towards the output, and the product is level over depth, however large. So the biases, whose
    gradient is the error alone, are judged too, where no layer normalizes.

    If gradients are not finite, the layer named is the one nearest the output of those. On the way
    back from the loss a NaN or inf spreads to what comes after it, so those nearer the input are
    its consequence. Where it is the layer at the output, it began there, in the loss or on the way
    forward, which gradients alone cannot tell apart.

    Args:
        grads: gradients of any model, as any pytree of floating-point arrays; other leaves are
            ignored.
        params: the parameters, with the same floating leaves, for the norms of the weights.
        updates: what is added to them, likewise. With `params` it gives the ratio update/weight,
            about 1e-3 as a rule of thumb.
        order: names of layers, or the keys they begin with, from input to output. Layers that it
            leaves out stay in the table, after the others, and do not count for the trend.
        preactivations: arrays of shape (..., units) by name, what the activation is applied to, as
            a dict or any pytree.
        activation: the elementwise function applied to them.

    Returns:
        A `Diagnosis`; `print` it.

    Raises:
        TypeError: if called under `jit` or another transformation; if `order` is a string.
        ValueError: if there is no floating-point leaf; if `params` or `updates` have other leaves;
            if `order` names no layer; if one of `preactivations` and `activation` is missing.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> grads = {f"Dense_{i}": {"kernel": jnp.full((1, 1), 10.0**i)} for i in range(4)}
        >>> found = jaxclip.diagnose(grads)
        >>> print(found.finding, round(found.factor, 6))
        vanishing 0.1
        >>> print(found)
        vanishing: from the output to the input the gradient norm falls by a factor of 10 a
        layer, from 1e+03 to 1 over 4 layers. Clipping cannot make it larger; ReLU with He
        initialization, normalization and residual connections can.
        <BLANKLINE>
        layer    gradient
        Dense_0         1
        Dense_1        10
        Dense_2     1e+02
        Dense_3     1e+03

    References:
        Glorot, Bengio. Understanding the difficulty of training deep feedforward neural networks.
        AISTATS 2010.
        Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural networks. ICML
        2013.
        The ratio: Karpathy, notes of the course CS231n, Neural Networks Part 3.
    """
    gradients, ranks = _norms_of(grads=grads)
    if not gradients:
        raise ValueError("grads has no floating-point leaf: there is nothing to look at")
    weights = None if params is None else _same(gradients, _norms_of(params=params)[0], "params")
    steps = None if updates is None else _same(gradients, _norms_of(updates=updates)[0], "updates")
    rows = _depth.layers(gradients, weights, steps, ranks, order)
    return _report.diagnosis(rows, _units.of_layers(preactivations, activation), 0)


def of_metrics(
    metrics: Any,
    gradients: str = "grads",
    weights: str | None = None,
    updates: str | None = None,
    *,
    order: Sequence[str] | None = None,
    first_step: int = 0,
) -> Diagnosis:
    """Says the same as `diagnose` of what monitors recorded, in one step or in many.

    Numbers of many steps are medians, over the steps in which all is finite. The shapes of leaves
    are not recorded, so that the layers that count are those with a leaf not called as a bias or as
    a part of a normalization is: `b`, `bias`, `scale`, `gamma`, `beta`, `offset`, `mean`, `var`.
    The order is that of the keys, which `lax.scan` and `jit` sort.

    Args:
        metrics: what `jaxclip.metrics` returns, its values scalars or arrays of shape (steps,) as
            `lax.scan` stacks them; or a sequence of such dicts, one after the other.
        gradients: the name of the monitor of the gradients, first in the chain.
        weights: the name of the monitor of the parameters, `jaxclip.monitor(of="params")`.
        updates: the name of the monitor of the updates, last in the chain.
        order: as for `diagnose`.
        first_step: the number of the first step.

    Returns:
        A `Diagnosis`.

    Raises:
        TypeError: if called under `jit` or another transformation; if `order` is a string or
            `first_step` no whole number.
        ValueError: if a monitor recorded nothing, or not the same leaves and steps as that of the
            gradients; if a value has rank 2 or more; if `order` names no layer.

    Example:
        >>> import jax, jax.numpy as jnp, jaxclip, optax
        >>> tx = optax.chain(
        ...     jaxclip.monitor(name="grads"),
        ...     optax.sgd(0.1),
        ...     jaxclip.monitor(name="updates"),
        ...     jaxclip.monitor(of="params", name="weights"),
        ... )
        >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2))}}
        >>> def step(state, grad):
        ...     grads = {"Dense_0": {"kernel": jnp.full((2, 2), grad)}}
        ...     _, state = tx.update(grads, state, params)
        ...     return state, jaxclip.metrics(state)
        >>> _, log = jax.lax.scan(step, tx.init(params), jnp.array([0.5, 0.5, jnp.nan]))
        >>> found = jaxclip.diagnosis.of_metrics(log, "grads", "weights", "updates")
        >>> print(found.finding, found.nonfinite, found.layers[0].ratio)
        non-finite (2, 'Dense_0') [0.05 0.05  nan]
    """
    first = _checks.whole_number(0, first_step=first_step)
    log = _log.entries(metrics)
    table = _log.recorded(log, gradients=gradients)
    weight, update = (
        None if name is None else _same(table, _log.recorded(log, **{argument: name}), argument)
        for argument, name in (("weights", weights), ("updates", updates))
    )
    rows = _depth.layers(table, weight, update, {}, order)
    return _report.diagnosis(rows, (), first)


def _norms_of(**argument: Any) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The norm of every floating leaf as an array of one step, and its rank, by name."""
    ((name, tree),) = argument.items()
    flat = _trees.flatten(tree)
    _log.check_known(flat.leaves, name)
    found = jax.device_get(_measured(flat.arrays))
    ranks = [x.ndim for x in flat.arrays]
    table = dict(zip(flat.names, map(np.atleast_1d, found), strict=True))
    return table, dict(zip(flat.names, ranks, strict=True))


def _same(gradients: _depth.Table, table: dict[str, Any], name: str) -> dict[str, Any]:
    """The table, if it has the leaves and the steps of the gradients'."""
    missing, more = sorted(gradients.keys() - table), sorted(table.keys() - gradients)
    if missing or more:
        raise ValueError(
            f"{name} and the gradients differ: {name} lacks {missing}, has {more} more"
        )
    steps, own = (len(next(iter(values.values()))) for values in (gradients, table))
    if steps != own:
        raise ValueError(f"{name} was recorded in {own} steps, but the gradients in {steps}")
    return table
