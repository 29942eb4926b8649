"""Text comes in whole characters, soon, and the same in pieces as at once (S3, S13, S15)."""

from pathlib import Path

import pytest
from support.tiny_graph import EOS, TOKENS, byte_tokenizer
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from adaptive_lm.runtime import Tokenizer, UserError

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
    """Letters, and bytes for what is no letter, as in Llama's tokenizers: its decoder is no byte-level one."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {char: 256 + i for i, char in enumerate("abcdefg ")}
    library = Library(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return saved(library, tmp_path)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["of_bytes", "with_fallback"])
def test_a_stream_gives_the_text_back_in_whole_characters(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush() == text
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["of_bytes", "with_fallback"])
def test_a_character_comes_with_its_last_byte(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    stream = tokenizer.stream()
    assert [stream.push(byte) for byte in "a🏔".encode()] == ["a", "", "", "", "🏔"]


@pytest.mark.parametrize("kind", ["of_bytes", "with_fallback"])
def test_bytes_that_are_no_character_are_not_held_for_ever(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    stream = tokenizer.stream()
    shown = "".join(stream.push(0xFF) for _ in range(100))
    assert len(shown) >= 90
    assert stream.push(tokenizer.encode("a")[0]).endswith("a")
    assert stream.flush() == ""


def test_an_unfinished_character_comes_at_the_end_as_replacement(of_bytes: Tokenizer) -> None:
    stream = of_bytes.stream()
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


def test_pushing_a_token_costs_the_same_late_as_early(with_fallback: Tokenizer) -> None:
    class Counting:
        longest = 0

        def decode(self, ids: list[int], **options: bool) -> str:
            Counting.longest = max(Counting.longest, len(ids))
            return str(with_fallback._tokenizer.decode(ids, **options))

    from adaptive_lm.runtime.generation.tokenizer import WindowStream

    stream = WindowStream(Counting())
    for token in [*"abc🏔".encode() * 30, *[0xFF] * 200]:
        stream.push(token)
    assert Counting.longest <= 16


def test_a_lone_surrogate_is_a_persons_mistake(of_bytes: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"not valid UTF-8: found '\\udcff' at character 1"):
        of_bytes.encode("a\udcffb")


def test_spans_are_of_characters(of_bytes: Tokenizer) -> None:
    ids, spans = of_bytes.encode_with_spans("aüb")
    assert len(ids) == 4
    assert spans[0] == (0, 1)
    assert spans[-1] == (2, 3)
