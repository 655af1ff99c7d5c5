"""`scope="group"`: one norm for each label."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import thresholds
from tests.support import registry
from tests.support.contexts import once

LABELS = {"a": {"x": "one", "y": "two"}, "b": "one", "c": None}
NAN = float("nan")


def _tree(dtype="float32", scale=3.0):
    spec = {"a": {"x": (4, 3), "y": (5,)}, "b": (7,), "c": ()}
    return registry.build(spec, dtype, scale=scale)


def _alone(rule, label):
    """The rule on the leaves of one label."""
    leaves, form = jax.tree.flatten(LABELS, is_leaf=lambda x: x is None)
    return optax.masked(rule, form.unflatten([x == label for x in leaves]))


def _all(rules, u):
    """`{name: (result, state)}` of some rules, in one program."""
    return jax.jit(lambda u: {k: tx.update(u, tx.init(u)) for k, tx in rules.items()})(u)


@pytest.mark.slow
def test_labels_equal_rules_on_their_leaves():
    """Bit for bit: one label for all, a label for each leaf, and two labels; two updates."""
    u = _tree() | {"b": _tree("bfloat16")["b"]}
    each = jax.tree.map(lambda x: str(x.shape), u)

    def two(tx, u):
        first, state = tx.update(u, tx.init(u))
        return first, tx.update(jax.tree.map(lambda x: 2 * x, u), state)[0]

    def make(**scope):
        return jaxclip.clip_by(1.0, **scope)

    def learned(**scope):
        return jaxclip.clip_by(thresholds.quantile(0.5, window=4), nonfinite="drop", **scope)

    @jax.jit
    def run(u):
        pairs = [
            (make(scope="group", groups="all"), make(scope="global")),
            (make(scope="group", groups=each), make(scope="leaf")),
        ]
        for rule in (make, learned):
            alone = [_alone(rule(scope="global"), k) for k in ("one", "two")]
            pairs.append((rule(scope="group", groups=LABELS), optax.chain(*alone)))
        return [(two(one, u), two(other, u)) for one, other in pairs]

    for tree in (u, u | {"b": u["b"].at[2].set(NAN)}):
        for got, want in run(tree):
            registry.assert_same_bits(got, want)


def test_record():
    """Norms and scales by label; a leaf without a label is neither measured nor changed."""
    u = _tree() | {"c": jnp.float32(NAN)}
    tx = jaxclip.clip_by_group_norm(1.0, LABELS)
    out, state = once(tx, u)
    found = jax.tree.map(np.asarray, jaxclip.metrics(state))
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), u)
    norms = {
        "one": np.sqrt((wide["a"]["x"] ** 2).sum() + (wide["b"] ** 2).sum()),
        "two": np.sqrt((wide["a"]["y"] ** 2).sum()),
    }
    for label, n in norms.items():
        assert found[f"clip_by_group_norm/norm/{label}"] == pytest.approx(n, rel=1e-6)
        assert found[f"clip_by_group_norm/scale/{label}"] == pytest.approx(1 / n, rel=1e-6)
    assert found["clip_by_group_norm/norm"] == pytest.approx(max(norms.values()), rel=1e-6)
    assert found["clip_by_group_norm/fraction"] == 1
    assert found["clip_by_group_norm/nonfinite_count"] == 0
    registry.assert_same_bits(out["c"], u["c"])
    np.testing.assert_allclose(out["b"], wide["b"] / norms["one"], rtol=1e-6)


def test_thresholds_by_label():
    """A number, a schedule, an array and no limit."""
    u = {k: jnp.array([3.0, 4.0]) for k in "abcd"}
    limits = {"a": 1.0, "b": lambda count: 2 + count, "c": jnp.float32(0.5), "d": None}
    constant = thresholds.constant(limits)
    for tx in (
        jaxclip.clip_by_group_norm(limits, {k: k for k in u}),
        jaxclip.clip_by(constant, scope="group", groups=lambda tree: {k: k for k in tree}),
    ):
        update = jax.jit(tx.update)
        out, state = update(u, tx.init(u))
        assert float(state.threshold) == 0.5
        out, state = update(u, state)
        for key, norm in zip("abcd", (1, 3, 0.5, 5), strict=True):
            np.testing.assert_allclose(out[key], u[key] * (norm / 5), rtol=1e-6)


@pytest.mark.slow
def test_params_and_thresholds_of_groups():
    """A multiple of the norm of a group's parameters."""
    u, p = _tree(), _tree(scale=0.1)
    limit = thresholds.relative_to_params({"one": 0.5, "two": 2.0}, eps=0.0)
    out, _ = once(jaxclip.clip_by(limit, scope="group", groups=LABELS), u, p)
    norm = np.linalg.norm(np.asarray(p["a"]["y"], np.float64))
    np.testing.assert_allclose(np.linalg.norm(out["a"]["y"]), 2 * norm, rtol=1e-6)
    both = np.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in (p["a"]["x"], p["b"])))
    got = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in (out["a"]["x"], out["b"])))
    np.testing.assert_allclose(got, both / 2, rtol=1e-6)


