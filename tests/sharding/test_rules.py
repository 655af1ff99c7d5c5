"""Every rule on a mesh of two axes: the result of one device, the state the same on all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import learned, registry
from tests.support.weights import PROJECTIONS

pytestmark = pytest.mark.relaxed  # Adam of Optax promotes

AXES = ("data", "model")
SHAPE = (8, 4)
SPECS = {"a": P("data"), "b": P(None, "model"), "c": P("data", "model"), "d": P()}
STEPS = 4
KERNELS = {"mask": True}


def _sides(projection):
    return lambda **k: projection.make(projection.c / 4, **KERNELS, **k)


# Rules by the arrays of one norm, which determine all that a device needs to know.
WHOLE = {
    **{r.name: functools.partial(r.make, r.c) for r in registry.SHARDABLE},
    **{f"{name}_{scope}": functools.partial(make, scope=scope)
       for name, make in learned.RULES.items() for scope in ("global", "leaf")},
    "skip_nonfinite": lambda **k: jaxclip.skip_nonfinite(
        optax.chain(jaxclip.clip_by_global_norm(1.0, **k), optax.trace(0.9)), **k),
    "skip_spikes": lambda **k: jaxclip.skip_spikes(
        optax.trace(0.9), window=3, min_history=2, sigma=1.0, **k),
    "monitor": jaxclip.monitor,
    "monitor_params": functools.partial(jaxclip.monitor, of="params", ord=1),
    "scale_by_stable_adam": functools.partial(jaxclip.scale_by_stable_adam, b2=0.9),
}  # fmt: skip
ELEMENTS = {
    **{r.name: functools.partial(r.make, r.c)
       for r in registry.RULES if r.kind in ("value", "element")},
    "project_box": functools.partial(jaxclip.project_box, -0.5, 0.25, record=True, **KERNELS),
    "project_non_negative": functools.partial(
        jaxclip.project_non_negative, record=True, **KERNELS),
}  # fmt: skip
UNITS = {
    **{r.name: functools.partial(r.make, r.c) for r in registry.RULES if r.kind == "unit"},
    **{f"{name}_unit": functools.partial(make, scope="unit")
       for name, make in learned.RULES.items()},
    **{p.name: _sides(p) for p in PROJECTIONS if p.units},
}  # fmt: skip
SPECTRAL = {p.name: _sides(p) for p in PROJECTIONS if p.function == "project_spectral_norm"}
ALL = WHOLE | ELEMENTS | UNITS | SPECTRAL
ROWS = ("clip_by_block_rms_axis", "unit_rms")  # whose units are rows; those of others, columns
# In every plain run; the others in the slow one.
PLAIN = ("clip_by_global_norm",)


def _rules(names):
    return [pytest.param(name, marks=[] if name in PLAIN else [pytest.mark.slow]) for name in names]


def _trees(keys=tuple(SPECS)):
    p = {key: registry.build(SHAPE, seed=10 + i) for i, key in enumerate(keys)}
    u = {key: registry.build(SHAPE, seed=i) for i, key in enumerate(keys)}
    return p, u


def _steps(tx, u, p):
    """Some updates of different sizes, one of them broken: the outputs, and the last state."""
    factors = jnp.array([1.0, 0.25, jnp.nan, 4.0], jnp.float32)

    def body(state, factor):
        out, state = tx.update(jax.tree.map(lambda x: x * factor, u), state, p)
        return state, out

    state, outs = jax.lax.scan(body, tx.init(p), factors)
    return outs, state


def _close(got, want):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=where)


def _same_on_all_devices(state):
    """Every device's copy of a replicated array, bit for bit."""
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if x.sharding.is_fully_replicated:
            copies = {np.asarray(shard.data).tobytes() for shard in x.addressable_shards}
            assert len(copies) == 1, jax.tree_util.keystr(path)


def _mesh(axes, kind=AxisType.Auto):
    return jax.make_mesh((4, 2) if axes == 2 else (8,), AXES[:axes], (kind,) * axes)


def _specs(axes):
    if axes == 2:
        return SPECS
    return {"a": P("data"), "d": P()}


def _meshes():
    """Two axes for all; one for those that `test_rules` and others do not take there already."""
    elsewhere = {r.name for r in registry.RULES} | {p.name for p in PROJECTIONS}
    for name in ALL:
        for axes in (2,) if name in elsewhere else (1, 2):
            marks = [] if name in (*PLAIN, "clip_by_norm_axis") else [pytest.mark.slow]
            yield pytest.param(axes, name, marks=marks)


@pytest.mark.parametrize(("axes", "name"), list(_meshes()))
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_jit(axes, kind, name):
    """Kernels sharded along the reduced axis, along the other, along both and not at all."""
    specs, mesh = _specs(axes), _mesh(axes, kind)
    p, u = _trees(specs)
    run = jax.jit(functools.partial(_steps, ALL[name]()))
    one = run(u, p)
    with jax.set_mesh(mesh):
        put = [
            {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}
            for tree in (u, p)
        ]
        outs, state = jax.block_until_ready(run(*put))
    _close(jax.device_get((outs, state)), one)
    _same_on_all_devices((outs, state))


