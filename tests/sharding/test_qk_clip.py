"""`qk_clip` on eight devices: heads along one mesh axis, the batch along another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import registry

SHAPES = {
    name: {k: {"kernel": (3, 4, 2), "bias": (4, 2)} for k in ("query", "key")}
    for name in ("a", "b")
}
ROLES = jaxclip.projections.linen_roles
# The largest logits of each part of the batch, (parts, heads).
LOGITS = {"a": [[3.0, 9.0, 0.5, -1.0], [6.0, 1.0, 0.1, np.nan]], "b": [[1.0, 1.0, 2.0, 3.0]] * 2}
LOGITS = {name: np.float32(x) for name, x in LOGITS.items()}
WHOLE = {name: jnp.max(x, 0) for name, x in LOGITS.items()}


def _update(logits, u, p, **keywords):
    tx = jaxclip.qk_clip(2.0, roles=ROLES, **keywords)
    updates, state = tx.update(u, tx.init(p), p, max_logits=logits)
    return updates, jaxclip.metrics(state)


def _trees():
    return registry.build(SHAPES, seed=1), registry.build(SHAPES)


@functools.cache
def _want():
    return jax.device_get(jax.jit(_update)(WHOLE, *_trees()))


def _close(got, want):
    got = jax.device_get(got)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def _specs(heads):
    part = {"kernel": P(None, heads), "bias": P(heads)}
    return {name: dict.fromkeys(("query", "key"), part) for name in SHAPES}


def _mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("data", "heads"), axis_types=(kind, kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_sharded_heads_under_jit(kind):
    mesh, specs = _mesh(kind), _specs("heads")

    def put(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        u, p = (jax.tree.map(put, tree, specs) for tree in _trees())
        logits = {k: put(x, P("heads")) for k, x in WHOLE.items()}
        updates, found = jax.jit(_update)(logits, u, p)
        for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(u), strict=True):
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
    _close((updates, found), _want())


def _mapped(specs, logits, check=True, **keywords):
    def run(logits, u, p):
        largest = {k: x[0] for k, x in logits.items()}  # of the part of the batch that is here
        return _update(largest, u, p, **keywords)

    return jax.jit(
        jax.shard_map(run, mesh=_mesh(), in_specs=(logits, specs, specs), out_specs=(specs, P()),
                      check_vma=check)
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "check", "keywords"),
    [
        pytest.param(None, True, {}, id="batch"),
        pytest.param("heads", True, {"axis_name": "data"}, id="batch and heads"),
        pytest.param(None, False, {"axis_name": ("data",)}, id="unchecked"),
    ],
)
def test_shard_map(heads, check, keywords):
    """The largest S is taken over the batch; records are the same on every device."""
    run = _mapped(_specs(heads), P("data", heads), check, **keywords)
    _close(run(LOGITS, *_trees()), _want())


def test_number_of_collectives_is_that_of_one_layer():
    def collectives(names):
        u, p = ({k: tree[k] for k in names} for tree in _trees())
        specs = {k: _specs("heads")[k] for k in names}
        run = _mapped(specs, P("data", "heads"), axis_name="data")
        text = run.lower({k: LOGITS[k] for k in names}, u, p).as_text()
        return text.count("all_reduce")

    assert collectives(["a"]) == collectives(["a", "b"]) > 0


def test_sharded_weights_and_logits_need_axis_name():
    with pytest.raises(ValueError, match=r"layer 'a' and its weights .*'heads'.*axis_name="):
        jax.eval_shape(_mapped(_specs("heads"), P("data", "heads")), LOGITS, *_trees())
