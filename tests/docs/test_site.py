"""The site's API reference has every public name once, under a name that users import."""

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

import jaxclip

API = Path(__file__).parents[2] / "docs" / "api"
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
    text = "\n".join(path.read_text() for path in API.glob("*.md"))
    shown = Counter(re.findall(r"^::: (\S+)$", text, re.M))
    overviews = {f"jaxclip.{module}" for module in MODULES} | {"jaxclip._core.types"}
    assert set(shown) - overviews == public()
    assert set(shown.values()) == {1}
