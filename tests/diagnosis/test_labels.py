"""Labels of `optax.partition` in the keys of `metrics`."""

import enum

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxclip

U = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0]), "c": jnp.array([2.0])}
FIELDS = ("norm", "threshold", "scale", "fraction", "count", "clipped_count", "nonfinite_count")


def rule():
    return jaxclip.clip_by_global_norm(1.0)


def _after(tx, u=U):
    return jax.jit(tx.update)(u, tx.init(u), u)[1]


def _norms(tx, u=U):
    found = jaxclip.metrics(_after(tx, u))
    return {k.removesuffix("/norm"): float(v) for k, v in found.items() if k.endswith("/norm")}


def _parts(a="encoder", b="head", **others):
    return optax.partition({a: rule(), b: rule()}, {"a": a, "b": b, "c": b} | others)


def test_label_of_a_rule():
    found = jaxclip.metrics(_after(_parts()))
    names = [f"{label}/clip_by_global_norm" for label in ("encoder", "head")]
    assert found.keys() == {f"{name}/{field}" for name in names for field in FIELDS}
    np.testing.assert_allclose(found["encoder/clip_by_global_norm/norm"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(found["head/clip_by_global_norm/norm"], 148**0.5, rtol=1e-6)


@pytest.mark.relaxed  # MultiSteps promotes
def test_partition_in_chains_guards_and_wrappers():
    """The label stands before the rules inside of the partition only."""
    inside = optax.chain(jaxclip.skip_nonfinite(optax.chain(rule(), rule())), rule())
    parts = optax.partition(
        {"x": inside, "y": optax.sgd(0.1)}, lambda u: {k: "x" if k == "a" else "y" for k in u}
    )
    tx = jaxclip.skip_spikes(
        optax.chain(rule(), optax.MultiSteps(parts, 1).gradient_transformation())
    )
    found = jaxclip.metrics(jax.eval_shape(tx.init, U))
    assert [k.removesuffix("/norm") for k in found if k.endswith("/norm")] == [
        "skip_spikes", "clip_by_global_norm", "x/skip_nonfinite", "x/clip_by_global_norm",
        "x/clip_by_global_norm_2", "x/clip_by_global_norm_3",
    ]  # fmt: skip


def test_nested_partitions():
    labels = {"a": "up", "b": "down", "c": "down"}
    inner = optax.partition({"up": rule(), "down": rule()}, lambda u: {k: labels[k] for k in u})
    outer = {"in": inner, "out": rule()}
    tx = optax.partition(outer, {"a": "in", "b": "in", "c": "out"})
    norms = _norms(tx)
    want = {"in/up": 5.0, "in/down": 12.0, "out": 2.0}
    assert norms == pytest.approx({f"{k}/clip_by_global_norm": v for k, v in want.items()})


class Part(enum.IntEnum):
    ENCODER = 1
    HEAD = 2


class Layer(enum.StrEnum):
    ENCODER = "encoder"
    HEAD = "head"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((0, 1), ("0", "1")),
        ((False, True), ("False", "True")),
        (tuple(Part), ("1", "2")),
        (tuple(Layer), ("encoder", "head")),
        (("net/encoder", "net/head"), ("net/encoder", "net/head")),
    ],
)
def test_labels_of_other_types(labels, names):
    assert list(_norms(_parts(*labels))) == [f"{name}/clip_by_global_norm" for name in names]


def test_labels_without_an_order():
    """JAX cannot sort them, so they work outside of `jit` alone."""

    class Kind(enum.Enum):
        A, B = 1, 2

    for labels in (tuple(Kind), (1, "1")):
        tx = _parts(*labels)
        found = jaxclip.metrics(tx.init(U))
        assert len(found) == 2 * len(FIELDS)
    assert "1/clip_by_global_norm_2/norm" in found  # the labels 1 and "1" read the same


def test_keys_that_meet_stay_apart():
    """A label, a rule and a leaf may spell one key; nothing that is recorded gets lost."""
    meets = jaxclip.clip_by(1.0, scope="global", name="norm")
    tx = optax.chain(jaxclip.monitor(name="x"), _with(meets), _with(rule()), _with(rule()))
    u = {"count": jnp.array([3.0, 4.0]), "rest": jnp.array([12.0])}
    found = jaxclip.metrics(_after(tx, u))
    assert float(found["x/norm/count"]) == 5.0
    assert int(found["x/norm_2/count"]) == 1
    assert {"x/clip_by_global_norm/norm", "x/clip_by_global_norm_2/norm"} <= found.keys()
    assert len(found) == len(["norm", "count", "nonfinite_count", *u]) + 3 * len(FIELDS)


def _with(inner):
    return optax.partition({"x": inner, "y": optax.identity()}, {"count": "x", "rest": "y"})


def test_without_a_partition():
    """The names in `named_chain` are not labels."""
    tx = optax.named_chain(("first", rule()), ("second", optax.chain(rule())))
    assert list(_norms(tx)) == ["clip_by_global_norm", "clip_by_global_norm_2"]


def test_nnx_optimizer():
    class Model(nnx.Module):
        def __init__(self):
            self.a, self.b = nnx.Param(U["a"]), nnx.Param(U["b"])

    model = Model()
    tx = optax.partition({"x": rule(), "y": rule()}, lambda u: nnx.State({"a": "x", "b": "y"}))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    found = jaxclip.metrics(optimizer)
    np.testing.assert_allclose(found["y/clip_by_global_norm/norm"], 12.0, rtol=1e-6)


@pytest.mark.slow
def test_diagnosis_of_a_part():
    """The name of a monitor inside is its key, with the labels."""
    u = {f"Dense_{i}": {"kernel": jnp.full((2, 2), 10.0**-i)} for i in range(4)}
    labels = {key: "body" if key != "Dense_3" else "head" for key in u}
    watched = optax.chain(jaxclip.monitor(name="grads"), rule())
    tx = optax.partition({"body": watched, "head": rule()}, labels)
    log = jaxclip.metrics(_after(tx, u))
    diagnosis = jaxclip.diagnosis.of_metrics(log, "body/grads")
    assert [layer.name for layer in diagnosis.layers] == ["Dense_0", "Dense_1", "Dense_2"]
    with pytest.raises(ValueError, match=r"monitors found: \['body/grads'\]"):
        jaxclip.diagnosis.of_metrics(log, "grads")
