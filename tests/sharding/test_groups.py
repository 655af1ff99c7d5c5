"""Rules that learn a threshold for each group, on eight devices: the result of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from jaxclip import thresholds
from tests.support import registry

SPECS = {"a": P("x"), "b": P(None, "x"), "c": P()}
LABELS = {"a": "one", "b": "two", "c": "one"}


@pytest.mark.slow
def test_groups_of_sharded_and_replicated_leaves():
    """By types alone; one group has leaves of both kinds. The warm-up has a norm of the tree."""
    tx = jaxclip.adagc(warmup_steps=2, warmup_norm=9.0, scope="group", groups=LABELS)
    band = thresholds.aggc(1.2, low=0.9)
    band = jaxclip.clip_by(band, scope="group", groups=LABELS, bound="set")
    u = {key: registry.build((8, 16), seed=i) for i, key in enumerate(SPECS)}

    def run(u):
        def body(states, factor):
            now = jax.tree.map(lambda x: x * factor, u)
            out, first = tx.update(now, states[0])
            out, second = band.update(out, states[1])
            return (first, second), out

        factors = jnp.array([1.0, 0.1, jnp.nan, 30.0, 1.0, 1e-3])
        return jax.lax.scan(body, (tx.init(u), band.init(u)), factors)

    states, outs = jax.jit(run)(u)
    specs = jax.tree.map(lambda x: P(), states), {k: P(None, *spec) for k, spec in SPECS.items()}
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    many = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(SPECS,), out_specs=specs))(u)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves((states, outs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert int(states[0].clipped_count) > 1
    assert int(states[1].clipped_count) > 1
