r"""Guards: wrappers of a transformation that skip bad steps, or take them back.

A rule makes a large gradient smaller; a guard does not let it in. A skipped step has a zero update
and leaves the inner state, momentum and step counts included, unchanged bit for bit. Any other step
is that of the inner transformation: bit for bit outside of `jit`, and up to roundings under `jit`,
where XLA may contract other products and sums than it does without the guard.
"""

from jaxclip.guards.limits import Observed as Observed  # by this name in states of version 0.1.0
from jaxclip.guards.loss_scaling import loss_scale as loss_scale
from jaxclip.guards.loss_scaling import scale_loss as scale_loss
from jaxclip.guards.skipping import skip_above as skip_above
from jaxclip.guards.skipping import skip_nonfinite as skip_nonfinite
from jaxclip.guards.skipping import skip_spikes as skip_spikes
from jaxclip.guards.snapshots import rollback as rollback
from jaxclip.transforms.guard import GuardState as GuardState

__all__ = [
    "GuardState",
    "loss_scale",
    "rollback",
    "scale_loss",
    "skip_above",
    "skip_nonfinite",
    "skip_spikes",
]
