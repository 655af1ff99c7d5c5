r"""Diagnosis of vanishing and exploding gradients, in words, for any model.

| finding | condition |
|---|---|
| `non-finite` | a gradient is NaN or inf, without growth before it |
| `exploding` | towards the input the norm grows by more than 1.5 a layer and 100 in all |
| `exploding` | the norm in the last 5 steps is above 1000 times that in the first 5 |
| `exploding` | the norm grew by more than 1000 until it was NaN or inf |
| `exploding` | towards the first time step the norm grows by more than 100 in all |
| `vanishing` | towards the input the norm falls by more than 1.5 a layer and 100 in all |
| `vanishing` | the norm is exactly 0 from the input on |
| `vanishing` | towards the first time step the norm falls by more than 100 in all, or to 0 |
| `zero` | the norm of another layer is exactly 0 |
| `dead` | more than half of a layer's units have no slope at any example |
| `saturated` | over half of (unit, example) pairs have no slope, if f is flat at both ends |
| `loss` | the loss is at the end above 98 % of that of a guess, or not below that at the start |
| `clipped` | a rule clipped more than half of the steps |
| `skipped` | a guard skipped a step |
| `updates` | update/weight of a layer is more than 30 times above or below 1e-3 |
| `healthy` | none of these, and something was judged |
| `none` | nothing could be judged |

A trend over depth needs 3 layers or more, and the order of the layers: see `layer_order`. Numbers
of several steps are medians. The loss and clipped steps are judged from 10 steps on. An activation
f has no slope at z if $|f'(z)|$ is 0 or below 1 % of its largest value on [-10, 10].

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
    "Diagnosis",
    "Layer",
    "LayerOrder",
    "Units",
    "diagnose",
    "layer_order",
    "of_metrics",
    "unit_shares",
]
