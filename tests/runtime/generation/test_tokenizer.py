"""Text is released early and in whole characters; its pieces equal the text decoded in one call (S3, S13, S15)."""

import random
from pathlib import Path

import pytest
from support.foreign.tokenizer_families import END, FAMILIES, family
from support.graphs.tiny_graph import EOS, TOKENS, byte_tokenizer
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from adaptive_lm.contract.text.stretches import ENCODED_CHARS
from adaptive_lm.runtime import Tokenizer, UserError
from adaptive_lm.runtime.generation.text.text_stream import CONTEXT_TOKENS, WindowStream
from adaptive_lm.train.data.tokenizers.encoder import Encoder

PIECES = [
    "The",
    "quick",
    " brown",
    "abc",
    "\ufffd",
    "🙂",
    "中文",
    "   ",
    "e\u0301",
    "\n",
    "a b",
    "don't",
    ".",
    "👨‍👩‍👧",
    "<0x41>",
]
TEXTS = ["plain", "ü", "日本語", "🏔️ mountain", "e\u0301", "👨‍👩‍👧", "\u0000", "a\ufffdb", ""]


def saved(library: Library, folder: Path, eos_id: int = 0) -> Tokenizer:
    library.save(str(folder / "tokenizer.json"))
    size = library.get_vocab_size(with_added_tokens=True)
    return Tokenizer(folder / "tokenizer.json", size=size, eos_id=eos_id)


@pytest.fixture
def of_bytes(tmp_path: Path) -> Tokenizer:
    return saved(byte_tokenizer(), tmp_path, EOS)


