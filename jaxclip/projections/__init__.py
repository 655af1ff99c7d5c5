"""Projections of weights onto a set, as transformations."""

from jaxclip.projections.attention import qk_clip as qk_clip
from jaxclip.projections.attention_layers import linen_roles as linen_roles
from jaxclip.projections.attention_layers import nnx_roles as nnx_roles
from jaxclip.projections.spectral_norm import project_spectral_norm as project_spectral_norm
from jaxclip.projections.transforms import project_box as project_box
from jaxclip.projections.transforms import project_max_norm as project_max_norm
from jaxclip.projections.transforms import project_min_max_norm as project_min_max_norm
from jaxclip.projections.transforms import project_non_negative as project_non_negative
from jaxclip.projections.transforms import project_unit_norm as project_unit_norm
from jaxclip.projections.units import equinox_units as equinox_units
from jaxclip.projections.units import flax_units as flax_units

__all__ = [
    "equinox_units",
    "flax_units",
    "linen_roles",
    "nnx_roles",
    "project_box",
    "project_max_norm",
    "project_min_max_norm",
    "project_non_negative",
    "project_spectral_norm",
    "project_unit_norm",
    "qk_clip",
]
