"""State is a type fixed point, whatever carries it."""

import pickle

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import modes, registry
from tests.support.contexts import updates
from tests.support.registry import EDGE_RULES, NAMED

by_rule = registry.by_rule(EDGE_RULES)
by_named_rule = registry.by_rule(NAMED)
FIELDS = {
    "norm": "float32", "threshold": "float32", "smallest_scale": "float32", "fraction": "float32",
    "update_count": "int32", "clipped_count": "int32", "nonfinite_count": "int32",
}  # fmt: skip


def _types(tree):
    return jax.tree.structure(tree), [
        (x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)
    ]


def _tree(dtype="float32", **kwargs):
    return registry.build(registry.TREE, dtype, **kwargs)


def _params(dtype="float32"):
    return _tree(dtype, seed=1)


@by_rule
def test_fields(rule):
    p = _params()
    state = rule.make(0.5).init(p)
    assert isinstance(state, jaxclip.ClipState)
    for name, dtype in FIELDS.items():
        value = getattr(state, name)
        assert (value.shape, value.dtype) == ((), dtype), name
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert (float(state.norm), float(state.smallest_scale), int(state.update_count)) == (0, 1, 0)


@by_rule
def test_update_keeps_the_types(rule):
    """Also when the gradient's dtype is not the one `init` saw."""
    p = _params()
    tx = rule.make(0.5)
    state = tx.init(p)
    for dtype in registry.NARROW:
        _, after = jax.eval_shape(tx.update, _tree(dtype), state, p)
        assert _types(after) == _types(state), dtype
    _, after = updates(rule, {"": (0.5, _tree("bfloat16"), _params("bfloat16"))})[""]
    assert _types(after) == _types(state)


@by_rule
def test_update_keeps_the_types_of_x64(rule):
    with modes.x64():
        for dtype in ("bfloat16", "float32", "float64"):
            tx = rule.make(0.5)
            state = tx.init(_params())
            _, after = jax.eval_shape(tx.update, _tree(dtype), state, _params())
            assert _types(after) == _types(state), dtype
            assert {str(x.dtype) for x in jax.tree.leaves(state)} == {"float32", "int32"}


@by_rule
def test_abstract_init(rule):
    p = _params()
    tx = rule.make(0.5)
    abstract = jax.eval_shape(tx.init, p)
    assert jax.tree.structure(abstract) == jax.tree.structure(tx.init(p))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), p)
    assert jax.tree.structure(jax.eval_shape(tx.init, shapes)) == jax.tree.structure(abstract)


def _record(rule, c, u, p):
    """The expected record, from the oracle."""
    norms, limits = registry.norms_and_limits(rule, c, u, p)
    over = [np.broadcast_to(n > c, np.shape(n)) for n, c in zip(norms, limits, strict=True)]
    ratio = [np.min(c / np.maximum(n, c)) for n, c in zip(norms, limits, strict=True)]
    if rule.kind in ("global", "group"):  # one norm, one unit; one for each of two labels
        over = over[: 1 if rule.kind == "global" else 2]
    return {
        "norm": max(n.max() for n in norms),
        "threshold": min(np.min(c) for c in limits),
        "smallest_scale": min(ratio),
        "fraction": sum(x.sum() for x in over) / sum(x.size for x in over),
    }


@by_rule
def test_records(rule):
    u, p = _tree(scale=2), _params()

    def update(u, state=None):
        return updates(rule, {"": (0.5, u, p)}, states={"": state})[""][1]

    state = update(u)
    want = _record(rule, 0.5, u, p)
    assert 0 < want["fraction"] <= 1
    for name, value in want.items():
        np.testing.assert_allclose(getattr(state, name), value, rtol=1e-6, err_msg=name)

    def counts(s):
        return (int(s.update_count), int(s.clipped_count), int(s.nonfinite_count))

    assert counts(state) == (1, 1, 0)
    small = jax.tree.map(lambda x: np.asarray(x) * np.float32(1e-4), u)
    state = update(small, state)
    assert counts(state) == (2, 1, 0)
    assert float(state.fraction) == 0.0
    assert float(state.smallest_scale) == 1.0
    if rule.kind != "value":
        bad = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), u)
        state = update(bad, state)
        assert counts(state) == (3, 1, 1)


# ---- carriers


@pytest.mark.slow
@by_named_rule
def test_scan_and_cond_carry(rule):
    p = _params()
    tx = rule.make(0.5)

    def body(state, u):
        def skip(s):
            return (jax.tree.map(jnp.zeros_like, u), s)

        out, state = jax.lax.cond(
            state.update_count % 2 == 0, lambda s: tx.update(u, s, p), skip, state
        )
        return state, out

    stacked = jax.tree.map(lambda x: np.stack([x] * 3), _tree("bfloat16", scale=3))
    state, _ = jax.lax.scan(body, tx.init(p), stacked)
    assert int(state.update_count) == 1  # the first ran; from then on the count is odd


@pytest.mark.slow
@by_named_rule
def test_one_trace_with_donation(rule):
    """The buffers of the old state become those of the new one; a warning would be an error."""
    p, tx = _params(), rule.make(0.5)
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(tx.update, n=1), donate_argnums=(0, 1))
    state = tx.init(p)
    for scale in (1.0, 100.0, 0.0):
        _, state = run(_tree(scale=scale), state, p)
    assert int(state.update_count) == 3


