"""Eight CPU devices, a compilation cache and a strict JAX, for every test below this folder.

The environment must be set before the first JAX backend starts, so it comes before the imports.
Child processes inherit it.
"""

import itertools
import os
import pathlib

# Most programs run once, so XLA is to compile them fast: LLVM optimizes nothing and compiles a
# program in one part, and kernels do not go through MLIR, which takes three quarters of the time.
# The XLA of JAX 0.12 ignores the latter.
for _flag, _value in (
    ("--xla_force_host_platform_device_count", 8),
    ("--xla_backend_optimization_level", 0),
    ("--xla_cpu_parallel_codegen_split_count", 1),
    ("--xla_backend_extra_options", "xla_cpu_disable_new_fusion_emitters"),
):
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Three quarters of a run from nothing is compilation; the next run reads the programs from disk.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from tests.support import modes  # noqa: E402

hypothesis.settings.register_profile(
    "jaxclip", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.load_profile("jaxclip")

_FILES = itertools.count(1)
_NOT_STRICT = ("parity", "train")  # folders that run other people's code beside ours


@pytest.fixture(autouse=True, scope="module")
def forgetful():
    """Drops compiled programs every few files: those of all files would fill gigabytes."""
    yield
    if next(_FILES) % 4 == 0:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def strict_jax(request):
    """Strict promotion, unless the test says `relaxed` or lies in a folder of other libraries."""
    here = set(request.path.relative_to(pathlib.Path(__file__).parent).parts)
    if request.node.get_closest_marker("relaxed") or here & set(_NOT_STRICT):
        yield
        return
    with modes.strict():
        yield
