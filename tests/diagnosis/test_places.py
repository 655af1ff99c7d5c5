"""`diagnose`: the places of layers, from a `LayerOrder`, from names and from numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import diagnosis


def tree(**norms):
    """A weight of each norm, by name: `__` for a slash, a dot for a digit's underline."""
    result = {}
    for name, norm in norms.items():
        *path, last = name.split("__")
        node = result
        for key in path:
            node = node.setdefault(key, {})
        node[last] = {"w": jnp.full((1, 1), norm)}
    return result


def placed(found):
    return {row.name: row.place for row in found.layers if row.place is not None}


# ---- numbers in names


@pytest.mark.parametrize(
    ("names", "want"),
    [
        ("Dense_0 Dense_1 Dense_2", [0, 1, 2]),
        ("layers__0 layers__1 layers__10", [0, 1, 10]),
        ("embed b__0__q b__0__k b__1__q b__2__q head", [None, 0, 0, 1, 2, None]),
        ("MLP_0__Dense_0 MLP_0__Dense_1 MLP_0__Dense_2 pos", [0, 1, 2, None]),
        ("net50__conv_0 net50__conv_1 net50__conv_2 net50__end", [0, 1, 2, None]),
        ("conv1_1 conv1_2 conv2_1 conv3_1", [1, 1, 2, 3]),
        # contradictions
        ("Conv_0 Conv_1 Conv_2 Dense_0 Dense_1", None),
        ("SimpleCell_0 Dense_0 Dense_1 Dense_2", None),
        ("enc__0 enc__1 enc__2 dec__0 dec__1", None),
        ("fc1 fc2 fc3 conv7", None),
        ("Dense_0 Block_0 Attention_0", None),
        ("input hidden_a hidden_b head", None),
    ],
)  # fmt: skip
def test_numbers(names, want):
    names = names.split()
    found = jaxclip.diagnose(tree(**{n: 10.0**i for i, n in enumerate(names)}))
    place = {row.name: row.place for row in found.layers}
    got = [place[n.replace("__", "/")] for n in names]
    assert got == (want or [None] * len(names))
    unknown = any("the order of the layers is unknown" in s for s in found.findings)
    assert unknown == (want is None)
    if want is None:
        assert found.finding == "none"
        assert np.isnan(found.factor)
        assert "layer_order(loss, params, *batch)" in found.findings[0]


def test_a_place_is_the_norm_of_all_that_stands_there():
    grads = tree(a__0__q=3.0, a__0__k=4.0, a__1__q=50.0, a__2__q=500.0)
    np.testing.assert_allclose(jaxclip.diagnose(grads).factor, 0.1, rtol=1e-6)


# ---- names of layers


def test_entries_of_an_order():
    """Layers below one entry stand at one place, but those of a series at several."""
    grads = tree(head=1e4, stem=1.0, mid__q=3.0, mid__k=4.0, z__0__a=10.0, z__1__a=1.0, z__1__b=2.0)
    found = jaxclip.diagnose(grads, order=["stem", "mid", "z", "head"])
    assert placed(found) == {
        "stem": 0, "mid/k": 1, "mid/q": 1, "z/0/a": 2, "z/1/a": 3, "z/1/b": 3, "head": 4,
    }  # fmt: skip
    assert found.layers[0].name == "stem"
    np.testing.assert_allclose(found.factor, 0.1, rtol=1e-6)


def test_numbers_of_the_layers_with_weights():
    """Other numbers, of normalizations, do not matter."""
    grads = {"net": {f"conv_{i}": {"w": jnp.ones((1, 1))} for i in range(3)}}
    grads["net"] |= {f"norm_{i}": {"scale": jnp.ones(1)} for i in range(2)}
    assert list(placed(jaxclip.diagnose(grads, order=["net"])).values()) == [0, 1, 2]


# ---- LayerOrder


