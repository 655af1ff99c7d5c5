"""`scale_by_stable_adam` against float64 NumPy, and beside Optax's Adam."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import modes, registry
from tests.support import oracles_learned as ol
from tests.support.contexts import once

SHAPES = {"w": (4, 3), "b": (3,), "s": ()}
CASES = {
    "defaults": {},
    "others": {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "eps_root": 1e-4, "threshold": 0.6},
    "nesterov": {"nesterov": True, "b2": 0.99, "threshold": 1.5},
}


def _gradients(dtype="float32", steps=50):
    """Growing a hundredfold on the way; one leaf has zeros for a while, one is tiny."""
    rng = np.random.default_rng(5)
    size = np.where(np.arange(steps) < 30, 1.0, 100.0)
    tree = {k: rng.normal(size=(steps, *shape)) for k, shape in SHAPES.items()}
    tree["w"] *= size[:, None, None]
    tree["b"][:5] = 0
    tree["s"] *= 1e-7
    return {k: np.asarray(x, dtype) for k, x in tree.items()}


def _scan(rules, grads):
    like = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), grads)

    def body(states, g):
        both = {k: tx.update(g, states[k], like) for k, tx in rules.items()}
        states = {k: s for k, (_, s) in both.items()}
        return states, {k: (out, states[k]) for k, (out, _) in both.items()}

    states = {k: tx.init(like) for k, tx in rules.items()}
    return jax.device_get(jax.jit(lambda s, g: jax.lax.scan(body, s, g)[1])(states, grads))


def _check(keywords, grads, out, state, rtol):
    leaves = {k: [] for k in grads}
    for key, g in grads.items():
        oracle = ol.StableAdam(**keywords)
        leaves[key] = [oracle(x) for x in g]
        want = np.array([update for update, _ in leaves[key]])
        # Absolute: Adam's updates are of size 1, and its first moment cancels.
        np.testing.assert_allclose(out[key], want, rtol=rtol, atol=rtol, err_msg=key)
    rms = np.array([[r for _, r in leaves[key]] for key in grads])
    c = keywords.get("threshold", 1.0)
    np.testing.assert_allclose(state.norm, rms.max(0), rtol=1e-5)
    np.testing.assert_allclose(state.threshold, c, rtol=1e-6)
    np.testing.assert_allclose(state.smallest_scale, np.minimum(1, c / rms.max(0)), rtol=1e-5)
    clear = np.abs(rms / c - 1).min(0) > 1e-6  # in the first step rms is 1 but for rounding
    fraction = (rms > c).mean(0)
    np.testing.assert_allclose(state.fraction[clear], fraction[clear], rtol=1e-6)
    assert (fraction > 0).any()
    np.testing.assert_array_equal(state.update_count, 1 + np.arange(rms.shape[1]))


def test_against_the_reference():
    grads = _gradients()
    log = _scan({k: jaxclip.scale_by_stable_adam(**v) for k, v in CASES.items()}, grads)
    for name, keywords in CASES.items():
        _check(keywords, grads, *log[name], rtol=1e-5)


@pytest.mark.slow
def test_against_the_reference_in_float64():
    with modes.x64():
        grads = _gradients("float64")
        log = _scan({k: jaxclip.scale_by_stable_adam(**v) for k, v in CASES.items()}, grads)
        for name, keywords in CASES.items():
            _check(keywords, grads, *log[name], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.relaxed  # Adam of Optax promotes
def test_unclipped_steps_equal_those_of_adam():
    grads = {k: x * np.linspace(1, 0.02, 50, dtype="f4").reshape(-1, *[1] * (x.ndim - 1))
             for k, x in _gradients(steps=50).items()}  # fmt: skip
    like = {k: jnp.zeros(x.shape[1:]) for k, x in grads.items()}
    ours, theirs = jaxclip.scale_by_stable_adam(threshold=1.2), optax.scale_by_adam()
    run, reference = jax.jit(ours.update), jax.jit(theirs.update)
    state, adam = ours.init(like), theirs.init(like)
    same = 0
    for t in range(50):
        g = {k: x[t] for k, x in grads.items()}
        out, state = run(g, state)
        want, adam = reference(g, adam)
        for k in out:
            np.testing.assert_allclose(state.memory.first_moment[k], adam.mu[k], atol=1e-5)
            root = state.memory.root_second_moment[k]
            np.testing.assert_allclose(root, jnp.sqrt(adam.nu[k]), rtol=1e-5)
        if float(state.norm) <= 1.2:
            for k in out:
                np.testing.assert_allclose(out[k], want[k], atol=2e-5)  # Optax's 1 - b2^t
            same += 1
        else:
            assert any((abs(out[k]) < abs(want[k])).all() for k in out)
    assert 10 < same < 50
    assert int(state.clipped_count) == 50 - same


@pytest.mark.slow
@pytest.mark.relaxed  # Adam of Optax promotes
def test_gradient_that_grows_a_hundredfold():
    """The second moment has not seen it yet: rms = 100 / sqrt(vhat), and the step is smaller."""
    tx = jaxclip.scale_by_stable_adam()
    update = jax.jit(tx.update)
    plain = optax.scale_by_adam()
    reference = jax.jit(plain.update)
    g = jnp.ones(8)
    state, adam = tx.init(g), plain.init(g)
    for t in range(1, 101):
        size = 1.0 if t < 100 else 100.0
        out, state = update(size * g, state)
        want, adam = reference(size * g, adam)
    v = (0.001 * 100**2 + 0.999 * (1 - 0.999**99)) / (1 - 0.999**100)
    np.testing.assert_allclose(state.norm, 100 / v**0.5, rtol=1e-4)
    np.testing.assert_allclose(out, want / state.norm, rtol=1e-5)
    assert float(state.norm) > 3
    found = jaxclip.metrics(state)
    np.testing.assert_allclose(found["scale_by_stable_adam/norm"], state.norm)
    after = optax.chain(optax.scale_by_adam(), jaxclip.clip_by_block_rms(1.0))
    other = after.update(size * g, (adam, after.init(g)[1]))[0]
    assert not np.allclose(other, out, rtol=0.1)  # another rule: it sees Adam's update, not g


def test_signature_is_that_of_optax_and_more():
    ours = list(inspect.signature(jaxclip.scale_by_stable_adam).parameters.values())
    theirs = list(inspect.signature(optax.scale_by_adam).parameters.values())
    for a, b in zip(ours, theirs, strict=False):
        assert (a.name, a.kind, a.default) == (b.name, b.kind, b.default)
    more = {p.name: (p.kind, p.default) for p in ours[len(theirs) :]}
    keyword = inspect.Parameter.KEYWORD_ONLY
    assert more == {
        "threshold": (keyword, 1.0), "stacked": (keyword, None), "axis_name": (keyword, None)
    }  # fmt: skip


def test_odd_leaves():
    u = {"none": None, "empty": jnp.zeros((0, 2)), "number": 2.0, "i": jnp.arange(2)}
    tx = jaxclip.scale_by_stable_adam()
    before = tx.init(u)
    out, state = once(tx, u)
    np.testing.assert_allclose(out["number"], 1.0, rtol=1e-6)
    registry.assert_same_bits(out["i"], u["i"])  # Optax's Adam makes floats of them
    assert out["empty"].shape == (0, 2)
    for like in (state, jax.eval_shape(tx.init, u)):
        types = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (like, before)]
        assert types[0] == types[1]


BAD = {
    "b1": [(1, ValueError), (-0.1, ValueError), ("0.9", TypeError)],
    "b2": [(1.0, ValueError), (np.float32(1), ValueError), (None, TypeError)],
    "eps": [(-1e-8, ValueError), (float("inf"), ValueError), (True, TypeError)],
    "eps_root": [(float("nan"), ValueError), (1j, TypeError)],
    "nesterov": [(1, TypeError)],
    "mu_dtype": [(jnp.int32, TypeError), (jnp.complex64, TypeError)],
    "threshold": [(-1.0, ValueError), (float("nan"), ValueError), (True, TypeError)],
}


@pytest.mark.parametrize(
    ("name", "bad", "error"), [(name, *case) for name, cases in BAD.items() for case in cases]
)
def test_bad_values(name, bad, error):
    with pytest.raises(error, match=rf"{name}={re.escape(repr(bad))}"):
        jaxclip.scale_by_stable_adam(**{name: bad})


@pytest.mark.slow
def test_sharded_and_replicated_leaves():
    """The mean is over all of a leaf, wherever its parts are."""
    rng = np.random.default_rng(1)
    grads = {"kernel": rng.normal(size=(4, 8, 3)), "bias": rng.normal(size=(4, 3))}
    grads["kernel"][3, 5:] *= 100  # on two of four devices, in the last step
    grads = jax.tree.map(np.float32, grads)
    tx = jaxclip.scale_by_stable_adam()

    def run(grads):
        state = tx.init(jax.tree.map(lambda x: x[0], grads))
        state, out = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], state, grads)
        return out, (state.norm, state.smallest_scale, state.fraction)

    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])
    specs = {"kernel": P(None, "x"), "bias": P()}
    mapped = jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=(specs, (P(),) * 3))
    want, record = jax.jit(run)(grads)
    out, found = jax.jit(mapped)(grads)
    for key in grads:
        np.testing.assert_allclose(out[key], want[key], rtol=1e-5)
    np.testing.assert_allclose(found, record, rtol=1e-5)
    assert float(found[0]) > 1.1


@pytest.mark.slow
def test_derivative_at_zero():
    u = {"a": jnp.zeros(2), "b": jnp.array([0.0, 3.0])}

    def step(u):
        tx = jaxclip.scale_by_stable_adam(eps_root=1e-8)
        return sum(jnp.sum(x) for x in jax.tree.leaves(tx.update(u, tx.init(u))[0]))

    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.grad(step)(u)))


def test_first_step_with_b2_near_one():
    """In the first step the root mean square is 1, however close to 1 the smoothing is."""
    for b2 in (0.9999, 0.999999):
        _, state = once(jaxclip.scale_by_stable_adam(b2=b2), jnp.array([3.0, -0.5]))
        np.testing.assert_allclose(state.norm, 1.0, rtol=1e-5)
