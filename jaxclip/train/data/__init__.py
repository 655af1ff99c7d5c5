"""Images and labels: `load(name, folder)` returns them as `Data`."""

from jaxclip.train.data.sources import Data, load

__all__ = ["Data", "load"]
