"""The site is built from the pages with nothing missing, and asks nobody but its own server for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import ROOT, tracked

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install --group docs")
pytestmark = pytest.mark.xdist_group("docs")  # the site is built once

HERE = "https://refork.dev/"


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site that a configuration describes, as strictly as `make docs`."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(site)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site once."""
    directory = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", directory)
    assert built.returncode == 0, built.stderr
    return directory


def test_every_page_has_its_place_and_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    """Strictly built: a page beside the navigation, a broken link or a broken anchor would have failed it."""
    assert (site / "index.html").exists()
    assert (site / "search" / "search_index.json").exists()


def test_what_is_broken_fails_the_build(tmp_path: Path) -> None:
    """The settings that make it strict are on: each kind of fault is named, and ends the build."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Broken\n\n[a](NOWHERE.md) [b](index.md#nowhere) [c](/index.md)\n")
    (docs / "FORGOTTEN.md").write_text("# In no navigation\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT}/mkdocs.yml\ndocs_dir: {docs}\nnav: [index.md]\nhooks: []\nextra_css: []\n")
    built = build(config, tmp_path / "site")
    assert built.returncode == 1
    for fault in ("'NOWHERE.md'", "'index.md#nowhere'", "absolute link '/index.md'", "FORGOTTEN.md"):
        assert fault in built.stderr


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No font, no script, no picture: whoever reads here is known to nobody else."""
    loads = re.compile(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* rel="(?:stylesheet|preconnect)"[^>]*>')
    for page in site.rglob("*.html"):
        for found in loads.finditer(page.read_text()):
            assert "//" not in found[0].replace(HERE, ""), f"{page.name}: {found[0]}"


def test_what_points_to_the_site_finds_its_page(site: Path) -> None:
    """Alerts name their runbook, and logs and charts their page: all of them are there."""
    pointer = re.compile(re.escape(HERE) + r"([\w./-]*)(#[\w-]+)?")
    for path in tracked("*.py", "*.yaml", "*.yml", "*.md", "*.txt", "*.tpl", "*.json"):
        if path.is_relative_to(ROOT / "tests"):
            continue
        for place, anchor in pointer.findall(path.read_text()):
            page = site / place.strip(".") / "index.html"
            assert page.exists(), f"{path.relative_to(ROOT)} names {HERE}{place}"
            assert not anchor or f'id="{anchor[1:]}"' in page.read_text(), f"{path.relative_to(ROOT)}: {anchor}"


def test_drawings_take_the_colours_of_the_page(site: Path) -> None:
    """They are part of it, so that they follow the reader's choice of light or dark, and each has a text."""
    everything = "".join(page.read_text() for page in site.rglob("*.html"))
    drawn = re.findall(r'<svg class="drawing"[^>]*>', everything)
    assert len(drawn) >= len(list((ROOT / "docs" / "images").glob("*.svg")))
    assert all(re.search(r'aria-label="[^"]{20,}"', figure) for figure in drawn)


def test_the_pages_of_the_root_are_on_the_site_and_edited_where_they_are(site: Path) -> None:
    """README is its first page and the changelog one of the others; their links are those of the site."""
    first = (site / "index.html").read_text()
    assert "https://github.com/refork/refork/edit/main/README.md" in first
    assert 'href="REFORKING/"' in first
    assert "https://github.com/refork/refork/edit/main/CHANGELOG.md" in (site / "CHANGELOG" / "index.html").read_text()
