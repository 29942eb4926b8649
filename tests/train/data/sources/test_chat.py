"""Conversations into text: what is an answer, where turns end, and what a template may not do."""

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.messages import EOS
from adaptive_lm.train.data.sources.chat import ChatTemplate

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Thus."},
]


def test_a_prompt_and_its_completion_read_as_the_contract_says():
    messages = TALK[1:3]
    assert ChatTemplate().segments(messages, "here") == [("User: How?\nAssistant:", False, False), (" So.", True, True)]


def test_every_assistant_turn_is_an_answer_with_its_end():
    assert ChatTemplate().segments(TALK, "here") == [
        ("System: Be brief.\nUser: How?\nAssistant:", False, False),
        (" So.", True, True),
        ("User: And?\nAssistant:", False, False),
        (" Thus.", True, True),
    ]


def test_a_conversation_that_ends_with_the_user_has_no_answer_there():
    assert ChatTemplate().segments(TALK[:2], "here") == [("System: Be brief.\nUser: How?\n", False, False)]


def test_the_prompt_is_what_generation_renders():
    template = ChatTemplate()
    (prompt, *_), *_ = template.segments(TALK[1:3], "here")
    assert prompt == template.render(TALK[1:2], add_generation_prompt=True)


def test_an_end_of_text_that_somebody_typed_stays_text():
    messages = [{"role": "user", "content": f"What is {EOS}?"}, {"role": "assistant", "content": f"{EOS} ends a text."}]
    assert ChatTemplate().segments(messages, "here") == [
        (f"User: What is {EOS}?\nAssistant:", False, False),
        (f" {EOS} ends a text.", True, True),
    ]


def test_a_template_that_spells_the_token_means_the_token():
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]" + EOS + "{% endfor %}")
    assert template.segments(TALK[1:3], "here") == [("[How?]", False, True), ("[So.]", True, True)]


def test_a_template_comes_from_text_or_from_a_file(write):
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert ChatTemplate.from_config(text).text == text
    assert ChatTemplate.from_config(write("chat.jinja", text)).text == text
    assert ChatTemplate.from_config(None).text == ChatTemplate().text
    with pytest.raises(UserError, match=r"cannot read the chat template 'nowhere\.jinja'"):
        ChatTemplate.from_config("nowhere.jinja")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "does not compile: line 1"),
        ("{{ nothing.here }}", "fails on a conversation: 'nothing' is undefined"),
        ("{{ messages.append(1) }}", "fails on a conversation"),
        ("{{ ''.__class__.__mro__ }}", "fails on a conversation"),
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "here: .*a later message changes",
        ),
    ],
)
def test_a_template_that_cannot_work_is_refused(template, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(template).segments(TALK, "here")
