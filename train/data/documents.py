"""Every item as a series of segments: strings to tokenise, whether they are scored, where documents begin and end."""

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...contract.errors import UserError
from ...contract.messages import Message
from .augment.rewrite import Rewriter
from .chat import ChatTemplate
from .order import mix
from .records import read_records
from .sources import Item
from .text import text_chunks


class Segment(NamedTuple):
    """A string that is tokenised on its own."""

    text: str
    scored: bool  # its tokens count in the loss
    starts: bool  # a document begins here
    eos: bool  # the end-of-text token follows
    held_out: bool
    answer: bool = False  # said by the assistant


def segments(
    item: Item,
    cut: int,
    template: ChatTemplate,
    answers_only: bool,
    rewriter: Rewriter | None = None,
    place: int = 0,
) -> Iterator[Segment]:
    """The segments of `item`; all after its first `cut` characters (plain text) or documents (records) is held out.

    `rewriter` has the word on each training document of the item, which is number `place` of its source.
    """
    if item.kind == "text":
        assert item.path is not None
        fresh = True
        part = False
        for number, (held_out, text, last) in enumerate(text_chunks(item.path, cut)):
            fresh = fresh or held_out != part
            part = held_out
            said = text if rewriter is None or held_out else rewriter.text(text, mix(place, number))
            yield Segment(said, True, fresh, last, held_out)
            fresh = last
        return
    number = 0
    for where, record in read_records(item):
        document = document_of(record, item.text_field, where, item.end_marker)
        if not document:
            continue
        held_out = number >= cut
        number += 1
        if isinstance(document, str):
            if rewriter is not None and not held_out:
                document = rewriter.record(document, mix(place, number))
            yield Segment(encodable(document, where), True, True, True, held_out)
            continue
        if rewriter is not None and not held_out:
            document = rewriter.messages(document, mix(place, number))
        pieces = template.segments(document, where)
        for index, (text, answer, eos) in enumerate(pieces):
            last = index == len(pieces) - 1
            scored = answer or not answers_only
            yield Segment(encodable(text, where), scored, index == 0, eos or last, held_out, answer)


def document_of(
    record: object, text_field: str | None, where: str, end_marker: str | None = None
) -> str | list[Message]:
    """What a record says: its text, without the marker of its end, or the messages of a conversation.

    Raises UserError when it holds neither.
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
    fields = ", ".join(map(str, record)) or "none"
    if text_field is not None:
        if text_field not in record:
            raise UserError(f"{where}: no field {text_field!r}; the fields are: {fields}. Choose one with --text-field")
        value = record[text_field]
        if isinstance(value, list):
            return _messages(value, f"{where}, field {text_field!r}")
        return _string(value, f"{where}, field {text_field!r}")
    if "messages" in record:
        return _messages(record["messages"], f"{where}, field 'messages'")
    if "prompt" in record and "completion" in record:
        return [
            *_turn(record["prompt"], "user", f"{where}, field 'prompt'"),
            *_turn(record["completion"], "assistant", f"{where}, field 'completion'"),
        ]
    if "text" in record:
        return _string(record["text"], f"{where}, field 'text'")
    raise UserError(
        f"{where}: none of the fields text, messages, prompt + completion; the fields are: {fields}. "
        "Name the one that holds the text with --text-field"
    )


def _turn(value: object, role: str, where: str) -> list[Message]:
    if isinstance(value, list):
        return _messages(value, where)
    return [Message(role=role, content=_string(value, where))]


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise UserError(f"{where}: a {_kind(value)}; expected a list of messages with role and content")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            found = ", ".join(map(str, message)) if isinstance(message, Mapping) else _kind(message)
            raise UserError(f"{where}, message {number}: found {found}; expected the fields role and content")
        content = _string(message["content"], f"{where}, message {number}, content")
        messages.append(Message(role=_string(message["role"], f"{where}, message {number}, role"), content=content))
    return messages


def _string(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: a {_kind(value)} ({json.dumps(value, default=str)[:40]}); expected text")
    return value


def encodable(text: str, where: str) -> str:
    """`text`, if it can be written as UTF-8; JSON may spell half of a surrogate pair. Raises UserError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half of a surrogate pair (\\u{ord(text[error.start]):04x} at character {error.start}), which "
            "is no character; "
            "repair the escape"
        ) from None
    return text


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "true/false value", int: "number", float: "number", list: "list", dict: "record"}
    return names.get(type(value), type(value).__name__)
