"""The README's code runs and prints what it says, and its table of Optax beside jaxclip is true."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxclip
from tests.support import modes

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not beside the tests")


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_python_blocks_run_in_order(capsys):
    names = {}
    with modes.relaxed():  # as in a user's session
        for block in _blocks("python"):
            exec(compile(block, "README.md", "exec"), names)
    (promised,) = _blocks("text")
    printed = capsys.readouterr().out.splitlines()
    for line, said in zip(printed, promised.splitlines(), strict=True):
        name, number = line.split()
        assert name == said.split()[0]
        assert float(number) == pytest.approx(float(said.split()[1]), rel=1e-6)


def test_names_every_public_function():
    text = README.read_text()
    functions = [n for n in jaxclip.__all__ if inspect.isfunction(getattr(jaxclip, n))]
    assert [name for name in functions if f"{name}(" not in text] == []


def test_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1000


def _clipped(library, tree):
    tx = library.clip_by_global_norm(1.0)
    return tx.update(tree, tx.init(tree))


def _norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.float64(x))) for x in jax.tree.leaves(tree)))


def _sharded(library):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    update = jax.shard_map(
        lambda g: _clipped(library, g)[0], mesh=mesh, in_specs=P("x"), out_specs=P("x")
    )
    return _norm(jax.jit(update)(jnp.ones(8)))


@pytest.mark.slow
@pytest.mark.relaxed
def test_table_of_optax_beside_jaxclip():
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", README.read_text(), re.M)
    says = {row[0]: [cell.strip("`") for cell in row[1:]] for row in rows}
    wide, narrow = says["`[1e20, 1]` in float32"], says["`[300, 400]` in float16"]
    many = says["1,000 bfloat16 leaves of ones: norm after clipping"]
    sharded = says["ones on 8 devices in `shard_map`: norm after clipping"]
    for i, library in enumerate((optax, jaxclip)):
        for said, given in ((wide, jnp.array([1e20, 1])), (narrow, jnp.float16([300, 400]))):
            found = np.float64(_clipped(library, given)[0])
            np.testing.assert_allclose(found, eval(said[i]), rtol=1e-3)
        ones = [jnp.ones(1, jnp.bfloat16)] * 1000
        assert f"{_norm(_clipped(library, ones)[0]):.2f}" == many[i]
        assert f"{_sharded(library):.2f}" == sharded[i]
    bad = {"w": jnp.array([3.0, jnp.nan]), "b": jnp.array([4.0])}
    assert np.isnan(_clipped(optax, bad)[0]["b"]).all()
    found, state = _clipped(jaxclip, bad)
    assert found["b"] == 4
    assert state.nonfinite_count == 1
