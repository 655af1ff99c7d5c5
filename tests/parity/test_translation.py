"""The first table of docs/migration.md: both sides of each line are run, as they stand there."""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.support import modes

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
# How code on the right begins.
OURS = ("jaxclip.", "jax.", "optax.", "orbax.", "saver.", "updates, ")
# How code on the left begins, for each library.
LIBRARIES = {
    "optax": ("optax.",),
    "torch": ("torch.", "w."),
    "tensorflow": ("tf.clip_by_", "tf.global_norm"),
    "keras": ("keras.",),
}
RANDOM = np.random.default_rng(0)
GRADS = [RANDOM.normal(size=shape).astype(np.float32) for shape in ((4, 3), (5,))]
WEIGHTS = RANDOM.normal(size=(4, 3)).astype(np.float32)
CUBE = [RANDOM.normal(size=(2, 3, 4)).astype(np.float32)]
NUMBERS = {"c": 0.7, "lo": 0.2, "hi": 0.9, "p": 3.0, "axes": [1], "n": 2.5, "rate": 0.25}
NUMBERS |= {"groups": ["first", "second"], "steps": 3, "end": 0.05, "power": 0.9}


def table():
    """The code on the right by the first code on the left, and the other code on the left."""
    if not PAGE.exists():
        return {}
    rows = {}
    for line in PAGE.read_text().split("\n## ")[0].splitlines():
        if line.startswith("| `"):
            left, right = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:3])
            rows[left[0]] = ([x for x in right if x.startswith(OURS)], left[1:])
    return rows


TABLE = table()
ROWS = list(TABLE)


def rows(library):
    """A test of each row of a library, with the code on its right."""
    found = [row for row in ROWS if row.startswith(LIBRARIES[library])]
    pairs = [pytest.param(row, TABLE[row][0], id=row) for row in found]
    return pytest.mark.parametrize(("theirs", "ours"), pairs)


def evaluated(code, **names):
    return eval(code, NUMBERS | {"jaxclip": jaxclip, "jax": jax, "optax": optax} | names)


def assert_near(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-6, atol=1e-7)


def clipped(tx, grads=GRADS):
    grads = list(map(jnp.asarray, grads))
    updates, _ = jax.jit(lambda u: tx.update(u, tx.init(u), u))(grads)
    assert not all(np.array_equal(u, g) for u, g in zip(updates, grads, strict=True))
    return updates


def projected(tx):
    tx = optax.chain(optax.sgd(1.0), tx)

    @jax.jit
    def run(w):
        return optax.apply_updates(w, tx.update(0 * w, tx.init(w), w)[0])

    return run(jnp.asarray(WEIGHTS))


def whatever(code, want, **names):
    """A rule, a projection or a function on the right gives the result of the left."""
    found = evaluated(code, **names)
    if isinstance(found, optax.GradientTransformation):
        found = (projected if ".project_" in code else clipped)(found)
    assert_near(found, want)


pytestmark = [
    pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests"),
    pytest.mark.relaxed,
]


def test_no_row_is_left_out():
    known = [row for row in ROWS if row in GRAPH or row.startswith(sum(LIBRARIES.values(), ()))]
    assert known == ROWS
    assert set(GRAPH) <= set(ROWS)
    assert all(ours for ours, _ in TABLE.values())
    assert len(ROWS) == 27


@pytest.mark.slow
@rows("optax")
def test_optax(theirs, ours):
    for code in ours:
        assert_near(clipped(evaluated(code)), clipped(evaluated(theirs)))
    if len(ours) > 1:  # the second is for a leaf of rank 3
        assert_near(clipped(evaluated(ours[1]), CUBE), clipped(evaluated(theirs), CUBE))


@pytest.mark.slow
@rows("torch")
def test_torch(theirs, ours):
    torch = pytest.importorskip("torch", reason="pip install -e .[parity]")
    if theirs.startswith(("torch.renorm", "w.")):
        want = evaluated(theirs, torch=torch, w=torch.tensor(WEIGHTS)).numpy()
        for code in ours:
            whatever(code, want, w=jnp.asarray(WEIGHTS))
        return
    params = [torch.nn.Parameter(torch.zeros(g.shape)) for g in GRADS]
    for param, grad in zip(params, GRADS, strict=True):
        param.grad = torch.tensor(grad)
    groups = [[param] for param in params] if 'group["params"]' in theirs else [params]
    for group in groups:
        evaluated(theirs, torch=torch, params=params, group={"params": group})
    for code in ours:
        whatever(code, [param.grad.numpy() for param in params])


def tensorflow():
    found = pytest.importorskip("tensorflow", reason="pip install -e .[parity]")
    return found.compat.v1


@pytest.mark.slow
@rows("tensorflow")
def test_tensorflow(theirs, ours):
    tf = tensorflow()
    tensors = list(map(tf.constant, GRADS))
    want = evaluated(theirs, tf=tf, t=tensors[0], grads=tensors, n=tf.constant(NUMBERS["n"]))
    want = jax.tree.map(lambda x: x.numpy(), want)
    for code in ours:
        if code.startswith("jaxclip.clip_by_norm"):
            want = [want]  # the rule, given a tree of one leaf
            assert_near(clipped(evaluated(code), GRADS[:1]), want)
        else:
            whatever(code, want, t=jnp.asarray(GRADS[0]), grads=list(map(jnp.asarray, GRADS)))


