"""The package: its imports, its exports, its documentation."""

import ast
import importlib.util
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib

import optax
import pytest

import jaxclip
import jaxclip.functional
import jaxclip.guards
import jaxclip.norms
import jaxclip.plot
import jaxclip.projections
import jaxclip.telemetry
import jaxclip.thresholds
from tests.support import guards, learned, registry, weights

ROOT = pathlib.Path(jaxclip.__file__).parent
CORE = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.name != "__main__.py" and "train" not in path.relative_to(ROOT).parts
]
MODULES = [
    jaxclip, jaxclip.backward, jaxclip.diagnosis, jaxclip.functional, jaxclip.guards, jaxclip.norms,
    jaxclip.plot, jaxclip.projections, jaxclip.telemetry, jaxclip.thresholds,
]  # fmt: skip


def _functions():
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                yield pytest.param(thing, id=f"{module.__name__}.{name}")


FUNCTIONS = list(_functions())


def test_import_is_light():
    """JAX, Optax and their dependencies; none of the training program's libraries."""
    code = "import sys, jaxclip; print(*{m.split('.')[0] for m in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert {"jax", "optax", "jaxclip"} <= loaded
    heavy = {"flax", "tensorflow_datasets", "tensorflow", "matplotlib", "sklearn", "rich", "torch",
             "keras", "equinox", "array_record"}  # fmt: skip
    assert not loaded & heavy


def test_import_starts_no_backend():
    code = (
        "import jaxclip, jax; from jax.extend import backend\n"
        "jaxclip.clip_by_global_norm(1.0)\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"  # refused once a backend runs
        "print(jax.device_count())"
    )
    env_free = {"JAX_PLATFORMS": "cpu", "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env_free, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "3"


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_public_jax_and_optax(path):
    text = path.read_text()
    roots, names = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names |= {f"{node.module}.{a.name}" for a in node.names}
        if isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    imported = {n for node in ast.walk(ast.parse(text)) for n in _imports(node)}
    roots = {n.split(".")[0] for n in imported} - set(sys.stdlib_module_names)
    figures = {"matplotlib"} if path.parent.name == "plot" else set()
    assert roots <= {"jax", "optax", "numpy", "jaxclip"} | figures, roots
    private = [n for n in names if re.match(r"(jax|jnp|optax)\.(_|.*\._)|jax\.experimental", n)]
    assert not private
    assert not any(n.startswith("jaxclip.train") for n in imported)


def _imports(node):
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module]
    return []


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_all_lists_the_public_names(module):
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name
    if module is not jaxclip:
        own = {
            n
            for n, v in vars(module).items()
            if inspect.isfunction(v) and v.__module__ == module.__name__
        }
        for_the_core = {"measure", "shared_global_norm", "together"}
        assert {n for n in own if not n.startswith("_")} - set(module.__all__) <= for_the_core


def test_every_rule_is_in_a_registry():
    """And so in every context, dtype and edge; the functions left out have separate test files."""
    functions = {n for n in jaxclip.__all__ if inspect.isfunction(getattr(jaxclip, n))}
    functions -= {"metrics", "diagnose", "monitor", "scale_by_stable_adam", "adopt", "to_floats",
                  "loss_scale", "qk_clip"}  # fmt: skip
    functions -= {"carry", "reset_every", "clip_by_spectral_norm", "hyperball"}
    functions -= {"per_example", "noise_scale"}
    given = {rule.name for rule in registry.RULES + registry.MORE}
    given |= set(learned.RULES) | set(guards.EVERY)
    assert functions <= given | {p.function for p in weights.PROJECTIONS}


