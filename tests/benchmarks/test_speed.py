"""The speed benchmark in its short form: its programs are comparable, its arithmetic is right."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxclip

pytest.importorskip("benchmarks", reason="the benchmarks are in a checkout only")
pytest.importorskip("rich")

from benchmarks import __main__ as program
from benchmarks import report_files as written
from benchmarks.speed import equivalence as checked
from benchmarks.speed import goals, jobs, report
from benchmarks.speed import model_shapes as trees
from benchmarks.speed import step_timings as sections
from benchmarks.speed import timing as clock
from benchmarks.speed import train_step as steps

pytestmark = pytest.mark.relaxed

ROOT = Path(program.__file__).parents[1]
EVEN = {"none": [1.0, 1.0], "norm": [0.2, 0.2], "Optax": [1.25, 1.25], "jaxclip": [1.2, 1.2]}
EVEN |= {"least": [1.2, 1.2]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "leaves", "size"),
    [
        ("GPT-2", 148, 124_439_808),
        ("38 M", 100, 38_032_384),
        ("ResNet-50", 161, 25_557_032),
        ("1000 leaves", 1000, 500 * 1000 + 500 * 31 * 33),
    ],
)
def test_trees(name, leaves, size):
    tree = trees.tree(name)
    assert len(tree) == leaves
    assert sum(map(math.prod, tree.values())) == size
    assert sum(map(math.prod, trees.tree(name, smoke=True).values())) < 400_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "optimizer"),  # in float16 AdamW's moments underflow
    [("bfloat16", "AdamW"), ("float32", "momentum"), ("float16", "SGD")],
)
def test_variants_do_the_same(dtype, optimizer):
    bench, variants, programs = _steps(dtype, optimizer)
    found = checked.check(bench, variants, programs)
    assert found["from_optax"] < found["from_unclipped"]


def _steps(dtype, optimizer, **instead):
    bench = steps.Bench(trees.tree("38 M", smoke=True), jnp.dtype(dtype))
    variants = steps.compared(optimizer) | instead
    return bench, variants, {name: bench.step(name, v) for name, v in variants.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("jaxclip", jaxclip.clip_by_global_norm(0.9)),
        ("none", optax.clip_by_global_norm(1.0)),
    ],
)
def test_differing_variants_are_reported(name, rule):
    wrong = _steps("float32", "SGD", **{name: steps.chained(rule, "SGD")})
    with pytest.raises(AssertionError, match=r"from_optax.*from_unclipped"):
        checked.check(*wrong)


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_a_step_is_that_of_its_chain(given):
    tree = trees.tree("38 M", smoke=True)
    bench = steps.Bench(tree, jnp.float32, given=given)
    chain = steps.chained(jaxclip.clip_by_global_norm(1.0), "AdamW", read=True)
    bench.begin(chain)
    step = bench.step("it", chain)
    records = [step() for _ in range(2)]
    params = steps.zeros(tree, jnp.float32)
    grads, state = steps.products(tree, steps.factors(tree, jnp.float32)), chain.tx.init(params)
    for record in records:
        updates, state = chain.tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert record["clip_by_global_norm/count"] == state[0].update_count
    assert checked.apart(bench.params, params) < 1e-4
    assert checked.apart(bench.inner, state[-1]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", list(sections.LEARNED))
def test_memories_are_full(name):
    tree = trees.tree("38 M", smoke=True)
    build, updates = sections.LEARNED[name]
    state = sections.filled(build(), tree, jnp.float32, updates)
    assert state.update_count == updates
    assert jax.tree.structure(state) == jax.tree.structure(build().init(steps.zeros(tree, "f4")))
    rings = [m for m in state.memory if hasattr(m, "filled")]
    for ring in rings:
        assert ring.filled == min(updates, ring.observations.shape[0]) == ring.observations.shape[0]


def test_ratios():
    times = {"a": [1.0, 2.0, 9.0], "b": [2.0, 2.0, 3.0], "n": [1.0, 1.0, 1.0]}
    assert clock.ratio(times, "a", "b") == (1.0, 0.75, 2.0)
    assert clock.reads(times, "b", "a", "n").value == 0.0
    assert clock.reads(EVEN, "Optax").value == pytest.approx(1.25)
    assert clock.beyond({k: v[:1] for k, v in times.items()}, "b", "b", "n") == (1.0, 1.0, 1.0)
    seen = []
    programs = {name: lambda name=name: seen.append(name) for name in "ab"}
    taken = clock.interleaved(programs, 2, lambda name: seen.append(f"before {name}"))
    assert seen == ["before a", "a", "before b", "b"] * (2 + clock.WARM_UP)
    assert {name: len(t) for name, t in taken.items()} == {"a": 2, "b": 2}
    taken = clock.interleaved(programs, clock.LEAST + 1, seconds=0.0)
    assert {name: len(t) for name, t in taken.items()} == {"a": clock.LEAST, "b": clock.LEAST}


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.1, 10.0])
def test_the_least_rule_clips(size):
    grads = {"a": jnp.full((3, 4), size), "b": jnp.full(5, -size)}
    (ours, _), (theirs, _) = (
        tx.update(grads, tx.init(grads))
        for tx in (sections.least(), optax.clip_by_global_norm(steps.LIMIT))
    )
    assert checked.apart(ours, theirs) < 1e-6


def test_report_names_missing_peers_and_failed_jobs():
    times = {name: EVEN[name] for name in ("Optax", "jaxclip")}
    measured = {
        "alone": {"GPT-2, float32": {"times": times, "missing": ["PyTorch"]}},
        "guards": {"38 M, float32, AdamW": {"failed": "no memory"}},
    }
    measured["steps"] = {"1000 leaves": {"times": {k: v for k, v in EVEN.items() if k != "least"}}}
    text = report.markdown(measured)
    assert "| 1.2e+03 |  | 200 | 0.96 (0.96 to 0.96) |  |  | 1.00" in text
    assert "| GPT-2, float32 | 1.2e+03 | 1.25e+03 | missing | missing | 0.96" in text
    assert "| 38 M, float32, AdamW | no memory |" in text


def test_text_outside_the_markers_is_kept(tmp_path):
    path = tmp_path / "speed.md"
    path.write_text("By hand.\n<!-- tables: begin -->\nout of date\n<!-- tables: end -->\nToo.\n")
    measured = {"steps": {job: {"times": EVEN} for job in goals.BIG}}
    known = written.known("python -m benchmarks", ("jax", "nowhere"))
    assert known["versions"] == {"jaxclip": jaxclip.__version__, "jax": jax.__version__}
    content = known | {"seconds": 1.0, "load_before": 0.5, "smoke": False, "sections": measured}
    written.write(tmp_path, "speed", content, program.text(content))
    text = path.read_text()
    assert text.startswith("By hand.\n")
    assert text.endswith("Too.\n")
    assert "out of date" not in text
    assert "| GPT-2, bfloat16, AdamW |" in text
    assert json.loads((tmp_path / "speed.json").read_text())["sections"] == measured


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "steps,speed"], "--only=steps,speed: no section speed; there are steps, "),
        (["--smoke", "--out", "file"], "--out=file: cannot be written to"),
        (["--data-dir", "x"], "unrecognized arguments: --data-dir x"),
    ],
)
def test_errors_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert program.main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


@pytest.mark.parametrize("arguments", [["--smoke"], ["--only", "import"]])
@pytest.mark.slow
def test_partial_run_does_not_overwrite_the_report(arguments, tmp_path, monkeypatch, capsys):
    failed = {"failed": "not today", "took": 0.0}
    monkeypatch.setattr(jobs, "run", lambda *job: failed)
    monkeypatch.chdir(tmp_path)
    assert program.main(arguments) == 1
    assert "not measured: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_environments(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    monkeypatch.setenv("XLA_FLAGS", "--nonsense")
    *_, plain = jobs.STEPS
    assert jobs.environment(jobs.SECTIONS["steps"], jobs.STEPS[0])["MALLOC_ARENA_MAX"] == "1"
    assert not {"MALLOC_ARENA_MAX", "XLA_FLAGS"} & set(
        jobs.environment(jobs.SECTIONS["steps"], plain)
    )
    assert jobs.environment(jobs.SECTIONS["collectives"], "")["XLA_FLAGS"].endswith("=8")


@pytest.mark.slow
def test_failed_job_reports_its_reason():
    assert jobs.run("steps", "Moon, float32, SGD", True)["failed"] == "KeyError: 'Moon'"


@pytest.mark.slow
def test_smoke(tmp_path):
    """Every section, from the command line, in separate processes."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["command"] == "python -m benchmarks --smoke"
    assert content["sections"].keys() == jobs.SECTIONS.keys()
    for name, results in content["sections"].items():
        assert list(results) == jobs.jobs(name, True)
        for result in results.values():
            assert all(min(times) > 0 for times in result.get("times", {}).values())
    assert content["sections"]["collectives"]["1 leaves"]["collectives"]["jaxclip"] == {
        "all-reduce": 1
    }
    text = (tmp_path / "speed.md").read_text()
    assert "A smoke run" in text
    assert all(f"## {section.title}" in text for section in jobs.SECTIONS.values())
