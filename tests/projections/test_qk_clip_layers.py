"""How `qk_clip` finds attention layers and their logits: Flax Linen, NNX, stacks, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip.projections import linen_roles, nnx_roles
from tests.support import attention

nn, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
pytestmark = pytest.mark.relaxed


def attend(query, key, value, *args, module=None, **kwargs):
    """Attention that sows the largest logit of each head."""
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key) / query.shape[-1] ** 0.5
    largest = logits.max([a for a in range(logits.ndim) if a != logits.ndim - 3])
    if isinstance(module, nn.Module):
        module.sow("intermediates", "max_logits", largest)
    elif module is not None:
        module.sow(nnx.Intermediate, "max_logits", largest)
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(logits), value)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        attention = nn.MultiHeadDotProductAttention(num_heads=2, attention_fn=attend, name="attn")
        x = x + attention(x, x, sow_weights=True)
        return nn.Dense(8)(x), None


class Linen(nn.Module):
    """A block, three stacked by `nn.scan`, and one that is called twice."""

    @nn.compact
    def __call__(self, x):
        x, _ = Block(name="first")(x)
        axes = {"params": 0, "intermediates": 0}
        scanned = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
        x, _ = scanned(name="layers")(x, None)
        twice = Block(name="twice")
        return twice(twice(x)[0])[0]


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([
            nnx.MultiHeadAttention(
                num_heads=2, in_features=8, decode=False, attention_fn=attend, rngs=rngs)
            for _ in range(2)
        ])  # fmt: skip
        self.out = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x, sow_weights=True)
        return self.out(x)


X = np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32)
ONES = jnp.ones(2)


def _metrics(tx, params, logits):
    """The metrics of one update, with values that say nothing: only shapes are computed."""

    def run(params, logits):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jaxclip.metrics(tx.update(zeros, tx.init(params), params, max_logits=logits)[1])

    return jax.eval_shape(run, params, logits)


def _layers(found):
    return {key.removeprefix("qk_clip/norm/") for key in found if "/norm/" in key}


def test_linen_paths_and_shapes():
    variables, sown = jax.eval_shape(
        lambda x: Linen().init_with_output(jax.random.key(0), x, mutable=True)[::-1], X
    )
    params, sown = variables["params"], variables["intermediates"]
    found = _metrics(jaxclip.qk_clip(roles=linen_roles), params, sown)
    stacked = {f"layers/{i}/attn" for i in range(3)}
    assert _layers(found) == {"first/attn", "twice/attn", *stacked}
    roles = {
        jax.tree_util.keystr(path, simple=True, separator="/"): linen_roles(
            jax.tree_util.keystr(path, simple=True, separator="/"), leaf
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    parts = {"query": "q", "key": "k"}
    for name, role in roles.items():
        *_, layer, _ = ("", *name.split("/"))
        assert role == parts.get(layer), name


def test_nnx_paths_and_shapes():
    model = nnx.eval_shape(lambda: Nnx(nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    sown = {"blocks": {i: {"max_logits": (shape,)} for i in range(2)}}
    found = _metrics(jaxclip.qk_clip(roles=nnx_roles), params, sown)
    assert _layers(found) == {"blocks/0", "blocks/1"}
    # Kernels of Dense layers that are called like projections have no axis of heads.
    for roles in (linen_roles, nnx_roles):
        assert roles("attn/query/kernel", jnp.ones((4, 4))) is None
        assert roles("attn/query/bias", jnp.ones(4)) is None
        assert roles("attn/query/scale", jnp.ones((4, 4, 4))) is None
        assert roles("kernel", jnp.ones((4, 4, 4))) is None


@pytest.mark.slow
def test_linen_logits_land_at_tau():
    """The logits that the next forward pass sows, with stacks, tuples and shared layers."""
    model = Linen()
    params = model.init(jax.random.key(0), X)["params"]
    params = jax.tree.map(lambda w: 1.5 * w, params)

    @jax.jit
    def sown(params):
        return model.apply({"params": params}, X, mutable=["intermediates"])[1]["intermediates"]

    before = sown(params)
    first = before["first"]["attn"]["max_logits"][0]
    tau = float(np.mean(first))
    tx = jaxclip.qk_clip(tau, roles=linen_roles)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = jax.jit(tx.update)(zeros, tx.init(params), params, max_logits=before)
    landed = jax.tree.map(jnp.add, params, updates)
    again = sown(landed)["first"]["attn"]["max_logits"][0]  # its input does not change
    assert (first > tau).any()
    np.testing.assert_allclose(again, np.minimum(first, tau), rtol=1e-6)
    twice = np.max(before["twice"]["attn"]["max_logits"], 0)
    found = jaxclip.metrics(state)
    np.testing.assert_allclose(found["qk_clip/norm/twice/attn"], twice.max(), rtol=1e-6)
    layers = before["layers"]["attn"]["max_logits"][0]
    for i, s in enumerate(layers):
        np.testing.assert_allclose(found[f"qk_clip/norm/layers/{i}/attn"], s.max(), rtol=1e-6)
        assert found[f"qk_clip/clipped/layers/{i}/attn"] == (s > tau).sum()
        gamma = np.minimum(1, tau / s) ** 0.5
        for part in ("kernel", "bias"):
            old, new = (p["layers"]["attn"]["key"][part][i] for p in (params, landed))
            np.testing.assert_allclose(new, old * gamma[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Flax is about to rename `sow` and `pop`
def test_nnx_optimizer():
    model = Nnx(nnx.Rngs(0))
    tx = jaxclip.qk_clip(0.05, roles=nnx_roles)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def sown():
        model(X)
        return nnx.pop(model, nnx.Intermediate)

    before = sown()
    zeros = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, zeros, max_logits=before)
    first = jax.tree.leaves(before["blocks"][0])[0]
    again = jax.tree.leaves(sown()["blocks"][0])[0]
    np.testing.assert_allclose(again, np.minimum(first, 0.05), rtol=1e-5)
    assert jaxclip.metrics(optimizer)["qk_clip/clipped/blocks/0"] == (first > 0.05).sum()


PARAMS = {
    "a": {"query": {"kernel": jnp.ones((3, 4, 2))}, "key": {"kernel": jnp.ones((3, 4, 2))}},
    "b": [{"wq": jnp.ones((3, 2, 2)), "bq": jnp.ones((2, 2)), "wk": jnp.ones((3, 2, 2))}],
    "flat/query": jnp.ones((3, 2, 2)),
    "flat/key": jnp.ones((3, 2, 2)),
}
ROLES = {
    "a": {"query": "q", "key": "k"},
    "b": [{"wq": "q", "bq": "q", "wk": "k"}],
    "flat/query": "q",
    "flat/key": "k",
}
LOGITS = {"a": jnp.ones(4), "b": [ONES], "flat": ONES}


def test_trees_of_roles_lists_and_joined_keys():
    tx = jaxclip.qk_clip(None, roles=ROLES)
    assert _layers(_metrics(tx, PARAMS, LOGITS)) == {"a", "b/0", "flat"}
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    assert _layers(_metrics(tx, half, LOGITS)) == {"a", "b/0", "flat"}
    sown = {"a": {"s": (jnp.ones(4), jnp.ones(4))}, "b": [{"s": (ONES,)}], "flat": {"s": ONES}}
    assert _layers(_metrics(tx, PARAMS, sown)) == {"a", "b/0", "flat"}
    whole = jaxclip.qk_clip(roles=linen_roles)  # the layer is the whole tree
    assert _layers(_metrics(whole, PARAMS["a"], jnp.ones(4, jnp.int32))) == {""}
    empty = jaxclip.qk_clip(roles=linen_roles)
    assert _layers(_metrics(empty, {}, {})) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": jnp.ones(3)}, "max_logits['a'] has shape (3,) and dtype float32, but the layer 'a'"),
        ({"a": jnp.ones(4, bool)}, "dtype bool"),
        ({"a": {"s": {"t": jnp.ones(4)}}}, "max_logits['a']['s']['t'] is at no attention layer"),
        ({"c": ONES}, "max_logits['c'] is at no attention layer of the parameters: ['a', 'b/0'"),
        ({"a": None}, "max_logits has no array for the attention layer 'a'"),
        ({"a": {"s": jnp.ones(4), "t": jnp.ones(4)}}, "max_logits['a']['t'] is a second array"),
    ],
)
def test_errors_of_logits(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _metrics(jaxclip.qk_clip(roles=ROLES), PARAMS, LOGITS | change)


def _with(**leaves):
    """Roles of layer `a`, or of other leaves."""
    return {"a": None, "b": None, "flat/query": None, "flat/key": None} | leaves


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (lambda name, leaf: None, "roles give no leaf a role"),
        (_with(a={"query": "q", "key": "v"}), "the role of ['a']['key']['kernel']='v'"),
        (_with(a={"query": "q", "key": None}), "['a']['query']['kernel'] is 'q', but its layer"),
        (_with(a=None, b=[{"wq": None, "bq": None, "wk": "k"}]), "has no query"),
        (_with(b=[{"wq": None, "bq": "q", "wk": "k"}]), "['b'][0]['bq'], of shape (2, 2)"),
        (_with(b=[{"wq": "q", "bq": "q", "wk": "q"}], a="k"), "cannot be"),
        ({"a": "q"}, "roles is not a prefix"),
    ],
)
def test_errors_of_roles(roles, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jaxclip.qk_clip(roles=roles).init(PARAMS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tau": -1.0}, ValueError, "tau=-1.0"),
        ({"tau": "1"}, TypeError, "tau='1'"),
        ({"tau": {"a": 1.0}}, TypeError, "must be one number"),
        ({"alpha": 1.5}, ValueError, "alpha=1.5"),
        ({"alpha": None}, TypeError, "alpha=None"),
        ({"axis_name": {}}, TypeError, "axis_name="),
    ],
)
def test_errors_of_arguments(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        jaxclip.qk_clip(roles=ROLES, **arguments)


def test_missing_trees():
    tx, params = jaxclip.qk_clip(roles=ROLES), PARAMS
    for arguments, name in (((None,), "params"), ((params,), "max_logits")):
        with pytest.raises(ValueError, match=f"{name}=None"):
            tx.update(params, tx.init(params), *arguments)


def test_heads_that_differ():
    shapes = attention.build("float32")["grouped"] | {"key": {"kernel": jnp.ones((6, 3, 2))}}
    with pytest.raises(ValueError, match="differ in heads"):
        jaxclip.qk_clip(roles=linen_roles).init({"attn": shapes})


def test_two_biases_of_one_role():
    params = {"q": jnp.ones((3, 2, 2)), "k": jnp.ones((3, 2, 2)), "b": ONES, "c": jnp.ones((2, 2))}
    roles = {"q": "q", "k": "k", "b": None, "c": "q"}
    assert jaxclip.qk_clip(roles=roles).init(params).memory["norm"].keys() == {""}
    with pytest.raises(ValueError, match="cannot be 'q'"):
        jaxclip.qk_clip(roles=roles | {"b": "q"}).init(params | {"b": jnp.ones((2, 2))})
