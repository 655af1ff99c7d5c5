"""The matrix of a leaf that the spectral projection bounds, and stacks, against NumPy's SVD."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from jaxclip import functional
from jaxclip.projections import equinox_units, flax_units
from tests.support import oracles as o
from tests.support import registry, weights
from tests.support.weights import apply, norms, zeros


def matrix(w, inputs):
    """The matrix with these axes as rows."""
    outputs = [a for a in range(w.ndim) if a not in inputs]
    rows = int(np.prod([w.shape[a] for a in inputs]))
    return o.wide(w).transpose([*inputs, *outputs]).reshape(rows, -1)


def largest(w, inputs):
    return np.linalg.norm(matrix(w, inputs), 2)


# name, shape, axis=, the axes of inputs
LEAVES = [
    ("dense/kernel", (6, 8), None, [0]),
    ("conv/kernel", (3, 3, 2, 5), None, [0, 1, 2]),
    ("query/kernel", (6, 4, 3), flax_units, [0]),
    ("out/kernel", (4, 3, 6), flax_units, [0, 1]),
    ("linear/weight", (8, 6), equinox_units, [1]),
    ("conv/weight", (5, 2, 3, 3), equinox_units, [1, 2, 3]),
    ("other", (4, 5, 6), (0, 2), [0, 2]),
    ("another", (4, 5, 6), -2, [1]),
]


@pytest.mark.slow
@pytest.mark.parametrize("pure", [False, True])
def test_axes(pure):
    """As a transformation and as a function: singular values of the right matrix."""
    how, method = ("scale", "eigh") if pure else ("clip", "iterative")
    shapes = [shape for _, shape, _, _ in LEAVES]
    leaves = dict(enumerate(registry.build({str(i): s for i, s in enumerate(shapes)}).values()))

    @jax.jit
    def run(leaves):
        found = []
        for (name, _, axis, _), w in zip(LEAVES, leaves.values(), strict=True):
            options = {"how": how, "method": method, "axis": axis}
            if pure:
                out = functional.project_spectral_norm({name: w}, 1.5, **options)
            else:
                tx = jaxclip.project_spectral_norm(1.5, **options)
                out = apply(tx, {name: w * 0}, {name: w})
            found.append(out[name])
        return found

    for (name, _, _, inputs), w, out in zip(LEAVES, leaves.values(), run(leaves), strict=True):
        with weights.case(name):
            assert largest(w, inputs) > 1.6
            want = weights.singular(matrix(w, inputs), 1.5, how)
            np.testing.assert_allclose(matrix(out, inputs), want, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_heads_of_attention_are_one_matrix():
    """Eight heads that read the same input: each has the norm 1, all together sqrt(8)."""
    kernel = np.zeros((4, 8, 8), np.float32)
    kernel[0] = np.eye(8)
    p = {"query": {"kernel": jnp.asarray(kernel)}}
    assert largest(kernel, [0, 1]) == 1
    np.testing.assert_allclose(largest(kernel, [0]), 8**0.5)
    out = apply(jaxclip.project_spectral_norm(1.0, axis=flax_units), zeros(p), p)
    np.testing.assert_allclose(largest(out["query"]["kernel"], [0]), 1.0, rtol=4e-6)


@pytest.mark.slow
def test_layers_of_linen():
    """The output of attention's first layer is at most c times its input."""
    layer = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=8, out_features=5)
    p = jax.jit(layer.init)(jax.random.key(0), jnp.ones((2, 4, 6)))["params"]
    p = jax.tree.map(lambda x: 3 * x, p)
    out = apply(jaxclip.project_spectral_norm(1.0, axis=flax_units), zeros(p), p)
    for name in ("query", "out"):
        dense = nn.DenseGeneral(*_features(name))
        bias = jnp.zeros_like(out[name]["bias"])
        run = lambda x, n=name, d=dense, b=bias: d.apply(  # noqa: E731
            {"params": {"kernel": out[n]["kernel"], "bias": b}}, x
        )
        inside = (4, 2) if name == "out" else (6,)
        jacobian = jax.jit(jax.jacobian(run))(jnp.zeros(inside))
        size = int(np.prod(inside))
        found = np.linalg.norm(o.wide(jacobian).reshape(-1, size), 2)
        np.testing.assert_allclose(found, 1.0, rtol=1e-5)


