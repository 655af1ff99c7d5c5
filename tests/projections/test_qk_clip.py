"""`qk_clip` on every kind of attention against float64 NumPy: weights, logits, records, edges."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import attention, modes, registry
from tests.support import oracles as o

TAU = 9.0
FEW = {"attn": {k: {"kernel": (3, 4, 2)} for k in ("query", "key")}, "dense": {"kernel": (3, 3)}}


@jax.jit
def step(updates, params, logits, alpha):
    tx = jaxclip.qk_clip(TAU, roles=attention.roles(), alpha=alpha)
    updates, state = tx.update(updates, tx.init(params), params, max_logits=logits)
    return updates, optax.apply_updates(params, updates), state


def _check(dtype, alpha):
    """Without and with an update; returns the logits, and the state after the first."""
    params = attention.build(dtype)
    logits = attention.largest_logits(params)
    calls = (0.25, 1.0, 0.5)  # of one layer: the largest logits count
    given = {k: tuple(jnp.asarray(c * s, jnp.float32) for c in calls) for k, s in logits.items()}
    eps = 3 * max(float(jnp.finfo(dtype).eps), 1e-7)
    zero = jax.tree.map(jnp.zeros_like, params)
    with modes.relaxed():
        updates, landed, state = jax.device_get(step(zero, params, given, alpha))
        moved = attention.build(dtype, 0.1, seed=1)
        _, after, _ = jax.device_get(step(moved, params, given, alpha))
    for key, again in attention.largest_logits(landed).items():
        over = logits[key] > TAU
        assert over.any(), key
        assert not over.all(), key
        np.testing.assert_allclose(again[over], TAU, 10 * eps, err_msg=key)
        np.testing.assert_allclose(again[~over], logits[key][~over], 1e-12, err_msg=key)
    summed = jax.tree.map(lambda w, u: np.asarray(w + u), params, moved)
    for w, want in ((landed, params), (after, summed)):
        want = attention.clipped(want, logits, TAU, alpha)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(w), jax.tree.leaves(want), strict=True
        ):
            assert x.dtype == dtype
            np.testing.assert_allclose(o.wide(x), o.wide(y), eps, 3 * eps, err_msg=str(path))
    assert not any(
        np.any(x) for x in jax.tree.leaves((updates["dense"], updates["multi"]["value"]))
    )
    registry.assert_same_bits(after["dense"], summed["dense"])
    return logits, state


def test_all_kinds_of_attention():
    logits, state = _check("float32", 0.3)
    found = jaxclip.metrics(state)
    heads = np.concatenate([x.ravel() for x in logits.values()])
    assert found["qk_clip/threshold"] == TAU
    np.testing.assert_allclose(found["qk_clip/norm"], heads.max(), rtol=1e-6)
    np.testing.assert_allclose(found["qk_clip/scale"], TAU / heads.max(), rtol=1e-6)
    np.testing.assert_allclose(found["qk_clip/fraction"], (heads > TAU).mean(), rtol=1e-6)
    assert [found[f"qk_clip/{k}"] for k in ("count", "clipped_count", "nonfinite_count")] == [
        1,
        1,
        0,
    ]
    layers = {"multi": logits["multi"], "grouped": logits["grouped"], "latent": logits["latent"]}
    layers |= {f"stack/{i}": s for i, s in enumerate(logits["stack"])}
    assert {k for k in found if "/norm/" in k} == {f"qk_clip/norm/{k}" for k in layers}
    for name, s in layers.items():
        np.testing.assert_allclose(found[f"qk_clip/norm/{name}"], s.max(), rtol=1e-6)
        assert found[f"qk_clip/clipped/{name}"] == (s > TAU).sum()
        assert found[f"qk_clip/ignored/{name}"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_and_shares(dtype, alpha):
    with modes.maybe_x64(dtype):
        _check(dtype, alpha)


def _one(heads, **parts):
    """One attention layer with a kernel of one feature and heads of one number."""
    return {k: {n: jnp.full((1,) * (n == "kernel") + (heads, 1), x) for n, x in p.items()}
            for k, p in parts.items()}  # fmt: skip


@jax.jit
def _edges(updates, params, logits, tau):
    tx = jaxclip.qk_clip(tau, roles=jaxclip.projections.linen_roles)
    return tx.update(updates, tx.init(params), params, max_logits={"attn": logits})


@pytest.mark.slow
def test_biases_are_scaled():
    """Scaled kernels alone would land at 82.7, as in Megatron-LM, instead of 81.2."""
    weight, bias = 10 - 0.8381, 0.8381
    params = _one(1, query={"kernel": weight, "bias": bias}, key={"kernel": weight, "bias": bias})
    params, zero = {"attn": params}, jax.tree.map(jnp.zeros_like, {"attn": params})
    updates, _ = _edges(zero, params, jnp.array([100.0]), jnp.float32(81.2))
    new = optax.apply_updates(params, updates)["attn"]["query"]
    kernel, scaled = (x.item() for x in (new["kernel"], new["bias"]))
    assert (kernel + scaled) ** 2 == pytest.approx(81.2, rel=1e-6)
    assert (kernel + bias) ** 2 == pytest.approx(82.7, abs=0.01)


def test_odd_logits_change_nothing_and_are_counted():
    """A negative S gave NaN in MaxText: the square root of tau / S."""
    params, updates = registry.build(FEW), registry.build(FEW, seed=1)
    tau = jnp.float32(1.5)
    for odd, broken in ((-2.0, 0), (0.0, 0), (np.nan, 1), (np.inf, 1), (-np.inf, 1)):
        logits = jnp.array([odd, 1.0, 1.5, 3.0])
        new, state = _edges(updates, params, logits, tau)
        registry.assert_same_bits(new["dense"], updates["dense"])
        for key, x in new["attn"].items():
            registry.assert_same_bits(x["kernel"][:, :3], updates["attn"][key]["kernel"][:, :3])
            moved = o.wide(params["attn"][key]["kernel"]) + o.wide(updates["attn"][key]["kernel"])
            want = moved[:, 3] * 0.5**0.5 - o.wide(params["attn"][key]["kernel"][:, 3])
            np.testing.assert_allclose(x["kernel"][:, 3], want, rtol=1e-5, atol=1e-6)
        found = jaxclip.metrics(state)
        assert found["qk_clip/ignored/attn"] == 1
        assert found["qk_clip/clipped/attn"] == 1
        assert found["qk_clip/nonfinite_count"] == broken
        finite = np.isfinite(odd) or odd < 0
        np.testing.assert_array_equal(found["qk_clip/norm/attn"], 3.0 if finite else odd)


def test_extreme_limits():
    params, zero = registry.build(FEW), registry.build(FEW, scale=0)
    for tau, heads in ((0.0, 0), (-1.0, 0), (jnp.inf, 1), (1e-36, 0), (1e10, 0), (3e38, 1)):
        new, state = _edges(zero, params, jnp.full(4, 1e30), jnp.float32(tau))
        left = optax.apply_updates(params, new)["attn"]
        for key, x in left.items():
            want = o.wide(params["attn"][key]["kernel"])
            gamma = min(1.0, max(tau, 0.0) / 1e30) ** 0.5
            np.testing.assert_allclose(x["kernel"], want * gamma, rtol=1e-6, atol=1e-6)
        assert state.fraction == 1 - heads


@pytest.mark.slow
def test_a_share_of_zero_changes_nothing():
    params, updates = registry.build(FEW), registry.build(FEW, seed=1)
    tx = jaxclip.qk_clip(1.0, roles=jaxclip.projections.linen_roles, alpha=0)
    update = jax.jit(lambda u, p, s: tx.update(u, tx.init(p), p, max_logits={"attn": s})[0])
    new = update(updates, params, jnp.full(4, 7.0))
    registry.assert_same_bits(new["attn"]["query"], updates["attn"]["query"])


@pytest.mark.slow
def test_no_limit():
    params, zero = registry.build(FEW), registry.build(FEW, scale=0)
    tx = jaxclip.qk_clip(None, roles=jaxclip.projections.linen_roles)
    update = jax.jit(lambda u, p, s: tx.update(u, tx.init(p), p, max_logits={"attn": s}))
    new, state = update(zero, params, jnp.full(4, 7.0))
    registry.assert_same_bits(new, zero)
    assert state.norm == 7.0
    assert state.threshold == jnp.inf


@pytest.mark.slow
def test_a_thousand_steps():
    """A random walk of one layer, with the logits of each step, against float64 NumPy."""
    random = np.random.default_rng(0)
    x = random.normal(size=(5, 3)).astype(np.float32)
    noise = 0.3 * random.normal(size=(1000, 2, 3, 4, 2)).astype(np.float32)
    tx = jaxclip.qk_clip(TAU, roles=["q", "k"], alpha=0.25)

    def largest(q, k, xp):
        q, k = (xp.einsum("tf,fhd->thd", x.astype(q.dtype), w) for w in (q, k))
        return xp.einsum("qhd,khd->hqk", q, k).max((1, 2)) / 2**0.5

    def step(carry, change):
        params, state = carry
        logits = largest(*params, jnp)
        updates, state = tx.update([*change], state, params, max_logits=logits)
        return (optax.apply_updates(params, updates), state), logits

    @jax.jit
    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), noise)

    (params, state), seen = run([jnp.zeros((3, 4, 2))] * 2)
    q, k = np.zeros((2, 3, 4, 2))
    for change, found in zip(o.wide(noise), seen, strict=True):
        logits = largest(q, k, np)
        np.testing.assert_allclose(found, logits, rtol=1e-3, atol=1e-3)
        gamma = np.minimum(1, TAU / np.maximum(logits, TAU))[:, None]
        q, k = (q + change[0]) * gamma**0.25, (k + change[1]) * gamma**0.75
    for got, want in zip(params, (q, k), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    assert 500 < state.clipped_count < 1000


@pytest.mark.slow
@pytest.mark.relaxed
@pytest.mark.filterwarnings("ignore")  # Orbax's own
def test_wrappers(tmp_path):
    """`scan`, schedules, `inject_hyperparams`, `MultiSteps`, a guard, `masked`; states on disk."""
    params, updates = registry.build(FEW), registry.build(FEW, seed=1)
    roles, logits = jaxclip.projections.linen_roles, {"attn": jnp.array([4.0, 1.0, 9.0, 0.5])}

    def run(tx):
        def body(carry, _):
            params, state = carry
            new, state = tx.update(updates, state, params, max_logits=logits)
            return (optax.apply_updates(params, new), state), None

        return jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=2)[0])(params)

    plain, state = run(optax.chain(optax.scale(-1.0), jaxclip.qk_clip(2.0, roles=roles)))
    registry.assert_same_bits(pickle.loads(pickle.dumps(state)), state)
    assert jaxclip.metrics(state)["qk_clip/clipped_count"] == 2
    checkpoint = pytest.importorskip("orbax.checkpoint")
    with checkpoint.StandardCheckpointer() as store:
        store.save(tmp_path / "state", state)
        store.wait_until_finished()
        registry.assert_same_bits(store.restore(tmp_path / "state", state), state)
    mask = {"attn": True, "dense": False}
    wrapped = {
        "schedule": jaxclip.qk_clip(lambda count: 2.0 + 0 * count, roles=roles),
        "injected": optax.inject_hyperparams(jaxclip.qk_clip, static_args=("roles",))(
            tau=2.0, roles=roles, alpha=0.5),
        "guard": jaxclip.skip_nonfinite(jaxclip.qk_clip(2.0, roles=roles)),
        "masked": optax.masked(jaxclip.qk_clip(2.0, roles=roles), mask),
    }  # fmt: skip
    wrapped = {name: optax.chain(optax.scale(-1.0), tx) for name, tx in wrapped.items()}
    wrapped["every"] = optax.MultiSteps(wrapped["schedule"], 1)
    for name, tx in wrapped.items():
        found, state = run(tx)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6, err_msg=name)
        assert jaxclip.metrics(state)["qk_clip/clipped/attn"] == 2, name
    again = jaxclip.qk_clip(2.0, roles=roles)
    with pytest.raises(TypeError, match="qk_clip needs its own"):
        again.update(updates, {"x": 1}, params, max_logits=logits)
