"""A running optimizer's state moves into another chain, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import jaxclip
from tests.support import registry
from tests.support.moves import (
    LEARNED,
    MOVES,
    NEED_TYPES,
    NONE,
    PARAMS,
    SMALL,
    adamw,
    filled,
    from_disk,
    hyper,
    hyper_limit,
    run,
)  # fmt: skip

pytestmark = pytest.mark.relaxed  # Optax's Adam


def arrays(state):
    """The arrays of Optax's states, without those of `apply_if_finite`."""
    if type(state).__module__.startswith("jaxclip"):
        return arrays(getattr(state, "guarded_state", getattr(state, "directed_state", ())))
    if isinstance(state, optax.ApplyIfFiniteState):
        return arrays(state.inner_state)
    if isinstance(state, dict):
        state = [state[key] for key in sorted(state)]
    if isinstance(state, (tuple, list)):
        return [x for child in state for x in arrays(child)]
    return jax.tree.leaves(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVES)
def test_arrays_of_the_optimizer_arrive_to_the_bit(name):
    old, new = MOVES[name]
    state, fresh = filled(old), new.init(PARAMS)
    moved = jaxclip.adopt(new, PARAMS, state)
    assert jax.eval_shape(lambda: moved) == jax.eval_shape(lambda: fresh)
    assert len(arrays(state)) > 1
    registry.assert_same_bits(arrays(moved), arrays(state))
    copies = {id(x) for x in arrays(state)} - {id(x) for x in jax.tree.leaves(moved)}
    assert not copies
    if name not in NEED_TYPES | {"inside named_chain"}:  # Flax cannot store its OrderedDict
        registry.assert_same_bits(jaxclip.adopt(new, PARAMS, from_disk(state)), moved)
    jax.eval_shape(new.update, PARAMS, moved, PARAMS)


def test_new_hyperparameter_has_its_first_value():
    state = run(hyper(NONE))
    tx = optax.inject_hyperparams(hyper_limit)(rate=0.3, limit=optax.linear_schedule(2.0, 3.0, 9))
    for given in (state, from_disk(state)):
        moved = jaxclip.adopt(tx, PARAMS, given)
        assert {k: float(x) for k, x in moved.hyperparams.items()} == {
            "rate": pytest.approx(0.1),
            "limit": 2.0,
        }
        registry.assert_same_bits(moved.inner_state[1], state.inner_state[1])


def test_a_field_may_be_called_value():
    """As in NNX the array in each wrapper is."""
    state = jax.tree.map(lambda x: x + jnp.ones_like(x), optax.lbfgs().init(PARAMS))
    for given in (state, from_disk(state)):
        moved = jaxclip.adopt(optax.chain(SMALL, optax.lbfgs()), PARAMS, given)
        registry.assert_same_bits(moved[1], state)


def test_run_goes_on_as_before():
    """Below the threshold both rules change nothing, so every bit is the same."""
    old, new = adamw(optax.clip_by_global_norm(99.0)), adamw(jaxclip.clip_by_global_norm(99.0))
    moved = run(new, 3, jaxclip.adopt(new, PARAMS, run(old)))
    registry.assert_same_bits(arrays(moved), arrays(run(old, 3, run(old))))


@pytest.mark.slow
def test_rules_and_guards_keep_their_memory():
    """Whatever stands around them now; a new rule starts anew."""
    state = run(LEARNED)
    rules = adamw(SMALL, jaxclip.autoclip(window=3), jaxclip.monitor())
    tx = jaxclip.skip_nonfinite(jaxclip.skip_spikes(rules, window=4, min_history=2))
    for given in (state, from_disk(run(jaxclip.skip_spikes(rules, window=4, min_history=2)))):
        moved = jaxclip.adopt(jaxclip.skip_spikes(rules, window=4, min_history=2), PARAMS, given)
        registry.assert_same_bits(moved.memory, state.memory)
        by_rule = jaxclip.adopt(tx, PARAMS, moved).guarded_state.guarded_state
        registry.assert_same_bits(by_rule[1], moved.guarded_state[1])
    moved = jaxclip.metrics(jaxclip.adopt(tx, PARAMS, state))
    counts = {k: int(x) for k, x in moved.items() if k.endswith("/count")}
    assert counts == {
        "skip_nonfinite/count": 0,
        "skip_spikes/count": 4,
        "clip_by_global_norm/count": 0,
        "autoclip/count": 3,
        "monitor/count": 3,
    }


def test_record_that_is_new_in_a_rule_starts_anew():
    state = run(jaxclip.clip(1.0))
    moved = jaxclip.adopt(jaxclip.clip(1.0, record=True), PARAMS, state)
    assert int(moved.update_count) == 4
    assert float(moved.norm) == 0
    back = jaxclip.adopt(jaxclip.clip(1.0), PARAMS, moved)
    assert back.norm is None
    assert int(back.update_count) == 4


