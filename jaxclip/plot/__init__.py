"""Figures of what `jaxclip.metrics` returned; needs matplotlib: `pip install "jaxclip[plot]"`.

| function | what it draws |
|---|---|
| `norms` | the norm of each layer over the steps |
| `ratios` | update / weight of each layer over the steps |
| `heat_map` | the norm of each layer in each step, as a colour |
| `clipping` | the norm that a rule measured, its threshold, and the steps that it clipped |
| `clip_rate` | the share of steps that each rule clipped |
| `series` | any one number, such as the loss |
| `overview` | all of these that were recorded |
| `side_by_side` | several runs, a column for each |

Metrics are one of

- a dict of stacked arrays of shape (steps,), as `lax.scan` returns it;
- a list of dicts, one for each recorded step;
- a file of JSON lines, one dict a line, or a folder with a `metrics.jsonl`; `read` returns the runs
  of a file that has several.

A step's number is its value of `step`, if there is one; else that of a rule's or monitor's count;
else its position. Of two records of a step the later counts. NaN and inf, which a file may hold as
`NaN`, `"nan"`, `"inf"` or `null`, are marked with a cross, and a norm of 0 on a log scale with
a triangle. No two lines differ in colour alone.

A function that draws into axes takes them as `ax=`, and one that draws a figure as `fig=`; both
return what they drew on. Without the argument they make a new figure of pyplot.
"""

from jaxclip.plot.figures import overview as overview
from jaxclip.plot.figures import side_by_side as side_by_side
from jaxclip.plot.json_lines import read as read
from jaxclip.plot.layer_panels import heat_map as heat_map
from jaxclip.plot.layer_panels import norms as norms
from jaxclip.plot.layer_panels import ratios as ratios
from jaxclip.plot.step_panels import clip_rate as clip_rate
from jaxclip.plot.step_panels import clipping as clipping
from jaxclip.plot.step_panels import series as series

__all__ = [
    "clip_rate",
    "clipping",
    "heat_map",
    "norms",
    "overview",
    "ratios",
    "read",
    "series",
    "side_by_side",
]
