"""Log-probabilities of new tokens and of prompts, penalties and biases, and formats."""

import json
import math
import re
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient
from support.cases import each
from support.serving.served import events

USER = [{"role": "user", "content": "hi"}]
BODY = {"prompt": "hello", "max_tokens": 8, "temperature": 0}


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={**BODY, **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def test_the_chosen_token_of_a_greedy_text_is_the_most_probable(client: TestClient) -> None:
    logprobs = complete(client, logprobs=3)["logprobs"]
    assert {name: len(values) for name, values in logprobs.items()} == dict.fromkeys(logprobs, 8)
    for logprob, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert logprob == max(top.values())
        assert len(top) == 3
        assert sum(map(math.exp, top.values())) <= 1.0001


def test_echo_gives_the_log_probabilities_of_the_prompt(client: TestClient) -> None:
    choice = complete(client, logprobs=1, echo=True, max_tokens=1)
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][:5] == list("hello")
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(one < 0 for one in logprobs["token_logprobs"][1:])
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 5]
    # a prompt that holds the first answer scores it as the answer did
    ids = client.post("/tokenize", json={"content": "hello"}).json()["tokens"]
    plain = complete(client, prompt=ids[:2], logprobs=0, echo=True, max_tokens=0)
    assert plain["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][:2]
    assert plain["text"] == "he"
    assert len(plain["logprobs"]["tokens"]) == 2


def test_a_stream_holds_the_same_log_probabilities(client: TestClient) -> None:
    whole = complete(client, logprobs=2, echo=True)
    stream = client.post("/v1/completions", json={**BODY, "logprobs": 2, "echo": True, "stream": True})
    joined: dict[str, list[Any]] = {name: [] for name in whole["logprobs"]}
    for chunk in events(stream.text):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            joined[name] += values
    assert joined == whole["logprobs"]


def test_the_official_client_reads_log_probabilities_of_a_chat(client: TestClient) -> None:
    official = openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)
    settings = {"model": "demo", "messages": USER, "max_tokens": 8, "temperature": 0}
    answer = official.chat.completions.create(**settings, logprobs=True, top_logprobs=4)
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert len(content) == 8
    for one in content:
        assert one.logprob == one.top_logprobs[0].logprob
        assert len(one.top_logprobs) == 4
    text = b"".join(bytes(one.bytes) for one in content).decode(errors="replace")
    assert text == answer.choices[0].message.content
    stream = official.chat.completions.create(**settings, logprobs=True, top_logprobs=4, stream=True)
    streamed = [one for chunk in stream if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert streamed == content


def test_log_probabilities_do_not_leak_a_stop_string_s16(client: TestClient) -> None:
    plain = complete(client, max_tokens=30, logprobs=0, compute_details=True)
    text, tokens = plain["text"], plain["logprobs"]["tokens"]
    stop = next(text[i : i + 3] for i in range(5, 25) if text[i : i + 3].isascii())
    for stream in (False, True):
        body = {**BODY, "max_tokens": 30, "stop": stop, "logprobs": 0, "stream": stream}
        response = client.post("/v1/completions", json=body)
        choices = [one["choices"][0] for one in events(response.text)] if stream else response.json()["choices"]
        shown = [token for one in choices if one["logprobs"] for token in one["logprobs"]["tokens"]]
        assert shown == tokens[: len(shown)]
        ids = [one["id"] for one in plain["compute"][: len(shown)]]
        content = client.post("/detokenize", json={"tokens": ids}).json()["content"]
        assert content == "".join(one["text"] for one in choices) == text[: text.index(stop)]


def test_a_bias_forbids_and_forces_tokens(client: TestClient) -> None:
    first = complete(client, max_tokens=1, logprobs=0)
    forced = complete(client, logit_bias={str(ord("Z")): 100})
    assert forced["text"] == "Z" * 8
    assert complete(client, logit_bias={str(ord("Z")): -100})["text"] != forced["text"]
    assert first["text"] is not None


def test_a_penalty_stops_a_repetition(client: TestClient) -> None:
    bias = {str(ord(letter)): 90 for letter in "YZ"}
    plain = complete(client, logit_bias=bias)["text"]
    assert set(complete(client, logit_bias=bias, frequency_penalty=2, max_tokens=40)["text"]) == {"Y", "Z"}
    assert set(plain) <= {"Y", "Z"}


FORMATS = [
    ({"type": "regex", "regex": "[a-c]{4}[0-9]"}, lambda text: re.fullmatch("[a-c]{4}[0-9]", text)),
    ({"type": "grammar", "grammar": 'start: "yes" | "no"'}, lambda text: text in ("yes", "no")),
    (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["red", 5]}}},
        lambda text: json.loads(text) in ("red", 5),
    ),
]


@each(("form", "matches"), FORMATS)
@each("stream", [False, True])
def test_a_text_matches_its_format(client: TestClient, form: dict[str, Any], matches: Any, stream: bool) -> None:
    body = {"messages": USER, "max_tokens": 30, "seed": 1, "response_format": form, "stream": stream}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    if stream:
        text = "".join(one["choices"][0]["delta"].get("content", "") for one in events(response.text))
    else:
        assert response.json()["choices"][0]["finish_reason"] == "stop"
        text = response.json()["choices"][0]["message"]["content"]
    assert matches(text), text


def test_a_format_of_a_response_is_that_of_a_chat(client: TestClient) -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"enum": ["red", 5]}}
    body = {"input": "hi", "max_output_tokens": 30, "text": {"format": form}}
    answer = client.post("/v1/responses", json=body).json()
    assert answer["status"] == "completed"
    assert json.loads(answer["output"][0]["content"][0]["text"]) in ("red", 5)


@pytest.mark.parametrize("form", [{"type": "regex", "regex": "("}, {"type": "grammar", "grammar": "nonsense"},
                                  {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}])  # fmt: skip
def test_an_invalid_format_is_refused_s11(client: TestClient, form: dict[str, Any]) -> None:
    response = client.post("/v1/completions", json={**BODY, "response_format": form})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "response_format"
