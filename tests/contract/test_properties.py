"""Properties that hold for any tree, norm and threshold, looked for by Hypothesis.

Trees are random in structure, shapes, dtypes and magnitudes, over the whole range of each dtype.
The oracle is float64 (longer, where there is float64) relative to the largest element, so that
nothing overflows in it either.
"""

import contextlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import modes, registry
from tests.support import oracles as o

SHAPES = [(), (0,), (1,), (3,), (0, 2), (2, 3), (4, 1), (2, 1, 3), (17,)]
NARROW = ["float16", "bfloat16", "float32", "complex64"]
WIDE = [*NARROW, "float64", "complex128"]
SCOPES = ["element", "unit", "leaf", "global"]
AXES = [None, 0, -1, (0, 1), (1, 2)]
ORDERS = st.one_of(
    st.sampled_from([1, 2, 2, 3, o.INF, "rms", "average"]), st.floats(1, 8).map(lambda p: float(p))
)
RELATIVE = [0.0, 1e-3, 0.3, 0.999, 1.0, 1.001, 5.0, o.INF]  # thresholds, relative to some norm


def _leaf(draw, dtypes, magnitudes):
    """An array of normal numbers of a random magnitude, an integer array, or none."""
    kind = draw(st.sampled_from([*dtypes, *dtypes, "int32", None]))
    if kind is None:
        return None
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    if kind == "int32":
        return jnp.asarray(rng.integers(-9, 9, shape), kind)
    info = jnp.finfo(kind)
    # Squares and sums of the oracle's inputs stay finite; nothing is below the normal numbers.
    low, high = (info.minexp + 6, info.maxexp - 6) if magnitudes == "all" else (-4, 4)
    size = 2.0 ** draw(st.integers(low, high))
    x = rng.normal(size=shape)
    if jnp.issubdtype(kind, jnp.complexfloating):
        x = x + 1j * rng.normal(size=shape)
    x = np.where(rng.random(shape) < draw(st.sampled_from([0, 0.3])), 0, x)
    return jnp.asarray((x * size).astype(info.dtype if not np.iscomplexobj(x) else kind))


@st.composite
def trees(draw, dtypes=NARROW, magnitudes="all"):
    """A dict, list or tuple of leaves or of such, or one leaf."""

    def node(depth):
        kind = draw(st.sampled_from(["leaf", "leaf", "dict", "list", "tuple"]))
        if kind == "leaf" or not depth:
            return _leaf(draw, dtypes, magnitudes)
        children = [node(depth - 1) for _ in range(draw(st.integers(0, 3)))]
        if kind == "dict":
            return dict(zip("abc", children, strict=False))
        return children if kind == "list" else tuple(children)

    return node(2)


@st.composite
def specs(draw):
    """The arguments of `clip_by` but the threshold."""
    scope = draw(st.sampled_from(SCOPES))
    more = {"axis": draw(st.sampled_from(AXES))} if scope == "unit" else {}
    if scope != "element":
        more["ord"] = draw(ORDERS)
    return {"scope": scope} | more


def _peaked(norms, leaves):
    """The norms of the leaves, relative to the largest element while they are computed."""
    peak = max([float(np.abs(x).max(initial=0)) for x in leaves], default=0.0) or 1.0
    return [n * peak for n in norms([o.wide(x) / peak for x in leaves])]


def _norms(spec, leaves):
    """The oracle's norm of each leaf."""
    if spec["scope"] == "global":
        return _peaked(o.by_tree(spec["ord"]), leaves)
    if spec["scope"] == "element":
        return o.by_element(leaves)
    by = o.by_leaf(spec["ord"])
    if spec["scope"] == "unit":
        by = o.by_unit(spec["axis"], spec["ord"])
    return [_peaked(by, [x])[0] for x in leaves]


def _threshold(draw, spec, u):
    """A number relative to one of the norms, as float32 has it, and in float32's range."""
    sizes = [float(n.max()) for n in _norms(spec, registry.floats(u)) if n.size and n.max() > 0]
    relative = draw(st.sampled_from(RELATIVE))
    if not sizes or relative == o.INF:
        return relative
    info = np.finfo(np.float32)
    c = draw(st.sampled_from(sizes)) * relative
    return float(np.float32(np.clip(c, info.tiny, info.max))) if c else 0.0


def _clip(c, spec, u):
    """The threshold is an argument of the program, so that another one needs no other program."""

    def update(c, u):
        tx = jaxclip.clip_by(c, **spec)
        return tx.update(u, tx.init(u))

    return jax.jit(update)(jnp.asarray(c, float), u)


def _slack(leaves):
    """How far norms and factors may be off: a few roundings of the dtype of the computation."""
    wide = all(x.dtype in (np.float64, np.complex128) for x in leaves)
    return 2e-15 if wide else 1.5e-6


def _modes(draw):
    return modes.x64() if draw(st.booleans()) else contextlib.nullcontext()


def _dtypes():
    return WIDE if jax.config.jax_enable_x64 else NARROW


