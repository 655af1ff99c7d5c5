r"""Diagnosis of vanishing and exploding gradients, in words, for any model.

| finding | condition |
|---|---|
| `non-finite` | a gradient is NaN or inf |
| `exploding` | towards the input the norm grows by more than 1.5 a layer and 100 in all |
| `exploding` | the norm in the last 5 steps is above 1000 times that in the first 5 |
| `vanishing` | towards the input the norm falls by more than 1.5 a layer and 100 in all |
| `vanishing` | the norm is exactly 0 from the input on |
| `dead` | more than half of a layer's units have no slope at any example |
| `saturated` | over half of (unit, example) pairs have no slope, if f is flat at both ends |

A trend over depth needs 3 layers or more; numbers of several steps are medians. An activation f
has no slope at z if $|f'(z)|$ is 0 or below 1 % of its largest value on [-10, 10].

All functions run on the host, outside `jit`, except `unit_shares`. The findings are rules of thumb;
the numbers are measured.
"""

from jaxclip.diagnosis.activations import Units as Units
from jaxclip.diagnosis.activations import unit_shares as unit_shares
from jaxclip.diagnosis.diagnose import diagnose as diagnose
from jaxclip.diagnosis.diagnose import of_metrics as of_metrics
from jaxclip.diagnosis.layer_order import LayerOrder as LayerOrder
from jaxclip.diagnosis.layer_order import layer_order as layer_order
from jaxclip.diagnosis.layers import Layer as Layer
from jaxclip.diagnosis.report import Diagnosis as Diagnosis

__all__ = [
    *("Diagnosis", "Layer", "LayerOrder", "Units"),
    *("diagnose", "layer_order", "of_metrics", "unit_shares"),
]
