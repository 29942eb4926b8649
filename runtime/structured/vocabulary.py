"""The tokens of a model, in the form that llguidance reads."""

import random

from ...contract.errors import UserError
from ..generation.text.tokenizer import Tokenizer

PAIRS = 300
"""Pairs of tokens whose text is compared with the texts of the two."""


class Vocabulary:
    """The bytes of each token, and the function that cuts a text into tokens.

    Args:
        tokenizer: The tokenizer of the model.

    Raises:
        UserError: What a token adds to a text depends on its neighbours.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.ends = sorted(tokenizer.ends)
        self._bytes = tokenizer.token_bytes()
        self.special_token_ids = [token for token, data in enumerate(self._bytes) if not data]
        # llguidance takes special tokens of one name for one token, so each gets a name that no other has.
        self.tokens = [data or f"<special {token}>".encode() for token, data in enumerate(self._bytes)]
        self._encode = tokenizer.encode
        self._ids = {data: token for token, data in reversed(list(enumerate(self._bytes))) if data}
        self._longest = max(map(len, self._ids), default=0)
        check_joins(tokenizer, self._bytes)

    def __call__(self, text: str) -> list[int]:
        """Return ids whose bytes are those of the text: its usual ones, else the longest that fit; [] for none.

        The usual ones differ where the tokenizer puts a space before a text, or does not know a character.
        """
        ids, data = self._encode(text), text.encode()
        return ids if b"".join(self._bytes[token] for token in ids) == data else self._longest_first(data)

    def _longest_first(self, data: bytes) -> list[int]:
        ids: list[int] = []
        begin = 0
        while begin < len(data):
            for end in range(min(begin + self._longest, len(data)), begin, -1):
                token = self._ids.get(data[begin:end])
                if token is not None:
                    ids.append(token)
                    begin = end
                    break
            else:
                return []
        return ids


def check_joins(tokenizer: Tokenizer, table: list[bytes]) -> None:
    """Raise UserError if the text of some pairs of tokens is not that of the first, then that of the second."""
    whole = [token for token, data in enumerate(table) if data and "\N{REPLACEMENT CHARACTER}" not in _text(data)]
    choice = random.Random(0)
    pairs = [(choice.choice(whole), choice.choice(whole)) for _ in range(PAIRS if whole else 0)]
    for first, second in [*pairs, *((token, token) for token in whole[:PAIRS])]:
        stream = tokenizer.stream([token for token in tokenizer.encode("a") if table[token]])
        text = stream.push(first) + stream.push(second) + stream.flush()
        if text.encode() != table[first] + table[second]:
            raise UserError(
                f"this model's tokenizer cannot follow a grammar: the text of its tokens {first} and {second} is "
                f"{text!r}, expected {_text(table[first] + table[second])!r}; use a model with a byte-level tokenizer"
            )


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
