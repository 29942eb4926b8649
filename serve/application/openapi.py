"""The OpenAPI document, made from the table of endpoints and the models of their bodies."""

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from ..protocols.anthropic.errors import ErrorBody as AnthropicError
from ..protocols.openai.errors import ErrorBody as OpenAIError
from .table import ENDPOINTS, Endpoint

STATUSES = ("400", "401", "404", "408", "413", "415", "429", "500", "501", "503", "504")
"""The errors that an endpoint with a body can give."""


@cache
def openapi() -> dict[str, Any]:
    """Return the document."""
    inputs = [(one.body, "validation") for one in ENDPOINTS if one.body is not None]
    outputs = [*((one.answer, "serialization") for one in ENDPOINTS), *((error, "serialization") for error in ERRORS)]
    names, definitions = models_json_schema(
        [*inputs, *outputs],  # type: ignore[list-item]
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for one in ENDPOINTS:
        path = one.path.replace(":path", "")
        paths.setdefault(path, {})[one.method.lower()] = operation(one, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "adaptive serve", "version": version("adaptive-lm")},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


ERRORS = (OpenAIError, AnthropicError)


def operation(endpoint: Endpoint, names: dict[Any, Any]) -> dict[str, Any]:
    """Describe one endpoint."""
    error = AnthropicError if endpoint.path.startswith("/v1/messages") else OpenAIError
    content: dict[str, Any] = {"application/json": {"schema": names[(endpoint.answer, "serialization")]}}
    if endpoint.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    refused = {"application/json": {"schema": names[(error, "serialization")]}}
    if endpoint.path == "/health/ready":
        responses["503"] = {"description": "Not ready.", "content": content}
    elif not endpoint.public:
        for status in STATUSES if endpoint.body is not None else ("401", "404", "500", "503"):
            responses[status] = {"description": "Refused.", "content": refused}
    result: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": (endpoint.handler.__doc__ or "").strip(),
        "responses": responses,
    }
    if "{" in endpoint.path:
        result["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    if endpoint.body is not None:
        schema = names[(endpoint.body, "validation")]
        result["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if endpoint.public:
        result["security"] = [{}]
    return result
