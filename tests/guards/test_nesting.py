"""Guards among other transformations: their arguments, their containers, their cost."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import guards, modes, registry
from tests.support.guards import GUARDS, U

NAN = float("nan")
by_guard = pytest.mark.parametrize("guard", GUARDS)


def _recorder(seen):
    """An inner transformation that keeps the keyword arguments it was given."""

    def update(updates, state, params=None, **extra):
        seen.append(extra | {"params": params})
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda p: (), update)


@pytest.mark.slow
@by_guard
def test_arguments_are_passed_on(guard):
    seen = []
    tx = GUARDS[guard](_recorder(seen))
    args = {"value": jnp.float32(2.0), "other": jnp.arange(3)}
    tx.update(U, tx.init(U), U, **args)
    assert seen
    for given in seen:
        assert given["params"].keys() == U.keys()
        assert args.keys() <= given.keys()
    # An inner transformation without keyword arguments receives none.
    plain = GUARDS[guard](optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (u, s)))
    out, _ = plain.update(U, plain.init(U), **args)
    registry.assert_same_bits(out, U)


@pytest.mark.relaxed
def test_inner_rule_receives_the_loss():
    """Optax's own user of `value=`: the guard must hand it over."""
    tx = jaxclip.skip_nonfinite(optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    values = [jnp.float32(v) for v in (1.0, 1.0, NAN, 1.0, 1.0)]
    _, states = guards.loop(tx, [1.0] * 5, value=values)
    assert float(states[2].guarded_state.scale) == float(states[1].guarded_state.scale)
    assert float(states[-1].guarded_state.scale) < 1


def test_guards_in_guards():
    tx = jaxclip.skip_nonfinite(GUARDS["skip_spikes"](optax.trace(0.9)))
    factors = [1.0, 1.1, NAN, 0.9, 1.0, 100.0, 1.0]
    outs, states = guards.loop(tx, factors)
    assert [guards.is_zero(x) for x in outs] == [f in (100.0,) or f != f for f in factors]
    registry.assert_same_bits(states[2].guarded_state, states[1].guarded_state)
    found = jaxclip.metrics(states[-1])
    assert int(found["skip_nonfinite/skipped_count"]) == 1
    assert int(found["skip_spikes/skipped_count"]) == 1
    assert int(found["skip_spikes/count"]) == 6  # the outer one kept the NaN from it


def test_metrics_through_guards():
    tx = optax.chain(GUARDS["skip_spikes"](optax.chain(jaxclip.clip_by_global_norm(1.3))))
    _, states = guards.loop(tx, [1.0, NAN, 2.0])
    found = jaxclip.metrics(states[-1])
    own = {"skipped", "count", "skipped_count", "consecutive_count", "nonfinite_count",
           "nonfinite_step_count", "norm", "norm_threshold", "value_threshold"}  # fmt: skip
    assert {k.split("/")[1] for k in found if k.startswith("skip_spikes/")} == own
    assert all(isinstance(v, jax.Array) and v.shape == () for v in found.values())
    assert int(found["clip_by_global_norm/count"]) == 2
    np.testing.assert_allclose(found["clip_by_global_norm/norm"], 26.0, rtol=1e-6)
    np.testing.assert_allclose(found["skip_spikes/norm"], 26.0, rtol=1e-6)
    twice = jaxclip.skip_nonfinite(jaxclip.skip_nonfinite(optax.identity()))
    keys = jaxclip.metrics(twice.init(U)).keys()
    assert keys == {
        f"{name}/{k}"
        for name in ("skip_nonfinite", "skip_nonfinite_2")
        for k in own - {"norm_threshold", "value_threshold"}
    }


def test_masked_around_and_inside():
    """Only the guard's input counts; leaves that the inner mask excludes are skipped as well."""
    bad = guards.scaled(NAN)  # in the leaf b
    mask = {"w": True, "b": False}
    around = optax.masked(jaxclip.skip_nonfinite(optax.scale(2.0)), mask)
    out, _ = around.update(bad, around.init(U), U)
    np.testing.assert_array_equal(out["w"], 2 * U["w"])
    inside = jaxclip.skip_nonfinite(optax.masked(optax.scale(2.0), mask))
    out, state = inside.update(bad, inside.init(U), U)
    assert guards.is_zero(out)
    out, _ = inside.update(U, state, U)
    registry.assert_same_bits(out, U | {"w": 2 * U["w"]})


@pytest.mark.slow
def test_inject_hyperparams_around_and_inside():
    def rate(count):
        return 1.0 + count.astype(jnp.float32)

    inside = jaxclip.skip_nonfinite(optax.inject_hyperparams(optax.scale)(rate))
    outs, states = guards.loop(inside, [1.0, NAN, 1.0])
    assert [float(x["b"][0]) for x in outs] == [12.0, 0.0, 24.0]  # its count waits
    assert float(states[-1].guarded_state.hyperparams["step_size"]) == 2.0
    around = optax.inject_hyperparams(lambda step: jaxclip.skip_nonfinite(optax.scale(step)))(rate)
    outs, _ = guards.loop(around, [1.0, NAN, 1.0])
    assert [float(x["b"][0]) for x in outs] == [12.0, 0.0, 36.0]
    fixed = ("window", "min_history", "max_consecutive")
    made = optax.inject_hyperparams(jaxclip.skip_spikes, static_args=fixed)
    tx = made(optax.identity(), sigma=3.0, window=8, min_history=4)
    factors = [1.0, 1.1, 0.9, 1.0, 1.5, 1.0]
    outs, states = guards.loop(tx, factors)
    assert [guards.is_zero(x) for x in outs] == [False] * 4 + [True, False]
    states[-1].hyperparams["sigma"] = jnp.float32(1e6)
    outs, _ = guards.loop(tx, [9.0], state=states[-1])
    assert not guards.is_zero(outs[0])


@pytest.mark.slow
@by_guard
def test_carriers(guard):
    """Scan, donation, one trace, and a state whose types never change."""
    tx = GUARDS[guard](optax.chain(jaxclip.clip_by_global_norm(1.0), optax.trace(0.9)))
    state = tx.init(U)
    assert isinstance(state, jaxclip.GuardState)
    abstract = jax.eval_shape(tx.init, U)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for dtype in ("bfloat16", "float16", "float32"):
        u = jax.tree.map(lambda x, d=dtype: x.astype(d), U)
        plain = GUARDS[guard](jaxclip.clip_by_global_norm(1.0))
        _, after = jax.eval_shape(plain.update, u, plain.init(U), U)
        assert guards.types(after) == guards.types(plain.init(U)), dtype
    with modes.x64():
        for dtype in ("float32", "float64"):
            u = jax.tree.map(lambda x, d=dtype: np.asarray(x, d), U)
            _, after = jax.eval_shape(plain.update, U, plain.init(u), u)
            assert guards.types(after) == guards.types(plain.init(u)), dtype
    factors = np.float32([1.0, 2.0, 0.5, NAN, 1.0, 3.0, np.inf, 1.0])
    stacked = jax.tree.map(lambda x: np.multiply.outer(factors, x), U)
    _, log = jax.lax.scan(lambda s, u: tx.update(u, s, U)[::-1], state, stacked)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1), donate_argnums=1)
    for i in range(len(factors)):
        out, state = update(jax.tree.map(lambda x, i=i: x[i], stacked), state, U)
        for key in U:
            np.testing.assert_allclose(log[key][i], out[key], rtol=1e-6)
    assert guards.types(state) == guards.types(tx.init(U))
    assert int(state.skipped_count) == 2


