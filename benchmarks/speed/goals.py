"""The goals of the benchmark of speed, and whether a run reaches them.

A goal is a bound on several measurements; it is reached if none of them exceeds it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from benchmarks.speed import timing

Sections = Mapping[str, Mapping[str, Mapping[str, Any]]]  # results by section and job


class Goal(NamedTuple):
    """A bound, and the numbers that must not exceed it.

    Attributes:
        title: the goal, in words.
        how: the measured quantity.
        most: the bound.
        values: `values(sections)` returns the measurements by name.
        expected: the number of measurements in a complete run.
        elsewhere: text in place of a measurement that is not made here.
    """

    title: str
    how: str
    most: float | None = None
    values: Callable[[Sections], dict[str, float]] = lambda sections: {}
    expected: int = 0
    elsewhere: str = ""


class Verdict(NamedTuple):
    """A goal and its measurements; `reached` is `None` if it is unknown."""

    goal: Goal
    values: dict[str, float]
    reached: bool | None

    def plain(self) -> dict[str, Any]:
        """Returns the entry for the JSON file."""
        goal = self.goal
        known = {"goal": goal.title, "measured as": goal.how, "at most": goal.most}
        return known | {"values": self.values, "reached": self.reached, "in words": self.words}

    @property
    def words(self) -> str:
        """The verdict in words: reached, or missed by how much."""
        goal = self.goal
        if goal.elsewhere:
            return goal.elsewhere
        missing = goal.expected - len(self.values)
        rest = f"; {missing} of {goal.expected} not measured" if missing else ""
        if not self.values:
            return "not measured"
        if self.reached is not False:
            return f"reached{rest}"
        over = [value for value in self.values.values() if value > goal.most]
        excess = 100 * (max(over) / goal.most - 1)
        return f"not reached by {len(over)} of {len(self.values)}, by up to {excess:.1f} %{rest}"


def verdict(goal: Goal, sections: Sections) -> Verdict:
    """Compares the measurements with a goal."""
    values = goal.values(sections)
    if goal.most is None or not values:
        return Verdict(goal, values, None)
    if any(value > goal.most for value in values.values()):
        return Verdict(goal, values, False)
    return Verdict(goal, values, True if len(values) >= goal.expected else None)


def verdicts(sections: Sections) -> list[Verdict]:
    return [verdict(goal, sections) for goal in GOALS]


def of_jobs(
    section: str, number: Callable[[timing.Times], float], *words: str
) -> Callable[[Sections], dict[str, float]]:
    """Returns a number for each job whose name contains all of the words."""

    def values(sections: Sections) -> dict[str, float]:
        return {
            job: number(result["times"])
            for job, result in sections.get(section, {}).items()
            if "times" in result and set(words) <= set(job.split(", ")) and job in WHOLE[section]
        }

    return values


def against(
    section: str, base: str, but: str | None = None, only: Collection[str] | None = None
) -> Callable[[Sections], dict[str, float]]:
    """Returns time / time of a base for the programs of a section: `only` some, or all `but` one.

    Jobs without the base are left out.
    """

    def values(sections: Sections) -> dict[str, float]:
        return {
            f"{job}: {name}": timing.ratio(result["times"], name, base).value
            for job, result in sections.get(section, {}).items()
            for name in result.get("times", {})
            if name not in (base, but) and base in result["times"]
            if only is None or name in only
        }

    return values


def of_leaves(section: str, *leaves: int) -> Callable[[Sections], dict[str, float]]:
    """Returns time / time of Optax's for one norm of some numbers of leaves."""
    names = {f"one norm, {number} leaves" for number in leaves}

    def values(sections: Sections) -> dict[str, float]:
        found = against(section, "Optax")(sections)
        return {job: value for job, value in found.items() if job.split(":")[0] in names}

    return values


def to_torch(sections: Sections) -> dict[str, float]:
    return {
        job: timing.ratio(result["times"], "jaxclip", "PyTorch").value
        for job, result in sections.get("alone", {}).items()
        if "PyTorch" in result.get("times", {})
    }


def all_reduces(sections: Sections) -> dict[str, float]:
    return {
        job: sum(result["collectives"]["jaxclip"].values())
        for job, result in sections.get("collectives", {}).items()
        if "collectives" in result
    }


def reads(times: timing.Times) -> float:
    return timing.reads(times, "jaxclip").value