def test_masks_at_scope_group():
    """`norm_mask` leaves out of a norm, `scale_mask` out of the scaling."""
    u = {"a": jnp.array([3.0]), "b": jnp.array([4.0]), "c": jnp.array([6.0])}
    groups = {"a": "k", "b": "k", "c": "l"}
    masks = {"norm_mask": {"a": True, "b": False, "c": False}}
    masks["scale_mask"] = {"a": False, "b": True, "c": True}
    rules = {c: jaxclip.clip_by_group_norm(c, groups, **masks) for c in (1.0, 9.0)}
    found = _all(rules, u)
    np.testing.assert_allclose([x[0] for x in found[1.0][0].values()], [3, 4 / 3, 6], rtol=1e-6)
    assert float(found[1.0][1].memory.norms["l"]) == 0.0
    registry.assert_same_bits(found[9.0][0], u)


def test_nonfinite_groups():
    u = {"a": jnp.array([NAN, 1.0]), "b": jnp.array([3.0, 4.0]), "c": jnp.array([9.0])}
    groups = {"a": "a", "b": "b", "c": None}
    rest = {"propagate": 0.2, "zero": 0, "nan": NAN, "drop": 0.2}
    found = _all({p: jaxclip.clip_by_group_norm(1.0, groups, nonfinite=p) for p in rest}, u)
    for policy, (out, state) in found.items():
        np.testing.assert_allclose(out["b"], u["b"] * rest[policy], rtol=1e-6)
        np.testing.assert_array_equal(out["c"], u["c"])
        assert int(state.nonfinite_count) == 1
    registry.assert_same_bits(found["propagate"][0]["a"], u["a"])
    np.testing.assert_array_equal(found["drop"][0]["a"], [0, 1])
    assert np.isnan(found["propagate"][1].memory.norms["a"])


@pytest.mark.slow
def test_a_clip_inside_partition_is_per_branch():
    """Each label has the norm of its own leaves: not the norm of the tree."""
    u = {"w": jnp.array([3.0]), "v": jnp.array([4.0])}
    labels = {"w": "one", "v": "two"}
    branch = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.identity())
    rules = {
        "inside": optax.partition({"one": branch, "two": branch}, labels),
        "group": jaxclip.clip_by_group_norm(1.0, labels),
        "before": jaxclip.clip_by_global_norm(1.0),
    }
    found = {name: [out["w"][0], out["v"][0]] for name, (out, _) in _all(rules, u).items()}
    assert found["inside"] == found["group"] == [1, 1]
    np.testing.assert_allclose(found["before"], [0.6, 0.8], rtol=1e-6)


@pytest.mark.slow
def test_groups_inside_other_transformations():
    """In `partition` and `masked`, where trees lack leaves, by a function; traced thresholds."""
    u = {"w": jnp.array([3.0]), "v": jnp.array([4.0]), "x": jnp.array([5.0])}

    def names(tree):
        return {k: k for k in tree}

    group = jaxclip.clip_by_group_norm(1.0, names)
    labels = {"w": "one", "v": "one", "x": "two"}
    inject = optax.inject_hyperparams(jaxclip.clip_by_group_norm, static_args=("groups",))
    rules = {
        "partition": optax.partition({"one": group, "two": optax.identity()}, labels),
        "masked": optax.masked(group, {"w": True, "v": True, "x": False}),
        "inject": inject(max_norm=2.0, groups=names),
    }
    for name, (out, state) in _all(rules, u).items():
        want = [2, 2, 2] if name == "inject" else [1, 1, 5]
        np.testing.assert_array_equal([x[0] for x in out.values()], want)
        norms = [k for k in jaxclip.metrics(state) if "clip_by_group_norm/norm/" in k]
        assert len(norms) == (3 if name == "inject" else 2)


