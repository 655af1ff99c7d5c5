"""The cost of a guard, in counts of the compiled train step: it copies no state."""

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

import jaxclip

SIZE = 256
TREE = {f"{i}": jnp.zeros((SIZE, SIZE)) for i in range(3)}
OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-3),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adafactor": lambda: optax.adafactor(1e-3),
    "lion": lambda: optax.lion(1e-3),
    "muon": lambda: optax.contrib.muon(1e-3),
    "multisteps": lambda: optax.MultiSteps(optax.adamw(1e-3), 2).gradient_transformation(),
    "zclip": lambda: optax.chain(jaxclip.zclip(), optax.adamw(1e-3)),
    "adagc": lambda: optax.chain(jaxclip.adagc(), optax.adamw(1e-3)),
    "clipped after": lambda: optax.chain(optax.adamw(1e-3), jaxclip.clip_by_global_norm(1.0)),
}
# Steps that are computed twice to be checked, since that is cheaper than to wait for it.
TWICE = ("adamw", "momentum", "lion")


def _compiled(tx):
    def step(params, state, factors):
        grads = {name: a @ b for name, (a, b) in factors.items()}
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    factors = {name: (jnp.ones((SIZE, 8)), jnp.ones((8, SIZE))) for name in TREE}
    state = jax.eval_shape(tx.init, TREE)
    return jax.jit(step, donate_argnums=(0, 1)).lower(TREE, state, factors).compile()


def _counts(tx):
    """Temporaries and accesses in copies of the tree, and copies of leaves."""
    program, tree = _compiled(tx), sum(x.nbytes for x in TREE.values())
    lines = program.as_text().splitlines()
    copies = [line for line in lines if " copy(" in line and f"[{SIZE},{SIZE}]" in line]
    temporary = program.memory_analysis().temp_size_in_bytes
    return temporary / tree, program.cost_analysis()["bytes accessed"] / tree, len(copies)


SLOW = [pytest.param(name, jaxclip.skip_nonfinite, marks=pytest.mark.slow) for name in OPTIMIZERS]


@pytest.mark.relaxed  # for Optax's optimizers
@pytest.mark.parametrize(("name", "guard"), [("adamw", jaxclip.skip_spikes), *SLOW])
def test_a_guard_costs_nothing(name, guard):
    """It reads, writes and keeps what the chain alone does, a few scalars more."""
    chain = optax.chain(jaxclip.clip_by_global_norm(1.0), OPTIMIZERS[name]())
    guarded = _counts(guard(chain, check_step=False))
    alone = _counts(chain)
    assert guarded[0] <= alone[0] + 0.02
    assert guarded[1] <= alone[1] + 0.05
    assert guarded[2] <= alone[2]


@pytest.mark.slow
@pytest.mark.relaxed
def test_a_loss_scale_costs_nothing_and_snapshots_no_copy():
    """Gradients are divided where they are read; a step without a snapshot copies nothing.

    The bytes of snapshots are not compared: they are counted for steps that take one.
    """
    chain = optax.chain(jaxclip.clip_by_global_norm(1.0), OPTIMIZERS["adamw"]())
    alone, scaled = _counts(chain), _counts(jaxclip.scale_loss(chain))
    back = _counts(jaxclip.rollback(chain, threshold=1.0, check_step=False))
    for guarded in (scaled, back):
        assert guarded[0] <= alone[0] + 0.02
        assert guarded[2] <= alone[2]
    assert scaled[1] <= alone[1] + 0.05


@pytest.mark.slow
@pytest.mark.relaxed
@pytest.mark.parametrize("name", TWICE)
def test_a_step_that_is_checked_waits_for_nothing(name):
    """It is computed twice, the first time to be looked at: one more read of what it is made of."""
    chain = optax.chain(jaxclip.clip_by_global_norm(1.0), OPTIMIZERS[name]())
    guarded, alone = _counts(jaxclip.skip_nonfinite(chain)), _counts(chain)
    assert guarded[0] <= alone[0] + 0.26  # a byte an element
    assert guarded[1] <= alone[1] + 4.8
    assert guarded[2] <= alone[2]
