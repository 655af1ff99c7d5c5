"""The two entry points: a diagnosis of gradients, and one of the metrics that monitors recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxclip import _validate, norms
from jaxclip._core import flat_tree, stacks
from jaxclip._core.flat_tree import Flat
from jaxclip._core.measure import measure
from jaxclip._core.types import PyTree, Stacked
from jaxclip.diagnosis import activations, course, layers, monitor_log, report
from jaxclip.diagnosis.activations import Activation
from jaxclip.diagnosis.layers import Order, Table
from jaxclip.diagnosis.monitor_log import Metrics
from jaxclip.diagnosis.report import Diagnosis
from jaxclip.diagnosis.trend import Trend


@functools.partial(jax.jit, static_argnums=1)
def _measured(arrays: list[jax.Array], axes: tuple[int | None, ...]) -> list[jax.Array]:
    """The norms of all leaves and of the slices of stacks: one program, and one transfer."""
    return norms.leaf_norms(arrays, stacked=lambda name, leaf: axes[int(name)])


def diagnose(
    grads: PyTree,
    params: PyTree = None,
    updates: PyTree = None,
    *,
    stacked: Stacked = None,
    order: Order = None,
    through_time: ArrayLike | None = None,
    preactivations: PyTree = None,
    activation: Activation | None = None,
) -> Diagnosis:
    r"""Says whether the gradients of one step vanish or explode, layer by layer.

    A layer is the group of leaves whose keys differ only in the last one, as `kernel` and `bias`
    do; its norm is the 2-norm of these leaves together. Layers side by side stand at one place, as
    query, key and value do, and count together. With $n_1, \dots, n_L$ the norms at the places from
    input to output, the factor a layer is $(n_1 / n_L)^{1 / (L - 1)}$. One or two odd layers do not
    make a finding: the slope has to agree,

    $$\exp\Big(-\operatorname*{median}_{i<j} \frac{\log n_j - \log n_i}{j - i}\Big)$$

    A layer counts for this trend if it has a weight: a leaf of rank 2 or more that is not a bias.
    Normalization layers do not count. If no layer has a weight, all of them count. Layers of norm 0
    are left out of the factor; if the first layers have norm 0, their gradients have vanished.

    The places come from `order`. Without it, they come from the names if these have one series of
    numbers, such as `Dense_0`, `Dense_1`, beside layers without a number, whose place is unknown.
    If there is another number, as in `Dense_0` beside `SimpleCell_0`, nothing is said about depth.

    The gradient of a weight is the error, computed backward, times the activation, computed
    forward. In deep linear and ReLU networks the error grows towards the input as fast as the
    activation grows towards the output, so the gradient is level over depth, however large. The
    gradient of a bias is the error alone. So the trend of the biases is judged too, unless the
    network has normalization layers.

    A cell that `scan` uses in each step is one layer, in which gradients may vanish or explode
    through time. Depth says nothing about that; `through_time` does.

    If gradients are not finite, the diagnosis names the layer nearest the output that has one,
    because backpropagation spreads a NaN or inf from there to the layers nearer the input. If all
    layers have one, it began in the loss or in the forward pass; gradients alone cannot tell which.

    Args:
        grads: gradients of any model, as any pytree of floating-point arrays; other leaves are
            ignored.
        params: the parameters, with the same floating leaves, for the norms of the weights.
        updates: the updates added to the parameters, with the same floating leaves. With `params`,
            they give the ratio update/weight, about 1e-3 as a rule of thumb.
        stacked: the axis along which a leaf stacks layers for `jax.lax.scan`, or a function
            `(name, leaf) -> axis` or `None`, as for `jaxclip.monitor`, which also says how slices
            are named. Each slice counts as a leaf of a layer: `blocks/3/attn` is one.
        order: the result of `jaxclip.diagnosis.layer_order`, for any network. Or names of layers,
            or the keys they begin with, from input to output; layers below one entry stand at one
            place, unless they are numbered. Layers that it leaves out do not count for the trend.
        through_time: norms of the gradient with respect to the hidden state of a recurrent layer,
            one for each time step, the first step first; shape (steps,).
        preactivations: the inputs of the activation: arrays of shape (..., units), in a dict by
            name or in any pytree.
        activation: the elementwise function applied to them.

    Returns:
        A `Diagnosis`; `print` it.

    Raises:
        TypeError: if called under `jit` or another transformation; if `order` is a string.
        ValueError: if there is no floating-point leaf; if `params` or `updates` have other leaves;
            if `stacked` returns no axis of a leaf; if `order` names no layer; if `through_time`
            has not rank 1; if one of `preactivations` and `activation` is missing.

    Examples:
        >>> import jax.numpy as jnp, jaxclip
        >>> grads = {f"Dense_{i}": {"kernel": jnp.full((1, 1), 10.0**i)} for i in range(4)}
        >>> diagnosis = jaxclip.diagnose(grads)
        >>> print(diagnosis.finding, round(diagnosis.factor, 6))
        vanishing 0.1
        >>> print(diagnosis)
        vanishing: from the output to the input the gradient norm falls by a factor of 10 a
        layer, from 1e+03 to 1 over 4 layers. Clipping cannot make it larger; ReLU with He
        initialization, normalization and residual connections can.
        <BLANKLINE>
        layer    gradient
        Dense_0         1
        Dense_1        10
        Dense_2     1e+02
        Dense_3     1e+03

        The same layers in one leaf, for `lax.scan`:

        >>> stack = {"layers": {"kernel": 10.0 ** jnp.arange(4.0).reshape(4, 1, 1)}}
        >>> print(jaxclip.diagnose(stack, stacked=0).finding)
        vanishing

        A recurrent layer whose gradient falls by half in each time step:

        >>> found = jaxclip.diagnose(grads["Dense_0"], through_time=0.5 ** jnp.arange(20.0)[::-1])
        >>> print(found.finding, found.time_factor)
        vanishing 0.5

    References:
        Glorot, Bengio. Understanding the difficulty of training deep feedforward neural networks.
        AISTATS 2010.
        Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural networks. ICML
        2013.
        The ratio: Karpathy, notes of the course CS231n, Neural Networks Part 3.
    """
    flat = flat_tree.flatten(grads)
    if not flat.arrays:
        raise ValueError("grads has no floating-point leaf: there is nothing to look at")
    stacked = measure("leaf", stacked=stacked).stacked
    read = functools.partial(_norms, stacked=stacked)
    tables = _tables(read, grads=grads, params=params, updates=updates)
    ranks = _by_name(flat, stacked, list(map(_ranks, flat.arrays, stacks.axes(stacked, flat))))
    rows = layers.from_leaves(tables, ranks, order)
    return report.conclude(
        rows,
        course.of_steps(rows, np.arange(1)),
        order,
        activations.units(preactivations, activation),
        _time(through_time),
    )


def of_metrics(
    metrics: Metrics | Sequence[Metrics],
    gradients: str = "grads",
    weights: str | None = None,
    updates: str | None = None,
    *,
    order: Order = None,
    loss: ArrayLike | None = None,
    chance: float | None = None,
    first_step: int = 0,
) -> Diagnosis:
    """Makes the diagnosis of `diagnose` from the metrics of monitors, over one step or many.

    Numbers of many steps are medians over the steps in which all gradients are finite. Monitors do
    not record ranks, so here a layer counts if it has a leaf whose name is neither that of a bias
    (`b`, `bias`) nor that of a normalization (`scale`, `gamma`, `beta`, `offset`, `mean`, `var`).
    The order is that of the keys, which `lax.scan` and `jit` sort. Where leaves stack layers, give
    `stacked=` to the monitors: they name each layer.

    Args:
        metrics: the result of `jaxclip.metrics`, with scalars or with the arrays of shape (steps,)
            that `lax.scan` stacks; or a sequence of such dicts, one after the other.
        gradients: the name of the monitor of the gradients, first in the chain.
        weights: the name of the monitor of the parameters, `jaxclip.monitor(of="params")`.
        updates: the name of the monitor of the updates, last in the chain.
        order: as for `diagnose`.
        loss: the loss in each recorded step; shape (steps,).
        chance: the loss of a guess that knows nothing, `math.log(classes)` for a cross-entropy.
        first_step: the number of the first step, for metrics without the monitor's count.

    Returns:
        A `Diagnosis`.

    Raises:
        TypeError: if called under `jit` or another transformation; if `order` is a string,
            `chance` is no number or `first_step` is not a whole number.
        ValueError: if a monitor recorded nothing, or not the same leaves and steps as that of the
            gradients; if a value has rank 2 or more; if `order` names no layer; if `loss` has
            another shape.

    Examples:
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
        >>> diagnosis = jaxclip.diagnosis.of_metrics(log, "grads", "weights", "updates")
        >>> print(diagnosis.finding, diagnosis.nonfinite, diagnosis.layers[0].ratio)
        non-finite (2, 'Dense_0') [0.05 0.05  nan]
    """
    first_step = _validate.whole_number(first_step, "first_step", least=0)
    if chance is not None:
        _validate.real_number(chance, "chance")
    log = monitor_log.entries(metrics)
    read = functools.partial(monitor_log.recorded, log)
    tables = _tables(read, gradients=gradients, weights=weights, updates=updates)
    rows = layers.from_leaves(tables, {}, order)
    count = len(rows[0].gradient)
    steps = monitor_log.steps(log, gradients, count, first_step)
    series = functools.partial(monitor_log.series, log)
    rules, guards = course.counts(monitor_log.counted(log), series)
    past = course.of_steps(rows, steps)._replace(
        rules=rules,
        guards=guards,
        loss=monitor_log.of_each_step(loss, count, "loss"),
        chance=chance,
    )
    return report.conclude(rows, past, order)


def _time(norms: ArrayLike | None) -> Trend | None:
    """The trend over time steps."""
    if norms is None:
        return None
    monitor_log.check_concrete([norms], "through_time")
    array = np.asarray(jax.device_get(norms), np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"through_time of shape {array.shape} must have shape (steps,)")
    return Trend({i: array[i : i + 1] for i in range(len(array))})


def _tables(read: Callable[[PyTree, str], Table], **sources: PyTree) -> dict[str, Table]:
    """Reads the sources that are given, by field of `Layer`; each must match the gradients."""
    tables: dict[str, Table] = {}
    for field, argument in zip(("gradient", "weight", "update"), sources, strict=True):
        if sources[argument] is not None:
            tables[field] = read(sources[argument], argument)
            _check_match(tables["gradient"], tables[field], argument)
    return tables


def _norms(tree: PyTree, argument: str, stacked: Stacked) -> Table:
    """The norm of each floating leaf or slice, as an array of one step, by name."""
    flat = flat_tree.flatten(tree)
    monitor_log.check_concrete(flat.leaves, argument)
    found = jax.device_get(_measured(flat.arrays, tuple(stacks.axes(stacked, flat))))
    return {k: np.atleast_1d(x) for k, x in _by_name(flat, stacked, found).items()}


def _ranks(x: jax.Array, stack: int | None) -> np.ndarray:
    """The rank of a leaf, or that of each slice."""
    return np.asarray(x.ndim) if stack is None else np.full(x.shape[stack], x.ndim - 1)


def _by_name(flat: Flat, stacked: Stacked, values: list[np.ndarray]) -> dict[str, Any]:
    """A number for each floating leaf, or one for each slice, by name."""
    vectors = [x.reshape(-1) if x.ndim else x for x in values]
    return stacks.by_slice(dict(zip(stacks.names(stacked, flat), vectors, strict=True)))


def _check_match(gradients: Table, table: Table, name: str) -> None:
    """Raises unless the table has the leaves and the steps of the gradients."""
    missing, extra = sorted(gradients.keys() - table), sorted(table.keys() - gradients)
    if missing or extra:
        raise ValueError(
            f"{name} and the gradients differ: {name} lacks {missing}, has {extra} more"
        )
    wanted, steps = (len(next(iter(t.values()))) for t in (gradients, table))
    if steps != wanted:
        raise ValueError(f"{name} was recorded in {steps} steps, but the gradients in {wanted}")
