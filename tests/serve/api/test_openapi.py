"""The OpenAPI document and the page that lists the endpoints."""

import json
import re
from typing import Any

from starlette.testclient import TestClient

from adaptive_lm.serve.application.table import ENDPOINTS


def references(part: Any) -> set[str]:
    """Return every reference in a part of the document."""
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own.union(*map(references, part.values()))
    return set().union(*map(references, part)) if isinstance(part, list) else set()


def test_the_document_describes_every_endpoint_and_body(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(one.method, one.path.replace(":path", "")) for one in ENDPOINTS}
    for reference in references(document):
        assert reference.rpartition("/")[2] in document["components"]["schemas"], reference
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    assert all(one["summary"].endswith(".") for one in operations)
    assert len({one["operationId"] for one in operations}) == len(operations)


def test_the_fields_of_ours_are_documented(client: TestClient) -> None:
    schema = json.dumps(client.get("/openapi.json").json()["components"]["schemas"]["ChatBody"])
    for field in ("compute", "target_ms", "compute_details", "response_format"):
        assert f'"{field}"' in schema


def test_the_page_lists_every_endpoint_and_loads_nothing_from_outside(client: TestClient) -> None:
    page = client.get("/docs").text
    assert all(f"<code>{one.path}</code>" in page for one in ENDPOINTS)
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["/openapi.json"]
    assert "<script" not in page
