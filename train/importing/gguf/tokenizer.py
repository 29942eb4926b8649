"""The tokenizer of a model in GGUF: rebuilt from the metadata, or given as a tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from ....contract.file_names import TOKENIZER
from ..errors import ForeignFileError, UnsupportedModelError
from .metadata import Metadata
from .pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of a token in `tokenizer.ggml.token_type`."""
SPACE = "\u2581"
"""How SentencePiece spells a space."""
CURE = f"put the tokenizer.json of the same model beside the file, as {TOKENIZER}, and import again"
MAX_FILE = 2**28
"""Bytes of a tokenizer.json beside the file."""
SAME = 0.99
"""Share of tokens whose ids must agree between the file and a tokenizer.json beside it."""


class Vocabulary(NamedTuple):
    """The tokens of a file, by id."""

    tokens: list[str]
    kinds: list[int]

    def of_kind(self, *kinds: int) -> list[int]:
        """List the ids of the tokens of some types."""
        return [number for number, kind in enumerate(self.kinds) if kind in kinds]

    def usable(self) -> dict[str, int]:
        """Return token -> id of all but those that only fill up the embedding."""
        return {token: number for number, (token, kind) in enumerate(zip(*self, strict=True)) if kind != UNUSED}


class ForeignTokenizer(NamedTuple):
    """A tokenizer, and what was noticed when it was read."""

    text: str
    """Its tokenizer.json."""
    vocabulary: Vocabulary
    pre: PreTokenizer
    notes: tuple[str, ...] = ()


def tokenizer_of(metadata: Metadata) -> ForeignTokenizer:
    """Return the tokenizer: that of the metadata key `tokenizer.huggingface.json`, that of the file beside, or rebuilt.

    Raises:
        UserError: There is none that can be read, or the one beside the file is of another model.
    """
    vocabulary = vocabulary_of(metadata)
    name = metadata.text("tokenizer.ggml.pre", "")
    pre = PRE_TOKENIZERS.get(name, PreTokenizer())
    if "tokenizer.huggingface.json" in metadata:
        text = metadata.text("tokenizer.huggingface.json")
        _check(text, f"the metadata tokenizer.huggingface.json of {metadata.path}", vocabulary)
        return ForeignTokenizer(text, vocabulary, pre)
    beside = metadata.path.with_name(TOKENIZER)
    if beside.is_file():
        text = _read(beside)
        _check(text, str(beside), vocabulary)
        return ForeignTokenizer(text, vocabulary, pre, (f"the tokenizer is {beside}, which stands beside the file",))
    kind = metadata.text("tokenizer.ggml.model")
    if kind == "gpt2":
        if name not in PRE_TOKENIZERS:
            raise UnsupportedModelError(
                f"{metadata.path} cuts text by the pre-tokenizer {name or 'that it does not name'!r}; known are "
                f"{', '.join(sorted(PRE_TOKENIZERS))}; {CURE}"
            )
        return ForeignTokenizer(_byte_level(metadata, vocabulary, pre).to_str(), vocabulary, pre)
    if kind == "llama":
        bos = PreTokenizer(add_bos=True)
        return ForeignTokenizer(_sentencepiece(metadata, vocabulary).to_str(), vocabulary, bos)
    raise UnsupportedModelError(f"{metadata.path} has a tokenizer of type {kind!r}; known are gpt2 and llama; {CURE}")


def vocabulary_of(metadata: Metadata) -> Vocabulary:
    """Return the tokens of a file.

    Raises:
        UserError: Their types are not as many, or two usable ones are spelled alike.
    """
    tokens = metadata.texts("tokenizer.ggml.tokens")
    key = "tokenizer.ggml.token_type"
    kinds = [int(kind) for kind in metadata.numbers(key, len(tokens))] if key in metadata else [NORMAL] * len(tokens)
    vocabulary = Vocabulary(tokens, kinds)
    if len(vocabulary.usable()) < len(tokens) - kinds.count(UNUSED):
        numbers: dict[str, int] = {}
        for number, token in enumerate(tokens):
            if kinds[number] != UNUSED and numbers.setdefault(token, number) != number:
                raise ForeignFileError(
                    f"{metadata.path} spells the tokens {numbers[token]} and {number} alike, {token!r}; {CURE}"
                )
    return vocabulary


