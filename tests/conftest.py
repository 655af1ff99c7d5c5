"""Eight CPU devices, a strict JAX and what is slow, for every test below this folder.

`XLA_FLAGS` must be set before the first JAX backend starts, so it comes before the imports.
"""

import itertools
import os

_COUNT = "--xla_force_host_platform_device_count"
if _COUNT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_COUNT}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from tests.support import modes  # noqa: E402

hypothesis.settings.register_profile(
    "jaxclip", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.load_profile("jaxclip")

_IN_EVERY_CONTEXT = ("clip_by_global_norm",)
_LIKE_OTHERS = (  # which differ from another rule in the norm, the scope or the bounds alone
    "clip_by_average_norm",
    "clip_by_block_rms",
    "clip_by_norm",
    "clip_by_value",
)
_SLOW_FILES = ("test_dropout.py", "test_projections_training.py", "test_translation.py")
_FILES = itertools.count(1)
_ODD_CONTEXTS = ("eager", "grad", "apply_if_finite", "chain", "named_chain", "equinox_model")
_NOT_STRICT = ("parity", "train")  # folders that run other people's code beside ours


def pytest_collection_modifyitems(items):
    """Marks what is slow, so that plain `pytest` stays well within five minutes on two cores."""
    for item in items:
        if _is_slow(item):
            item.add_marker(pytest.mark.slow)


def _is_slow(item):
    """Variants of a rule (other norms, other axes); in every context and dtype, all but a few.

    Tests that are slow for every rule are marked where they are.
    """
    values = item.callspec.params if hasattr(item, "callspec") else {}
    rule = values.get("rule")
    if not getattr(rule, "named", True):
        return True
    if getattr(rule, "name", None) in _LIKE_OTHERS or item.path.name in _SLOW_FILES:
        return True
    if item.path.name == "test_rules.py" and rule is not None:
        return rule.name not in _IN_EVERY_CONTEXT
    if item.path.name == "test_projections_contexts.py" and "projection" in values:
        context = getattr(values.get("context"), "__name__", "")
        return values["projection"].name != "max_norm" or context in _ODD_CONTEXTS
    return item.path.parent.name == "parity" and values.get("dtype", "bfloat16") != "bfloat16"


@pytest.fixture(autouse=True, scope="module")
def forgetful():
    """Lets go of compiled programs now and then: those of all files would fill gigabytes."""
    yield
    if next(_FILES) % 4 == 0:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def strict_jax(request):
    """Strict promotion, unless the test says `relaxed` or lies in a folder of other libraries."""
    here = set(request.path.parent.parts[-2:])
    if request.node.get_closest_marker("relaxed") or here & set(_NOT_STRICT):
        yield
        return
    with modes.strict():
        yield


@pytest.fixture
def x64():
    with modes.x64():
        yield


@pytest.fixture
def relaxed():
    with modes.relaxed():
        yield
