"""The groups of a token: its text class, its position, and its number among the frequent tokens."""

import numpy as np
from support.cases import each

from adaptive_lm.runtime.inspection.token_groups import CLASSES, REST, by_class, by_position, by_token, token_class


@each(
    ("text", "token", "found"),
    [
        ("a\n\nb", "\n\n", "line break"),
        ("a  b", "  ", "white space"),
        ("a\nbc", "b", "line start"),
        ("bc", "b", "line start"),
        ("in 42", " 42", "number"),
        ("in 4.2", " 4.2", "number"),
        ("is X", "X", "capital"),
        ("is Xy", " Xy", "capital"),
        ("so it", " it", "word start"),
        ("so it", "it", "word start"),
        ("så är", "är", "word start"),
        ("so it", "t", "inside word"),
        ("so, it", ",", "punctuation"),
        ("a + b", " +", "punctuation"),
        ("x (y", "(", "punctuation"),
        ("it's", "'s", "other"),
        ("I-5a", "5a", "other"),
        ("a", "", "other"),
    ],
)
def test_a_token_has_the_class_of_its_text_and_its_place(text: str, token: str, found: str) -> None:
    start = text.rindex(token)
    assert token_class(text, start, start + len(token)) == found


def test_groups_without_a_token_are_left_out() -> None:
    grouping = by_class("so 4", [(0, 1), (1, 2), (2, 3), (3, 4)])
    assert grouping.labels == ("white space", "line start", "number", "inside word")
    assert list(grouping.labels) == sorted(grouping.labels, key=CLASSES.index)
    assert grouping.of.tolist() == [1, 3, 0, 2]
    assert grouping.tokens.tolist() == [1, 1, 1, 1]


def test_positions_are_grouped_by_powers_of_two() -> None:
    grouping = by_position(np.array([0, 1, 2, 3, 4, 7, 8, 9, 0]))
    assert grouping.labels == ("0", "1", "2-3", "4-7", "8-9")
    assert grouping.of.tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 0]
    assert by_position(np.array([0])).labels == ("0",)
    assert by_position(np.array([0, 1, 2])).labels == ("0", "1", "2")


def test_frequent_tokens_get_a_group_each_and_the_others_one() -> None:
    grouping = by_token([5, 7, 5, 9, 7, 5], [" a", "b", " a", "c", "b", " a"], 2)
    assert grouping.labels == ("␣a", "b", REST)
    assert grouping.of.tolist() == [0, 1, 0, 2, 1, 0]
    assert by_token([5, 7], ["é", "é"], 2).labels == ("é #5", "é #7"), "the bytes of one character"
    assert by_token([1], ["\x1b["], 3).labels == ("\\x1b[",)
