"""Tokenizers: text is reproduced, unknown text is reported, and the end-of-text token cannot be typed."""

import itertools
import random
import re
import time

import numpy as np
import pytest
from support.cover import rest_slow
from support.foreign.tokenizer_families import byte_level
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.messages import EOS
from adaptive_lm.contract.text.stretches import ENCODED_CHARS, cut_stretches
from adaptive_lm.train.data import TokenizerConfig
from adaptive_lm.train.data.sources.text import rechunk
from adaptive_lm.train.data.tokenizers.encoder import Encoder
from adaptive_lm.train.data.tokenizers.ids import UNKNOWN, eos_id, unknown_id, vocabulary_size
from adaptive_lm.train.data.tokenizers.tokenizers import make_tokenizer

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
    """Encode a text as the cache does."""
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
    monkeypatch.setattr("adaptive_lm.train.data.sources.text.PIECE_CHARS", 50)
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


def holed(*, end: bool = False) -> str:
    """Make a tokenizer whose ids have a gap, so that the id that equals the vocabulary size is taken."""
    vocab = {"a": 0, "b": 2, "?": 3, **({EOS: 7} if end else {})}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


@pytest.mark.parametrize(("end", "eos"), [(False, 4), (True, 7)])
def test_a_vocabulary_with_a_hole_is_as_large_as_its_highest_id(write, corpus_of, said, end, eos):
    name = write("tokenizer.json", holed(end=end))
    tokenizer = trained(name)
    assert eos_id(tokenizer) == eos
    assert vocabulary_size(tokenizer) == eos + 1
    assert encode(tokenizer, name, "a b c") == [0, 2, 3]
    assert tokenizer.decode([3, eos], skip_special_tokens=True) == "?"
    corpus = corpus_of(write("a.txt", "a b " * 200), tokenizer=name)
    assert corpus.vocab_size == eos + 1 > corpus.batch(0, 4, 16).ids.max()
    assert said[0].startswith(f"{eos + 1 - (4)} ids of the tokenizer stand for no token")


def test_a_vocabulary_of_holes_is_refused_with_its_highest_id(write):
    content = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str()  # noqa: S106 - no password
    content = content.replace('"b":1', f'"b":{2**31}')
    with pytest.raises(UserError, match=r"tokenizer\.json has 2 tokens, but ids up to 2,147,483,648: .* without holes"):
        trained(write("tokenizer.json", content))


def test_an_end_of_text_that_shares_its_id_is_refused(write):
    """The library saves this file when it adds a token to a vocabulary with a gap."""
    tokenizer = Tokenizer.from_str(holed())
    tokenizer.add_special_tokens([EOS])
    content = tokenizer.to_str()
    with pytest.raises(UserError, match=r"gives the id 3 to <\|endoftext\|> and to '\?'"):
        trained(write("tokenizer.json", content))


STRETCHES = ["ACGT", "0", " ", "\n", "=_", "中", "\u0301"]


@pytest.mark.parametrize(
    ("unit", "kind"),
    rest_slow(
        itertools.product(STRETCHES, ["bpe", "words", "chars", "bytes"]),
        [*((unit, "bpe") for unit in STRETCHES), ("ACGT", "words"), (" ", "words"), ("ACGT", "chars"), ("0", "bytes")],
    ),
)
def test_a_stretch_without_a_break_trains_within_seconds_and_is_named(write, corpus_of, said, kind, unit):
    rng = random.Random(1)
    stretch = "".join(rng.choice(unit) for _ in range(120_000))
    started = time.monotonic()
    corpus = corpus_of(write("a.txt", f"some words\n{stretch}\nand more words\n" * 2), tokenizer=kind)
    assert time.monotonic() - started < 20
    assert sum("without a break is cut" in note for note in said) == (kind in ("bpe", "words"))
    assert corpus.train_tokens


@pytest.mark.parametrize("unit", ["ACGT", "0", " ", "=_", "中"])
def test_a_cut_stretch_decodes_to_the_same_text(unit):
    tokenizer = trained("bpe", ENGLISH)
    rng = random.Random(2)
    text = "ab " + "".join(rng.choice(unit) for _ in range(3 * ENCODED_CHARS)) + " cd"
    lengths: list[int] = []
    ids = Encoder(tokenizer.to_str(), "bpe", lengths.append).encode_batch(["x y", text])
    assert tokenizer.decode(ids[1].tolist()) == text
    assert tokenizer.decode(ids[0].tolist()) == "x y"
    assert len(lengths) == 1
    assert 0 <= lengths[0] - 3 * ENCODED_CHARS <= 2  # the spaces beside a stretch of spaces belong to it


def test_ordinary_text_is_one_piece_whatever_its_length():
    for text in ("".join(HARD) * 5000, ENGLISH * 100, "x=1;" * 50_000, "漢字かなカナ。" * 20_000):
        assert cut_stretches(text, ENCODED_CHARS) == ([text], 0)


def test_pieces_of_a_stretch_join_to_the_text_and_keep_their_bound():
    rng = random.Random(5)
    for _ in range(500):
        parts = ["a" * rng.randrange(30), " " * rng.randrange(20), "=_" * rng.randrange(12), "ab,c"]
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(20)))
        pieces, longest = cut_stretches(text, 8, 40)
        assert "".join(pieces) == text
        runs = [len(run) for piece in pieces for run in re.findall(r"[^\W_]+|\s+|(?:[^\w\s]|_)+", piece)]
        assert max(runs, default=0) <= 8
        assert max((len(word) for piece in pieces for word in piece.split()), default=0) <= 40 + 8
        assert (longest > 0) == (len(pieces) > 1)


@pytest.mark.parametrize(
    ("change", "text", "lost"),
    [
        ("none", "Plain text.\n", None),
        ("lower", "Plain text.\n", "loses capital letters"),
        ("strip", "über Höhen\n", "loses accents"),
        ("spaces", "two words\nand a line\n", "loses line ends and spaces"),
        ("unknown", "aaaaaaaab" * 9, "loses 11.11% of the characters, which are unknown to it"),
    ],
)
def test_a_tokenizer_that_cannot_give_the_text_back_is_named_with_what_it_loses(
    write, corpus_of, said, change, text, lost
):
    if change == "unknown":
        source = Tokenizer(models.BPE({"a": 0, "?": 1}, [], unk_token="?"))  # noqa: S106 - no password
        source.decoder = decoders.Fuse()
    else:
        source = byte_level()
        if change == "spaces":
            source.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), source.pre_tokenizer])
        elif change != "none":
            changes = {"lower": [normalizers.Lowercase()], "strip": [normalizers.NFD(), normalizers.StripAccents()]}
            source.normalizer = normalizers.Sequence(changes[change])
    corpus_of(write("a.txt", text * 20), tokenizer=write("tokenizer.json", source.to_str()))
    notes = [note for note in said if "cannot give the text back" in note]
    assert len(notes) == (lost is not None)
    assert all(lost in note for note in notes)


def test_words_name_how_much_of_the_training_text_they_do_not_know(write, corpus_of, said):
    corpus_of(write("a.txt", "aaa " * 30 + "bbb " * 5 + "aaa " * 20), tokenizer="words", vocab_size=3)
    assert "it loses 13.13% of the characters, which are unknown to it" in said[0]
