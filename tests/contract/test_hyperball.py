"""`hyperball`: matrices of constant norm, turned by an angle, against the formula in float64."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import modes, registry
from tests.support import oracles as o

NAN, INF = float("nan"), float("inf")
ETA = 0.1
DTYPES = {"single": "float32", "brain": "bfloat16", "half": "float16"}


def step(w, u, eta=ETA, radius=None):
    """One step of a matrix, in float64."""
    r = np.linalg.norm(w) if radius is None else radius
    moved = w - eta * r * u / np.linalg.norm(u)
    return r * moved / np.linalg.norm(moved)


def ball(**options):
    """Directions as they come in, on stacks where the leaf is one."""
    return jaxclip.hyperball(
        optax.identity(), ETA, stacked=lambda name, x: 0 if name == "stack" else None, **options
    )


@jax.jit
def run(params, directions):
    """The weights after each step, and the last state."""
    tx = ball()

    def body(carry, u):
        w, state = carry
        updates, state = tx.update(u, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    (_, state), steps = jax.lax.scan(body, (params, tx.init(params)), directions)
    return steps, state


@pytest.mark.slow
def test_a_thousand_steps():
    """In every dtype at once: the path of float64, norms that stay, and plain steps of biases."""
    with modes.x64():
        shapes = dict.fromkeys(DTYPES, (6, 5)) | {"stack": (3, 4, 5), "bias": (5,)}
        params = {k: registry.build(s, DTYPES.get(k, "float32"), seed=i)
                  for i, (k, s) in enumerate(shapes.items())}  # fmt: skip
        params["double"] = registry.build((4, 3), "float64")
        rng = np.random.default_rng(0)
        directions = {k: jnp.asarray(rng.normal(size=(1000, *x.shape)), x.dtype)
                      for k, x in params.items()}  # fmt: skip
        found, state = run(params, directions)
        found = jax.device_get(found)
    for name, w in params.items():
        near = {"brain": 2e-3, "half": 3e-4, "double": 1e-14}.get(name, 1e-6)
        if name == "bias":
            want = o.wide(w) - ETA * o.wide(directions[name]).sum(0)
            np.testing.assert_allclose(found[name][-1], want, rtol=0, atol=2e-4)
            continue
        first, after = o.wide(w), o.wide(found[name])
        pairs = zip(first, np.moveaxis(after, 1, 0)) if name == "stack" else [(first, after)]  # noqa: B905
        for i, (start, path) in enumerate(pairs):
            radius = np.linalg.norm(start)
            norms = np.linalg.norm(path, axis=(1, 2))
            np.testing.assert_allclose(norms, radius, rtol=near, err_msg=name)
            want = start
            for t, u in enumerate(o.wide(directions[name])):
                want = step(want, u[i] if name == "stack" else u, radius=radius)
                if t in (9, 999):
                    far = np.linalg.norm(path[t] - want) / radius
                    assert far < 20 * near, (name, t, far)
    assert (int(state.update_count), int(state.unchanged_count)) == (1000, 0)


_EDGES = [[1.9, 0], [0.9, 0.4]]  # times a power of two, on both sides of it
ODD = {  # weights, direction
    "right angle": ([[3, 0], [0, 4]], [[0, 7], [0, 0]]),
    "large": ([[3, 0], [0, 4]], [[0, 7e20], [3e20, 0]]),
    "small": ([[3, 0], [0, 4]], [[0, 7e-30], [3e-30, 0]]),
    "same direction": ([[3, 0], [0, 4]], [[3, 0], [0, 4]]),
    "large edge": ([[3, 0], [0, 4]], np.ldexp(_EDGES, 40).tolist()),
    "small edge": ([[3, 0], [0, 4]], np.ldexp(_EDGES, -40).tolist()),
    "zero direction": ([[3, 0], [0, 4]], [[0, 0], [0, 0]]),
    "nan direction": ([[3, 0], [0, 4]], [[NAN, 1], [0, 0]]),
    "inf direction": ([[3, 0], [0, 4]], [[INF, 1], [0, 0]]),
    "zero weights": ([[0, 0], [0, 0]], [[1, 2], [3, 4]]),
    "nan weights": ([[NAN, 0], [0, 4]], [[1, 2], [3, 4]]),
}
ANGLES = dict.fromkeys(("right angle", "large", "small"), 0.0996687) | {"same direction": 0.0}


@jax.jit
def turned(eta, params, directions):
    """One step of each matrix of two stacks, with a state of its own."""
    tx = jaxclip.hyperball(optax.identity(), eta)
    return jax.vmap(lambda w, u: tx.update(u, tx.init(w), w))(params, directions)


def test_odd_matrices():
    """By the angle of the docstring; unchanged and counted where there is none."""
    given = jnp.asarray(list(ODD.values()), jnp.float32)
    updates, states = turned(ETA, given[:, 0], given[:, 1])
    for i, (name, (w, u)) in enumerate(ODD.items()):
        state = jax.tree.map(lambda x, i=i: x[i], states)
        found = {key.split("/")[1]: float(x) for key, x in jaxclip.metrics(state).items()}
        stays = name.split()[0] in ("zero", "nan", "inf")
        assert (found["unchanged_count"], found["count"]) == (stays, 1), name
        np.testing.assert_allclose(found["norm"], np.linalg.norm(u), rtol=1e-6, err_msg=name)
        if stays:
            np.testing.assert_array_equal(updates[i], np.zeros((2, 2)), err_msg=name)
            assert found["angle"] == 0
            continue
        if name in ANGLES:
            assert found["angle"] == pytest.approx(ANGLES[name], abs=1e-7), name
        want = step(np.float64(w), np.float64(u))
        np.testing.assert_allclose(w + o.wide(updates[i]), want, rtol=0, atol=1e-6, err_msg=name)
    # Onto the origin, which has no direction, and back through it.
    for eta, want in ((1.0, 0.0), (2.0, -2.0)):
        updates, states = turned(eta, given[:, 0], given[:, 0])
        np.testing.assert_allclose(updates[0], want * given[0, 0], rtol=1e-6)
        assert int(states.unchanged_count[0]) == (eta == 1)


def test_arguments():
    """Radius, mask, schedule, stacks, 16 bits, complex leaves, rules inside, a pickle."""
    shapes = {
        "stack": ((2, 3, 4), "bfloat16"),
        "a": ((3, 2), "complex64"),
        "b": ((3, 2), "float32"),
    }
    p, u = ({k: registry.build(*shapes[k], seed=i) for k in shapes} | {"n": jnp.arange(2)}
            for i in (0, 1))  # fmt: skip
    tx = jaxclip.hyperball(
        jaxclip.clip_by_global_norm(1.0),
        lambda n: 0.1 * (1.0 + n.astype(jnp.float32)),
        radius=dict.fromkeys(p) | {"stack": jnp.array([1.0, 3.0])},
        mask=dict.fromkeys(p, True) | {"b": False},
        stacked=lambda name, x: 0 if name == "stack" else None,
    )
    updates, state = jax.jit(lambda p, u: tx.update(u, tx.init(p), p))(p, u)
    assert {k: x.dtype for k, x in updates.items()} == {k: x.dtype for k, x in p.items()}
    norm = float(jaxclip.metrics(state)["clip_by_global_norm/norm"])
    np.testing.assert_allclose(updates["b"], -ETA * u["b"] / norm, rtol=1e-5)
    cases = [("stack", *(x["stack"][i] for x in (p, u, updates)), 1 + 2.0 * i) for i in (0, 1)]
    for name, w, d, update, r in [*cases, ("a", p["a"], u["a"], updates["a"], None)]:
        want = step(*(np.asarray(x, complex) for x in (w, d)), radius=r)
        near = {"rtol": 0, "atol": 1e-2 if name == "stack" else 2e-6}
        np.testing.assert_allclose(np.asarray(w + update, complex), want, **near, err_msg=name)
    again = pickle.loads(pickle.dumps(jax.device_get(state)))
    assert type(again) is type(state)


@pytest.mark.slow
@pytest.mark.relaxed  # Adam of Optax promotes
def test_in_other_transformations():
    """Accumulated, guarded, by label; the state is a fixed point of `scan`."""
    p = {"k": registry.build((4, 3)), "b": registry.build((3,))}
    us = [registry.build({"k": (4, 3), "b": (3,)}, seed=i) for i in range(4)]
    tx = jaxclip.hyperball(optax.scale_by_adam(), 0.05)
    made = {
        "alone": tx,
        "injected": optax.inject_hyperparams(jaxclip.hyperball)(optax.scale_by_adam(), 0.05),
        "guarded": jaxclip.skip_nonfinite(tx),
        "accumulated": optax.MultiSteps(tx, 2).gradient_transformation(),
        "by label": optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"k": "a", "b": "b"}),
    }
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *us)

    @jax.jit
    def run(stacked):
        def body(tx, carry, u):
            w, s = carry
            updates, s = tx.update(u, s, w)
            return (optax.apply_updates(w, updates), s), None

        return {
            name: jax.lax.scan(lambda c, u, tx=tx: body(tx, c, u), (p, tx.init(p)), stacked)[0][0]
            for name, tx in made.items()
        }

    found = run(stacked)
    injected = found.pop("injected")["k"]
    np.testing.assert_allclose(injected, found["alone"]["k"], rtol=1e-5)
    np.testing.assert_allclose(found["guarded"]["k"], found["alone"]["k"], rtol=1e-5)
    for name, w in found.items():
        norms = np.linalg.norm(o.wide(w["k"])), np.linalg.norm(o.wide(p["k"]))
        np.testing.assert_allclose(*norms, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["by label"]["b"], p["b"] - 0.1 * sum(u["b"] for u in us), 1e-5)


def test_errors():
    p, tx = {"w": jnp.ones((2, 2))}, ball()
    for call, error, message in (
        (lambda: jaxclip.hyperball(1.0, 0.1), TypeError, r"inner=1\.0 must be"),
        (lambda: jaxclip.hyperball(optax.identity(), None), TypeError, "learning_rate=None"),
        (lambda: jaxclip.hyperball(optax.identity(), {"a": 1.0}), TypeError, "one number or sched"),
        (lambda: jaxclip.hyperball(optax.identity(), -0.1), ValueError, r"learning_rate=-0\.1"),
        (lambda: jaxclip.hyperball(optax.identity(), 0.1, radius=INF), ValueError, "radius=inf"),
        (lambda: tx.update(p, tx.init(p)), ValueError, "params=None: hyperball needs"),
        (lambda: tx.update(p, optax.EmptyState(), p), TypeError, "HyperballState"),
        (lambda: tx.update(p, tx.init([p["w"], p["w"]]), p), ValueError, "state of hyperball has"),
    ):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ValueError, match="only the result of inner has"):
        tx.update({"w": p["w"], "x": p["w"]}, tx.init(p), p)
    none = {"bias": jnp.ones(2)}
    out, _ = tx.update(none, tx.init(none), none)
    np.testing.assert_allclose(out["bias"], [-0.1, -0.1])