@pytest.mark.slow
def test_the_order_of_the_network_and_not_of_names():
    """A sigmoid network that vanishes, with names in the opposite order."""
    names = ["zeta", "my", "lambda", "eta", "alpha"]
    rng = np.random.default_rng(0)
    params = {n: {"kernel": rng.normal(size=(6, 6)) / 6**0.5, "bias": np.zeros(6)} for n in names}
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    x = np.ones((4, 6), np.float32)

    def loss(p, x):
        for name in names:
            x = jax.nn.sigmoid(x @ p[name]["kernel"] + p[name]["bias"][None])
        return x.sum()

    grads = jax.jit(jax.grad(loss))(params, x)
    order = diagnosis.layer_order(loss, params, x)
    found = jaxclip.diagnose(grads, order=order)
    assert found.finding == "vanishing"
    assert [row.name for row in found.layers] == names
    assert jaxclip.diagnose(grads).finding == "none"
    monitor = jaxclip.monitor(name="grads")
    logged = jaxclip.metrics(monitor.update(grads, monitor.init(grads))[1])
    assert diagnosis.of_metrics(logged, order=order).factor == pytest.approx(found.factor)


def test_leaves_of_one_node_at_several_depths():
    """Each is a layer of its own; leaves of one depth stay together."""
    params = {"net": {"w1": np.ones((2, 2)), "w2": np.ones((2, 2)), "w3": np.ones((2, 2))},
              "end": {"w": np.ones((2, 2)), "v": np.ones((2, 2))}}  # fmt: skip

    def loss(p, x):
        for name in ("w3", "w1", "w2"):
            x = x @ p["net"][name]
        return x @ p["end"]["w"] + x @ p["end"]["v"]

    order = diagnosis.layer_order(loss, params, np.ones((1, 2)))
    found = jaxclip.diagnose(params, order=order)
    assert placed(found) == {"net/w3": 1, "net/w1": 2, "net/w2": 3, "end": 4}


def test_stacks_with_and_without_stacked():
    rng = np.random.default_rng(0)
    falling = 10.0 ** np.arange(4)[:, None, None] * np.ones((4, 2, 2))
    params = {"in": np.ones((2, 2)), "blocks": {"w": falling}, "a_head": rng.normal(size=(2, 2))}

    def loss(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x @ p["in"], p["blocks"]["w"])
        return x @ p["a_head"]

    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    order = diagnosis.layer_order(loss, params, np.ones((1, 2), np.float32))
    found = jaxclip.diagnose(params, order=order)
    assert placed(found) == {"in": 1, "a_head": 6}
    assert found.findings[-1] == "note: blocks stacks layers; give stacked= to see each of them."
    stacked = lambda name, x: 0 if name.startswith("blocks") else None  # noqa: E731
    found = jaxclip.diagnose(params, order=order, stacked=stacked)
    assert placed(found) == {
        "in": 1, "blocks/0": 2, "blocks/1": 3, "blocks/2": 4, "blocks/3": 5, "a_head": 6,
    }  # fmt: skip
    assert not any("stacks layers" in s for s in found.findings)


def test_a_tied_leaf_does_not_count():
    params = {"embed": np.ones((3, 2)), **{f"w{i}": np.ones((2, 2)) for i in range(3)}}

    def loss(p, x):
        x = p["embed"][x]
        return x @ p["w2"] @ p["w1"] @ p["w0"] @ p["embed"].T

    order = diagnosis.layer_order(loss, params, np.arange(3))
    assert placed(jaxclip.diagnose(params, order=order)) == {"w2": 2, "w1": 3, "w0": 4}


# ---- roles of leaves


def test_the_gain_of_a_normalization_in_equinox():
    """It is called `weight`; in a log, which has no ranks, its name has to tell."""
    leaves = {f"l{i}": {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)} for i in range(3)}
    grads = leaves | {"norm": {"weight": jnp.full(2, 1e-9), "bias": jnp.ones(2)}}
    log = {f"grads/norm/{k}/{leaf}": 1.0 for k, own in grads.items() for leaf in own}
    for found in (jaxclip.diagnose(grads), diagnosis.of_metrics(log)):
        assert [row.name for row in found.layers if row.deep] == ["l0", "l1", "l2"]
        assert all(row.bias is None for row in found.layers)


def test_nan_without_an_order():
    """The layers are listed, and none is said to be the place where it began."""
    grads = tree(**{name: jnp.nan if name in "abcd" else 1.0 for name in "abcdef"})
    said = jaxclip.diagnose(grads).findings[0]
    assert "the gradient is NaN or inf in a, b, c and 1 more, and finite in other layers" in said
    assert "began" not in said
    grads = {"l0": {"w": jnp.ones((2, 2))}, "n": {"scale": jnp.array([jnp.nan])}}
    said = jaxclip.diagnose(grads).findings[0]
    assert "the gradient is NaN or inf in n, and finite in other layers" in said
