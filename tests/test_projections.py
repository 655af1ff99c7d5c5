"""Projections: they land where the formula says, stay there, and leave alone what is inside."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests import modes, registry, weights
from tests import oracles as o
from tests.weights import BY_NAME, PROJECTIONS, TREE, UNITS

SMALL = {"kernel": (6, 4), "bias": (4,), "scale": (4,)}
SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float16", "float64")]


def apply(tx, updates, params):
    """One step, in JAX's default promotion: Optax adds a float32 update to 16-bit parameters."""
    new, _ = tx.update(updates, tx.init(params), params)
    with modes.relaxed():
        return optax.apply_updates(params, new)


def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def norms(w, axis=None):
    return o.norm(w, 2, o.unit_axes(np.ndim(w), axis))


@jax.jit
def steps(updates, params):
    """Every projection once, `{name: tree}` to `{name: tree}`."""
    return {
        name: apply(BY_NAME[name].make(BY_NAME[name].c), updates[name], params[name])
        for name in params
    }


@jax.jit
def functions(params):
    return {name: BY_NAME[name].pure(w, BY_NAME[name].c) for name, w in params.items()}


def for_each(tree, which=PROJECTIONS):
    return {projection.name: tree for projection in which}


# ---- where they land


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *SLOW])
def test_lands_and_stays(dtype):
    """Every rank, then every dtype; and the next step of nothing changes no bit."""
    with modes.maybe_x64(dtype):
        tree = TREE if dtype == "float32" else SMALL
        p, u = registry.build(tree, dtype, scale=2), registry.build(tree, dtype, seed=1, scale=0.5)
        once = steps(for_each(u), for_each(p))
        again = steps(jax.tree.map(jnp.zeros_like, once), once)
        for projection in PROJECTIONS:
            landed = once[projection.name]
            weights.assert_lands(projection, projection.c, p, u, landed)
            registry.assert_kept(landed, p)
            if projection.closed:
                registry.assert_same_bits(again[projection.name], landed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *SLOW])
def test_functions_do_the_same(dtype):
    """`jaxclip.functional` rounds once more rarely: no difference is taken on the way."""
    with modes.maybe_x64(dtype):
        tree = {"kernel": (6, 4), "conv": (2, 3, 4, 5)} if dtype == "float32" else (6, 4)
        p = registry.build(tree, dtype, scale=2)
        once = functions(for_each(p))
        again = functions(once)
        for projection in PROJECTIONS:
            landed = once[projection.name]
            weights.assert_lands(projection, projection.c, p, zeros(p), landed)
            registry.assert_kept(landed, p)
            if projection.closed:
                registry.assert_same_bits(again[projection.name], landed)


def test_axes():
    """An int, several, one that a leaf lacks, negative ones, a function of name and leaf."""

    def by_name(name, leaf):
        return {"dense/kernel": 0}.get(name, leaf.ndim - 1)

    p = registry.build({k: TREE[k] for k in ("dense", "conv1")}, scale=2)
    axes = [1, (0, 2), -1, by_name]
    run = jax.jit(
        lambda p: [apply(jaxclip.project_max_norm(1.5, axis=a), zeros(p), p) for a in axes]
    )
    for axis, out in zip(axes, run(p), strict=True):
        for key, leaf in p.items():
            own = by_name(f"{key}/kernel", leaf["kernel"]) if axis is by_name else axis
            weights.assert_lands(
                BY_NAME["max_norm"],
                1.5,
                leaf["kernel"],
                leaf["kernel"] * 0,
                out[key]["kernel"],
                own,
            )
            assert (norms(leaf["kernel"], own) > 1.5).any()


def test_masks():
    p = registry.build({"kernel": (6, 4), "bias": (4,), "conv": (2, 3, 4, 5)}, scale=2)
    attention = {"query": {"kernel": (4, 2, 3), "bias": (2, 3)}}  # a bias of rank 2
    cases = [
        ({"kernel": False, "bias": True, "conv": False}, {"bias"}),
        (lambda tree: jax.tree.map(lambda x: x.ndim == 4, tree), {"conv"}),
        (True, {"kernel", "bias", "conv"}),
        (False, set()),
        (None, {"kernel", "conv"}),
    ]
    run = jax.jit(lambda p: [_half(mask, p) for mask, _ in cases])
    for (_, touched), outs in zip(cases, run(p), strict=True):
        for out in outs:
            assert {key for key in p if not np.array_equal(out[key], p[key])} == touched
    p = registry.build(attention, scale=2)["query"]
    out = apply(jaxclip.project_box(-0.5, 0.5), zeros({"query": p}), {"query": p})["query"]
    registry.assert_same_bits(out["bias"], p["bias"])
    assert np.abs(out["kernel"]).max() == 0.5