@pytest.mark.slow
def test_rules_beside_the_functions():
    """As the words above the table say: the same name, and the same arguments but the tensor."""
    t = jnp.asarray(GRADS[0])
    for rule, function in (
        ("clip_by_value(lo, hi)", "clip_by_value(t, lo, hi)"),
        ("clip_by_average_norm(c / 9)", "clip_by_average_norm(t, c / 9)"),
    ):
        want = evaluated(f"jaxclip.functional.{function}", t=t)
        assert_near(clipped(evaluated(f"jaxclip.{rule}"), GRADS[:1]), [want])


@pytest.mark.slow
@rows("keras")
def test_keras(theirs, ours):
    pytest.importorskip("tensorflow", reason="pip install -e .[parity]")
    keras = pytest.importorskip("keras", reason="pip install -e .[parity]")
    peer = evaluated(theirs, keras=keras)
    if theirs.startswith("keras.constraints."):
        want = keras.ops.convert_to_numpy(peer(keras.ops.convert_to_tensor(WEIGHTS)))
        for code in ours:
            whatever(code, want, w=jnp.asarray(WEIGHTS))
        return
    variables = [keras.Variable(np.zeros_like(g)) for g in GRADS]
    peer.apply(list(map(keras.ops.convert_to_tensor, GRADS)), variables)
    for code in ours:
        whatever(code, [-keras.ops.cast(v, "float32").numpy() for v in variables])


# ---- the lines of a training program of TensorFlow 1

GRAPH = (
    "optimizer.compute_gradients(loss)",
    "optimizer.apply_gradients(clipped)",
    "max_norm_regularizer(c)",
    "tf.train.Saver()",
    "tf.train.polynomial_decay(rate, step, steps, end, power)",
)
COMPUTE, APPLY, REGULARIZER, SAVER, DECAY = GRAPH
X, Y = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((8, 4), (8, 3)))
BOUND = 0.1  # of an element of the gradient


def regularizer(tf):
    """The tutorials' function."""

    def max_norm_regularizer(threshold):
        def regularized(weights):
            clip = tf.clip_by_norm(weights, threshold, axes=1)
            tf.add_to_collection("max_norm", tf.assign(weights, clip))

        return regularized

    return max_norm_regularizer


def in_tensorflow(tf, folder):
    """Five steps; the state after the third is saved, restored, and taken on by two once more."""
    with tf.Graph().as_default(), tf.Session() as session:
        w, step = tf.Variable(WEIGHTS), tf.Variable(0, trainable=False)
        loss = tf.reduce_mean((X @ w - Y) ** 2)
        rate = evaluated(DECAY, tf=tf, step=step)
        optimizer = tf.train.GradientDescentOptimizer(rate)
        gradients = evaluated(COMPUTE, optimizer=optimizer, loss=loss)
        small = [(tf.clip_by_value(g, -BOUND, BOUND), v) for g, v in gradients]
        train = evaluated(APPLY, optimizer=optimizer, clipped=small)
        evaluated(REGULARIZER, max_norm_regularizer=regularizer(tf))(w)
        names = {"tf": tf, "session": session, "path": str(folder / "tensorflow")}
        names["saver"] = evaluated(SAVER, **names)
        save, restore = TABLE[SAVER][1]
        session.run(tf.global_variables_initializer())
        seen = []

        def advance():
            before = session.run([gradients[0][0], rate])
            session.run(train)
            session.run(tf.get_collection("max_norm"))
            session.run(tf.assign_add(step, 1))
            seen.append([*before, session.run(w)])

        for i in range(5):
            advance()
            if i == 2:
                evaluated(save, **names)
        evaluated(restore, **names)
        for _ in range(2):
            advance()
        return seen


def here(folder):
    import orbax.checkpoint

    one = {row: TABLE[row][0] for row in GRAPH}
    schedule = evaluated(one[DECAY][0])
    projection = evaluated(one[REGULARIZER][0])
    tx = optax.chain(jaxclip.clip(BOUND), optax.sgd(schedule), projection)
    names = {"tx": tx, "params": jnp.asarray(WEIGHTS), "orbax": orbax, "path": folder / "here"}
    names |= {"loss": lambda w: jnp.mean((X @ w - Y) ** 2), "opt_state": tx.init(WEIGHTS)}
    names |= NUMBERS | {"jaxclip": jaxclip, "jax": jax, "optax": optax}
    make, save, restore = one[SAVER]
    update, apply = one[APPLY]
    names["saver"] = eval(make, names)
    seen = []

    def advance(i):
        names["grads"] = eval(one[COMPUTE][0], names)
        exec(update, names)
        names["params"] = eval(apply, names)
        seen.append([names["grads"], schedule(i), names["params"]])

    for i in range(5):
        advance(i)
        if i == 2:
            eval(save, names)
            names["saver"].wait_until_finished()
    names["params"], names["opt_state"] = eval(restore, names)
    for i in (3, 4):
        advance(i)
    return seen


@pytest.mark.slow
def test_a_program_of_tensorflow_1(tmp_path):
    tf = tensorflow()
    pytest.importorskip("orbax.checkpoint", reason="pip install -e .[parity]")
    theirs = in_tensorflow(tf, tmp_path)
    with modes.relaxed():
        ours = here(tmp_path)
    assert_near(ours, theirs)
    assert_near([row[2] for row in ours[5:]], [row[2] for row in ours[3:5]])  # as before
    norms = np.linalg.norm(theirs[0][2], axis=1)
    assert norms.max() == pytest.approx(NUMBERS["c"], rel=1e-6)  # the bound is felt
