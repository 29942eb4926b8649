"""Text to token ids."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ....contract.text.stretches import ENCODED_CHARS, cut_stretches
from ...system.interruptible import run_interruptibly
from .ids import UNKNOWN

CODEPOINTS = 0x110000
QUICK_CHARS = 2**16
"""A batch of fewer characters is encoded in the caller's thread: it takes no longer than a signal may wait."""

Cut = Callable[[int], None]  # called with the length of a stretch of text that was cut


def codepoints(text: str) -> NDArray[np.uint32]:
    """Return the code points of `text`, one per character."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


class Encoder:
    """Text to ids, as the tokenizer gives them with special tokens switched off.

    For `chars` and `bytes` a table does the same some thirty times faster; a test compares the two. The others run on
    the library's own threads: nine tenths of the time are spent there. On two cores a pool of processes was slower for
    bpe (3.6 s against 2.6 s) and faster for words (1.1 s against 2.0 s); one way serves both.
    """

    def __init__(self, tokenizer_json: str, kind: str, cut: Cut | None = None) -> None:
        """Read the tokenizer of `kind`; `cut` is called with the length of a stretch that is encoded in pieces."""
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True  # special tokens in the text are text
        self._table: NDArray[np.uint32] | None = None
        self._kind = kind
        self._cut = cut
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._leads = [token.content for token in added if not token.special]  # a text that spells them means them
        if kind == "chars":
            vocab = self._tokenizer.get_vocab(with_added_tokens=True)
            self._table = np.full(CODEPOINTS, vocab[UNKNOWN], dtype=np.uint32)
            for token, number in vocab.items():
                if len(token) == 1:
                    self._table[ord(token)] = number

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text."""
        if self._kind == "bytes" or self._table is not None:
            return [self._by_table(text) for text in texts]
        pieces: list[str] = []
        counts: list[int] = []  # of pieces of each text
        for text in texts:
            cut, longest = cut_stretches(text, ENCODED_CHARS)
            pieces += cut
            counts.append(len(cut))
            if longest and self._cut:
                self._cut(longest)

        def encode() -> list[Encoding]:
            return self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)

        encodings = encode() if sum(map(len, pieces)) < QUICK_CHARS else run_interruptibly(encode)
        arrays = iter([np.array(encoding.ids, dtype=np.uint32) for encoding in encodings])
        return [np.concatenate([next(arrays) for _ in range(count)]) for count in counts]

    def _by_table(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of a text of characters or bytes."""
        if any(lead in text for lead in self._leads):
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        if self._table is not None:
            return self._table[codepoints(text)]
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)