def _byte_level(metadata: Metadata, vocabulary: Vocabulary, pre: PreTokenizer) -> Tokenizer:
    """Rebuild byte-level BPE; its merges are in the file."""
    vocab = vocabulary.usable()
    merges = []
    for merge in metadata.texts("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")  # no part has a space: it is spelled otherwise
        if not space or left not in vocab or right not in vocab or left + right not in vocab:
            raise ForeignFileError(f"{metadata.path}: the merge {merge!r} is not one of two tokens into one; {CURE}")
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.whole_words))
    tokenizer.pre_tokenizer = pre.build()
    if pre.composed:
        tokenizer.normalizer = pre.normalizer()
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, vocabulary, frozenset())
    return tokenizer


def _sentencepiece(metadata: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    """Rebuild a SentencePiece model as BPE whose merges follow from the scores, with bytes for unknown characters."""
    vocab = vocabulary.usable()
    scores = metadata.numbers("tokenizer.ggml.scores", len(vocabulary.tokens))
    unknown = vocabulary.of_kind(UNKNOWN)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges_of(vocabulary, scores),
            unk_token=vocabulary.tokens[unknown[0]] if unknown else None,
            fuse_unk=True,
            byte_fallback=bool(vocabulary.of_kind(BYTE)),
        )
    )
    prefixed = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    prefix = [normalizers.Prepend(SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefixed else parts)
    phi3 = "phi-3" in metadata.text("general.name", "").lower() or "phi3" in metadata.text("general.name", "").lower()
    stripping = {vocabulary.tokens[number] for number in vocabulary.of_kind(CONTROL)} if phi3 else set()
    _add_tokens(tokenizer, vocabulary, frozenset(stripping - {"<s>", "<unk>", "<|endoftext|>"}))
    return tokenizer


def merges_of(vocabulary: Vocabulary, scores: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece model: each token from any two, the highest score first."""
    normal = vocabulary.of_kind(NORMAL)
    parts = {vocabulary.tokens[number]: number for number in vocabulary.of_kind(NORMAL, USER_DEFINED, UNKNOWN)}
    ranked: list[tuple[float, int, int, tuple[str, str]]] = []
    for number in normal:
        token = vocabulary.tokens[number]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in parts and right in parts:
                ranked.append((-scores[number], -cut, cut - len(token), (left, right)))
    ranked.sort(key=lambda each: each[:3])
    return [pair for *_, pair in ranked]


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary, stripping: frozenset[str]) -> None:
    """Add the tokens that text is cut at first: special ones, and those that the makers of the model defined."""
    special = vocabulary.of_kind(CONTROL, UNKNOWN)
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=token in stripping)
            for token in _texts(vocabulary, special)
        ]
    )
    defined = _texts(vocabulary, vocabulary.of_kind(USER_DEFINED))
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in defined])


def _texts(vocabulary: Vocabulary, numbers: Sequence[int]) -> list[str]:
    return [vocabulary.tokens[number] for number in numbers if vocabulary.tokens[number]]


def _check(text: str, name: str, vocabulary: Vocabulary) -> None:
    """Refuse a tokenizer.json that is none, or that gives other ids to the tokens of the file.

    Raises:
        ForeignFileError: It does.
    """
    try:
        ids = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare Exception
        raise ForeignFileError(f"{name} is not a tokenizer.json ({error}); replace it by that of the model") from None
    usable = vocabulary.usable()
    same = sum(ids.get(token) == number for token, number in usable.items())
    if same < SAME * len(usable):
        raise ForeignFileError(
            f"{name} is of another model: {same:,} of the {len(usable):,} tokens of the GGUF file have the same id in "
            "it; move it away, or replace it by that of the model"
        )


def _read(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_FILE:
        raise ForeignFileError(f"{path} has {size:,} bytes, expected at most {MAX_FILE:,}; replace it")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ForeignFileError(f"cannot read {path}: {error}; replace it, or move it away") from None