@pytest.mark.parametrize("name", _rules(WHOLE | ELEMENTS))
def test_shard_map_checked(name):
    """Nothing to say. That the state leaves as replicated is proof, and its copies agree too."""
    p, u = _trees()
    run = functools.partial(_steps, ALL[name]())
    one = jax.jit(run)(u, p)
    state = jax.tree.map(lambda x: P(), one[1])
    for moments in ("guarded_state", "memory"):  # of each element: sharded as the leaves are
        kept = getattr(one[1], moments, None)
        spec = jax.tree.map(lambda x: P(), kept)
        state = state if kept is None else state._replace(**{moments: _as_leaves(kept, spec)})
    specs = ({k: P(None, *s) for k, s in SPECS.items()}, state)
    mapped = jax.shard_map(run, mesh=_mesh(2), in_specs=(SPECS, SPECS), out_specs=specs)
    many = jax.jit(mapped)(u, p)
    _close(jax.device_get(many), one)
    _same_on_all_devices(many)


def _as_leaves(kept, specs):
    """The specs of the leaves for every subtree that is like the tree of them."""

    def is_tree(x):
        return isinstance(x, dict) and x.keys() == SPECS.keys() and x["a"].shape == SHAPE

    return jax.tree.map(
        lambda x, s: SPECS if is_tree(x) else s, kept, _pruned(kept, specs, is_tree),
        is_leaf=is_tree,
    )  # fmt: skip


def _pruned(kept, specs, is_tree):
    leaves, treedef = jax.tree.flatten(kept, is_leaf=is_tree)
    return jax.tree.unflatten(treedef, [P()] * len(leaves))


@pytest.mark.parametrize("name", _rules(WHOLE | ELEMENTS))
def test_axis_name(name):
    """shard_map without checking, over both axes; pmap and vmap over one: all states agree."""
    p, u = _trees("c")
    named = functools.partial(_steps, ALL[name](axis_name=AXES))
    one = jax.device_get(jax.jit(functools.partial(_steps, ALL[name]()))(u, p))

    def side_by_side(u, p):
        return jax.tree.map(lambda x: x[None, None], named(u, p))

    mapped = jax.shard_map(
        side_by_side, mesh=_mesh(2), in_specs=P("data", "model"), out_specs=P("data", "model"),
        check_vma=False,
    )  # fmt: skip
    outs, state = jax.device_get(jax.jit(mapped)(u, p))
    _every_device(outs, one[0], (4, 2))
    _every_device(state, one[1], (4, 2))
    over = functools.partial(_steps, ALL[name](axis_name="x"))
    split = [{"c": tree["c"].reshape(4, 2, 4)} for tree in (u, p)]
    for run in (jax.pmap(over, "x"), jax.jit(jax.vmap(over, axis_name="x"))):
        outs, state = jax.device_get(run(*split))
        _every_device(outs, one[0], (4,))
        _every_device(state, one[1], (4,))


def _every_device(got, want, grid):
    """Whole arrays, put together from the devices' parts; replicated arrays, of each device."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        where, n = jax.tree_util.keystr(path), len(grid)
        if b.shape[-2:] != SHAPE:
            np.testing.assert_array_equal(a, np.broadcast_to(a[(0,) * n], a.shape), where)
            np.testing.assert_allclose(a[(0,) * n], b, rtol=2e-5, atol=2e-6, err_msg=where)
        elif n == 1:
            whole = np.moveaxis(a, 0, -3).reshape(b.shape)
            np.testing.assert_allclose(whole, b, rtol=2e-5, atol=2e-6, err_msg=where)
        else:
            whole = np.moveaxis(a, (0, 1), (-4, -2)).reshape(b.shape)
            np.testing.assert_allclose(whole, b, rtol=2e-5, atol=2e-6, err_msg=where)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNITS)
def test_units_in_shard_map(name):
    """A unit spread over one axis of two, the same whether JAX checks or not."""
    spread = ("model", P(None, "model")) if name in ROWS else ("data", P("data"))
    axis_name, spec = spread[0], {"a": spread[1]}
    p, u = _trees("a")
    keywords = {} if "axis" in name or "unit" in name else {"axis": 0}
    one = jax.jit(functools.partial(_steps, ALL[name](**keywords)))(u, p)[0]
    for check in (True, False):
        tx = ALL[name](axis_name=axis_name, **keywords)
        mapped = jax.shard_map(
            lambda u, p, tx=tx: _steps(tx, u, p)[0], mesh=_mesh(2), in_specs=(spec, spec),
            out_specs={"a": P(None, *spec["a"])}, check_vma=check,
        )  # fmt: skip
        _close(jax.device_get(jax.jit(mapped)(u, p)), one)
