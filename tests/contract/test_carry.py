"""`carry`: nothing that a rule clips away is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import meshes, modes, registry
from tests.support.contexts import once, one_by_one

NAN, INF = float("nan"), float("inf")
TREE = {"dense": {"bias": (3,), "kernel": (8, 3)}, "gain": ()}


def test_published_numbers():
    outs, state = one_by_one(jaxclip.carry(jaxclip.clip(1.0)), [1, 3, 0.5, -4, 0, 0, 0])
    assert outs == [1, 1, 1, -1, -1, -0.5, 0]
    np.testing.assert_array_equal(state.carried, [0])


RULES = {
    "clip": (lambda: jaxclip.clip(0.5), lambda g: np.clip(g, -0.5, 0.5)),
    "norm": (
        lambda: jaxclip.clip_by_global_norm(2.0),
        lambda g: g * min(1.0, 2.0 / np.sqrt((g**2).sum())),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_thousand_steps(dtype):
    """Against the formula in float64; updates and carried part add up to the gradients."""
    grads = np.random.default_rng(0).normal(size=(1000, 5)) * [0.1, 0.3, 1, 2, 0.5]
    with modes.maybe_x64(dtype):
        stacked = jnp.asarray(grads, dtype)

        @jax.jit
        def run(stacked):
            ends = {}
            for name, (make, _) in RULES.items():
                tx = jaxclip.carry(make())
                ends[name] = jax.lax.scan(
                    lambda s, g, tx=tx: tx.update(g, s)[::-1], tx.init(stacked[0]), stacked
                )
            return ends

        found = jax.device_get(run(stacked))
    rtol = 1e-4 if dtype == "float32" else 1e-10
    for name, (_, oracle) in RULES.items():
        state, outs = found[name]
        carried, want = np.zeros(5), []
        for g in np.asarray(stacked, np.float64):
            want.append(oracle(g + carried))
            carried = carried + g - want[-1]
        np.testing.assert_allclose(outs, want, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(state.carried, carried, rtol=rtol, atol=rtol)
        total = np.sum(outs, 0, dtype=np.float64) + state.carried
        np.testing.assert_allclose(total, np.asarray(stacked, np.float64).sum(0), atol=100 * rtol)


def test_numbers_that_are_not_finite():
    """The element's carried part waits; a NaN or inf is neither hidden nor kept."""
    values, want = [3.0, NAN, INF, 0.0, 0.0, 0.0], [1, NAN, INF, 1, 1, 0]
    outs, state = one_by_one(jaxclip.carry(jaxclip.clip_by_global_norm(1.0)), values)
    np.testing.assert_array_equal(outs, want)
    np.testing.assert_array_equal(state.carried, [0])


def test_narrow_dtypes():
    """Parts that bfloat16 would round off, and sums beyond float16, are carried whole."""
    tx = jaxclip.carry(jaxclip.clip(1.0))
    u = {"b": jnp.full(1, 1.0, jnp.bfloat16), "h": jnp.full(1, 6e4, jnp.float16)}
    u |= {"c": jnp.full(1, 3e38 - 3e38j, jnp.complex64)}

    @jax.jit
    def run(u):
        state = tx.init(u)
        for _ in range(2):
            out, state = tx.update(u, state)
        small = jax.tree.map(lambda x: x * jnp.asarray(2**-9, x.dtype), u)
        return out, state, tx.update(small, state)[1]

    out, state, after = run(u)
    assert {k: x.dtype for k, x in out.items()} == {k: x.dtype for k, x in u.items()}
    assert float(out["b"][0]) == float(out["h"][0]) == 1
    assert abs(out["c"][0]) == pytest.approx(1, rel=1e-6)
    assert float(state.carried["h"][0]) == 2 * (float(u["h"][0]) - 1)
    assert state.carried["b"].dtype == jnp.float32
    assert float(after.carried["b"][0]) == 0.0
    twice = jaxclip.carry(optax.scale(0.5))
    _, state = once(twice, jnp.full(1, 1 + 2**-7, jnp.bfloat16))
    assert float(state.carried[0]) == 0.5 + 2**-8


def test_odd_leaves_and_arguments():
    """Integers pass; all arguments reach the rule; other trees are refused."""
    u = {"w": jnp.ones(2), "n": jnp.arange(2), "z": np.zeros(2, jax.dtypes.float0)}
    tx = jaxclip.carry(jaxclip.skip_nonfinite(jaxclip.adaptive_grad_clip(0.1)))
    state = tx.init(u)
    out, after = jax.jit(lambda s: tx.update(u, s, u, value=jnp.float32(NAN)))(state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    np.testing.assert_array_equal(out["w"], [0, 0])
    np.testing.assert_array_equal(after.carried["w"], [1, 1])
    with pytest.raises(ValueError, match="the state of carry has shape"):
        tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(2)}), None)
    with pytest.raises(TypeError, match="CarryState"):
        tx.update(u, optax.EmptyState(), u)
    with pytest.raises(TypeError, match=r"rule=1\.0 must be"):
        jaxclip.carry(1.0)


@pytest.mark.slow
def test_meshes():
    """Two updates on four devices are those of one."""

    class Twice:
        """A rule as `meshes` takes it, which sees every update twice."""

        params = False

        @staticmethod
        def make(c, **keywords):
            tx = jaxclip.carry(jaxclip.clip_by_global_norm(c, **keywords))

            def update(u, state, params=None):
                return tx.update(u, tx.update(u, state, params)[1], params)

            return optax.GradientTransformation(tx.init, update)

    u = registry.build(TREE)
    for context in (*meshes.MESHES.values(), *meshes.SHARDED):
        for updates, params, got in context(Twice, 0.5, u, u):
            tx = Twice.make(0.5)
            want = tx.update(updates, tx.init(params), params)[0]
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5)
