"""A state that does not fit another chain: a short error names the first difference."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxclip
from tests.support.moves import (
    MOVES,
    NEED_TYPES,
    NONE,
    PARAMS,
    SMALL,
    adamw,
    from_disk,
    hyper,
    hyper_limit,
    labels,
    run,
)  # fmt: skip

pytestmark = pytest.mark.relaxed  # Optax's Adam

OTHER = {"layers": [{"kernel": jnp.ones((3, 2))}]}
WIDER = {"layers": [{"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}, {"kernel": jnp.ones(2)}]}
HALF = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
TWO = adamw(SMALL, SMALL)
REFUSED = {
    "another optimizer": (adamw(SMALL), optax.chain(SMALL, optax.sgd(0.1, momentum=0.9)), PARAMS,
                          r"ScaleByAdamState \[1\]\[0\].count .*\n.* TraceState "),
    "another optimizer with the same fields": (
        optax.scale_by_belief(), optax.scale_by_adam(), PARAMS, "ScaleByBeliefState .*count"),
    "belief for stable Adam": (
        optax.scale_by_belief(), jaxclip.scale_by_stable_adam(), PARAMS, "ScaleByBeliefState"),
    "no schedule": (adamw(), optax.adamw(0.1), PARAMS,
                    r"ScaleByScheduleState \[0\]\[2\].count of shape \(\), .*\n.* nothing"),
    "one moment more": (optax.adam(0.1), optax.chain(optax.adam(0.1), optax.trace(0.1)), PARAMS,
                        r"has nothing\n.*TraceState \[1\].trace"),
    "other leaves": (adamw(), adamw(SMALL), OTHER, r"\[0\]\['bias'\].*\n.*\[0\]\['kernel'\]"),
    "another shape": (adamw(), adamw(SMALL), WIDER, r"\(3, 2\), .*\n.*\['kernel'\] .*\(4, 2\)"),
    "another dtype": (adamw(), adamw(SMALL), HALF, "dtype float32\n.*dtype bfloat16"),
    "a hyperparameter gone": (
        optax.inject_hyperparams(hyper_limit)(rate=0.1, limit=1.0), hyper(SMALL), PARAMS,
        r"hyperparams\['limit'\]"),
    "another window": (jaxclip.autoclip(window=4), jaxclip.autoclip(window=5), PARAMS,
                       r"ordered of shape \(4,\)(.|\n)*To start autoclip anew, adopt"),
    "no memory": (jaxclip.clip_by(jaxclip.thresholds.quantile(0.5, window=3), scope="global"),
                  jaxclip.clip_by(1.0, scope="global"), PARAMS,
                  r"Window .memory\[0\](.|\n)*To start clip_by "),
    "one of two": (TWO, adamw(SMALL), PARAMS, "clip_by_global_norm at other places"),
    "one to two": (adamw(SMALL), TWO, PARAMS, "clip_by_global_norm at other places"),
    "another label": (labels(SMALL, NONE), labels(NONE, SMALL), PARAMS, "at other places"),
    "out of MultiSteps": (optax.MultiSteps(adamw(SMALL), 3),
        optax.chain(SMALL, optax.MultiSteps(adamw(), 3).gradient_transformation()), PARAMS,
        "clip_by_global_norm at other places"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    old, new, params, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        jaxclip.adopt(new, params, run(old))
    short(error)


def short(error):
    text = str(error.value)
    assert len(text.splitlines()) <= 10
    assert max(map(len, text.splitlines())) < 400
    return text


@pytest.mark.parametrize("name", sorted(NEED_TYPES))
def test_refused_without_types(name):
    """Whose record is whose cannot be known."""
    old, new = MOVES[name]
    with pytest.raises(ValueError, match=r"Restore old_state with a target|of shape") as error:
        jaxclip.adopt(new, PARAMS, from_disk(run(old)))
    short(error)


@pytest.mark.parametrize("state", [None, 3, (), {}, "a state"])
def test_no_state(state):
    with pytest.raises(ValueError, match=r"old_state has (nothing|a leaf)") as error:
        jaxclip.adopt(adamw(SMALL), PARAMS, state)
    short(error)


def test_many_leaves_in_a_short_error():
    params = {f"layer{'x' * 99}{i}": jnp.ones((9, 9)) for i in range(300)}
    old = optax.adam(0.1).init(params)
    with pytest.raises(ValueError, match="first difference") as error:
        jaxclip.adopt(jaxclip.skip_nonfinite(optax.sgd(0.1, momentum=0.9)), params, old)
    assert len(short(error)) < 700
