"""States on disk: Orbax saves and restores what learned rules and guards remember."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests import learned, registry

checkpoint = pytest.importorskip("orbax.checkpoint")

pytestmark = [pytest.mark.relaxed, pytest.mark.filterwarnings("ignore")]  # Orbax's own


def test_orbax_restores_every_bit_and_the_run_goes_on(tmp_path):
    rules = [make() for make in learned.RULES.values()]
    chain = optax.chain(*rules, jaxclip.scale_by_stable_adam(), optax.scale(-0.1))
    tx = jaxclip.skip_spikes(jaxclip.skip_nonfinite(chain), window=6, min_history=2)
    update = jax.jit(tx.update)
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}
    state = tx.init(params)
    for step in range(8):
        grads = jax.tree.map(lambda x, k=step: x * np.float32(k + 1), params)
        _, state = update(grads, state, params, value=jnp.float32(step))
    with checkpoint.StandardCheckpointer() as disk:
        disk.save(tmp_path / "state", state)
        disk.wait_until_finished()
        restored = disk.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
    registry.assert_same_bits(restored, state)
    assert jaxclip.metrics(restored).keys() == jaxclip.metrics(state).keys()
    after = [update(params, s, params, value=jnp.float32(1)) for s in (state, restored)]
    registry.assert_same_bits(*after)
