"""The goals of the benchmark of speed, from times of its jobs."""

import pytest

from benchmarks.speed import goals, jobs, report

EVEN = {"none": [1.0, 1.0], "norm": [0.2, 0.2], "Optax": [1.25, 1.25], "jaxclip": [1.2, 1.2]}


def _found(title, measured):
    (found,) = [v for v in goals.verdicts(measured) if v.goal.title.startswith(title)]
    return found


def test_goals():
    measured = {"steps": {job: {"times": EVEN} for job in goals.BIG}}
    measured["steps"]["38 M, float32, momentum"] = {"times": EVEN | {"jaxclip": [9.0, 9.0]}}
    within = _found("a static rule", measured)
    assert within.words == "reached"
    assert list(within.values.values()) == pytest.approx([1.0] * 8)
    assert _found("never slower than Optax: float32, SGD", measured).reached is True
    over = _found("never slower than Optax: bfloat16, SGD", measured)  # 0.96 against 0.65
    assert over.reached is False
    assert over.words == "not reached by 2 of 2, by up to 47.7 %"
    measured["steps"]["38 M, bfloat16, SGD"] = {"failed": "no memory"}
    assert _found("a static rule", measured).words == "reached; 1 of 8 not measured"
    assert _found("a static rule", measured).reached is None
    assert _found("clipping alone", measured).words == "not measured"
    assert _found("a GPU", measured).words == "not measured: no GPU at hand"
    assert "epoch.md" in _found("training program", measured).words


def test_goals_of_other_sections():
    times = {"nothing": [1.0], "Optax": [3.0], "jaxclip": [3.2], "PyTorch": [4.0]}
    measured = {
        "alone": {"GPT-2, float32": {"times": times}, "GPT-2, float16": {"times": EVEN}},
        "import": {"import": {"times": times}},
        "compile": {
            "one norm, 1000 leaves": {"times": {"Optax": [3.0], "jaxclip": [3.2]}},
            "a norm a leaf, 300 leaves": {
                "times": {"optax.clip_by_block_rms": [1.0], "adagc": [4.0], "monitor": [2.0]}
            },
        },
        "collectives": {"1 leaves": {"collectives": {"jaxclip": {"all-reduce": 2}}}},
        "telemetry": {"a": {"times": {"nothing recorded": [1.0], "recorded": [1.03]}}},
        "learned": {"a": {"times": {"clip_by_global_norm": [1.0], "zclip": [1.04]}}},
    }
    assert _found("clipping alone", measured).values == {"GPT-2, float32": 0.8}
    assert _found("import", measured).values == pytest.approx({"import": 1.1})
    (ratio,) = _found("compile time, 1,000", measured).values.values()
    assert ratio == pytest.approx(3.2 / 3)
    leaf = "a norm a leaf, 300 leaves"
    assert _found(f"compile time, {leaf}", measured).values == {f"{leaf}: monitor": 2.0}
    assert _found("compile time, adagc", measured).values == {f"{leaf}: adagc": 4.0}
    assert _found("one collective", measured).reached is False
    assert _found("telemetry", measured).values == {"a: recorded": 1.03}
    assert _found("learned", measured).values == {"a: zclip": 1.04}
    assert len(goals.verdicts({})) == len(goals.GOALS)


def test_goals_know_the_jobs():
    """The benchmark measures every goal's columns under the names that the goal looks for."""
    assert set(goals.BIG) <= set(jobs.STEPS)
    for section, names in goals.WHOLE.items():
        assert set(names) <= set(jobs.SECTIONS[section].jobs)
    assert set(report.TABLES) == set(jobs.SECTIONS)
