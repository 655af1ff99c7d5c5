"""The report of `benchmarks.tutorials`: published figures, TensorFlow's and jaxclip's."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import report_files
from benchmarks.tutorials.history import TENSORS, figures
from benchmarks.tutorials.runs import Result

_FORWARD = {0: (0.404, 0.205, 0.182, 0.158, 0.183), 9: (0.0811, 0.0860, 0.0853, 0.0781, 0.0856)}
_EXPLODE = {
    "before": (18.02, 2.94, 21.33, 2.15, 21.82, 2.09),
    "after": (7.57, 1.23, 8.97, 0.90, 9.17, 0.88),
}
PUBLISHED: dict[str, dict[str, float]] = {
    "forward": {
        f"loss, epoch {epoch}, step {100 * i}": loss
        for epoch, losses in _FORWARD.items()
        for i, loss in enumerate(losses)
    },
    "forward, std 1": {"loss, step 0": 385739.0, "loss, step 100": math.nan},
    "explode": {
        f"{name}, second step, {when}": norm
        for when, norms in _EXPLODE.items()
        for name, norm in zip(TENSORS, norms, strict=True)
    },
}
STEPS = (0, 1, 10, 100)


class Row(NamedTuple):
    """A figure: the published value, and the values of all seeds of both sides."""

    what: str
    published: float | None
    theirs: list[float]
    ours: list[float]

    @property
    def difference(self) -> float:
        """The difference of the medians."""
        return statistics.median(self.ours) - statistics.median(self.theirs)

    @property
    def overlap(self) -> bool:
        """Whether the ranges of the seeds overlap, or the medians agree in five digits."""
        if not np.isfinite([*self.theirs, *self.ours]).all():
            return np.isfinite(self.theirs).any() == np.isfinite(self.ours).any()
        medians = map(statistics.median, self.theirs_ours)
        low, high = max(map(min, self.theirs_ours)), min(map(max, self.theirs_ours))
        # The same accuracy is 97.24 in float64 and 97.2400007 in float32.
        return (
            low <= high
            or math.isclose(low, high, rel_tol=1e-6)
            or math.isclose(*medians, rel_tol=1e-5)
        )

    @property
    def theirs_ours(self) -> tuple[list[float], list[float]]:
        """Both sides."""
        return self.theirs, self.ours


def rows(result: Result) -> list[Row]:
    """Returns the rows of a program."""
    theirs, ours = (
        [figures(result.name, h) for h in side] for side in (result.theirs, result.ours)
    )
    published = PUBLISHED.get(result.name, {})
    together = {when: math.hypot(*norms) for when, norms in _EXPLODE.items()}
    if result.name == "explode":
        published = published | {f"all together, second step, {w}": n for w, n in together.items()}
    return [
        Row(what, published.get(what), [f[what] for f in theirs], [f[what] for f in ours])
        for what in ours[0]
    ]


def paired(result: Result) -> dict[str, float]:
    """Returns relative differences of jaxclip and TensorFlow on the same weights and batches."""
    theirs, ours = result.paired
    kept = [step for step in STEPS if step < ours.losses.shape[1]]
    found = {f"loss, step {s}": _apart(theirs.losses[0, s], ours.losses[0, s]) for s in kept}
    if theirs.before.size:
        for when in ("before", "after"):
            norms = (getattr(side, when)[1] for side in (theirs, ours))
            found[f"norms, second step, {when}"] = _apart(*norms)
    found["test loss, epoch 0"] = _apart(theirs.scores[0, 0], ours.scores[0, 0])
    return found


def _apart(theirs: Any, ours: Any) -> float:
    """Returns the largest relative difference; NaN if neither is finite, inf if one is."""
    theirs, ours = np.float64(theirs), np.float64(ours)
    finite = np.isfinite(theirs), np.isfinite(ours)
    if not np.all(finite):
        return math.inf if np.any(finite) else math.nan
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))


def content(
    known: dict[str, Any], data: str, results: Sequence[Result], draws: Sequence[float]
) -> dict[str, Any]:
    """Returns the content of `tutorials.json`."""
    found = {}
    for result in results:
        found[result.name] = {
            "rows": {row.what: _plain(row) for row in rows(result)},
            "same weights and batches, relative difference": paired(result),
        }
    seeds = {result.name: len(result.ours) for result in results}
    found["explode"]["norm of the second step, draws of TensorFlow's program"] = list(draws)
    return {**known, "data": data, "seeds": seeds, "programs": found}


def _plain(row: Row) -> dict[str, Any]:
    return {
        "published": row.published,
        "tensorflow": row.theirs,
        "jaxclip": row.ours,
        "difference": row.difference,
        "overlap": row.overlap,
    }


HEADS = ("", "published", "TensorFlow here", "jaxclip here", "difference", "ranges meet")
TITLES = {"forward, std 1": "`forward`, weights of standard deviation 1"}


def cells(row: Row) -> list[str]:
    """Returns a row's cells."""
    digits = _digits(row)
    published = "" if row.published is None else _as_published(row.published)
    sides = [_spread(side, digits) for side in row.theirs_ours]
    gap = f"{row.difference:+{digits}}" if math.isfinite(row.difference) else "none"
    return [row.what, published, *sides, gap, "yes" if row.overlap else "no"]


def _as_published(value: float) -> str:
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def _digits(row: Row) -> str:
    size = max((abs(x) for x in (*row.theirs, *row.ours) if math.isfinite(x)), default=0)
    if "step whose" in row.what or size >= 1000:
        return ".0f"
    if "learning rate" in row.what or "norm of a row" in row.what:
        return ".6f"
    return ".2f" if size > 1.5 else ".4f"


def _spread(values: Sequence[float], digits: str) -> str:
    """Returns the median and the range of the seeds."""
    low, middle, high = (format(f(values), digits) for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def markdown(results: Sequence[Result], draws: Sequence[float]) -> str:
    """Returns the tables."""
    parts = []
    for result in results:
        parts += [f"### {TITLES.get(result.name, f'`{result.name}`')}\n"]
        parts += [report_files.table(HEADS, [cells(row) for row in rows(result)])]
        parts += [_of_many(draws)] if result.name == "explode" else []
    return "\n".join([*parts, "### The same weights, the same batches\n", _paired_table(results)])


def _of_many(draws: Sequence[float]) -> str:
    """Compares the published norm with those of many draws."""
    low, middle, high = np.percentile(draws, (5, 50, 95))
    published = math.hypot(*_EXPLODE["before"])
    above = sum(norm > published for norm in draws)
    return (
        f"Of {len(draws)} draws of TensorFlow's program the second step's norm before clipping is "
        f"{middle:.1f} in the median and {low:.1f} to {high:.1f} in nine tenths; in {above} it is "
        f"above the {published:.1f} published.\n"
    )


def _paired_table(results: Sequence[Result]) -> str:
    found = {result.name: paired(result) for result in results}
    heads = list(dict.fromkeys(head for values in found.values() for head in values))
    heads.append(heads.pop(heads.index("test loss, epoch 0")))
    lines = [[name, *(_power(v.get(head)) for head in heads)] for name, v in found.items()]
    return report_files.table(["relative difference", *heads], lines)


def _power(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else "both nan" if math.isnan(value) else f"{value:.0e}"
