"""Learned rules beside their references: a long run of updates, one scan, and the expected results.

One tree serves every scope. Each of its units has a sequence of norms of its own, so that its
leaves and the whole tree have one as well. Several rules run in one scan: a program is compiled in
little more time for ten rules than for one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxclip
from jaxclip import thresholds

STEPS = 1000
SHAPES = {"a": (2,), "b": (4, 3), "c": ()}  # by unit, reducing the last axis: 1, 4 and 1 norms
GROUPS = {"a": "a, c", "b": "b", "c": "a, c"}


# The one list of named rules that learn, with short windows and warm-ups; last, one without a name.
RULES = {
    "autoclip": lambda **k: jaxclip.autoclip(60.0, window=6, **k),
    "zclip": lambda **k: jaxclip.zclip(warmup_steps=3, max_norm=None, restart_after=4, **k),
    "adagc": lambda **k: jaxclip.adagc(warmup_steps=3, warmup_norm=2.0, **k),
    "clip_by_history": lambda **k: jaxclip.clip_by_history(sigma=1.0, window=6, min_history=2, **k),
    "clip_by_growth": lambda **k: jaxclip.clip_by_growth(1.5, **k),
    "stabilize_gradient": lambda **k: jaxclip.stabilize_gradient(**k),
    "clip_by": lambda scope="unit", **k: jaxclip.clip_by(
        thresholds.tracked_quantile(0.6), scope=scope, **k
    ),
}


def together(names=tuple(RULES), **keywords):
    """A transformation that is several rules, side by side."""
    rules = {name: RULES[name](**keywords) for name in names}

    def update(u, states, params=None):
        both = {k: tx.update(u, states[k], params) for k, tx in rules.items()}
        return {k: out for k, (out, _) in both.items()}, {k: s for k, (_, s) in both.items()}

    return optax.GradientTransformation(
        lambda p: {name: tx.init(p) for name, tx in rules.items()}, update
    )


class Case(NamedTuple):
    """A rule, a function that makes its reference, and its scope."""

    rule: Any
    oracle: Callable[[], Any]
    scope: str = "global"
    clips: bool = True  # whether it clips anything: else it would show nothing


class Seen(NamedTuple):
    """The updates that came out, and the rule's record of each step."""

    updates: dict[str, np.ndarray]
    record: dict[str, np.ndarray]


def updates(dtype="float32", steps=STEPS, seed=0, broken=True):
    """Random norms with spikes of up to 100 times, a change of level, and norms that do not count.

    Non-finite and zero norms come early as well, so that warm-ups see them.
    """
    rng = np.random.default_rng(seed)
    tree = {}
    for key, shape in SHAPES.items():
        units = shape[:-1]
        direction = rng.normal(size=(steps, *shape))
        if shape:
            direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        else:
            direction = np.sign(direction)
        norm = rng.lognormal(0, 0.4, (steps, *units)) * np.exp(rng.normal(size=units))
        spike = rng.random((steps, *units)) < 0.01
        norm = np.where(spike, norm * 10 ** rng.uniform(0.3, 2, norm.shape), norm)
        norm[steps // 2 : steps * 7 // 10] *= 8
        tree[key] = (norm[..., None] * direction if shape else norm * direction).astype(dtype)
    if broken:
        _break(tree, rng, steps)
    return tree


def _break(tree, rng, steps):
    often = 8 + rng.choice(steps - 8, steps // 25, replace=False)
    for i, t in enumerate([0, 2, 3, 5, 6, *often]):
        bad = [np.nan, np.inf, -np.inf][rng.integers(3)]
        what = i % 5
        if what == 0:
            tree["b"][t, rng.integers(4), rng.integers(3)] = bad
        elif what == 1:
            tree["a"][t, 0] = bad
        elif what == 2:
            tree["b"][t, rng.integers(4)] = 0
        elif what == 3:
            tree["b"][t], tree["c"][t] = 0, bad
        else:
            for x in tree.values():
                x[t] = 0


def run(rules, stacked, params=None):
    """`{name: rule} -> {name: Seen}`, all rules in one scan over the same updates."""
    like = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), stacked)
    params = like if params is None else params
    states = {name: rule.init(params) for name, rule in rules.items()}

    def body(states, u):
        both = {name: rule.update(u, states[name], params) for name, rule in rules.items()}
        states = {name: state for name, (_, state) in both.items()}
        record = {k: s.scalars() for k, s in states.items()}
        return states, {name: (out, record[name]) for name, (out, _) in both.items()}

    _, log = jax.jit(lambda s, u: jax.lax.scan(body, s, u))(states, stacked)
    return {name: Seen(*jax.device_get(seen)) for name, seen in log.items()}


