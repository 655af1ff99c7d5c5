"""Meshes at every entry: errors name the leaf's path; `axis_name` can name the mesh axes."""

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
from tests.support import learned, registry
from tests.support import oracles as o
from tests.support.contexts import once

MESH_AXES = ("data", "model")
SPECS = {"a": P("data"), "b": P(None, "model"), "c": P("data", "model"), "d": P()}


def _mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), MESH_AXES, (kind,) * 2)


def _updated(make):
    def run(x, **keywords):
        tx = make(**keywords)
        return tx.update(x, tx.init(x), x)[0]

    return run


def _scaled(function):
    def run(x, **keywords):
        return jax.tree.map(lambda y: y * jnp.max(jax.tree.leaves(function(x, **keywords))[0]), x)

    return run


# Everything public that takes `axis_name`, as a function of a tree.
ENTRIES = {
    "clip": _updated(functools.partial(jaxclip.clip, 0.5)),
    "clip_by_value": _updated(functools.partial(jaxclip.clip_by_value, -0.5, 0.5, record=True)),
    "clip_by_norm": _updated(functools.partial(jaxclip.clip_by_norm, 0.5)),
    "clip_by_norm_axis": _updated(functools.partial(jaxclip.clip_by_norm, 0.5, axis=0)),
    "clip_by_average_norm": _updated(functools.partial(jaxclip.clip_by_average_norm, 0.1)),
    "clip_by_block_rms": _updated(functools.partial(jaxclip.clip_by_block_rms, 0.1)),
    "clip_by_global_norm": _updated(functools.partial(jaxclip.clip_by_global_norm, 0.5)),
    "adaptive_grad_clip": _updated(functools.partial(jaxclip.adaptive_grad_clip, 0.1)),
    **{f"scope_{s}": _updated(functools.partial(jaxclip.clip_by, 0.5, scope=s))
       for s in ("element", "unit", "leaf", "global")},
    **{name: _updated(make) for name, make in learned.RULES.items() if name != "clip_by"},
    "skip_nonfinite": _updated(functools.partial(jaxclip.skip_nonfinite, optax.identity())),
    "skip_spikes": _updated(functools.partial(jaxclip.skip_spikes, optax.identity())),
    "skip_above": _updated(
        functools.partial(jaxclip.skip_above, optax.identity(), threshold=1.0)),
    "scale_loss": _updated(functools.partial(jaxclip.scale_loss, optax.identity())),
    "rollback": _updated(functools.partial(jaxclip.rollback, optax.identity(), threshold=1.0)),
    "clip_by_group_norm": _updated(functools.partial(jaxclip.clip_by_group_norm, 0.5, "all")),
    "normalize_by_norm": _updated(jaxclip.normalize_by_norm),
    "clippy": _updated(jaxclip.clippy),
    "hyperball": _updated(functools.partial(jaxclip.hyperball, optax.identity(), 0.1)),
    "monitor": _updated(jaxclip.monitor),
    "monitor_params": _updated(functools.partial(jaxclip.monitor, of="params")),
    "scale_by_stable_adam": _updated(jaxclip.scale_by_stable_adam),
    "project_max_norm": _updated(functools.partial(jaxclip.project_max_norm, 1.0)),
    "project_unit_norm": _updated(jaxclip.project_unit_norm),
    "project_min_max_norm": _updated(functools.partial(jaxclip.project_min_max_norm, 0.1, 1.0)),
    "project_non_negative": _updated(jaxclip.project_non_negative),
    "project_box": _updated(functools.partial(jaxclip.project_box, -1, 1)),
    "functional.clip_by_norm": functools.partial(functional.clip_by_norm, max_norm=0.5),
    "functional.clip_by_average_norm": functools.partial(
        functional.clip_by_average_norm, max_norm=0.5),
    "functional.clip_by_block_rms": functools.partial(functional.clip_by_block_rms, threshold=0.1),
    "functional.adaptive_grad_clip": lambda x, **k: functional.adaptive_grad_clip(x, x, 0.1, **k),
    "functional.clip_by_global_norm": lambda x, **k: functional.clip_by_global_norm(x, 0.5, **k)[0],
    "functional.clip_by_group_norm": functools.partial(
        functional.clip_by_group_norm, max_norm=0.5, groups="all"),
    "functional.normalize_by_norm": functional.normalize_by_norm,
    "functional.clippy": lambda x, **k: functional.clippy(x, x, **k),
    "functional.project_max_norm": functools.partial(functional.project_max_norm, max_norm=0.5),
    "functional.project_unit_norm": functional.project_unit_norm,
    "functional.project_min_max_norm": functional.project_min_max_norm,
    **{f"norms.{n}": _scaled(getattr(norms, n)) for n in norms.__all__},
}  # fmt: skip


