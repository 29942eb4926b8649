"""Text that grows token by token: only whole characters, and in sum what decoding every id at once gives."""

import codecs
import copy
from collections.abc import Callable, Collection, Mapping
from typing import Protocol, Self

CONTEXT_TOKENS = 16
"""Tokens before a new one that its text may depend on: decoders look at their neighbour, or at one character."""


class TextStream(Protocol):
    """Ids in, text out; only whole characters come out, each as soon as it is certain."""

    def push(self, token: int) -> str:
        """Add `token` and return the text that became certain with it."""

    def flush(self) -> str:
        """Return what is left at the end: a character that was never finished, as U+FFFD."""

    def fork(self) -> Self:
        """Return a stream that goes on from here by itself."""


class ByteStream:
    """The stream of a byte-level tokenizer: each token is some bytes, and an unfinished character waits for the rest.

    Args:
        bytes_of: The bytes of each token; a token without any has no text.
    """

    def __init__(self, bytes_of: Mapping[int, bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Add `token` and return the text that became certain with it."""
        return self._decoder.decode(self._bytes_of.get(token, b""))

    def flush(self) -> str:
        """Return what is left at the end: a character that was never finished, as U+FFFD."""
        return self._decoder.decode(b"", final=True)

    def fork(self) -> Self:
        """Return a stream that goes on from here by itself."""
        other = copy.copy(self)
        other._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        other._decoder.setstate(self._decoder.getstate())
        return other


class WindowStream:
    """The stream of any other tokenizer: a few tokens are decoded with and without the new one; the rest is its text.

    The library's decoders treat the first token of a text differently (for example, they drop its space), so the tokens
    of the last released text are decoded again before each new one. A token costs the same at any position.

    Tokens that stand for bytes wait until their character is whole. With byte fallback the library takes a run of bytes
    that is not valid UTF-8 as U+FFFD for each byte; a character that was released before the run broke stays.

    Args:
        decode: Decode a list of ids, without special tokens.
        bytes_of: The bytes of the tokens that stand for bytes.
        special: Ids that are no text; decoding leaves them out before it looks at neighbours.
        fallback: Whether `bytes_of` is that of a byte fallback, not of a byte-level alphabet.
        shown: The texts of those of `special` that are shown.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        bytes_of: Mapping[int, bytes],
        special: Collection[int],
        *,
        fallback: bool,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._shown = shown or {}
        self._decode = decode
        self._bytes_of = bytes_of
        self._special = special
        self._fallback = fallback
        self._before: list[int] = []  # the tokens of the last released text
        self._silent: list[int] = []  # tokens after them that gave no text, but may matter to the next one
        self._unfinished: list[int] = []  # bytes of a character that is not whole
        self._broken = False  # the run of bytes at the end is no valid UTF-8

    def push(self, token: int) -> str:
        """Add `token` and return the text that became certain with it."""
        if token in self._special:
            return self.flush() + self._shown[token] if token in self._shown else ""
        if token not in self._bytes_of:
            text = self.flush() + self._release([token])
            self._broken = False
            return text
        if self._broken:
            return self._release([token])
        self._unfinished.append(token)
        data = b"".join(self._bytes_of[token] for token in self._unfinished)
        decoder = codecs.getincrementaldecoder("utf-8")("strict" if self._fallback else "replace")
        try:
            decoder.decode(data)
        except UnicodeDecodeError:
            return self.flush()
        if decoder.getstate()[0] and len(self._unfinished) < CONTEXT_TOKENS:
            return ""
        whole, self._unfinished = self._unfinished, []
        return self._release(whole)

    def flush(self) -> str:
        """Return what is left at the end: a character that was never finished, as U+FFFD."""
        tokens, self._unfinished = self._unfinished, []
        if not tokens:
            return ""
        if not self._fallback:
            return self._release(tokens)
        # On their own: one run with the valid bytes before them would turn those into U+FFFD as well.
        text = self._decode([*self._silent, *tokens])
        self._before, self._silent, self._broken = tokens, [], True
        return text

    def fork(self) -> Self:
        """Return a stream that goes on from here by itself."""
        other = copy.copy(self)
        other._before, other._silent, other._unfinished = [*self._before], [*self._silent], [*self._unfinished]
        return other

    def _release(self, tokens: list[int]) -> str:
        """Return the text of `tokens`, which are whole characters, after those before them."""
        self._silent += tokens
        text = self._decode(self._before + self._silent)[len(self._decode(self._before)) :]
        if not text:
            if len(self._silent) > CONTEXT_TOKENS:
                del self._silent[0]
            return ""
        # A decoder that strips several spaces from the start of a text must find the same ones to strip again.
        keep = text.isspace() and len(self._before) < CONTEXT_TOKENS
        self._before = [*(self._before if keep else []), *self._silent]
        self._silent = []
        return text