def _half(mask, p):
    made = jaxclip.project_max_norm(0.5, mask=mask), jaxclip.project_box(-0.5, 0.5, mask=mask)
    return [apply(tx, zeros(p), p) for tx in made]


_VECTORS = st.lists(st.floats(-1, 1, width=16), min_size=4, max_size=4)


@hypothesis.given(_VECTORS, _VECTORS, st.floats(2.0**-10, 1024.0, width=32))
def test_idempotent_whatever_the_step(start, step, limit):
    """From weights inside, any step lands on the limit at most, and then nothing moves."""
    tx = jaxclip.project_max_norm(limit)

    def column(values, k):
        return {"k": jnp.asarray(np.asarray(values) * k, jnp.float32)[:, None]}

    w, u = column(start, limit / 2), column(step, limit * 4)
    once = apply(tx, u, w)
    moved = o.wide(w["k"]) + o.wide(u["k"])
    np.testing.assert_allclose(
        once["k"], weights.between(moved, 0, limit), rtol=1e-6, atol=5e-7 * limit
    )
    assert norms(once["k"]).max() <= limit * (1 + 5e-7)
    # By value and not by bits, since -0.0 + 0.0 is 0.0.
    np.testing.assert_array_equal(apply(tx, zeros(once), once)["k"], once["k"])
    np.testing.assert_array_equal(apply(tx, zeros(w), w)["k"], w["k"])


@pytest.mark.parametrize("dtype", ["bfloat16", SLOW[0]])
def test_16_bit_parameters_get_a_float32_update(dtype):
    """So that w + u rounds once; leaves that are not projected keep what they had."""
    p, u = registry.build(SMALL, dtype, scale=2), registry.build(SMALL, dtype, seed=1)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) * 1.001, u)
    tx = jaxclip.project_max_norm(2.0)
    for step in (u, wide):
        updates, _ = tx.update(step, tx.init(p), p)
        assert updates["kernel"].dtype == jnp.float32
        registry.assert_same_bits(updates["bias"], step["bias"])
        weights.assert_lands(BY_NAME["max_norm"], 2.0, p, step, apply(tx, step, p))


