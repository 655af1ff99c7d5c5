"""The JAX modes the tests switch between: strict, relaxed, x64."""

import contextlib
import os

import jax

# Whether XLA makes kernels as by default, not as tests/conftest.py asks for.
DEFAULT_KERNELS = "disable_new_fusion_emitters" not in os.environ.get("XLA_FLAGS", "")


@contextlib.contextmanager
def strict():
    """Our own code's environment: no implicit promotion of dtypes or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@contextlib.contextmanager
def relaxed():
    """JAX's defaults, for other people's code that promotes (Optax's MultiSteps, Adam, Flax)."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def x64():
    """A context in which float64 is float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # JAX before 0.8 knows it only here

    return enable_x64(True)


def maybe_x64(dtype):
    """`x64` if the dtype needs it, else nothing."""
    wide = str(dtype) in ("float64", "complex128")
    return x64() if wide else contextlib.nullcontext()
