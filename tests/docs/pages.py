"""The pages as they lie there, and what is written in them."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """List every page of the repository, wherever it lies."""
    return tracked("*.md")


@cache
def tracked(*patterns: str) -> list[Path]:
    """List files that belong to the repository: those that git knows, or would if they were added."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in (ROOT / name for name in listed) if path.exists()]


def code(page: str, *kinds: str) -> list[str]:
    """Return the fenced blocks of these languages."""
    return [block for kind, block in _FENCED.findall(page) if kind in kinds]


def prose(page: str) -> str:
    """Return the page without its fenced blocks."""
    return _FENCED.sub("", page)