@pytest.mark.slow
@by_named_rule
def test_pickle(rule):
    p, tx = _params(), rule.make(0.5)
    _, state = updates(rule, {"": (0.5, _tree(), p)})[""]
    again = pickle.loads(pickle.dumps(state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    registry.assert_same_bits(again, state)
    assert jaxclip.metrics(again).keys() == jaxclip.metrics(state).keys()
    jax.eval_shape(tx.update, _tree(), again, p)


@pytest.mark.slow
@by_named_rule
def test_flax_serialization(rule):
    p, tx = _params(), optax.chain(rule.make(0.5), optax.trace(0.9))
    state = (updates(rule, {"": (0.5, _tree(), p)})[""][1], tx.init(p)[1])
    again = flax.serialization.from_bytes(tx.init(p), flax.serialization.to_bytes(state))
    registry.assert_same_bits(again, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)


@pytest.mark.slow
def test_update_without_a_state():
    """Code written for Optax's stateless rules may pass no state at all."""
    for rule in NAMED:
        u = _tree()
        out, _ = jax.jit(lambda u, p, rule=rule: rule.make(0.5).update(u, None, p))(u, _params())
        registry.assert_rule(rule, 0.5, u, _params(), out)


def test_counts_saturate():
    p = jnp.ones(2)
    tx = jaxclip.clip_by_global_norm(0.5)
    top = jnp.asarray(np.iinfo(np.int32).max, jnp.int32)
    _, state = tx.update(p, tx.init(p)._replace(update_count=top, clipped_count=top), p)
    assert int(state.update_count) == int(state.clipped_count) == int(top)


def _anything():
    """Rules, guards and others, to stand before an optimizer with a moment for each leaf."""
    for rule in EDGE_RULES:
        yield str(rule), rule.make(0.5)
    yield "monitor", jaxclip.monitor()
    yield "of_params", jaxclip.monitor(of="params")
    yield "scale_by_stable_adam", jaxclip.scale_by_stable_adam()
    yield "project_max_norm", jaxclip.project_max_norm(1.0)
    yield "autoclip", jaxclip.autoclip(window=4, scope="unit")
    yield "zclip", jaxclip.zclip(scope="leaf")
    yield "adagc", jaxclip.adagc()
    yield "clip_by_history", jaxclip.clip_by_history(scope="leaf")
    yield "skip_nonfinite", jaxclip.skip_nonfinite(jaxclip.adagc())
    yield "skip_spikes", jaxclip.skip_spikes(jaxclip.monitor())


def _slow_but(*plain):
    for name, tx in _anything():
        yield pytest.param(tx, id=name, marks=[] if name in plain else pytest.mark.slow)


@pytest.mark.relaxed
@pytest.mark.parametrize("tx", list(_slow_but("monitor", "adagc", "scale_by_stable_adam")))
def test_tree_map_params_finds_moments(tx):
    """`tree_map_params`, by which optimizer states are sharded: moments like their parameters."""
    params = {"w": jnp.ones((8, 4)), "b": {"c": jnp.ones(4), "none": None}}
    specs = {"w": P("data"), "b": {"c": P(None), "none": None}}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole = optax.chain(tx, optax.trace(0.9))
    state = jax.eval_shape(whole.init, params)

    def sharding(spec):
        return NamedSharding(mesh, spec)

    found = optax.tree_utils.tree_map_params(
        whole,
        lambda _, spec: sharding(spec),
        state,
        specs,
        transform_non_params=lambda _: sharding(P()),
    )
    assert found[1].trace == {"w": sharding(P("data")), "b": {"c": sharding(P(None)), "none": None}}
    placed = jax.jit(whole.init, out_shardings=found)(params)
    assert _types(placed) == _types(jax.jit(whole.init)(params))
    assert placed[1].trace["w"].sharding.spec == P("data")
    # and for nothing at all there is a state too, a fixed point
    empty = whole.init({})
    updates, after = whole.update({}, empty, {})
    assert updates == {}
    assert _types(after) == _types(empty)
    jaxclip.metrics(after)


def test_init_from_shapes():
    """As an Optax optimizer: the parameters to restore do not exist yet."""
    params = {"a": jnp.ones(2), "b": jnp.ones((2, 3), jnp.bfloat16)}
    shapes = jax.eval_shape(lambda: params)
    learned = {name: getattr(jaxclip, name)() for name in ("adagc", "autoclip", "zclip", "monitor")}
    learned["skip_spikes"] = jaxclip.skip_spikes(optax.adam(0.1))
    learned["scale_by_stable_adam"] = jaxclip.scale_by_stable_adam()
    learned["project_max_norm"] = jaxclip.project_max_norm(1.0)
    every = {str(rule): rule.make(1.0) for rule in registry.NAMED} | learned
    for name, tx in every.items():
        found, wanted = tx.init(shapes), tx.init(params)
        assert jax.tree.structure(found) == jax.tree.structure(wanted), name
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype), name


@pytest.mark.slow
def test_update_ignores_extra_arguments():
    u = {"w": jnp.array([[3.0], [4.0]])}
    for rule in registry.RULES:
        tx = rule.make(100.0)
        out, _ = tx.update(u, tx.init(u), u, value=1.0, loss=2.0, norm=1e6)
        registry.assert_same_bits(out, u)


def test_state_of_a_stateless_rule_of_optax():
    u, rule = {"w": jnp.array([3.0, 4.0])}, jaxclip.clip_by_global_norm(1.0)
    for state in (None, optax.EmptyState()):
        _, after = rule.update(u, state)
        assert int(after.update_count) == 1


def test_traced_window_is_not_compared():
    """Under `inject_hyperparams` a window has no value while an update is traced."""
    u = {"w": jnp.array([3.0, 4.0])}
    tx = optax.inject_hyperparams(jaxclip.autoclip)(50.0, window=3)
    out, _ = jax.jit(tx.update)(u, tx.init(u))
    assert jnp.array_equal(out["w"], u["w"])
