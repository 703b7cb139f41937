"""What an API server does with a custom resource: prune, fill in defaults, check against schema and CEL rules."""

from __future__ import annotations

import copy
import re
from typing import Any

import celpy
import celpy.celtypes

Schema = dict[str, Any]


def admit(raw: dict[str, Any], schema: Schema) -> list[str]:
    """Prune and default an object in place; return everything that is wrong with it."""
    _default(raw, schema)
    _prune(raw, schema, top=True)
    return list(_faults(raw, schema, path=""))


def _default(value: Any, schema: Schema) -> None:
    if isinstance(value, dict):
        for name, inner in (schema.get("properties") or {}).items():
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


def _faults(value: Any, schema: Schema, *, path: str) -> Any:
    either = schema.get("x-kubernetes-int-or-string")
    kind = schema.get("type")
    if either and not (isinstance(value, (int, str)) and not isinstance(value, bool)):
        yield f"{path}: must be an integer or a string"
        return
    if kind and (not isinstance(value, _TYPES[kind]) or (kind == "integer" and isinstance(value, bool))):
        yield f"{path}: must be of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is not one of {schema['enum']}"
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{path}: {value!r} does not match {schema['pattern']}"
        if len(value) > schema.get("maxLength", 1 << 30) or len(value) < schema.get("minLength", 0):
            yield f"{path}: has a wrong length"
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{path}: {value} is out of range"
    if isinstance(value, dict):
        for name in schema.get("required") or ():
            if name not in value:
                yield f"{path}.{name}: is required"
        if len(value) > schema.get("maxProperties", 1 << 30):
            yield f"{path}: has too many fields"
        for name, inner in value.items():
            found = (schema.get("properties") or {}).get(name) or schema.get("additionalProperties")
            if isinstance(found, dict):
                yield from _faults(inner, found, path=f"{path}.{name}")
    if isinstance(value, list):
        if len(value) > schema.get("maxItems", 1 << 30) or len(value) < schema.get("minItems", 0):
            yield f"{path}: has a wrong number of items"
        for number, inner in enumerate(value):
            yield from _faults(inner, schema.get("items") or {}, path=f"{path}[{number}]")
    for rule in schema.get("x-kubernetes-validations") or ():
        if not _holds(rule["rule"], value):
            yield f"{path}: {rule['message']}"


def _holds(rule: str, value: Any) -> bool:
    environment = celpy.Environment()
    program = environment.program(environment.compile(rule))
    try:
        return bool(program.evaluate({"self": celpy.json_to_cel(value)}))
    except celpy.CELEvalError:
        return False
