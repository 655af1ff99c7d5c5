"""`max_growth` at the edges: dtypes, large norms, spikes, traced values, states, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from jaxclip import thresholds
from tests.support import learned, modes, registry
from tests.support.contexts import case, one_by_one

NAN = float("nan")
SOON = {"warmup_steps": 2, "max_norm": None}
RULES = {
    "autoclip": lambda **k: jaxclip.autoclip(50, window=4, **k),
    "clip_by_history": lambda **k: jaxclip.clip_by_history(window=4, min_history=2, **k),
    "zclip": lambda **k: jaxclip.zclip(**SOON, **k),
    "adagc": lambda **k: jaxclip.adagc(warmup_steps=2, warmup_norm=1e30, **k),
    "tracked": lambda scope="leaf", max_growth=None, **k: jaxclip.clip_by(
        thresholds.tracked_quantile(max_growth=max_growth), scope=scope, **k
    ),
}


def _program(jit=True, names=tuple(RULES), **keywords):
    """A function of norms: `{rule: (norms that come out, thresholds, last state)}`."""
    rules = {name: RULES[name](**keywords) for name in names}

    def step(states, n):
        both = {k: rule.update(n[None], states[k]) for k, rule in rules.items()}
        kept = {k: (out[0], s.threshold) for k, (out, s) in both.items()}
        return {k: s for k, (_, s) in both.items()}, kept

    step = jax.jit(step) if jit else step

    def run(norms, dtype="float32", like="float32"):
        states, seen = {k: rule.init(jnp.zeros(1, like)) for k, rule in rules.items()}, []
        for n in jnp.asarray(norms, dtype):
            states, kept = step(states, n)
            seen.append(kept)
        outs = jax.tree.map(lambda *x: np.stack(x), *seen)
        return {k: (*outs[k], states[k]) for k in rules}

    return run


def _memories(result):
    return {k: state.memory for k, (_, _, state) in result.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "like"), [("float16", "narrow"), ("bfloat16", "float32"), ("float64", "narrow")]
)
def test_dtypes(dtype, like):
    """Memories of 16-bit norms are float32, where a factor of 1.002 is not 1."""
    with modes.maybe_x64(dtype):
        grads = 0.01 * np.append(1.5 ** np.arange(25), np.full(40, 1.5**24))
        run = _program(max_growth=1.002)
        result = run(grads, dtype, dtype if like == "narrow" else "float32")
        first, eps = float(jnp.asarray(grads, dtype)[0]), float(jnp.finfo(dtype).eps)
        for name, (outs, _, state) in result.items():
            with case(name):
                assert outs.dtype == dtype
                most = first * 1.002 ** np.arange(1, 66)
                assert (np.float64(outs) <= most * (1 + max(2 * eps, 1e-5))).all()
                assert float(outs[-1]) > 1.05 * first or name == "adagc"
                kinds = {x.dtype.name for x in jax.tree.leaves(state.memory)}
                wide = "float64" if (dtype, like) == ("float64", "narrow") else "float32"
                assert kinds <= {wide, "int32"}


@pytest.mark.slow
def test_norms_that_do_not_count_change_nothing():
    """Not even a bit of the memory, nor how far the next threshold may grow."""
    good = [1.0, 1.5, 2.25, 3.4, 5.0]
    broken = [NAN, 1.0, 0.0, 1.5, jnp.inf, NAN, 2.25, 0.0, 3.4, 5.0, NAN]
    run = _program(max_growth=1.1)
    want, got = run(good), run(broken)
    for name in set(RULES) - {"adagc"}:  # whose warm-up counts updates
        with case(name):
            registry.assert_same_bits(_memories(got)[name], _memories(want)[name])


@pytest.mark.parametrize("most", [1.0, 1000.0])
@pytest.mark.slow
def test_constant_norms_are_kept(most):
    for name, (outs, *_) in _program(max_growth=most)(np.full(20, 0.7)).items():
        kept = outs[:1] if name == "tracked" else outs
        np.testing.assert_array_equal(kept, np.float32(0.7), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("jit", [True, False])
def test_norms_near_the_largest_float(jit):
    """Nothing overflows where a threshold is multiplied; without jit every operation is seen."""
    # The others take a power of two near the norm, which overflows by itself.
    names = tuple(RULES) if jit else ("autoclip", "zclip", "tracked")
    run = _program(jit, names, max_growth=1000.0)
    with jax.debug_infs(True):
        for size in (3e38, 3.2e38):
            norms = np.full(4, size)
            result = run(norms)
            for name, (outs, limits, _) in result.items():
                with case(name):
                    assert np.isfinite(outs).all()
                    assert np.isfinite(limits).all()
                    if name not in ("tracked", "adagc"):
                        np.testing.assert_array_equal(outs, np.float32(norms))


@pytest.mark.slow
def test_quantile_0_divides_by_no_share():
    rule = jaxclip.clip_by(thresholds.tracked_quantile(0.0, max_growth=1.1), scope="leaf")
    with jax.debug_infs(True):
        state, update = rule.init(jnp.zeros(1)), jax.jit(rule.update)
        for n in (1.0, 0.5, 2.0):
            out, state = update(jnp.array([n]), state)
    np.testing.assert_allclose(out, np.exp(-0.4), rtol=1e-5)  # below two norms of three


def test_a_spike_does_not_lower_what_is_allowed():
    """Its own threshold may be far less than the largest norm that is no spike."""
    rule = jaxclip.zclip(mode="reciprocal", max_growth=1.01, **SOON)
    state, update = rule.init(jnp.zeros(1)), jax.jit(rule.update)
    seen = []
    for n in (*[1.0, 1.2] * 40, 50.0, 1.1):
        _, state = update(jnp.array([n]), state)
        seen.append((float(state.threshold), float(state.memory[0].allowed_norm)))
    (before, _), (spike, at), (after, _) = seen[-3:]
    assert spike < 1.12
    assert at == pytest.approx(before, rel=0.03)
    assert after > 1.25


def test_spikes_do_not_raise_what_is_allowed():
    """Else many in a row would raise it step by step, unseen, until the warm-up restarts."""
    keep = {"restart_after": 20, "skip_update_on_spike": True}
    rule = jaxclip.zclip(mode="max", max_growth=1.1, **SOON, **keep)
    norms = [1.0, 1.2, *[100.0] * 30]
    outs, _ = one_by_one(rule, norms)
    grown = np.array(outs[3:]) / np.array(outs[2:-1])
    assert (grown <= 1.1 * (1 + 1e-5)).all()
    assert outs[-1] > 2.0


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_tracked_quantile_stays_the_quantile(q):
    """A share q of noisy norms is within the threshold, as without `max_growth`."""
    rule = jaxclip.clip_by(thresholds.tracked_quantile(q, max_growth=1.01), scope="global")
    norms = np.float32(np.random.default_rng(0).lognormal(0, 0.5, 12_000))

    @jax.jit
    def run(norms):
        def body(state, n):
            out, state = rule.update(n[None], state)
            return state, out[0]

        return jax.lax.scan(body, rule.init(jnp.zeros(1)), norms)[1]

    clipped = (np.asarray(run(norms)) < norms)[1000:]
    assert clipped.mean() == pytest.approx(1 - q, abs=0.02)


def test_tracked_quantile_starts_at_initial():
    threshold = thresholds.tracked_quantile(0.5, initial=5.0, max_growth=1.1)
    outs, _ = one_by_one(jaxclip.clip_by(threshold, scope="leaf"), [100.0] * 4)
    np.testing.assert_allclose(outs, 5.0 * 1.1 ** np.arange(4), rtol=1e-5)
    outs, _ = one_by_one(jaxclip.clip_by(threshold, scope="leaf"), [1.0])
    assert outs == [1.0]


@pytest.mark.slow
def test_traced():
    """Under jit; one outside of its interval is moved into it."""
    norms = np.float32(1.5 ** np.arange(12))
    run = jax.jit(lambda m: _traced(norms, m))
    fixed = {k: x[0] for k, x in _program(max_growth=1.1)(norms).items()}
    for given, want in ((1.1, fixed), (0.2, run(1.0)), (5000.0, run(1000.0))):
        got = run(given)
        for name in RULES:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, err_msg=name)


def _traced(norms, most):
    rules = {name: make(max_growth=most) for name, make in RULES.items()}

    def body(states, n):
        both = {k: rule.update(n[None], states[k]) for k, rule in rules.items()}
        return {k: s for k, (_, s) in both.items()}, {k: o[0] for k, (o, _) in both.items()}

    return jax.lax.scan(body, {k: r.init(jnp.zeros(1)) for k, r in rules.items()}, norms)[1]


@pytest.mark.slow
@pytest.mark.relaxed  # Optax's own
def test_in_a_state_of_optax():
    rule = optax.inject_hyperparams(jaxclip.autoclip)(50.0, window=4, max_growth=1.1)
    state, update = rule.init(jnp.zeros(1)), jax.jit(rule.update)
    _, state = update(jnp.array([1.0]), state)
    state.hyperparams["max_growth"] = jnp.float32(1.5)
    out, state = update(jnp.array([10.0]), state)
    np.testing.assert_allclose(out, [1.5], rtol=1e-6)


def test_memory_without_it_is_as_before():
    """The fields that are on disk already."""
    fields = {k: type(make().init(jnp.zeros(1)).memory[0]).__name__ for k, make in RULES.items()}
    assert fields == {"autoclip": "Window", "clip_by_history": "Ring", "zclip": "Moments",
                      "adagc": "Average", "tracked": "Tracked"}  # fmt: skip
    for k, make in RULES.items():
        kind = type(make(max_growth=1.1).init(jnp.zeros(1)).memory[0]).__name__
        assert kind == ("Tracked" if k == "tracked" else "Growth")


@pytest.mark.parametrize("name", RULES)
def test_adopt(name):
    """The memory with it is another one: an error says how to start anew, and that works."""
    u = jnp.ones(2)
    for old, new in (({}, {"max_growth": 1.1}), ({"max_growth": 1.1}, {})):
        old_rule, new_rule = (RULES[name](**k) for k in (old, new))
        state = old_rule.init(u)
        if name == "tracked":
            registry.assert_same_bits(jaxclip.adopt(new_rule, u, state), state)
            continue
        with pytest.raises(ValueError, match=rf"Growth(.|\n)*To start {name} anew"):
            jaxclip.adopt(new_rule, u, state)
        without = jaxclip.adopt(optax.identity(), u, state)
        registry.assert_same_bits(jaxclip.adopt(new_rule, u, without), new_rule.init(u))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "kind"), [("global", AxisType.Explicit), ("leaf", AxisType.Auto)], ids=str
)
def test_eight_devices(scope, kind):
    """Sharded norms have the result of one device."""
    stacked = {"kernel": np.random.default_rng(1).normal(size=(12, 16, 3)).astype(np.float32)}
    stacked["kernel"] *= 1.5 ** np.arange(12, dtype=np.float32)[:, None, None]
    rule = learned.together(scope=scope, names=("zclip", "adagc", "autoclip"), max_growth=1.1)

    def run(stacked):
        like = jax.tree.map(lambda x: x[0], stacked)
        return jax.lax.scan(lambda s, u: rule.update(u, s)[::-1], rule.init(like), stacked)

    want = jax.jit(run)(stacked)
    mesh = jax.make_mesh((8,), ("x",), (kind,), devices=jax.devices()[:8])
    with jax.set_mesh(mesh):
        put = jax.device_put(stacked, NamedSharding(mesh, P(None, "x")))
        got = jax.jit(run)(put)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
