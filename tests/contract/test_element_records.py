"""What rules and projections of single elements record: of all leaves, devices and dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import modes

MAKERS = {
    "clip": functools.partial(jaxclip.clip, 2.0),
    "clip_by_value": functools.partial(jaxclip.clip_by_value, -1.0, 2.0),
    "project_box": functools.partial(jaxclip.project_box, -1.0, 2.0, mask=True),
}
by_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def _record(state):
    return {key: float(value) for key, value in state.scalars().items()}


def _update(tx, u):
    """The record, of what is clipped if it is an update and projected if it is a weight."""
    zero = jax.tree.map(jnp.zeros_like, u)
    return tx.update(u, tx.init(u), zero)[1]


@pytest.mark.slow
@by_maker
def test_shards_of_one_leaf(make):
    """With replication checking: that the record leaves as replicated is proof that all agree."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])
    u = {"rows": jnp.arange(8.0)[:, None], "whole": jnp.array([1.0, 5.0])}
    specs = {"rows": P("x"), "whole": P()}
    tx = make(record=True)
    run = jax.shard_map(functools.partial(_update, tx), mesh=mesh, in_specs=(specs,), out_specs=P())
    found = _record(jax.jit(run)(u))
    assert found == _record(_update(tx, u))
    assert (found["norm"], found["threshold"], found["fraction"]) == (7.0, 2.0, np.float32(0.6))


@pytest.mark.slow
@by_maker
def test_float64_elements_beyond_float32(make):
    """The record is float32 and can only say inf; the update is finite nevertheless."""
    with modes.x64():
        found = _record(_update(make(record=True), jnp.array([1e300, 1.0])))
    assert (found["norm"], found["clipped_count"], found["nonfinite_count"]) == (np.inf, 1, 0)


@pytest.mark.slow
@by_maker
def test_what_is_not_finite_is_counted(make):
    for bad in (jnp.nan, jnp.inf):
        assert _record(_update(make(record=True), jnp.array([bad, 1.0])))["nonfinite_count"] == 1
