"""The token ids of a tokenizer: how many, the end of a text, and unknown text."""

import json

from tokenizers import Tokenizer, models

from ....contract.messages import EOS

UNKNOWN = "<unk>"
"""The token of unknown text in the tokenizers made here."""


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return the number of ids that a model needs: the highest + 1, since a vocabulary may leave some out."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def eos_id(tokenizer: Tokenizer) -> int:
    """Return the id of `<|endoftext|>`, which every tokenizer made or loaded here has."""
    number = tokenizer.token_to_id(EOS)
    assert number is not None
    return number


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of all text that the vocabulary lacks; None if no text is unknown."""
    if isinstance(tokenizer.model, models.Unigram):
        number: int | None = json.loads(tokenizer.to_str())["model"]["unk_id"]
        return number
    name = getattr(tokenizer.model, "unk_token", None)
    return tokenizer.token_to_id(name) if isinstance(name, str) else None
