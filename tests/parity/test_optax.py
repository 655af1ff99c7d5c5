"""Optax: the same result wherever Optax's is right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from tests.parity import data
from tests.support.contexts import case

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


def _of_both(run, rules=RULES):
    """`run(library, name, arguments, *trees)` of rules of both libraries, in one program."""

    @jax.jit
    def each(*trees):
        return [[run(library, *rule, *trees) for rule in rules] for library in (jaxclip, optax)]

    return lambda *trees: zip(rules, *each(*trees), strict=True)


@pytest.mark.slow
@data.by_dtype
def test_same_numbers(dtype):
    """Inside of the limits, and outside."""

    def update(library, name, arguments, u, p):
        tx = getattr(library, name)(*arguments)
        return tx.update(u, tx.init(p), p)[0]

    run = _of_both(update)
    with data.context(dtype):
        p = _leaves(dtype, 9)
        for scale in (0.01, 2.0):
            u = _leaves(dtype, 0, scale)
            for rule, ours, theirs in run(u, p):
                with case(f"{rule}, {scale}"):
                    assert {x.dtype for x in ours.values()} == {jnp.dtype(dtype)}
                    data.assert_near(jax.tree.leaves(ours), jax.tree.leaves(theirs), dtype)


@pytest.mark.slow
def test_same_training():
    """Runs in which one name was replaced by the other."""
    target = _leaves("float32", 1)

    def loss(p):
        return sum(
            jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (p, target)), strict=True)
        )

    def train(library, name, arguments, p):
        tx = optax.chain(getattr(library, name)(*arguments), optax.adam(0.05))

        def step(carry, _):
            p, s = carry
            value, grads = jax.value_and_grad(loss)(p)
            updates, s = tx.update(grads, s, p)
            return (optax.apply_updates(p, updates), s), value

        return jax.lax.scan(step, (p, tx.init(p)), length=50)[1]

    run = _of_both(train, RULES[:4])
    for rule, ours, theirs in run(_leaves("float32", 0)):
        with case(str(rule)):
            assert ours[-1] < 0.5 * ours[0]
            np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
def test_global_norm_of_optax():
    orders = ({}, {"ord": 1}, {"ord": 2}, {"ord": float("inf")})
    both = (jaxclip.norms.global_norm, optax.tree.norm)
    run = jax.jit(lambda u: [[norm(u, **ord) for ord in orders] for norm in both])
    ours, theirs = run(_leaves("float32", 0))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.slow
def test_keyword_arguments_of_optax():
    u = jnp.array([3.0, 4.0])
    for name, keywords in [
        ("clip", {"max_delta": 1.0}),
        ("clip_by_block_rms", {"threshold": 1.0}),
        ("clip_by_global_norm", {"max_norm": 1.0}),
        ("adaptive_grad_clip", {"clipping": 0.5, "eps": 1e-3, "axis": None}),
    ]:
        both = [getattr(library, name)(**keywords) for library in (jaxclip, optax)]
        results = [data.updated(tx, u, u)[0] for tx in both]
        np.testing.assert_allclose(*results, rtol=1e-6)