def test_surface():
    assert set(jaxclip.__all__) >= {
        "clip", "clip_by_value", "clip_by_norm", "clip_by_average_norm", "clip_by_block_rms",
        "clip_by_global_norm", "adaptive_grad_clip", "clip_by", "metrics", "monitor", "functional",
        "norms", "thresholds", "guards", "telemetry", "autoclip", "zclip", "adagc",
        "clip_by_history",
        "skip_nonfinite", "skip_spikes", "scale_by_stable_adam", "adopt",
        "projections", "project_max_norm", "project_unit_norm", "project_min_max_norm",
        "project_non_negative", "project_box", "project_spectral_norm", "qk_clip", "backward",
    }  # fmt: skip
    assert set(jaxclip.backward.__all__) == {
        "clip", "clip_by_value", "clip_by_norm", "clip_by_global_norm", "scale", "zero_nonfinite",
    }  # fmt: skip
    assert set(jaxclip.functional.__all__) >= {
        "clip", "clip_by_value", "clip_by_norm", "clip_by_average_norm", "clip_by_block_rms",
        "clip_by_global_norm", "adaptive_grad_clip", "project_max_norm", "project_unit_norm",
        "project_min_max_norm", "project_non_negative", "project_box", "project_spectral_norm",
    }  # fmt: skip
    assert set(jaxclip.norms.__all__) >= {
        "global_norm", "leaf_norms", "unit_norms", "rms", "average_norm",
    }  # fmt: skip
    assert set(jaxclip.thresholds.__all__) >= {
        "constant", "relative_to_params", "quantile", "tracked_quantile", "zscore", "ema_ratio",
        "mean_plus_sigma",
    }  # fmt: skip
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxclip.__version__)


def test_oldest_versions_match_pyproject():
    """The oldest versions that .ci/run installs are those of pyproject.toml."""
    project = pathlib.Path(__file__).parents[2]
    pinned, declared = project / ".ci" / "oldest.txt", project / "pyproject.toml"
    if not (pinned.is_file() and declared.is_file()):
        pytest.skip("pyproject.toml and .ci/oldest.txt are not beside the tests")
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", pinned.read_text(), re.M))
    assert pins.pop("jaxlib") == pins["jax"]  # which JAX asks for by itself
    table = tomllib.loads(declared.read_text())["project"]
    groups = [table["dependencies"], *table["optional-dependencies"].values()]
    every = [requirement for group in groups for requirement in group]
    floors = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", r).groups() for r in every if ">=" in r)
    assert {"jax", "optax", "flax", "orbax-checkpoint", "chex"} <= pins.keys()
    assert pins == {name: floors.get(name) for name in pins}


def test_files_of_a_release_name_the_version():
    project = pathlib.Path(__file__).parents[2]
    citation, changes = project / "CITATION.cff", project / "CHANGELOG.md"
    if not (citation.is_file() and changes.is_file()):
        pytest.skip("CITATION.cff and CHANGELOG.md are not beside the tests")
    assert f"\nversion: {jaxclip.__version__}\n" in citation.read_text()
    assert f"\n## {jaxclip.__version__}" in changes.read_text()
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]["version"]
    assert declared == jaxclip.__version__


def test_typed():
    spec = importlib.util.find_spec("jaxclip")
    assert (pathlib.Path(spec.origin).parent / "py.typed").is_file()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_documentation(function):
    doc = inspect.getdoc(function)
    assert doc
    first = doc.splitlines()[0]
    assert first.endswith("."), first
    assert ">>>" in doc, "no example"
    if inspect.signature(function).parameters:
        assert "\nArgs:\n" in doc
    assert "\nReturns:\n" in doc
    for name in inspect.signature(function).parameters:
        assert re.search(rf"^ +\*{{0,2}}{name}:", doc, re.M), f"{name} is not explained"


@pytest.mark.parametrize(
    "name",
    [n for n in jaxclip.__all__ if n.startswith(("clip_", "project_", "adapt", "skip", "zclip"))],
)
def test_rules_document_their_errors(name):
    doc = inspect.getdoc(getattr(jaxclip, name))
    assert "\nRaises:\n" in doc
    assert "ValueError" in doc


def test_every_parameter_has_a_type():
    for param in FUNCTIONS:
        signature = inspect.signature(param.values[0])
        for p in signature.parameters.values():
            assert p.annotation is not p.empty, (param.id, p.name)
        assert signature.return_annotation is not signature.empty, param.id


