"""What can be typed in place of a question: a slash, a word, and what follows it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...contract.errors import UserError
from .settings import SETTINGS, USAGES

if TYPE_CHECKING:
    from .chat import Chat


class Command(NamedTuple):
    """A command of a conversation."""

    value: str
    """What follows it, as its help shows it; "" for nothing."""
    help: str
    run: Callable[["Chat", str], str]
    """Returns what to say about it."""


def _compute(chat: "Chat", value: str) -> str:
    if value in ("", "trained"):
        chat.set_dial({})
        return "the thresholds of training"
    chat.set_dial({"compute": _number(value, "a share of the FLOPs above 0 to 1, or trained")})
    return f"compute {value}"


def _set(chat: "Chat", value: str) -> str:
    name, _, number = value.replace("=", " ").partition(" ")
    if name not in SETTINGS:
        known = ", ".join(SETTINGS)
        raise UserError(f"found {name[:40]!r}, expected one of {known}; type for example: /set temperature 0.2")
    if number.strip() in ("", "default"):
        chat.unset(name)
        return f"{name} by default"
    chat.set(name, SETTINGS[name](_number(number.strip(), "a number, or default")))
    return f"{name} {number.strip()}"


def _usage(chat: "Chat", value: str) -> str:
    chosen = value or ("none" if chat.usage != "none" else "summary")
    if chosen not in USAGES:
        raise UserError(f"found {value[:40]!r}, expected {', '.join(USAGES)}; type: /usage tokens")
    chat.usage = chosen
    return f"usage {chosen}"


def _system(chat: "Chat", value: str) -> str:
    chat.history.system = value or None
    return "a new system prompt, for the next answer on" if value else "no system prompt"


def _save(chat: "Chat", value: str) -> str:
    return f"saved {chat.history.save(_path(value, 'save'), chat.name)}"


def _load(chat: "Chat", value: str) -> str:
    place = chat.history.load(_path(value, "load"))
    return f"read {place}: {len(chat.history.turns)} turns"


def _clear(chat: "Chat", _: str) -> str:
    chat.history.turns.clear()
    return "a new conversation"


def _undo(chat: "Chat", _: str) -> str:
    question = chat.history.take_back()
    if question is None:
        raise UserError("found no question to take back, expected one; ask something first")
    return f"took back: {question}"


def _retry(chat: "Chat", _: str) -> str:
    question = chat.history.take_back()
    if question is None:
        raise UserError("found no question to answer again, expected one; ask something first")
    chat.ask(question)
    return ""


def _show(chat: "Chat", _: str) -> str:
    return "\n".join(chat.state())


def _help(_: "Chat", __: str) -> str:
    rows = [(f"/{name} {command.value}".strip(), command.help) for name, command in COMMANDS.items()]
    rows += [
        ('"""', "begins and ends a question of several lines"),
        ("Ctrl-C", "stops an answer, and keeps what it has so far"),
        ("Ctrl-D", "ends"),
    ]
    width = max(len(left) for left, _ in rows) + 2
    return "\n".join(f"{left:{width}}{right}" for left, right in rows)


def _end(_: "Chat", __: str) -> str:
    raise EndOfChat


class EndOfChat(Exception):  # noqa: N818  # not an error
    """The conversation was ended by a command."""


COMMANDS: dict[str, Command] = {
    "help": Command("", "show these commands", _help),
    "compute": Command("SHARE", "execute this share of the dense FLOPs from now on; `trained` goes back", _compute),
    "set": Command("NAME VALUE", f"set {', '.join(SETTINGS)}; `default` goes back", _set),
    "usage": Command("[KIND]", "report the compute of each answer: none, summary or tokens", _usage),
    "system": Command("[TEXT]", "tell the model TEXT before the first turn", _system),
    "show": Command("", "show the settings, and how much of the context is used", _show),
    "retry": Command("", "answer the last question again", _retry),
    "undo": Command("", "take the last question and its answer back", _undo),
    "clear": Command("", "begin a new conversation", _clear),
    "save": Command("FILE", "write the conversation to FILE", _save),
    "load": Command("FILE", "go on with the conversation in FILE", _load),
    "exit": Command("", "end the conversation", _end),
    "quit": Command("", "the same as /exit", _end),
}


def run_command(chat: "Chat", line: str) -> str:
    """Run a line that begins with a slash, and return what to say about it.

    Raises:
        UserError: There is no such command, or it cannot be done; the conversation is unharmed.
        EndOfChat: It ends the conversation.
    """
    name, _, value = line.removeprefix("/").partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        raise UserError(
            f"found the command /{name[:40]}, expected one of /{', /'.join(COMMANDS)}; to ask something that begins "
            "with a slash, put a space before it"
        )
    return command.run(chat, value.strip())


def _number(text: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"found {text[:40]!r}, expected {expected}") from None


def _path(value: str, name: str) -> str:
    if not value:
        raise UserError(f"found no file, expected one; type: /{name} chat.json")
    return value
