"""Word dropout and span shuffle, applied to windows while they are read. T tokens of a window, V vocabulary."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..cache import Stream
from ..tokenizers.ids import vocabulary_size
from ..windows.batches import Row, Windows
from ..windows.order import mix, uniform
from .codelike import looks_like_code
from .config import AugmentConfig

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
_SPACES = ("Ġ", "▁")  # a space in byte-level and in SentencePiece vocabularies
_BREAKS = ("Ċ", "\n")


class Words:
    """Finds words in a series of tokens by the text of each token; special tokens belong to none."""

    def __init__(self, tokenizer: Tokenizer, leads: Sequence[int] = ()) -> None:
        """Read the vocabulary; `leads` are tokens that belong to no word either."""
        texts: list[str] = []
        for number in range(vocabulary_size(tokenizer)):
            text = tokenizer.id_to_token(number) or ""
            for mark in _SPACES:
                text = text.replace(mark, " ")
            for mark in _BREAKS:
                text = text.replace(mark, "\n")
            texts.append(text)
        self._texts = texts
        self.special = np.zeros(len(texts), bool)  # (V,)
        self.special[[number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]] = True
        self.special[list(leads)] = True
        self._opens = np.array([text[:1].isspace() for text in texts])  # (V,) begins with white space
        self._shuts = np.array([text[-1:].isspace() for text in texts])  # (V,) ends with it
        self._first = np.array([text[:1].isalnum() for text in texts])  # (V,) begins inside a word
        self._last = np.array([text[-1:].isalnum() for text in texts])  # (V,) ends inside one
        self._breaks = np.array(["\n" in text for text in texts])  # (V,)

    def starts(self, tokens: Ints) -> Bools:
        """Mark where a word, with the space before it, or a sign begins: (T,)."""
        starts = np.ones(len(tokens), bool)
        joined = (self._last[tokens[:-1]] & self._first[tokens[1:]]) | self._shuts[tokens[:-1]]
        starts[1:] = self._opens[tokens[1:]] | ~joined
        return starts

    def fixed(self, tokens: Ints) -> Bools:
        """Mark tokens that stay in their place: (T,).

        These are ends of lines, special tokens, and words without a space before them, which would join with the word
        that they are moved after.
        """
        starts = self.starts(tokens)
        bare = (starts & ~self._opens[tokens] & self._first[tokens])[starts]  # (words,)
        return np.asarray(self._breaks[tokens] | self.special[tokens] | bare[np.cumsum(starts) - 1])

    def code(self, tokens: Ints) -> Bools:
        """Mark the documents, or their parts in this window, that look like code: (T,)."""
        code = np.zeros(len(tokens), bool)
        for begin, end in runs(~self.special[tokens]):
            code[begin:end] = looks_like_code("".join(self._texts[token] for token in tokens[begin:end].tolist()))
        return code


class Noise:
    """Changes windows as the config says.

    Args:
        config: Which noise, and how much.
        words: Finds words in tokens.
        stream: The text that replacements are drawn from.
        unknown: The id of the unknown token, which replaces them if the config sets `unknown_word`.
    """

    def __init__(self, config: AugmentConfig, words: Words, stream: Stream, unknown: int | None) -> None:
        self.config, self._words, self._stream, self._unknown = config, words, stream, unknown

    def row(self, row: Row, key: int) -> Row:
        """Change a window as `key` chooses: a shuffle changes ids and targets alike, dropout the ids alone.

        Special tokens, padding and the loss mask stay; words change places only among words that are scored alike, and
        never in an answer whose question is not scored.
        """
        tokens = np.append(row.ids, row.targets[-1])  # (T + 1,)
        plain = ~self._words.special[tokens]
        if self.config.leave_code:
            plain &= ~self._words.code(tokens)
        if self.config.span_shuffle:
            tokens = self._shuffled(tokens, plain, row.loss_mask, mix(key, 1))
        ids = tokens[:-1].copy()
        if self.config.word_dropout:
            dropped = plain[:-1] & (uniform(len(ids), mix(key, 2)) < self.config.word_dropout)
            ids[dropped] = self._replacements(ids, mix(key, 3))[dropped]
        return Row(ids, tokens[1:], row.loss_mask)

    def _replacements(self, ids: Ints, key: int) -> Ints:
        """Draw a replacement for each token, from the training text or the unknown token: (T,)."""
        if self.config.unknown_word:
            return np.full(len(ids), self._unknown, np.int64)
        places = (uniform(len(ids), key) * len(self._stream.tokens)).astype(np.int64)
        drawn = np.asarray(self._stream.tokens[places]).astype(np.int64)
        return np.where(self._words.special[drawn], ids, drawn)

    def _shuffled(self, tokens: Ints, plain: Bools, scored: Bools, key: int) -> Ints:
        """Shuffle the words of some spans of `tokens` (T + 1,); `scored` (T,) belongs to all but the first."""
        movable = plain & ~self._words.fixed(tokens)
        movable[0] = False  # the first word of the window may have begun before it
        if self._stream.mask is not None:
            movable[1:] &= ~scored  # an answer stays as it is
        starts = self._words.starts(tokens)
        changed = tokens.copy()
        drawn = uniform(len(tokens), key)
        for begin, end in runs(movable):
            words = np.append(begin + np.flatnonzero(starts[begin:end]), end)  # where words begin, and the end
            if end < len(tokens) and not starts[end]:
                words = words[:-1]  # the last word continues after the run
            for first in range(0, len(words) - 2, self.config.span_words):
                span = words[first : first + self.config.span_words + 1]
                if len(span) > 2 and drawn[span[0]] < self.config.span_shuffle:
                    order = np.argsort(uniform(len(span) - 1, mix(key, int(span[0]))), kind="stable")
                    changed[span[0] : span[-1]] = np.concatenate([tokens[span[at] : span[at + 1]] for at in order])
        return changed


class NoisyWindows:
    """Windows changed by `noise`, each number in another way, so that epochs differ too."""

    def __init__(self, windows: Windows, noise: Noise, key: int) -> None:
        self._windows, self._noise, self._key = windows, noise, key

    def row(self, number: int, length: int) -> Row:
        """Return window `number` of the series."""
        return self._noise.row(self._windows.row(number, length), mix(self._key, number, length))

    def count(self, epochs: int, length: int) -> int:
        """Count the windows of `length` tokens in the first `epochs` epochs."""
        return self._windows.count(epochs, length)


def runs(flags: Bools) -> list[tuple[int, int]]:
    """List the begin and end of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
