"""`scale_loss`: the scale, its exactness, its dtypes, and training in float16."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import dynamic_scale

import jaxclip
from tests.support import guards, registry
from tests.support.guards import U

NAN, INF = math.nan, math.inf


class Reference:
    """The scale for each next loss; `finite` says of each step whether its gradient was."""

    def __init__(self, init, period, factor, least, most, hysteresis):
        self.scale, self.run, self.overflows = init, 0, 0
        self.period, self.factor, self.hysteresis = period, factor, hysteresis
        self.least, self.most = least, most

    def __call__(self, finite):
        if finite:
            self.run += 1
            if self.run == self.period:
                self.scale = min(self.scale * self.factor, self.most)
                self.run = self.overflows = 0
        else:
            self.run, self.overflows = 0, self.overflows + 1
            if self.overflows >= self.hysteresis:
                self.scale = max(self.scale / self.factor, self.least)
        return self.scale


def _scales(tx, finite, init=None):
    """The scale after each step, in one program."""

    def body(state, good):
        grads = jnp.where(good, 1.0, NAN) * jaxclip.loss_scale(state) * jnp.ones(2)
        out, state = tx.update(grads, state)
        return state, (jaxclip.loss_scale(state), out[0], state.skipped)

    return jax.lax.scan(body, tx.init(jnp.ones(2)), jnp.asarray(finite))[1]


@pytest.mark.parametrize(
    ("steps", "setting"),
    [
        (40, (2.0**4, 3, 4.0, 2.0, 2.0**9, 2)),
        pytest.param(1000, (2.0**4, 7, 2.0, 2.0**-3, 2.0**12, 1), marks=pytest.mark.slow),
        pytest.param(1000, (2.0**4, 5, 4.0, 2.0**-3, 2.0**11, 3), marks=pytest.mark.slow),
    ],
)
def test_against_its_reference(steps, setting):
    finite = np.random.default_rng(1).random(steps) > 0.12
    finite[10:25] = False  # down to the least scale
    finite[25 : 25 + steps // 4] = True
    init, period, factor, least, most, hysteresis = setting
    tx = jaxclip.scale_loss(optax.scale(3.0), init, period=period, factor=factor, min_scale=least,
                            max_scale=most, hysteresis=hysteresis)  # fmt: skip
    scales, outs, skipped = _scales(tx, finite)
    reference = Reference(*setting)
    np.testing.assert_array_equal(scales, [reference(good) for good in finite])
    np.testing.assert_array_equal(outs, np.where(finite, 3.0, 0.0))
    np.testing.assert_array_equal(skipped, ~finite)
    assert {least, init} <= set(np.asarray(scales).tolist())


@pytest.mark.slow
def test_period_is_that_of_the_name():
    """Flax's grows after one finite step more than its `growth_interval`."""
    theirs, grown = dynamic_scale.DynamicScale(growth_interval=3, scale=2.0), []
    for _ in range(9):
        theirs, *_ = theirs.value_and_grad(lambda x: x)(1.0)
        grown.append(float(theirs.scale))
    assert grown == [2, 2, 2, 4, 4, 4, 4, 8, 8]
    ours, _, _ = _scales(jaxclip.scale_loss(optax.identity(), 2.0, period=3), [True] * 9)
    assert ours.tolist() == [2, 2, 4, 4, 4, 8, 8, 8, 16]


def _loss(params, x, y):
    h = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean((h @ params["v"] - y) ** 2)


def _data():
    draw = np.random.default_rng(0).standard_normal
    params = {"w": draw((5, 8)), "b": draw(8), "v": draw(8)}
    return jax.tree.map(jnp.float32, (params, draw((6, 16, 5)), draw((6, 16))))


def _run(tx, scaled, wrap=jax.jit):
    params, xs, ys = _data()
    state = tx.init(params)

    def step(params, state, x, y):
        scale = jaxclip.loss_scale(state) if scaled else jnp.float32(1)
        grads = jax.grad(lambda p: _loss(p, x, y) * scale)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = wrap(step)
    for x, y in zip(xs, ys, strict=True):
        params, state = step(params, state, x, y)
    return params, state


@pytest.mark.slow
@pytest.mark.relaxed
@pytest.mark.parametrize("wrap", [jax.jit, lambda step: step], ids=["jit", "eager"])
def test_without_an_overflow_it_is_the_unscaled_run_bit_for_bit(wrap):
    """While the scale changes; the norm that is clipped and recorded is the unscaled one."""
    chain = optax.chain(jaxclip.clip_by_global_norm(0.5), optax.adamw(1e-2))
    tx = jaxclip.scale_loss(chain, 2.0**10, period=2)
    (want, plain), (got, state) = (_run(t, t is tx, wrap) for t in (chain, tx))
    assert float(jaxclip.loss_scale(state)) == 2.0**13
    registry.assert_same_bits(got, want)
    registry.assert_same_bits(state.guarded_state, plain)
    assert int(state.guarded_state[0].clipped_count) > 0
    assert float(state.norm) == float(plain[0].norm)