def _features(name):
    return (5, (-2, -1)) if name == "out" else ((4, 2), -1)


# ---- stacks


def stack(shape, size, count=6, axis=0):
    """Matrices whose largest singular values lie around `size`."""
    layers = [np.random.default_rng(i).normal(size=shape) for i in range(count)]
    sizes = size * np.linspace(0.8, 1.2, count)
    layers = [s * x / np.linalg.norm(x, 2) for s, x in zip(sizes, layers, strict=True)]
    return jnp.asarray(np.stack(layers, axis), jnp.float32)


@pytest.mark.slow
def test_layers_of_a_stack_inside_are_unchanged():
    """Without `stacked` they are taken for one matrix, and become smaller."""
    w = stack((8, 8), 0.75)
    assert o.wide(w).shape == (6, 8, 8)
    run = jax.jit(
        lambda w, s: functional.project_spectral_norm(w, 1.0, stacked=s), static_argnums=1
    )
    registry.assert_same_bits(run(w, 0), w)
    as_one = [np.linalg.norm(x, 2) for x in o.wide(run(w, None))]
    assert max(as_one) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "method"), [(0, "eigh"), (1, "iterative"), (-1, "iterative")])
def test_each_layer_of_a_stack_is_projected(axis, method):
    """Those outside; those inside come back bit for bit."""
    w = {
        "blocks": {"kernel": stack((8, 5), 1.0, axis=axis)},
        "head": {"kernel": stack((4, 3), 2)[0]},
    }

    def of_blocks(name, leaf):
        return axis if name.startswith("blocks") else None

    tx = jaxclip.project_spectral_norm(1.0, method=method, stacked=of_blocks)
    update = jax.jit(lambda w: tx.update(zeros(w), tx.init(w), w))
    updates, state = update(w)
    out = jax.tree.map(np.add, w, updates)
    before = np.moveaxis(o.wide(w["blocks"]["kernel"]), axis, 0)
    after = np.moveaxis(o.wide(out["blocks"]["kernel"]), axis, 0)
    outside = [np.linalg.norm(x, 2) > 1 for x in before]
    assert sum(outside) == 3
    for x, y, is_outside in zip(before, after, outside, strict=True):
        if is_outside:
            np.testing.assert_allclose(y, weights.singular(x, 1.0), rtol=0, atol=1e-5)
        else:
            np.testing.assert_array_equal(y, x)
    head = weights.singular(w["head"]["kernel"], 1.0)
    np.testing.assert_allclose(out["head"]["kernel"], head, rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.fraction, 4 / 7, rtol=1e-6)
    np.testing.assert_allclose(state.norm, 1.6, rtol=1e-5)


@pytest.mark.slow
def test_stacks_of_attention():
    """`axis` is of a slice: a function of name and leaf gets the slice's shape."""
    p = {"layers": {"query": {"kernel": 3 * registry.build((5, 6, 4, 2))}}}
    rules = (jaxclip.project_spectral_norm, jaxclip.project_max_norm)
    made = [rule(1.0, axis=flax_units, stacked=0) for rule in rules]
    found = jax.jit(lambda p: [apply(tx, zeros(p), p) for tx in made])(p)
    layers = (o.wide(tree["layers"]["query"]["kernel"]) for tree in (p, *found))
    for x, singular, limited in zip(*layers, strict=True):
        want = weights.singular(matrix(x, [0]), 1.0)
        np.testing.assert_allclose(matrix(singular, [0]), want, rtol=0, atol=1e-5)
        np.testing.assert_allclose(limited, weights.between(x, 0, 1, 0), rtol=1e-5)


