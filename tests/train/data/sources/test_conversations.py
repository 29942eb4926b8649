"""Conversations as other programs write them, and fields that are not text."""

import json

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data.records import document_of


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Ho"},
                ]
            },
            turns(("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho")),
        ),
        ({"conversations": [{"role": "user", "content": "Hi"}]}, turns(("user", "Hi"))),
        ({"messages": [{"from": "Human", "value": "Hi", "weight": 1}]}, turns(("user", "Hi"))),
        ({"id": 7, "conversations": [{"from": "tool", "value": None}]}, turns(("tool", ""))),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"text": "you"}, "!"]}]},
            turns(("user", "Hi you!")),
        ),
        ({"messages": [{"role": "user", "content": []}]}, turns(("user", ""))),
        (
            {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Ho"},
            turns(("user", "Hi"), ("assistant", "Ho")),
        ),
        ({"prompt": "Hi", "completion": None}, turns(("user", "Hi"), ("assistant", ""))),
    ],
)
def test_a_conversation_is_read_as_other_programs_write_it(record, messages):
    assert document_of(json.loads(json.dumps(record)), None, "a.jsonl, line 1") == messages


def test_the_field_that_was_always_taken_comes_first():
    record = {"text": "x", "conversations": [{"from": "human", "value": "Hi"}]}
    assert document_of(record, None, "here") == "x"
    assert document_of(record, "conversations", "here") == turns(("user", "Hi"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            r"message 1, content, part 1: a part of type 'image_url'; expected parts of type 'text' alone",
        ),
        (
            {"messages": [{"role": "user", "content": [5]}]},
            r"message 1, content, part 1: a number \(5\); expected text",
        ),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, r"message 1, content: a record .*; expected text"),
        ({"conversations": [{"from": "human"}]}, r"message 1: found from; expected the fields role and content \(or"),
        ({"conversations": "Hi"}, "field 'conversations': a str; expected a list of messages"),
        ({"text": ["a"]}, "field 'text', message 1: found str"),
        ({"text": True}, "field 'text': a true/false value"),
        (None, "line 1: a null; expected a string or a record"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(record, message):
    with pytest.raises(UserError, match=message):
        document_of(record, None, "a.jsonl, line 1")


def test_an_empty_field_is_no_text():
    assert document_of({"text": None}, None, "here") == document_of({"text": ""}, None, "here") == ""
    assert document_of({"messages": []}, None, "here") == []
