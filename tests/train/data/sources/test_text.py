"""Plain text: read in pieces that leave no trace."""

from pathlib import Path

import pytest

from adaptive_lm.contract.text import compression as text_compression
from adaptive_lm.train.data.sources import text as module
from adaptive_lm.train.data.sources.text import line_boundary, rechunk, text_chunks, word_boundary

MIXED = "Zeile eins\r\nзима 冬 👩‍👩‍👧 é\n\n  indented\n" * 300


@pytest.fixture(params=[7, 64, 2**20], ids=lambda n: f"pieces-of-{n}")
def small_pieces(request, monkeypatch):
    """Read pieces of a few bytes, so that every character is cut somewhere."""
    monkeypatch.setattr(text_compression, "CHUNK_BYTES", request.param)
    monkeypatch.setattr(module, "PIECE_CHARS", request.param)
    return request.param


@pytest.mark.parametrize("cut", [1, 17, len(MIXED) - 1, len(MIXED)])
def test_pieces_join_to_the_text_cut_at_the_character(small_pieces, write, cut):
    path = Path(write("a.txt", MIXED))
    parts = {False: "", True: ""}
    for held_out, piece, _ in text_chunks(path, cut):
        parts[held_out] += piece
    assert parts == {False: MIXED[:cut], True: MIXED[cut:]}


def test_the_last_piece_of_each_part_is_marked(small_pieces, write):
    marks = [(held_out, last) for held_out, _, last in text_chunks(Path(write("a.txt", MIXED)), 500)]
    assert marks.count((False, True)) == marks.count((True, True)) == 1
    assert marks[-1] == (True, True)
    assert marks[marks.index((False, True)) + 1][0] is True


def test_pieces_end_where_lines_end(monkeypatch):
    monkeypatch.setattr(module, "PIECE_CHARS", 20)
    lines = [f"line number {n}\n" for n in range(50)]
    pieces = list(rechunk(iter(["".join(lines)])))
    assert "".join(pieces) == "".join(lines)
    assert all(piece.endswith("\n") for piece in pieces)


def test_a_line_without_end_is_cut_between_words(monkeypatch):
    monkeypatch.setattr(module, "PIECE_CHARS", 20)
    pieces = list(rechunk("word " for _ in range(500)))
    assert "".join(pieces) == "word " * 500
    assert max(map(len, pieces)) <= 20
    assert all(piece.startswith(" ") for piece in pieces[1:])


def test_a_word_without_end_is_cut_all_the_same(monkeypatch):
    monkeypatch.setattr(module, "PIECE_CHARS", 10)
    monkeypatch.setattr(module, "MAX_PENDING_CHARS", 100)
    pieces = list(rechunk("x" * 30 for _ in range(50)))
    assert "".join(pieces) == "x" * 1500
    assert max(map(len, pieces)) <= 130


@pytest.mark.parametrize(
    ("text", "place"),
    [("a\nb", 2), ("a\nb\n c", 2), ("a\n\nb", 0), ("a\n b", 0), ("a \nb", 0), ("ab", 0), ("\nx", 0), ("a\nb\n", 2)],
)
def test_a_line_boundary_stands_between_visible_characters(text, place):
    assert line_boundary(text, 0, len(text)) == place


@pytest.mark.parametrize(("text", "place"), [("a b c", 3), ("a  ", 1), ("   ", 0), (" ab", 0), ("abc", 0)])
def test_a_word_boundary_has_a_character_before_it(text, place):
    assert word_boundary(text, 0, len(text)) == place
