"""The OpenAPI document: what it says is what is served and what the types are."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refork import api
from refork.openapi import document
from refork.refusals import MOST_WORKERS
from refork.routes import READ_ONLY, ROUTES
from tests.integration.steered import make_status

WHOLE: dict[str, Any] = json.loads(document(ROUTES))
COMMANDS = {route.name: route for route in ROUTES if route.body is not None}


def schema_of(name: str) -> dict[str, Any]:
    """Return the schema of a type, with what it refers to."""
    return {"$ref": f"#/components/schemas/{name}", "components": WHOLE["components"]}


def test_every_route_is_described() -> None:
    """With its method, its success and all refusals that a client must expect."""
    described = {(path, method) for path, operations in WHOLE["paths"].items() for method in operations}
    assert described == {(route.path, route.method.lower()) for route in ROUTES}
    for route in ROUTES:
        responses = WHOLE["paths"][route.path][route.method.lower()]["responses"]
        assert {str(route.status), "401", "403"} <= set(responses)


def test_the_metrics_bind_describes_what_it_serves() -> None:
    """Nothing there changes anything."""
    paths = json.loads(document(READ_ONLY))["paths"]
    assert set(paths) == {"/v1/status", "/v1/events", "/v1/openapi.json"}
    assert {method for operations in paths.values() for method in operations} == {"get"}


def test_all_references_lead_somewhere() -> None:
    """A generator of clients does not stumble."""
    text = json.dumps(WHOLE)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in WHOLE["components"]["schemas"]


def test_events_are_described() -> None:
    """Each by its name and type."""
    words = WHOLE["paths"]["/v1/events"]["get"]["responses"]["200"]["description"]
    for name, shape in api.EVENTS.items():
        assert f"`{name}` ({shape.__name__})" in words
        assert shape.__name__ in WHOLE["components"]["schemas"]


def test_a_status_is_what_the_document_says() -> None:
    """The schema of the answer fits the answer."""
    status = json.loads(msgspec.json.encode(make_status()))
    jsonschema_rs.validate(schema_of("Status"), status)
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema_of("Status"), status | {"phase": "nonsense"})


@pytest.mark.parametrize("name", COMMANDS)
@given(
    body=st.dictionaries(
        st.sampled_from(["slot", "count", "reason", "request_id", "other"]),
        st.none()
        | st.booleans()
        | st.integers(min_value=-3, max_value=70_000)
        | st.text(max_size=4)
        | st.sampled_from(["x" * 253, "x" * 254, "y" * 500, "y" * 501, "a-b:c.d_e", "a b", "é"])
        | st.lists(st.none(), max_size=1),
        max_size=4,
    )
)
def test_a_body_is_taken_exactly_when_the_document_says_so(name: str, body: dict[str, Any]) -> None:
    """The schema of a command and its decoder agree on every body."""
    shape = COMMANDS[name].body
    assert shape is not None
    try:
        msgspec.json.decode(json.dumps(body), type=shape)
        taken = True
    except msgspec.ValidationError:
        taken = False
    assert jsonschema_rs.is_valid(schema_of(shape.__name__), body) == taken


def test_as_many_workers_can_be_asked_for_as_can_be_kept() -> None:
    """The number in the document and the size of the shared table are one number."""
    assert api.MOST_WORKERS == MOST_WORKERS
    assert WHOLE["components"]["schemas"]["WorkersCommand"]["properties"]["count"]["maximum"] == MOST_WORKERS
