"""Guards: which steps are skipped, that they leave no trace, and the counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards, registry
from tests.support import oracles_learned as ol
from tests.support.guards import GUARDS, U

NAN, INF = float("nan"), float("inf")
by_guard = pytest.mark.parametrize("guard", GUARDS)


@pytest.mark.relaxed  # Adam of Optax promotes
@by_guard
def test_skipped_step_leaves_state_unchanged(guard):
    """To the bit: the same state and the same updates as if the bad steps had not occurred."""
    tx = GUARDS[guard](optax.adam(1e-2))
    update = jax.jit(tx.update)
    factors = [1.0, NAN, 2.0, 0.5, INF, -INF, 1.5, 0.7, NAN]
    outs, states = guards.loop(tx, factors, update=update)
    good, plain = guards.loop(tx, [f for f in factors if np.isfinite(f)], update=update)
    before = tx.init(U)
    for factor, out, state in zip(factors, outs, states, strict=True):
        if np.isfinite(factor):
            registry.assert_same_bits(out, good.pop(0))
            assert not guards.is_zero(out)
        else:
            registry.assert_kept(out, U)
            assert guards.is_zero(out)
            registry.assert_same_bits(state.guarded_state, before.guarded_state)
        assert bool(state.skipped) == (not np.isfinite(factor))
        before = state
    registry.assert_same_bits(states[-1].guarded_state, plain[-1].guarded_state)
    registry.assert_same_bits(states[-1].memory, plain[-1].memory)


@by_guard
def test_nonfinite_loss(guard):
    tx = GUARDS[guard](optax.trace(0.9))
    values = [jnp.float32(v) for v in (2.0, NAN, 1.0, INF, -INF, 3.0)]
    outs, states = guards.loop(tx, [1.0] * 6, value=values)
    assert [bool(s.skipped) for s in states] == [False, True, False, True, True, False]
    assert [guards.is_zero(x) for x in outs] == [False, True, False, True, True, False]
    assert [int(s.nonfinite_count) for s in states] == [0, 1, 1, 2, 3, 3]
    registry.assert_same_bits(states[4].guarded_state, states[2].guarded_state)


@pytest.mark.slow
@by_guard
def test_counts_and_max_consecutive(guard):
    factors = [1.0, NAN, NAN, INF, NAN, 1.0, NAN, 1.0]
    runs = {0: "01234010", 2: "01234567"}  # NaN that passed stays in the momentum, and in all steps
    for limit, skipped in [(0, "01111010"), (2, "01100000")]:
        tx = GUARDS[guard](optax.trace(0.5), max_consecutive=limit or None)
        outs, states = guards.loop(tx, factors)
        want = [x == "1" for x in skipped]
        assert [bool(s.skipped) for s in states] == want, limit
        assert [guards.is_zero(x) for x in outs] == want
        assert [int(s.skipped_count) for s in states] == np.cumsum(want).tolist()
        assert [int(s.update_count) for s in states] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert "".join(str(int(s.consecutive_count)) for s in states) == runs[limit]
        assert [int(s.nonfinite_count) for s in states] == [0, 1, 2, 3, 4, 4, 5, 5]
        assert int(states[-1].nonfinite_step_count) == limit  # the two updates that are finite
        broken = any(not np.isfinite(x).all() for x in jax.tree.leaves(states[-1].guarded_state))
        assert broken == (limit == 2)  # the bad update that passed has done visible harm


def _spiky(rng, steps, share):
    x = rng.lognormal(0, 0.3, steps)
    x = np.where(rng.random(steps) < share, x * 10 ** rng.uniform(0.3, 2, steps), x)
    x[steps // 2 : steps // 2 + 40] *= 5  # a level that stays: after a while it is no spike
    x[rng.choice(steps, 20, replace=False)] = 0
    x[rng.choice(steps, 20, replace=False)] = NAN
    x[rng.choice(steps, 10, replace=False)] = INF
    x[:3] = NAN, 100.0, 0.0
    return np.float32(x)


@pytest.mark.slow
def test_skip_spikes_against_its_reference():
    """A thousand steps, by the norm alone and by norm and loss, in one program."""
    rng = np.random.default_rng(3)
    norms, losses = _spiky(rng, 1000, 0.03), _spiky(rng, 1000, 0.03)
    settings = {
        "defaults": {},
        "short": {"sigma": 3.0, "window": 20, "min_history": 2},
        "full": {"sigma": 0.5, "window": 10, "min_history": 10, "max_consecutive": 2},
        "published": {"sigma": 1.0, "window": 10, "min_history": 5, "min_spread": 0.0},
        "wide spread": {"sigma": 1.0, "window": 10, "min_history": 5, "min_spread": 0.5},
    }
    cases = {(k, with_loss): v for k, v in settings.items() for with_loss in (False, True)}
    rules = {k: jaxclip.skip_spikes(optax.identity(), **v) for k, v in cases.items()}
    u = jnp.array([0.6, -0.8])

    def body(states, step):
        n, loss = step
        log = {}
        for key, tx in rules.items():
            value = {"value": loss} if key[1] else {}
            out, states[key] = tx.update(n * u, states[key], u, **value)
            log[key] = out[0], jaxclip.metrics(states[key])
        return states, log

    states = {k: tx.init(u) for k, tx in rules.items()}
    log = jax.jit(lambda s, x: jax.lax.scan(body, s, x)[1])(states, (norms, losses))
    for key, (out, record) in jax.device_get(log).items():
        oracle = ol.SkipSpikes(**cases[key])
        # The update's own norm, which rounds the wanted one.
        pairs = zip(norms.tolist(), losses.tolist(), strict=True)
        want = [oracle(n, x if key[1] else None) for n, x in pairs]
        np.testing.assert_array_equal(record["skip_spikes/skipped"], want, err_msg=str(key))
        np.testing.assert_array_equal(record["skip_spikes/skipped_count"], np.cumsum(want))
        np.testing.assert_array_equal(out, np.where(want, 0, norms * np.float32(0.6)))
        np.testing.assert_allclose(record["skip_spikes/norm"], norms, rtol=1e-6)
        limits = np.array(oracle.limits["norm"])
        np.testing.assert_allclose(record["skip_spikes/norm_threshold"], limits, rtol=1e-5)
        if key[1]:
            limits = np.array(oracle.limits["value"])
            np.testing.assert_allclose(record["skip_spikes/value_threshold"], limits, rtol=1e-5)
        assert 20 < sum(want) < 400


def test_small_norms_are_no_spikes():
    factors = [1.0, 1.1, 0.9, 1.0, 1e-6, 0.0, 1.0]
    _, states = guards.loop(GUARDS["skip_spikes"](optax.identity(), sigma=3.0), factors)
    assert not any(bool(s.skipped) for s in states)


def test_norms_whose_squares_overflow():
    u = {"w": jnp.array([3e30, -3e38]), "b": jnp.array([1e-30])}
    outs, states = guards.loop(jaxclip.skip_nonfinite(optax.identity()), [1.0], u)
    registry.assert_same_bits(outs[0], u)
    assert not bool(states[0].skipped)
    everything = {"w": jnp.full(4, 3e38), "b": jnp.full(4, -3e38)}  # their norm is beyond float32
    outs, states = guards.loop(jaxclip.skip_nonfinite(optax.identity()), [1.0], everything)
    registry.assert_same_bits(outs[0], everything)
    assert not bool(states[0].skipped)


@pytest.mark.slow
@by_guard
def test_non_float_leaves(guard):
    """Integers and None pass while the step is good, and are zero and None where it is not."""
    u = {"b": jnp.asarray([1.0, 2.0], jnp.bfloat16), "step": jnp.array([7]), "none": None,
         "z": jnp.array([1 + 2j]), "flag": jnp.array([True]),
         "empty": jnp.zeros((0, 2))}  # fmt: skip
    tx = GUARDS[guard](optax.identity())
    update = jax.jit(tx.update)
    good, state = update(u, tx.init(u), u)
    registry.assert_same_bits(good, u)
    for key in ("b", "z"):
        bad, after = update(u | {key: u[key].at[0].set(NAN)}, state, u)
        assert bool(after.skipped)
        assert guards.is_zero(bad)
        assert jax.tree.structure(bad) == jax.tree.structure(u)
        for x, like in zip(jax.tree.leaves(bad), jax.tree.leaves(u), strict=True):
            assert (x.dtype, x.shape) == (like.dtype, like.shape)
    _, empty = GUARDS[guard](optax.identity()).update({}, tx.init({}), {})
    assert not bool(empty.skipped)


def test_skipped_update_has_the_inner_dtype():
    widen = optax.stateless(lambda u, p: jax.tree.map(lambda x: x.astype(jnp.float32), u))
    u = {"b": jnp.asarray([1.0, 2.0], jnp.bfloat16)}
    outs, _ = guards.loop(jaxclip.skip_nonfinite(widen), [1.0, NAN], u)
    assert [x["b"].dtype for x in outs] == [jnp.float32, jnp.float32]
    assert guards.is_zero(outs[1])


def test_loss_of_integer_and_wrong_shape():
    """A whole number is one; several numbers are none."""
    tx = jaxclip.skip_nonfinite(optax.identity())
    _, state = tx.update(U, tx.init(U), value=jnp.asarray(3, jnp.int32))
    assert not bool(state.skipped)
    with pytest.raises(ValueError, match=r"value=.* must be a scalar, the loss"):
        tx.update(U, tx.init(U), value=jnp.ones(2))


@pytest.mark.parametrize("value", [True, "0.5", {"loss": 0.5}])
def test_loss_that_is_no_number(value):
    tx, u = jaxclip.skip_nonfinite(optax.identity()), jnp.ones(2)
    with pytest.raises(TypeError, match="value="):
        tx.update(u, tx.init(u), value=value)