def test_signatures_of_peers():
    """Optax's names and positional signatures; TensorFlow's bounds."""

    def names(f):
        return [
            p.name for p in inspect.signature(f).parameters.values() if p.kind != p.KEYWORD_ONLY
        ]

    assert names(jaxclip.clip) == ["max_delta"]
    assert names(jaxclip.clip_by_block_rms) == ["threshold"]
    assert names(jaxclip.clip_by_global_norm) == ["max_norm"]
    assert names(jaxclip.adaptive_grad_clip) == ["clipping", "eps", "axis"]
    assert names(jaxclip.clip_by_value) == ["min_value", "max_value"]
    assert names(jaxclip.clip_by_norm) == ["max_norm"]
    assert names(jaxclip.clip_by_group_norm) == ["max_norm", "groups"]
    assert names(jaxclip.normalize_by_norm) == ["target_norm"]
    assert names(jaxclip.clippy) == ["rel", "abs"]
    assert names(jaxclip.carry) == ["rule"]
    assert names(jaxclip.reset_every) == ["inner", "steps"]
    assert names(jaxclip.clip_by_spectral_norm) == ["max_norm"]
    assert names(jaxclip.per_example) == ["rule"]
    assert names(jaxclip.noise_scale) == ["small_batch", "big_batch"]
    assert names(jaxclip.functional.clip_per_example) == ["gradients", "max_norm"]
    assert names(jaxclip.hyperball) == ["inner", "learning_rate"]
    assert names(jaxclip.clip_by_average_norm) == ["max_norm"]
    assert names(jaxclip.clip_by) == ["threshold"]
    adam = ["b1", "b2", "eps", "eps_root", "mu_dtype"]
    assert names(jaxclip.scale_by_stable_adam) == names(optax.scale_by_adam) == adam
    assert names(jaxclip.autoclip) == ["percentile"]
    assert names(jaxclip.clip_by_growth) == ["max_growth"]
    assert names(jaxclip.skip_nonfinite) == names(jaxclip.skip_spikes) == ["inner"]
    for rule in (jaxclip.zclip, jaxclip.adagc, jaxclip.clip_by_history):
        assert names(rule) == []
    assert names(jaxclip.project_max_norm) == names(jaxclip.project_spectral_norm) == ["max_norm"]
    assert names(jaxclip.project_unit_norm) == names(jaxclip.project_non_negative) == []
    assert names(jaxclip.project_min_max_norm) == ["min_norm", "max_norm", "rate"]
    assert names(jaxclip.project_box) == ["min_value", "max_value"]
    assert names(jaxclip.functional.project_max_norm)[1:] == ["max_norm", "axis"]
    assert names(jaxclip.functional.clip_by_norm) == ["x", "max_norm", "axis", "ord"]
    assert names(jaxclip.functional.clip_by_global_norm) == ["tree", "max_norm"]
    assert names(jaxclip.backward.clip_by_norm) == ["x", "max_norm", "axis", "ord"]
    assert names(jaxclip.qk_clip) == ["tau"]
    assert list(inspect.signature(jaxclip.thresholds.constant).parameters) == ["value"]


LEARNED = {
    "autoclip": {"percentile", "window", "factor", "max_growth"},
    "zclip": {"z_threshold", "alpha", "eps", "warmup_steps", "max_norm", "clip_factor", "mode",
              "skip_update_on_spike", "restart_after", "min_spread", "max_growth"},
    "adagc": {"max_ratio", "beta", "warmup_steps", "warmup_norm", "floor", "max_growth"},
    "clip_by_growth": {"max_growth", "floor"},
    "stabilize_gradient": {"beta1", "beta2", "eps"},
    "clip_by_history": {"sigma", "window", "min_history", "min_spread", "max_growth"},
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNED)
def test_learned_rules_take_the_arguments_of_their_paper(name):
    found = set(inspect.signature(getattr(jaxclip, name)).parameters)
    assert found == LEARNED[name] | {"scope", "groups", "stacked", "axis_name", "nonfinite"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_defaults_are_plain_python_values(function):
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty:
            assert type(parameter.default) in (int, float, bool, str, type(None)), parameter
