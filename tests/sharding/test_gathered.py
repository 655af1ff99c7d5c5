"""Leaves from `all_gather` in checked `shard_map`: the wrong norm, and the cures of the docs.

Such a leaf is whole on every device, but its type says that it varies over them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from jaxclip import functional, norms

N, NORM, WRONG = 8, 299.07, 845.9
RANDOM = np.random.default_rng(0).normal(size=(16, 8, 3))
X = np.float32(RANDOM * NORM / np.linalg.norm(RANDOM))
GLOBAL = jaxclip.clip_by_global_norm


def gathered(part):
    return jax.lax.all_gather(part, "data", tiled=True)


def invariant(part):
    return jax.lax.all_gather(part, "data", tiled=True, to="invarying")


def largest(part):
    return jax.lax.pmax(gathered(part), "data")


def in_shard_map(function, check=True):
    mesh = jax.make_mesh((N,), ("data",), axis_types=(AxisType.Auto,))
    run = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=check
    )
    return jax.jit(run(function))(X)


def updated(tx, u):
    tree = {"w": u}
    updates, state = tx.update(tree, tx.init(tree), tree)
    return updates["w"], state


GATHERS = {"pmax": largest, "invarying": invariant}
RULES = {
    "clip_by_global_norm": lambda **k: GLOBAL(1.0, **k),
    "clip_by_norm": lambda **k: jaxclip.clip_by_norm(1.0, **k),
    "monitor": jaxclip.monitor,
    "skip_nonfinite": lambda **k: jaxclip.skip_nonfinite(optax.identity(), **k),
}
BY_UNIT = {
    "adaptive_grad_clip": lambda **k: jaxclip.adaptive_grad_clip(0.1, **k),
    "project_max_norm": lambda **k: jaxclip.project_max_norm(1.0, **k),
}


def plain(first, rest):
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in rest if name != first)]


def parts(table):
    """One rule in every run; the others in one program."""
    first, *others = table
    slow = pytest.param(tuple(others), id="others", marks=pytest.mark.slow)
    return pytest.mark.parametrize("names", [pytest.param((first,), id=first), slow])


def norm_of(name, state):
    return jaxclip.metrics(state)[f"{name}/norm"]


@parts(RULES)
def test_gathered_leaf_is_counted_once_per_device(names):
    """As its type says: the square root of the number of devices too large."""
    got = in_shard_map(lambda x: [norm_of(k, updated(RULES[k](), gathered(x))[1]) for k in names])
    np.testing.assert_allclose(got, np.full(len(names), WRONG), rtol=1e-4)
    np.testing.assert_allclose(got, np.full(len(names), np.sqrt(N) * NORM), rtol=1e-6)


@pytest.mark.parametrize("name", plain("adaptive_grad_clip", BY_UNIT))
def test_rules_by_unit_ask(name):
    with pytest.raises(ValueError, match=r"axis_name=None: the leaf \['w'\] is sharded"):
        in_shard_map(lambda x: updated(BY_UNIT[name](), gathered(x))[0])


def test_gathered_update_is_not_returned_as_replicated():
    with pytest.raises(ValueError, match="replicat"):
        in_shard_map(lambda x: updated(GLOBAL(1.0), gathered(x))[0])


@pytest.mark.slow
@parts(RULES | BY_UNIT)
@pytest.mark.parametrize("gather", GATHERS)
def test_types_tell(gather, names):
    """Where the gather has an invariant type nothing must be said; the result is one device's."""
    if gather == "invarying" and jax.__version_info__ < (0, 10):
        pytest.skip("jax.lax.all_gather has to='invarying' from JAX 0.10 on")
    rules = {name: (RULES | BY_UNIT)[name]() for name in names}

    def run(x):
        return {name: updated(tx, x) for name, tx in rules.items()}

    got, want = in_shard_map(lambda x: run(GATHERS[gather](x))), jax.jit(run)(X)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for name in rules.keys() & RULES.keys():
        np.testing.assert_allclose(norm_of(name, got[name][1]), NORM, rtol=1e-6)


@parts(RULES | BY_UNIT)
def test_no_axis_name(names):
    """`axis_name=()` is right too; `pmax` makes update and state replicated."""
    rules = [(RULES | BY_UNIT)[name](axis_name=()) for name in names]

    def run(x):
        return [updated(tx, x) for tx in rules]

    got = in_shard_map(lambda x: jax.lax.pmax(run(gathered(x)), "data"))
    want = jax.jit(run)(X)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_clip_the_parts_then_gather():
    def clip(x):
        part, state = updated(GLOBAL(1.0), x)
        return largest(part), norm_of("clip_by_global_norm", state)

    whole, norm = in_shard_map(clip)
    np.testing.assert_allclose(norm, NORM, rtol=1e-6)
    np.testing.assert_allclose(whole, X / np.float64(NORM), rtol=1e-5, atol=1e-9)


def test_gathered_beside_sharded_leaves():
    """Each by its own type."""
    got = in_shard_map(lambda x: norms.global_norm({"whole": largest(x), "part": x}))
    np.testing.assert_allclose(got, np.sqrt(2) * NORM, rtol=1e-6)


@pytest.mark.parametrize("gather", plain(gathered, [largest]))
def test_pure_functions(gather):
    axis_name = () if gather is gathered else None

    def clip(x):
        tree, norm = functional.clip_by_global_norm(gather(x), 1.0, axis_name=axis_name)
        norms_of = norms.leaf_norms(gather(x), axis_name=axis_name)
        return jax.lax.pmax(jnp.stack([norm, norms_of, jnp.linalg.norm(tree)]), "data")

    np.testing.assert_allclose(in_shard_map(clip), [NORM, NORM, 1.0], rtol=1e-6)


def test_unchecked_needs_nothing():
    got = in_shard_map(lambda x: norms.global_norm(gathered(x)), check=False)
    np.testing.assert_allclose(got, NORM, rtol=1e-6)
