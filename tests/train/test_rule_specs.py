"""Rules as text: parsed, checked, and built as the library builds them."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip.train.config import presets, rule_specs
from jaxclip.train.errors import UserError
from jaxclip.train.training import optimizer

PARAMS = {"layers": {i: {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.ones(4)} for i in range(3)}}
GRADS = jax.tree.map(lambda x: 3 * x, PARAMS)


def read(text):
    return rule_specs.parse("clip", text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("15", 15),
        ("-0.5", -0.5),
        ("1e-3", 1e-3),
        ("inf", math.inf),
        ("0:1", (0, 1)),
        ("-1:2.5", (-1, 2.5)),
        ("true", True),
        ("False", False),
        ("none", None),
        (" zero ", "zero"),
    ],
)
def test_literals(text, value):
    assert rule_specs.literal(text) == value
    assert type(rule_specs.literal(text)) is type(value)


RULES = [
    ("global_norm=15", "clip_by_global_norm", (15,), {}),
    ("clip_by_global_norm=15", "clip_by_global_norm", (15,), {}),
    ("global_norm=1,ord=inf,eps=1e-6", "clip_by_global_norm", (1,), {"ord": math.inf, "eps": 1e-6}),
    ("global_norm=1,nonfinite=zero", "clip_by_global_norm", (1,), {"nonfinite": "zero"}),
    ("norm=5,axis=0:1", "clip_by_norm", (5,), {"axis": (0, 1)}),
    ("normalize=2,scope=leaf", "normalize_by_norm", (2,), {"scope": "leaf"}),
    ("average_norm=.1", "clip_by_average_norm", (0.1,), {}),
    ("block_rms=1,axis=0", "clip_by_block_rms", (1,), {"axis": 0}),
    ("value=1", "clip_by_value", (-1, 1), {}),
    ("value=-1:2", "clip_by_value", (-1, 2), {}),
    ("clip=0.5", "clip", (0.5,), {}),
    ("delta=0.5", "clip", (0.5,), {}),
    ("agc=0.01,eps=1e-2", "adaptive_grad_clip", (0.01,), {"eps": 1e-2}),
    ("adaptive=0.01", "adaptive_grad_clip", (0.01,), {}),
]


@pytest.mark.slow
def test_norms_of_layers():
    """One for the kernel and the bias of each layer."""
    tx = read("clip_by_group_norm=1").build(PARAMS)
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert set(state.memory.norms) == {"layers/0", "layers/1", "layers/2"}
    layer = updates["layers"][1]
    assert math.hypot(*(jnp.linalg.norm(x) for x in layer.values())) == pytest.approx(1, rel=1e-6)


def assert_specs_equal_the_librarys(kind, cases, params, **more):
    """Each text parses to the function with its arguments, and updates as that function does."""
    built, direct = [], []
    for text, function, arguments, options in cases:
        spec = rule_specs.parse(kind, text)
        assert (spec.rule.function, spec.arguments, spec.options) == (function, arguments, options)
        built.append(spec.build(params, **more))
        direct.append(getattr(jaxclip, function)(*arguments, **options))
    grads = jax.tree.map(lambda x: 3 * x, params)

    @jax.jit
    def updates(p, g):
        return [[tx.update(g, tx.init(p), p)[0] for tx in made] for made in (built, direct)]

    jax.tree.map(np.testing.assert_array_equal, *updates(params, grads))


@pytest.mark.slow
def test_rules_equal_the_librarys():
    assert_specs_equal_the_librarys("clip", RULES, PARAMS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo=1", "unknown rule 'foo', choose from"),
        ("", "unknown rule ''"),
        ("global_norm", "needs a value"),
        ("global_norm=", "max_norm="),
        ("global_norm=-1", "max_norm=-1"),
        ("global_norm=nan", "max_norm=nan"),
        ("global_norm=true", "max_norm=True"),
        ("global_norm=x", "max_norm='x'"),
        ("global_norm=1,ord=0.5", "ord=0.5"),
        ("global_norm=1,axis=0", "unknown option 'axis=0', choose from"),
        ("global_norm=1,eps", "unknown option 'eps'"),
        ("global_norm=1,eps=1,eps=2", "given twice"),
        ("global_norm=1,norm_mask=true", "unknown option"),
        ("norm=1,axis=x", "axis='x'"),
        ("value=x", "neither a number nor low:high"),
        ("value=2:1", "min_value=2"),
        ("value=1:2:3", "--clip value=1:2:3"),
        (
            "by=Measured,scope=leaf",
            "Measured is neither a number nor one of aggc, constant, ema_ratio",
        ),
        ("by=quantile,scope=leaf", "quantile() missing 1 required"),
        ("by=zscore:1,scope=leaf", "zscore() takes 0 positional arguments"),
        ("by=constant:abc,scope=leaf", "value='abc'"),
    ],
)
def test_errors_are_one_line_and_quote_the_flag(text, message):
    with pytest.raises(UserError) as caught:
        read(text).build(PARAMS)
    assert str(caught.value).startswith(f"--clip {text}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


PROJECTIONS = [
    ("max_norm=1.5", "project_max_norm", (1.5,), {}),
    ("max_norm", "project_max_norm", (), {}),
    ("project_max_norm=1,axis=0:1", "project_max_norm", (1,), {"axis": (0, 1)}),
    ("unit_norm,axis=1", "project_unit_norm", (), {"axis": 1}),
    ("min_max_norm=0.5:2,rate=0.5", "project_min_max_norm", (0.5, 2), {"rate": 0.5}),
    ("min_max_norm=1:none", "project_min_max_norm", (1, None), {}),
    ("non_negative,record=true", "project_non_negative", (), {"record": True}),
    ("box=0.01", "project_box", (-0.01, 0.01), {}),
    ("box=-1:0.5", "project_box", (-1, 0.5), {}),
    ("spectral_norm=1,how=scale", "project_spectral_norm", (1,), {"how": "scale"}),
    ("spectral_norm=1,method=iterative", "project_spectral_norm", (1,), {"method": "iterative"}),
    ("spectral_norm=1,axis=0", "project_spectral_norm", (1,), {"axis": 0}),
]


@pytest.mark.slow
def test_projections_equal_the_librarys():
    kernel = {"kernel": jnp.full((3, 4), 2.0)}
    assert_specs_equal_the_librarys("project", PROJECTIONS, kernel, mask=True)


def test_every_projection_has_a_spec():
    exported = {name for name in jaxclip.__all__ if name.startswith("project_")}
    assert exported == {rule.function for rule in rule_specs.PROJECTIONS}
    assert {text.partition("=")[0].partition(",")[0] for text, *_ in PROJECTIONS} >= {
        rule.short[0] for rule in rule_specs.PROJECTIONS
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unit_norm=1", "takes no value"),
        ("non_negative=1", "takes no value"),
        ("min_max_norm=2", "2 is not low:high"),
        ("min_max_norm=2:1", "min_norm=2 exceeds max_norm=1"),
        ("min_max_norm=0:1,rate=2", "rate=2 must be between 0 and 1"),
        ("box", "needs a value"),
        ("box=x", "neither a number nor low:high"),
        ("box=2:1", "min_value=2 exceeds max_value=1"),
        ("spectral_norm", "needs a value"),
        ("spectral_norm=1,how=cut", "how='cut'"),
        (
            "spectral_norm=1,axes=0",
            "unknown option 'axes=0', did you mean axis? Choose from how,",
        ),
        ("max_norm=1,mask=true", "unknown option"),
        ("global_norm=1", "unknown rule 'global_norm', did you mean --clip global_norm=1?"),
    ],
)
def test_errors_of_projections_are_one_line(text, message):
    config = presets.get("forward").override({"project": (text,)})
    with pytest.raises(UserError) as caught:
        optimizer.build(config, PARAMS, lambda step: 0.0)
    assert str(caught.value).startswith(f"--project {text}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rules_are_functions_of_the_library():
    for rule in (*rule_specs.CLIPS, *rule_specs.PROJECTIONS):
        assert inspect.isfunction(getattr(jaxclip, rule.function))


@pytest.mark.slow
def test_order_of_the_chain():
    config = presets.get("forward").override({"clip": ("global_norm=1", "value=0.01")})
    chain = optimizer.build(config, PARAMS, lambda step: 0.5)
    updates, state = chain.update(GRADS, chain.init(PARAMS), PARAMS)
    total = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(GRADS)))
    recorded = jaxclip.metrics(state)
    assert recorded["grads/norm"] == pytest.approx(total)
    assert recorded["clip_by_global_norm/scale"] == pytest.approx(1 / total)
    jax.tree.map(lambda u: np.testing.assert_allclose(u, -0.005, rtol=1e-6), updates)
    count = sum(g.size for g in jax.tree.leaves(GRADS))
    assert recorded["clipped/norm"] == pytest.approx(0.01 * math.sqrt(count))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "bound"),
    [("", [0, 1, 2]), (",layers=all", [0, 1, 2]), (",layers=hidden", [0, 1]), (",layers=1", [1])],
)
def test_layers_of_a_projection(layers, bound):
    config = presets.get("forward").override({"project": (f"max_norm=1.0,axis=1{layers}",)})
    chain = optimizer.build(config, PARAMS, lambda step: 0.0)
    updates, _ = chain.update(GRADS, chain.init(PARAMS), PARAMS)
    new = jax.tree.map(jnp.add, PARAMS, updates)
    for number, layer in new["layers"].items():
        rows = np.linalg.norm(layer["kernel"], axis=1)
        np.testing.assert_allclose(rows, 1 if number in bound else 4, rtol=1e-6)
        np.testing.assert_array_equal(layer["bias"], 1)


@pytest.mark.parametrize("layers", ["3", "-1", "0:5", "last", "0.5", "true"])
def test_unknown_layers(layers):
    config = presets.get("forward").override({"project": (f"max_norm=1,layers={layers}",)})
    with pytest.raises(UserError, match=rf"^--project max_norm=1,layers={layers}: .*hidden"):
        optimizer.build(config, PARAMS, lambda step: 0.0)
