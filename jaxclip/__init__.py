"""Gradient clipping for JAX, whole.

Every rule is an `optax.GradientTransformation`: it computes a norm at a scope, compares it with a
threshold and rescales. `import jaxclip` needs JAX and Optax only; the training program is
`jaxclip.train`.
"""

import sys as _sys

# First, as it holds back the program's signals during the other imports.
from jaxclip._core import start as _start  # noqa: F401 # pyright: ignore[reportUnusedImport]

# isort: split
from jaxclip import diagnosis as diagnosis
from jaxclip import functional as functional
from jaxclip import guards as guards
from jaxclip import norms as norms
from jaxclip import plot as plot
from jaxclip import projections as projections
from jaxclip import telemetry as telemetry
from jaxclip import thresholds as thresholds
from jaxclip._core import state as _state
from jaxclip._core.state import ClipState as ClipState
from jaxclip.diagnosis import Diagnosis as Diagnosis
from jaxclip.diagnosis import diagnose as diagnose
from jaxclip.functional import backward as backward
from jaxclip.guards import GuardState as GuardState
from jaxclip.guards import loss_scale as loss_scale
from jaxclip.guards import rollback as rollback
from jaxclip.guards import scale_loss as scale_loss
from jaxclip.guards import skip_above as skip_above
from jaxclip.guards import skip_nonfinite as skip_nonfinite
from jaxclip.guards import skip_spikes as skip_spikes
from jaxclip.projections import project_box as project_box
from jaxclip.projections import project_max_norm as project_max_norm
from jaxclip.projections import project_min_max_norm as project_min_max_norm
from jaxclip.projections import project_non_negative as project_non_negative
from jaxclip.projections import project_spectral_norm as project_spectral_norm
from jaxclip.projections import project_unit_norm as project_unit_norm
from jaxclip.projections import qk_clip as qk_clip
from jaxclip.telemetry import MonitorState as MonitorState
from jaxclip.telemetry import metrics as metrics
from jaxclip.telemetry import monitor as monitor
from jaxclip.telemetry import to_floats as to_floats
from jaxclip.thresholds import moving_average as _moving_average
from jaxclip.thresholds import quantiles as _quantiles
from jaxclip.thresholds import window as _window
from jaxclip.transforms import guard as _guard
from jaxclip.transforms.adoption import adopt as adopt
from jaxclip.transforms.averages import adagc as adagc
from jaxclip.transforms.averages import clip_by_growth as clip_by_growth
from jaxclip.transforms.averages import zclip as zclip
from jaxclip.transforms.carry import carry as carry
from jaxclip.transforms.clip_by import clip_by as clip_by
from jaxclip.transforms.clipping import adaptive_grad_clip as adaptive_grad_clip
from jaxclip.transforms.clipping import clip_by_average_norm as clip_by_average_norm
from jaxclip.transforms.clipping import clip_by_block_rms as clip_by_block_rms
from jaxclip.transforms.clipping import clip_by_global_norm as clip_by_global_norm
from jaxclip.transforms.clipping import clip_by_norm as clip_by_norm
from jaxclip.transforms.elementwise import clip as clip
from jaxclip.transforms.elementwise import clip_by_value as clip_by_value
from jaxclip.transforms.grouping import clip_by_group_norm as clip_by_group_norm
from jaxclip.transforms.hyperball import hyperball as hyperball
from jaxclip.transforms.noise import noise_scale as noise_scale
from jaxclip.transforms.normalizing import normalize_by_norm as normalize_by_norm
from jaxclip.transforms.normalizing import stabilize_gradient as stabilize_gradient
from jaxclip.transforms.per_example import per_example as per_example
from jaxclip.transforms.relative import clippy as clippy
from jaxclip.transforms.resetting import reset_every as reset_every
from jaxclip.transforms.spectral import clip_by_spectral_norm as clip_by_spectral_norm
from jaxclip.transforms.stable_adam import scale_by_stable_adam as scale_by_stable_adam
from jaxclip.transforms.windows import autoclip as autoclip
from jaxclip.transforms.windows import clip_by_history as clip_by_history

__version__ = "0.1.0"

_sys.modules["jaxclip.backward"] = backward  # for `import jaxclip.backward`

# Pickled states of 0.1.0 name that version's modules.
for _old, _module in {
    "_state": _state,
    "_guard": _guard,
    "thresholds._averages": _moving_average,
    "thresholds._history": _window,
    "thresholds._quantiles": _quantiles,
}.items():
    _sys.modules.setdefault(f"jaxclip.{_old}", _module)

__all__ = [
    "ClipState",
    "Diagnosis",
    "GuardState",
    "MonitorState",
    "adagc",
    "adaptive_grad_clip",
    "adopt",
    "autoclip",
    "backward",
    "carry",
    "clip",
    "clip_by",
    "clip_by_average_norm",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_group_norm",
    "clip_by_growth",
    "clip_by_history",
    "clip_by_norm",
    "clip_by_spectral_norm",
    "clip_by_value",
    "clippy",
    "diagnose",
    "diagnosis",
    "functional",
    "guards",
    "hyperball",
    "loss_scale",
    "metrics",
    "monitor",
    "noise_scale",
    "normalize_by_norm",
    "norms",
    "per_example",
    "plot",
    "project_box",
    "project_max_norm",
    "project_min_max_norm",
    "project_non_negative",
    "project_spectral_norm",
    "project_unit_norm",
    "projections",
    "qk_clip",
    "reset_every",
    "rollback",
    "scale_by_stable_adam",
    "scale_loss",
    "skip_above",
    "skip_nonfinite",
    "skip_spikes",
    "stabilize_gradient",
    "telemetry",
    "thresholds",
    "to_floats",
    "zclip",
]
