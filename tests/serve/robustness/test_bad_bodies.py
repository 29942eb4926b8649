"""Bodies that cannot be served: each gets 4xx in the protocol's shape and a message that helps, never 500."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from support.cases import each

USER = [{"role": "user", "content": "hi"}]
JSON = {"Content-Type": "application/json"}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
POSTS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/embeddings", "/tokenize", "/detokenize",
)  # fmt: skip


def refused(client: TestClient, path: str, content: str | bytes, status: int = 400, **headers: str) -> dict[str, Any]:
    """Send a body, and return the error."""
    response = client.post(path, content=content, headers={**JSON, **headers})
    assert response.status_code == status, (path, content[:100], response.text)
    error: dict[str, Any] = response.json()["error"]
    assert error["message"]
    if path.startswith("/v1/messages"):
        assert response.json()["type"] == "error"
        assert set(error) == {"type", "message"}
    else:
        assert set(error) == {"message", "type", "param", "code"}
    return error


@each("path", POSTS)
@each("body", ["[]", '"x"', "1", "null", "true", "[[]]"])
def test_a_body_that_is_no_object_is_refused_s1(client: TestClient, path: str, body: str) -> None:
    assert "expected a JSON object" in refused(client, path, body)["message"]


@each("path", POSTS)
@each("body", [b"", b"  ", b"{", b'{"prompt": "a"', b"{'a': 1}", b'{"a": NaN, }', b'{"a": 1}}', b"\x00"])
def test_broken_json_is_refused_s2(client: TestClient, path: str, body: bytes) -> None:
    assert "JSON" in refused(client, path, body)["message"]


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_another_content_type_is_refused_s2(client: TestClient, media: str) -> None:
    body = json.dumps({"prompt": "a"})
    error = refused(client, "/v1/completions", body, 415, **{"Content-Type": media})
    assert "application/json" in error["message"]
    refused(client, "/v1/completions", body, 415, **{"Content-Encoding": "gzip"})
    assert client.post(
        "/v1/completions", content=body, headers={"Content-Type": "Application/JSON; charset=utf-8"}
    ).is_success


@pytest.mark.parametrize(
    "body", [b'{"prompt": "\xff"}', b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": "\\ud800"}', b'{"\xc3": 1}']
)
def test_text_that_is_not_utf_8_is_refused_s3(client: TestClient, body: bytes) -> None:
    refused(client, "/v1/completions", body)


@each(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [""]}, "prompt"),
        ("/v1/completions", {"prompt": [[]]}, "prompt"),
        ("/v1/completions", {"prompt": None}, "prompt"),
        ("/v1/completions", {}, "prompt"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": "hi"}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "pirate", "content": "a"}]}, "messages.0.role"),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, "messages.0.tool_call_id"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content"),
        ("/v1/responses", {"input": []}, "input"),
        ("/v1/responses", {"input": ""}, "input"),
    ],
)  # fmt: skip
def test_an_empty_or_malformed_prompt_is_refused_s4(client: TestClient, path: str, body: Any, param: str) -> None:
    assert refused(client, path, json.dumps(body))["param"].startswith(param)


@each("ids", [[257], [-1], [1.5], [2**70], [1, "a"], [True]])
def test_ids_outside_the_vocabulary_are_refused_s5(client: TestClient, ids: list[Any]) -> None:
    refused(client, "/v1/completions", json.dumps({"prompt": ids}))
    refused(client, "/v1/completions", json.dumps({"prompt": [[5], ids]}))
    refused(client, "/detokenize", json.dumps({"tokens": ids}))


@pytest.mark.parametrize("count", [96, 97, 5000])
def test_a_prompt_over_the_context_is_refused_with_both_numbers_s6(client: TestClient, count: int) -> None:
    error = refused(client, "/v1/completions", json.dumps({"prompt": [65] * count}))
    assert str(count) in error["message"]
    assert "96" in error["message"]
    assert error["code"] == "context_length_exceeded"
    refused(client, "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "a" * count}]}))


WRONG: dict[str, tuple[Any, ...]] = {
    "max_tokens": (-1, "5", 1.5, True),
    "temperature": (-1, "hot", 2e6, [], True),
    "top_p": (0, 1.1, -0.1, "1"),
    "min_p": (-0.1, 2),
    "n": (0, -1, 1000, 1.5, "2"),
    "seed": (-1, 2**64, 1.5, "1"),
    "top_k": (0, -1, 1.5),
    "frequency_penalty": (-2.1, 3, "1"),
    "presence_penalty": (-2.1, 3),
    "repetition_penalty": (0, 1000),
    "stop": ("", [""], ["a"] * 10_000, "a" * 5000, 5, [1], [["a"]]),
    "logit_bias": ({"a": 1}, {"-1": 1}, {"1.5": 1}, {"1": 101}, {"1": "x"}, [], {"": 0}, {"٣": 1}, {"9999": 1}),
    "compute": (0, -1, 1.1, "half", "0.5", [], True),
    "target_ms": (0, -1, "fast"),
    "experts": (0,),
    "exit_threshold": (2,),
    "least_compute": (0.5, 0, 2),
    "stream": ("yes", 1),
    "stream_options": (5,),
    "response_format": ("json", {"type": "xml"}, {"type": "json_schema"}, {"type": "regex", "regex": "("}),
}
NUMBERS = [(field, value) for field, values in WRONG.items() for value in values]


@each(("field", "value"), NUMBERS)
def test_a_setting_outside_its_range_is_refused_s8_s12(client: TestClient, field: str, value: Any) -> None:
    error = refused(client, "/v1/completions", json.dumps({"prompt": "a", field: value}))
    assert field in error["message"] or error["param"] == field
    error = refused(client, "/v1/chat/completions", json.dumps({"messages": USER, field: value}))
    assert field in error["message"] or error["param"] == field


@each("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@each("field", ["temperature", "top_p", "min_p", "compute", "target_ms", "max_tokens", "n"])
def test_numbers_that_are_not_finite_are_refused_s8(client: TestClient, field: str, number: str) -> None:
    refused(client, "/v1/completions", f'{{"prompt": "a", "{field}": {number}}}')


@each("path", POSTS)
@each(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused_s9(client: TestClient, path: str, opening: str, closing: str) -> None:
    for field in ("prompt", "unknown"):
        body = f'{{"{field}": ' + opening * 10_000 + "1" + closing * 10_000 + "}"
        refused(client, path, body)


@pytest.mark.parametrize(
    ("path", "tool"),
    [
        ("/v1/chat/completions", {"type": "function", "function": {"name": "now"}}),
        ("/v1/responses", {"type": "function", "name": "now"}),
        ("/v1/messages", {"name": "now", "input_schema": {"type": "object"}}),
    ],
)
def test_tools_are_refused_where_no_template_takes_them(client: TestClient, path: str, tool: dict[str, Any]) -> None:
    body = {"messages": USER, "input": "hi", "max_tokens": 1, "tools": [tool]}
    message = refused(client, path, json.dumps(body))["message"]
    assert "found tools, the model demo has no chat template that takes them" in message
    assert client.post(path, json={**body, "tools": []}).is_success


def test_an_unknown_model_is_not_found_s48(client: TestClient) -> None:
    for name in ("gpt-4", "", "demo@", "demo@2", "demo@half", "demo@nan", "@0.5"):
        error = refused(client, "/v1/completions", json.dumps({"prompt": "a", "model": name}), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        refused(client, "/v1/messages", json.dumps({"messages": USER, "max_tokens": 1, "model": name}), 404)
    assert client.get("/v1/models/gpt-4").status_code == 404


def test_a_message_never_repeats_a_long_input(client: TestClient) -> None:
    error = refused(client, "/v1/completions", json.dumps({"prompt": "a", "temperature": "x" * 100_000}))
    assert len(error["message"]) < 400


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["prompt", "messages", "input", "content", "tokens", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n",
     "stop", "seed", "logit_bias", "logprobs", "top_logprobs", "stream", "stream_options", "echo", "compute", "model",
     "target_ms", "response_format", "system", "instructions", "text", "include", "compute_details", "experts"]
)  # fmt: skip
BODIES = st.dictionaries(FIELDS, JSON_VALUES, max_size=5)


@given(path=st.sampled_from(POSTS), fields=BODIES, valid=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_gives_a_500(client: TestClient, path: str, fields: dict[str, Any], valid: bool) -> None:
    body = (
        {"prompt": "a", "messages": USER, "input": "a", "content": "a", "tokens": [1], "max_tokens": 1} if valid else {}
    )
    try:
        content = json.dumps(body | fields).encode()
    except UnicodeEncodeError:
        return
    response = client.post(path, content=content, headers=JSON)
    assert response.status_code < 500 or (response.status_code == 501 and path == "/v1/embeddings"), response.text


@given(raw=st.binary(max_size=200), path=st.sampled_from(POSTS))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_give_a_500(client: TestClient, raw: bytes, path: str) -> None:
    assert client.post(path, content=raw, headers=JSON).status_code < 500
