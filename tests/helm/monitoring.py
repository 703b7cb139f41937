"""The part of the Prometheus operator's API (monitoring.coreos.com/v1) that the charts use, strictly.

Its CRDs are nowhere among the packages that the tests install. So what is here is short: the fields that the charts
write, as https://prometheus-operator.dev/docs/api-reference/api/ describes them. Whoever uses another adds it.
"""

from __future__ import annotations

from typing import Any

type Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_DURATION: Schema = {"type": "string", "pattern": r"^(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"}
_LABEL: Schema = {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def _map(key: str = ".", value: Schema = _TEXT) -> Schema:
    return {"type": "object", "propertyNames": {"pattern": key}, "additionalProperties": value}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _kind(name: str, spec: Schema) -> Schema:
    metadata = _object(["name"], name=_TEXT, namespace=_TEXT, labels=_map(), annotations=_map())
    return _object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind={"const": name},
        metadata=metadata,
        spec=spec,
    )


_ACTIONS = ["replace", "keep", "drop", "labeldrop", "labelkeep", "labelmap", "hashmod", "keepequal", "dropequal"]
_RELABELING = _object(
    [],
    sourceLabels=_list(_LABEL),
    separator={"type": "string"},
    targetLabel=_LABEL,
    regex={"type": "string"},
    modulus={"type": "integer", "minimum": 1},
    replacement={"type": "string"},
    action={"enum": _ACTIONS},
)
_ENDPOINT = _object(
    ["port"],
    port=_TEXT,
    path={"type": "string", "pattern": "^/"},
    scheme={"enum": ["http", "https", "HTTP", "HTTPS"]},
    interval=_DURATION,
    scrapeTimeout=_DURATION,
    honorLabels={"type": "boolean"},
    relabelings=_list(_RELABELING),
    metricRelabelings=_list(_RELABELING),
)
_SELECTOR = _object(["matchLabels"], matchLabels=_map())
_NAMESPACES = _object([], any={"type": "boolean"}, matchNames=_list(_TEXT))
_RULE = {
    "type": "object",
    "oneOf": [
        _object(["record", "expr"], record=_TEXT, expr=_TEXT, labels=_map(_LABEL["pattern"])),
        _object(
            ["alert", "expr"],
            alert=_TEXT,
            expr=_TEXT,
            **{"for": _DURATION, "keep_firing_for": _DURATION},
            labels=_map(_LABEL["pattern"]),
            annotations=_map(_LABEL["pattern"]),
        ),
    ],
}
_GROUP = _object(["name", "rules"], name=_TEXT, interval=_DURATION, rules=_list(_RULE))

SCHEMAS: dict[str, Schema] = {
    "PodMonitor": _kind(
        "PodMonitor",
        _object(
            ["selector", "podMetricsEndpoints"],
            jobLabel=_TEXT,
            podTargetLabels=_list(_TEXT),
            selector=_SELECTOR,
            namespaceSelector=_NAMESPACES,
            podMetricsEndpoints={**_list(_ENDPOINT), "minItems": 1},
        ),
    ),
    "ServiceMonitor": _kind(
        "ServiceMonitor",
        _object(
            ["selector", "endpoints"],
            jobLabel=_TEXT,
            targetLabels=_list(_TEXT),
            podTargetLabels=_list(_TEXT),
            selector=_SELECTOR,
            namespaceSelector=_NAMESPACES,
            endpoints={**_list(_ENDPOINT), "minItems": 1},
        ),
    ),
    "PrometheusRule": _kind(
        "PrometheusRule",
        _object(["groups"], groups=_list(_GROUP)),
    ),
}