def test_bad_gradients_and_losses():
    tx = jaxclip.scale_loss(optax.trace(0.9), 2.0**3, period=2)
    values = [jnp.float32(x) for x in (1.0, 1.0, NAN, 1.0, INF, 1.0)]
    outs, states = guards.loop(tx, [1.0, INF, 1.0, NAN, 1.0, 1.0], value=values)
    assert [guards.is_zero(x) for x in outs] == [False, True, True, True, True, False]
    assert [float(jaxclip.loss_scale(s)) for s in states] == [8, 4, 2, 1, 0.5, 0.5]
    for before, after in itertools.pairwise(states[:5]):
        registry.assert_same_bits(after.guarded_state, before.guarded_state)
    found = jaxclip.metrics(states[-1])
    assert list(found) == [
        f"scale_loss/{key}"
        for key in ("norm", "skipped", "count", "skipped_count", "consecutive_count",
                    "nonfinite_count", "nonfinite_step_count", "loss_scale")
    ]  # fmt: skip
    assert int(found["scale_loss/skipped_count"]) == int(found["scale_loss/nonfinite_count"]) == 4
    assert float(found["scale_loss/norm"]) == 13.0 / 0.5


def test_division_that_overflows():
    """By a scale below 1; the same gradient is fine at 1, where its norm is beyond float32."""
    large = {"w": jnp.full(4, 3e38)}
    for scale, skipped in ((1.0, False), (0.5, True)):
        tx = jaxclip.scale_loss(optax.identity(), scale)
        out, state = jax.jit(tx.update)(large, tx.init(large))
        assert bool(state.skipped) == skipped
        assert guards.is_zero(out) == skipped
        assert int(state.nonfinite_count) == skipped


@pytest.mark.slow
def test_rules_inside_share_the_norm():
    chain = optax.chain(jaxclip.clip_by_global_norm(1.0), jaxclip.monitor())
    tx = jaxclip.scale_loss(jaxclip.skip_nonfinite(chain), 2.0**5)
    _, states = guards.loop(tx, [32.0])
    found = jaxclip.metrics(states[0])
    for rule in ("scale_loss", "skip_nonfinite", "clip_by_global_norm"):
        assert float(found[f"{rule}/norm"]) == 13.0
    jaxpr = str(jax.make_jaxpr(tx.update)(U, tx.init(U), U))
    alone = str(jax.make_jaxpr(chain.update)(U, chain.init(U), U))
    assert jaxpr.count("sqrt") == alone.count("sqrt") > 0


def test_scale_of_a_state():
    tx = jaxclip.scale_loss(optax.adam(1e-3), 2.0**7)
    nested = optax.chain(
        jaxclip.rollback(jaxclip.skip_nonfinite(tx), threshold=1.0), optax.scale(1)
    )
    assert float(jaxclip.loss_scale(nested.init(U))) == 2.0**7
    twice = optax.chain(tx, tx).init(U)
    for state, number in ((optax.adam(1e-3).init(U), 0), (twice, 2), (U, 0)):
        with pytest.raises(ValueError, match=f"has {number} states of scale_loss"):
            jaxclip.loss_scale(state)
    with pytest.raises(TypeError, match="scale_loss needs its own ScaleLossState"):
        tx.update(U, optax.EmptyState(), U)


@pytest.mark.slow
@pytest.mark.relaxed
def test_around_multi_steps():
    """A bad micro-step is left out, and the sum is that of the divided gradients in float32."""
    tx = jaxclip.scale_loss(optax.MultiSteps(optax.sgd(1.0), 2), 4.0)
    u = {"w": jnp.array([4.0, 8.0], jnp.float16)}
    state, update = tx.init(u), jax.jit(tx.update)
    outs = []
    for factor in (4.0, NAN, 6.0):
        grads = jax.tree.map(lambda x, f=factor: x * jnp.float16(f), u)
        out, state = update(grads, state, u)
        outs.append(out["w"].tolist())
    # The scale was 4, 4 and 2: gradients of (4, 8) and (12, 24).
    assert outs == [[0.0, 0.0], [0.0, 0.0], [-8.0, -16.0]]


def test_traced_scale_becomes_a_power_of_two():
    init = jax.jit(lambda scale: jaxclip.scale_loss(optax.identity(), scale).init(U))
    assert [float(jaxclip.loss_scale(init(x))) for x in (70.0, 1e30, -1.0)] == [64, 2**60, 2**-60]


@pytest.mark.slow
def test_inject_hyperparams():
    made = optax.inject_hyperparams(jaxclip.scale_loss, static_args=("period", "hysteresis"))
    tx = made(optax.identity(), init=8.0, period=2, factor=2.0, max_scale=16.0)
    state = tx.init(U)
    assert float(jaxclip.metrics(state)["scale_loss/loss_scale"]) == 8.0
    state.hyperparams["max_scale"] = jnp.float32(70.0)
    outs, states = guards.loop(tx, [1.0] * 8, state=state)
    assert float(jaxclip.loss_scale(states[-1])) == 64.0
    registry.assert_same_bits(outs[0], jax.tree.map(lambda x: x / 8, U))


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"init": 3.0}, ValueError), ({"init": 2.0**25}, ValueError), ({"init": 0.0}, ValueError),
        ({"init": "8"}, TypeError), ({"init": True}, TypeError), ({"factor": 1.5}, ValueError),
        ({"factor": 1.0}, ValueError), ({"factor": 3}, ValueError),
        ({"min_scale": 0.3}, ValueError),
        ({"max_scale": 1000}, ValueError), ({"max_scale": 2.0**61}, ValueError),
        ({"max_scale": 2.0**-15}, ValueError), ({"min_scale": 2.0**-61}, ValueError),
        ({"period": 0}, ValueError), ({"period": 2.5}, TypeError), ({"hysteresis": 0}, ValueError),
        ({"hysteresis": True}, TypeError), ({"init": NAN}, ValueError),
    ],
    ids=repr,
)  # fmt: skip
def test_bad_values(keywords, error):
    ((name, value),) = keywords.items()
    with pytest.raises(error, match=re.escape(f"{name}={value!r}")):
        jaxclip.scale_loss(optax.identity(), **keywords)
