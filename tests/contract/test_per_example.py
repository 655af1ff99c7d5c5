"""`per_example`: each example is clipped alone, and bad ones and padding are left out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip import functional
from jaxclip.thresholds import tracked_quantile
from tests.support import modes, registry

NAN, INF = float("nan"), float("inf")
TREE = {"dense": {"kernel": (4, 3), "bias": (3,)}, "gain": ()}
NAMES = ("clip_by_global_norm", "clip", "clip_by_group_norm", "adaptive_grad_clip")
RULES = list(map(registry.rule, NAMES))


def stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def reference(results, rows):
    """The mean of finite results in float64; B counts rows that are not finite too."""
    good = [all(np.isfinite(x).all() for x in result) for result in results]
    added = [r for r, row, g in zip(results, rows, good, strict=True) if row and g]
    zeros = [np.zeros_like(x) for x in results[0]]
    return [sum(parts) / sum(rows) for parts in zip(zeros, *added, strict=True)]


def assert_close(got, want, rtol):
    for x, y in zip(registry.floats(got), want, strict=True):
        wide = np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)
        np.testing.assert_allclose(wide, y, rtol=rtol, atol=rtol * np.abs(y).max(initial=1e-30))


def test_examples():
    """Dtypes, numbers of examples in memory, padding and a NaN, in one program."""
    rule = registry.rule("clip_by_global_norm")
    dtypes, ks = ("bfloat16", "complex64"), (None, 2)
    trees = {d: [registry.build(TREE, d, seed=i, scale=i / 2) for i in range(5)] for d in dtypes}
    for own in trees.values():
        own[1]["gain"] = jnp.asarray(NAN, own[1]["gain"].dtype)
        own[4] = jax.tree.map(lambda x: jnp.full_like(x, INF), own[4])
    mask = jnp.array([True, True, True, True, False])

    @jax.jit
    def run(grads, mask):
        found = {}
        for d, k in zip(dtypes, ks, strict=True):
            tx = jaxclip.per_example(rule.make(rule.c), microbatch=k)
            found[d] = tx.update(grads[d], tx.init(trees[d][0]), mask=mask)
        total = jaxclip.per_example(rule.make(rule.c), reduce="sum", axis=-1)
        last = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), grads["bfloat16"])
        sums = total.update(last, total.init(trees["bfloat16"][0]), mask=mask)[0]
        return found, sums

    grads = {d: stacked(own) for d, own in trees.items()}
    found, sums = run(grads, mask)
    each = [registry.expected(rule, rule.c, u, u) for u in trees["bfloat16"][2:4]]
    assert_close(sums, [sum(parts) for parts in zip(*each, strict=True)], 2**-6)
    for d, (mean, state) in found.items():
        with np.errstate(invalid="ignore"):
            each = [registry.expected(rule, rule.c, u, u) for u in trees[d]]
        registry.assert_kept(mean, trees[d][0])
        rtol = 4 * registry.eps(d)
        assert_close(mean, reference(each, np.asarray(mask)), rtol)
        found = jaxclip.metrics(state)
        norms = rule.norms(registry.floats(trees[d][3]))
        assert np.isnan(found["clip_by_global_norm/norm"])
        assert found["clip_by_global_norm/fraction"] == 0.5  # of four, one is NaN and one is zero
        assert found["clip_by_global_norm/clipped_count"] == 1
        assert found["clip_by_global_norm/nonfinite_count"] == 1
        least = found["clip_by_global_norm/scale"]
        assert float(least) == pytest.approx(rule.c / float(np.ravel(norms[0])[0]), rel=1e-2)
        assert found["clip_by_global_norm/count"] == 1
        assert (found["per_example/example_count"], found["per_example/nonfinite_count"]) == (4, 1)
    nothing, state = run(grads, jnp.zeros(5, bool))[0]["complex64"]
    assert not any(x.any() for x in jax.tree.leaves(nothing))
    found = jaxclip.metrics(state)
    assert (found["per_example/example_count"], found["per_example/nonfinite_count"]) == (0, 0)
    assert (found["clip_by_global_norm/count"], found["clip_by_global_norm/norm"]) == (1, 0)
    assert found["clip_by_global_norm/nonfinite_count"] == 0


@pytest.mark.slow
def test_rules_and_dtypes():
    """On each of three examples alone, against float64; float64 is added in float64."""
    for dtypes in (("float16", "float32"), ("float64",)):
        with modes.maybe_x64(dtypes[0]):
            params = {d: registry.build(TREE, d, seed=9) for d in dtypes}
            trees = {
                d: [registry.build(TREE, d, seed=i, scale=i + 0.5) for i in range(3)]
                for d in dtypes
            }

            @jax.jit
            def run(grads, params):
                found = {}
                for d, own in grads.items():
                    for rule in RULES if d == "float32" else RULES[:1]:
                        tx = jaxclip.per_example(rule.make(rule.c), microbatch=2)
                        found[f"{d} {rule}"] = tx.update(own, tx.init(params[d]), params[d])[0]
                return found

            found = run({d: stacked(own) for d, own in trees.items()}, params)
            for name, got in found.items():
                d, rule = name.split()[0], registry.rule(name.split()[1])
                each = [registry.expected(rule, rule.c, u, params[d]) for u in trees[d]]
                registry.assert_kept(got, params[d])
                assert_close(got, reference(each, [1] * 3), 6 * registry.eps(d))


def test_functions_of_one_example():
    """`batch=`: the same numbers, from the rule and from the function; norms in order."""
    params = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "n": 3, "b": jnp.zeros(2)}
    batch = {"x": jnp.linspace(-2.0, 3.0, 14).reshape(7, 2), "y": jnp.arange(7)}
    mask = jnp.arange(7) != 5

    def gradients(example):
        def loss(w, b):
            y = jax.nn.one_hot(example["y"] % 2, 2)
            return jnp.sum(jnp.square(example["x"] @ w + b - y))

        w, b = jax.grad(loss, (0, 1))(params["w"], params["b"])
        return {"w": w, "n": np.zeros((), jax.dtypes.float0), "b": b}

    tx = jaxclip.per_example(jaxclip.clip_by_global_norm(2.0), microbatch=3)

    @jax.jit
    def run(batch):
        some = functional.clip_per_example(gradients, 2.0, batch=batch, mask=mask, microbatch=2)
        return some, tx.update(gradients, tx.init(params), params, mask=mask, batch=batch)

    some, ruled = run(batch)
    assert some[0]["n"].dtype == jax.dtypes.float0
    assert some[0]["n"].shape == ()
    assert ruled[1].example_count == 6
    x, y = np.float64(batch["x"]), np.eye(2)[np.arange(7) % 2]
    error = 2 * (x @ np.float64(params["w"]) - y)
    norms = np.sqrt((error**2).sum(1) * (1 + (x**2).sum(1))) * np.asarray(mask)
    np.testing.assert_allclose(some[1], norms, rtol=1e-5)
    error = (
        error * np.minimum(1, 2.0 / np.maximum(norms, 1e-30))[:, None] * np.asarray(mask)[:, None]
    )
    for got in (some[0], ruled[0]):
        np.testing.assert_allclose(got["w"], x.T @ error / 6, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got["b"], error.sum(0) / 6, rtol=1e-4, atol=1e-6)


def test_state():
    """A threshold sees each example from the memory before; the memory is their mean."""
    rule = jaxclip.clip_by(tracked_quantile(0.5, eta=0.2, initial=2.0), scope="global")
    chain = optax.chain(optax.inject_hyperparams(optax.scale)(step_size=0.9), jaxclip.monitor())
    tx = jaxclip.per_example(optax.chain(rule, chain))
    update = jax.jit(tx.update)
    state, norms = tx.init(jnp.zeros(1)), [1.0, 3.0, NAN, 0.0]
    first = jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), state)
    _, state = update(jnp.array(norms)[:, None], state)
    assert jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), state) == first
    (threshold,) = state.rule_state[0].memory
    moved = [2 * np.exp(0.2 * (0.5 - (n <= 2))) for n in norms[:2]]
    np.testing.assert_allclose(threshold.threshold, np.mean([*moved, 2.0]), rtol=1e-6)
    hyperparams, monitored = state.rule_state[1]
    assert hyperparams.hyperparams["step_size"] == jnp.float32(0.9)  # a sum of three has a rounding
    assert hyperparams.count == 1
    assert np.isnan(monitored.norm)
    _, state = update(jnp.array([1.0, 5.0, 1.0, 0.0])[:, None], state)
    largest = 0.9 * float(threshold.threshold)
    assert float(state.rule_state[1][1].norm) == pytest.approx(largest, rel=1e-5)
    assert state.rule_state[1][1].update_count == 2


def test_padding_is_not_recorded():
    """All norms are raised: a row of padding, which is 0 and stays so, has the smaller factor."""
    tx = jaxclip.per_example(jaxclip.normalize_by_norm(2.0))
    u, mask = jnp.array([[1.0], [0.5], [9.0]]), jnp.array([True, True, False])
    out, state = jax.jit(tx.update)(u, tx.init(u[0]), mask=mask)
    np.testing.assert_allclose(out, [2.0], rtol=1e-6)
    assert float(state.rule_state.smallest_scale) == 2


@pytest.mark.relaxed
def test_any_transformation():
    """Two rules in a chain, noise with a key, extra arguments; zeros for leaves of integers."""
    seen = []

    def update(updates, state, params, *, value):
        seen.append((jnp.shape(params["w"]), jnp.shape(value)))
        del state
        return jax.tree.map(lambda x: x * value.astype(x.dtype), updates), {
            "key": jax.random.key(1),
            "on": True,
        }

    init = {"key": jax.random.key(0), "on": jnp.array(False)}
    odd = optax.GradientTransformationExtraArgs(lambda params: init, update)
    rule = optax.chain(jaxclip.clip_by_global_norm(1.0), odd, jaxclip.clip_by_norm(1.5))
    tx = jaxclip.per_example(rule, reduce="sum")
    u = {"w": jnp.array([[3.0, 4.0], [0.3, 0.4]]), "n": jnp.arange(4).reshape(2, 2), "e": None}
    p = {"w": jnp.ones(2), "n": jnp.arange(2), "e": None}
    out, state = jax.jit(tx.update)(u, tx.init(p), p, value=jnp.float32(2.0))
    np.testing.assert_allclose(out["w"], [0.9 + 0.6, 1.2 + 0.8], rtol=1e-6)
    assert seen[0] == ((2,), ())
    assert out["n"].tolist() == [0, 0]
    own = state.rule_state[1]
    assert jnp.array_equal(jax.random.key_data(own["key"]), jax.random.key_data(jax.random.key(1)))
    assert own["on"].dtype == bool
    assert own["on"]


def test_trees_without_numbers():
    scaled = jaxclip.per_example(optax.scale(2.0))

    @jax.jit
    def run(trees):
        return [scaled.update(u, scaled.init(u)) for u in trees]

    for out, state in run([{}, {"a": jnp.zeros((0, 3))}, {"a": jnp.zeros((2, 0))}]):
        assert not any(x.any() for x in jax.tree.leaves(out))
        assert state.nonfinite_count == 0


def test_errors():
    one = jaxclip.clip_by_global_norm(1.0)
    make, g = jaxclip.per_example, {"w": jnp.ones((4, 2)), "b": jnp.ones(4)}
    p = {"w": jnp.ones(2), "b": jnp.ones(())}

    def update(tx, *updates, **keywords):
        return lambda: tx.update(*updates, **keywords)

    tx, state = make(one), make(one).init(p)
    broken = optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (u, 1))
    for call, error, message in (
        (lambda: make(1.0), TypeError, "rule=1.0 must be"),
        (lambda: make(one, axis=True), TypeError, "axis=True must be an int"),
        (lambda: make(one, reduce="max"), ValueError, "reduce='max' is not known"),
        (lambda: make(one, microbatch=0), ValueError, "microbatch=0 must be at least 1"),
        (lambda: make(jaxclip.autoclip(10)).init(p), ValueError, "window of norms"),
        (lambda: make(jaxclip.clip_by_history()).init(p), ValueError, "window of norms"),
        (update(tx, g, one.init(p)), TypeError, "PerExampleState"),
        (update(tx, p, state, p), ValueError, "axis=0: ['b'] of shape ()"),
        (update(tx, g | {"b": jnp.ones(3)}, state), ValueError, "3 at ['b'] and 4 at ['w']"),
        (update(tx, {"w": jnp.ones((4, 3)), "b": jnp.ones(4)}, state, p), ValueError, "(3,)"),
        (update(tx, g, state, mask=jnp.ones(4)), TypeError, "must be of bools"),
        (update(tx, g, state, mask=jnp.ones(3, bool)), ValueError, "there are 4 examples"),
        (update(tx, g, state, batch=g), TypeError, "batch= needs a function"),
        (update(tx, lambda x: x, state), TypeError, "a function needs batch="),
        (update(make(broken), g, make(broken).init(p)), ValueError, "not that of rule"),
        (lambda: functional.clip_per_example(g, -1.0), ValueError, "max_norm=-1.0"),
        (lambda: functional.clip_per_example(g, lambda t: t), TypeError, "max_norm="),
    ):
        with pytest.raises(error, match=re.escape(message)):
            jax.eval_shape(call)
