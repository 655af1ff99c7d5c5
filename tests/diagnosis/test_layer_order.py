"""`layer_order`: the depth of each leaf, written out for programs of known depth."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import jaxclip
from jaxclip.diagnosis import LayerOrder, layer_order

pytestmark = pytest.mark.relaxed
W, V, X = jnp.ones((3, 3)), jnp.ones(3), jnp.ones((2, 3))


def dense(layer, x):
    return jnp.tanh(x @ layer["w"] + layer["b"])


def layers(*names):
    return {name: {"w": W, "b": V} for name in names}


def places(function, params, *batch):
    return layer_order(function, params, *batch).places


# ---- programs


def _twice(f):
    @jax.custom_vjp
    def g(p, x):
        return f(p, x)

    g.defvjp(lambda p, x: (f(p, x), None), lambda _, y: (None, y))
    return g


def _jvp(f):
    g = jax.custom_jvp(f)
    g.defjvp(lambda primals, tangents: (f(*primals), f(*primals)))
    return g


def _cond(f):
    return lambda p, x: jax.lax.cond(x.sum() > 0, f, lambda p, x: x, p, x)


def _vmapped(f):
    return lambda p, x: jax.vmap(functools.partial(f, p))(x)


CALLS = {"plain": lambda f: f, "jit": jax.jit, "remat": jax.checkpoint, "custom_vjp": _twice,
         "custom_jvp": _jvp, "cond": _cond, "vmap": _vmapped,
         "nested": lambda f: jax.jit(jax.checkpoint(_twice(f)))}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_order_through_calls(call):
    """Names in any order but that of the network."""
    one = CALLS[call](dense)

    def loss(p, x):
        for name in ("z", "a", "m"):
            x = one(p[name], x)
        return x.sum()

    found = layer_order(loss, layers("a", "m", "z"), X)
    assert found.places == {"z/w": 1, "z/b": 1, "a/w": 2, "a/b": 2, "m/w": 3, "m/b": 3}
    assert list(dict.fromkeys(name[0] for name in found.places)) == ["z", "a", "m"]
    assert found.recurrent == frozenset()


def test_side_by_side_and_residual():
    """Query, key and value have one depth, and so have both sides of a residual block."""
    params = dict.fromkeys(("o", "k", "q", "v", "skip", "up", "end", "pos", "unused"), W)
    params["g"] = V

    def loss(p, x):
        x = x + p["pos"][:2]
        q, k, v = (x @ p[name] for name in ("q", "k", "v"))
        a = jax.nn.softmax(q @ k.T) @ v @ p["o"]
        x = a + (p["g"] * x) @ p["skip"]
        return ((x + jnp.tanh(x @ p["up"])) @ p["end"]).sum()

    assert places(loss, params, X) == {
        "pos": 1, "g": 1, "q": 1, "k": 1, "v": 1, "skip": 1, "o": 2, "up": 3, "end": 4,
    }  # fmt: skip


def test_tied_weights_have_no_place():
    params = {"embed": W, "mid": W}
    loss = lambda p, i: (p["embed"][i] @ p["mid"] @ p["embed"].T).sum()  # noqa: E731
    assert places(loss, params, jnp.arange(2)) == {"mid": 2}
    assert layer_order(loss, params, jnp.arange(2)).place("embed") is None


# ---- loops


def test_recurrent_cells():
    """A cell that `scan` or `while_loop` uses in each step is one layer."""
    params = {"b": V, "h": W, "i": W, "head": W}

    def cell(p, h, x):
        return jnp.tanh(h @ p["h"] + x @ p["i"] + p["b"])

    def scanned(p, xs):
        return jax.lax.scan(lambda h, x: (cell(p, h, x), None), V, xs)[0] @ p["head"]

    def looped(p, xs):
        return (
            jax.lax.fori_loop(0, xs.sum().astype(int), lambda i, h: cell(p, h, xs[i]), V)
            @ p["head"]
        )

    for loss in (scanned, looped):
        found = layer_order(loss, params, jnp.ones((5, 3)))
        assert found.places == {"b": 1, "h": 1, "i": 1, "head": 2}
        assert found.recurrent == {"b", "h", "i"}


def test_a_state_meets_its_weights_although_it_starts_as_a_constant():
    """The first weight would else seem to stand beside the data that is added to its output."""
    params = {"first": W, "second": W}
    body = lambda p: lambda h, x: (jnp.tanh((h @ p["first"] + x) @ p["second"]), None)  # noqa: E731
    loss = lambda p, xs: jax.lax.scan(body(p), V, xs)[0]  # noqa: E731
    assert places(loss, params, jnp.ones((5, 3))) == {"first": 1, "second": 2}


def test_positions_that_a_loop_takes_are_no_stack():
    params = {"pos": jnp.ones((5, 3)), "h": W}
    body = lambda p: lambda h, x: (jnp.tanh((h + x[0] + x[1]) @ p["h"]), None)  # noqa: E731
    loss = lambda p, xs: jax.lax.scan(body(p), V, (xs, p["pos"]))[0]  # noqa: E731
    found = layer_order(loss, params, jnp.ones((5, 3)))
    assert found.places == {"pos": 1, "h": 1}
    assert found.recurrent == {"h"}


@pytest.mark.parametrize("reverse", [False, True])
def test_each_slice_of_a_stack_has_a_depth(reverse):
    params = {"in": W, "blocks": {"up": jnp.ones((4, 3, 3)), "down": jnp.ones((4, 3, 3)),
                                  "gain": jnp.ones((4, 3))}, "head": W}  # fmt: skip

    def block(x, p):
        return x + jnp.tanh(p["gain"] * x @ p["up"]) @ p["down"], None

    def loss(p, x):
        x, _ = jax.lax.scan(jax.checkpoint(block), x @ p["in"], p["blocks"], reverse=reverse)
        return x @ p["head"]

    found = layer_order(loss, params, X)
    turned = slice(None, None, -1) if reverse else slice(None)
    assert found.places == {
        "in": 1, "blocks/gain": (1, 3, 5, 7)[turned], "blocks/up": (2, 4, 6, 8)[turned],
        "blocks/down": (3, 5, 7, 9)[turned], "head": 10,
    }  # fmt: skip
    assert found.recurrent == frozenset()
    assert found.place("blocks/2/up") == (4 if reverse else 6)
    for unknown in ("blocks/up", "blocks/4/up", "blocks/x/up", "other/1/up", "2"):
        assert found.place(unknown) is None


def test_stacks_of_two_levels():
    """Groups of layers: the slices of a group have no name of their own, so their first depth."""
    params = {"w": jnp.ones((2, 4, 3, 3)), "head": W}
    inner = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
    outer = lambda x, w: (jax.lax.scan(inner, x, w)[0], None)  # noqa: E731
    found = places(lambda p, x: jax.lax.scan(outer, x, p["w"])[0] @ p["head"], params, X)
    assert found["w"] == (1, 2, 3, 4)
    assert found["head"] == 9


# ---- arguments


def test_arguments():
    """Shapes suffice; data may be closed over; leaves that are no arrays pass."""
    params = layers("b", "a")
    loss = lambda p, x, times=1: dense(p["a"], dense(p["b"], x)) * times  # noqa: E731
    want = layer_order(loss, params, X)
    assert want == layer_order(loss, *jax.eval_shape(lambda: (params, X)), 2)
    assert want == layer_order(lambda p: loss(p, X), params)
    assert places(lambda p: 1.0, params) == {}
    with pytest.raises(ValueError, match="params has no floating-point leaf"):
        layer_order(loss, {"n": 1})
    assert LayerOrder({"a": 1}, frozenset()).place("a") == 1


# ---- the three libraries


class _Rnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.RNN(nn.LSTMCell(4))(x)[:, -1])


def test_linen():
    x = jnp.ones((2, 5, 3))
    params = jax.eval_shape(_Rnn().init, jax.random.key(0), x)
    found = layer_order(_Rnn().apply, params, x)
    cell = {k for k in found.places if "LSTMCell_0" in k}
    assert {k: v for k, v in found.places.items() if k not in cell} == {
        "params/Dense_0/kernel": 2, "params/Dense_0/bias": 2,
    }  # fmt: skip
    assert {found.places[k] for k in cell} == {1}
    assert found.recurrent == cell
    assert len(cell) == 12


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.z, self.a = (nnx.Linear(3, 3, rngs=rngs) for _ in range(2))
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.a(nnx.relu(self.norm(self.z(x))))


def test_nnx():
    graph, params, rest = nnx.split(_Nnx(nnx.Rngs(0)), nnx.Param, ...)
    found = places(lambda p, rest, x: nnx.merge(graph, p, rest)(x), params, rest, X)
    assert found == {
        "z/kernel": 1, "z/bias": 1, "norm/scale": 1, "norm/bias": 1, "a/kernel": 2, "a/bias": 2,
    }  # fmt: skip


def test_equinox():
    model = eqx.nn.MLP(3, 3, 3, 2, key=jax.random.key(0))
    found = places(lambda m, x: jax.vmap(m)(x), model, X)
    assert found == {f"layers/{i}/{k}": i + 1 for i in range(3) for k in ("weight", "bias")}


def test_diagnose_names_the_leaves_alike():
    """The names of the order are those of the layers, whatever wraps the arrays."""
    model = _Nnx(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    found = places(lambda p, rest, x: nnx.merge(graph, p, rest)(x), params, rest, X)
    rows = {row.name for row in jaxclip.diagnose(params).layers}
    assert {name.rpartition("/")[0] for name in found} == rows
