"""A tokenizer.json: opened, and tokens added to it."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from ....contract.errors import UserError
from ....contract.file_names import TOKENIZER
from ....contract.messages import EOS
from .ids import eos_id, vocabulary_size

MAX_UNUSED_IDS = 2**20
"""Ids below the highest that a tokenizer.json may leave out: each costs a row of the embedding."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer.json, its truncation and padding off, `<|endoftext|>` added where it had none.

    Raises:
        UserError: It cannot be read, is no tokenizer, or has no usable vocabulary.
    """
    if path.is_dir():
        path = path / TOKENIZER
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(
            f"cannot read the tokenizer {path}: {reason}; expected a tokenizer.json of the tokenizers library"
        ) from None
    return parse_tokenizer(text, str(path))


def parse_tokenizer(text: str, name: str) -> Tokenizer:
    """Make the tokenizer that `text` holds as JSON; `name` is what messages call it.

    Raises:
        UserError: It is no tokenizer, or has no usable vocabulary.
    """
    tokenizer = open_tokenizer(text, name)
    count, size = tokenizer.get_vocab_size(), vocabulary_size(tokenizer)
    if count == 0:
        raise UserError(f"the tokenizer {name} has an empty vocabulary; train it first, or use --tokenizer bpe")
    if size - count > MAX_UNUSED_IDS:
        raise UserError(
            f"the tokenizer {name} has {count:,} tokens, but ids up to {size - 1:,}: each of the {size - count:,} "
            "unused ids would cost a row of the embedding; number its tokens from 0 without holes, or use "
            "--tokenizer bpe"
        )
    if size > count and tokenizer.token_to_id(EOS) is None:
        tokenizer = _with_entry(text, EOS, size, name)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([EOS])
    end = eos_id(tokenizer)
    shared = [token for token, number in tokenizer.get_vocab().items() if number == end and token != EOS]
    if shared:
        raise UserError(
            f"the tokenizer {name} gives the id {end} to {EOS} and to {shared[0]!r}; give each token an id of its own, "
            "or use --tokenizer bpe"
        )
    return tokenizer


def _with_entry(text: str, token: str, number: int, name: str) -> Tokenizer:
    """Put a token into the vocabulary of a tokenizer that leaves out ids.

    The library would give a new token the count of the others as its id, which may be that of another one.
    """
    content = json.loads(text)
    content["model"]["vocab"][token] = number
    return open_tokenizer(json.dumps(content), name)


def with_task_tokens(tokenizer: Tokenizer, tokens: Sequence[str], name: str) -> Tokenizer:
    """Add the tokens of tasks to a tokenizer. Unlike special tokens, a text that spells one out means it.

    Raises:
        UserError: The tokenizer has one of them already.
    """
    for token in tokens:
        number = tokenizer.token_to_id(token)
        if number is not None:
            raise UserError(
                f"the task token {token!r} is already in the tokenizer {name}, with id {number}; choose a token that "
                "is not, such as <|task:NAME|>"
            )
        if vocabulary_size(tokenizer) > tokenizer.get_vocab_size():
            tokenizer = _with_entry(tokenizer.to_str(), token, vocabulary_size(tokenizer), name)
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
    return tokenizer


def open_tokenizer(text: str, name: str) -> Tokenizer:
    """Make the tokenizer that `text` holds as JSON, without any change; `name` is what messages call it.

    Raises:
        UserError: It is no tokenizer.
    """
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"{name} is not a tokenizer.json ({error}); expected the file that `Tokenizer.save` of the tokenizers "
            "library writes"
        ) from None
