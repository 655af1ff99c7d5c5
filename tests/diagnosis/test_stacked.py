"""Layers stacked for `lax.scan`: monitor, metrics and diagnosis are those of unrolled layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import oracles, stacks
from tests.support.contexts import once


def _falling(layers=12):
    """Gradients that fall tenfold from each layer to the one before it."""
    rng = np.random.default_rng(0)

    def layer(i):
        shapes = {"attn": {"kernel": (3, 2, 4), "bias": (2, 4)}, "mlp": {"kernel": (4, 4)}}
        return jax.tree.map(
            lambda s: np.float32(rng.normal(size=s) * 10.0 ** (i - layers / 2)), shapes,
            is_leaf=lambda s: isinstance(s, tuple),
        )  # fmt: skip

    around = {"embed": np.float32(rng.normal(size=(5, 3)) * 1e-7), "head": np.ones((4, 2)) * 1e6}
    return {**around, "blocks": [layer(i) for i in range(layers)]}


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
def test_twelve_layers_that_fall_tenfold(axis):
    """The diagnosis of the stack is that of the list, word for word."""
    tree = _falling()
    flat, choose = stacks.stack(tree, axis), stacks.stacked(axis)
    weights, updates = (jax.tree.map(lambda x, c=c: c * np.ones_like(x), tree) for c in (1, 1e-3))
    others = [stacks.stack(t, axis) for t in (weights, updates)]
    order = ["embed", "blocks", "head"]
    want = jaxclip.diagnose(tree, weights, updates, order=order)
    found = jaxclip.diagnose(flat, *others, stacked=choose, order=order)
    assert (want.finding, len(want.layers)) == ("vanishing", 26)
    assert str(found) == str(want)
    np.testing.assert_allclose(found.factor, want.factor, rtol=1e-6)


@pytest.mark.slow
def test_a_stack_that_is_the_whole_tree():
    """All leaves have the axis, so an int is enough; bias and weight of a slice are one layer."""
    blocks = _falling()["blocks"]
    for tree in (blocks, [{"w": b["mlp"]["kernel"], "b": b["attn"]["bias"]} for b in blocks]):
        stack = jax.tree.map(lambda *x: np.stack(x), *tree)
        want, found = jaxclip.diagnose(tree), jaxclip.diagnose(stack, stacked=0)
        assert want.finding == found.finding == "vanishing"
        np.testing.assert_allclose(found.factor, want.factor, rtol=1e-6)
        np.testing.assert_allclose(found.bias_factor, want.bias_factor, rtol=1e-6)
        assert len(found.layers) == len(want.layers)
    assert [layer.name for layer in found.layers] == [str(i) for i in range(12)]
    assert jaxclip.diagnose(stack).findings[0].endswith("too few for a trend over depth.")


def test_ranks_are_those_of_slices():
    """A stack of vectors is no weight: only the stack of matrices counts for the trend."""
    tree = {"one": jnp.ones((3, 4)), "two": {"w": jnp.ones((3, 4, 4)), "s": jnp.ones((3, 4))}}
    tree["head"] = jnp.ones((4, 4))
    found = jaxclip.diagnose(tree, stacked=lambda name, x: None if name == "head" else 0)
    deep = {layer.name: layer.deep for layer in found.layers}
    assert deep == {**dict.fromkeys("012", False), **{f"two/{i}": True for i in range(3)},
                    "head": True}  # fmt: skip


@pytest.mark.slow
def test_a_slice_that_is_not_finite():
    tree = stacks.stack(_falling(4))
    tree["blocks"]["mlp"]["kernel"][2, 1, 1] = np.inf
    found = jaxclip.diagnose(tree, stacked=stacks.stacked())
    assert found.finding == "non-finite"
    assert found.nonfinite == (0, "blocks/2/mlp")
    _, state = once(jaxclip.monitor(stacked=stacks.stacked()), jax.tree.map(jnp.asarray, tree))
    bad = [k for k, v in jaxclip.metrics(state).items() if not np.isfinite(v)]
    assert bad == ["monitor/norm", "monitor/norm/blocks/2/mlp/kernel"]


X = np.ones((2, 3), np.float32)
NAMES = {
    "beside an embedding": (
        {"blocks": {"attn": {"kernel": X}}, "embed": {"embedding": X}},
        "blocks",
        {"blocks/0/attn/kernel", "blocks/1/attn/kernel", "embed/embedding"},
    ),
    "below keys that others share": (
        {"params": {"net": {"blocks": {"w": X, "b": X}, "head": {"w": X}}}},
        "params/net/blocks",
        {"params/net/blocks/0/w", "params/net/blocks/1/w", "params/net/blocks/0/b",
         "params/net/blocks/1/b", "params/net/head/w"},
    ),
    "alone": ({"blocks": {"attn": {"kernel": X}}}, "", {f"blocks/{i}/attn/kernel" for i in (0, 1)}),
    "layers alone": ({"attn": {"w": X}, "mlp": {"w": X}}, "", {
        "0/attn/w", "1/attn/w", "0/mlp/w", "1/mlp/w",
    }),
    "two stacks": (
        {"decoder": {"mlp": {"w": X}}, "encoder": {"mlp": {"w": X}}, "embed": X},
        ("decoder", "encoder"),
        {"decoder/0/mlp/w", "decoder/1/mlp/w", "encoder/0/mlp/w", "encoder/1/mlp/w", "embed"},
    ),
    "keys with a slash": (
        {"net/blocks/attn": {"w": X}, "net/embed": {"w": X}}, "net/blocks",
        {"net/blocks/0/attn/w", "net/blocks/1/attn/w", "net/embed/w"},
    ),
    "before the last key": ({"w": X, "b": X, "gain": np.float32(1.0)}, ("w", "b"),
                            {"0/w", "1/w", "0/b", "1/b", "gain"}),
    "an array": (X, "", {"0", "1"}),
    "names that collide": (
        {"a": {"b": X}, "a/b": {"c": X}}, "a/b/c", {"a/b", "a/b/0/c", "a/b/1/c"},
    ),
    "a star": ({"*": X, "a": {"*": X}}, "a", {"*", "a/0/*", "a/1/*"}),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names(case):
    tree, begin, want = NAMES[case]
    monitor = jaxclip.monitor(stacked=lambda name, x: 0 if name.startswith(begin) else None)
    state = jax.device_get(monitor.init(tree))
    prefix = "monitor/norm/"
    found = {k.removeprefix(prefix) for k in jaxclip.metrics(state) if k.startswith(prefix)}
    assert found == want


def _monitors(choose):
    return optax.chain(
        jaxclip.monitor(name="grads", stacked=choose, ord=3.0), optax.sgd(0.1),
        jaxclip.monitor(name="weights", of="params", stacked=choose),
    )  # fmt: skip


@pytest.mark.slow
def test_norms_of_a_monitor():
    """Against NumPy: those of slices, and that of everything; in steps of `scan`."""
    tree = jax.tree.map(jnp.asarray, stacks.stack(stacks.unrolled(), 1))
    tx, params = _monitors(stacks.stacked(1)), jax.tree.map(jnp.ones_like, tree)

    def body(state, factor):
        out, state = tx.update(jax.tree.map(lambda x: x * factor, tree), state, params)
        return state, (out, state)

    factors = jnp.array([0.5, 2.0])
    state, (_, states) = jax.jit(lambda f: jax.lax.scan(body, tx.init(params), f))(factors)
    assert state[0].norms["blocks/*/attn/kernel"].shape == (stacks.LAYERS,)
    log = jaxclip.metrics(states)  # of all steps, an axis in front
    for i, block in enumerate(stacks.unrolled()["blocks"]):
        want = oracles.norm(block["attn"]["kernel"], 3).item() * np.array([0.5, 2.0])
        np.testing.assert_allclose(log[f"grads/norm/blocks/{i}/attn/kernel"], want, rtol=1e-6)
        np.testing.assert_allclose(log[f"weights/norm/blocks/{i}/gain"], [1, 1])
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    np.testing.assert_allclose(log["grads/norm"][1], 2 * oracles.by_tree(3)(leaves)[0], rtol=1e-6)
    inside = jax.jit(jaxclip.metrics)(state)
    host = jaxclip.metrics(jax.device_get(state))
    assert inside.keys() == host.keys() == log.keys()
    for key, value in host.items():
        assert np.shape(value) == ()
        np.testing.assert_array_equal(value, inside[key])
        np.testing.assert_array_equal(value, log[key][-1])


@pytest.mark.slow
def test_several_states_at_once():
    """`vmap` puts an axis in front; the slices are those along the last."""
    monitor = jaxclip.monitor(stacked=0)
    states = jax.vmap(lambda u: monitor.update(u, monitor.init(u))[1])(jnp.eye(3, 2)[..., None])
    for found in (jaxclip.metrics(states), jaxclip.metrics(jax.device_get(states))):
        np.testing.assert_array_equal(found["monitor/norm/0"], [1, 0, 0])
        np.testing.assert_array_equal(found["monitor/norm/1"], [0, 1, 0])


@pytest.mark.slow
def test_diagnosis_of_metrics():
    """Over the steps, as of monitors of the unrolled layers."""
    logs, tree = [], _falling(5)
    for t, choose in ((tree, None), (stacks.stack(tree), stacks.stacked())):
        t = jax.tree.map(jnp.asarray, t)
        _, state = once(_monitors(choose), t, t)
        logs.append([jax.device_get(jaxclip.metrics(state))] * 2)
    order = ["embed", "blocks", "head"]
    want, found = (
        jaxclip.diagnosis.of_metrics(log, "grads", "weights", order=order) for log in logs
    )
    assert str(found) == str(want)
    assert found.finding == "vanishing"


def test_a_state_for_other_leaves():
    tree = {"blocks": {"w": jnp.ones((3, 2))}, "head": jnp.ones(2)}
    monitor = jaxclip.monitor(stacked=stacks.stacked())
    with pytest.raises(ValueError, match=r"other leaves than init saw: .*'head'"):
        monitor.update({"blocks": tree["blocks"]}, monitor.init(tree))
    longer = {**tree, "blocks": {"w": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match=r"has shape \(3,\) at .*needs shape \(4,\)"):
        monitor.update(longer, monitor.init(tree))