@pytest.mark.slow
def test_vmap():
    tx = jaxclip.skip_nonfinite(optax.trace(0.9))
    batch = {k: jnp.stack([x, x, x]) for k, x in U.items()}
    batch["b"] = batch["b"].at[1, 0].set(NAN)
    states = jax.vmap(tx.init)(batch)
    out, states = jax.jit(jax.vmap(tx.update))(batch, states, batch)
    np.testing.assert_array_equal(states.skipped, [False, True, False])
    np.testing.assert_array_equal(out["b"][:, 0], [12.0, 0.0, 12.0])
    np.testing.assert_array_equal(out["w"][:, 0, 0], [3.0, 0.0, 3.0])


# ---- cost


def _inner_jaxprs(value):
    values = value if isinstance(value, (list, tuple)) else [value]
    for x in values:
        x = getattr(x, "jaxpr", x)
        if hasattr(x, "eqns"):
            yield x


def _sums(jaxpr, branches):
    """How many times an array of more than 1,000 elements is summed; `branches` joins a cond's."""
    count = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "reduce_sum":
            count += eqn.invars[0].aval.size > 1000
        inner = [_sums(x, branches) for value in eqn.params.values() for x in _inner_jaxprs(value)]
        count += branches(inner, default=0) if eqn.primitive.name == "cond" else sum(inner)
    return count


