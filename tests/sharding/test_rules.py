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
from tests.support.contexts import case
from tests.support.weights import PROJECTIONS

pytestmark = pytest.mark.relaxed  # Adam of Optax promotes

AXES = ("data", "model")
SHAPE = (8, 4)
SPECS = {"a": P("data"), "b": P(None, "model"), "c": P("data", "model"), "d": P()}
STEPS = 4
KERNELS = {"mask": True}


def _sides(projection):
    return lambda **k: projection.make(projection.c / 4, **KERNELS, **k)


# Learned rules: one of each scope, of both kinds of memory. `test_learned` and `test_states` take
# all of them to meshes.
LEARNED = {
    f"{name}_{scope}": functools.partial(learned.RULES[name], scope=scope)
    for name, scope in (("autoclip", "global"), ("adagc", "leaf"), ("zclip", "unit"))
}
# Rules by the arrays of one norm, which determine all that a device needs to know.
WHOLE = {
    **{r.name: functools.partial(r.make, r.c) for r in registry.SHARDABLE},
    **{name: rule for name, rule in LEARNED.items() if name != "zclip_unit"},
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
    "zclip_unit": LEARNED["zclip_unit"],
    "adagc_unit": functools.partial(learned.RULES["adagc"], scope="unit"),
    **{p.name: _sides(p) for p in PROJECTIONS if p.units},
}  # fmt: skip
SPECTRAL = {p.name: _sides(p) for p in PROJECTIONS if p.function == "project_spectral_norm"}
ALL = WHOLE | ELEMENTS | UNITS | SPECTRAL
ROWS = ("clip_by_block_rms_axis", "unit_rms")  # whose units are rows; those of others, columns
# In every plain run, one in a program; the others in the slow one, several in a program.
PLAIN = ("clip_by_global_norm",)
PLAIN_UNITS = ("clip_by_norm_axis",)
# Of each mechanism one or two, in every way to name axes, and under `jit` with one kind of axes.
# The others: of whole norms and elements in checked `shard_map`, of units and matrices under `jit`.
FEW = (
    *("clip_by_norm", "leaf_inf", "global_3", "adagc_leaf", "skip_spikes", "scale_by_stable_adam"),
    *("element", "adaptive_grad_clip", "zclip_unit", "max_norm"),
    *("spectral_clip_iterative", "spectral_scale_eigh"),
)


def _together(*tables, plain=PLAIN):
    """Names of rules that share a program: each of `plain` alone, the others by table."""
    shared = {label: tuple(n for n in table if n not in plain) for label, table in tables}
    return [
        *(pytest.param((name,), id=name) for name in plain),
        *(pytest.param(ns, id=label, marks=pytest.mark.slow) for label, ns in shared.items()),
    ]


def _few(*tables, which=FEW):
    return {name: rule for table in tables for name, rule in table.items() if name in which}


def _others(table):
    return {name: rule for name, rule in table.items() if name not in FEW}


TABLES = (("whole", WHOLE), ("elements", ELEMENTS))
ON_AUTO = [("few", _few(ALL, which=FEW[::2]))]
ON_EXPLICIT = [
    ("few", _few(ALL, which=FEW[1::2])),
    ("units", _others(UNITS)),
    ("spectral", _others(SPECTRAL)),
]


def _trees(keys=tuple(SPECS)):
    p = {key: registry.build(SHAPE, seed=10 + i) for i, key in enumerate(keys)}
    u = {key: registry.build(SHAPE, seed=i) for i, key in enumerate(keys)}
    return p, u


def _steps(rules, u, p):
    """Some updates of different sizes, one of them broken.

    Returns:
        The outputs and the last state of each rule, by its name.
    """
    factors = jnp.array([1.0, 0.25, jnp.nan, 4.0], jnp.float32)
    found = {}
    for name, tx in rules.items():

        def body(state, factor, tx=tx):
            out, state = tx.update(jax.tree.map(lambda x: x * factor, u), state, p)
            return state, out

        with case(name):
            state, outs = jax.lax.scan(body, tx.init(p), factors)
            found[name] = outs, state
    return found


def _all(names, **keywords):
    """`_steps` of these rules."""
    return functools.partial(_steps, {name: ALL[name](**keywords) for name in names})


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


def _mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), AXES, (kind,) * 2)