@pytest.mark.relaxed
@pytest.mark.slow
def test_replicated_leaf_declared_sharded():
    """Sharded over one axis, and declared sharded over the other, or over both."""
    tree = {"fine": jnp.ones((8, 4)), "k": jnp.ones((8, 4))}
    specs = {"fine": P("data", "model"), "k": P(None, "model")}
    for run in ENTRIES.values():
        for names in ("data", MESH_AXES):
            mapped = jax.shard_map(
                functools.partial(run, axis_name=names), mesh=_mesh(), in_specs=(specs,),
                out_specs=specs,
            )  # fmt: skip
            with pytest.raises(ValueError, match=r"axis_name='data': the leaf \['k'\] is repli"):
                jax.eval_shape(mapped, tree)


def test_every_entry_that_takes_an_axis_name_is_listed():
    public = {n for n in jaxclip.__all__ if hasattr(getattr(jaxclip, n), "__code__")}
    taking = {
        prefix + n
        for module, names, prefix in (
            (jaxclip, public, ""), (functional, functional.__all__, "functional."),
            (norms, norms.__all__, "norms."),
        )
        for n in names
        if "axis_name" in getattr(module, n).__code__.co_varnames[: _arguments(getattr(module, n))]
    }  # fmt: skip
    taking -= {"clip_by", "qk_clip"}  # the largest logit is the same with replicas
    # Of these it names the axes that split examples: `test_per_example.py`.
    taking -= {"per_example", "noise_scale", "functional.clip_per_example"}
    assert taking <= ENTRIES.keys()


def _arguments(function):
    return function.__code__.co_argcount + function.__code__.co_kwonlyargcount


# ---- functions


UNIT_FUNCTIONS = {
    "max_norm": functools.partial(functional.project_max_norm, max_norm=0.7),
    "unit_norm": functional.project_unit_norm,
    "min_max_norm": functools.partial(functional.project_min_max_norm, min_norm=0.3, max_norm=0.7),
    "clip_by_norm": functools.partial(functional.clip_by_norm, max_norm=0.7),
}


@pytest.mark.slow
def test_functions_of_units_in_shard_map():
    """Of columns and rows, each spread over one axis of two or whole."""
    w = registry.build((8, 4))
    cases = [
        (P("data"), 0, "data", True), (P("data"), 1, (), True),
        (P("data", "model"), 0, "data", True), (P("data"), 0, "data", False),
    ]  # fmt: skip

    def run(axis, names, w):
        return {k: f(w, axis=axis, axis_name=names) for k, f in UNIT_FUNCTIONS.items()}

    wants = jax.jit(lambda w: [run(axis, None, w) for axis in (0, 1)])(w)
    for spec, axis, names, check in cases:
        mapped = jax.shard_map(
            functools.partial(run, axis, names), mesh=_mesh(), in_specs=(spec,), out_specs=spec,
            check_vma=check,
        )  # fmt: skip
        for name, got in jax.jit(mapped)(w).items():
            np.testing.assert_allclose(got, wants[axis][name], rtol=1e-6)


@pytest.mark.slow
def test_functions_of_leaves_with_axis_name():
    w = registry.build((8, 4))

    def run(w, **k):
        return (
            functional.clip_by_norm(w, 0.5, **k),
            functional.clip_by_average_norm(w, 0.01, **k),
            functional.clip_by_global_norm({"w": w}, 0.5, **k)[0]["w"],
            w * norms.rms(w, **k),
            w * norms.average_norm(w, **k),
        )

    spec = P("data", "model")
    mapped = jax.shard_map(
        functools.partial(run, axis_name=MESH_AXES), mesh=_mesh(), in_specs=(spec,),
        out_specs=spec, check_vma=False,
    )  # fmt: skip
    for got, want in zip(jax.jit(mapped)(w), jax.jit(run)(w), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


# ---- sizes


@pytest.mark.relaxed
def test_leaf_with_2_to_the_40_elements():
    tree = {"w": jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)}
    for entry, run in ENTRIES.items():
        try:
            jax.eval_shape(run, tree)
        except Exception as error:
            error.add_note(entry)
            raise
    element = functools.partial(jaxclip.clip_by_value, -1.0, 1.0, record=True)
    jax.eval_shape(_updated(element), tree)


def test_unit_scope_with_sharded_vector():
    """It needs no `axis_name`: it is spread over the devices, whatever its axes."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])
    u = jnp.arange(1.0, 9.0)
    tx = jaxclip.clip_by(1.0, scope="unit")
    run = jax.shard_map(lambda u: once(tx, u)[0], mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    np.testing.assert_allclose(o.norm(jax.jit(run)(u)), [1.0], rtol=1e-6)
