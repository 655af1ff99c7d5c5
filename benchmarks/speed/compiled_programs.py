"""Times of import, in new processes that take turns; memory; numbers of collectives."""

import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from benchmarks.speed import model_shapes
from benchmarks.speed.train_step import LIMIT, OPTIMIZERS, Bench, compared

IMPORTS = 15
PEAK_STEPS = 3


def output(*arguments: str) -> str:
    """Returns the output of a new Python process."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout


def imported(job: str, smoke: bool) -> dict[str, Any]:
    """Times a Python process that does nothing, and processes that import a library."""
    programs = {"nothing": "pass", "Optax": "import optax", "jaxclip": "import jaxclip"}
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 if smoke else IMPORTS):
        for name, program in programs.items():
            start = time.perf_counter()
            output("-c", program)
            taken[name].append(time.perf_counter() - start)
    return {"times": taken}


def memory(job: str, smoke: bool) -> dict[str, Any]:
    """Returns the compiler's analysis of a variant's steps, and the peak memory of one step."""
    tree, variant = job.split(", ")
    shapes = model_shapes.tree(tree, smoke=smoke)
    rows = {}
    for dtype in ("float32", "bfloat16")[: 1 if smoke else 2]:
        for optimizer in ("SGD", "AdamW"):
            bench = Bench(shapes, jnp.dtype(dtype))
            program = bench.lowered(compared(optimizer)[variant]).compile()
            rows[f"{dtype}, {optimizer}"] = analysis(program, bench)
    return {"programs": rows, "peak_bytes": peak(Bench(shapes, jnp.float32), variant)}


def analysis(program: Any, bench: Bench) -> dict[str, float]:
    """Returns bytes, and the same in units of the parameters' size (`in_trees`)."""
    sizes, cost = program.memory_analysis(), program.cost_analysis()
    one = sum(map(math.prod, bench.tree.values())) * jnp.dtype(bench.dtype).itemsize
    known = {
        "temporaries": sizes.temp_size_in_bytes,
        "arguments": sizes.argument_size_in_bytes,
        "written_over": sizes.alias_size_in_bytes,
        "accessed": int(cost["bytes accessed"]),
    }
    return known | {"tree": one} | {f"{k}_in_trees": v / one for k, v in known.items()}


def peak(bench: Bench, variant: str) -> int | None:
    """Returns the peak memory of float32 AdamW steps; `None` if the system does not report it."""
    chain = compared("AdamW")[variant]
    bench.begin(chain)
    step = bench.step(variant, chain)
    step()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which includes the compiler
        for _ in range(PEAK_STEPS):
            step()
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def collectives(job: str, smoke: bool) -> dict[str, Any]:
    """Counts the all-reduces of an update on eight devices, with kernels sharded by rows."""
    from tests.support import collectives as counter

    rules = {
        "Optax": optax.clip_by_global_norm(LIMIT),
        "jaxclip": jaxclip.clip_by_global_norm(LIMIT),
    }
    leaves = int(job.split()[0])
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    found = {}
    with jax.set_mesh(mesh):
        grads = {f"{i:03d}": _sharded(mesh, vector=bool(i % 2)) for i in range(leaves)}
        for library, rule in rules.items():
            tx = optax.chain(rule, OPTIMIZERS["SGD"]())
            state = jax.jit(tx.init)(grads)
            found[library] = counter.count(lambda u, s, tx=tx: tx.update(u, s), grads, state)
    return {"collectives": found}


def _sharded(mesh: Any, *, vector: bool) -> jax.Array:
    x, spec = (jnp.ones(3), P()) if vector else (jnp.ones((8, 4)), P("data"))
    return jax.device_put(x, NamedSharding(mesh, spec))
