"""The claims of docs/devices.md on gradients: the right one for each way, the errors of others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support.devices import DEVICES, LIMIT, MARKS, PREAMBLE, close, data, gradient, mesh, run

pytestmark = MARKS


def _averaged(x):
    return jax.lax.pmean(x, "data")


def _formulas(loss):
    def run(*arrays):
        own = jax.grad(loss)(*arrays)
        of_mean = jax.grad(lambda *a: _averaged(loss(*a)))(*arrays)
        return {
            "grad(loss)": own,
            "pmean(grad(loss))": _averaged(own),
            "psum(grad(loss))": jax.lax.psum(own, "data"),
            "grad(pmean(loss))": of_mean,
            "pmean(grad(pmean(loss)))": _averaged(of_mean),
            "grad(loss / n)": jax.grad(lambda *a: loss(*a) / DEVICES)(*arrays),
        }

    return run


def _mapped(run, specs, check_vma):
    return jax.jit(
        jax.shard_map(
            run, mesh=mesh(), in_specs=(specs, P("data"), P("data")), out_specs=P("data"),
            check_vma=check_vma,
        )
    )  # fmt: skip


def _side_by_side(run):
    return lambda *a: jax.tree.map(lambda g: g[None], run(*a))


def _parts(x):
    return x.reshape(DEVICES, -1, x.shape[-1])


def _each_device(way, run, names):
    """The result on every device of 8, stacked; the parameters are replicated."""
    params, x, y = names["start"], names["x"], names["y"]
    if way == "pmap":
        return jax.pmap(run, "data", in_axes=(None, 0, 0))(params, _parts(x), _parts(y))
    if way == "vmap":
        over = jax.vmap(run, (None, 0, 0), axis_name="data")
        return jax.jit(over)(params, _parts(x), _parts(y))
    return _mapped(_side_by_side(run), P(), way == "checked")(params, x, y)


def _right_and_own(names):
    """The gradient of the mean loss, and each device's of its own part of the batch."""
    w, b, x, y = data(names)
    own = [gradient(w, b, *part) for part in zip(_parts(x), _parts(y), strict=True)]
    stacked = {key: np.stack([g[i] for g in own]) for i, key in enumerate("wb")}
    return dict(zip("wb", gradient(w, b, x, y), strict=True)), stacked


def _times(factor, gradient):
    return {key: factor * g for key, g in gradient.items()}


@pytest.fixture(scope="module")
def given():
    return run(PREAMBLE)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pmap", "vmap", "unchecked", "checked"])
def test_gradients_of_replicated_parameters(way, given):
    right, own = _right_and_own(given)
    got = _each_device(way, _formulas(given["loss"]), given)
    n_times = _times(DEVICES, right)
    want = {
        "grad(loss)": own,
        "pmean(grad(loss))": right,
        "psum(grad(loss))": n_times,
        "grad(pmean(loss))": own,
        "pmean(grad(pmean(loss)))": right,
        "grad(loss / n)": _times(1 / DEVICES, own),
    }
    if way == "checked":
        want = {
            "grad(loss)": n_times,
            "pmean(grad(loss))": n_times,
            "psum(grad(loss))": _times(DEVICES * DEVICES, right),
            "grad(pmean(loss))": right,
            "pmean(grad(pmean(loss)))": right,
            "grad(loss / n)": right,
        }
    for formula, wanted in want.items():
        close(got[formula], wanted)


def _gathered(loss):
    """FSDP by hand: the kernel is whole inside the loss only."""

    def run(params, x, y):
        w = jax.lax.all_gather(params["w"], "data", tiled=True)
        return loss({"w": w, "b": params["b"]}, x, y)

    return run


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_in_fsdp_by_hand(check_vma, given):
    """Of the sharded kernel n times too large without `/ n` or, unchecked, even with `pmean`."""
    right, own = _right_and_own(given)
    specs = {"w": P("data"), "b": P()}
    formulas = _formulas(_gathered(given["loss"]))

    def run(params, x, y):
        got = formulas(params, x, y)
        return {name: {"w": g["w"], "b": g["b"][None]} for name, g in got.items()}

    got = _mapped(run, specs, check_vma)(given["start"], given["x"], given["y"])
    for name, factor in {"grad(loss)": DEVICES, "grad(loss / n)": 1}.items():
        close(got[name], {"w": factor * right["w"]})
    close(got["grad(pmean(loss))"], {"w": right["w"] * (1 if check_vma else DEVICES)})
    replicated = right["b"] if check_vma else own["b"] / DEVICES  # which must be summed
    close(got["grad(loss / n)"], {"b": replicated})
    np.testing.assert_allclose(np.sum(own["b"] / DEVICES, axis=0), right["b"])


