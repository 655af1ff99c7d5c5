"""`metrics` and `monitor`: found through every wrapper, named, flat."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import jaxclip

U = {"w": jnp.array([[3.0], [4.0]]), "b": jnp.array([12.0])}
KEYS = {
    f"clip_by_global_norm/{k}"
    for k in ("norm", "threshold", "scale", "fraction", "count", "clipped_count", "nonfinite_count")
}


def rule():
    return jaxclip.clip_by_global_norm(1.3)


def _after(tx, u=U, steps=1):
    state = tx.init(u)
    for _ in range(steps):
        _, state = jax.jit(tx.update)(u, state, u)
    return state


def _is_ours(metrics, norm=13.0):
    assert metrics.keys() == KEYS
    assert all(isinstance(v, jax.Array) and v.shape == () for v in metrics.values())
    np.testing.assert_allclose(metrics["clip_by_global_norm/norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_by_global_norm/scale"], 1.3 / norm, rtol=1e-6)


def _each_after(*txs, steps=1):
    """The metrics of each of some transformations, from one program."""

    @jax.jit
    def run(u):
        states = [tx.init(u) for tx in txs]
        for _ in range(steps):
            states = [tx.update(u, state, u)[1] for tx, state in zip(txs, states, strict=True)]
        return states

    return [jaxclip.metrics(state) for state in run(U)]


def test_alone_and_in_chains():
    found = _each_after(
        rule(),
        optax.chain(rule(), optax.trace(0.9)),
        optax.named_chain(("a", rule()), ("b", optax.scale(-1.0))),
        optax.chain(optax.identity(), optax.chain(optax.chain(rule()))),
    )
    for metrics in found:
        _is_ours(metrics)


@pytest.mark.slow
@pytest.mark.relaxed
def test_wrappers_of_optax():
    mask = {"w": True, "b": False}
    parts, *masked_and_not = _each_after(
        optax.partition({"x": rule(), "y": optax.identity()}, {"w": "x", "b": "y"}),
        optax.masked(rule(), mask),
        optax.MultiSteps(optax.chain(optax.masked(rule(), mask), optax.adam(1e-3)), 1),
        optax.inject_hyperparams(jaxclip.clip_by_global_norm)(1.3),
        optax.MultiSteps(rule(), 2),
        optax.apply_if_finite(rule(), 3),
        optax.chain(rule(), optax.adamw(1e-3)),
        steps=2,
    )
    part = {k.removeprefix("x/"): v for k, v in parts.items() if k.startswith("x/")}
    for i, metrics in enumerate((part, *masked_and_not)):
        _is_ours(metrics, norm=5.0 if i < 3 else 13.0)


@pytest.mark.relaxed
def test_training_states():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(U["w"])
            self.b = nnx.Param(U["b"])

    model = Model()
    optimizer = nnx.Optimizer(model, optax.chain(rule(), optax.sgd(0.1)), wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    _is_ours(jaxclip.metrics(optimizer))
    _is_ours(jaxclip.metrics(optimizer.opt_state))
    state = train_state.TrainState.create(
        apply_fn=None, params=U, tx=optax.chain(rule(), optax.sgd(0.1))
    )
    state = state.apply_gradients(grads=U)
    _is_ours(jaxclip.metrics(state.opt_state))
    _is_ours(jaxclip.metrics(state))


def test_equinox():
    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    grads = eqx.filter(model, eqx.is_array)
    tx = rule()
    _, state = tx.update(grads, tx.init(grads), grads)
    assert jaxclip.metrics(state).keys() == KEYS


def test_under_jit_vmap_and_scan():
    tx = optax.chain(rule(), optax.identity())
    state = tx.init(U)

    def body(state, scale):
        _, state = tx.update(jax.tree.map(lambda x: x * scale, U), state)
        return state, jaxclip.metrics(state)

    _, log = jax.jit(lambda s: jax.lax.scan(body, s, jnp.array([1.0, 2.0, 0.05])))(state)
    np.testing.assert_allclose(log["clip_by_global_norm/norm"], [13, 26, 0.65], rtol=1e-6)
    np.testing.assert_array_equal(log["clip_by_global_norm/count"], [1, 2, 3])
    np.testing.assert_array_equal(log["clip_by_global_norm/clipped_count"], [1, 2, 2])


def test_the_same_rule_twice():
    tx = optax.chain(jaxclip.clip_by_global_norm(2.6), jaxclip.clip_by_norm(1.0), rule())
    found = jaxclip.metrics(_after(tx))
    np.testing.assert_allclose(found["clip_by_global_norm/norm"], 13.0, rtol=1e-6)
    np.testing.assert_allclose(found["clip_by_global_norm_2/threshold"], 1.3, rtol=1e-6)
    np.testing.assert_allclose(found["clip_by_norm/threshold"], 1.0, rtol=1e-6)
    assert len(found) == 21


def test_names():
    tx = optax.chain(
        jaxclip.clip_by(1.0, scope="leaf", name="mine"), jaxclip.clip_by(1.0, scope="global"),
        jaxclip.adaptive_grad_clip(0.1), jaxclip.clip_by_block_rms(1.0),
        jaxclip.clip_by_average_norm(1.0), jaxclip.clip(1.0, record=True),
        jaxclip.clip_by_value(-1.0, 1.0, record=True),
    )  # fmt: skip
    names = {k.split("/")[0] for k in jaxclip.metrics(jax.eval_shape(tx.init, U))}
    assert names == {
        "mine", "clip_by", "adaptive_grad_clip", "clip_by_block_rms", "clip_by_average_norm",
        "clip", "clip_by_value",
    }  # fmt: skip


def test_metrics_of_states_without_rules():
    assert jaxclip.metrics(optax.sgd(0.1).init(U)) == {}
    assert jaxclip.metrics(()) == {}
    assert jaxclip.metrics({"a": optax.adam(0.1).init(U)}) == {}
    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    state = train_state.TrainState.create(apply_fn=None, params=U, tx=optax.sgd(0.1))
    assert jaxclip.metrics(state) == {}
    for wrong in (U, [U["w"]], U["w"], None, {}, model, jaxclip.metrics, [(U["w"], U["b"])]):
        with pytest.raises(TypeError, match=rf"opt_state of type {type(wrong).__name__} is not"):
            jaxclip.metrics(wrong)
    for wrong in (rule(), optax.sgd(0.1), optax.chain(rule()), [rule(), optax.sgd(0.1)]):
        with pytest.raises(TypeError, match=r"opt_state is a transformation, not its .* tx.init"):
            jaxclip.metrics(wrong)


@pytest.mark.relaxed
def test_metrics_of_parameters_of_nnx():
    """Also of the optimizer's variables, in which the classes of states are lost."""
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, rule(), wrt=nnx.Param)
    for wrong in (model, nnx.state(model), nnx.state(optimizer)):
        with pytest.raises(TypeError, match="is not the state of an optimizer: pass"):
            jaxclip.metrics(wrong)
    plain = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    assert jaxclip.metrics(plain) == {}


