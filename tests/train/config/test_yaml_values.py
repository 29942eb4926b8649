"""YAML values: those of YAML 1.2, no key twice, and what is written is read back."""

import random
from typing import Any

import pytest
import yaml

from adaptive_lm.train.system.yaml_values import dump_yaml, load_setting, load_yaml

PIECES = [*"ab01e.+-_:#'\"[]{},&*!|>%@`~?=<\\ \t\n\r\x85\u2028\u2029\ufeff\x7f\x07é漢🙂\ud800/ox"]
PIECES += ["null", "true", "on", "yes", "0o", "1e3", "---", "..."]


def odd_texts(number: int) -> list[str]:
    generator = random.Random(7)
    lengths = generator.choices([1, 2, 3, 5, 9, 200], k=number)
    return ["".join(generator.choices(PIECES, k=length)) for length in lengths]


ODD = ["", "1e3", "08", "0o12", "0x1F", "on", "no", "~", "2020-01-01", "1:30", "1_000", "<<", "=", "###", " a ", "1."]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("+5", 5),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("1e", "1e"),
        (".", "."),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    in_file, in_setting = load_yaml(f"a: {text}")["a"], load_setting(f"[{text}]")[0]
    for read in (in_file, in_setting, load_setting(text)):
        assert (read, type(read)) == (value, type(value))
    assert load_setting(f'"{text}"') == load_yaml(f"'{text}'") == text


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4, column 3: the key 'b' is given twice, here and in line 2"),
        ("a: 1\n# one\nb: 2\n'a': 3\n", "line 4, column 1: the key 'a' is given twice, here and in line 1"),
        ("- {a: 1,\n   a: 2}", "line 2, column 4: the key 'a' is given twice, here and in line 1"),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(content: str, lines: str) -> None:
    with pytest.raises(ValueError, match=lines):
        load_yaml(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: [1", "line 1, column 6: expected ',' or '\\]'"),
        ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document"),
        ("a: \x00", "special characters are not allowed"),
        (b"a: \xff", "invalid start byte"),
        ("a: &x [*x]", "line 1, column 4: found unconstructable recursive node"),
        ("a: !!timestamp 2020-01-01", "line 1, column 4: the tag tag:yaml.org,2002:timestamp is not supported"),
        ("a: !!python/name:os.system", "line 1, column 4: the tag .*os.system is not supported"),
        ("a: !!map [1]", "the tag tag:yaml.org,2002:map is not supported"),
        ("a: !!int x", "'x' cannot be read as int"),
        ("a: !!bool yes", "'yes' cannot be read as bool"),
        ("a: " + "9" * 5000, "'9{40}...' cannot be read as int"),
        ("? [1]\n: 2", "line 1, column 3: a list or a mapping cannot be a key"),
        ("[" * 5000, "nested too deep"),
    ],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_refused_in_one_line(content: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        load_yaml(content)
    assert "\n" not in str(error.value)


def test_anchors_are_read_and_a_merge_key_is_a_key() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}
    assert load_yaml("a: &x {c: 1}\nb:\n  <<: *x\n")["b"] == {"<<": {"c": 1}}


def test_a_file_in_utf_16_or_with_a_byte_order_mark_is_read() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert load_yaml("a: é\n".encode(encoding)) == {"a": "é"}


@pytest.mark.parametrize("text", ["###", "a # b", "a: b", "*", "- x", "&a", "!!str 5", "%x", "@b", "`", "|", ">", "?"])
def test_a_plain_setting_is_the_text_as_it_stands(text: str) -> None:
    assert load_setting(text) == text
    assert load_setting(f"  {text} ") == text


@pytest.mark.parametrize("text", ["[a, #b]", '"a" # b', "[a] b", "{", "'a", "[###]", "{a: 1, a: 2}", "9" * 5000])
def test_a_setting_that_would_lose_a_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read|expected|cannot start|given twice|found unexpected end"):
        load_setting(text)


def test_lists_and_mappings_are_settings() -> None:
    assert load_setting("[{from_share: 0.3, batch_size: 16},\n {x: 'a # b'}]") == [
        {"from_share": 0.3, "batch_size": 16},
        {"x": "a # b"},
    ]


def test_what_is_written_is_read_back_by_us_and_by_a_parser_of_yaml_1_1() -> None:
    for text in [*ODD, *odd_texts(400)]:
        content = {"a": text, "list": [text, 1, None], "section": {"b": text, "c": 1.0, "d": True, "e": float("inf")}}
        written = dump_yaml(content)
        assert load_yaml(written) == content, ascii(text)
        assert load_yaml(written, written=True) == content, ascii(text)
        assert yaml.safe_load(written) == content, ascii(text)


@pytest.mark.parametrize("number", [0, -1, 2**63, 1e-5, 1e22, -2.5e-300, 123456.789, 0.1, float("inf"), float("-inf")])
def test_a_written_number_is_read_back(number: float) -> None:
    for text in (dump_yaml({"a": number}), yaml.safe_dump({"a": number})):
        for written in (False, True):
            read = load_yaml(text, written=written)["a"]
            assert (read, type(read)) == (number, type(number))


def test_files_of_the_first_releases_are_read_as_they_were_meant() -> None:
    """They were written as YAML 1.1, which leaves texts such as 1e3 and 08 without quotes."""
    for text in [*ODD, *odd_texts(400)]:
        written = yaml.safe_dump({"a": text}, sort_keys=False, allow_unicode=True, width=110)
        meant: Any = yaml.safe_load(written)
        assert load_yaml(written, written=True) == meant, ascii(text)


def test_aliases_that_expand_without_bound_are_refused() -> None:
    """Nine levels of nine aliases would be 387 million values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(ValueError, match=r"its aliases expand to more than 1,000,000 values"):
        load_yaml("\n".join(lines))