@pytest.mark.slow
def test_units_of_a_stack():
    """Every projection of units, and that vectors of a stack are no kernels."""
    w = {"kernel": 3 * registry.build((4, 6, 5)), "scale": 3 * registry.build((4, 6), seed=1)}
    sets = {
        "project_max_norm": (1.0,), "project_unit_norm": (), "project_min_max_norm": (0.5, 1.0),
    }  # fmt: skip

    @jax.jit
    def run(w):
        found = {}
        for name, limits in sets.items():
            tx = getattr(jaxclip, name)(*limits, stacked=0)
            pure = getattr(functional, name)(w["kernel"], *limits, stacked=0)
            found[name] = apply(tx, zeros(w), w), pure
        return found

    for name, (out, pure) in run(w).items():
        with weights.case(name):
            registry.assert_same_bits(out["scale"], w["scale"])
            for found in (out["kernel"], pure):
                for x in o.wide(found):
                    np.testing.assert_allclose(norms(x), 1.0, rtol=1e-6)


@pytest.mark.slow
def test_stacks_of_16_bits():
    """Each layer ends inside."""
    w = stack((8, 8), 1.0).astype(jnp.bfloat16)
    tx = jaxclip.project_spectral_norm(1.0, stacked=0)
    landed = apply(tx, zeros(w), w)
    assert landed.dtype == jnp.bfloat16
    assert max(np.linalg.norm(x, 2) for x in o.wide(landed)) <= 1 + 1e-5


@pytest.mark.slow
def test_derivative_through_a_stack():
    """Equal to that of the layers one by one."""
    w, slope = stack((5, 4), 1.0, 3), registry.build((3, 5, 4))

    def total(w, slope, **stacked):
        return jnp.sum(functional.project_spectral_norm(w, 1.0, **stacked) * slope)

    found = jax.jit(jax.grad(lambda w: total(w, slope, stacked=0)))(w)
    one = jax.jit(jax.grad(total))
    want = np.stack([one(x, s) for x, s in zip(w, slope, strict=True)])
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_stack_on_a_mesh_of_explicit_axes():
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:2])
    w = stack((8, 5), 1.0)
    tx = jaxclip.project_spectral_norm(1.0, stacked=0)
    want = apply(tx, w * 0, w)
    for spec in (P("x"), P(None, "x")):
        with jax.set_mesh(mesh):
            put = jax.device_put(w, NamedSharding(mesh, spec))
            out = jax.jit(lambda w: w + tx.update(w * 0, tx.init(w), w)[0])(put)
        assert out.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
        np.testing.assert_allclose(out, want, rtol=0, atol=1e-5)


# ---- convolutions, errors


def gain(kernel, size):
    """The largest singular value of a convolution (H, W, 1, 1) of an image, padded with zeros."""
    height, width = kernel.shape[:2]
    operator = np.zeros((size, size, size, size))
    for i, j, a, b in np.ndindex(size, size, height, width):
        y, x = i + a - height // 2, j + b - width // 2
        if 0 <= y < size and 0 <= x < size:
            operator[i, j, y, x] = kernel[a, b, 0, 0]
    return np.linalg.norm(operator.reshape(size**2, size**2), 2)


@pytest.mark.slow
def test_gain_of_a_convolution():
    """The matrix of a patch is bounded, not the convolution: 2.8 for 1, and at most 3."""
    kernel = jax.jit(functional.project_spectral_norm)(jnp.ones((3, 3, 1, 1)), 1.0)
    np.testing.assert_allclose(largest(kernel, [0, 1, 2]), 1.0, rtol=4e-6)
    np.testing.assert_allclose(gain(o.wide(kernel), 9), 2.8, atol=0.01)
    assert gain(o.wide(kernel), 20) <= 3


def test_leaves_that_are_no_matrices():
    w = {"w": jnp.ones((3, 2))}
    for options in ({"axis": (0, 1)}, {"axis": ()}, {"stacked": 0, "mask": True}):
        tx = jaxclip.project_spectral_norm(1.0, **options)
        with pytest.raises(
            ValueError, match=r"\['w'\], of shape \(3, 2\).*inputs.*outputs.* mask="
        ):
            tx.update(w, tx.init(w), w)
    with pytest.raises(TypeError, match="stacked='a' must be an int"):
        jaxclip.project_spectral_norm(1.0, stacked="a")
    with pytest.raises(TypeError, match=r"axis=0\.5"):
        jaxclip.project_spectral_norm(1.0, axis=0.5)
