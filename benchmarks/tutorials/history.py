"""The numbers that a run of a tutorial records, and the figures computed from them.

TensorFlow and jaxclip fill in the same `History`, so a row of the table means the same for both.
"""

from typing import NamedTuple

import numpy as np

TENSORS = ("W1", "b1", "W2", "b2", "W3", "b3")
EVERY = 100  # steps from one printed loss to the next


class History(NamedTuple):
    """Numbers of a run; those that a program does not record are None or have no columns."""

    losses: np.ndarray  # (epochs, steps), of the batch before its step
    scores: np.ndarray  # (epochs, 2): test loss, test accuracy
    before: np.ndarray  # (steps of the first epoch, tensors): norms of gradients before clipping
    after: np.ndarray  # the same after it
    rates: np.ndarray | None = None  # learning rate of each epoch's last step
    train_accuracy: float | None = None  # over the whole training set
    restored: tuple[float, float] | None = None  # test loss and accuracy after a restore
    largest_row: float | None = None  # norm, hidden kernels


def figures(name: str, history: History) -> dict[str, float]:
    """Returns a program's figures by their names in the table."""
    return _READ[name](history)


def _forward(history: History) -> dict[str, float]:
    last = len(history.losses) - 1
    return {
        f"loss, epoch {epoch}, step {EVERY * i}": float(loss)
        for epoch in dict.fromkeys((0, last))
        for i, loss in enumerate(history.losses[epoch, ::EVERY])
    }


def _exploding(history: History) -> dict[str, float]:
    losses = history.losses[0]
    bad = np.flatnonzero(~np.isfinite(losses))
    found = {"loss, step 0": float(losses[0])}
    if len(losses) > EVERY:
        found[f"loss, step {EVERY}"] = float(losses[EVERY])
    return found | {"first step whose loss is not finite": float(bad[0]) if bad.size else np.inf}


def _explode(history: History) -> dict[str, float]:
    found = {}
    for when, norms in (("before", history.before[1]), ("after", history.after[1])):
        norms = norms.astype(np.float64)
        found |= {
            f"{n}, second step, {when}": float(x) for n, x in zip(TENSORS, norms, strict=True)
        }
        found[f"all together, second step, {when}"] = float(np.linalg.norm(norms))
    last = len(history.losses) - 1
    epochs = dict.fromkeys((0, last))
    found |= {f"training loss, mean of epoch {e}": float(history.losses[e].mean()) for e in epochs}
    return found | {f"test accuracy, epoch {last}, %": 100 * float(history.scores[-1, 1])}


def _classifier(history: History) -> dict[str, float]:
    loss, accuracy = history.scores[-1]
    restored_loss, restored_accuracy = history.restored
    after = f"after {len(history.losses)} epochs"
    return {
        f"training accuracy {after}, %": 100 * history.train_accuracy,
        f"test accuracy {after}, %": 100 * float(accuracy),
        "the same after restoring, %": 100 * restored_accuracy,
        f"test loss {after}": float(loss),
        "the same after restoring": restored_loss,
    }


def _max_norm(history: History) -> dict[str, float]:
    epochs = len(history.losses)
    return {
        **_classifier(history),
        "largest norm of a row, hidden kernels": history.largest_row,
        **{
            f"learning rate, last step of epoch {epoch}": float(history.rates[epoch])
            for epoch in dict.fromkeys((0, (epochs - 1) // 2, epochs - 1))
        },
    }


_READ = {
    "forward": _forward,
    "forward, std 1": _exploding,
    "explode": _explode,
    "value-clip": _classifier,
    "max-norm": _max_norm,
}