def norms(stacked, scope):
    """The norms by leaf, each of shape (steps, one or more groups), in float64."""
    wide = {k: np.asarray(x, np.float64) for k, x in stacked.items()}
    with np.errstate(invalid="ignore"):
        if scope == "unit":
            found = {k: np.sqrt((x**2).sum(-1)) if x.ndim > 1 else abs(x) for k, x in wide.items()}
        else:
            found = {k: np.sqrt((x.reshape(len(x), -1) ** 2).sum(-1)) for k, x in wide.items()}
        if scope == "global":
            return {"": np.sqrt(sum(x**2 for x in found.values()))}
        if scope == "group":
            return {"a, c": np.sqrt(found["a"] ** 2 + found["c"] ** 2), "b": found["b"]}
    return found


def expected(case, stacked):
    """The oracle's factors by leaf, and the recorded threshold: the smallest of all groups."""
    found = norms(stacked, case.scope)
    flat = np.concatenate([x.reshape(len(x), -1) for x in found.values()], axis=1)
    total = np.sqrt((np.where(np.isfinite(flat), flat, 0.0) ** 2).sum(1))
    columns = []
    for column in flat.T:
        oracle = case.oracle()
        columns.append([oracle(n, t) for n, t in zip(column.tolist(), total.tolist(), strict=True)])
    factors, limits = np.array(columns).transpose(2, 1, 0)
    ends = np.cumsum([x[0].size for x in found.values()])[:-1]
    pieces = zip(found.items(), np.split(factors, ends, axis=1), strict=True)
    return {k: piece.reshape(x.shape) for (k, x), piece in pieces}, limits.min(1), flat


def check(case, stacked, seen, rtol):
    """The updates, to the bit where nothing was to change, and everything recorded."""
    factors, limits, flat = expected(case, stacked)
    for key, u in stacked.items():
        factor = factors[next(k for k in (key, GROUPS[key], "") if k in factors)]
        factor = factor.reshape(factor.shape + (1,) * (u.ndim - factor.ndim))
        factor = np.broadcast_to(factor, u.shape)
        got = seen.updates[key]
        assert got.dtype == u.dtype
        kept = factor == 1
        np.testing.assert_array_equal(_bits(got)[kept], _bits(u)[kept])
        np.testing.assert_allclose(got, np.asarray(u, np.float64) * factor, rtol=rtol, atol=0)
    asked = ~np.isnan(limits)
    np.testing.assert_allclose(
        seen.record["threshold"][asked], limits[asked], rtol=max(rtol, 1e-7), err_msg="threshold"
    )
    flat_factors = np.concatenate([x.reshape(len(x), -1) for x in factors.values()], axis=1)
    clipped = flat_factors != 1
    broken = ~np.isfinite(flat).all(1)
    np.testing.assert_allclose(seen.record["fraction"], clipped.mean(1), rtol=1e-6)
    np.testing.assert_allclose(seen.record["scale"], flat_factors.min(1), rtol=max(rtol, 1e-6))
    np.testing.assert_array_equal(seen.record["clipped_count"], np.cumsum(clipped.any(1)))
    np.testing.assert_array_equal(seen.record["nonfinite_count"], np.cumsum(broken))
    np.testing.assert_array_equal(seen.record["count"], 1 + np.arange(len(flat)))
    assert clipped.any() == case.clips
    assert not clipped.all()


def check_all(cases, dtype, rtol):
    """Every case against its reference."""
    stacked = updates(dtype)
    for name, seen in run({k: case.rule for k, case in cases.items()}, stacked).items():
        try:
            check(cases[name], stacked, seen, rtol)
        except Exception as error:
            error.add_note(f"case: {name}")
            raise


def _bits(x):
    x = np.ascontiguousarray(x)
    return x.view({4: np.uint32, 8: np.uint64}[x.itemsize])
