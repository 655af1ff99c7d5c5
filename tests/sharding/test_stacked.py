"""Stacks of layers on several devices: the numbers of one device, the norms sharded as stacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import registry

LAYERS = 16
SHAPES = {
    "embed": (8, 4),
    "blocks": {"kernel": (4, LAYERS, 8), "bias": (8, LAYERS), "gain": (LAYERS,)},
}
FACTORS = np.float32([1.0, 0.5, 2.0, 8.0])


def _stacked(name, leaf):
    return min(1, leaf.ndim - 1) if name.startswith("blocks") else None


def _specs(stack, other=None):
    """The stack along one mesh axis; the embedding and the kernel along another."""
    blocks = {"kernel": P(other, stack), "bias": P(None, stack), "gain": P(stack)}
    return {"embed": P(None, other), "blocks": blocks}


def _chain(**keywords):
    keywords = {"stacked": _stacked, **keywords}
    return optax.chain(
        jaxclip.monitor(name="grads", **keywords),
        jaxclip.clip_by_norm(2.0, **keywords),
        jaxclip.clip_by_block_rms(0.6, nonfinite="drop", **keywords),
        jaxclip.adagc(warmup_steps=1, **keywords),
        jaxclip.autoclip(50, window=3, scope="leaf", **keywords),
        jaxclip.adaptive_grad_clip(0.3, axis=0, **keywords),
        jaxclip.monitor(name="weights", of="params", **keywords),
    )


def _steps(**keywords):
    tx = _chain(**keywords)

    def steps(tree):
        def body(state, factor):
            updates = jax.tree.map(lambda x: x * factor, tree)
            return tx.update(updates, state, tree)[::-1]

        return jax.lax.scan(body, tx.init(tree), jnp.asarray(FACTORS))

    return steps


@functools.cache
def _one_device():
    """The updates, and the states and updates of one device."""
    tree = registry.build(SHAPES)
    return tree, jax.device_get(jax.jit(_steps())(tree))


def _same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5)


def _mapped(tree, want, mesh, specs, **keywords):
    """Checked `shard_map`: that norms of other leaves and records leave as replicated is proof."""
    stack = mesh.axis_names[0]
    along = [jax.tree.map(lambda x: P(*[stack if n == LAYERS else None for n in x.shape]), w)
             for w in want]  # fmt: skip
    along[1] = jax.tree.map(lambda s: P(None, *s), specs, is_leaf=lambda s: isinstance(s, P))
    run = jax.shard_map(_steps(**keywords), mesh=mesh, in_specs=(specs,), out_specs=tuple(along))
    _same(jax.device_get(jax.jit(run)(tree)), want)


@pytest.mark.slow
def test_shard_map_over_the_layers():
    tree, want = _one_device()
    assert want[0][0].norms["blocks/*/kernel"].shape == (LAYERS,)
    mesh = jax.make_mesh((4, 2), ("layers", "data"), (AxisType.Auto,) * 2)
    _mapped(tree, want, mesh, _specs("layers", "data"), axis_name="data")


@pytest.mark.slow
def test_jit_on_a_mesh():
    """The norms of a stack are sharded as the stack; the metrics are those of one device."""
    tree, want = _one_device()
    mesh = jax.make_mesh((4, 2), ("layers", "data"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        specs = _specs("layers", "data")
        put = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)
        state, out = jax.jit(_steps())(put)
        assert state[0].norms["blocks/*/kernel"].sharding.spec == P("layers")
        found, inside = jaxclip.metrics(state), jax.jit(jaxclip.metrics)(state)
        said = jaxclip.diagnose(put, stacked=_stacked)
    _same(jax.device_get((state, out)), want)
    for got in (found, inside):
        _same(jax.device_get(got), jaxclip.metrics(want[0]))
    assert str(said) == str(jaxclip.diagnose(tree, stacked=_stacked))


def test_leaves_that_are_replicated_over_axis_name():
    """The gains are whole on each device, the kernels are not; without a stack that is an error."""
    tree = {"kernel": jnp.ones((8, 4, 2)), "gain": jnp.ones(8)}
    specs = {"kernel": P("layers", "data"), "gain": P("layers")}
    mesh = jax.make_mesh((4, 2), ("layers", "data"), (AxisType.Auto,) * 2)

    def mapped(rule):
        return jax.shard_map(
            lambda u: rule.update(u, rule.init(u))[0], mesh=mesh, in_specs=(specs,), out_specs=specs
        )

    rule = jaxclip.clip_by_norm(2.0, stacked=0, axis_name="data")
    out = jax.jit(mapped(rule))(tree)
    np.testing.assert_allclose(out["kernel"], np.full((8, 4, 2), 2 / 8**0.5), rtol=1e-6)
    np.testing.assert_array_equal(out["gain"], tree["gain"])
    with pytest.raises(ValueError, match=r"\['gain'\] is replicated over this mesh axis"):
        jax.eval_shape(mapped(jaxclip.clip_by_norm(2.0, axis_name="data")), tree)


@pytest.mark.parametrize("stacked", [0, _stacked])
def test_a_sharded_stack_needs_axis_name(stacked):
    tree = {"blocks": jnp.ones((8, 4))}
    mesh = jax.make_mesh((8,), ("layers",), (AxisType.Auto,))
    rule = jaxclip.clip_by_norm(1.0, stacked=stacked)
    run = jax.shard_map(lambda u: rule.update(u, rule.init(u))[0], mesh=mesh,
                        in_specs=P("layers"), out_specs=P("layers"))  # fmt: skip
    match = (
        r"leaf \['blocks'\] is sharded over .*divides its slices cannot be known.*axis_name=\(\)"
    )
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(run, tree)
