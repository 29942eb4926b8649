"""Tokenizers: what goes in comes out, what is unknown is said to be, and the end of a text cannot be typed."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data import TokenizerConfig
from adaptive_lm.train.data.chat import EOS
from adaptive_lm.train.data.text import rechunk
from adaptive_lm.train.data.tokenizers import UNKNOWN, Encoder, eos_id, make_tokenizer, unknown_id

ENGLISH = "The quick brown fox isn't as quick as it's said; the fox, it is said, was 12.5 years old.\n" * 20
HARD = [
    "👩‍👩‍👧 🏳️‍🌈 👍🏽 emoji",
    "漢字かなカナ 한국어 中文。",
    "e\u0301 n\u0303 \u0301alone combining",
    "  two  spaces\tand\ttabs \n\n\n  lines \r\n ends ",
    "\u00a0\u2003wide\u200bzero\ufeffbom\u2028line",
    "x_1 + y**2 == <|endoftext|> <unk> </s> \\n 'tis it's",
    "العربية עברית हिन्दी ไทย",
    "",
    " ",
    "\n",
    "\x00\x01\x7f",
]
KINDS = ["bpe", "words", "chars", "bytes"]


def trained(kind: str, *texts: str, vocab_size: int | None = None) -> Tokenizer:
    if kind == "bpe":
        vocab_size = vocab_size or 320
    return make_tokenizer(TokenizerConfig(kind=kind, vocab_size=vocab_size), iter(texts))


def encode(tokenizer: Tokenizer, kind: str, text: str) -> list[int]:
    """As the cache does it."""
    return Encoder(tokenizer.to_str(), kind).encode_batch([text])[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [*HARD, ENGLISH], ids=range(len(HARD) + 1))
def test_decoding_gives_the_text_back(kind, text):
    tokenizer = trained(kind, ENGLISH, *HARD)
    ids = encode(tokenizer, kind, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_byte_level_tokenizers_know_text_that_they_never_saw(kind, text):
    tokenizer = trained(kind, ENGLISH)
    assert unknown_id(tokenizer) is None
    assert tokenizer.decode(encode(tokenizer, kind, text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_tokens_decodes_to_the_whole_text(kind):
    text = "".join(HARD[:6])
    tokenizer = trained(kind, ENGLISH, text)
    stream = DecodeStream(skip_special_tokens=False)
    assert "".join(stream.step(tokenizer, i) or "" for i in encode(tokenizer, kind, text)) == text


@pytest.mark.parametrize(("kind", "text"), [("chars", "fox 冬冬 fox"), ("words", "The fox zzz")])
def test_what_was_never_seen_becomes_unknown_and_nothing_else_changes(kind, text):
    tokenizer = trained(kind, ENGLISH)
    ids = encode(tokenizer, kind, text)
    unknown = unknown_id(tokenizer)
    assert unknown is not None
    assert ids.count(unknown) == (2 if kind == "chars" else 1)
    assert tokenizer.decode(ids) == text.replace("冬", UNKNOWN).replace(" zzz", UNKNOWN)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_text_is_in_the_vocabulary_and_cannot_be_typed(kind):
    tokenizer = trained(kind, ENGLISH, f"spelt out: {EOS} {UNKNOWN}")
    ids = encode(tokenizer, kind, f"a {EOS} {UNKNOWN} b")
    assert eos_id(tokenizer) not in ids
    assert unknown_id(tokenizer) not in ids or kind == "words"
    # Put there by us, as the chat template does in generation, it is the token.
    assert tokenizer.encode(EOS).ids == [eos_id(tokenizer)]
    assert tokenizer.decode([eos_id(tokenizer)]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_ids_reach_exactly_to_the_size_of_the_vocabulary(kind):
    tokenizer = trained(kind, ENGLISH, *HARD)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    assert sorted(vocab.values()) == list(range(tokenizer.get_vocab_size(with_added_tokens=True)))


@pytest.mark.parametrize("kind", ["chars", "bytes"])
@pytest.mark.parametrize("text", [*HARD, ENGLISH, "never seen: 冬 ∮"], ids=range(len(HARD) + 2))
def test_the_table_gives_the_ids_of_the_library(kind, text):
    tokenizer = trained(kind, ENGLISH, *HARD[:3])
    json = tokenizer.to_str()
    plain = Encoder(json, "the library").encode_batch([text])[0]
    np.testing.assert_array_equal(Encoder(json, kind).encode_batch([text])[0], plain)


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_tokens_do_not_depend_on_where_the_text_was_cut_into_pieces(kind, monkeypatch):
    rng = random.Random(0)
    text = "".join(
        rng.choice(["word ", "x1", "\n", "\n\n", "  ", ". ", "'s", "\t", "é", "冬", " - "]) for _ in range(5000)
    )
    tokenizer = trained(kind, text)
    monkeypatch.setattr("adaptive_lm.train.data.text.PIECE_CHARS", 50)
    pieces = list(rechunk(iter([text])))
    assert len(pieces) > 100
    apart = np.concatenate(Encoder(tokenizer.to_str(), kind).encode_batch(pieces))
    assert apart.tolist() == encode(tokenizer, kind, text)


def test_words_are_words_with_the_space_before_them():
    tokenizer = trained("words", ENGLISH)
    tokens = [tokenizer.id_to_token(i) for i in encode(tokenizer, "words", "The fox, it's 12.5\n the fox")]
    assert tokens == ["The", " fox", ",", " it", "'", "s", " 12", ".", "5", "\n", " the", " fox"]


def test_the_most_frequent_words_fill_a_small_vocabulary():
    tokenizer = trained("words", "a a a b b c", vocab_size=4)
    assert set(tokenizer.get_vocab()) == {EOS, UNKNOWN, " a", " b"}


def test_chars_count_in_code_point_order_after_the_two_others():
    assert trained("chars", "banana\n").get_vocab() == {EOS: 0, UNKNOWN: 1, "\n": 2, "a": 3, "b": 4, "n": 5}


def test_a_byte_is_its_own_id():
    tokenizer = trained("bytes")
    assert encode(tokenizer, "bytes", "aé") == list("aé".encode())
    assert eos_id(tokenizer) == 256


def test_bpe_learns_the_same_from_the_same_text():
    assert trained("bpe", ENGLISH, *HARD).to_str() == trained("bpe", ENGLISH, *HARD).to_str()


def test_bpe_shortens_text_like_that_it_learned_from():
    tokenizer = trained("bpe", ENGLISH)
    assert len(encode(tokenizer, "bpe", ENGLISH)) < len(ENGLISH) / 2


@pytest.mark.parametrize(("kind", "size", "least"), [("bpe", 256, 257), ("words", 2, 3)])
def test_a_vocabulary_too_small_gives_the_smallest(kind, size, least):
    with pytest.raises(UserError, match=f"vocab_size={size} is too small: .* at least {least}"):
        trained(kind, ENGLISH, vocab_size=size)
    assert trained(kind, ENGLISH, vocab_size=least).get_vocab_size() == least


def test_a_size_where_it_has_no_effect_is_refused():
    with pytest.raises(ValueError, match="vocab_size=300 has no effect with kind 'chars'"):
        TokenizerConfig(kind="chars", vocab_size=300)


def test_a_misspelt_kind_brings_up_the_right_one():
    with pytest.raises(ValueError, match="'word' is not known; did you mean 'words'"):
        TokenizerConfig(kind="word")


def test_a_tokenizer_file_is_used_as_it_is_and_gets_an_end_of_text(write):
    source = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))  # noqa: S106 - no password
    source.pre_tokenizer = pre_tokenizers.Whitespace()
    source.normalizer = normalizers.Lowercase()
    source.enable_truncation(2)
    source.enable_padding(length=9)
    path = write("tokenizer.json", source.to_str())
    for name in (path, path.removesuffix("tokenizer.json")):
        tokenizer = trained(name)
        assert eos_id(tokenizer) == 3
        assert encode(tokenizer, name, "A B c a b") == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not a tokenizer.json"),
        ("not json", "is not a tokenizer.json"),
        (b"\xff\xfe", "cannot read the tokenizer .*: not UTF-8"),
        (Tokenizer(models.BPE()).to_str(), "has an empty vocabulary"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(write, content, message):
    with pytest.raises(UserError, match=message):
        trained(write("tokenizer.json", content))


def test_a_missing_tokenizer_file_is_named():
    with pytest.raises(UserError, match=r"cannot read the tokenizer nowhere/tokenizer\.json: No such file"):
        trained("nowhere/tokenizer.json")
