"""What no other plain test would notice: each was found by a mutant that survived them all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from jaxclip import functional, norms
from tests.diagnosis.test_findings import ladder
from tests.support import oracles as o
from tests.support.contexts import once

NAN = float("nan")


# ---- norms and their derivatives


def test_powers_of_float16_that_underflow():
    """The sixth power of its smallest numbers is none of float32, that of its largest is."""
    x = jnp.array([6e-8, 1.2e-7, -6e-8], jnp.float16)
    for ord in (6, 7):
        want = o.norm(x, ord).item()
        np.testing.assert_allclose(norms.global_norm(x, ord), want, rtol=6e-7)


def test_equal_largest_elements_share_the_derivative():
    slope = jax.grad(lambda x: norms.global_norm(x, float("inf")))(jnp.array([2.0, -2.0, 1.0, 2.0]))
    np.testing.assert_allclose(slope, np.array([1, -1, 0, 1]) / 3, rtol=1e-6)


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 writes them out all the same")
def test_bfloat16_leaves_are_not_written_out_in_float32():
    """A norm and the scaling after it would otherwise share the conversion."""
    tree = {f"{i}": jnp.zeros((512, 512), jnp.bfloat16) for i in range(3)}
    program = jax.jit(lambda u: once(jaxclip.clip_by_global_norm(0.5), u)).lower(tree).compile()
    assert "f32[512,512]" not in program.as_text().split("ENTRY ")[1]


def test_no_kernel_reads_the_sums_of_all_leaves():
    """XLA compiles one of hundreds of scalars for seconds: they are joined in chunks."""
    tree = [jnp.zeros((31, 33)) for _ in range(100)]
    program = jax.jit(lambda u: once(jaxclip.clip_by_global_norm(0.5), u)).lower(tree).compile()
    lines = program.as_text().split("ENTRY ")[1].splitlines()
    kernels = [line for line in lines if " fusion(" in line or " call(" in line]
    assert kernels
    assert max(line.count("%") for line in kernels) < 70


def test_a_sharded_vector_is_one_unit():
    """Nothing has to be named for it: it is spread over the devices, whatever its axes."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])
    u = jnp.arange(1.0, 9.0)
    tx = jaxclip.clip_by(1.0, scope="unit")
    run = jax.shard_map(lambda u: once(tx, u)[0], mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    np.testing.assert_allclose(o.norm(jax.jit(run)(u)), [1.0], rtol=1e-6)


# ---- rules


@pytest.mark.slow
def test_adaptive_clipping_divides_by_its_floor_at_least():
    """The formula of the paper, as in Optax: g c / max(n, 1e-6)."""
    u, p = jnp.array([3e-7, 4e-7]), jnp.zeros(2)
    out, _ = once(jaxclip.adaptive_grad_clip(1e-4), u, p)
    np.testing.assert_allclose(out, 0.1 * np.asarray(u), rtol=1e-6)
    theirs = optax.adaptive_grad_clip(1e-4)
    np.testing.assert_allclose(out, theirs.update(u, theirs.init(p), p)[0], rtol=1e-6)


def test_elements_land_on_their_threshold():
    """Times the rounded quotient alone, one in fourteen would be next to it."""
    u = jnp.asarray(np.random.default_rng(0).lognormal(2, 3, 20_000), jnp.float32)
    out, state = jax.jit(lambda u: once(jaxclip.clip_by(0.7, scope="element"), u))(u)
    beside = np.not_equal(out, np.float32(0.7))[np.asarray(u) > np.float32(0.7)]
    assert beside.mean() < 0.01
    assert float(state.fraction) > 0.5


@pytest.mark.relaxed  # Adam of Optax promotes
def test_stable_adam_with_a_long_memory():
    """In the first step the root mean square is 1, however close to 1 the smoothing is."""
    for b2 in (0.9999, 0.999999):
        _, state = once(jaxclip.scale_by_stable_adam(b2=b2), jnp.array([3.0, -0.5]))
        np.testing.assert_allclose(state.norm, 1.0, rtol=1e-5)


def test_an_element_on_its_bound_is_kept():
    slope = jax.grad(lambda u: jnp.sum(once(jaxclip.clip(1.0), u)[0]))
    np.testing.assert_array_equal(slope(jnp.array([1.0, -1.0, 0.5, 3.0])), [1, 1, 1, 0])


def test_nan_is_not_clipped_to_a_bound():
    _, state = once(jaxclip.clip(1.0, record=True), jnp.array([NAN, 0.5]))
    assert (float(state.fraction), int(state.clipped_count)) == (0.0, 0)
    assert int(state.nonfinite_count) == 1


def test_the_threshold_of_a_box_is_its_largest_bound():
    u = jnp.array([[3.0], [-4.0]])
    for tx in (
        jaxclip.clip_by_value(-2.0, 1.0, record=True),
        jaxclip.project_box(-2.0, 1.0, record=True),
    ):
        assert float(once(tx, u, u)[1].threshold) == 2.0


# ---- policies


def test_drop_measures_though_a_norm_is_given():
    """Whoever gives the norm cannot know that of what remains."""
    u = jnp.array([3.0, 4.0, NAN])
    for norm in (100.0, 0.1):
        out, _ = once(jaxclip.clip_by_global_norm(1.0, nonfinite="drop"), u, norm=norm)
        np.testing.assert_allclose(out, [0.6, 0.8, 0.0], rtol=1e-6)


@pytest.mark.parametrize("policy", ["nan", "zero"])
def test_nothing_is_clipped_where_the_whole_update_goes(policy):
    u = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([NAN])}
    _, state = once(jaxclip.clip_by_norm(1.0, nonfinite=policy), u)
    assert (float(state.fraction), int(state.clipped_count)) == (0.0, 0)