@pytest.mark.slow
@hypothesis.settings(max_examples=20)
@hypothesis.given(st.data())
def test_clip_by_guarantees(data):
    with _modes(data.draw):
        u, spec = data.draw(trees(_dtypes())), data.draw(specs())
        c = _threshold(data.draw, spec, u)
        hypothesis.note(f"clip_by({c!r}, **{spec})")
        out, state = _clip(c, spec, u)
    registry.assert_kept(out, u)
    leaves, got = registry.floats(u), registry.floats(out)
    norms, slack = _norms(spec, leaves), _slack(leaves)
    largest = max([float(n.max(initial=0)) for n in norms], default=0.0)
    if largest < float(np.finfo(np.float32).max):
        tiny = float(np.finfo(np.float32).tiny)
        np.testing.assert_allclose(state.norm, largest, rtol=1.5e-6, atol=tiny)
    assert int(state.nonfinite_count) == 0
    for x, y, n in zip(leaves, got, norms, strict=True):
        assert np.isfinite(y).all()
        n = np.broadcast_to(n, x.shape)
        info = jnp.finfo(x.dtype)
        inside, beyond = n <= c * (1 - slack), n > c * (1 + slack)
        assert y[inside].tobytes() == x[inside].tobytes()
        factor = np.divide(c, n, where=beyond, out=np.ones_like(n))
        want = o.wide(x) * factor
        np.testing.assert_allclose(
            o.wide(y), want, rtol=slack + float(info.eps), atol=float(info.smallest_normal)
        )


@pytest.mark.slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(st.data())
def test_idempotence(data):
    """But for the rounding of the first time, by which the norm may still be above the threshold.

    Where leaves share a norm, the rounding of one leaf's dtype scales the others.
    """
    u, spec = data.draw(trees()), data.draw(specs())
    c = _threshold(data.draw, spec, u)
    once, _ = _clip(c, spec, u)
    twice, _ = _clip(c, spec, once)
    kinds = [jnp.finfo(x.dtype) for x in registry.floats(u)]
    rtol = 2e-6 + max([float(k.eps) for k in kinds], default=0.0)
    if 0 < c < o.INF:
        rtol += max([float(k.smallest_normal) / c for k in kinds], default=0.0)
    for x, y in zip(registry.floats(once), registry.floats(twice), strict=True):
        tiny = float(jnp.finfo(x.dtype).smallest_normal)
        np.testing.assert_allclose(o.wide(y), o.wide(x), rtol=rtol, atol=tiny)


@pytest.mark.slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(st.data())
def test_scale_equivariance(data):
    """A power of two goes through exactly where the norm's powers and roots let it."""
    u, spec = data.draw(trees(magnitudes="some")), data.draw(specs())
    c, k = _threshold(data.draw, spec, u), 2.0 ** data.draw(st.integers(-4, 4))

    def times(tree):
        return jax.tree.map(
            lambda x: x * np.asarray(k, x.dtype) if registry.is_float(x) else x, tree
        )

    one, _ = _clip(c, spec, u)
    other, _ = _clip(c * k, spec, times(u))
    if spec.get("ord", 1) in (1, 2, o.INF, "rms", "average"):
        for x, y in zip(registry.floats(times(one)), registry.floats(other), strict=True):
            np.testing.assert_array_equal(y, x)
    for x, y in zip(registry.floats(times(one)), registry.floats(other), strict=True):
        rtol = 1.5e-6 + float(jnp.finfo(x.dtype).eps)
        np.testing.assert_allclose(o.wide(y), o.wide(x), rtol=rtol, atol=1e-6)


@pytest.mark.slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(st.data())
def test_result_does_not_depend_on_the_split(data):
    """The same elements as one vector, and cut into random pieces."""
    dtype, ord = data.draw(st.sampled_from(NARROW)), data.draw(ORDERS)
    seed, size = data.draw(st.integers(0, 2**20)), data.draw(st.integers(1, 40))
    x = registry.build((size,), dtype, seed, 2.0 ** data.draw(st.integers(-10, 10)))
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=6)))
    parts = [x[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    spec = {"scope": "global", "ord": ord}
    c = _threshold(data.draw, spec, x)
    whole, split = _clip(c, spec, x), _clip(c, spec, parts)
    np.testing.assert_allclose(split[1].norm, whole[1].norm, rtol=1e-6)
    joined = np.concatenate([np.asarray(p) for p in split[0]])
    info = jnp.finfo(dtype)
    rtol, atol = 1.5e-6 + float(info.eps), float(info.smallest_normal)
    np.testing.assert_allclose(o.wide(joined), o.wide(whole[0]), rtol=rtol, atol=atol)


@pytest.mark.slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(st.data())
def test_derivatives(data):
    """Against central differences of the oracle, away from where the rule has a corner."""
    shape = data.draw(st.sampled_from([(3,), (2, 3), (4, 1)]))
    spec, seed = data.draw(specs()), data.draw(st.integers(0, 2**20))
    weights = np.random.default_rng(seed + 1).normal(size=shape)
    with modes.x64():
        x = registry.build(shape, "float64", seed)
        c = float(np.median(_norms(spec, [x])[0])) * data.draw(st.sampled_from([0.3, 0.8, 1.3]))

        def oracle(y):
            return float((o.scaled([y], _norms(spec, [y]), [np.float64(c)])[0] * weights).sum())

        def ours(y):
            tx = jaxclip.clip_by(c, **spec)
            return jnp.sum(tx.update(y, tx.init(y))[0] * weights)

        got = jax.jit(jax.grad(ours))(x)
    y = np.asarray(x)
    near = np.abs(_norms(spec, [y])[0] / c - 1)
    hypothesis.assume(near.min() > 1e-3)
    if spec.get("ord") == o.INF:  # nor where the largest element changes
        top = np.sort(np.abs(y), axis=None)
        hypothesis.assume(np.diff(top).min(initial=1) > 1e-3)
    np.testing.assert_allclose(got, o.difference(oracle, y), rtol=1e-5, atol=1e-6)
