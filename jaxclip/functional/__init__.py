r"""The rules and projections without memory as pure functions, on one array or on a tree.

Names and arguments are those of the transformations, after the array or tree. The guarantees are
the same. There is no telemetry and no state; a threshold is a number or an array.
"""

from jaxclip.functional.clipping import adaptive_grad_clip as adaptive_grad_clip
from jaxclip.functional.clipping import clip as clip
from jaxclip.functional.clipping import clip_by_average_norm as clip_by_average_norm
from jaxclip.functional.clipping import clip_by_block_rms as clip_by_block_rms
from jaxclip.functional.clipping import clip_by_global_norm as clip_by_global_norm
from jaxclip.functional.clipping import clip_by_norm as clip_by_norm
from jaxclip.functional.clipping import clip_by_value as clip_by_value
from jaxclip.functional.per_example import clip_per_example as clip_per_example
from jaxclip.functional.projecting import project_box as project_box
from jaxclip.functional.projecting import project_max_norm as project_max_norm
from jaxclip.functional.projecting import project_min_max_norm as project_min_max_norm
from jaxclip.functional.projecting import project_non_negative as project_non_negative
from jaxclip.functional.projecting import project_spectral_norm as project_spectral_norm
from jaxclip.functional.projecting import project_unit_norm as project_unit_norm
from jaxclip.functional.scaling import clip_by_group_norm as clip_by_group_norm
from jaxclip.functional.scaling import clip_by_spectral_norm as clip_by_spectral_norm
from jaxclip.functional.scaling import clippy as clippy
from jaxclip.functional.scaling import normalize_by_norm as normalize_by_norm

__all__ = [
    "adaptive_grad_clip",
    "clip",
    "clip_by_average_norm",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_group_norm",
    "clip_by_norm",
    "clip_by_spectral_norm",
    "clip_by_value",
    "clip_per_example",
    "clippy",
    "normalize_by_norm",
    "project_box",
    "project_max_norm",
    "project_min_max_norm",
    "project_non_negative",
    "project_spectral_norm",
    "project_unit_norm",
]
