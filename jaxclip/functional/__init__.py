"""The rules and projections as pure functions, without state."""

from jaxclip.functional.clipping import *  # noqa: F403
from jaxclip.functional.clipping import __all__ as __all__
