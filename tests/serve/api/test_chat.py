"""`/v1/chat/completions`, with the official client and by hand."""

import openai
import pytest
from openai.types.chat import ChatCompletion
from starlette.testclient import TestClient
from support.serving.served import events

MESSAGES = [{"role": "user", "content": "Say something."}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def official(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)


def test_the_official_client_gets_an_answer(official: openai.OpenAI) -> None:
    answer = official.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=8, seed=1)
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (8, len("u:Say something.\na:"))


def test_a_stream_holds_the_text_of_the_whole_answer_for_the_same_seed_s13(official: openai.OpenAI) -> None:
    settings = {"model": "demo", "messages": MESSAGES, "max_tokens": 30, "seed": 5}
    whole = official.chat.completions.create(**settings)
    stream = official.chat.completions.create(**settings, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content


def test_chunks_come_in_order_s14(client: TestClient) -> None:
    body = {"messages": MESSAGES, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    text = client.post(CHAT, json=body).text
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("[DONE]") == 1
    first, *middle, last, usage = events(text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in middle)
    assert [chunk["choices"][0]["finish_reason"] for chunk in (first, *middle)] == [None] * (len(middle) + 1)
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["delta"]) == ("length", {})
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert len({chunk["id"] for chunk in (first, *middle, last, usage)}) == 1


def test_without_the_option_no_chunk_holds_the_usage_s14(client: TestClient) -> None:
    text = client.post(CHAT, json={"messages": MESSAGES, "max_tokens": 3, "stream": True}).text
    assert all("usage" not in chunk for chunk in events(text))


@pytest.mark.parametrize("letters", ["日本語の文字", "🙂🙃👩‍👩‍👧", "ýéā̧"])
def test_characters_are_never_split_s15(client: TestClient, letters: str) -> None:
    # a bias that forces the bytes of one letter after another is not possible, so a grammar-free check: all chunks
    # are whole, valid text, and joined they are the text that the whole answer has
    body = {"prompt": letters, "max_tokens": 40, "seed": 3, "temperature": 2}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    stream = client.post("/v1/completions", json={**body, "stream": True})
    pieces = [chunk["choices"][0]["text"] for chunk in events(stream.text)]
    assert "".join(pieces) == whole
    for piece in pieces:
        piece.encode()  # no half of a surrogate pair


def test_n_texts_have_seeds_of_their_own(client: TestClient) -> None:
    body = {"messages": MESSAGES, "max_tokens": 20, "seed": 7}
    several = client.post(CHAT, json={**body, "n": 3}).json()["choices"]
    alone = [client.post(CHAT, json={**body, "seed": 7 + i}).json()["choices"][0]["message"] for i in range(3)]
    assert [choice["message"] for choice in several] == alone
    assert [choice["index"] for choice in several] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in several}) == 3
    chunks = events(client.post(CHAT, json={**body, "n": 3, "stream": True}).text)
    texts = ["", "", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [message["content"] for message in alone]


def test_the_prompt_counts_once_for_n_texts(client: TestClient) -> None:
    one = client.post(CHAT, json={"messages": MESSAGES, "max_tokens": 2}).json()["usage"]
    two = client.post(CHAT, json={"messages": MESSAGES, "max_tokens": 2, "n": 2}).json()["usage"]
    assert one["prompt_tokens"] == two["prompt_tokens"]
    assert two["completion_tokens"] == 4


def stop_cases(client: TestClient) -> tuple[str, list[str]]:
    """Return a text, and stop strings of one to four characters from its middle."""
    body = {"prompt": "stop here", "max_tokens": 60, "seed": 11, "temperature": 0.3}
    text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    return text, [text[20 : 20 + length] for length in (1, 2, 4)]


def test_a_stop_string_never_shows_nor_its_beginning_s16(client: TestClient) -> None:
    text, stops = stop_cases(client)
    for stop in stops:
        body = {"prompt": "stop here", "max_tokens": 60, "seed": 11, "temperature": 0.3, "stop": [stop, "never"]}
        choice = client.post("/v1/completions", json=body).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
        shown = ""
        for chunk in events(client.post("/v1/completions", json={**body, "stream": True}).text):
            shown += chunk["choices"][0]["text"]
            assert text[: text.index(stop)].startswith(shown)
        assert shown == choice["text"]


def test_more_tokens_than_the_context_leaves_are_as_many_as_it_leaves_s8(client: TestClient) -> None:
    body = {"messages": MESSAGES, "max_tokens": 10**9, "logit_bias": None}
    usage = client.post(CHAT, json=body).json()["usage"]
    assert usage["total_tokens"] <= 96
    choice = client.post(CHAT, json={"messages": MESSAGES}).json()
    assert choice["usage"]["total_tokens"] <= 96


def test_parts_and_developer_turns_are_read_as_text_and_system(client: TestClient) -> None:
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "it."}]}]
    plain = [{"role": "system", "content": "Say it."}]
    texts = [client.post(CHAT, json={"messages": one, "seed": 1}).json()["choices"][0] for one in (parts, plain)]
    assert texts[0] == texts[1]


def test_fields_without_effect_are_named_in_a_header_s10(client: TestClient) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1, "user": "me", "computee": 0.5, "bad\r\nname": 1}
    for stream in (False, True):
        response = client.post(CHAT, json={**body, "stream": stream})
        assert response.status_code == 200
        assert response.headers["X-Ignored-Fields"] == "user, computee"


def test_of_a_field_that_stands_twice_the_last_counts_s10(client: TestClient) -> None:
    raw = '{"prompt": "a", "max_tokens": 3, "max_tokens": 2}'
    response = client.post("/v1/completions", content=raw, headers={"Content-Type": "application/json"})
    assert response.json()["usage"]["completion_tokens"] == 2