def test_a_bound_that_16_bits_cannot_write():
    """What is stored next to it counts as inside."""
    p = jnp.full((2, 3), 0.3, jnp.bfloat16)
    tx = jaxclip.project_box(-0.3, 0.3, record=True)
    updates, state = tx.update(p * 0, tx.init(p), p)
    assert float(p[0, 0]) > 0.3
    np.testing.assert_array_equal(updates, np.zeros((2, 3)))
    assert (float(state.fraction), int(state.clipped_count)) == (0.0, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", SLOW[0]])
def test_weights_stay_within_an_epsilon_whatever_is_added(dtype):
    """Single weights, whose rounding nothing evens out, pushed at the limit by small steps."""
    steps, limits = 40, np.linspace(0.5, 4, 23)
    tx = jaxclip.project_max_norm(list(limits))
    p = [jnp.full((1, 1), c, dtype) for c in limits]
    sizes = np.random.default_rng(0).uniform(0, 2 * registry.eps(dtype), (steps, len(limits)))

    @jax.jit
    def run(p):
        def body(p, size):
            u = [size[i] * w.astype(jnp.float32) for i, w in enumerate(p)]
            p = apply(tx, u, p)
            return p, jnp.stack([w[0, 0].astype(jnp.float32) for w in p])

        return jax.lax.scan(body, p, jnp.asarray(sizes, jnp.float32))[1]

    reached = np.asarray(run(p), np.float64) / limits
    assert reached.max() <= 1 + registry.eps(dtype) * 1.01
    assert reached.max() > 1  # some rest on the far side of the limit, within the rounding
    assert reached.min() >= 1 - registry.eps(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", SLOW[1]])
def test_no_element_beyond_its_bound(dtype):
    """Not by one float: some bounds cannot be reached by adding a float to a weight."""
    with modes.maybe_x64(dtype):
        rng = np.random.default_rng(0)
        bounds = [(-0.2, 0.3), (-10.0, 0.1), (0.1, 0.3), (-1e-3, 7.0), (None, 0.3), (-0.7, None)]
        p = [jnp.asarray(np.clip(rng.normal(size=(40, 50)), *b), dtype) for b in bounds]
        u = [jnp.asarray(3 * rng.normal(size=(40, 50)), dtype) for _ in bounds]
        tx = jaxclip.project_box(*map(list, zip(*bounds, strict=True)))
        run = jax.jit(lambda u, p: apply(tx, u, p))
        once = run(u, p)
        for (low, high), w, step, out in zip(bounds, p, u, once, strict=True):
            low, high = (None if x is None else o.wide(jnp.asarray(x, dtype)) for x in (low, high))
            want = np.clip(o.wide(w) + o.wide(step), low, high)
            assert low is None or o.wide(out).min() >= low
            assert high is None or o.wide(out).max() <= high
            np.testing.assert_allclose(o.wide(out), want, rtol=0, atol=16 * registry.eps(dtype))
        registry.assert_same_bits(run(zeros(once), once), once)


# ---- what is not an ordinary weight


def test_odd_leaves():
    """Nothing to project: what is empty, no array, no float; and zeros, which are in every set."""
    p = {"zero": jnp.zeros((3, 2)), "none": None, "int": jnp.array([[300, -400]])}
    p |= {"empty": jnp.zeros((0, 2)), "narrow": jnp.zeros((3, 0)), "flag": jnp.array([[True]])}
    for name, out in steps(for_each(zeros(p)), for_each(p)).items():
        with weights.case(name):
            registry.assert_same_bits(out, p)
    for name, out in functions(for_each(p)).items():
        with weights.case(name):
            registry.assert_same_bits(out, p)


def test_weights_that_are_not_finite_stay_as_they_are():
    """And so does their unit; the other units are projected."""
    bad = [jnp.nan, jnp.inf, -jnp.inf]
    p = {str(x): jnp.array([[x, 3.0], [9.0, 4.0]]) for x in bad}
    u = jax.tree.map(lambda w: jnp.where(jnp.isfinite(w), w, 1.0) * 0.25, p)
    for name, out in steps(for_each(u), for_each(p)).items():
        with weights.case(name):
            for key, w in p.items():
                assert np.array_equal(out[key][0, 0], w[0, 0], equal_nan=True)
                projection = BY_NAME[name]
                if projection.units:
                    np.testing.assert_array_equal(out[key][:, 0], [w[0, 0], 11.25])
                    moved = o.wide(w)[:, 1:] * 1.25
                    want = projection.want(moved, projection.c)
                    np.testing.assert_allclose(out[key][:, 1:], want, rtol=1e-6)
                elif projection.function == "project_spectral_norm":
                    np.testing.assert_array_equal(out[key], w + u[key])


def test_an_infinite_step_is_not_followed():
    p = {"k": jnp.array([[1.0, 3.0], [2.0, 4.0]])}
    u = {"k": jnp.array([[jnp.inf, 1.0], [0.0, 1.0]])}
    out = apply(jaxclip.project_box(-2.0, 2.0), u, p)["k"]
    np.testing.assert_array_equal(out, np.full((2, 2), 2.0))  # as min(max(w, lo), hi) says
    out = apply(jaxclip.project_max_norm(2.0), u, p)["k"]
    np.testing.assert_array_equal(out[:, 0], [np.inf, 2.0])  # neither hidden nor spread
    np.testing.assert_allclose(norms(out[:, 1:]), 2.0, rtol=1e-6)


def test_extremes():
    """As if computed in float64, though squares overflow and underflow."""
    v = np.array([[0.6, 1.0], [0.8, -2.0]])
    cases = {f"{s:g}": jnp.asarray(v * s, jnp.float32) for s in (1e30, 1e-30)}
    for name, out in functions(for_each(cases)).items():
        projection = BY_NAME[name]
        with weights.case(name):
            for key, w in cases.items():
                if name == "spectral_clip_iterative" and key == "1e+30":
                    assert np.isfinite(out[key]).all()  # measured up to a ratio of 1,000
                    continue
                want = projection.want(o.wide(w), projection.c)
                np.testing.assert_allclose(out[key], want, rtol=2e-6)
    out = steps(for_each(cases, UNITS), for_each(zeros(cases), UNITS))
    for projection in UNITS:  # steps from 0 to there
        for key, w in cases.items():
            want = projection.want(o.wide(w), projection.c)
            np.testing.assert_allclose(out[projection.name][key], want, rtol=2e-6)
    whole = apply(jaxclip.project_max_norm(2.0), zeros(cases), cases)
    assert np.isfinite(whole["1e+30"]).all()  # P(w) - w cannot be written in float32 there


# ---- limits


def test_limits():
    p = registry.build({"a": (6, 4), "b": (5, 3)}, scale=3)
    p["b"] = p["b"].at[1:].set(p["b"][0])  # of rank 1
    u = zeros(p)
    inf = float("inf")
    free = [
        jaxclip.project_max_norm(inf), jaxclip.project_max_norm(None),
        jaxclip.project_min_max_norm(0.0, None), jaxclip.project_min_max_norm(None, inf),
        jaxclip.project_box(None, None), jaxclip.project_box(-inf, inf),
        jaxclip.project_spectral_norm(None),
    ]  # fmt: skip
    zero = [
        jaxclip.project_max_norm(0.0), jaxclip.project_box(0.0, 0.0),
        *(jaxclip.project_spectral_norm(0.0, how=how, method=method)
          for how in ("clip", "scale") for method in ("eigh", "iterative")),
    ]  # fmt: skip
    by_leaf = [
        jaxclip.project_max_norm({"a": 1.0, "b": None}),
        jaxclip.project_min_max_norm({"a": 0.0, "b": None}, {"a": 1.0, "b": inf}),
        jaxclip.project_box({"a": -0.5, "b": None}, {"a": jnp.full((4,), 0.5), "b": None}),
        jaxclip.project_spectral_norm({"a": 1.0, "b": None}),
    ]
    run = jax.jit(
        lambda u, p: [[apply(tx, u, p) for tx in group] for group in (free, zero, by_leaf)]
    )
    free, zero, by_leaf = run(u, p)
    for out in free:
        registry.assert_same_bits(out, p)
    for out in zero:
        assert not any(np.any(x) for x in jax.tree.leaves(out))
    for out in by_leaf:
        registry.assert_same_bits(out["b"], p["b"])
    for out in by_leaf[:2]:
        np.testing.assert_allclose(out["a"], weights.between(p["a"], 0, 1), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(by_leaf[2]["a"], np.clip(p["a"], -0.5, 0.5))
    np.testing.assert_allclose(weights.largest_singular(by_leaf[3]["a"]), 1.0, rtol=4e-6)


def test_a_traced_negative_limit_counts_as_zero():
    """A sign would flip otherwise."""
    p = {"k": jnp.array([[3.0, 0.0], [4.0, 0.0]])}

    @jax.jit
    def run(c, p):
        made = [
            jaxclip.project_max_norm(c), jaxclip.project_min_max_norm(c, c),
            *(jaxclip.project_spectral_norm(c, how=how, method=method)
              for how in ("clip", "scale") for method in ("eigh", "iterative")),
        ]  # fmt: skip
        scales = [jaxclip.metrics(tx.update(p, tx.init(p), p)[1]) for tx in made]
        return [apply(tx, zeros(p), p) for tx in made], scales

    outs, found = run(-1.0, p)
    for out, metrics in zip(outs, found, strict=True):
        np.testing.assert_array_equal(out["k"], np.zeros((2, 2)))
        assert [float(v) for k, v in metrics.items() if k.endswith("/scale")] == [0.0]


def test_schedules():
    p = registry.build((6, 4), scale=3)

    def falling(count):
        return 3.0 - count.astype(jnp.float32)

    makers = {
        "max_norm": lambda c: jaxclip.project_max_norm(c),
        "min_max_norm": lambda c: jaxclip.project_min_max_norm(0.0, c),
        "box": lambda c: jaxclip.project_box(None, c),
        "spectral_clip_eigh": lambda c: jaxclip.project_spectral_norm(c),
    }
    made = {name: make(falling) for name, make in makers.items()}

    @jax.jit
    def run(p, states):
        moved = {name: tx.update(p * 0, states[name], p) for name, tx in made.items()}
        return {k: (p + u, s) for k, (u, s) in moved.items()}

    states = {name: tx.init(p) for name, tx in made.items()}
    for limit in (3.0, 2.0):
        found = run(p, states)
        states = {name: state for name, (_, state) in found.items()}
        for name in ("max_norm", "min_max_norm"):
            np.testing.assert_allclose(norms(found[name][0]).max(), limit, rtol=1e-6)
        assert np.max(found["box"][0]) == limit
        largest = weights.largest_singular(found["spectral_clip_eigh"][0])
        np.testing.assert_allclose(largest, limit, rtol=4e-6)
        assert float(states["max_norm"].threshold) == limit


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("project_max_norm", {"max_norm": 1.5}),
        ("project_min_max_norm", {"min_norm": 0.5, "max_norm": 1.5, "rate": 0.5}),
        ("project_box", {"lo": -0.25, "hi": 1.5}),
        ("project_spectral_norm", {"max_norm": 1.5}),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_inject_hyperparams(function, arguments, dtype):
    """The limits are traced numbers in the state, which a run may change."""
    p = {"k": registry.build((6, 4), dtype, scale=2)}
    tx = optax.inject_hyperparams(getattr(jaxclip, function))(**arguments)
    update = jax.jit(tx.update)
    updates, state = update(zeros(p), tx.init(p), p)
    plain = getattr(jaxclip, function)(**arguments)
    want, _ = jax.jit(plain.update)(zeros(p), plain.init(p), p)
    registry.assert_same_bits(updates, want)  # all of these numbers are bfloat16's as well
    name = "hi" if function == "project_box" else "max_norm"
    state.hyperparams[name] = state.hyperparams[name] / 2
    changed, _ = update(zeros(p), state, p)
    plain = getattr(jaxclip, function)(**arguments | {name: 0.75})
    registry.assert_same_bits(changed, jax.jit(plain.update)(zeros(p), plain.init(p), p)[0])


def test_inject_keeps_what_decides_the_program():
    make = optax.inject_hyperparams(jaxclip.project_max_norm, static_args=("axis", "mask"))
    p = {"embed": {"embedding": registry.build((6, 4), scale=2)}}
    tx = make(1.0, axis=jaxclip.projections.flax_units, mask=lambda tree: tree)
    with pytest.raises(TypeError, match="mask"):
        tx.update(zeros(p), tx.init(p), p)  # the mask was called, and gave no bools
    tx = make(1.0, axis=jaxclip.projections.flax_units)
    out = apply(tx, zeros(p), p)["embed"]["embedding"]
    np.testing.assert_allclose(out, weights.between(p["embed"]["embedding"], 0, 1, 1), rtol=1e-6)


# ---- what is recorded


def test_records_of_units():
    p = registry.build({"kernel": (6, 4), "bias": (4,), "conv": (2, 3, 4, 5)}, scale=0.5)
    u = registry.build({"kernel": (6, 4), "bias": (4,), "conv": (2, 3, 4, 5)}, scale=0.5, seed=1)
    run = jax.jit(
        lambda u, p: {q.name: q.make(1.5).update(u, q.make(1.5).init(p), p)[1] for q in UNITS}
    )
    bounds = {"max_norm": (0, 1.5), "unit_norm": (1, 1)}
    moved = [norms(o.wide(p[k]) + o.wide(u[k])).ravel() for k in ("kernel", "conv")]
    sizes = np.concatenate(moved)
    for name, state in run(u, p).items():
        low, high = bounds.get(name, (1.5, 3.0))
        found = {k.partition("/")[2]: v for k, v in jaxclip.metrics(state).items()}
        outside = (sizes > high) | (sizes < low)
        assert outside.any()
        np.testing.assert_allclose(found["norm"], sizes.max(), rtol=1e-6)
        np.testing.assert_allclose(found["fraction"], outside.mean(), rtol=1e-6)
        assert float(found["threshold"]) == high
        rate = 0.25 if name == "min_max_norm_slow" else 1.0
        factors = (rate * np.clip(sizes, low, high) + (1 - rate) * sizes) / sizes
        np.testing.assert_allclose(found["scale"], min(factors.min(), 1.0), rtol=1e-6)
        assert [int(found[k]) for k in ("count", "clipped_count", "nonfinite_count")] == [1, 1, 0]


def test_records_of_elements():
    p = registry.build({"a": (6, 4), "b": (2, 3, 5), "bias": (4,)}, scale=2)
    for make, low, high, limit in [
        (jaxclip.project_non_negative, 0.0, np.inf, np.inf),
        (lambda **k: jaxclip.project_box(-0.5, 0.75, **k), -0.5, 0.75, 0.75),
    ]:
        tx = make(record=True)
        _, state = tx.update(zeros(p), tx.init(p), p)
        elements = np.concatenate([o.wide(p[k]).ravel() for k in ("a", "b")])
        outside = (elements < low) | (elements > high)
        assert float(state.norm) == np.abs(elements).max()
        assert float(state.threshold) == limit
        np.testing.assert_allclose(state.fraction, outside.mean(), rtol=1e-6)
        assert (int(state.count), int(state.clipped_count), int(state.nonfinite_count)) == (1, 1, 0)
        silent = make()
        _, state = silent.update(zeros(p), silent.init(p), p)
        assert {k.partition("/")[2] for k in jaxclip.metrics(state)} == {"count"}
    tx = jaxclip.project_box(
        {"a": -1, "b": -2, "bias": None}, {"a": 1, "b": 2, "bias": None}, record=True
    )
    _, state = tx.update(zeros(p), tx.init(p), p)
    assert float(state.threshold) == 1.0  # the smallest, as for every rule


def test_counts():
    """An update inside, one outside, one that is not finite."""
    p = {"k": jnp.array([[0.3], [0.4]])}
    tx = jaxclip.project_max_norm(1.0)
    state = tx.init(p)
    for step in (0.0, 10.0, jnp.nan):
        _, state = tx.update({"k": jnp.full((2, 1), step)}, state, p)
    assert (int(state.count), int(state.clipped_count), int(state.nonfinite_count)) == (3, 1, 1)


def test_state_is_a_fixed_point():
    for dtype in ("bfloat16", "float32"):
        p = registry.build(SMALL, dtype)
        for tx in (jaxclip.project_max_norm(), jaxclip.project_box(-1.0, 1.0)):
            state = tx.init(p)
            after = jax.eval_shape(tx.update, p, state, p)[1]
            for a, b in zip(*map(jax.tree.leaves, (after, state)), strict=True):
                assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
            assert jax.tree.structure(after) == jax.tree.structure(state)


# ---- errors


BAD_LIMIT = [(-1.0, ValueError), (float("nan"), ValueError), (True, TypeError), ("2", TypeError)]
LIMITS = [
    (lambda x: jaxclip.project_max_norm(x), "max_norm"),
    (lambda x: jaxclip.project_min_max_norm(x, None), "min_norm"),
    (lambda x: jaxclip.project_min_max_norm(0.0, x), "max_norm"),
    (lambda x: jaxclip.project_spectral_norm(x), "max_norm"),
    (lambda x: jaxclip.functional.max_norm(jnp.ones((2, 2)), x), "limit"),
    (lambda x: jaxclip.functional.min_max_norm(jnp.ones((2, 2)), 0.0, x), "max_norm"),
    (lambda x: jaxclip.functional.spectral_norm(jnp.ones((2, 2)), x), "max_norm"),
]


@pytest.mark.parametrize(("make", "argument"), LIMITS)
@pytest.mark.parametrize(("bad", "error"), BAD_LIMIT)
def test_bad_limits(make, argument, bad, error):
    with pytest.raises(error, match=f"{argument}={bad!r}"):
        make(bad)


@pytest.mark.parametrize(
    "make", [jaxclip.project_box, lambda lo, hi: jaxclip.functional.box(1.0, lo, hi)]
)
def test_bad_bounds(make):
    for bad, error in BAD_LIMIT[1:]:
        with pytest.raises(error, match=f"lo={bad!r}"):
            make(bad, 1.0)
        with pytest.raises(error, match=f"hi={bad!r}"):
            make(-1.0, bad)
    with pytest.raises(ValueError, match=r"lo=1\.0 exceeds hi=-2\.0"):
        make(1.0, -2.0)


def test_bad_arguments():
    for make, message in [
        (lambda: jaxclip.project_min_max_norm(2.0, 1.0), r"min_norm=2\.0 exceeds max_norm=1\.0"),
        (lambda: jaxclip.project_min_max_norm(0.0, 1.0, 2), "rate=2 must be between 0 and 1"),
        (lambda: jaxclip.project_min_max_norm(0.0, 1.0, -0.5), r"rate=-0\.5"),
        (lambda: jaxclip.project_min_max_norm(0.0, 1.0, float("nan")), "rate=nan"),
        (lambda: jaxclip.project_spectral_norm(1.0, how="cut"), "how='cut'.*'clip', 'scale'"),
        (lambda: jaxclip.project_spectral_norm(1.0, method="svd"), "method='svd'.*'eigh'"),
        (lambda: jaxclip.functional.spectral_norm(jnp.ones((2, 2)), 1.0, "cut"), "how='cut'"),
        (lambda: jaxclip.project_max_norm(1.0, axis=(0, 0)), r"axis=\(0, 0\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    for make, message in [
        (lambda: jaxclip.project_min_max_norm(0.0, 1.0, "all"), "rate='all'"),
        (lambda: jaxclip.project_box(-1.0, 1.0, record=1), "record=1"),
        (lambda: jaxclip.project_unit_norm(axis=0.5), r"axis=0\.5"),
        (lambda: jaxclip.project_unit_norm(axis_name=True), "axis_name=True"),
        (lambda: jaxclip.project_max_norm(1.0, 0), "positional"),
    ]:
        with pytest.raises(TypeError, match=message):
            make()


@pytest.mark.parametrize("projection", PROJECTIONS, ids=str)
def test_bad_trees(projection):
    p = {"w": jnp.ones((3, 2))}
    tx = projection.make(1.0)
    with pytest.raises(ValueError, match=f"params=None: {projection.function} needs"):
        tx.update(p, tx.init(p))
    with pytest.raises(ValueError, match="params and updates differ in structure"):
        tx.update(p, tx.init(p), {"v": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"differ in shape: \(3, 2\) against \(1, 2\) at \['w'\]"):
        tx.update({"w": jnp.ones((1, 2))}, tx.init(p), p)
    with pytest.raises(ValueError, match="mask is not a prefix"):
        projection.make(1.0, mask={"v": True}).update(p, tx.init(p), p)
    with pytest.raises(TypeError, match="mask has the leaf 'w'"):
        projection.make(1.0, mask={"w": "w"}).update(p, tx.init(p), p)


def test_leaves_that_cannot_be_bounded():
    complex_leaf = {"w": jnp.ones((3, 2), jnp.complex64)}
    for tx in (jaxclip.project_box(-1.0, 1.0), jaxclip.project_non_negative()):
        with pytest.raises(ValueError, match=r"\['w'\], of dtype complex64, cannot be bounded"):
            tx.update(complex_leaf, tx.init(complex_leaf), complex_leaf)
    spectral = jaxclip.project_spectral_norm(1.0, mask=True)
    for leaf in (complex_leaf, {"w": jnp.ones(3)}):
        with pytest.raises(ValueError, match=r"\['w'\], of shape \(3.* mask="):
            spectral.update(leaf, spectral.init(leaf), leaf)
    with pytest.raises(ValueError, match=r"lo has shape \(3,\).*\['w'\]"):
        apply(
            jaxclip.project_box(jnp.zeros(3), 1.0), {"w": jnp.ones((3, 2))}, {"w": jnp.ones((3, 2))}
        )
    # Complex units have a norm, by magnitude.
    w = registry.build((3, 2), "complex64", scale=3)
    np.testing.assert_allclose(norms(jaxclip.functional.max_norm(w, 1.0)), 1.0, rtol=1e-6)