# The effects of a mistake.


def _clip(gradients, limit=LIMIT, **keywords):
    """The clipped gradients, and their norm."""
    tx = jaxclip.clip_by_global_norm(limit, **keywords)
    updates, state = tx.update(gradients, tx.init(gradients))
    return updates, state.norm


def test_mean_of_clipped_gradients_is_not_the_clipped_mean():
    gradients = jnp.array([3.0, -1.0])

    def run(g):
        return _averaged(_clip(g)[0]), _clip(_averaged(g))[0]

    clipped, mean = jax.jit(jax.vmap(run, axis_name="data"))(gradients)
    np.testing.assert_array_equal(clipped, [0, 0])
    np.testing.assert_array_equal(mean, [1, 1])


def test_clipping_hides_gradients_n_times_too_large(given):
    """And shows in the norm; below the threshold it shows in the step."""
    right, _ = _right_and_own(given)
    right = jax.tree.map(jnp.float32, right)
    clip = jax.jit(_clip)
    for limit in (LIMIT, 2.0 * LIMIT):  # the norm is 2.3: both are clipped
        (once, norm), (n_times, norm_n) = clip(right, limit), clip(_times(DEVICES, right), limit)
        assert norm > limit
        np.testing.assert_allclose(norm_n / norm, DEVICES, rtol=1e-5)
        close(n_times, once)
    once, n_times = clip(right, 100.0)[0], clip(_times(DEVICES, right), 100.0)[0]
    close(n_times, _times(DEVICES, once))
    close(once, right)


@pytest.mark.slow
def test_axis_name_for_replicated_gradients(given):
    """The norm is the root of n too large; checked shard_map refuses."""

    def run(axis_name):
        return lambda p, x, y: _clip(_averaged(jax.grad(given["loss"])(p, x, y)), **axis_name)[1]

    plain, named = run({}), run({"axis_name": "data"})
    for way in ("vmap", "unchecked"):
        norms = _each_device(way, lambda *a: (named(*a), plain(*a)), given)
        np.testing.assert_allclose(norms[0] / norms[1], np.sqrt(DEVICES), rtol=1e-5)
    with pytest.raises(ValueError, match="is replicated over this mesh axis"):
        _each_device("checked", named, given)


def test_no_axis_name_for_sharded_leaves(given):
    """Unchecked, every device clips by its own norm, and the direction changes."""
    whole, _ = _right_and_own(given)
    gradient = np.float32(whole["w"])

    def run(g):
        clipped, norm = _clip(g, 0.5)
        return clipped, norm[None]

    run = jax.shard_map(run, mesh=mesh(), in_specs=P("data"), out_specs=P("data"), check_vma=False)
    clipped, norms = jax.jit(run)(gradient)
    np.testing.assert_allclose(norms, np.sqrt((gradient**2).sum(1)), rtol=1e-5)
    factors = np.sqrt((np.asarray(clipped) ** 2).sum(1)) / norms
    assert factors.max() / factors.min() > 1.1


def test_guard_with_the_loss_of_one_device():
    """Unchecked, one device alone skips; checked, the guard averages, and all do."""
    tx = jaxclip.skip_nonfinite(optax.identity())

    def run(losses):
        params = jnp.ones(2)
        _, state = tx.update(params, tx.init(params), value=losses[0])
        return state.skipped[None]

    losses = jnp.ones(DEVICES).at[3].set(jnp.nan)
    one = [device == 3 for device in range(DEVICES)]
    for check_vma, skipped in ((False, one), (True, [True] * DEVICES)):
        out = P("data") if not check_vma else P()
        mapped = jax.shard_map(
            run, mesh=mesh(), in_specs=P("data"), out_specs=out, check_vma=check_vma
        )
        np.testing.assert_array_equal(np.broadcast_to(jax.jit(mapped)(losses), DEVICES), skipped)
