"""Every family of tokenizers: the tokens that a grammar allows show the text that it allows, or it is refused."""

from pathlib import Path

import numpy as np
import pytest
from support.foreign.tokenizer_families import END, FAMILIES, family

from adaptive_lm.runtime import UserError
from adaptive_lm.runtime.generation.text.tokenizer import Tokenizer
from adaptive_lm.runtime.structured.compiler import Compiler
from adaptive_lm.runtime.structured.constraint import Constraint
from adaptive_lm.runtime.structured.vocabulary import Vocabulary

pytest.importorskip("llguidance")
REFUSED = {"CTC", "BPE with suffix"}
"""Their tokens change with their neighbours."""


def tokenizer_of(name: str, place: Path) -> Tokenizer:
    library = family(name)
    library.save(str(place / "tokenizer.json"))
    size = max(library.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(place / "tokenizer.json", size=size, eos_id=library.token_to_id(END))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - REFUSED))
def test_the_bytes_of_tokens_are_their_text_in_a_text(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(name, tmp_path)
    table, random = tokenizer.token_bytes(), np.random.default_rng(3)
    assert len(table) == tokenizer.size
    assert table[tokenizer.eos_id] == b""
    spoken = [token for token, data in enumerate(table) if data and data.isascii()]
    before = tokenizer.encode("a")
    for _ in range(50):
        ids = [int(token) for token in random.choice(spoken, 12)]
        stream = tokenizer.stream(before)
        text = "".join([*map(stream.push, ids), stream.flush()])
        assert text.encode() == b"".join(table[token] for token in ids)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_family_whose_tokens_change_with_their_neighbours_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this model's tokenizer cannot follow a grammar: .*; use a model with"):
        Vocabulary(tokenizer_of(name, tmp_path))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - REFUSED))
def test_texts_of_every_family_match(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(name, tmp_path)
    compiler = Compiler(tokenizer)
    grammar = compiler.compile(Constraint.regex("[a-f ]{1,9}x?"))
    compiler.close()
    random = np.random.default_rng(1)
    for _ in range(20):
        mask, ids = grammar.mask(), []
        while not mask.ended:
            bits = np.unpackbits(mask.allowed().view(np.uint8), count=tokenizer.size, bitorder="little")
            token = int(random.choice(np.flatnonzero(bits)))
            if token == tokenizer.eos_id:
                break
            mask.accept(token)
            ids.append(token)
        stream = tokenizer.stream(tokenizer.encode("a"))
        text = "".join([*map(stream.push, ids), stream.flush()])
        assert text
        assert set(text.removesuffix("x")) <= set("abcdef ")
        assert len(text) <= 10


@pytest.mark.parametrize("name", ["byte-level", "byte-level in a sequence", "byte fallback", "Llama 2"])
def test_ids_of_a_forced_text_spell_it_exactly(name: str, tmp_path: Path) -> None:
    """Also where the tokenizer itself would begin it with a space."""
    tokenizer = tokenizer_of(name, tmp_path)
    vocabulary = Vocabulary(tokenizer)
    for text in ('{"name": ', "a b", "é🙂", "x"):
        assert b"".join(vocabulary.tokens[token] for token in vocabulary(text)) == text.encode()
