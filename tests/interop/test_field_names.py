"""No field of a state is called as one of Optax's: `tree_get` and `tree_set` still mean Optax's."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

import jaxclip
from tests.support import learned

PARAMS = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}


def _optax_fields():
    """The fields of every NamedTuple and dataclass in Optax and its contrib that is a state."""
    names = set()
    for module in pkgutil.walk_packages(optax.__path__, "optax."):
        if "_test" in module.name:
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(kind) and kind.__module__ == module.name and "State" in name:
                names |= set(getattr(kind, "_fields", getattr(kind, "__dataclass_fields__", ())))
    return names


def _nodes(state):
    """Every NamedTuple of ours in a state."""
    if hasattr(state, "_fields") and type(state).__module__.startswith("jaxclip"):
        yield state
    children = state.values() if isinstance(state, dict) else state
    if isinstance(state, (tuple, list, dict)):
        for child in children:
            yield from _nodes(child)


def _transformations():
    rules = [make() for make in learned.RULES.values()]
    tracked = jaxclip.clip_by(jaxclip.thresholds.tracked_quantile(), scope="leaf")
    chain = optax.chain(
        jaxclip.monitor(),
        *rules,
        tracked,
        jaxclip.zclip(max_growth=1.1),
        jaxclip.scale_by_stable_adam(),
        jaxclip.project_box(0, 1),
    )
    guarded = jaxclip.rollback(jaxclip.scale_loss(chain), threshold=1.0)
    return jaxclip.skip_spikes(jaxclip.skip_nonfinite(guarded))


@pytest.mark.slow
def test_fields_differ_from_those_of_optax():
    theirs = _optax_fields()
    assert {"count", "scale", "inner_state", "mu", "trace", "hyperparams"} <= theirs
    nodes = list(_nodes(_transformations().init(PARAMS)))
    kinds = {type(node).__name__ for node in nodes}
    assert {"SkipSpikesState", "MonitorState", "ZclipState", "Moments", "Ring", "Average"} <= kinds
    assert {"Growth", "LossScale", "Snapshots", "Observed"} <= kinds
    for node in nodes:
        assert not theirs & set(node._fields), type(node)


def test_count_of_a_chain_is_that_of_adam():
    for rule in (jaxclip.clip_by_global_norm(1.0), jaxclip.zclip(), jaxclip.monitor()):
        state = optax.chain(rule, optax.adam(1e-3)).init(PARAMS)
        assert int(optax.tree_utils.tree_get(state, "count")) == 0


@pytest.mark.parametrize("wrap", [jaxclip.skip_nonfinite, jaxclip.skip_spikes])
def test_inner_state_behind_a_guard_is_that_of_optax(wrap):
    tx = wrap(optax.masked(optax.adam(1e-3), {"w": True, "b": False}))
    state = tx.init(PARAMS)
    found = optax.tree_utils.tree_get(state, "inner_state")
    assert jax.tree.structure(found) == jax.tree.structure(state.guarded_state.inner_state)
    assert int(optax.tree_utils.tree_get(state, "count")) == 0


def test_scale_is_that_of_reduce_on_plateau():
    plateau = optax.contrib.reduce_on_plateau()
    state = optax.chain(jaxclip.clip_by_global_norm(1.0), plateau).init(PARAMS)
    assert float(optax.tree_utils.tree_get(state, "scale")) == 1.0
    state = optax.tree_utils.tree_set(state, scale=jnp.float32(0.1))
    assert float(state[0].smallest_scale) == 1.0
    assert float(state[1].scale) == pytest.approx(0.1)


def test_keys_of_metrics_stay():
    keys = ["norm", "threshold", "scale", "fraction", "count", "clipped_count", "nonfinite_count"]
    state = jaxclip.clip_by_global_norm(1.0).init(PARAMS)
    assert list(jaxclip.metrics(state)) == [f"clip_by_global_norm/{key}" for key in keys]
