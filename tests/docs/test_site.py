"""The site's API reference has every public name once, under a name that users import."""

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

import jaxclip

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "api"
MODULES = [n for n in jaxclip.__all__ if inspect.ismodule(getattr(jaxclip, n))]
pytestmark = pytest.mark.skipif(not API.exists(), reason="docs/ is not beside the tests")


def thing(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def public():
    """The public names; those of a module only where `jaxclip` itself does not have the same."""
    top = {f"jaxclip.{n}" for n in jaxclip.__all__ if n not in MODULES}
    inside = {f"jaxclip.{m}.{n}" for m in MODULES for n in getattr(jaxclip, m).__all__}
    known = [thing(name) for name in top]
    return top | {name for name in inside if not any(thing(name) is x for x in known)}


def test_reference_has_every_public_name_once():
    overviews = {f"jaxclip.{module}" for module in MODULES} | {"jaxclip._core.types"}
    shown = Counter()
    for path in API.glob("*.md"):
        for name, options in re.findall(r"^::: (\S+)\n((?: +.*\n)*)", path.read_text(), re.M):
            heading = re.search(r" heading: (\S+)", options)
            shown[heading[1] if heading else name] += 1
            # The reader of the source takes a module before a function of the same name.
            file = ROOT / f"{name.replace('.', '/')}.py"
            assert name in overviews or not file.exists(), name
    assert set(shown) - overviews == public()
    assert set(shown.values()) == {1}
