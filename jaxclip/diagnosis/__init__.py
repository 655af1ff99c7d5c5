"""Whether gradients vanish or explode, in words, for any model."""

from jaxclip.diagnosis.activations import Units as Units
from jaxclip.diagnosis.activations import unit_shares as unit_shares
from jaxclip.diagnosis.diagnose import diagnose as diagnose
from jaxclip.diagnosis.diagnose import of_metrics as of_metrics
from jaxclip.diagnosis.layers import Layer as Layer
from jaxclip.diagnosis.report import Diagnosis as Diagnosis

__all__ = ["Diagnosis", "Layer", "Units", "diagnose", "of_metrics", "unit_shares"]
