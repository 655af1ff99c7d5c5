"""Bad values: refused where the rule is made, naming the argument and the value."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from tests.support import contexts, registry
from tests.support.registry import NORM_RULES, RULES

by_rule = pytest.mark.parametrize("rule", NORM_RULES, ids=str)
VALUE = [-1.0, -1, float("nan"), -float("inf"), np.float32(-2.0)]
TYPE = [True, np.bool_(False), "1.0", b"1", object(), 1j]


def _says(argument, value):
    """A pattern for `argument=value`."""
    return re.escape(f"{argument}={value!r}")


@pytest.mark.parametrize("bad", VALUE, ids=repr)
@pytest.mark.parametrize("rule", [r for r in RULES if r.name != "clip_by_value"], ids=str)
def test_threshold_value(rule, bad):
    with pytest.raises(ValueError, match=_says(rule.argument, bad)):
        rule.make(bad)


@pytest.mark.parametrize("bad", TYPE, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("rule", [r for r in RULES if r.name != "clip_by_value"], ids=str)
def test_threshold_type(rule, bad):
    with pytest.raises(TypeError, match=_says(rule.argument, bad)):
        rule.make(bad)


@pytest.mark.parametrize("rule", [r for r in NORM_RULES if r.kind == "global"], ids=str)
def test_threshold_shape(rule):
    for bad in (jnp.ones(2), np.ones((1, 1)), [1.0, 2.0]):
        with pytest.raises((ValueError, TypeError), match=f"{rule.argument}="):
            rule.make(bad)


@pytest.mark.parametrize("bad", [-1.0, float("nan")], ids=repr)
def test_negative_array(bad):
    with pytest.raises(ValueError, match="max_norm="):
        jaxclip.clip_by_global_norm(jnp.array(bad))
    with pytest.raises(ValueError, match=re.escape(f"max_norm['b']={bad!r}")):
        jaxclip.clip_by_norm({"a": 1.0, "b": bad})


def test_bounds():
    with pytest.raises(
        ValueError, match=r"min_value=2(\.0)?.*max_value=1|max_value=1(\.0)?.*min_value=2"
    ):
        jaxclip.clip_by_value(2.0, 1.0)
    for name in ("min_value", "max_value"):
        for bad, error in [(float("nan"), ValueError), (True, TypeError), ("1", TypeError)]:
            bounds = {"min_value": -1.0, "max_value": 1.0, name: bad}
            with pytest.raises(error, match=_says(name, bad)):
                jaxclip.clip_by_value(**bounds)


def test_bounds_need_not_be_symmetric_or_positive():
    tx = jaxclip.clip_by_value(2.0, 5.0)
    u = jnp.array([1.0, 3.0, 8.0])
    np.testing.assert_array_equal(tx.update(u, tx.init(u))[0], [2.0, 3.0, 5.0])


@pytest.mark.parametrize(
    ("keywords", "argument", "error"),
    [
        ({"nonfinite": "ignore"}, "nonfinite='ignore'", ValueError),
        ({"nonfinite": None}, "nonfinite=None", (ValueError, TypeError)),
        ({"eps": -1e-6}, "eps=-1e-06", ValueError),
        ({"eps": float("nan")}, "eps=nan", ValueError),
        ({"eps": "small"}, "eps='small'", TypeError),
    ],
    ids=repr,
)
@by_rule
def test_shared_keywords(rule, keywords, argument, error):
    if rule.name == "adaptive_grad_clip" and "eps" in keywords:
        pytest.skip("its eps is another argument; test_agc_eps has it")
    with pytest.raises(error, match=argument):
        rule.make(1.0, **keywords)


@pytest.mark.parametrize(
    ("bad", "error"),
    [(-1.0, ValueError), (float("nan"), ValueError), (True, TypeError), ("x", TypeError)],
)
def test_agc_eps(bad, error):
    with pytest.raises(error, match=_says("eps", bad)):
        jaxclip.adaptive_grad_clip(0.1, bad)


@pytest.mark.parametrize("make", [jaxclip.clip_by_global_norm, jaxclip.clip_by_norm])
@pytest.mark.parametrize("bad", [0.5, 0, -1, float("nan"), "max"])
def test_order_value(make, bad):
    with pytest.raises(ValueError, match=_says("ord", bad)):
        make(1.0, ord=bad)


@pytest.mark.parametrize("bad", [True, [2]], ids=repr)
def test_order_type(bad):
    with pytest.raises(TypeError, match="ord="):
        jaxclip.clip_by(1.0, scope="leaf", ord=bad)


def test_scope():
    for bad in ("layer", None, 2):
        with pytest.raises((ValueError, TypeError), match=_says("scope", bad)):
            jaxclip.clip_by(1.0, scope=bad)
    with pytest.raises(ValueError, match=r"axis=0 .* scope='unit'; got scope='leaf'"):
        jaxclip.clip_by(1.0, scope="leaf", axis=0)


@pytest.mark.parametrize("bad", [1.5, "0", True, (0, 0), (0, None)], ids=repr)
def test_axis(bad):
    makers = [
        jaxclip.clip_by_norm, jaxclip.adaptive_grad_clip, jaxclip.clip_by_block_rms,
        lambda c, axis: jaxclip.clip_by(c, scope="unit", axis=axis), jaxclip.project_max_norm,
    ]  # fmt: skip
    for make in makers:
        with pytest.raises((ValueError, TypeError), match="axis="):
            make(1.0, axis=bad)


def test_axis_says_what_it_may_be():
    for bad in (1.5, "0", True):
        message = f"axis={bad!r} must be an int, a tuple of ints, None, or a function (name, leaf)"
        with pytest.raises(TypeError, match=re.escape(message)):
            jaxclip.clip_by_norm(1.0, axis=bad)


@pytest.mark.parametrize("mask", ["norm_mask", "scale_mask"])
@pytest.mark.parametrize("scope", ["leaf", "unit", "element"])
def test_masks_are_for_one_norm_of_many_leaves(scope, mask):
    axis = {"axis": 0} if scope == "unit" else {}
    with pytest.raises(ValueError, match=mask):
        jaxclip.clip_by(1.0, scope=scope, **axis, **{mask: {"a": True}})


@by_rule
def test_missing_params(rule):
    u = {"w": jnp.ones((3, 2))}
    tx = rule.make(1.0)
    if rule.params:
        with pytest.raises(ValueError, match="params"):
            tx.update(u, tx.init(u))
    else:
        tx.update(u, tx.init(u))


def test_params_of_another_structure():
    tx = jaxclip.adaptive_grad_clip(0.1)
    u = {"w": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match="params"):
        tx.update(u, tx.init(u), {"v": jnp.ones((3, 2))})


def test_nothing_but_the_threshold_is_positional():
    for make in (jaxclip.clip_by_global_norm, jaxclip.clip_by_norm, jaxclip.clip_by_block_rms):
        with pytest.raises(TypeError):
            make(1.0, 2)
    assert jaxclip.adaptive_grad_clip(0.1, 1e-3, 0)  # Optax's signature


def test_a_name_must_be_a_string():
    for bad in (3, "", "a/b"):
        with pytest.raises((TypeError, ValueError), match=_says("name", bad)):
            jaxclip.clip_by(1.0, scope="leaf", name=bad)


@pytest.mark.slow
def test_run_time_never_raises():
    """A poisoned update inside jit comes out; the host loop is who raises."""
    u = jnp.array([jnp.nan, 1.0])
    for rule in registry.NORM_RULES:
        out, _ = contexts.together(rule, {"": (1.0, u, np.ones(2, np.float32))})[""]
        assert np.isnan(out[0])
