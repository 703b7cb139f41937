"""What the site does to pages that GitHub shows as they are.

The README and the changelog, at the root, and the READMEs of the charts exist once and are pages of the site. Links
lead where they lead on GitHub: to another page, or to a file of the repository. A drawing is a picture there, which
follows the system's preference for light or dark; here it becomes part of the page, and follows the reader's choice.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
MOVED_IN = {
    "index.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CHART_REFORK.md": "helm/refork/README.md",
    "CHART_REFORK_APP.md": "helm/refork-app/README.md",
}
"""Pages of the site that are files elsewhere in the repository."""

_TARGET = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")
_DRAWING = re.compile(r'<img alt="([^"]*)" src="[^"]*?images/([a-z-]+)\.svg" ?/?>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is outside of docs/."""
    for uri, name in MOVED_IN.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Let links to files outside of docs/ lead to their page, or to the repository."""
    return _TARGET.sub(lambda target: _here(target[1], page.file.src_uri, config), markdown)


def on_page_content(html: str, **_: object) -> str:
    """Put drawings into the page."""
    return _DRAWING.sub(_drawn, html)


def on_page_context(context: dict[str, object], page: Page, config: MkDocsConfig, **_: object) -> dict[str, object]:
    """Let the pages that were moved in be edited where they are."""
    if page.file.src_uri in MOVED_IN:
        page.edit_url = f"{config.repo_url}/edit/main/{MOVED_IN[page.file.src_uri]}"
    return context


def _here(target: str, uri: str, config: MkDocsConfig) -> str:
    """Translate a link as it is written in the repository into one of the site."""
    source = MOVED_IN.get(uri, f"docs/{uri}")
    path = normpath(join(dirname(source), target))
    pages = {name: moved for moved, name in MOVED_IN.items()}
    if path in pages:
        return relpath(pages[path], dirname(uri) or ".")
    if not path.startswith("docs/"):
        return f"{config.repo_url}/blob/main/{path}"
    return relpath(path.removeprefix("docs/"), dirname(uri) or ".")


def _drawn(image: re.Match[str]) -> str:
    text, name = image.groups()
    drawing = (ROOT / "docs" / "images" / f"{name}.svg").read_text()
    return drawing.replace("<svg ", f'<svg class="drawing" role="img" aria-label="{text}" ', 1)
