"""`max_growth`: a threshold grows by a bounded factor, and still reaches a new level.

The norms of the first course grow by 1.5 a step for 100 steps, those of the last one settle at
ten times their level. References in float64 say how every update comes out.
"""

import functools

import jax
import numpy as np
import pytest

import jaxclip
from jaxclip import thresholds
from tests.support import learned
from tests.support import oracles_learned as ol
from tests.support.learned import Case

MOST = 1.01
SCOPES = ("global", "leaf", "unit", "stacked")
ADDED = 1e-6  # by zclip, to the norm in the quotient


def _layers(_, leaf):
    """Leaf `b` is a stack; each of its layers then has the norm that at `unit` is a unit's."""
    return 0 if leaf.ndim == 2 else None


def _grown(oracle, added=0.0, **settings):
    return lambda: ol.Grown(oracle(**settings), MOST, added)


def _zclips():
    for mode, max_norm in (("reciprocal", None), ("max", 30.0), ("mean", None)):
        options = {"mode": mode, "max_norm": max_norm}
        yield (f"zclip {mode}", jaxclip.zclip, thresholds.zscore, options,
               functools.partial(_grown, ol.ZScore, **options))  # fmt: skip


def _rules():
    """Name, rule, its threshold, their arguments, and the reference."""
    yield ("autoclip", jaxclip.autoclip, functools.partial(thresholds.quantile, 0.1), {},
           lambda added: _grown(ol.Quantile, q=0.1, window=10_000))  # fmt: skip
    twice = {"window": 100, "factor": 2.0}
    yield ("twice the median", functools.partial(jaxclip.autoclip, 50),
           functools.partial(thresholds.quantile, 0.5), twice,
           lambda added: _grown(ol.Quantile, q=0.5, **twice))  # fmt: skip
    need = {"sigma": 3.0, "window": 128, "min_history": 64}
    yield ("clip_by_history", jaxclip.clip_by_history, thresholds.mean_plus_sigma, need,
           lambda added: _grown(ol.MeanPlusSigma, **need))  # fmt: skip
    yield from _zclips()
    yield ("adagc", jaxclip.adagc, thresholds.ema_ratio, {}, lambda added: _grown(ol.EmaRatio))
    yield ("tracked", None, thresholds.tracked_quantile, {},
           lambda added: lambda: ol.TrackedQuantile(max_growth=MOST))  # fmt: skip


EVERYWHERE = ("clip_by_history", "zclip reciprocal", "adagc", "tracked")


def _cases(scope):
    """At `unit` by the thresholds, else by the rules. All of them at `leaf`, else one of a kind."""
    found = {}
    for name, rule, threshold, options, oracle in _rules():
        if scope != "leaf" and name not in EVERYWHERE:
            continue
        added = ADDED if rule is jaxclip.zclip and scope != "unit" else 0.0
        given = {"scope": "unit", "axis": -1} if scope == "unit" else {"scope": scope}
        if scope == "stacked":
            given = {"scope": "leaf", "stacked": _layers}
        if rule is None or scope == "unit":
            tx = jaxclip.clip_by(threshold(**options, max_growth=MOST), **given)
        else:
            tx = rule(**options, max_growth=MOST, **given)
        found[name] = Case(tx, oracle(added), "unit" if scope == "stacked" else scope)
    return found


def _tree(course, broken=(), dtype="float32", seed=0):
    """Updates whose norms of units follow a course, with noise of a tenth."""
    rng = np.random.default_rng(seed)
    tree = {}
    for key, shape in learned.SHAPES.items():
        direction = rng.normal(size=(len(course), *shape))
        if shape:
            direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        units = rng.uniform(0.05, 0.15, shape[:-1]) * rng.lognormal(
            0, 0.1, (len(course), *shape[:-1])
        )
        units = units * np.reshape(course, (-1, *[1] * (units.ndim - 1)))
        direction = direction if shape else np.sign(direction)
        tree[key] = (units[..., None] * direction if shape else units * direction).astype(dtype)
    for i, t in enumerate(broken):
        tree["b"][t, i % 4, 0] = [np.nan, np.inf][i % 2]
        tree["a"][t] = 0
    return tree


