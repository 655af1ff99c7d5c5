"""The sections of the benchmark of speed, and their jobs, each in a process of its own.

A new process starts with fresh memory and a controlled environment, on the CPU. The environment
keeps freed memory mapped; else each step would map its temporaries anew, which takes longer than
clipping. One job also runs without this setting, as users do.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxclip.train.errors import first_line

KEPT_MAPPED = {  # for glibc; others do not know these names
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_ARENA_MAX": "1",
}
PLAIN = ", memory not kept mapped"  # ends the name of the job without this setting
ON_CPU = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "CUDA_VISIBLE_DEVICES": "",
}
FAST = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
DTYPES = ("float32", "bfloat16", "float16")
STEPS = [
    *(f"{t}, {d}, {o}" for t in ("38 M", "GPT-2") for d in DTYPES[:2] for o in ("SGD", "AdamW")),
    "38 M, float32, momentum",
    "38 M, float16, SGD",
    "38 M, bfloat16, SGD, gradients given",
    "ResNet-50, float32, momentum",
    "1000 leaves, float32, SGD, gradients given",  # products of so many compile for minutes
    f"38 M, float32, SGD{PLAIN}",
]


class Section(NamedTuple):
    """A group of measurements.

    Attributes:
        title: the heading of its table.
        measure: module and name of the function `(job, smoke) -> numbers for JSON`.
        jobs: the names of its measurements; each runs in a process of its own.
        smoke: the number of jobs, from the first, in a smoke run.
        environment: additional variables of the processes.
    """

    title: str
    measure: str
    jobs: list[str]
    smoke: int = 1
    environment: dict[str, str] = KEPT_MAPPED


SECTIONS = {
    "steps": Section("A train step", "step_timings.steps", STEPS, smoke=2),
    "alone": Section("Clipping alone", "clipping_alone.alone", [f"GPT-2, {d}" for d in DTYPES]),
    "telemetry": Section(
        "What recording costs",
        "step_timings.telemetry",
        ["38 M, float32, SGD", "38 M, float32, AdamW"],
    ),
    "learned": Section("Learned thresholds", "step_timings.learned", ["38 M, float32, SGD"]),
    "groups": Section("Groups", "step_timings.groups", ["38 M, float32, SGD"]),
    "guards": Section("Guards", "step_timings.guards", ["38 M, float32, AdamW"]),
    "compile": Section(
        "Trace and compilation",
        "compilation.compiled",
        [
            *(f"one norm, {leaves} leaves" for leaves in (100, 300, 1000)),
            "a norm a leaf, 300 leaves",
            "a norm a unit, 300 leaves",
        ],
    ),
    "eager": Section(
        "Outside of jit",
        "compilation.eager",
        [f"{rules}, 20 leaves" for rules in ("one norm", "a norm a leaf", "elements")],
    ),
    "import": Section("Import", "compiled_programs.imported", ["import"]),
    "memory": Section(
        "Memory",
        "compiled_programs.memory",
        [f"38 M, {variant}" for variant in ("jaxclip", "Optax", "none")],
    ),
    "collectives": Section(
        "Collectives on eight devices",
        "compiled_programs.collectives",
        [f"{leaves} leaves" for leaves in (1, 50, 500)],
        environment=EIGHT,
    ),
}


def jobs(name: str, smoke: bool) -> list[str]:
    """Returns the names of a section's jobs."""
    section = SECTIONS[name]
    return section.jobs[: section.smoke] if smoke else section.jobs


def environment(section: Section, job: str) -> dict[str, str]:
    """Returns the whole environment of a job's process."""
    ours = {name for part in (KEPT_MAPPED, EIGHT, ON_CPU) for name in part}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    needed = {} if job.endswith(PLAIN) else section.environment
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "3"} | ON_CPU | needed


def run(name: str, job: str, smoke: bool) -> dict[str, Any]:
    """Runs a job in a new process; returns its numbers, or the error under `failed`."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.speed.jobs", name, job, str(answer)]
        done = subprocess.run(
            [*command, *(["--smoke"] if smoke else [])],
            cwd=Path(__file__).parents[2],
            env=environment(SECTIONS[name], job),
            capture_output=True,
            text=True,
            errors="replace",
        )
        if answer.exists():
            result = json.loads(answer.read_text())
        else:
            last = done.stderr.strip().splitlines()[-1:]
            result = {"failed": " ".join([f"its process ended with {done.returncode}", *last])}
    return result | {"took": time.perf_counter() - start}


def main() -> None:
    """The program of a job's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("section")
    parser.add_argument("job")
    parser.add_argument("answer", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:  # its times say nothing, so XLA compiles as fast as it can
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST}"
    module, function = SECTIONS[options.section].measure.split(".")
    try:
        measure: Callable[..., Any] = getattr(
            importlib.import_module(f"benchmarks.speed.{module}"), function
        )
        result = measure(options.job, options.smoke)
    except Exception as error:
        result = {"failed": f"{type(error).__name__}: {first_line(error)}"}
    part = options.answer.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.rename(options.answer)


if __name__ == "__main__":
    main()
