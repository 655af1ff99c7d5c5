"""The code of docs/weights.md runs."""

import re
from pathlib import Path

import pytest

from tests.support import modes

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")
def test_code_of_the_page_runs():
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) > 5
    with modes.relaxed():
        for block in blocks:
            exec(compile(block, "weights.md", "exec"), names)
