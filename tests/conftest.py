"""Eight CPU devices, a strict JAX and what is slow, for every test below this folder.

`XLA_FLAGS` must be set before the first JAX backend starts, so it comes before the imports.
"""

import os

_COUNT = "--xla_force_host_platform_device_count"
if _COUNT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_COUNT}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from tests import modes  # noqa: E402

hypothesis.settings.register_profile(
    "jaxclip", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.load_profile("jaxclip")

_NOT_STRICT = ("parity", "train")  # folders that run other people's code beside ours


def pytest_collection_modifyitems(items):
    """Marks what is slow: variants of a rule (other norms, other axes), and parity but in bfloat16.

    A rule under its own name is tested always.
    """
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        variant = not getattr(values.get("rule"), "named", True)
        parity = item.path.parent.name == "parity" and values.get("dtype", "bfloat16") != "bfloat16"
        if variant or parity:
            item.add_marker(pytest.mark.slow)


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
