"""The page on how it is built: its table is how the files import, and its example runs."""

import ast
import re
from pathlib import Path

import pytest

import jaxclip

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
PACKAGE = Path(jaxclip.__file__).parent
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not beside the tests")


def rooms():
    """The names of the files in each room, from the top down."""
    rows = re.findall(r"^\| [\w ]+ \| (`[^|]*`) \|", PAGE.read_text(), re.M)
    return [re.findall(r"`([\w/]+)`", row) for row in rows][:6]


def imported(path):
    """The files of the core that a file imports, `thresholds/` for all in there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxclip":
            parts = node.module.split(".")[1:]
            yield from parts[:1] if parts else [alias.name for alias in node.names]


def test_imports_go_down():
    level = {name.strip("/"): i for i, room in enumerate(rooms()) for name in room}
    files = [p for p in PACKAGE.rglob("*.py") if "train" not in p.parts and p.stem != "__main__"]
    for path in files:
        inside = path.relative_to(PACKAGE).parts
        own = "thresholds" if inside[0] == "thresholds" else path.stem
        assert own in level, path
        for name in imported(path):
            assert level[name] >= level[own], f"{own} imports {name}"
    assert len(level) >= 30


def test_the_example():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    names = {}
    exec(compile(code, "docs/architecture.md", "exec"), names)
    names["test_clip_by_mean"]()
