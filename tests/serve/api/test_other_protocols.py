"""`/v1/responses` and `/v1/messages`: the same chat in other shapes, with the official clients."""

import anthropic
import openai
import pytest
from starlette.testclient import TestClient

MESSAGES = [{"role": "user", "content": "Say something."}]
GREEDY = {"temperature": 0}
"""For the client of Anthropic, which has lost the argument."""


@pytest.fixture(scope="module")
def claude(client: TestClient) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="none", base_url="http://127.0.0.1", http_client=client, max_retries=0)


@pytest.fixture(scope="module")
def official(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)


def greedy(client: TestClient, **more: object) -> dict[str, object]:
    body = {"messages": MESSAGES, "max_tokens": 20, "temperature": 0, **more}
    answer: dict[str, object] = client.post("/v1/chat/completions", json=body).json()
    return answer


def text_of(answer: dict[str, object]) -> str:
    return str(answer["choices"][0]["message"]["content"])  # type: ignore[index]


def test_a_message_is_the_chat_in_another_shape(client: TestClient, claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model="demo", max_tokens=20, messages=MESSAGES, extra_body=GREEDY)
    chat = greedy(client)
    assert answer.content[0].text == text_of(chat)
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.input_tokens == chat["usage"]["prompt_tokens"]  # type: ignore[index]
    assert answer.usage.output_tokens == 20


def test_a_message_streams_the_events_that_the_official_client_expects(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model="demo", max_tokens=20, messages=MESSAGES, extra_body=GREEDY)
    with claude.messages.stream(model="demo", max_tokens=20, messages=MESSAGES, extra_body=GREEDY) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 20)


def test_the_system_turn_of_a_message_comes_first(client: TestClient, claude: anthropic.Anthropic) -> None:
    system = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    answer = claude.messages.create(
        model="demo", max_tokens=20, messages=MESSAGES, extra_body=GREEDY, system="Be brief."
    )
    assert answer.content[0].text == text_of(greedy(client, messages=system))


def test_a_message_says_which_stop_sequence_ended_it(client: TestClient, claude: anthropic.Anthropic) -> None:
    text = text_of(greedy(client))
    stop = text[6:8]
    answer = claude.messages.create(
        model="demo", max_tokens=20, messages=MESSAGES, extra_body=GREEDY, stop_sequences=["never", stop]
    )
    assert answer.content[0].text == text[: text.index(stop)]
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)


def test_tokens_are_counted_before_a_message(claude: anthropic.Anthropic) -> None:
    count = claude.messages.count_tokens(model="demo", messages=MESSAGES, system="Be brief.")
    answer = claude.messages.create(model="demo", max_tokens=1, messages=MESSAGES, system="Be brief.")
    assert count.input_tokens == answer.usage.input_tokens


def test_errors_of_messages_are_the_official_clients_own_s47(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        claude.messages.create(model="nothing", max_tokens=1, messages=MESSAGES)
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="demo", max_tokens=1, messages=MESSAGES, extra_body={"temperature": -1})


def test_a_response_is_the_chat_in_another_shape(client: TestClient, official: openai.OpenAI) -> None:
    answer = official.responses.create(
        model="demo", input="Say something.", max_output_tokens=20, temperature=0, metadata={"a": "b"}
    )
    chat = greedy(client)
    assert answer.output_text == text_of(chat)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.input_tokens == chat["usage"]["prompt_tokens"]  # type: ignore[index]
    assert answer.metadata == {"a": "b"}


def test_a_response_streams_the_events_that_the_official_client_expects(official: openai.OpenAI) -> None:
    settings = {"model": "demo", "input": "Say something.", "max_output_tokens": 20, "temperature": 0}
    whole = official.responses.create(**settings)
    events = list(official.responses.create(**settings, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          "response.incomplete"]  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text


def test_instructions_and_turns_of_a_response_are_a_conversation(client: TestClient, official: openai.OpenAI) -> None:
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
        {"role": "user", "content": "Bye."},
    ]
    plain = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye."},
    ]  # fmt: skip
    answer = official.responses.create(
        model="demo", input=turns, instructions="Be brief.", max_output_tokens=20, temperature=0
    )
    assert answer.output_text == text_of(greedy(client, messages=plain))


@pytest.mark.parametrize("field", [{"previous_response_id": "resp_1"}, {"background": True}])
def test_what_responses_cannot_do_is_refused(client: TestClient, field: dict[str, object]) -> None:
    response = client.post("/v1/responses", json={"input": "hi", **field})
    assert response.status_code == 400
    assert f"found {next(iter(field))}" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/messages", {"stop_sequences": [""]}), ("/v1/messages", {"top_k": 0}), ("/v1/responses", {"top_p": 7})],
)
def test_a_setting_that_only_the_chat_refuses_is_refused_in_every_shape(
    client: TestClient, path: str, fields: dict[str, object]
) -> None:
    response = client.post(path, json={"messages": MESSAGES, "input": "a", "max_tokens": 1, **fields})
    assert response.status_code == 400, response.text
