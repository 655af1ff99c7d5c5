"""The workflow of a release: the README that goes to PyPI, where no file is beside it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
pytestmark = [
    pytest.mark.skipif(not WORKFLOW.exists(), reason="the workflow is not beside the tests"),
    pytest.mark.skipif(not shutil.which("bash"), reason="runs a line of bash"),
]


def test_links_of_the_readme_lead_to_the_files_at_the_tag(tmp_path):
    before = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(before)
    text = WORKFLOW.read_text()
    lines = re.findall(r"^ +((?:at=|sed -i).*)$", text, re.M)
    assert len(lines) == 2
    address = {"GITHUB_SERVER_URL": "https://host", "GITHUB_REPOSITORY": "owner/name"}
    subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "GITHUB_REF_NAME": "v9.9", **address},
        check=True,
    )
    after = (tmp_path / "README.md").read_text()
    was, now = (re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", x) for x in (before, after))
    assert len(was) == len(now) > 30
    for (image, link), (_, found) in zip(was, now, strict=True):
        kind = "raw" if image else "blob"
        assert found == (link if ":" in link else f"https://host/owner/name/{kind}/v9.9/{link}")
    assert re.sub(r"\([^)\s]+\)", "", before) == re.sub(r"\([^)\s]+\)", "", after)
