# ruff: noqa: INP001 - a script among charts, not a package
"""Writes the tables of values in the charts' READMEs, from the comments in values.yaml: ``python helm/readme.py``.

A comment belongs to the value right below it. Every value has one, or is part of a value that has one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
BEGIN = "<!-- Written by helm/readme.py from values.yaml. Edit that. -->\n"
END = "<!-- End of what helm/readme.py writes. -->\n"


def page(chart: Path) -> str:
    """Return the README of a chart with its table as it should be. Raises ValueError for a value without a comment."""
    before, _, rest = (chart / "README.md").read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table((chart / "values.yaml").read_text()) + END + after


def table(values: str) -> str:
    """Return a Markdown table of all values."""
    rows = _rows(yaml.compose(values, Loader=yaml.SafeLoader), yaml.safe_load(values), values.splitlines())
    return "".join(["\n| value | default | |\n|---|---|---|\n", *rows, "\n"])


def _rows(node: yaml.MappingNode, values: dict[str, Any], lines: list[str], prefix: str = "") -> Iterator[str]:
    for key, value in node.value:
        path, text = prefix + key.value, _comment(lines, key.start_mark.line)
        chosen = values[key.value]
        if _has_comments(value, lines):
            if text:
                yield f"| `{path}` | | {_cell(text)} |\n"
            yield from _rows(value, chosen, lines, f"{path}.")
        elif text:
            yield f"| `{path}` | `{_cell(json.dumps(chosen))}` | {_cell(text)} |\n"
        else:
            raise ValueError(f"values.yaml, line {key.start_mark.line + 1}: {path} needs a comment above it")


def _has_comments(node: yaml.Node, lines: list[str]) -> bool:
    """Tell whether parts of a value are explained one by one."""
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return False
    return any(_comment(lines, key.start_mark.line) or _has_comments(value, lines) for key, value in node.value)


def _comment(lines: list[str], number: int) -> str:
    """Return the comment that ends right above a line."""
    found: list[str] = []
    while number and lines[number - 1].lstrip().startswith("# "):
        number -= 1
        found.insert(0, lines[number].lstrip()[2:])
    return " ".join(found)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for each in sorted(path.parent for path in HERE.glob("*/Chart.yaml")):
        (each / "README.md").write_text(page(each))
        sys.stdout.write(f"{each / 'README.md'}\n")
