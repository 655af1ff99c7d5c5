"""JAX's flags for finding a bug: `debug_nans`, `debug_infs` and others that people switch on.

Finite gradients report nothing and give the results without flags; `debug_infs` records no inf.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional, thresholds
from tests.support import guards, learned, modes, registry, weights
from tests.support.contexts import case, once
from tests.support.registry import EDGE_RULES, NAMED, assert_same_bits, rule

LARGEST = np.finfo(np.float32).max
FLAGS = {"infs": [jax.debug_infs], "nans": [jax.debug_nans],
         "both": [jax.debug_infs, jax.debug_nans]}  # fmt: skip
SWITCHES = {"enable_checks": lambda: jax.enable_checks(True), "leaks": jax.checking_leaks,
            "disable_jit": jax.disable_jit}  # fmt: skip
DTYPES = ("float64", "float16", "bfloat16", "complex64")
TREE = {"dense": {"kernel": (4, 3)}, "gain": (), "empty": (0, 2)}
SMALL = {"kernel": (4, 3)}  # without jit every shape compiles
FACTORS = (1.0, 0.0, 100.0, 2.0)
WIDE = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float64", "complex64")]


def _bounds():
    for bound in ("tanh", "rational", "set"):
        for c in (None, 0.75):
            yield f"{bound}_{c}", lambda b=bound, c=c: jaxclip.clip_by(c, scope="leaf", bound=b)
    for nonfinite in ("nan", "zero", "drop"):
        yield nonfinite, lambda n=nonfinite: jaxclip.clip_by_global_norm(0.75, nonfinite=n)


def _learned():
    scopes = ("leaf", "global", "unit", "global", "leaf", "leaf", "unit")
    for key, scope in zip(learned.RULES, scopes, strict=True):
        yield f"{key}_{scope}", lambda key=key, scope=scope: learned.RULES[key](scope=scope)
    for mode in ("max", "mean", "reciprocal"):
        options = {"mode": mode, "warmup_steps": 2, "eps": 0.0, "max_norm": None}
        yield f"zscore_{mode}", lambda o=options: _at_units(thresholds.zscore(**o))
    infinite = {"zscore": thresholds.zscore(z_threshold=np.inf, warmup_steps=1),
                "mean_plus_sigma": thresholds.mean_plus_sigma(np.inf, window=2, min_history=1),
                "ema_ratio": thresholds.ema_ratio(warmup_norm=np.inf, warmup_steps=2)}  # fmt: skip
    for key, threshold in infinite.items():
        yield f"{key}_inf", lambda threshold=threshold: _at_units(threshold)


def _at_units(threshold):
    return jaxclip.clip_by(threshold, scope="unit")


def _wrappers():
    for key, guard in guards.GUARDS.items():
        yield key, lambda g=guard: g(optax.chain(jaxclip.clip_by_global_norm(None), optax.sgd(0.1)))
        yield f"{key}_steps", lambda g=guard: g(optax.MultiSteps(jaxclip.autoclip(), 2))
    for of in ("updates", "params"):
        yield f"monitor_{of}", lambda of=of: jaxclip.monitor(of=of)
    yield "stable_adam", jaxclip.scale_by_stable_adam
    yield "stable_adam_0", lambda: jaxclip.scale_by_stable_adam(b2=0.0, eps=0.1, threshold=None)


def _projections():
    for p in weights.PROJECTIONS:
        yield p.name, lambda p=p: p.make(p.c)
    yield "max_norm_none", lambda: jaxclip.project_max_norm(None)
    yield "min_max_norm_inf", lambda: jaxclip.project_min_max_norm(0.5, np.inf)
    yield "box_low", lambda: jaxclip.project_box(-1.0, None)
    yield "box_high", lambda: jaxclip.project_box(-np.inf, 1.0)
    yield "spectral_none", lambda: jaxclip.project_spectral_norm(None)


INFINITE = ("clip_by_value", "clip_by_norm", "adaptive_grad_clip")  # one check is for all of them
ALSO = ("leaf_2.5", "leaf_relative", "unit_rms")  # of other powers, thresholds and means
CASES = {
    **{r.name: lambda r=r: r.make(r.c) for r in [*EDGE_RULES, *registry.MORE, *map(rule, ALSO)]},
    **{f"{r.name}_None": lambda r=r: r.make(None) for r in NAMED},
    **{f"{name}_inf": lambda name=name: rule(name).make(np.inf) for name in INFINITE},
    **dict(_bounds()), **dict(_learned()), **dict(_wrappers()), **dict(_projections()),
}  # fmt: skip
# One of every place where a limit is inf.
PLAIN = ("clip_None", "clip_by_global_norm_None", "adaptive_grad_clip_inf", "set_None",
         "autoclip_leaf", "zclip_global", "clip_by_history_global", "clip_by_unit", "skip_spikes",
         "monitor_updates", "max_norm_none", "box_low")  # fmt: skip
MORE = (*PLAIN, "stable_adam", "drop", "skip_nonfinite", "spectral_none", "tanh_0.75")
NO_COMPLEX = ("box", "spectral")


def _run(make, dtype, jit=False, shapes=TREE):
    """Updates and metrics of a few steps, one of them with a gradient of 0."""
    dtypes = (dtype,) if isinstance(dtype, str) else dtype
    tree = [registry.build(shapes, d, seed=i) for i, d in enumerate(dtypes)]
    tx = optax.with_extra_args_support(make())
    update = jax.jit(tx.update) if jit else tx.update
    state, seen = tx.init(tree), []
    for factor in FACTORS:
        grads = jax.tree.map(lambda x, f=factor: x * jnp.asarray(f, x.dtype), tree)
        out, state = update(grads, state, tree, value=jnp.float32(factor))
        seen.append((out, jaxclip.metrics(state)))
    return seen


@contextlib.contextmanager
def _under(flags):
    with contextlib.ExitStack() as stack:
        for flag in FLAGS[flags]:
            stack.enter_context(flag(True))
        yield


def _check(key, dtype, flags, jit=False, shapes=TREE):
    first = dtype if isinstance(dtype, str) else dtype[0]
    with modes.maybe_x64(first), modes.relaxed():  # for Optax's MultiSteps
        want = _run(CASES[key], dtype, jit, shapes)
        with _under(flags):
            got = _run(CASES[key], dtype, jit, shapes)
    if flags != "nans":
        want = jax.tree.map(lambda x: x if np.isfinite(x).all() else np.float32(LARGEST), want)
    assert_same_bits(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("key", PLAIN[::3])
def test_without_jit(key):
    _check(key, "float32", "both", shapes=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in CASES if key not in MORE])
def test_without_jit_everywhere(key):
    _check(key, "float32", "both", shapes=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("key", MORE[1::3])
def test_without_jit_by_dtype(key):
    """All dtypes as leaves of one tree; complex numbers have no order for some rules."""
    dtypes = DTYPES[:3] if key.startswith(NO_COMPLEX) else DTYPES
    _check(key, dtypes, "both", shapes=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("key", PLAIN[1::2])
def test_under_one_flag_and_with_jit(key):
    """Nothing in the rules depends on `debug_nans`, so `debug_infs` alone is as both."""
    _check(key, "float32", "nans", shapes=SMALL)
    _check(key, "float32", "both", jit=True)


@pytest.mark.parametrize("flags", FLAGS)
def test_with_jit_in_one_program(flags):
    """And metrics inside of the program."""
    u = jnp.arange(1.0, 6.0)
    rules = {"none": jaxclip.clip_by_norm(None), "warm-up": jaxclip.clip_by_history()}

    def step(u):
        return {k: jaxclip.metrics(tx.update(u, tx.init(u))[1]) for k, tx in rules.items()}

    with _under(flags):
        for key, found in jax.jit(step)(u).items():
            (limit,) = [v for name, v in found.items() if name.endswith("/threshold")]
            assert limit == (np.inf if flags == "nans" else LARGEST), key


@pytest.mark.parametrize("first", [True, False])
def test_a_flag_leaves_no_trace(first):
    """Results do not depend on the flag of updates before, whose programs JAX keeps."""
    u = jnp.full(9 if first else 11, 3e38)  # a norm beyond the largest float
    rule = jaxclip.clip_by_norm(None)
    for on in (first, not first, first):
        with jax.debug_infs(on):
            out, state = rule.update(u, rule.init(u))
            assert_same_bits(out, u)
            assert state.norm == state.threshold == (LARGEST if on else np.inf)


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit", [np.inf, np.float32(np.inf), np.full(1, np.inf), {"w": None}, 1e300, lambda n: np.inf]
)
def test_an_infinite_limit_of_any_kind(limit):
    u = {"w": jnp.array([3.0, 4.0])}
    rule = jaxclip.clip_by(limit, scope="leaf" if np.shape(limit) == () else "unit")
    with jax.debug_infs(True):
        out, state = once(rule, u)
    assert_same_bits(out, u)
    assert state.threshold == LARGEST


@pytest.mark.parametrize("dtype", ["float32", *WIDE])
def test_a_norm_beyond_the_largest_float32_is_recorded_as_that(dtype):
    value = {"float32": 3e38, "float64": 1e200, "complex64": 3e38 + 3e38j}[dtype]
    with modes.maybe_x64(dtype), _under("both"):
        u = jnp.full(4, value, dtype)
        rule = jaxclip.clip_by_global_norm(1.0)
        out, state = rule.update(u, rule.init(u))
        np.testing.assert_allclose(out, np.full(4, value / abs(value) / 2, dtype), rtol=1e-6)
        assert state.norm == LARGEST
        whole = 2e200 if dtype == "float64" else LARGEST
        np.testing.assert_allclose(jaxclip.norms.global_norm(u), whole)
        if dtype != "float32":
            by_element = jaxclip.clip(1.0, record=True)
            assert by_element.update(u, by_element.init(u))[1].norm == LARGEST


FUNCTIONS = {
    "clip": lambda x: functional.clip(x, np.inf),
    "clip_by_value": lambda x: functional.clip_by_value(x, -np.inf, np.inf),
    "clip_by_norm": lambda x: functional.clip_by_norm(x, None),
    "clip_by_average_norm": lambda x: functional.clip_by_average_norm(x, None),
    "clip_by_global_norm": lambda x: functional.clip_by_global_norm(x, None),
    "clip_by_global_norm_inf": lambda x: functional.clip_by_global_norm(x, np.inf, norm=np.inf),
    "clip_by_block_rms": lambda x: functional.clip_by_block_rms(x, None),
    "adaptive_grad_clip": lambda x: functional.adaptive_grad_clip(x, x, np.inf),
    "project_max_norm": lambda x: functional.project_max_norm(x, None),
    "project_min_max_norm": lambda x: functional.project_min_max_norm(x, 0.0, np.inf),
    "project_unit_norm": functional.project_unit_norm,
    "project_non_negative": functional.project_non_negative,
    "project_box": lambda x: functional.project_box(x, None, 1.0),
    "project_spectral_norm": lambda x: functional.project_spectral_norm(x, None),
    "global_norm": lambda x: jaxclip.norms.global_norm(x, np.inf),
    "leaf_norms": lambda x: jaxclip.norms.leaf_norms(x, 3),
    "unit_norms": lambda x: jaxclip.norms.unit_norms(x, axis=0),
    "rms": jaxclip.norms.rms,
    "average_norm": jaxclip.norms.average_norm,
}


@pytest.mark.slow
def test_functions():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)) * 1e20, jnp.float32)
    for key, function in FUNCTIONS.items():
        want = jax.tree.map(lambda a: jnp.minimum(a, LARGEST), function(x))
        with case(key), _under("both"):
            assert_same_bits(function(x), want)


BAD = {"nans": np.nan, "infs": np.inf}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("flags", BAD)
def test_a_bad_gradient_is_reported(flags, jit):
    """No rule hides one, not even a guard, which skips the step without the flag."""
    u = {"w": jax.device_put(np.array([1.0, BAD[flags]], np.float32))}
    for tx in (jaxclip.clip_by_global_norm(1.0), jaxclip.skip_nonfinite(optax.sgd(1.0))):
        state = tx.init(u)
        update = jax.jit(tx.update) if jit else tx.update
        with _under(flags), pytest.raises(FloatingPointError):
            update(u, state)


@pytest.mark.parametrize("jit", [False, True])
def test_a_nan_is_reported_where_it_arises(jit):
    """In the loss of the user, not in the rule behind it."""
    tx = jaxclip.skip_nonfinite(optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(0.1)))

    def step(w, state):
        loss, grads = jax.value_and_grad(lambda w: jnp.sum(jnp.log(w)))(w)
        updates, state = tx.update(grads, state, w, value=loss)
        return optax.apply_updates(w, updates), state, loss

    w = jnp.array([1.0, -1.0])
    with _under("both"), pytest.raises(FloatingPointError, match="encountered in log"):
        (jax.jit(step) if jit else step)(w, tx.init(w))


def _under_switches(switches, key, jit, shapes=TREE):
    with modes.relaxed(), contextlib.ExitStack() as stack:
        want = _run(CASES[key], "float32", jit, shapes)
        for switch in switches:
            stack.enter_context(SWITCHES[switch]())
        got = _run(CASES[key], "float32", jit, shapes)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES)
def test_other_switches(switch):
    _under_switches([switch], "clip_by_global_norm", jit=True, shapes=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("key", MORE[::4])
def test_other_switches_everywhere(key):
    _under_switches(["enable_checks", "leaks"], key, jit=True)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["clip_None", *MORE[1::3]])
def test_without_jit_at_all(key):
    """Under `disable_jit` each instruction inside of a jitted function is checked as well."""
    with jax.disable_jit():
        _check(key, "float32", "both")