def to_optax(times: timing.Times) -> float:
    return timing.ratio(times, "jaxclip", "Optax").value


def import_to_optax(times: timing.Times) -> float:
    return timing.beyond(times, "jaxclip", "Optax", "nothing").value


BIG = [  # the steps that have goals
    f"{tree}, {dtype}, {optimizer}"
    for tree in ("38 M", "GPT-2")
    for dtype in ("float32", "bfloat16")
    for optimizer in ("SGD", "AdamW")
]
WHOLE = {"steps": BIG, "import": ["import"]}
COMPILE = "trace and compilation / Optax's"
BLOCK_RMS = "optax.clip_by_block_rms"

OPTAX = "never slower than Optax"
GOALS = [
    Goal(
        "a static rule costs at most one more read of the tree",
        "(t - t of no rule) / t of the norm",
        1.2,
        of_jobs("steps", reads),
        8,
    ),
    *(
        Goal(
            f"{OPTAX}: {dtype}, {optimizer}",
            "t / t of Optax",
            most,
            of_jobs("steps", to_optax, dtype, optimizer),
            2,
        )
        for dtype, optimizer, most in (
            ("float32", "SGD", 1.0),
            ("float32", "AdamW", 0.85),
            ("bfloat16", "SGD", 0.65),
            ("bfloat16", "AdamW", 0.95),
        )
    ),
    Goal("clipping alone, written over", "t / t of PyTorch", 1.0, to_torch, 3),
    Goal(
        "telemetry is free",
        "t / t without; the rule's own record, `monitor` is another rule",
        1.02,
        against("telemetry", "nothing recorded", but="monitor as well, read"),
        6,
    ),
    Goal(
        "learned thresholds",
        "t / t of a static one",
        1.05,
        against("learned", "clip_by_global_norm"),
        5,
    ),
    Goal("one collective per update", "all-reduces on 8 devices", 1, all_reduces, 3),
    Goal(
        "adagc",
        "t / t of a static threshold",
        1.04,
        against("learned", "clip_by_global_norm", only=["adagc"]),
        1,
    ),
    Goal(
        "a norm for each of four groups",
        "t / t of one norm",
        1.02,
        against("groups", "clip_by_global_norm"),
        1,
    ),
    Goal(
        "scale_loss",
        "t / t without a guard",
        1.03,
        against("guards", "unguarded", only=["scale_loss"]),
        1,
    ),
    Goal(
        "a guard that does not look at the step",
        "t / t without a guard",
        1.05,
        against("guards", "unguarded", only=["skip_nonfinite, step unchecked"]),
        1,
    ),
    Goal("compile time, 100 and 300 leaves", COMPILE, 1.3, of_leaves("compile", 100, 300), 2),
    Goal("compile time, 1,000 leaves", COMPILE, 1.1, of_leaves("compile", 1000), 1),
    Goal(
        "compile time, a norm a leaf, 300 leaves",
        COMPILE,
        2.5,
        against("compile", BLOCK_RMS, only=["clip_by_norm", "clip_by_block_rms", "monitor"]),
        3,
    ),
    Goal(
        "compile time, a norm a unit, 300 leaves",
        COMPILE,
        2.5,
        against("compile", "optax.adaptive_grad_clip"),
        1,
    ),
    Goal(
        "compile time, adagc and project_max_norm, 300 leaves",
        "trace and compilation / those of optax.clip_by_block_rms",
        5.0,
        against("compile", BLOCK_RMS, only=["adagc", "project_max_norm"]),
        2,
    ),
    Goal("outside of jit, one norm", "t / t of Optax's", 1.5, of_leaves("eager", 20), 1),
    Goal("outside of jit, a norm a leaf", "t / t of Optax's", 2.0, against("eager", BLOCK_RMS), 1),
    Goal("outside of jit, elements", "t / t of Optax's", 2.0, against("eager", "optax.clip"), 1),
    Goal("import", "import / Optax's", 1.1, of_jobs("import", import_to_optax), 1),
    Goal("training program", "an epoch of `explode`", elsewhere="see [epoch.md](epoch.md)"),
    Goal(
        "a GPU: 80 % of what three passes over memory allow; no launch for each small leaf",
        "clipping GPT-2's tree",
        elsewhere="not measured: no GPU at hand",
    ),
]