@by_guard
def test_no_second_pass_over_the_updates(guard):
    """The norm that the guard needs is the one that the rule inside takes anyway."""
    u = {"w": jnp.ones((40, 50)), "b": jnp.ones(2000)}
    alone = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(0.1))
    guarded = GUARDS[guard](alone)
    twice = jaxclip.skip_nonfinite(guarded)
    for branches in (min, max):
        plain, *ours = (
            _sums(jax.make_jaxpr(tx.update)(u, tx.init(u), u).jaxpr, branches)
            for tx in (alone, guarded, twice)
        )
        assert plain >= len(u)
        assert max(ours) <= plain


def test_only_the_same_norm_is_shared():
    """A changed update, another norm, or the norm of some leaves is measured again."""
    rules = {
        26.0: optax.chain(optax.scale(2.0), jaxclip.clip_by_global_norm(1.0)),
        19.0: jaxclip.clip_by_global_norm(1.0, ord=1),
        5.0: jaxclip.clip_by_global_norm(1.0, norm_mask={"w": True, "b": False}),
        12.0: optax.masked(jaxclip.clip_by_global_norm(1.0), {"w": False, "b": True}),
        13 / 3**0.5: jaxclip.clip_by(1.0, scope="global", ord="rms"),
    }
    guarded = [jaxclip.skip_nonfinite(inner) for inner in rules.values()]
    states = jax.jit(lambda u: [tx.update(u, tx.init(u))[1] for tx in guarded])(U)
    for norm, state in zip(rules, states, strict=True):
        found = [v for k, v in jaxclip.metrics(state).items() if k.endswith("/norm")]
        np.testing.assert_allclose(found, [13.0, norm], rtol=1e-6)


# ---- bad values

BAD = [
    ({"sigma": -1.0}, ValueError), ({"sigma": NAN}, ValueError), ({"sigma": True}, TypeError),
    ({"sigma": "6"}, TypeError), ({"window": 0}, ValueError), ({"window": -3}, ValueError),
    ({"window": 2.5}, TypeError), ({"window": True}, TypeError), ({"min_history": 1}, ValueError),
    ({"min_history": 129}, ValueError), ({"min_history": 2.5}, TypeError),
]  # fmt: skip
BAD_LIMITS = [(0, ValueError), (-2, ValueError), (1.5, TypeError), (True, TypeError),
              ("3", TypeError)]  # fmt: skip


@pytest.mark.parametrize(("keywords", "error"), BAD, ids=repr)
def test_bad_values(keywords, error):
    ((name, value),) = keywords.items()
    with pytest.raises(error, match=f"{name}={value!r}"):
        jaxclip.skip_spikes(optax.identity(), **keywords)


@by_guard
def test_bad_max_consecutive_and_inner(guard):
    for value, error in BAD_LIMITS:
        with pytest.raises(error, match=f"max_consecutive={value!r}"):
            GUARDS[guard](optax.identity(), max_consecutive=value)
    for inner in (None, 3, lambda u: u, "adam", optax.sgd):
        with pytest.raises(TypeError, match="inner="):
            GUARDS[guard](inner)
    with pytest.raises(TypeError, match="check_step=1 must be True or False"):
        GUARDS[guard](optax.identity(), check_step=1)
    with pytest.raises(TypeError):
        getattr(jaxclip, guard)(optax.identity(), 3)  # keyword-only
