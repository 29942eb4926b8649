"""A conversation: questions, answers, commands, a full context, and interruptions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.graphs.rich_graph import CURVE
from support.graphs.tiny_graph import write_manifest, write_model

from adaptive_lm.contract.errors import UserError
from adaptive_lm.runtime import Engine, load
from adaptive_lm.runtime.conversation.chat import Chat
from adaptive_lm.runtime.conversation.commands import COMMANDS, EndOfChat
from adaptive_lm.runtime.conversation.history import History
from adaptive_lm.runtime.generation.request import Token
from adaptive_lm.runtime.generation.summary import Summary

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


class Screen:
    """Remembers what was shown; may interrupt an answer after some pieces of text."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.pieces: list[str] = []
        self.notes: list[str] = []
        self.answers: list[tuple[list[Token], Summary, str]] = []
        self.interrupt_after = interrupt_after

    def answer(self, text: str) -> None:
        self.pieces.append(text)
        if len(self.pieces) == self.interrupt_after:
            raise KeyboardInterrupt

    def answered(self, tokens: list[Token], summary: Summary, usage: str) -> None:
        self.answers.append((tokens, summary, usage))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Load a model with a chat template and a dial."""
    folder = tmp_path_factory.mktemp("talker")
    write_model(folder)
    write_manifest(folder, chat_template=TEMPLATE, curve=CURVE)
    return load(folder, device="cpu", threads=1)


@pytest.fixture
def chat(talker: Engine) -> Callable[..., Chat]:
    def make(screen: Screen | None = None, system: str | None = None, **settings: Any) -> Chat:
        given = {"temperature": 0.0, "max_new_tokens": 8, **settings}
        return Chat(talker, screen or Screen(), name="demo", history=History(system), settings=given, usage="summary")

    return make


def test_an_answer_is_shown_as_it_comes_and_its_cost_afterwards(chat: Callable[..., Chat], talker: Engine) -> None:
    screen = Screen()
    talk = chat(screen, "be short")
    talk.line("hello")
    ids = talker.chat([{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}])
    expected = "".join(token.text for token in talker.generate(ids, talk.params()))
    assert "".join(screen.pieces) == expected.lstrip()
    assert talk.history.turns == [
        {"role": "user", "content": "hello"}, {"role": "assistant", "content": expected.strip()},
    ]  # fmt: skip
    ((tokens, summary, usage),) = screen.answers
    assert (summary.new_tokens, summary.prompt_tokens, usage) == (len(tokens), len(ids), "summary")


def test_each_question_is_asked_with_all_that_was_said_before(chat: Callable[..., Chat], talker: Engine) -> None:
    screen = Screen()
    talk = chat(screen)
    talk.line("hello")
    before = list(talk.history.turns)
    talk.line("and then")
    assert screen.answers[1][1].prompt_tokens == len(talker.chat([*before, {"role": "user", "content": "and then"}]))


def test_an_interrupted_answer_stays_as_far_as_it_came_and_the_conversation_goes_on(chat: Callable[..., Chat]) -> None:
    screen = Screen(interrupt_after=3)
    talk = chat(screen)
    talk.line("hello")
    assert screen.answers[0][1].finish_reason in ("cancelled", "interrupted")
    assert talk.history.turns[1]["content"] == "".join(screen.pieces).strip()
    talk.line("again")
    assert len(talk.history.turns) == 4
    assert screen.answers[1][1].finish_reason == "length"


def test_the_dial_turns_for_the_next_answer_and_goes_back(chat: Callable[..., Chat]) -> None:
    screen = Screen()
    talk = chat(screen)
    for line in ("/compute 0.5", "hello", "/compute 1", "/retry", "/compute trained"):
        talk.line(line)
    low, high = (summary.executed_flops_share for _, summary, _ in screen.answers)
    assert low < high
    assert len(talk.history.turns) == 2, "a second try takes the place of the first"
    assert talk.params().compute is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/compute 7", "found compute 7"),
        ("/compute half", "found 'half', expected a share"),
        ("/set temperature -1", "found temperature -1"),
        ("/set top_k 1.5", "found 1.5, expected a whole number"),
        ("/set height 3", "found 'height', expected one of temperature"),
        ("/usage loud", "found 'loud', expected none, summary, tokens"),
        ("/save", "type: /save chat.json"),
        ("/load nowhere.json", "cannot read nowhere.json"),
        ("/undo", "found no question"),
        ("/retry", "found no question"),
        ("/nothing", "found the command /nothing, expected one of /help"),
    ],
)
def test_a_wrong_command_says_what_to_type_and_changes_nothing(
    chat: Callable[..., Chat], line: str, message: str
) -> None:
    talk = chat(compute=0.75)
    before = (talk.params(), talk.usage)
    with pytest.raises(UserError) as error:
        talk.line(line)
    assert message in str(error.value)
    assert (talk.params(), talk.usage, talk.history.turns) == (*before, [])


def test_settings_are_set_shown_and_taken_back(chat: Callable[..., Chat]) -> None:
    screen = Screen()
    talk = chat(screen)
    for line in (
        "/set temperature 0.25",
        "/set top_k = 3",
        "/compute 0.5",
        "/usage tokens",
        "/system be kind",
        "/show",
    ):
        talk.line(line)
    assert (talk.params().temperature, talk.params().top_k, talk.usage) == (0.25, 3, "tokens")
    shown = screen.notes[-1]
    for part in ("demo at compute 0.5", "temperature 0.25", "top_k 3", "system: be kind", "usage: tokens"):
        assert part in shown
    talk.line("/set temperature default")
    assert talk.params().temperature == 0.8


def test_a_full_context_forgets_the_oldest_questions_and_says_so(chat: Callable[..., Chat], talker: Engine) -> None:
    screen = Screen()
    talk = chat(screen, "sys")
    context = talker.manifest.model.context_length
    for number in range(12):
        talk.line(f"question {number} " + "x" * (context // 6))
    assert any("forgot the oldest" in note for note in screen.notes)
    assert len(talk.history.turns) < 24
    assert talk.history.messages()[0] == {"role": "system", "content": "sys"}
    assert talk.history.turns[-2]["content"].startswith("question 11")
    assert all(summary.prompt_tokens + summary.new_tokens <= context for _, summary, _ in screen.answers)


def test_a_question_that_can_never_fit_is_taken_back(chat: Callable[..., Chat], talker: Engine) -> None:
    talk = chat()
    talk.line("hello")
    with pytest.raises(UserError, match="this model's context is"):
        talk.line("x" * 2 * talker.manifest.model.context_length)
    assert [turn["role"] for turn in talk.history.turns] == ["user", "assistant"]


def test_a_conversation_is_saved_and_goes_on_elsewhere(chat: Callable[..., Chat], tmp_path: Path) -> None:
    talk, other = chat(system="be kind"), chat()
    talk.line("hello")
    talk.line(f"/save {tmp_path / 'a.json'}")
    other.line(f"/load {tmp_path / 'a.json'}")
    assert (other.history.system, other.history.turns) == (talk.history.system, talk.history.turns)
    other.line("more")
    talk.line("more")
    assert other.history.turns == talk.history.turns


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is no conversation: Expecting"),
        ("[]", "found no object with"),
        ('{"version": 9, "system": null, "messages": []}', "found version 9, expected 1"),
        ('{"version": 1, "system": 4, "messages": []}', "`system` is neither"),
        ('{"version": 1, "system": null, "messages": {}}', "`messages` is no list"),
        ('{"version": 1, "system": null, "messages": [{"role": "root", "content": "a"}]}', "message 0 has none of"),
        ('{"version": 1, "system": null, "messages": [{"role": "user", "content": [1]}]}', "message 0 has no text"),
        ("\udcff", "is no conversation"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused_and_this_one_unharmed(
    chat: Callable[..., Chat], tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    talk = chat(system="mine")
    talk.line("hello")
    before = list(talk.history.turns)
    with pytest.raises(UserError, match=problem.replace("`", ".")):
        talk.line(f"/load {path}")
    assert (talk.history.system, talk.history.turns) == ("mine", before)


def test_a_save_that_fails_loses_nothing(chat: Callable[..., Chat], tmp_path: Path) -> None:
    talk = chat()
    talk.line("hello")
    with pytest.raises(UserError, match="The conversation goes on"):
        talk.line(f"/save {tmp_path / 'nowhere' / 'a.json'}")
    assert len(talk.history.turns) == 2


def test_undo_and_clear(chat: Callable[..., Chat]) -> None:
    talk = chat()
    talk.line("one")
    talk.line("two")
    talk.line("/undo")
    assert [turn["content"] for turn in talk.history.turns if turn["role"] == "user"] == ["one"]
    talk.line("/clear")
    assert talk.history.turns == []


@pytest.mark.parametrize("line", ["/exit", "/quit", "/QUIT "])
def test_exit_and_quit_end_the_conversation(chat: Callable[..., Chat], line: str) -> None:
    with pytest.raises(EndOfChat):
        chat().line(line)


def test_the_help_lists_every_command(chat: Callable[..., Chat]) -> None:
    screen = Screen()
    chat(screen).line("/help")
    assert all(f"/{name}" in screen.notes[0] for name in COMMANDS)


def test_a_line_that_begins_with_a_space_is_a_question(chat: Callable[..., Chat]) -> None:
    talk = chat()
    talk.line(" /etc is a folder?")
    assert talk.history.turns[0]["content"] == " /etc is a folder?"


def test_a_model_without_a_template_says_what_to_type(engine: Engine) -> None:
    with pytest.raises(UserError, match="adaptive generate TEXT"):
        Chat(engine, Screen(), name="a", history=History(), settings={}, usage="none")
