"""States of `per_example` and `noise_scale`: names, bytes, disk, and moves to another chain."""

import pickle

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

import jaxclip
from tests.interop.test_field_names import _optax_fields
from tests.support import registry


@pytest.mark.slow
@pytest.mark.relaxed
def test_states(tmp_path):
    """A run goes on from bytes and from Orbax; Adam's moments are moved in and out."""
    params, grads = {"w": jnp.ones(3)}, {"w": jnp.arange(12.0).reshape(4, 3)}
    rule = jaxclip.per_example(optax.chain(jaxclip.zclip(), jaxclip.monitor()))
    chains = [optax.chain(first, optax.adam(0.1)) for first in (rule, jaxclip.noise_scale(2, 8))]
    plain = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.adam(0.1))

    @jax.jit
    def run(states):
        steps = [tx.update(grads, s, params) for tx, s in zip(chains, states, strict=True)]
        return [state for _, state in steps]

    middle = run([tx.init(params) for tx in chains])
    end = run(middle)
    again = jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(jax.device_get(middle))))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", middle)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", [tx.init(params) for tx in chains])
    for states in (again, restored):
        registry.assert_same_bits(run(states), end)
    theirs = _optax_fields()
    for tx, state in zip(chains, end, strict=True):
        assert not theirs & set(state[0]._fields)
        moved = jaxclip.adopt(tx, params, jaxclip.adopt(plain, params, state))
        registry.assert_same_bits(moved[1], state[1])
        assert not any(x.any() for x in jax.tree.leaves(moved[0])[-2:])
