"""The tokenizers that training makes, all of the `tokenizers` library: byte-level BPE, words, chars and bytes.

The end-of-text token `<|endoftext|>` is always in the vocabulary, and is the only special token that we make. It stands
only where we put it: text that happens to spell it is tokenised as the characters it is.
"""

from collections.abc import Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ....contract.byte_table import byte_characters
from ....contract.errors import UserError
from ....contract.files import user_path
from ....contract.messages import EOS
from ....contract.text.stretches import LEARNED_CHARS, cut_stretches
from ...system.interruptible import run_interruptibly
from ..config import TokenizerConfig
from .encoder import CODEPOINTS, Cut, codepoints
from .ids import UNKNOWN
from .tokenizer_json import load_tokenizer

# A word with the space before it, a single other character with the space before it, and white space; a run of white
# space leaves its last space to the word after it. Every character is in exactly one match, so joining the tokens gives
# the text back.
WORDS_PATTERN = r" ?\w+| ?[^\w\s]|\s+(?!\S)|\s+"


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
