"""Small tokenizers of every family that a tokenizer.json may hold, for tests of text that goes in and comes out."""

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END = "<|endoftext|>"
UNKNOWN = "<unk>"
LINES = ["The quick brown fox jumps over a lazy dog, it's 12.5 years old.", "Höhe über 中文 字 e\u0301 🙂 don't ."] * 20


def _bytes_and(characters: str) -> dict[str, int]:
    vocab = {UNKNOWN: 0, END: 1}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for char in characters:
        vocab.setdefault(char, len(vocab))
    return vocab


def _learned(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _learned(tokenizer, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))


def byte_level_in_sequence() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _learned(tokenizer, trainers.BpeTrainer(vocab_size=90, special_tokens=[UNKNOWN], show_progress=False))


def byte_fallback() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(_bytes_and("▁abcdefgx"), [], unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def byte_fallback_metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(_bytes_and("▁abcdefgx"), [], unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def llama2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(_bytes_and("▁abcdefgx"), [], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def several_stripped() -> Tokenizer:
    tokenizer = llama2()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁▁▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 3, 0)]
    )
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _learned(tokenizer, trainers.WordPieceTrainer(vocab_size=120, special_tokens=[UNKNOWN], show_progress=False))


def plain_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _learned(tokenizer, trainers.WordLevelTrainer(special_tokens=[UNKNOWN], show_progress=False))


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=[UNKNOWN], unk_token=UNKNOWN, show_progress=False)
    return _learned(tokenizer, trainer)


def ctc() -> Tokenizer:
    vocab = {char: number for number, char in enumerate(["<pad>", UNKNOWN, "|", *"abcdefghijklmnopqrstuvwxyz'.,"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", "|")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.CTC(pad_token="<pad>", word_delimiter_token="|")  # noqa: S106 - no password
    return tokenizer


def suffix() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=[UNKNOWN], end_of_word_suffix="</w>", show_progress=False
    )
    return _learned(tokenizer, trainer)


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level in a sequence": byte_level_in_sequence,
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "byte fallback": byte_fallback,
    "byte fallback with metaspace": byte_fallback_metaspace,
    "Llama 2": llama2,
    "byte fallback, three spaces stripped": several_stripped,
    "WordPiece": wordpiece,
    "words without decoder": plain_words,
    "Unigram": unigram,
    "CTC": ctc,
    "BPE with suffix": suffix,
}


def family(name: str) -> Tokenizer:
    """Train a tokenizer of the family `name`, with an end-of-text token."""
    tokenizer = FAMILIES[name]()
    tokenizer.add_special_tokens([END])
    return tokenizer
