"""Hooks of mkdocs.yml: pages from outside of docs/, their links, and formulas without scripts."""

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
OUTSIDE += sorted(f"notebooks/{path.name}" for path in ROOT.glob("notebooks/*.ipynb"))
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)\s#]+)")
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
# As a superscript it is drawn too high.
PRIME = re.compile(r"<msup>(<mi>.</mi>)<mi>&#x02032;</mi></msup>")


@event_priority(100)  # before the plugin of notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not stand in docs/."""
    for name in OUTSIDE:
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns links between files of the repository into links between pages."""
    own = page.file.src_uri
    folder = posixpath.dirname(own if own in OUTSIDE else f"docs/{own}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1])).removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(own) or ".")

    parts = FENCE.split(markdown)
    return "".join(p if p.startswith("```") else LINK.sub(moved, p) for p in parts)


def on_page_content(content: str, **_: object) -> str:
    """Turns TeX into MathML, which browsers draw by themselves."""

    def drawn(formula: re.Match[str]) -> str:
        tag, tex = formula.groups()
        drawing = convert(html.unescape(tex), display="block" if tag == "div" else "inline")
        drawing = PRIME.sub(r'\1<mo lspace="0" rspace="0">&#x02032;</mo>', drawing)
        return f'<{tag} class="formula">{drawing}</{tag}>'

    return FORMULA.sub(drawn, content)
