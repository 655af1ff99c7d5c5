"""The states of all guards: a type fixed point that whatever carries them gives back."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards, moves, registry
from tests.support.guards import EVERY, U

pytestmark = [pytest.mark.slow, pytest.mark.relaxed]  # Adam of Optax promotes
NEW = ("skip_above", "scale_loss", "rollback")  # others have tests beside those of all rules
by_guard = pytest.mark.parametrize("guard", NEW)
NAN = float("nan")


@by_guard
def test_scan_abstract_init_and_pickle(guard):
    """States have the types of `init`, also that of shapes, after every step."""
    tx = EVERY[guard](optax.chain(jaxclip.clip_by_global_norm(1.0), optax.trace(0.9)))
    first = tx.init(U)
    for other in (jax.eval_shape(tx.init, U), tx.init(jax.eval_shape(lambda: U))):
        assert jax.tree.structure(other) == jax.tree.structure(first)
        kinds = [(x.shape, x.dtype) for x in jax.tree.leaves(other)]
        assert kinds == [(x.shape, x.dtype) for x in jax.tree.leaves(first)]

    def body(state, factor):
        u = jax.tree.map(lambda x: factor * x, U)
        return tx.update(u, state, U, value=factor)[::-1]

    last, _ = jax.lax.scan(body, first, np.float32([1, 2, NAN, 1, 500, 500, 500, 1]))
    assert guards.types(last) == guards.types(first)
    assert int(last.skipped_count) > 0
    again = pickle.loads(pickle.dumps(last))
    assert jax.tree.structure(again) == jax.tree.structure(last)
    registry.assert_same_bits(again, last)


@by_guard
def test_empty_tree(guard):
    tx = EVERY[guard](optax.identity())
    out, state = jax.jit(lambda: tx.update({}, tx.init({}), {}, value=1.0))()
    assert out == {}
    assert guards.types(state) == guards.types(tx.init({}))


@pytest.mark.filterwarnings("ignore")  # of Orbax
def test_orbax(tmp_path):
    """Those with a memory around each other, saved in the middle of a run."""
    checkpoint = pytest.importorskip("orbax.checkpoint")
    tx = optax.identity()
    for name in ("scale_loss", "rollback"):
        tx = EVERY[name](tx)
    update = jax.jit(tx.update)
    _, states = guards.loop(tx, [1.0, 2.0, NAN, 1.0, 30.0], update=update)
    with checkpoint.StandardCheckpointer() as store:
        store.save(tmp_path / "state", states[-1])
        store.wait_until_finished()
        restored = store.restore(tmp_path / "state", jax.eval_shape(tx.init, U))
    registry.assert_same_bits(restored, states[-1])
    registry.assert_same_bits(*(update(U, s, U) for s in (states[-1], restored)))
    assert jaxclip.metrics(restored).keys() == jaxclip.metrics(states[-1]).keys()


@by_guard
def test_adopted(guard):
    """A guard joins a run and leaves it; its own records continue."""
    chain = moves.adamw(moves.SMALL)
    state = moves.run(chain)
    guarded = EVERY[guard](chain)
    inside = jaxclip.adopt(guarded, moves.PARAMS, state)
    registry.assert_same_bits(inside.guarded_state, state)
    later = moves.run(guarded, state=inside, value=1.0)
    registry.assert_same_bits(jaxclip.adopt(guarded, moves.PARAMS, later), later)
    back = jaxclip.adopt(chain, moves.PARAMS, later)
    registry.assert_same_bits(back, later.guarded_state)
    raw = moves.from_disk(later)
    registry.assert_same_bits(jaxclip.adopt(guarded, moves.PARAMS, raw), later)


@pytest.mark.parametrize("guard", NEW)
def test_debug_flags(guard):
    """Finite gradients report nothing, and no inf is recorded."""
    tx = EVERY[guard](optax.identity())
    with jax.debug_infs(True), jax.debug_nans(True):
        state, update = jax.jit(tx.init)(U), jax.jit(tx.update)
        for factor in (1.0, 0.0, 100.0, 100.0, 1.0):
            _, state = update(guards.scaled(factor), state, U, value=jnp.float32(factor))
        tx.update(U, state, U, value=1.0)
        assert all(np.isfinite(float(x)) for x in jaxclip.metrics(state).values())


@by_guard
def test_names_of_fields_are_none_of_optax(guard):
    state = EVERY[guard](optax.adam(1e-3)).init(U)
    assert int(optax.tree_utils.tree_get(state, "count")) == 0
    marked = optax.tree_utils.tree_map_params(
        EVERY[guard](optax.adam(1e-3)), lambda _: "p", state, transform_non_params=lambda _: "-"
    )
    assert marked.guarded_state[0].mu == {"w": "p", "b": "p"}
