"""The decoder of an exported model's tokenizer: the bytes of each id, and streams of whole characters."""

import re
from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ....contract.byte_table import byte_characters
from .text_stream import CONTEXT_TOKENS, ByteStream, TextStream, WindowStream

BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


class Decoder:
    """What the ids of a tokenizer stand for. May be used from any thread.

    Args:
        library: The tokenizer of the tokenizers library.
        parsed: The content of its file.
        unknown_id: The id of all text that the vocabulary lacks; None if no text is unknown.
        encode: Encodes a text, whatever other threads do with `library`.
    """

    def __init__(
        self,
        library: Any,
        parsed: Mapping[str, Any],
        *,
        unknown_id: int | None,
        encode: Callable[[str], list[int]],
    ) -> None:
        self._library, self._unknown_id, self._encode = library, unknown_id, encode
        self._kinds = list(_kinds(parsed.get("decoder")))
        self._special = {one["id"]: one["content"] for one in parsed.get("added_tokens", []) if one["special"]}

    def stream(self, before: Sequence[int], show: bool | Collection[int] = False) -> TextStream:
        """Open a stream of the text that follows the ids `before`, such as a prompt; an empty list starts a text.

        The text of `before` and that of the stream together are the text of all ids.

        Args:
            before: Ids before the text.
            show: The special tokens that are shown, as they are spelled: all, none, or those with these ids.
        """
        shown = {n: text for n, text in self._special.items() if show is True or (show and n in show)}
        stream: TextStream
        if set(self._kinds) <= {"ByteLevel", "Fuse"} and self._kinds[:1] == ["ByteLevel"]:
            spelled = {number: text.encode() for number, text in shown.items()}
            stream = ByteStream(ChainMap(spelled, self._bytes_of) if shown else self._bytes_of)
        else:
            stream = WindowStream(
                self._decode_at_once, self._bytes_of, self._special, fallback=self._has_fallback, shown=shown
            )
        for token in self._end_of(before):
            stream.push(token)
        return stream

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that an id adds inside a text; none for special tokens and the unknown one."""
        if token in self._special or token == self._unknown_id:
            return b""
        data = self._bytes_of.get(token)
        if data is None:
            ids, skip = self._context  # the first token of a text is decoded differently
            data = self._decode_at_once([*ids, token])[skip:].encode()
        return data

    @cached_property
    def _context(self) -> tuple[list[int], int]:
        """The ids of a short text, and the length of its text."""
        ids = [number for number in self._encode("a") if number not in self._special and number != self._unknown_id]
        return ids, len(self._decode_at_once(ids))

    def _end_of(self, ids: Sequence[int]) -> list[int]:
        """Return the last ids that are text, a few, starting where a character starts."""
        end: list[int] = []
        for token in reversed(ids):
            if token in self._special:
                continue
            if len(end) >= CONTEXT_TOKENS and not _continues(self._bytes_of.get(end[-1], b"")):
                break
            end.append(token)
        return end[::-1]

    def _decode_at_once(self, ids: list[int]) -> str:
        return str(self._library.decode(ids, skip_special_tokens=True))

    @property
    def _has_fallback(self) -> bool:
        return "ByteFallback" in self._kinds

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        """The bytes of each token that stands for bytes; special tokens have none."""
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        if self._has_fallback:
            return {n: bytes.fromhex(token[3:5]) for token, n in vocabulary.items() if BYTE_TOKEN.fullmatch(token)}
        if "ByteLevel" not in self._kinds:
            return {}
        alphabet = {char: byte for byte, char in enumerate(byte_characters())}
        table = {}
        for token, number in vocabulary.items():
            if number in self._special:
                continue
            if all(char in alphabet for char in token):
                table[number] = bytes(alphabet[char] for char in token)
            else:  # an added token is written as it is
                table[number] = token.encode()
        return table


def _kinds(decoder: Any) -> Iterator[str]:
    """Yield the kinds of decoder that a text goes through, in order."""
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _kinds(part)
    else:
        yield decoder["type"]


def _continues(data: bytes) -> bool:
    """Whether `data` begins inside a character of UTF-8."""
    return bool(data) and 0x80 <= data[0] < 0xC0
