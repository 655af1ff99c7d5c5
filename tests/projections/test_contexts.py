"""Projections wherever an optimizer is used: in JAX, in Optax, in models, over several devices."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import contexts, meshes, registry, weights
from tests.support import oracles as o
from tests.support.weights import BY_NAME, PROJECTIONS

CONTEXT_TREE = {"dense": {"bias": (3,), "kernel": (8, 3)}, "gain": ()}
MAX = BY_NAME["max_norm"]
# Of the spectral projection each way to bound and each method once; `test_spectral` has all four.
HERE = [q for q in PROJECTIONS if q.name not in ("spectral_clip_iterative", "spectral_scale_eigh")]
SLOW_CONTEXTS = (contexts.eager, contexts.grad, contexts.apply_if_finite, contexts.chain,
                 contexts.named_chain, contexts.equinox_model)  # fmt: skip
# Bounds of elements, and of whole matrices by each method, which take turns in the contexts that
# divide or repeat a step; others, which differ from these in the formula alone, under `vmap`.
SOME = ("box", "spectral_clip_eigh", "spectral_scale_iterative")
PASSED_ON = (contexts.jit, contexts.grad, contexts.apply_if_finite, contexts.chain,
             contexts.named_chain)  # fmt: skip


def _cases(which):
    """`MAX` in every context, and one of `SOME` after the other; under `vmap`, all of them."""
    some = itertools.cycle(SOME)
    for context in which:
        other = None if context in PASSED_ON else next(some)
        for q in HERE:
            if q is not MAX and context is not contexts.vmap and q.name != other:
                continue
            slow = q is not MAX or context in SLOW_CONTEXTS
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(context, q, id=f"{context.__name__}-{q.name}", marks=marks)


def check(context, projection):
    p, u = registry.build(CONTEXT_TREE, seed=1), registry.build(CONTEXT_TREE)
    seen = 0
    for updates, params, result in context(projection, projection.c, u, p):
        leaves = zip(jax.tree.leaves(params), jax.tree.leaves(result), strict=True)
        landed = [o.wide(w) + o.wide(r) for w, r in leaves]
        weights.assert_lands(
            projection, projection.c, jax.tree.leaves(params), jax.tree.leaves(updates),
            [x.astype(np.float32) for x in landed],
        )  # fmt: skip
        seen += 1
    assert seen


@pytest.mark.slow
@pytest.mark.parametrize(("context", "projection"), list(_cases(contexts.PLAIN)))
def test_context(context, projection):
    check(context, projection)


@pytest.mark.slow
@pytest.mark.relaxed
@pytest.mark.parametrize(("context", "projection"), list(_cases(contexts.MODELS)))
def test_model(context, projection):
    """An `nnx.Optimizer`, a Linen `TrainState`, an Equinox model."""

    def downhill(_, c, u, p):
        for updates, params, result in context(weights.descent(projection), c, u, p):
            yield (
                [-x for x in jax.tree.leaves(updates)],
                params,
                [-x for x in jax.tree.leaves(result)],
            )

    check(downhill, projection)


# ---- several devices


@pytest.mark.parametrize(
    ("mesh", "projection"),
    [
        pytest.param(mesh, q, marks=[] if q is MAX else pytest.mark.slow)
        for i, mesh in enumerate(meshes.MESHES)
        for q in [MAX, *[q for q in HERE if q is not MAX][i :: len(meshes.MESHES)]]
    ],
    ids=str,
)
def test_mesh(mesh, projection):
    """The kernel's rows are sharded: every unit is spread over the devices."""
    check(meshes.MESHES[mesh], projection)


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_units_whole_on_their_device(axis_type):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:4])
    specs = {"kernel": P(None, "x"), "conv": P(None, None, None, "x"), "bias": P("x")}
    shapes = {"kernel": (6, 8), "conv": (2, 2, 3, 4), "bias": (4,)}
    p, u = registry.build(shapes, scale=2), registry.build(shapes, seed=1)

    def put(tree):
        return {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}

    with jax.set_mesh(mesh):
        which = HERE if axis_type is AxisType.Explicit else [MAX]
        made = {q: q.make(q.c) for q in which}

        @jax.jit
        def run(u, p):
            found = [tx.update(u, tx.init(p), p) for tx in made.values()]
            return [(jax.tree.map(jnp.add, p, out), state) for out, state in found]

        found = jax.block_until_ready(run(put(u), put(p)))
    for projection, (landed, state) in zip(made, found, strict=True):
        with contexts.case(projection.name):
            for k, x in landed.items():
                assert x.sharding.is_equivalent_to(NamedSharding(mesh, specs[k]), x.ndim)
            weights.assert_lands(projection, projection.c, p, u, jax.device_get(landed))
            assert int(state.update_count) == 1


