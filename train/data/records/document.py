"""A record as a document: its text, or the messages of a conversation."""

import json
from collections.abc import Mapping

from ....contract.errors import UserError
from ....contract.messages import Message
from .fields import refuse_repeated, used_fields

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Role of a speaker in other formats -> our role; other roles stay as they are."""

_SPELLINGS = (("role", "content"), ("from", "value"))


def document_of(
    record: object, text_field: str | None, where: str, end_marker: str | None = None
) -> str | list[Message]:
    """Take the text of a record, without the marker of its end, or the messages of a conversation.

    Args:
        record: A string, or the fields of a record.
        text_field: The field that holds the text; None to look for the usual ones.
        where: The place of the record, for messages.
        end_marker: Characters that end a text and are left out.

    Raises:
        UserError: the record holds neither text nor a conversation.
    """
    document = _document(record, text_field, where)
    if end_marker is not None and isinstance(document, str) and document.rstrip().endswith(end_marker):
        return document.rstrip().removesuffix(end_marker).rstrip()
    return document


def _document(record: object, text_field: str | None, where: str) -> str | list[Message]:
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: a {_kind(record)}; expected a string or a record of fields")
    fields = used_fields(record, text_field, where)
    refuse_repeated(record, fields, where)
    if fields == ("prompt", "completion"):
        return [
            *_turn(record["prompt"], "user", f"{where}, field 'prompt'"),
            *_turn(record["completion"], "assistant", f"{where}, field 'completion'"),
        ]
    (field,) = fields
    value, place = record[field], f"{where}, field {field!r}"
    conversation = text_field is None and field != "text"
    return _messages(value, place) if conversation or isinstance(value, list) else _string(value, place)


def _turn(value: object, role: str, where: str) -> list[Message]:
    if isinstance(value, list):
        return _messages(value, where)
    return [Message(role=role, content=_string(value, where))]


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise UserError(f"{where}: a {_kind(value)}; expected a list of messages with role and content")
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(value, 1)]


def _message(message: object, where: str) -> Message:
    names = message.keys() if isinstance(message, Mapping) else ()
    spelling = next((pair for pair in _SPELLINGS if set(pair) <= set(names)), None)
    if spelling is None or not isinstance(message, Mapping):
        present = ", ".join(map(str, message)) if isinstance(message, Mapping) else _kind(message)
        raise UserError(f"{where}: found {present}; expected the fields role and content (or from and value)")
    refuse_repeated(message, spelling, where)
    speaker, content = spelling
    role = _string(message[speaker], f"{where}, {speaker}")
    return Message(role=ROLES.get(role.lower(), role), content=_content(message[content], f"{where}, {content}"))


def _content(value: object, where: str) -> str:
    """Join the parts of a content: a string, or a list of strings and of {"type": "text", "text": ...}."""
    if not isinstance(value, list):
        return _string(value, where)
    texts = []
    for number, part in enumerate(value, 1):
        place = f"{where}, part {number}"
        if isinstance(part, Mapping) and part.get("type", "text") == "text" and "text" in part:
            refuse_repeated(part, ("type", "text"), place)
            texts.append(_string(part["text"], place))
        elif isinstance(part, Mapping):
            raise UserError(f"{place}: a part of type {part.get('type')!r}; expected parts of type 'text' alone")
        else:
            texts.append(_string(part, place))
    return "".join(texts)


def _string(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        shown = json.dumps(value, default=str)[:40]
        raise UserError(f"{where}: a {_kind(value)} ({shown}); expected text")
    return value


def encodable(text: str, where: str) -> str:
    """Return `text` if it can be written as UTF-8.

    Raises:
        UserError: the text contains half of a surrogate pair, which JSON can write.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half of a surrogate pair (\\u{ord(text[error.start]):04x} at character {error.start}), which "
            "is no character; repair the escape"
        ) from None
    return text


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "record"
    names = {type(None): "null", bool: "true/false value", int: "number", float: "number", list: "list"}
    return names.get(type(value), type(value).__name__)