ZEROS = {"int": 0, "float": 0.0, "array": np.float32(0), "schedule": lambda count: jnp.zeros(())}


@pytest.mark.parametrize("zero", ZEROS.values(), ids=ZEROS)
def test_threshold_of_zero_is_seen(zero):
    """0 means off elsewhere. Here it stops training, and the log says why; off is None."""
    tx = jaxclip.clip_by_global_norm(zero)
    out, state = tx.update(U, tx.init(U))
    found = jaxclip.metrics(state)
    assert not any(x.any() for x in out.values())
    assert [float(found[f"clip_by_global_norm/{k}"]) for k in ("threshold", "scale")] == [0, 0]
    off = jaxclip.clip_by_global_norm(None)
    out, state = off.update(U, off.init(U))
    assert all((out[k] == U[k]).all() for k in U)
    assert float(jaxclip.metrics(state)["clip_by_global_norm/threshold"]) == np.inf


def test_metrics_of_an_abstract_state():
    shapes = jax.eval_shape(rule().init, U)
    assert jaxclip.metrics(shapes).keys() == KEYS


@pytest.mark.relaxed
def test_metrics_of_nested_optimizers():
    rule = jaxclip.clip_by_global_norm
    tx = optax.contrib.sam(optax.chain(rule(1.0), optax.sgd(0.1)), optax.chain(rule(2.0)))
    found = jaxclip.metrics(tx.init(jnp.ones(2)))
    assert {"clip_by_global_norm/norm", "clip_by_global_norm_2/norm"} <= set(found)


def test_rule_names_that_end_in_a_number():
    names = ["layer", "layer_2", "layer", "layer"]
    tx = optax.chain(*(jaxclip.clip_by(1.0, scope="global", name=n) for n in names))
    found = {key.split("/")[0] for key in jaxclip.metrics(tx.init(jnp.ones(2)))}
    assert found == {"layer", "layer_2", "layer_3", "layer_4"}


MIXED = {
    "a/norm": jnp.float32(1.5),
    "a/threshold": jnp.array(jnp.inf),
    "a/count": jnp.int32(7),
    "b/skipped": np.bool_(True),
    "b/norm": np.float64("nan"),
    "c": 2,
    "d": jnp.bfloat16(0.5),
}


def test_to_floats():
    """Each value is a float, JSON can hold what is not dropped, and the order stays."""
    kept = jaxclip.to_floats(MIXED)
    assert list(kept) == list(MIXED)
    assert all(type(value) is float for value in kept.values())
    found = [value for value in kept.values() if np.isfinite(value)]
    assert found == [1.5, 7.0, 1.0, 2.0, 0.5]
    assert kept["a/threshold"] == np.inf
    assert np.isnan(kept["b/norm"])
    none = jaxclip.to_floats(MIXED, nonfinite="none")
    assert json.loads(json.dumps(none, allow_nan=False)) == {
        **kept, "a/threshold": None, "b/norm": None
    }  # fmt: skip
    left = jaxclip.to_floats(MIXED, nonfinite="drop")
    assert left == {k: v for k, v in kept.items() if k not in ("a/threshold", "b/norm")}
    assert jaxclip.to_floats({}) == {}


def test_to_floats_of_a_state():
    found = jaxclip.to_floats(jaxclip.metrics(_after(rule())))
    assert found.keys() == KEYS
    assert found["clip_by_global_norm/count"] == 1.0


@pytest.mark.parametrize(
    ("metrics", "options", "error", "words"),
    [
        ({"x": 1.0}, {"nonfinite": "skip"}, ValueError, "nonfinite='skip' is not known"),
        (
            {"x": jnp.ones(3)},
            {},
            ValueError,
            r"metrics\['x'\] of shape \(3,\) is not a scalar; for",
        ),
        ({"x": "fast"}, {}, TypeError, r"metrics\['x'\]='fast' must be a real number"),
        ({"x": None}, {}, TypeError, r"metrics\['x'\]=None must be a real number"),
        ({"x": jnp.complex64(1)}, {}, TypeError, "must be a real number"),
    ],
)
def test_to_floats_says_what_is_wrong(metrics, options, error, words):
    with pytest.raises(error, match=words):
        jaxclip.to_floats(metrics, **options)


def test_to_floats_of_a_traced_value():
    with pytest.raises(TypeError, match=r"metrics\['x'\] is traced: call to_floats outside of jit"):
        jax.jit(lambda x: jaxclip.to_floats({"x": x}))(1.0)