def _sharded(spec, run, p, u, check=True):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    mapped = jax.shard_map(
        run, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, P()), check_vma=check
    )
    return jax.device_get(jax.jit(mapped)(u, p))


SHARDINGS = [
    (P("x"), 0, "x", True), (P(None, "x"), 0, (), True), (P("x"), 0, "x", False),
    pytest.param(P(None, "x"), 1, ("x",), True, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "axis", "axis_name", "check"), SHARDINGS)
def test_shard_map(spec, axis, axis_name, check):
    """Units spread over devices, or whole on one of them: only the caller can know which."""
    p, u = registry.build((8, 4), scale=0.7), registry.build((8, 4), scale=0.7, seed=1)
    sets = [BY_NAME[name] for name in ("max_norm", "min_max_norm")]

    def run(u, p):
        found = [q.make(1.9, axis=axis, axis_name=axis_name) for q in sets]
        results = [tx.update(u, tx.init(p), p) for tx in found]
        return [r for r, _ in results], [s.fraction for _, s in results]

    outs, fractions = _sharded(spec, run, p, u, check)
    for projection, out, share in zip(sets, outs, fractions, strict=True):
        landed = (o.wide(p) + o.wide(out)).astype(np.float32)
        weights.assert_lands(projection, 1.9, p, u, landed, axis)
        sizes = o.norm(o.wide(p) + o.wide(u), 2, (axis,))
        outside = (sizes > 1.9) if projection is MAX else (sizes > 3.8) | (sizes < 1.9)
        if check:  # unchecked, each device has its own record
            np.testing.assert_allclose(share, outside.mean(), rtol=1e-6)
    assert 0 < float(np.mean(sizes > 1.9)) < 1


def test_elements_in_shard_map_without_axis_name():
    p, u = registry.build((8, 4), scale=2), registry.build((8, 4), seed=1)

    def run(u, p):
        made = [jaxclip.project_box(-1.5, 0.75, record=True), jaxclip.project_non_negative()]
        results = [tx.update(u, tx.init(p), p) for tx in made]
        return [r for r, _ in results], results[0][1].fraction

    (boxed, positive), share = _sharded(P("x"), run, p, u)
    for projection, out in ((BY_NAME["box"], boxed), (BY_NAME["non_negative"], positive)):
        landed = (o.wide(p) + o.wide(out)).astype(np.float32)
        weights.assert_lands(projection, 1.5, p, u, landed)
    moved = o.wide(p) + o.wide(u)
    np.testing.assert_allclose(share, ((moved < -1.5) | (moved > 0.75)).mean(), rtol=1e-6)


