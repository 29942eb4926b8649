"""No stop string is shown, nor a part of one, in whatever pieces it arrives (S8, S16)."""

import itertools

import pytest

from adaptive_lm.runtime import UserError
from adaptive_lm.runtime.generation.text.stop import StopWatch


def shown(pieces: list[str], *stops: str) -> tuple[list[str], bool]:
    watch = StopWatch(stops)
    out = [watch.push(piece) for piece in pieces]
    return [*out, watch.flush()], watch.stopped


def cuts(text: str) -> list[list[str]]:
    """Every way to cut a short text into pieces."""
    ways = []
    for places in itertools.product([False, True], repeat=len(text) - 1):
        pieces = [text[0]]
        for char, cut in zip(text[1:], places, strict=True):
            if cut:
                pieces.append(char)
            else:
                pieces[-1] += char
        ways.append(pieces)
    return ways


@pytest.mark.parametrize(
    ("text", "stops", "shown_text"),
    [
        ("ababac.", ("abac",), "ab"),  # begins again inside itself
        ("a\n\nUser", ("\n\nUser", "\n\nB"), "a"),
        ("xxend!", ("end", "nd!"), "xx"),
        ("aaab", ("aab",), "a"),
        ("nothing", ("zz", "gg"), "nothing"),
    ],
)
def test_text_ends_before_the_first_stop_however_it_is_cut(text: str, stops: tuple[str, ...], shown_text: str) -> None:
    for pieces in cuts(text):
        out, stopped = shown(pieces, *stops)
        assert "".join(out) == shown_text, pieces
        assert stopped == (shown_text != text)
        for so_far in itertools.accumulate(out):
            assert shown_text.startswith(so_far), "something leaked"


def test_a_prefix_of_a_stop_is_held_until_it_is_none() -> None:
    out, _ = shown(["Us", "e", " it"], "User")
    assert out == ["", "", "Use it", ""]


def test_what_is_held_at_the_end_is_text() -> None:
    out, stopped = shown(["abc U", "se"], "User")
    assert out == ["abc ", "", "Use"]
    assert not stopped


@pytest.mark.parametrize("stops", [("",), ("a", ""), ("x" * 2000,), ("a",) * 100])
def test_stops_that_make_no_sense_are_refused(stops: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="stop string"):
        StopWatch(stops)