@pytest.fixture
def with_fallback(tmp_path: Path) -> Tokenizer:
    """Make letters, and bytes for anything else, as in the tokenizers of Llama."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {char: 256 + i for i, char in enumerate("abcdefg ")}
    library = Library(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return saved(library, tmp_path)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["of_bytes", "with_fallback"])
def test_a_stream_gives_the_text_back_in_whole_characters(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    stream = tokenizer.stream([])
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush() == text
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["of_bytes", "with_fallback"])
def test_a_character_comes_with_its_last_byte(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    stream = tokenizer.stream([])
    assert [stream.push(byte) for byte in "a🏔".encode()] == ["a", "", "", "", "🏔"]


@pytest.mark.parametrize("kind", ["of_bytes", "with_fallback"])
def test_bytes_that_are_no_character_are_not_held_for_ever(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    stream = tokenizer.stream([])
    shown = "".join(stream.push(0xFF) for _ in range(100))
    assert len(shown) >= 90
    assert stream.push(tokenizer.encode("a")[0]).endswith("a")
    assert stream.flush() == ""


def test_an_unfinished_character_comes_at_the_end_as_replacement(of_bytes: Tokenizer) -> None:
    stream = of_bytes.stream([])
    assert [stream.push(byte) for byte in "🏔".encode()[:3]] == ["", "", ""]
    assert stream.flush() == "�"


def test_special_tokens_are_not_text(of_bytes: Tokenizer) -> None:
    assert of_bytes.decode([104, EOS, 105]) == "hi"


def test_text_that_spells_a_special_token_is_the_characters_it_is(of_bytes: Tokenizer) -> None:
    ids = of_bytes.encode("<|endoftext|>")
    assert EOS not in ids
    assert of_bytes.decode(ids) == "<|endoftext|>"


def test_added_tokens_that_are_not_special_are_text(tmp_path: Path) -> None:
    library = byte_tokenizer()
    library.add_tokens(["straße "])
    assert saved(library, tmp_path).decode([TOKENS, 97]) == "straße a"


@pytest.mark.parametrize("fuse", [True, False])
def test_words_keep_the_spaces_that_their_decoder_gives(tmp_path: Path, fuse: bool) -> None:
    library = Library(models.WordLevel({"the": 0, " sun": 1, "<unk>": 2}, unk_token="<unk>"))  # noqa: S106
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    if fuse:
        library.decoder = decoders.Fuse()
    tokenizer = saved(library, tmp_path)
    ids = tokenizer.encode("the sun sun")
    assert tokenizer.decode(ids) == library.decode(ids)
    assert tokenizer.unknown_id == 2


def test_pushing_a_token_costs_the_same_late_as_early() -> None:
    library = family("byte fallback")
    vocabulary = library.get_vocab()
    bytes_of = {vocabulary[f"<0x{byte:02X}>"]: bytes([byte]) for byte in range(256)}
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return str(library.decode(ids))

    stream = WindowStream(decode, bytes_of, {vocabulary[END]}, fallback=True)
    spaces, ends = [vocabulary["▁"]] * 100, [vocabulary[END]] * 100
    for token in [*library.encode("abc🏔" * 30).ids, *[vocabulary["<0xFF>"]] * 200, *spaces, *ends, *spaces]:
        stream.push(token)
    assert longest <= 2 * CONTEXT_TOKENS


def pieces_of(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) + rng.choice(("", " ")) for _ in range(rng.randrange(1, 12)))


def streamed(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    stream = tokenizer.stream(before)
    return "".join(map(stream.push, ids)) + stream.flush()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_and_the_stream_after_it_are_the_text_of_all_ids(tmp_path: Path, name: str) -> None:
    library = family(name)
    tokenizer = saved(library, tmp_path, library.token_to_id(END))
    rng = random.Random(7)
    for _ in range(150):
        ids = tokenizer.encode(pieces_of(rng))
        for place in rng.sample(range(len(ids) + 1), k=min(2, len(ids))):
            ids.insert(place, tokenizer.eos_id)
            if library.decode(ids[:place]).count("�") != library.decode(ids).count("�"):
                del ids[place]  # it stands inside a character
        whole = library.decode(ids)
        assert streamed(tokenizer, [], ids) == whole
        assert tokenizer.decode(ids) == whole
        for cut in range(len(ids)):
            prompt = library.decode(ids[:cut])
            if not prompt.endswith("�"):
                assert prompt + streamed(tokenizer, ids[:cut], ids[cut:]) == whole


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_that_is_cut_anywhere_ends_as_decoding_at_once_shows_it(tmp_path: Path, name: str) -> None:
    library = family(name)
    tokenizer = saved(library, tmp_path, library.token_to_id(END))
    for text in ("a 中", "x🙂", "ab \ufffd", "über"):
        ids = tokenizer.encode(text)
        for end in range(len(ids) + 1):
            assert streamed(tokenizer, [], ids[:end]) == library.decode(ids[:end])


@pytest.mark.parametrize("name", [name for name in FAMILIES if "byte" not in name and name != "Llama 2"])
def test_ids_in_any_order_stream_as_they_decode_at_once(tmp_path: Path, name: str) -> None:
    library = family(name)
    tokenizer = saved(library, tmp_path, library.token_to_id(END))
    rng = random.Random(3)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.size) for _ in range(rng.randrange(1, 30))]
        cut = rng.randrange(len(ids))
        assert library.decode(ids[:cut]) + streamed(tokenizer, ids[:cut], ids[cut:]) == library.decode(ids)


@pytest.mark.parametrize("name", ["byte fallback", "byte fallback with metaspace", "Llama 2"])
def test_bytes_that_break_a_run_leave_released_characters_whole(tmp_path: Path, name: str) -> None:
    """Decoding in one call gives U+FFFD for each byte of the run; text that was shown cannot be taken back."""
    library = family(name)
    tokenizer = saved(library, tmp_path, library.token_to_id(END))
    broken, letter = library.token_to_id("<0xE4>"), library.token_to_id("b")
    ids = [letter, *tokenizer.encode("中")[-3:], broken, letter]
    assert tokenizer.decode(ids) == "b中�b"
    assert (
        tokenizer.decode([letter, broken, *tokenizer.encode("中")[-3:], letter])
        == "b����b"
        == library.decode([letter, broken, *tokenizer.encode("中")[-3:], letter])
    )


def test_a_long_prompt_of_bytes_is_entered_where_a_character_starts(tmp_path: Path) -> None:
    library = family("byte fallback")
    tokenizer = saved(library, tmp_path, library.token_to_id(END))
    for size in range(5, 12):
        ids = tokenizer.encode("中" * size)
        assert streamed(tokenizer, ids, tokenizer.encode("文🙂")) == "文🙂"


def test_a_vocabulary_with_a_hole_is_as_large_as_its_highest_id(tmp_path: Path) -> None:
    library = Library(models.WordLevel({"a": 0, "b": 7, "?": 3}, unk_token="?"))  # noqa: S106
    library.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path / "tokenizer.json", size=8, eos_id=0).decode([7]) == "b"
    with pytest.raises(UserError, match="has a vocabulary of 8, the model was made for 3"):
        Tokenizer(tmp_path / "tokenizer.json", size=3, eos_id=0)


def test_a_lone_surrogate_is_a_persons_mistake(of_bytes: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"not valid UTF-8: found '\\udcff' at character 1"):
        of_bytes.encode("a\udcffb")


def test_spans_are_of_characters(of_bytes: Tokenizer) -> None:
    ids, spans = of_bytes.encode_with_spans("aüb")
    assert len(ids) == 4
    assert spans[0] == (0, 1)
    assert spans[-1] == (2, 3)


def test_a_prompt_of_one_stretch_is_cut_as_in_training(tmp_path: Path) -> None:
    library = family("byte-level")
    tokenizer = saved(library, tmp_path, library.token_to_id(END))
    text = "ab " + "ACGT" * (ENCODED_CHARS // 2) + " cd"
    (expected,) = Encoder(library.to_str(), "tokenizer.json").encode_batch([text])
    ids, spans = tokenizer.encode_with_spans(text)
    assert tokenizer.encode(text) == ids == expected.tolist()
    assert "".join(text[start:end] for start, end in spans) == text
    assert ENCODED_CHARS + 3 in {start for start, _ in spans}
