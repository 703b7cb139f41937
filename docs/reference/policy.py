"""The fields of a ReforkPolicy, from the schema that the API server checks them with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

CRD = Path(__file__).parents[2] / "helm" / "refork" / "files" / "reforkpolicy-crd.yaml"

_HEAD = """\
# ReforkPolicy

<!-- Written by `python -m docs.generate` from the schema of the CRD. Edit that. -->

A `ReforkPolicy` (`refork.dev/v1alpha1`, short name `rfp`) says when the pods of an application are reforked, and how
many at a time. What to write in one is told in [the operator](OPERATOR.md); this is every field. `kubectl explain
reforkpolicy.spec` says the same in a terminal.

Durations are like `90s`, `10m`, `1h30m`; sizes are bytes or quantities like `200Mi`.
"""

_TABLE = "| field | type | default | meaning |\n|---|---|---|---|\n"


def page() -> str:
    """Write the page."""
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    parts = version["schema"]["openAPIV3Schema"]["properties"]
    rules = "".join(f"- {rule}\n" for rule in _rules(parts["spec"]))
    return (
        f"{_HEAD}\n## spec\n\n{_TABLE}{''.join(_rows(parts['spec'], at=''))}"
        f"\n## What is refused\n\nBeyond types and limits:\n\n{rules}"
        f"\n## status\n\nThe operator writes it.\n\n| field | meaning | in it |\n|---|---|---|\n"
        f"{''.join(_groups(parts['status']))}"
    )


def _rows(schema: dict[str, Any], *, at: str) -> Iterator[str]:
    needed = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        path = f"{at}{name}"
        default = _default(field["default"]) if "default" in field else "needed" if name in needed else ""
        yield f"| `{path}` | {_type(field)} | {default} | {' '.join(field.get('description', '').split())} |\n"
        yield from _rows(field, at=f"{path}.")
        yield from _rows(field.get("items", {}), at=f"{path}[].")


def _groups(schema: dict[str, Any]) -> Iterator[str]:
    """Tell the status group by group: what is in one is said by its names."""
    for name, field in schema["properties"].items():
        inner = ", ".join(f"`{each}`" for each in (field.get("items") or field).get("properties", ()))
        yield f"| `{name}` | {' '.join(field['description'].split())} | {inner} |\n"


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "items" in field:
        inner = field["items"]
        return f"list of {_type(inner)}" if "enum" in inner else f"list of {inner['type']}s"
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    return "time" if field.get("format") == "date-time" else str(field["type"])


def _default(value: object) -> str:
    if value == {}:
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _rules(schema: dict[str, Any]) -> Iterator[str]:
    """Find the sentences with which the API server refuses what has the right types and makes no sense."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield rule["message"]
    for inner in (*schema.get("properties", {}).values(), schema.get("items")):
        if inner:
            yield from _rules(inner)