def test_tree_without_labels():
    for u, groups in (({}, {}), ({"w": jnp.ones(2)}, {"w": None})):
        for limit in (1.0, thresholds.quantile(0.5, window=2)):
            tx = jaxclip.clip_by(limit, scope="group", groups=groups)
            state = tx.init(u)
            out, after = tx.update(u, state)
            registry.assert_same_bits(out, u)
            assert jax.tree.structure(after) == jax.tree.structure(state)
            assert not any("/norm/" in key for key in jaxclip.metrics(after))


def test_tree_map_params():
    """Optax makes a state for a placeholder, by which it finds moments in a state."""
    u = {"w": jnp.ones(2), "v": jnp.ones(2)}
    for groups in ({"w": "a", "v": "b"}, lambda tree: dict.fromkeys(tree, "a")):
        limit = thresholds.tracked_quantile()
        tx = optax.chain(jaxclip.clip_by(limit, scope="group", groups=groups), optax.trace(0.9))
        found = optax.tree_utils.tree_map_params(tx, lambda x: x + 1, tx.init(u))
        np.testing.assert_array_equal(found[1].trace["w"], [1, 1])
        assert jax.tree.structure(found) == jax.tree.structure(tx.init(u))


U = {"w": jnp.ones(2), "v": jnp.ones(2)}


def test_errors_at_construction():
    for keywords, message in (
        ({"scope": "group"}, "groups=None"),
        ({"scope": "leaf", "groups": "all"}, "scope='group'; got scope='leaf'"),
        ({"scope": "group", "groups": "all", "stacked": 0}, "got scope='group'"),
        ({"scope": "group", "groups": "all", "axis": 0}, "got scope='group'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            jaxclip.clip_by(1.0, **keywords)
    for bad, message in (
        ([1.0, 2.0], "max_norm=[1.0, 2.0] must be one value"),
        ({"a": {"b": 1.0}}, "max_norm['a']={'b': 1.0} must be one value"),
        ({"a": -1.0}, "max_norm['a']=-1.0"),
        ({"a": jnp.ones(2)}, "max_norm['a']="),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            jaxclip.clip_by_group_norm(bad, "a")


def test_errors_of_labels():
    for groups, limit, error, message in (
        ({"w": "a", "v": "b"}, {"a": 1.0}, ValueError, "no value for the label 'b'"),
        ({"w": 1, "v": "a"}, 1.0, TypeError, "the label 1;"),
        ({"w": True, "v": "a"}, 1.0, TypeError, "the label True"),
        ({"w": "a"}, 1.0, ValueError, "groups is not a prefix"),
        (lambda tree: jnp.ones(2), 1.0, TypeError, "groups has the label"),
    ):
        rule = jaxclip.clip_by_group_norm(limit, groups)
        with pytest.raises(error, match=re.escape(message)):
            rule.update(U, rule.init(U))


def test_errors_of_shapes_name_the_group():
    limit = thresholds.constant({"a": 1.0, "b": jnp.ones(2)})
    rule = jaxclip.clip_by(limit, scope="group", groups={"w": "a", "v": "b"})
    with pytest.raises(ValueError, match="the norms of the group 'b'"):
        rule.update(U, rule.init(U))


@pytest.mark.slow
def test_means_of_groups_in_a_warmup():
    """The first norms of `adagc` are clipped together, by the mean over all finite groups."""
    u = {"a": jnp.array([3.0, 5.0]), "b": jnp.array([4.0]), "c": jnp.array([NAN])}
    limit = thresholds.ema_ratio(warmup_norm=1.0)
    groups = {"a": "k", "b": "k", "c": "l"}
    out, _ = once(jaxclip.clip_by(limit, scope="group", groups=groups, ord="rms"), u)
    np.testing.assert_allclose(out["a"], u["a"] / np.sqrt(50 / 4), rtol=1e-6)


def test_states_of_other_labels_are_refused():
    rule, other = (jaxclip.clip_by_group_norm(1.0, {"w": "a", "v": k}) for k in "ab")
    state = rule.init(U)
    other.init(U)
    with pytest.raises(ValueError, match="made with other arguments"):
        other.update(U, state)
