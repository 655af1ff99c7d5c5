"""States of groups, of carried parts and of resets: in a scan, as bytes, and on disk."""

import pickle

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

import jaxclip
from tests.support import guards, learned, registry

STEPS = 16


@pytest.mark.slow
@pytest.mark.relaxed
def test_a_run_stopped_and_read_again(tmp_path):
    """The same run, from bytes and from Orbax; the state keeps its types and names its rules."""
    tx = optax.chain(
        jaxclip.carry(jaxclip.zclip(warmup_steps=3, scope="group", groups=learned.GROUPS)),
        jaxclip.clip_by_group_norm({"a, c": 1.0, "b": 2.0}, learned.GROUPS),
        jaxclip.clip_by_growth(1.1),
        jaxclip.reset_every(optax.trace(0.9), 5, warmup_steps=2),
        jaxclip.clippy(0.1, 1e-3),
        jaxclip.normalize_by_norm(),
        jaxclip.stabilize_gradient(),
    )
    stacked = learned.updates(steps=STEPS, seed=1, broken=False)
    stacked = jax.tree.map(jnp.asarray, stacked)
    like = jax.tree.map(lambda x: x[0], stacked)

    @jax.jit
    def run(state, part):
        return jax.lax.scan(lambda s, u: tx.update(u, s, like)[::-1], state, part)

    half = STEPS // 2
    halves = [jax.tree.map(lambda x, k=k: x[half * k : half * (k + 1)], stacked) for k in (0, 1)]
    middle, _ = run(tx.init(like), halves[0])
    end, _ = run(middle, halves[1])
    assert guards.types(end) == guards.types(tx.init(like))
    again = jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(jax.device_get(middle))))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", middle)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", tx.init(like))
    for state in (again, restored):
        registry.assert_same_bits(run(state, halves[1])[0], end)
    found = jaxclip.metrics(end)
    for key in ("zclip/norm/b", "clip_by_group_norm/scale/a, c", "clip_by_growth/count"):
        assert found[key] > 0


@pytest.mark.slow
def test_adopt():
    """Moments reach a chain with a carried part, resets and groups; those start anew, or go on."""
    p = {"w": jnp.ones(2), "v": jnp.ones(3)}
    old = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.trace(0.9))
    group = jaxclip.clip_by_group_norm(1.0, {"w": "a", "v": "b"})
    new = optax.chain(jaxclip.carry(group), jaxclip.reset_every(optax.trace(0.9), 5))
    _, state = old.update(p, old.init(p), p)
    moved = jaxclip.adopt(new, p, state)
    trace = optax.tree_utils.tree_get(moved, "trace")
    registry.assert_same_bits(trace, state[1].trace)
    assert not any(x.any() for x in jax.tree.leaves(moved[0].carried))
    out, after = new.update(p, moved, p)
    guarded = jaxclip.adopt(jaxclip.skip_nonfinite(new), p, after).guarded_state
    registry.assert_same_bits(guarded, after)
    assert out["w"].all()
