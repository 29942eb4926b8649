"""Tokenizers of other families: the ids of transformers, streams that lose nothing, special tokens, several ends.

`ADAPTIVE_TEXTS=10000` compares that many texts a family; a normal run compares a few hundred.
"""

import os
from pathlib import Path

import pytest
from support.foreign.tokenizer_families import FAMILIES, family
from support.odd_texts import odd_texts
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from adaptive_lm.runtime import Tokenizer

TEXTS = int(os.environ.get("ADAPTIVE_TEXTS", "300"))
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def ours_of(library: Library, folder: Path, **options: int) -> Tokenizer:
    library.save(str(folder / "tokenizer.json"))
    size = max(library.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(folder / "tokenizer.json", size=size, eos_id=library.token_to_id("</s>"), **options)


def foreign(name: str) -> Library:
    library = family(name)
    library.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    library.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("  ", normalized=False)])
    return library


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    library = foreign(name)
    ours = ours_of(library, tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library, eos_token="</s>", bos_token="<s>")  # noqa: S106
    for text in odd_texts(TEXTS):
        marked = text + "<|im_start|>" + text + "</s>" + text[:3]
        assert ours.encode_rendered(marked, {}) == theirs(marked, add_special_tokens=False)["input_ids"], repr(text)
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == plain, repr(text)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_after_a_prompt_adds_what_decoding_at_once_adds(tmp_path: Path, name: str) -> None:
    library = foreign(name)
    ours = ours_of(library, tmp_path)
    start = library.token_to_id("<|im_start|>")
    for text in ("hello", " hello", "hello  there", "中 a", "x\ny"):
        ids = ours.encode(text)
        for prompt in ([], [start], [*ours.encode("so"), start], ours.encode("so"), [start, *ours.encode("so")]):
            stream = ours.stream(prompt)
            shown = "".join(map(stream.push, ids)) + stream.flush()
            assert library.decode(prompt) + shown == library.decode([*prompt, *ids]), (text, prompt)


def test_a_word_after_a_prompt_keeps_its_space(tmp_path: Path) -> None:
    library = foreign("Llama 2")
    ours = ours_of(library, tmp_path)
    word = [library.token_to_id("▁"), library.token_to_id("a")]
    assert [ours.stream(before).push(word[0]) for before in ([], ours.encode("b"))] == ["", " "]
    stream = ours.stream([library.token_to_id("<s>"), *ours.encode("b")])
    assert "".join(map(stream.push, word)) == " a"


@pytest.mark.parametrize("name", ["byte-level", "Llama 2", "metaspace first", "WordPiece"])
def test_a_stream_shows_the_special_tokens_that_are_asked_for(tmp_path: Path, name: str) -> None:
    library = foreign(name)
    ours = ours_of(library, tmp_path)
    begin, end = library.token_to_id("<|im_start|>"), library.token_to_id("<|im_end|>")
    word = ours.encode("a")
    ids = [*word, begin, *word, end]

    def shown(show: bool | tuple[int, ...]) -> str:
        stream = ours.stream(word, show)
        return ("".join(map(stream.push, ids)) + stream.flush()).replace(" ", "")

    assert shown(False) == "aa"
    assert shown(True) == "a<|im_start|>a<|im_end|>"
    assert shown((begin,)) == "a<|im_start|>a"


def test_a_special_token_inside_a_character_ends_it(tmp_path: Path) -> None:
    library = foreign("byte-level")
    ours = ours_of(library, tmp_path)
    begin = library.token_to_id("<|im_start|>")
    half = ours.encode("龍")[:1]
    stream = ours.stream([], show=True)
    assert "".join(map(stream.push, [*half, begin])) + stream.flush() == "\ufffd<|im_start|>"


def test_the_size_is_the_highest_id_and_one_whatever_the_number_of_tokens(tmp_path: Path) -> None:
    library = foreign("byte-level")
    ours = ours_of(library, tmp_path)
    assert ours.size == max(library.get_vocab(with_added_tokens=True).values()) + 1
    assert len(ours.token_bytes()) == ours.size
