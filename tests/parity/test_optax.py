"""Optax: the same result wherever Optax's is right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.parity import data

SHAPES = [(4, 3), (5,), (2, 3, 4, 2)]  # ranks where Optax's guess of a unit is all but the last
RULES = [
    ("clip", (0.75,)),
    ("clip_by_block_rms", (0.9,)),
    ("clip_by_global_norm", (1.5,)),
    ("adaptive_grad_clip", (0.3,)),
    ("adaptive_grad_clip", (0.3, 0.5)),
    ("adaptive_grad_clip", (0.3, 1e-3, 0)),
]


def _leaves(dtype, seed, scale=2.0):
    return dict(zip("abc", data.ours(data.arrays(dtype, SHAPES, seed, scale), dtype), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.01, 2.0])
@pytest.mark.parametrize(("name", "arguments"), RULES, ids=str)
@data.by_dtype
@data.by_seed
def test_same_numbers(name, arguments, dtype, seed, scale):
    with data.context(dtype):
        u, p = _leaves(dtype, seed, scale), _leaves(dtype, seed + 9)
        results = []
        for library in (jaxclip, optax):
            tx = getattr(library, name)(*arguments)
            results.append(jax.jit(lambda u, p, tx=tx: tx.update(u, tx.init(p), p)[0])(u, p))
        ours, theirs = results
        assert jax.tree.map(lambda x: x.dtype, ours) == jax.tree.map(lambda x: x.dtype, u)
        data.assert_near(jax.tree.leaves(ours), jax.tree.leaves(theirs), dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments"), RULES[:4], ids=str)
def test_same_training(name, arguments):
    """A run in which one name was replaced by the other."""

    def train(library):
        tx = optax.chain(getattr(library, name)(*arguments), optax.adam(0.05))
        p = _leaves("float32", 0)
        target = _leaves("float32", 1)

        def loss(p):
            return sum(
                jnp.sum((a - b) ** 2)
                for a, b in zip(*map(jax.tree.leaves, (p, target)), strict=True)
            )

        def step(carry, _):
            p, s = carry
            value, grads = jax.value_and_grad(loss)(p)
            updates, s = tx.update(grads, s, p)
            return (optax.apply_updates(p, updates), s), value

        return jax.lax.scan(step, (p, tx.init(p)), length=50)[1]

    ours, theirs = np.asarray(train(jaxclip)), np.asarray(train(optax))
    assert ours[-1] < 0.5 * ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
def test_global_norm_of_optax():
    u = _leaves("float32", 0)
    np.testing.assert_allclose(jaxclip.norms.global_norm(u), optax.tree.norm(u), rtol=1e-6)
    for ord in (1, 2, float("inf")):
        theirs = optax.tree.norm(u, ord=ord)
        np.testing.assert_allclose(jaxclip.norms.global_norm(u, ord), theirs, rtol=1e-6)


@pytest.mark.slow
def test_keyword_arguments_of_optax():
    u = jnp.array([3.0, 4.0])
    for name, keywords in [
        ("clip", {"max_delta": 1.0}),
        ("clip_by_block_rms", {"threshold": 1.0}),
        ("clip_by_global_norm", {"max_norm": 1.0}),
        ("adaptive_grad_clip", {"clipping": 0.5, "eps": 1e-3, "axis": None}),
    ]:
        results = []
        for library in (jaxclip, optax):
            tx = getattr(library, name)(**keywords)
            results.append(tx.update(u, tx.init(u), u)[0])
        np.testing.assert_allclose(*results, rtol=1e-6)
