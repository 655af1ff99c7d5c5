"""`clip_by_spectral_norm` and `hyperball` on eight devices: the result of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import collectives, meshes, registry

SPECS = {"a": P("x"), "b": P(None, "x"), "bias": P()}
SHAPES = {"a": (8, 4), "b": (3, 8), "bias": (4,)}
U, W = (registry.build(SHAPES, seed=seed, scale=2) for seed in (0, 1))
RULES = {
    "clip": lambda: jaxclip.clip_by_spectral_norm(1.5),
    "soft": lambda: jaxclip.clip_by_spectral_norm(1.5, how="soft", method="iterative"),
    "hyperball": lambda: jaxclip.hyperball(optax.identity(), 0.1),
}


def updated(name, u, w, **options):
    tx = RULES[name](**options)
    return tx.update(u, tx.init(w), w)


@functools.cache
def alone(name):
    return jax.jit(functools.partial(updated, name))(U, W)


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def mesh_of(kind):
    return jax.make_mesh((8,), ("x",), (kind,))


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [(AUTO, "soft"), (EXPLICIT, "clip"), (AUTO, "hyperball"), (EXPLICIT, "hyperball")],
    ids=str,
)
def test_jit(kind, name):
    """Sharded rows and columns; every leaf keeps its sharding."""
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        put = [{k: jax.device_put(x, NamedSharding(mesh, SPECS[k])) for k, x in tree.items()}
               for tree in (U, W)]  # fmt: skip
        got = jax.jit(functools.partial(updated, name))(*put)
        for k, x in got[0].items():
            assert x.sharding.is_equivalent_to(put[0][k].sharding, x.ndim)
        close(jax.device_get(got), alone(name))


@pytest.mark.slow
def test_hyperball_in_shard_map():
    """Types say what is summed over which devices: once for all norms."""
    run = jax.shard_map(
        functools.partial(updated, "hyperball"), mesh=mesh_of(AxisType.Auto),
        in_specs=(SPECS, SPECS), out_specs=(SPECS, P()),
    )  # fmt: skip
    close(jax.jit(run)(U, W), alone("hyperball"))
    state = RULES["hyperball"]().init(W)

    def update(u, w):
        return RULES["hyperball"]().update(u, state, w)

    counted = jax.shard_map(
        update, mesh=mesh_of(AxisType.Auto), in_specs=(SPECS, SPECS), out_specs=(SPECS, P())
    )
    assert collectives.count(counted, U, W) == {"all-reduce": 1}


@pytest.mark.slow
def test_whole_matrices_in_shard_map():
    """Replicated matrices, with and without types; a sharded one is an error."""
    for check, name in ((True, "soft"), (False, "clip")):
        run = jax.shard_map(
            functools.partial(updated, name), mesh=mesh_of(AxisType.Auto),
            in_specs=(P(), P()), out_specs=P(), check_vma=check,
        )  # fmt: skip
        close(jax.jit(run)(U, W), alone(name))
    run = jax.shard_map(
        functools.partial(updated, "clip"), mesh=mesh_of(AxisType.Auto),
        in_specs=(SPECS, SPECS), out_specs=(SPECS, P()),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"\['a'\].*whole on every device"):
        jax.jit(run)(U, W)


@pytest.mark.slow
def test_hyperball_by_named_axes():
    """`pmap`, `vmap` and `shard_map` without types are told by `axis_name`."""

    class Ball:
        """A rule as `meshes` takes it."""

        params = True

        @staticmethod
        def make(c, **keywords):
            return jaxclip.hyperball(optax.identity(), c, **keywords)

    for context in meshes.SHARDED[1:]:
        for u, w, got in context(Ball, 0.1, {"a": U["a"]}, {"a": W["a"]}):
            tx = Ball.make(0.1)
            close(jax.tree.leaves(got), jax.tree.leaves(tx.update(u, tx.init(w), w)[0]))


@pytest.mark.slow
def test_stacks_by_layer():
    """A stack whose layers lie on different devices, told by `axis_name=()`."""
    u, w = (registry.build((8, 3, 4), seed=seed) for seed in (0, 1))
    tx = jaxclip.hyperball(optax.identity(), 0.1, stacked=0, axis_name=())

    def update(u, w):
        return tx.update(u, tx.init(w), w)[0]

    run = jax.shard_map(update, mesh=mesh_of(AxisType.Auto), in_specs=P("x"), out_specs=P("x"))
    close(jax.jit(run)(u, w), jax.jit(update)(u, w))
    found = jnp.linalg.norm(w + jax.jit(run)(u, w), axis=(1, 2))
    np.testing.assert_allclose(found, jnp.linalg.norm(w, axis=(1, 2)), rtol=1e-6)