def test_shard_map_errors():
    p = {
        "kernel": registry.build((8, 4)),
        "head": registry.build((4, 4)),
        "bias": registry.build((4,)),
    }
    specs = {"kernel": P("x"), "head": P(), "bias": P()}

    def run(make, u, p):
        tx = make()
        return tx.update(u, tx.init(p), p)[0], jnp.zeros(())

    for make, message in [
        (
            lambda: jaxclip.project_max_norm(1.0),
            r"axis_name=None: the leaf \['kernel'\] is sharded",
        ),
        (lambda: jaxclip.project_max_norm(1.0, axis_name="x"), r"\['head'\] is replicated"),
        (lambda: jaxclip.project_spectral_norm(1.0), r"\['kernel'\].*whole on every device"),
        (lambda: jaxclip.project_max_norm(1.0, axis_name="y"), "axis_name='y' is not an axis"),
    ]:
        with pytest.raises(ValueError, match=message):
            _sharded(specs, functools.partial(run, make), p, p)
    # Told apart by mask, they work together.
    both = optax.chain(
        jaxclip.project_max_norm(
            1.0, axis_name="x", mask={"kernel": True, "head": False, "bias": False}
        ),
        jaxclip.project_max_norm(1.0, mask={"kernel": False, "head": True, "bias": False}),
    )
    out, _ = _sharded(specs, functools.partial(run, lambda: both), p, p)
    for key in ("kernel", "head"):
        landed = (o.wide(p[key]) + o.wide(out[key])).astype(np.float32)
        weights.assert_lands(MAX, 1.0, p[key], p[key], landed)


# ---- wrappers, and weights of 16 bits


PLAIN_WRAPPER = ("apply_if_finite", "bfloat16")
WRAPPERS = {
    "none": lambda tx: tx,
    "multi_steps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_every": lambda tx: optax.chain(tx, optax.apply_every(2)),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "skip_nonfinite": jaxclip.skip_nonfinite,
    "masked": lambda tx: optax.masked(tx, {"k": True, "b": False}),
    "partition": lambda tx: optax.partition({"a": tx, "b": optax.sgd(1.0)}, {"k": "a", "b": "b"}),
}


@pytest.mark.slow
@pytest.mark.relaxed  # Optax promotes dtypes
@pytest.mark.parametrize(
    ("wrapper", "dtype"),
    [
        pytest.param(w, d, marks=[] if (w, d) == PLAIN_WRAPPER else pytest.mark.slow)
        for w, d in [*((w, "bfloat16") for w in WRAPPERS), ("none", "float16")]
    ],
)
def test_wrappers_of_16_bit_weights(wrapper, dtype):
    """In a `scan`, which refuses a change of dtype; accumulated updates end inside as well."""
    tx = WRAPPERS[wrapper](optax.chain(optax.sgd(0.5), jaxclip.project_max_norm(1.0)))
    start = {"k": jnp.full((3, 2), 0.4, dtype), "b": jnp.ones(2, dtype)}

    def body(carry, _):
        p, state = carry
        updates, state = tx.update(jax.tree.map(lambda x: -x, p), state, p)
        return (optax.apply_updates(p, updates), state), p

    run = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=6))
    (p, _), seen = run(start)
    assert p["k"].dtype == dtype
    reached = o.norm(seen["k"], 2, (1,))
    if wrapper != "apply_every":  # it adds two updates of the same weights
        assert reached.max() <= 1 + 1e-5
    assert reached.max() >= 1 - registry.eps(dtype)


def test_one_trace():
    """A step traces once, whatever the count."""
    tx = jaxclip.project_max_norm(lambda count: 1.0 + count.astype(jnp.float32))
    p = registry.build((6, 4))
    traces = []

    @jax.jit
    def step(u, s, p):
        traces.append(1)
        return tx.update(u, s, p)

    state = tx.init(p)
    for _ in range(3):
        _, state = step(p, state, p)
    assert len(traces) == 1
    assert float(state.threshold) == 3.0


@pytest.mark.slow
def test_state_of_a_replaced_optax_transformation():
    p = registry.build((6, 4), scale=3)
    update = jax.jit(jaxclip.project_max_norm(1.0).update)
    for state in (None, optax.EmptyState()):
        updates, _ = update(p * 0, state, p)
        weights.assert_lands(MAX, 1.0, p, p * 0, p + updates)
    with pytest.raises(TypeError, match="but project_max_norm needs its own"):
        jaxclip.project_max_norm(1.0).update(p, {"x": 1}, p)


def test_the_list_has_every_projection():
    exported = {n for n in jaxclip.__all__ if n.startswith("project_")}
    assert exported == {q.function for q in PROJECTIONS}
    assert dataclasses.is_dataclass(MAX)
