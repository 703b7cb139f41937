"""What an API server does with a custom resource: prune, fill in defaults, check against schema and CEL rules.

It refuses in the words of Kubernetes 1.36.
"""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import celpy
import celpy.celtypes

if TYPE_CHECKING:
    from collections.abc import Iterator

Schema = dict[str, Any]


def admit(raw: dict[str, Any], schema: Schema) -> list[str]:
    """Prune and default an object in place; return everything that is wrong with it."""
    _default(raw, schema)
    _prune(raw, schema, top=True)
    return list(_faults(raw, schema, path=""))


def _default(value: Any, schema: Schema) -> None:
    if isinstance(value, dict):
        for name, inner in (schema.get("properties") or {}).items():
            if name in value and value[name] is None and not inner.get("nullable"):
                del value[name]
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                _default(value[name], inner)
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            _default(item, schema["items"])


def _prune(value: Any, schema: Schema, *, top: bool = False) -> None:
    if isinstance(value, dict) and "properties" in schema:
        for name in list(value):
            if name not in schema["properties"]:
                del value[name]
            elif not (top and name == "metadata"):
                _prune(value[name], schema["properties"][name])
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            _prune(item, schema["items"])


_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array"}


def _faults(value: Any, schema: Schema, *, path: str) -> Iterator[str]:
    wrong = _wrong_type(value, schema)
    if wrong:
        yield f'{path}: Invalid value: "{_NAMES[type(value)]}": {path} in body must be of type {wrong}'
        return
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(map(json.dumps, schema["enum"]))
        yield f"{path}: Unsupported value: {json.dumps(value)}: supported values: {supported}"
    match value:
        case str():
            yield from _faults_of_text(value, schema, path=path)
        case int() | float():
            yield from _faults_of_number(value, schema, path=path)
        case dict():
            yield from _faults_of_object(value, schema, path=path)
        case list():
            yield from _faults_of_list(value, schema, path=path)
    for rule in schema.get("x-kubernetes-validations") or ():
        if not _holds(rule["rule"], value):
            yield f"{path}: Invalid value: {json.dumps(value)}: {rule['message']}"


def _wrong_type(value: Any, schema: Schema) -> str:
    """Say which types a value should have; nothing if it has one of them."""
    kinds = ["integer", "string"] if schema.get("x-kubernetes-int-or-string") else [schema.get("type")]
    found = ["boolean"] if isinstance(value, bool) else [name for name in _TYPES if isinstance(value, _TYPES[name])]
    return "" if kinds == [None] or set(kinds) & set(found) else ",".join(map(str, kinds))


def _faults_of_text(value: str, schema: Schema, *, path: str) -> Iterator[str]:
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: Invalid value: {json.dumps(value)}: {path} in body should match '{schema['pattern']}'"
    if len(value) > schema.get("maxLength", len(value)):
        yield f"{path}: Too long: may not be more than {schema['maxLength']} bytes"
    if len(value) < schema.get("minLength", 0):
        least = schema["minLength"]
        yield f"{path}: Invalid value: {json.dumps(value)}: {path} in body should be at least {least} chars long"


def _faults_of_number(value: float, schema: Schema, *, path: str) -> Iterator[str]:
    for name, words in (("minimum", "greater"), ("maximum", "less")):
        bound = schema.get(name, value)
        if (value < bound) if name == "minimum" else (value > bound):
            yield f"{path}: Invalid value: {value}: {path} in body should be {words} than or equal to {bound}"


def _faults_of_object(value: dict[str, Any], schema: Schema, *, path: str) -> Iterator[str]:
    within = f"{path}." if path else ""
    for name in schema.get("required") or ():
        if name not in value:
            yield f"{within}{name}: Required value"
    if len(value) > schema.get("maxProperties", len(value)):
        yield f"{path}: Too many: {len(value)}: must have at most {schema['maxProperties']} items"
    for name, inner in value.items():
        found = (schema.get("properties") or {}).get(name) or schema.get("additionalProperties")
        if isinstance(found, dict):
            yield from _faults(inner, found, path=f"{within}{name}")


def _faults_of_list(value: list[Any], schema: Schema, *, path: str) -> Iterator[str]:
    if len(value) > schema.get("maxItems", len(value)):
        yield f"{path}: Too many: {len(value)}: must have at most {schema['maxItems']} items"
    if len(value) < schema.get("minItems", 0):
        least = schema["minItems"]
        yield f"{path}: Invalid value: {len(value)}: {path} in body should have at least {least} items"
    for number, inner in enumerate(value):
        yield from _faults(inner, schema.get("items") or {}, path=f"{path}[{number}]")


def _holds(rule: str, value: Any) -> bool:
    environment = celpy.Environment()
    program = environment.program(environment.compile(rule))
    try:
        return bool(program.evaluate({"self": celpy.json_to_cel(value)}))
    except celpy.CELEvalError:
        return False