@pytest.mark.parametrize("stored", [False, True])
def test_stable_adam_continues_adam(stored):
    """Its moments are m and the root of v."""
    old = optax.chain(optax.clip(9.0), optax.scale_by_adam(), optax.scale(-0.1))
    new = optax.chain(jaxclip.clip(9.0), jaxclip.scale_by_stable_adam(threshold=None),
                      optax.scale(-0.1))  # fmt: skip
    state = run(old)
    moved = jaxclip.adopt(new, PARAMS, from_disk(state) if stored else state)
    registry.assert_same_bits(moved[1].memory.first_moment, state[1].mu)
    roots = jax.tree.map(lambda v: np.sqrt(np.asarray(v, np.float64)), state[1].nu)
    for a, b in zip(
        *map(jax.tree.leaves, (moved[1].memory.root_second_moment, roots)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-7)
    grads = jax.tree.map(jnp.sin, PARAMS)
    steps = (old.update(grads, state)[0], new.update(grads, moved)[0])
    for a, b in zip(*map(jax.tree.leaves, steps), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-5)  # Optax's 1 - b2^t


def test_moments_of_stable_adam_are_part_of_the_optimizer():
    state = run(optax.chain(jaxclip.scale_by_stable_adam(), optax.scale(-0.1)))
    tx = jaxclip.skip_nonfinite(
        optax.chain(SMALL, jaxclip.scale_by_stable_adam(), optax.scale(-0.1))
    )
    for given in (state, from_disk(state)):
        moved = jaxclip.adopt(tx, PARAMS, given).guarded_state[1]
        registry.assert_same_bits(moved.memory, state[0].memory)
    with pytest.raises(ValueError, match="AdamMoments"):
        jaxclip.adopt(optax.chain(SMALL, optax.scale_by_adam(), optax.scale(-0.1)), PARAMS, state)


def test_under_jit():
    old, new = MOVES["from Optax's rule"]
    state = run(old)
    moved = jax.jit(lambda p, s: jaxclip.adopt(new, p, s))(PARAMS, state)
    registry.assert_same_bits(moved, jaxclip.adopt(new, PARAMS, state))


def test_train_state_of_linen():
    tx = jaxclip.skip_nonfinite(adamw(SMALL))
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=adamw(optax.clip(1.0)))
    state = state.apply_gradients(grads=PARAMS)
    after = state.replace(tx=tx, opt_state=jaxclip.adopt(tx, state.params, state.opt_state))
    after = after.apply_gradients(grads=PARAMS)
    assert int(after.step) == int(optax.tree_utils.tree_get_all_with_path(
        after.opt_state, "count")[0][1]) == 2  # fmt: skip
    assert int(jaxclip.metrics(after)["skip_nonfinite/count"]) == 1


@pytest.mark.slow
def test_optimizer_of_nnx():
    """It wraps each array; the adopted arrays are put into its wrappers."""
    model, x = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jnp.ones((4, 3))
    grads = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
    old = nnx.Optimizer(model, optax.chain(optax.clip(1.0), optax.adam(0.1)), wrt=nnx.Param)
    old.update(model, grads)
    tx = jaxclip.skip_nonfinite(optax.chain(SMALL, optax.adam(0.1)))
    new = nnx.Optimizer(model, tx, wrt=nnx.Param)
    state = jaxclip.adopt(tx, nnx.state(model, nnx.Param), old.opt_state)
    new.opt_state = jax.tree.unflatten(jax.tree.structure(new.opt_state), jax.tree.leaves(state))
    want, got = (jax.tree.leaves(x) for x in (old.opt_state[1], new.opt_state.guarded_state[1]))
    registry.assert_same_bits(got, want)
    new.update(model, grads)
    assert int(jaxclip.metrics(new)["clip_by_global_norm/count"]) == 1


def test_partitioned_parameters():
    """Linen's wrapper is a dict on disk; a dict of parameters with the same key is none."""
    wrapped = {"kernel": nn.Partitioned(jnp.ones((2, 3)), names=("in", "out"))}
    for params in (wrapped, {"query": {"value": jnp.ones(2)}}):
        old = optax.chain(optax.clip(9.0), optax.trace(0.9))
        new = optax.chain(jaxclip.clip(9.0), optax.trace(0.9))
        _, state = old.update(params, old.init(params))
        for source in (state, from_disk(state)):
            registry.assert_same_bits(jaxclip.adopt(new, params, source)[1], state[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "with_target"),
    [("from Optax's rule", True), ("a guard", False), ("around MultiSteps", True)],
)
@pytest.mark.filterwarnings("ignore")  # Orbax's own
def test_orbax_checkpoint(tmp_path, name, with_target):
    """It does not restore into the new chain; it does into the old one, or into dicts."""
    checkpoint = pytest.importorskip("orbax.checkpoint")
    old, new = MOVES[name]
    state = filled(old)
    with checkpoint.StandardCheckpointer() as store:
        store.save(tmp_path / "state", state)
        store.wait_until_finished()
        with pytest.raises(ValueError, match=r"mismatch|do not match"):
            store.restore(tmp_path / "state", jax.eval_shape(new.init, PARAMS))
        target = jax.eval_shape(old.init, PARAMS) if with_target else None
        restored = store.restore(tmp_path / "state", target)
    moved = jaxclip.adopt(new, PARAMS, restored)
    registry.assert_same_bits(moved, jaxclip.adopt(new, PARAMS, state))
    registry.assert_same_bits(run(new, 1, moved), run(new, 1, jaxclip.adopt(new, PARAMS, state)))
