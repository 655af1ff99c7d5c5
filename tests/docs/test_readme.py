"""The README's code runs, and prints what its comments say."""

import inspect
import re
from pathlib import Path

import pytest

from tests.support import modes

README = Path(__file__).parents[2] / "README.md"


def blocks():
    if not README.exists():
        return []
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(not README.exists(), reason="the README is not beside the tests")
def test_python_blocks_run_in_order(capsys):
    names = {}
    with modes.relaxed():  # as in a user's session
        for block in blocks():
            exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    comments = [float(n) for n in re.findall(r"# \{.*?: ([\d.]+)\.\.\.", "\n".join(blocks()))]
    assert comments
    for number in comments:
        digits = str(number).rstrip("0")
        assert digits in printed, f"the README says {digits}, the code prints {printed}"


@pytest.mark.skipif(not README.exists(), reason="the README is not beside the tests")
def test_readme_names_every_public_function():
    import jaxclip

    text = README.read_text()
    functions = [n for n in jaxclip.__all__ if inspect.isfunction(getattr(jaxclip, n))]
    assert [name for name in functions if f"{name}(" not in text] == []
