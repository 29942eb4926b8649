"""Tokenizers, all of the `tokenizers` library: byte-level BPE, words, chars, bytes, or a tokenizer.json that exists.

The end-of-text token `<|endoftext|>` is always in the vocabulary, and is the only special token that we make. It stands
only where we put it: text that happens to spell it is tokenised as the characters it is.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ....contract.byte_table import byte_characters
from ....contract.errors import UserError
from ....contract.file_names import TOKENIZER
from ....contract.files import user_path
from ....contract.messages import EOS
from ....contract.text.stretches import ENCODED_CHARS, LEARNED_CHARS, cut_stretches
from ...system.interruptible import run_interruptibly
from ..config import TokenizerConfig

UNKNOWN = "<unk>"
# A word with the space before it, a single other character with the space before it, and white space; a run of white
# space leaves its last space to the word after it. Every character is in exactly one match, so joining the tokens gives
# the text back.
WORDS_PATTERN = r" ?\w+| ?[^\w\s]|\s+(?!\S)|\s+"
CODEPOINTS = 0x110000
MAX_UNUSED_IDS = 2**20
"""Ids below the highest that a tokenizer.json may leave out: each costs a row of the embedding."""

QUICK_CHARS = 2**16
"""A batch of fewer characters is encoded in the caller's thread: it takes no longer than a signal may wait."""

Cut = Callable[[int], None]  # called with the length of a stretch of text that was cut


def make_tokenizer(config: TokenizerConfig, texts: Iterator[str], cut: Cut | None = None) -> Tokenizer:
    """Make the tokenizer of `config`.

    Args:
        config: The kind, and what bounds it.
        texts: The training text; only the kinds that learn from it read it.
        cut: Called with the length of each stretch that is too long to learn from in one piece.

    Raises:
        UserError: The vocabulary is too small to hold what the kind always holds, or the file is no tokenizer.
    """
    match config.kind:
        case "bytes":
            return byte_tokenizer()
        case "chars":
            return char_tokenizer(texts)
        case "words":
            return word_tokenizer(_in_pieces(texts, cut), config.size_limit)
        case "bpe":
            return bpe_tokenizer(_in_pieces(texts, cut), config.size_limit)
        case path:
            return load_tokenizer(user_path(path))


def _in_pieces(texts: Iterator[str], cut: Cut | None) -> Iterator[str]:
    for text in texts:
        pieces, longest = cut_stretches(text, LEARNED_CHARS)
        if longest and cut:
            cut(longest)
        yield from pieces


def byte_tokenizer() -> Tokenizer:
    """Make one token per byte of UTF-8, whose id is the byte; end-of-text is 256."""
    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(byte_characters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def char_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Make one token per character of the training text, in code point order; any other character is unknown."""
    seen = np.zeros(CODEPOINTS, dtype=bool)
    for text in texts:
        seen[codepoints(text)] = True
    vocab = {EOS: 0, UNKNOWN: 1}
    for code in np.flatnonzero(seen):
        vocab[chr(code)] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def word_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learn the most frequent words and punctuation marks, each with the space before it; any other is unknown."""
    if vocab_size < 3:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size} is too small: words needs at least 3 ({EOS}, {UNKNOWN} and one word)"
        )
    tokenizer = Tokenizer(models.WordLevel(vocab={}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS_PATTERN), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    # <unk> is made special for the trainer, which has no other way to keep it, and then put back to a plain entry, so
    # that text that spells <unk> is not taken for it.
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=[EOS, UNKNOWN], show_progress=False)
    run_interruptibly(lambda: tokenizer.train_from_iterator(texts, trainer))
    plain = Tokenizer(models.WordLevel(vocab=tokenizer.get_vocab(with_added_tokens=True), unk_token=UNKNOWN))
    plain.pre_tokenizer, plain.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    plain.add_special_tokens([EOS])
    return plain


def bpe_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learn byte-level byte pair encoding (GPT-2's): any text can be written, nothing is unknown."""
    least = 257
    if vocab_size < least:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size} is too small: byte-level BPE needs at least {least} (256 bytes and "
            f"{EOS}); raise it, or use --tokenizer bytes"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    run_interruptibly(lambda: tokenizer.train_from_iterator(texts, trainer))
    return tokenizer


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
