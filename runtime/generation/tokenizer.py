"""The tokenizer of an exported model: text to ids, and ids to a stream of whole characters."""

import codecs
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from ...contract.byte_table import byte_characters
from ...contract.errors import UserError

MAX_PENDING = 3  # tokens that an unfinished character can fill: four bytes of UTF-8, of which the last is missing


class Tokenizer:
    """`tokenizer.json` of an exported model.

    Special tokens that a text spells out are read as the characters they are: only the program puts special tokens in.
    """

    def __init__(self, path: Path, *, size: int, eos_id: int) -> None:
        """Read `path`; `size` and `eos_id` are the manifest's. Raises UserError if it is no tokenizer, or another."""
        try:
            self._json = path.read_text(encoding="utf-8")
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(self._json)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is no tokenizer: {error}; export the model again") from error
        found = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if found != size:
            raise UserError(
                f"{path} has a vocabulary of {found}, the model was made for {size}: they do not belong together; "
                "export the model again"
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.size = size
        self.eos_id = eos_id
        name = getattr(self._tokenizer.model, "unk_token", None)
        self.unknown_id: int | None = self._tokenizer.token_to_id(name) if isinstance(name, str) else None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Raises UserError for text that UTF-8 cannot hold."""
        return list(self._encoding(text).ids)

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `text`, and for each the characters (start, end) that it stands for."""
        encoding = self._encoding(text)
        return list(encoding.ids), list(encoding.offsets)

    def _encoding(self, text: str) -> Any:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text is not valid UTF-8: found {text[error.start]!r} at character {error.start}; save it as UTF-8"
            ) from error
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, without special tokens; what a `TextStream` gives in pieces, in one piece."""
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self) -> "TextStream":
        """A new stream of text, for one generation."""
        if self._decoder == "ByteLevel":
            return ByteStream(self._bytes)
        return WindowStream(self._tokenizer)

    @cached_property
    def _parsed(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self._json)
        return parsed

    @cached_property
    def _decoder(self) -> str | None:
        decoder = self._parsed.get("decoder")
        return decoder.get("type") if decoder else None

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """The bytes of each token of a byte-level tokenizer; special tokens have none."""
        alphabet = {char: byte for byte, char in enumerate(byte_characters())}
        special = {token["id"] for token in self._parsed.get("added_tokens", []) if token["special"]}
        table = {}
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if number in special:
                table[number] = b""
            elif all(char in alphabet for char in token):
                table[number] = bytes(alphabet[char] for char in token)
            else:  # an added token is written as it is
                table[number] = token.encode()
        return table


class TextStream(Protocol):
    """Ids in, text out; only whole characters come out, each as soon as it is certain."""

    def push(self, token: int) -> str:
        """The text that became certain with `token`."""

    def flush(self) -> str:
        """What is left at the end: a character that was never finished, as U+FFFD."""


class ByteStream:
    """The stream of a byte-level tokenizer: each token is some bytes, and a decoder holds an unfinished character."""

    def __init__(self, table: dict[int, bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._table.get(token, b""))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowStream:
    """The stream of any other tokenizer, whose decoder sees neighbours: the last released tokens are decoded again.

    The window is the tokens of the last release and those since, a few, so a token costs the same wherever it is.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # released; decoded again so that the decoder sees what stands before
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        self._pending.append(token)
        text = self._decode(self._pending)
        if not text.endswith("�"):
            return self._release(len(self._pending), text)
        if len(self._pending) <= MAX_PENDING:
            return ""
        # Too many tokens for one character: what stands before the last three can change no more.
        ready = len(self._pending) - MAX_PENDING
        return self._release(ready, self._decode(self._pending[:ready]))

    def flush(self) -> str:
        return self._release(len(self._pending), self._decode(self._pending)) if self._pending else ""

    def _release(self, count: int, text: str) -> str:
        if text:  # tokens without text leave the window as it is: they may still matter to what follows
            self._before, self._pending = self._pending[:count], self._pending[count:]
        elif count > MAX_PENDING:
            self._pending = self._pending[1:]
        return text

    def _decode(self, ids: list[int]) -> str:
        before: str = self._tokenizer.decode(self._before, skip_special_tokens=True)
        whole: str = self._tokenizer.decode(self._before + ids, skip_special_tokens=True)
        return whole[len(before) :]
