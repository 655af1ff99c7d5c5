"""The step is computed from the selected state, whatever the transformation does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip

GOOD, BAD = jnp.array([3.0, 4.0]), jnp.array([3.0, jnp.nan])
PARAMS = jnp.array([1.0, -2.0])


def _transformation(first, update):
    return optax.GradientTransformation(lambda params: first, update)


def _average(u, s):
    return jax.tree.map(lambda x, m: 0.9 * m + x, u, s)


def _keeps_a_part(u, s, params=None):
    m = _average(u, s["m"])
    return m, {"m": m, "same": s["same"]}


def _makes_one_array_twice(u, s, params=None):
    m = _average(u, s[0])
    return -m, (m, m)


def _has_a_literal(u, s, params=None):
    return u * s[1], (_average(u, s[0]), 2.0)


def _has_a_key(u, s, params=None):
    key, sub = jax.random.split(s[0])
    m = _average(u, s[1])
    return m + jax.random.normal(sub, u.shape), (key, m)


def _branches(u, s, params=None):
    m = jax.lax.cond(s[1] % 2 == 0, lambda: _average(u, s[0]), lambda: s[0])
    return m * 2, (m, s[1] + 1)


def _multiplies(u, s, params=None):
    m = _average(u, s)
    return jnp.outer(m, m) @ m, m


def _multiplies_inside(u, s, params=None):
    m = _average(u, s)
    return jax.jit(lambda m: jnp.outer(m, m) @ m)(m), m


def _narrows(u, s, params=None):
    m = _average(u, s.astype(jnp.float32))
    return m, m.astype(jnp.bfloat16)


def _swaps(u, s, params=None):
    return s[0] + s[1], (s[1], _average(u, s[0]))


ZERO = jnp.zeros(2)
CASES = {
    "keeps a part": (_keeps_a_part, {"m": ZERO, "same": jnp.ones(3)}),
    "makes one array twice": (_makes_one_array_twice, (ZERO, ZERO + 1)),
    "has a literal": (_has_a_literal, (ZERO, 2.0)),
    "has a key": (_has_a_key, (jax.random.key(0), ZERO)),
    "branches": (_branches, (ZERO, jnp.zeros((), jnp.int32))),
    "multiplies": (_multiplies, ZERO),
    "narrows": (_narrows, ZERO.astype(jnp.bfloat16)),
    "swaps": (_swaps, (ZERO, ZERO + 1)),
}


def _bytes(tree):
    def plain(x):
        is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()

    return [plain(x) for x in jax.tree.leaves(tree)]


def _vmapped(update):
    def one(u, s):
        two = jax.tree.map(lambda x: jnp.stack([x, x]), (u, s))
        return jax.tree.map(lambda x: x[1], jax.vmap(update)(*two))

    return one


def _scanned(update):
    def one(u, s):
        s, step = jax.lax.scan(lambda s, u: update(u, s)[::-1], s, u[None])
        return step[0], s

    return jax.jit(one)


WAYS = {"eager": lambda f: f, "jit": jax.jit, "vmap": _vmapped, "scan": _scanned}


def _cases():
    """A check of the step makes another program; random numbers compile for seconds."""
    for name in CASES:
        for way, check_step in [*[(way, True) for way in WAYS], ("jit", False)]:
            is_slow = way in ("vmap", "scan") or (name == "has a key" and way == "jit")
            marks = [pytest.mark.slow] * is_slow
            yield pytest.param(name, way, check_step, marks=marks)


@pytest.mark.slow
@pytest.mark.relaxed
@pytest.mark.parametrize(("name", "way", "check_step"), list(_cases()))
def test_a_bad_step_changes_nothing_and_a_good_one_is_the_step_alone(name, way, check_step):
    update, first = CASES[name]
    first = jax.tree.map(jnp.asarray, first)
    alone = _transformation(first, update)
    guarded = jaxclip.skip_nonfinite(alone, check_step=check_step)
    own, other = WAYS[way](guarded.update), WAYS[way](alone.update)
    state, plain = guarded.init(PARAMS), first
    for u in (BAD, GOOD, BAD, 2 * GOOD, BAD, GOOD):
        before = _bytes(state.guarded_state)
        step, state = own(u, state)
        if u is BAD:
            assert not step.any()
            assert _bytes(state.guarded_state) == before
            continue
        wanted, plain = other(u, plain)
        np.testing.assert_allclose(step, wanted, rtol=1e-6)
        for x, y in zip(jax.tree.leaves(state.guarded_state), jax.tree.leaves(plain), strict=True):
            is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            x, y = (map(jax.random.key_data, (x, y))) if is_key else (x, y)
            np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=1e-6)
    assert state.skipped_count == 3


def test_a_step_that_is_not_finite_changes_nothing():
    """A step that only the new state makes so; it is computed twice."""

    def update(u, s, params=None):
        m = s * u
        return 1 / (m - 6), m

    guarded = jaxclip.skip_nonfinite(_transformation(jnp.ones(2), update))
    step, state = jax.jit(guarded.update)(GOOD, guarded.init(PARAMS))
    np.testing.assert_allclose(step, [-1 / 3, -1 / 2], rtol=1e-6)
    step, state = jax.jit(guarded.update)(jnp.array([2.0, 1.0]), state)
    assert not step.any()
    assert (state.guarded_state == GOOD).all()
    assert state.nonfinite_step_count == 1


@pytest.mark.relaxed
def test_a_state_that_changes_its_dtype():
    """The first step is computed from the new dtype, as without a guard."""

    def update(u, s, params=None):
        m = (s + u).astype(jnp.bfloat16)
        return jax.lax.bitcast_convert_type(m, jnp.int16), m

    guarded = jaxclip.skip_nonfinite(_transformation(ZERO, update), check_step=False)
    step, state = jax.jit(guarded.update)(GOOD, guarded.init(PARAMS))
    assert (jax.lax.bitcast_convert_type(step, jnp.bfloat16) == GOOD).all()
    assert (state.guarded_state == GOOD).all()


@pytest.mark.relaxed
@pytest.mark.parametrize("inner", [_multiplies, _multiplies_inside])
def test_nothing_expensive_is_computed_twice(inner):
    guarded = jaxclip.skip_nonfinite(_transformation(ZERO, inner))
    text = jax.jit(guarded.update).lower(GOOD, guarded.init(PARAMS)).compile().as_text()
    assert text.count(" dot(") == 1


def test_an_effect_happens_once():
    seen = []

    def update(u, s, params=None):
        m = s + u
        jax.debug.callback(seen.append, m)
        return m, m

    guarded = jaxclip.skip_nonfinite(_transformation(ZERO, update))
    jax.block_until_ready(jax.jit(guarded.update)(GOOD, guarded.init(PARAMS)))
    jax.effects_barrier()
    assert len(seen) == 1


def test_a_callback_without_effect_is_called_once():
    """It may be expensive, so the step that it makes is not computed twice."""
    called = []

    def on_the_host(m):
        called.append(m)
        return np.asarray(m)

    def update(u, s, params=None):
        m = s + u
        return jax.pure_callback(on_the_host, m, m), m

    guarded = jaxclip.skip_nonfinite(_transformation(ZERO, update))
    jax.block_until_ready(jax.jit(guarded.update)(GOOD, guarded.init(PARAMS)))
    assert len(called) == 1


def test_derivative():
    """By the update and by the state, through a guard as without one."""

    def loss(tx):
        def of(u, s):
            state = tx.init(PARAMS)
            state = state._replace(guarded_state=s) if hasattr(state, "guarded_state") else s
            return jnp.sum(tx.update(u, state)[0] ** 2)

        return of

    def update(u, s, params=None):
        m = 0.5 * s + u * u
        return m, m

    alone = _transformation(ZERO, update)
    guarded = jaxclip.skip_nonfinite(alone)
    found = jax.jit(jax.grad(loss(guarded), (0, 1)))(GOOD, PARAMS)
    wanted = jax.grad(loss(alone), (0, 1))(GOOD, PARAMS)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