def _specs(kind, names):
    """All of them for the plain rules; for others, two with each kind of axes."""
    few = ("c", "d") if kind is AxisType.Auto else ("a", "b")
    return {key: SPECS[key] for key in (SPECS if len(names) == 1 else few)}


def _meshes():
    for kind, tables in ((AxisType.Auto, ON_AUTO), (AxisType.Explicit, ON_EXPLICIT)):
        for (names,), marks, label in _together(*tables, plain=(*PLAIN, *PLAIN_UNITS)):
            yield pytest.param(kind, names, marks=marks, id=f"{kind}-{label}")


@pytest.mark.parametrize(("kind", "names"), list(_meshes()))
def test_jit(kind, names):
    """Kernels sharded along the reduced axis, along the other, along both and not at all."""
    specs, mesh = _specs(kind, names), _mesh(kind)
    p, u = _trees(specs)
    run = jax.jit(_all(names))
    one = run(u, p)
    with jax.set_mesh(mesh):
        put = [
            {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}
            for tree in (u, p)
        ]
        many = jax.block_until_ready(run(*put))
    _close(jax.device_get(many), one)
    _same_on_all_devices(many)


@pytest.mark.parametrize("names", _together(*TABLES))
def test_shard_map_checked(names):
    """Nothing to say. That the state leaves as replicated is proof, and its copies agree too."""
    p, u = _trees()
    run = _all(names)
    one = jax.jit(run)(u, p)
    specs = {}
    for name, (_, last) in one.items():
        state = jax.tree.map(lambda x: P(), last)
        for moments in ("guarded_state", "memory"):  # of each element: sharded as the leaves are
            kept = getattr(last, moments, None)
            spec = jax.tree.map(lambda x: P(), kept)
            state = state if kept is None else state._replace(**{moments: _as_leaves(kept, spec)})
        specs[name] = {k: P(None, *s) for k, s in SPECS.items()}, state
    mapped = jax.shard_map(run, mesh=_mesh(), in_specs=(SPECS, SPECS), out_specs=specs)
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


@pytest.mark.slow
@pytest.mark.parametrize("names", _together(("few", _few(WHOLE, ELEMENTS))))
def test_axis_name(names):
    """shard_map without checking, over both axes; vmap and pmap over one: all states agree."""
    p, u = _trees("c")
    named = _all(names, axis_name=AXES)
    one = jax.device_get(jax.jit(_all(names))(u, p))

    def side_by_side(u, p):
        return jax.tree.map(lambda x: x[None, None], named(u, p))

    mapped = jax.shard_map(
        side_by_side, mesh=_mesh(), in_specs=P("data", "model"), out_specs=P("data", "model"),
        check_vma=False,
    )  # fmt: skip
    _every_device(jax.device_get(jax.jit(mapped)(u, p)), one, (4, 2))
    split = [{"c": tree["c"].reshape(4, 2, 4)} for tree in (u, p)]
    over = _all(names, axis_name="x")
    _every_device(jax.device_get(jax.jit(jax.vmap(over, axis_name="x"))(*split)), one, (4,))
    _every_device(jax.device_get(jax.pmap(over, "x")(*split)), one, (4,))


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
@pytest.mark.parametrize("check", [True, False])
def test_units_in_shard_map(check):
    """Units spread over one axis of two, the same whether JAX checks or not."""
    p, u = _trees("a")
    for spread, spec in (("model", P(None, "model")), ("data", P("data"))):
        which = UNITS if check else _few(UNITS)
        names = [name for name in which if (name in ROWS) == (spread == "model")]
        if not names:
            continue
        along = {n: {} if "axis" in n or "unit" in n else {"axis": 0} for n in names}
        one, many = (
            functools.partial(_steps, {n: ALL[n](**along[n], **which) for n in names})
            for which in ({}, {"axis_name": spread})
        )
        mapped = jax.shard_map(
            lambda u, p, many=many: {name: outs for name, (outs, _) in many(u, p).items()},
            mesh=_mesh(), in_specs=({"a": spec},) * 2, out_specs=P(None, *spec),
            check_vma=check,
        )  # fmt: skip
        want = {name: outs for name, (outs, _) in jax.jit(one)(u, p).items()}
        _close(jax.device_get(jax.jit(mapped)(u, p)), want)