# From the first step on, and later; of one length, so that they share a program.
EXPLOSION = np.concatenate([1.5 ** np.arange(100), np.ones(100)])
LATER = np.concatenate([np.ones(40), 1.5 ** np.arange(100), np.ones(60)])


def _allowed(memory):
    """What bounds the next threshold, by group."""
    return [x.allowed_norm if hasattr(x, "allowed_norm") else x.threshold for x in memory]


def _program(cases):
    """A function of updates, a multiple of 50 of them: what comes out and what is recorded.

    One compiled program of all rules for all courses.
    """
    rules = {name: case.rule for name, case in cases.items()}

    def body(states, u):
        both = {k: rule.update(u, states[k]) for k, rule in rules.items()}
        seen = {k: (out, _allowed(s.memory), s.scalars()) for k, (out, s) in both.items()}
        return {k: s for k, (_, s) in both.items()}, seen

    part = jax.jit(lambda states, updates: jax.lax.scan(body, states, updates))

    def run(tree):
        states = {k: rule.init(jax.tree.map(lambda x: x[0], tree)) for k, rule in rules.items()}
        seen = []
        for i in range(0, len(tree["c"]), 50):
            states, new = part(states, {key: x[i : i + 50] for key, x in tree.items()})
            seen.append(jax.device_get(new))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *seen)

    return run


def _check_growth(cases, program, tree):
    """Each threshold is at most `MOST` times the one before, the first that of the first norm."""
    for name, (outs, allowed, _) in program(tree).items():
        case = cases[name]
        got = np.concatenate(
            [x.reshape(len(x), -1) for x in learned.norms(outs, case.scope).values()], 1
        )
        came = np.concatenate(
            [x.reshape(len(x), -1) for x in learned.norms(tree, case.scope).values()], 1
        )
        limits = np.concatenate([np.float64(x).reshape(len(x), -1) for x in allowed], 1)
        assert limits.shape == got.shape
        assert (limits[1:] <= limits[:-1] * MOST * (1 + 1e-6)).all(), name
        assert (limits[0] <= came[0] * MOST * (1 + 1e-6)).all(), name
        steps = np.arange(1, len(got) + 1)[:, None]
        assert (got <= came[0] * MOST**steps * (1 + 1e-5)).all(), name
        assert (got[1:] <= limits[:-1] * MOST * (1 + 1e-5)).all(), name
        assert came[99].max() < 1e12 or (got[90:100] < 1e-9 * came[90:100]).all(), name


def _check_references(cases, program, tree):
    for name, (out, _, record) in program(tree).items():
        try:
            learned.check(cases[name], tree, learned.Seen(out, record), 5e-5)
        except Exception as error:
            error.add_note(f"case: {name}")
            raise


def _check_level(cases, program, tree, level):
    for name, (outs, *_) in program(tree).items():
        case = cases[name]
        got, came = (
            np.concatenate(
                [x.reshape(len(x), -1) for x in learned.norms(t, case.scope).values()], 1
            )
            for t in (outs, tree)
        )
        reached = (got[-50:].mean(0) / came[-50:].mean(0)).min()
        assert reached > level, (name, reached)


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_explosion_and_new_level(scope):
    """An explosion from the first step on, and later; NaN, inf and 0 change nothing in it.

    A level ten times as high is reached, as by the rule without `max_growth`.
    """
    cases = _cases(scope)
    program = _program(cases)
    for course in (EXPLOSION, LATER):
        _check_growth(cases, program, _tree(course))
    _check_references(cases, program, _tree(LATER, broken=(0, 3, 20, 21, 60, 61, 150)))
    course = np.concatenate([np.ones(150), np.full(2900, 10.0)])
    _check_level(cases, program, _tree(course), 0.8)
