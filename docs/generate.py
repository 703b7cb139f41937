"""Writes what the code knows better than any page: ``python -m docs.generate``.

A test fails when a file is not what this would write.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docs.reference import metrics, operator_options, picture, policy, settings

DOCS = Path(__file__).parent


def written() -> dict[Path, str]:
    """Return every generated file with its content."""
    readme = (DOCS.parent / "README.md").read_text()
    return {
        DOCS / "SETTINGS.md": settings.page(),
        DOCS / "METRICS.md": metrics.filled_in((DOCS / "METRICS.md").read_text()),
        DOCS / "POLICY.md": policy.page(),
        DOCS / "OPERATOR_OPTIONS.md": operator_options.page(),
        DOCS / "images" / "before-after.svg": picture.drawing(readme),
    }


if __name__ == "__main__":
    for path, content in written().items():
        path.write_text(content)
        sys.stdout.write(f"{path}\n")
