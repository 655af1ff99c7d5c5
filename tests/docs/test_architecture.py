"""The architecture: the table of layers on its page holds for the imports, and its example runs.

So does its list of the files that an update goes through.
"""

import ast
import functools
import itertools
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxclip

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
PACKAGE = Path(jaxclip.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
TRAIN = ["cli", "commands", "reporting", "recording", "training", "config", "data"]
TRAIN += ["errors", "signals", "words"]
needs_page = pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not beside the tests")


def layers():
    """The names in each row of the table under "Layers", from top to bottom."""
    section = PAGE.read_text().split("\n## Layers\n")[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [[name.strip("/") for name in re.findall(r"`([^`]+)`", cell)] for cell in first]


def module_file(module):
    """The file of a dotted name below `jaxclip`, or of the module that has it as an attribute."""
    parts = module.split(".")[1:]
    for end in range(len(parts), -1, -1):
        path = "/".join(parts[:end])
        for file in (f"{path}.py", f"{path}/__init__.py".lstrip("/")):
            if file in FILES:
                return file
    raise AssertionError(module)


def for_types_alone(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node):
    for child in ast.iter_child_nodes(node):
        if not for_types_alone(child):
            yield child
            yield from statements(child)


@functools.cache
def imported(file):
    """The files of the package that a file imports, anywhere in it."""
    found = set()
    for node in statements(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module_file(name) for name in found if name.split(".")[0] == "jaxclip"} - {file}


def layer_of(file, names):
    """The name in the table that a file belongs to: its own path, or the longest folder of it."""
    path = file.removesuffix(".py")
    path = path.removesuffix("/__init__")
    owners = [name for name in names if path == name or path.startswith(f"{name}/")]
    return max(owners, key=len, default=None)


@needs_page
def test_every_file_is_in_a_layer():
    names = [name for row in layers() for name in row]
    assert len(set(names)) == len(names)
    files = [file for file in FILES if imported(file) or not file.endswith("/__init__.py")]
    assert [file for file in files if layer_of(file, names) is None] == []
    assert set(names) == {layer_of(file, names) for file in files}


@needs_page
def test_imports_go_down():
    """A package imports itself and those in the rows below it."""
    level = {name: i for i, row in enumerate(layers()) for name in row}
    for file in FILES:
        upper = layer_of(file, level)
        for other in imported(file):
            lower = layer_of(other, level)
            assert upper == lower or level[upper] < level[lower], f"{file} imports {other}"


@needs_page
def test_layers_of_the_training_program():
    names = [name for row in layers() for name in row if name.startswith("train/")]
    order = [name.removeprefix("train/").split("/")[0] for name in names]
    assert [name for name in order if name in TRAIN] == TRAIN


def test_no_circle_between_files():
    done, open_files = set(), []

    def visit(file):
        assert file not in open_files, " -> ".join([*open_files[open_files.index(file) :], file])
        if file not in done:
            open_files.append(file)
            for other in sorted(imported(file)):
                visit(other)
            done.add(open_files.pop())

    for file in FILES:
        visit(file)


def test_top_level_is_small():
    """At most 15 modules and packages."""
    assert len({file.split("/")[0] for file in FILES}) <= 15


@pytest.mark.parametrize("file", FILES)
def test_file_has_at_most_300_lines(file):
    assert len((PACKAGE / file).read_text().splitlines()) <= 300


@pytest.fixture(scope="module")
def calls():
    """The functions of the package that one update of a small tree calls, in order."""
    tree, found = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, []
    rule = jaxclip.clip_by_global_norm(1.0)
    state = rule.init(tree)

    def profile(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in file.parents:
            found.append((file.relative_to(PACKAGE).as_posix(), frame.f_code.co_qualname))

    jax.clear_caches()
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        jax.make_jaxpr(rule.update)(tree, state)
    finally:
        sys.setprofile(before)
    return found


@needs_page
def test_an_update_goes_through_the_listed_files(calls):
    section = PAGE.read_text().split("\n## One update\n")[1].split("\nThese decisions")[0]
    listed = set(re.findall(r"`(\S+\.py)`", section)) - {"_core/record.py"}
    assert {file for file, _ in calls} == listed
    assert len(listed) == 7


def test_an_update_is_short_to_read(calls):
    """At most 50 functions, and 50 steps from one file to another."""
    assert len(set(calls)) <= 50
    assert sum(one[0] != other[0] for one, other in itertools.pairwise(calls)) <= 50


@needs_page
def test_example():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    names = {}
    exec(compile(code, "docs/architecture.md", "exec"), names)
    names["test_clip_by_mean"]()
