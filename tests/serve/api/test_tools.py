"""Tools end to end in `/v1/chat/completions`, with the official client: a scripted model, and a real one that must."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.cases import each
from support.serving.scripted import CALL, NOW, PIECES, WEATHER, Scripted

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "?"}]
NO_OBJECT = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "[1]"}}


def test_the_official_client_gets_the_calls_of_an_answer(scripted: Scripted) -> None:
    scripted.say(*PIECES)
    answer = scripted.openai.chat.completions.create(model="demo", messages=USER, tools=[WEATHER, NOW])
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    calls = choice.message.tool_calls or []
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Paris"}),
        ("now", {}),
    ]
    assert len({call.id for call in calls}) == 2
    assert scripted.prompt == "u:?\nweather;now;a:"


def test_a_stream_gives_the_same_calls_in_deltas_and_no_marker(scripted: Scripted) -> None:
    scripted.say(*PIECES)
    stream = scripted.openai.chat.completions.create(model="demo", messages=USER, tools=[WEATHER, NOW], stream=True)
    text, calls, reasons = "", {}, []
    for chunk in stream:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            if call.id is not None:
                assert call.type == "function"
                calls[call.index] = [call.function.name, ""]
            calls[call.index][1] += call.function.arguments or ""
    assert text == "I look."
    assert calls == {0: ["weather", '{"city": "Paris"}'], 1: ["now", "{}"]}
    assert [reason for reason in reasons if reason] == ["tool_calls"]


def test_the_helper_of_the_official_client_puts_a_stream_together(scripted: Scripted) -> None:
    scripted.say(*PIECES)
    with scripted.openai.chat.completions.stream(model="demo", messages=USER, tools=[WEATHER, NOW]) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [call.function.arguments for call in message.tool_calls or []] == ['{"city": "Paris"}', "{}"]


def test_an_answer_that_only_calls_has_no_text(scripted: Scripted) -> None:
    scripted.say(CALL)
    message = scripted.client.post(CHAT, json={"messages": USER, "tools": [WEATHER]}).json()["choices"][0]["message"]
    assert message["content"] is None
    assert len(message["tool_calls"]) == 1


def test_an_answer_without_a_call_is_as_ever(scripted: Scripted) -> None:
    scripted.say("Hel", "lo < ", "you\n")
    choice = scripted.client.post(CHAT, json={"messages": USER, "tools": [WEATHER]}).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello < you\n", "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_a_cut_call_ends_by_length(scripted: Scripted) -> None:
    scripted.say(*PIECES[:8], reason="length")
    choice = scripted.client.post(CHAT, json={"messages": USER, "tools": [WEATHER]}).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Par'


def test_without_parallel_calls_only_the_first_is_given(scripted: Scripted) -> None:
    scripted.say(*PIECES)
    body = {"messages": USER, "tools": [WEATHER, NOW], "parallel_tool_calls": False}
    message = scripted.client.post(CHAT, json=body).json()["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]


def test_the_choice_none_hides_the_tools_and_leaves_the_text_alone(scripted: Scripted) -> None:
    scripted.say(CALL)
    body = {"messages": USER, "tools": [WEATHER], "tool_choice": "none"}
    choice = scripted.client.post(CHAT, json=body).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert scripted.prompt == "u:?\na:"


def test_calls_and_results_of_earlier_turns_reach_the_template(scripted: Scripted) -> None:
    scripted.say("Sunny.")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "é"}'}}
    messages = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "sun"}]  # fmt: skip
    answer = scripted.openai.chat.completions.create(model="demo", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "Sunny."
    assert scripted.prompt == 'u:?\na:<tool_call>weather{"city": "é"}\nt:sun\nweather;a:'


def test_the_defaults_of_sampling_are_the_models_and_a_body_overrides_them(scripted: Scripted) -> None:
    scripted.say("a")
    scripted.client.post(CHAT, json={"messages": USER})
    params = scripted.scheduler.jobs[-1].params
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 7, 1.0)
    scripted.client.post(CHAT, json={"messages": USER, "temperature": 0.9})
    params = scripted.scheduler.jobs[-1].params
    assert (params.temperature, params.top_k) == (0.9, 7)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "now"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_real_model_calls_the_tool_that_it_must(tool_client: TestClient, choice: Any, stream: bool) -> None:
    body = {"messages": USER, "tools": [NOW], "tool_choice": choice, "temperature": 2, "stream": stream,
            "parallel_tool_calls": False}  # fmt: skip
    answer = tool_client.post(CHAT, json=body)
    assert answer.is_success, answer.text
    if stream:
        assert '"finish_reason":"tool_calls"' in answer.text
        return
    (one,) = answer.json()["choices"]
    assert one["finish_reason"] == "tool_calls"
    assert one["message"]["content"] is None
    assert [call["function"]["name"] for call in one["message"]["tool_calls"]] == ["now"]


@each(
    ("body", "message"),
    [
        ({"tool_choice": "required"}, "found tool_choice without tools"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "none of the tools"),
        ({"tools": [NOW, NOW]}, "found two tools named 'now'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [NOW], "response_format": {"type": "json_object"}}, "found tools and response_format"),
        ({"chat_template_kwargs": {"messages": []}}, "found messages among the variables"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}, "tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [NO_OBJECT]}]}, "expected a JSON object"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(scripted: Scripted, body: dict[str, Any], message: str) -> None:
    answer = scripted.client.post(CHAT, json={"messages": USER, **body})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_the_body_of_the_guide_calls_its_tool(scripted: Scripted) -> None:
    guide = (Path(__file__).parents[3] / "docs/guides/serve.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"^```json\n(\{.*?\"tools\".*?)^```$", guide, re.MULTILINE | re.DOTALL)
    scripted.say(CALL)
    choice = scripted.client.post(CHAT, json=json.loads(body)).json()["choices"][0]
    assert (choice["message"]["tool_calls"][0]["function"]["name"], choice["finish_reason"]) == (
        "weather",
        "tool_calls",
    )
