"""The code of each page of the documentation runs alone, in order, as its comments say."""

import re
from pathlib import Path

import pytest

from tests.support import modes

DOCS = Path(__file__).parents[2] / "docs"
OTHERS = ("devices", "architecture")  # with tests of their own
PAGES = [p.stem for p in DOCS.glob("*.md") if "```python" in p.read_text() and p.stem not in OTHERS]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not beside the tests")
def test_code_runs(page, capsys):
    text = (DOCS / f"{page}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    names = {}
    with modes.relaxed():
        for block in blocks:
            exec(compile(block, f"{page}.md", "exec"), names)
    printed = capsys.readouterr().out
    promised = re.findall(r"# ([\d.]+)$|# .* a factor of ([\d.]+) a layer", text, re.M)
    for number in map("".join, promised):
        assert number in printed, number
