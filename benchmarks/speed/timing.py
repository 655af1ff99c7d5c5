"""Times several programs in turn, and computes medians, ratios and quartiles.

A ratio is a ratio of medians. Its quartiles are those of the ratios of single turns, which show the
noise.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Times = Mapping[str, Sequence[float]]  # seconds, turn by turn
WARM_UP = 2
LEAST, SECONDS = 7, 10.0  # turns that are measured at least, and the seconds for more


class Ratio(NamedTuple):
    """A ratio of medians, and the quartiles of the ratios of single turns."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleaved(
    programs: Mapping[str, Callable[[], Any]],
    turns: int,
    before: Callable[[str], Any] | None = None,
    seconds: float = SECONDS,
) -> dict[str, list[float]]:
    """Runs programs A B C A B C; each returns when its work is done.

    The times exclude `before(name)`, which prepares a call, and the first turns. After some
    `seconds` no further turn starts, if enough were measured.
    """
    taken: dict[str, list[float]] = {name: [] for name in programs}
    begin = time.perf_counter()
    for turn in range(turns + WARM_UP):
        if turn >= WARM_UP + LEAST and time.perf_counter() - begin > seconds:
            break
        for name, program in programs.items():
            if before is not None:
                before(name)
            start = time.perf_counter()
            program()
            if turn >= WARM_UP:
                taken[name].append(time.perf_counter() - start)
    return taken


def ratio(times: Times, name: str, base: str) -> Ratio:
    """Returns time / time."""
    return _ratio(lambda t: t[name] / t[base], times, (name, base))


def reads(times: Times, name: str, without: str = "none", read: str = "norm") -> Ratio:
    """Returns the extra time over a program without a rule, in reads of the tree."""
    return _ratio(lambda t: (t[name] - t[without]) / t[read], times, (name, without, read))


def beyond(times: Times, name: str, base: str, nothing: str) -> Ratio:
    """Returns time / time, after subtracting the time of a program that does nothing."""
    return _ratio(
        lambda t: (t[name] - t[nothing]) / (t[base] - t[nothing]), times, (name, base, nothing)
    )


def _ratio(of: Callable[[dict[str, float]], float], times: Times, names: Sequence[str]) -> Ratio:
    value = of({name: statistics.median(times[name]) for name in names})
    turns = zip(*(times[name] for name in names), strict=True)
    single = [of(dict(zip(names, turn, strict=True))) for turn in turns]
    if len(single) < 2:
        return Ratio(value, value, value)
    low, _, high = statistics.quantiles(single, n=4, method="inclusive")
    return Ratio(value, low, high)


def milliseconds(times: Times, name: str) -> str:
    return f"{1000 * statistics.median(times[name]):.3g}"
