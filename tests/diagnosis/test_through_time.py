"""`diagnose(through_time=)` on cells of three libraries, whose factor a step is known."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxclip

pytestmark = pytest.mark.relaxed
STEPS, WIDTH = 20, 3
X = 1e-9 * np.random.default_rng(0).normal(size=(STEPS, WIDTH)).astype(np.float32)
QUICK = ("nnx",)


class _EquinoxRnn(eqx.Module):
    i: eqx.nn.Linear
    h: eqx.nn.Linear

    def __init__(self, key):
        self.i, self.h = (eqx.nn.Linear(WIDTH, WIDTH, key=k) for k in jax.random.split(key))

    def __call__(self, h, x):
        return jnp.tanh(self.i(x) + self.h(h))


def _linen(kind):
    cell = {"rnn": nn.SimpleCell, "lstm": nn.LSTMCell}[kind](WIDTH)
    first = cell.initialize_carry(jax.random.key(0), (WIDTH,))
    params = jax.jit(cell.init)(jax.random.key(0), first, X[0])
    return params, lambda p, h, x: cell.apply(p, h, x)[0], first


def _nnx(kind):
    make = {"rnn": nnx.SimpleCell, "lstm": nnx.LSTMCell}[kind]
    cell = make(WIDTH, WIDTH, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(cell, nnx.Param, ...)
    first = jnp.zeros(WIDTH) if kind == "rnn" else (jnp.zeros(WIDTH),) * 2
    return params, lambda p, h, x: nnx.merge(graph, p, rest)(h, x)[0], first


def _equinox(kind):
    if kind == "rnn":
        return _EquinoxRnn(jax.random.key(0)), lambda p, h, x: p(h, x), jnp.zeros(WIDTH)
    cell = eqx.nn.LSTMCell(WIDTH, WIDTH, key=jax.random.key(0))  # its state is (h, c)
    return cell, lambda p, s, x: p(x, s[::-1])[::-1], (jnp.zeros(WIDTH),) * 2


BUILD = {"linen": _linen, "nnx": _nnx, "equinox": _equinox}


def recurrent(params, kind, gain, forget=0.0):
    """Recurrent weights `gain` times the identity (of an LSTM: those of the input); forget bias."""

    def new(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        gate, last = (["", *name.split("/")])[-2:]
        if kind == "rnn":
            is_matrix = gate in ("h", "dense_h") and x.ndim == 2
            return gain * jnp.eye(WIDTH) if is_matrix else x if x.ndim == 2 else 0 * x
        if name == "weight_hh":  # gates i, f, g, o of Equinox
            return jnp.zeros_like(x).at[2 * WIDTH : 3 * WIDTH].set(gain * jnp.eye(WIDTH))
        if name == "bias":
            return jnp.zeros_like(x).at[WIDTH : 2 * WIDTH].set(forget)
        if last == "bias":
            return jnp.full_like(x, forget if gate.startswith("hf") else 0.0)
        is_input = gate.startswith("hg")
        return gain * jnp.eye(WIDTH) * is_input if gate.startswith("h") else x

    return jax.tree_util.tree_map_with_path(new, params)


@functools.cache
def built(library, kind):
    params, step, first = BUILD[library](kind)

    def loss(p, shifts):
        def body(state, xs):
            x, shift = xs
            state = (state[0] + shift, state[1]) if kind == "lstm" else state + shift
            return step(p, state, x), None

        last, _ = jax.lax.scan(body, first, (jnp.asarray(X), shifts))
        return sum(map(jnp.sum, jax.tree.leaves(last)))

    order = jaxclip.diagnosis.layer_order(loss, params, jnp.zeros((STEPS, WIDTH)))
    return params, jax.jit(jax.grad(loss, argnums=(0, 1))), order


def diagnosed(library, kind, **how):
    params, gradients, order = built(library, kind)
    grads, shifts = gradients(recurrent(params, kind, **how), jnp.zeros((STEPS, WIDTH)))
    norms = np.linalg.norm(np.asarray(shifts, np.float64), axis=1)
    return jaxclip.diagnose(grads, order=order, through_time=norms), grads, order


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


CASES = [
    ("rnn", {"gain": 1.0}, 1.0, "healthy"),
    ("rnn", {"gain": 0.5}, 0.5, "vanishing"),
    ("rnn", {"gain": 0.0}, None, "vanishing"),
    ("rnn", {"gain": 1.5}, 1.5, "exploding"),
    ("lstm", {"gain": 0.0, "forget": 5.0}, _sigmoid(5), "healthy"),
    ("lstm", {"gain": 0.0, "forget": -2.0}, _sigmoid(-2), "vanishing"),
    # A state c near 0 becomes f c + i tanh(g o tanh(c)), with i = o = 1/2.
    ("lstm", {"gain": 4.0, "forget": 1.0}, _sigmoid(1) + 1, "exploding"),
]


CELLS = {"nnx": ("rnn", "lstm"), "linen": ("lstm",), "equinox": ("rnn",)}


@pytest.mark.parametrize(
    ("library", "kind", "how", "factor", "finding"),
    [
        pytest.param(library, *case, marks=() if library in QUICK else pytest.mark.slow)
        for library, kinds in CELLS.items()
        for case in CASES
        if case[0] in kinds
    ],
)
def test_cells(library, kind, how, factor, finding):
    found, grads, order = diagnosed(library, kind, **how)
    assert found.finding == finding
    said = found.findings[0]
    if factor is not None:
        np.testing.assert_allclose(found.time_factor, factor, rtol=1e-3)
    else:
        assert "from the last time step to the first the gradient norm is exactly 0" in said
    if finding == "exploding":
        assert "jaxclip.clip_by_global_norm bounds the step" in said
    assert not any("through_time=" in s for s in found.findings)
    if finding != "healthy":
        assert "a time step" in said or factor is None
        assert "gated cells (LSTM, GRU)" in said
    else:
        assert "a time step, over 20 steps" in said
    without = jaxclip.diagnose(grads, order=order)
    assert "give through_time= to see whether" in without.findings[-1]


def test_a_network_without_loops_is_not_asked_for_time():
    params = {name: jnp.ones((2, 2)) for name in "xyz"}
    order = jaxclip.diagnosis.layer_order(
        lambda p, x: x @ p["z"] @ p["x"] @ p["y"], params, np.ones((1, 2))
    )
    found = jaxclip.diagnose(params, order=order)
    assert (found.finding, len(found.findings)) == ("healthy", 1)


@pytest.mark.parametrize(
    ("norms", "finding"),
    [
        (np.arange(1000, 0, -1.0), "none"),  # a loss at each step: the norms add up
        (1.01 ** np.arange(1000), "vanishing"),
        (1.01 ** -np.arange(1000.0), "exploding"),
        (np.append(np.ones(99), 1000.0), "none"),  # the last step alone is no trend
        ([1.0, 1000.0], "none"),
        (np.arange(50, 0, -1.0), "healthy"),
        (np.append(np.ones(30), np.nan), "healthy"),
    ],
)
def test_limits_over_time(norms, finding):
    found = jaxclip.diagnose({"w": jnp.ones((2, 2))}, through_time=norms)
    assert found.finding == finding


def test_errors():
    with pytest.raises(ValueError, match=r"through_time of shape \(2, 2\) must have shape"):
        jaxclip.diagnose({"w": jnp.ones(2)}, through_time=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"through_time of shape \(0,\)"):
        jaxclip.diagnose({"w": jnp.ones(2)}, through_time=[])
