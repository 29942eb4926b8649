"""Tools in Anthropic's messages and OpenAI's responses, with the official clients."""

import json
from typing import Any

from support.serving.scripted import CALL, PIECES, WEATHER, Scripted
from support.serving.served import events

USER = [{"role": "user", "content": "?"}]
A_WEATHER = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}
A_NOW = {"name": "now", "input_schema": {"type": "object", "properties": {}}}
R_WEATHER = {"type": "function", **WEATHER["function"], "strict": None}
R_NOW = {"type": "function", "name": "now", "parameters": None, "strict": None}


def test_anthropic_gets_blocks_of_text_and_calls(scripted: Scripted) -> None:
    scripted.say(*PIECES)
    answer = scripted.anthropic.messages.create(model="demo", max_tokens=9, messages=USER, tools=[A_WEATHER, A_NOW])
    assert answer.stop_reason == "tool_use"
    text, first, second = answer.content
    assert text.text == "I look."
    assert (first.name, first.input, second.name, second.input) == ("weather", {"city": "Paris"}, "now", {})
    assert scripted.prompt == "u:?\nweather;now;a:"


def test_anthropics_stream_gives_the_same_blocks(scripted: Scripted) -> None:
    scripted.say(*PIECES)
    with scripted.anthropic.messages.stream(
        model="demo", max_tokens=9, messages=USER, tools=[A_WEATHER, A_NOW]
    ) as stream:
        kinds = [event.type for event in stream if event.type.startswith("content_block_st")]
        message = stream.get_final_message()
    assert kinds == ["content_block_start", "content_block_stop"] * 3
    assert [getattr(block, "text", None) or (block.name, block.input) for block in message.content] == [
        "I look.",
        ("weather", {"city": "Paris"}),
        ("now", {}),
    ]
    assert message.stop_reason == "tool_use"


def test_anthropics_results_reach_the_template(scripted: Scripted) -> None:
    scripted.say("Sunny.")
    use = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "é"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sun"}]}
    messages = [*USER, {"role": "assistant", "content": [use]},
                {"role": "user", "content": [result, {"type": "text", "text": "and?"}]}]  # fmt: skip
    answer = scripted.anthropic.messages.create(model="demo", max_tokens=9, messages=messages, tools=[A_WEATHER])
    assert answer.content[0].text == "Sunny."
    assert scripted.prompt == 'u:?\na:<tool_call>weather{"city": "é"}\nt:sun\nu:and?\nweather;a:'


def test_anthropics_choice_of_a_tool_is_required(scripted: Scripted) -> None:
    scripted.say(CALL)
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        scripted.anthropic.messages.create(
            model="demo", max_tokens=9, messages=USER, tools=[A_WEATHER], tool_choice=choice
        )
        assert scripted.scheduler.jobs[-1].grammar is not None


def test_anthropic_counts_the_tools(scripted: Scripted) -> None:
    count = scripted.anthropic.messages.count_tokens
    assert count(model="demo", messages=USER, tools=[A_WEATHER]).input_tokens == len("u:?\nweather;a:")


def test_responses_give_a_message_and_items_of_calls(scripted: Scripted) -> None:
    scripted.say(*PIECES)
    answer = scripted.openai.responses.create(model="demo", input="?", tools=[R_WEATHER, R_NOW])
    message, first, second = answer.output
    assert (message.type, answer.output_text) == ("message", "I look.")
    assert [(one.type, one.name, json.loads(one.arguments)) for one in (first, second)] == [
        ("function_call", "weather", {"city": "Paris"}),
        ("function_call", "now", {}),
    ]
    assert [tool.name for tool in answer.tools] == ["weather", "now"]


def test_a_stream_of_responses_has_the_items_of_its_end(scripted: Scripted) -> None:
    scripted.say(*PIECES)
    stream = scripted.openai.responses.create(model="demo", input="?", tools=[R_WEATHER, R_NOW], stream=True)
    seen = list(stream)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    arguments: dict[int, str] = {}
    done: dict[int, Any] = {}
    for event in seen:
        if event.type == "response.function_call_arguments.delta":
            arguments[event.output_index] = arguments.get(event.output_index, "") + event.delta
        elif event.type == "response.output_item.done":
            done[event.output_index] = event.item
    assert arguments == {1: '{"city": "Paris"}', 2: "{}"}
    assert [done[index] for index in sorted(done)] == seen[-1].response.output
    assert {done[1].arguments, done[2].arguments} == {'{"city": "Paris"}', "{}"}


def test_a_response_that_only_calls_has_no_message(scripted: Scripted) -> None:
    scripted.say(CALL)
    body = {"input": "?", "tools": [R_WEATHER]}
    whole = scripted.client.post("/v1/responses", json=body).json()
    streamed = events(scripted.client.post("/v1/responses", json={**body, "stream": True}).text)
    for output in (whole["output"], streamed[-1]["response"]["output"]):
        assert [item["type"] for item in output] == ["function_call"]


def test_results_of_responses_reach_the_template(scripted: Scripted) -> None:
    scripted.say("Sunny.")
    items = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Hm."},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "é"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
    ]
    answer = scripted.openai.responses.create(model="demo", input=items, tools=[R_WEATHER])
    assert answer.output_text == "Sunny."
    assert scripted.prompt == 'u:?\na:Hm.<tool_call>weather{"city": "é"}\nt:sun\nweather;a:'
