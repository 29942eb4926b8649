"""Items as segments: strings to tokenise, whether they are scored, and where documents begin and end."""

from collections.abc import Iterator
from typing import NamedTuple

from ..augment.rewrite import Rewriter
from ..records import read_records
from ..records.document import document_of, encodable
from ..windows.order import mix
from .chat import ChatTemplate
from .sources import Item
from .text import text_chunks


class Segment(NamedTuple):
    """A string that is tokenised on its own."""

    text: str
    scored: bool
    """Whether its tokens count in the loss."""
    starts: bool
    """Whether a document begins here."""
    eos: bool
    """Whether the end-of-text token follows."""
    held_out: bool
    answer: bool = False
    """Whether the assistant is the speaker."""
    chat: bool = False
    """Whether a chat template wrote it."""


def segments(
    item: Item,
    cut: int,
    template: ChatTemplate,
    answers_only: bool,
    rewriter: Rewriter | None = None,
    place: int = 0,
) -> Iterator[Segment]:
    """Read the segments of an item.

    Args:
        item: The file or data set to read.
        cut: All after its first `cut` characters (plain text) or documents (records) is held out.
        template: Writes conversations.
        answers_only: Whether only answers are scored in conversations.
        rewriter: Rewrites the training documents, if given.
        place: The number of the item in its source, for the rewriter.
    """
    if item.kind == "text":
        assert item.path is not None
        fresh = True
        part = False
        for number, (held_out, text, last) in enumerate(text_chunks(item.path, cut)):
            fresh = fresh or held_out != part
            part = held_out
            written = text if rewriter is None or held_out else rewriter.text(text, mix(place, number))
            yield Segment(written, True, fresh, last, held_out)
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
            yield Segment(encodable(text, where), scored, index == 0, eos or last, held_out, answer, chat=True)
