"""The documentation: links lead somewhere, names exist, calls accept their arguments."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest

import jaxclip

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if (ROOT / "README.md").exists() else []
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
pytestmark = pytest.mark.skipif(not PAGES, reason="the documentation is not beside the tests")
BY_FILE = pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
MODULES = (jaxclip, jaxclip.projections, jaxclip.guards, jaxclip.norms, jaxclip.thresholds)


def cells(path, kind):
    """The cells of a notebook, as text."""
    notebook = json.loads(path.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def prose(path):
    """The prose, without blocks of code."""
    if path.suffix == ".ipynb":
        return "\n".join(cells(path, "markdown"))
    return re.sub(r"```.*?```", "", path.read_text(), flags=re.S)


def everything(path):
    return (
        prose(path) + "\n".join(cells(path, "code"))
        if path.suffix == ".ipynb"
        else path.read_text()
    )


def anchors(path):
    """The anchors of a page's headings, as the reader's site makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@BY_FILE
def test_links(path):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    for link in links:
        file, _, anchor = link.partition("#")
        if not re.match(r"\w+:", link):
            target = (path.parent / file) if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def resolved(name):
    """The object of a dotted name; raises if there is none."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:i]))
        found = getattr(found, part)
    return found


@BY_FILE
def test_names(path):
    """Every dotted name of the library that stands anywhere, in code too."""
    text = re.sub(r"^:::.*", "", everything(path), flags=re.M)  # test_site.py reads these lines
    for name in set(re.findall(r"\bjaxclip(?:\.[A-Za-z_]\w*)+", text)):
        if not name.endswith((".git", ".egg", ".ipynb", ".ci")):
            resolved(name)


def calls(text):
    """The calls in a text's inline code."""
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        try:
            tree = ast.parse(span, mode="eval")
        except SyntaxError:
            continue
        yield from ((span, node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def callee(node):
    """The object of the library that a call calls; `None` for others."""
    name = ast.unparse(node.func)
    if name.startswith("jaxclip."):
        return resolved(name)
    return next(
        (getattr(module, name) for module in MODULES if name in getattr(module, "__all__", ())),
        None,
    )


@BY_FILE
def test_calls(path):
    for span, node in calls(prose(path)):
        if (function := callee(node)) is None:
            continue
        given = [
            arg for arg in node.args if not (isinstance(arg, ast.Constant) and arg.value is ...)
        ]
        named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        try:
            inspect.signature(function).bind_partial(*given, **named)
        except TypeError as error:
            raise AssertionError(f"{span}: {error}") from error


def test_most_calls_are_checked():
    found = [callee(node) for path in PAGES for _, node in calls(prose(path))]
    assert len([function for function in found if function is not None]) > 80


@BY_FILE
def test_commands(path):
    """Modules that the text runs, files that it names."""
    text = everything(path)
    for module in set(re.findall(r"python (?:-W error )?-m ([\w.]+)", text)):
        assert importlib.util.find_spec(module) or module in ("build", "twine"), module
    for file in set(
        re.findall(r"`((?:jaxclip|tests|docs|benchmarks|notebooks|\.ci)/[\w./-]+)`", text)
    ):
        assert (ROOT / file).exists(), file


NOT_OURS = re.compile(r"/(?:home|root|work|tmp|Users)/")
FIRST = "find_spec"  # the first cell installs missing packages


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_executed(path):
    """They run from top to bottom without an error, are small, and hold their outputs."""
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert FIRST in "".join(code[0]["source"])
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert "stream" in kinds
    assert "error" not in kinds
    assert not NOT_OURS.search(json.dumps([cell["outputs"] for cell in code]))
    assert path.stat().st_size < 300_000


def test_number_of_notebooks():
    assert len(NOTEBOOKS) == 8
