"""Errors about whole trees, states and arrays have ten lines at most, and name the difference."""

import flax.core
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxclip
from jaxclip import diagnosis, functional

pytestmark = pytest.mark.relaxed  # Optax's Adam

LAYER = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
TREE = {f"layer{i}": LAYER for i in range(20)}
FROZEN = flax.core.freeze(TREE)
TRUE = dict.fromkeys(TREE, True)
SQUARE = jnp.ones((30, 30))
FEW = {"w": jnp.ones(2)}
ADAM = optax.adam(0.1)
CHAIN = optax.chain(jaxclip.clip_by_global_norm(1.0), ADAM)
GUARD = jaxclip.skip_nonfinite(CHAIN)
OLD = optax.chain(optax.clip_by_global_norm(1.0), ADAM)


def _state(inner, params=TREE):
    """That of the guard, around the state of another transformation."""
    return GUARD.init(params)._replace(guarded_state=inner.init(params))


def _update(tx, updates=TREE, params=TREE, state=None, **keywords):
    return tx.update(updates, tx.init(params) if state is None else state, params, **keywords)


def _log(names):
    return [{f"{name}/norm/a": 1.0 for name in names}]


GUARDED = {
    "the state of Optax's chain": (
        lambda: _update(GUARD, state=OLD.init(TREE)), "SkipNonfiniteState; .*adopt"),
    "a chain without a guard": (
        lambda: _update(GUARD, state=CHAIN.init(TREE)), "SkipNonfiniteState; .*adopt"),
    "MultiSteps without a guard": (
        lambda: _update(jaxclip.skip_spikes(optax.MultiSteps(CHAIN, 2)),
                        state=optax.MultiSteps(CHAIN, 2).init(TREE)), "SkipSpikesState; .*adopt"),
    "an Optax chain inside": (
        lambda: _update(GUARD, state=_state(OLD)),
        r"only the next state has \[0\].norm. .*jaxclip.adopt"),
    "Optax's chain inside MultiSteps inside": (
        lambda: _update(jaxclip.skip_nonfinite(optax.MultiSteps(CHAIN, 2)),
                        state=_state(optax.MultiSteps(OLD, 2))), "."),
    "too short a chain inside": (lambda: _update(GUARD, state=_state(ADAM)), "."),
    "the state of a guard outside": (lambda: _update(CHAIN, state=GUARD.init(TREE)), "."),
    "in scan": (
        lambda: jax.lax.scan(lambda s, _: (_update(GUARD, state=s)[1], 0), OLD.init(TREE), None, 2),
        "SkipNonfiniteState"),
}  # fmt: skip
TREES = {
    "updates of another container": (
        lambda: _update(jaxclip.project_max_norm(1.0), params=FROZEN),
        "updates has a dict and params has a FrozenDict at the root"),
    "params of another container": (
        lambda: functional.adaptive_grad_clip(TREE, FROZEN, 0.1), "params has a FrozenDict"),
    "params of another length": (
        lambda: functional.adaptive_grad_clip(TREE, TREE | FEW, 0.1), r"only params has \['w'\]"),
    "params of another depth": (
        lambda: functional.adaptive_grad_clip(TREE, TREE | {"layer7": LAYER["bias"]}, 0.1),
        r"only params has \['layer7'\] and only updates has \['layer7'\]\['bias'\]"),
    "limits of another container": (
        lambda: _update(jaxclip.clip_by_norm(flax.core.freeze(TRUE))), "max_norm"),
    "mask of another container": (
        lambda: _update(jaxclip.clip_by_global_norm(1.0, norm_mask=flax.core.freeze(TRUE))),
        "norm_mask is not a prefix"),
    "mask of arrays": (
        lambda: _update(jaxclip.clip_by_global_norm(1.0, norm_mask=SQUARE)), "norm_mask"),
    "other leaves in monitor": (
        lambda: _update(jaxclip.monitor(), state=jaxclip.monitor().init(FEW)),
        r"missing \['w'\]"),
}  # fmt: skip
VALUES = {
    "inner": lambda: jaxclip.skip_nonfinite(TREE),
    "value=TREE": lambda: _update(GUARD, value=TREE),
    "value=SQUARE": lambda: _update(GUARD, value=SQUARE),
    "max_norm=TREE": lambda: jaxclip.clip_by_global_norm(TREE),
    "max_norm=SQUARE": lambda: jaxclip.clip_by_global_norm(SQUARE),
    "max_norm=-SQUARE": lambda: jaxclip.clip_by_norm(-SQUARE),
    "ord": lambda: jaxclip.clip_by_global_norm(1.0, ord=TREE),
    "ord=SQUARE": lambda: jaxclip.monitor(ord=SQUARE),
    "axis": lambda: jaxclip.clip_by_norm(1.0, axis=TREE),
    "axis twice": lambda: jaxclip.clip_by_norm(1.0, axis=[1] * 999),
    "axis elsewhere": lambda: jaxclip.clip_by(1.0, scope="leaf", axis=range(999)),
    "axis_name": lambda: jaxclip.clip_by_norm(1.0, axis_name=[TREE]),
    "stacked": lambda: jaxclip.clip_by_norm(1.0, stacked=TREE),
    "scope": lambda: jaxclip.clip_by(1.0, scope=TREE),
    "name": lambda: jaxclip.clip_by(1.0, scope="leaf", name=TREE),
    "mu_dtype": lambda: jaxclip.scale_by_stable_adam(mu_dtype=SQUARE),
    "b1": lambda: jaxclip.scale_by_stable_adam(b1=-SQUARE),
    "record": lambda: jaxclip.clip(1.0, record=SQUARE),
    "min_value": lambda: jaxclip.clip_by_value(SQUARE, SQUARE - 1),
    "window": lambda: jaxclip.autoclip(window=SQUARE),
    "norm": lambda: functional.clip_by_global_norm(TREE, 1.0, norm=SQUARE),
    "max_delta": lambda: functional.clip(TREE, TREE),
    "metrics": lambda: diagnosis.of_metrics({1: SQUARE}.values()),
    "order": lambda: jaxclip.diagnose(TREE, order=[f"x{i}" for i in range(999)]),
    "layer": lambda: jaxclip.diagnose(TREE, order=["x"]),
    "monitor": lambda: diagnosis.of_metrics(_log(map(str, range(999))), gradients="x"),
}  # fmt: skip


def _short(call, message="."):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call()
    text = str(error.value).partition("\n----")[0]  # JAX adds a remark on its own frames
    assert len(text.splitlines()) <= 10
    assert len(text) < 900


@pytest.mark.parametrize("name", GUARDED)
def test_states(name):
    _short(*GUARDED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_trees(name):
    _short(*TREES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    _short(VALUES[name])