@pytest.mark.parametrize(("policy", "check"), [("nan", np.isnan), ("zero", np.logical_not)])
def test_policies_take_leaves_that_are_not_scaled(policy, check):
    u = {"a": jnp.array([1.0, NAN]), "b": jnp.array([2.0])}
    mask = {"a": True, "b": False}
    out, _ = once(jaxclip.clip_by_global_norm(1.0, nonfinite=policy, scale_mask=mask), u)
    assert all(check(x).all() for x in out.values())


# ---- rules that learn


def _last(tx, factors, unit):
    """The update after some of these sizes."""
    state = tx.init(unit)
    for factor in factors:
        out, state = tx.update(factor * unit, state)
    return out


def test_zclip_adds_to_the_norm():
    out = _last(jaxclip.zclip(max_norm=1e-6), [1e-5], jnp.array([0.6, 0.8]))
    np.testing.assert_allclose(out, np.array([0.6, 0.8]) * 1e-5 / 11, rtol=1e-5)


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_histories_of_any_magnitude(size):
    """No square leaves the range of float32."""
    rule = jaxclip.clip_by_history(window=4, min_history=2)
    out = _last(rule, [1.0, 3.0, 100.0], jnp.array([size], jnp.float32))
    np.testing.assert_allclose(np.float64(out) / size, [5.0], rtol=1e-5)


def test_what_was_learned_is_a_constant_to_derivatives():
    """So that a longer update, clipped to the same norm, is no other one."""
    rule, u = jaxclip.autoclip(50.0, window=4), jnp.array([3.0, 4.0])
    _, state = once(rule, u / 5)
    out, change = jax.jvp(lambda u: rule.update(u, state)[0], (u,), (u,))
    np.testing.assert_allclose(out, [1.8, 2.4], rtol=1e-6)  # the median of 1 and 5
    np.testing.assert_allclose(change, [0.0, 0.0], atol=1e-6)


# ---- what is told


def test_the_norm_returned_of_any_magnitude():
    for size in (1e30, 1e-30):
        u = jnp.array([3 * size, 4 * size], jnp.float32)
        _, norm = functional.clip_by_global_norm(u, 1.0)
        np.testing.assert_allclose(np.float64(norm) / size, 5.0, rtol=1e-6)


def test_leaves_whose_names_are_alike():
    u = {"a/b": jnp.array([3.0, 4.0]), "a": {"b": jnp.array([1.0])}}
    found = jaxclip.metrics(once(jaxclip.monitor(), u)[1])
    sizes = [float(v) for k, v in found.items() if k.startswith("monitor/norm/")]
    assert sorted(sizes) == [1.0, 5.0]


def test_layers_without_a_gradient_keep_their_place():
    """Twice as far apart in depth, twice the logarithm."""
    found = jaxclip.diagnose(ladder(1.0, 0.0, 100.0, 1000.0))
    np.testing.assert_allclose(found.factor, 0.1, rtol=1e-6)
