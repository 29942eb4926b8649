"""CSV: delimiters, headers, and what breaks a row."""

import re
import subprocess

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data.records import document_of, read_records
from adaptive_lm.train.data.sources.sources import resolve_source


def texts(spec, field=None):
    (item,) = resolve_source(spec, field, print).items
    return [document_of(record, item.text_field, where) for where, record in read_records(item)]


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("a.csv", "id;text\n1;one, two\n2;three\n", None),
        ("a.csv", 'id;"text"\n1;"one, two"\n2;three\n', None),
        ("a.csv", "sep=;\r\nid;text\r\n1;one, two\r\n2;three\r\n", None),
        ("a.csv", "a,b;text\n1;one, two\n2;three\n", None),
        ("a.csv", "id\ttext\n1\tone, two\n2\tthree\n", None),
        ("a.csv", "id|text\n1|one, two\n2|three\n", None),
        ("a.tsv", "id\ttext\n1\tone, two\n2\tthree\n", None),
        ("a.tsv", 'text\n"one, two"\nthree\n', None),
        ("a.csv", 'id,text\n1,"one, two"\n2,three', None),
        ("a.csv", 'x;y,body\n1,"one, two"\n2,three', "body"),
        ("a.csv", 'text;note\n"one, two"\nthree', "text;note"),
        ("a.csv", 'text\n"one, two"\nthree', None),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_delimiter_is_the_one_that_finds_the_text(write, name, content, field, encoding):
    assert texts(write(name, content.encode(encoding)), field) == ["one, two", "three"]


def test_a_message_names_the_delimiter(write):
    with pytest.raises(UserError, match=r"a\.csv, line 2: 3 cells, but the header has 2 \(id, text\); .*semicolons or"):
        texts(write("a.csv", "id;text\n1;one;two\n"))


def test_a_column_that_stands_twice_is_refused_where_it_is_used(write):
    with pytest.raises(UserError, match=r"a\.csv, line 1: the header names 'text' more than once; expected it once"):
        texts(write("a.csv", "text,text\none,two\n"))
    with pytest.raises(UserError, match="the header names 'b' more than once"):
        texts(write("a.csv", "text,b,b\none,two,three\n"), "b")
    assert texts(write("a.csv", "id,text,id,,\n1,one,2,,\n")) == ["one"]


def test_lines_that_end_in_a_carriage_return_alone_are_named_and_the_advice_converts_them(write, tmp_path):
    with pytest.raises(UserError, match=r"lines end in a carriage return \(CR\) alone") as caught:
        texts(write("a.csv", "id,text\r1,one\r2,two\r"))
    command = re.search(r"tr .*$", str(caught.value))
    subprocess.run(["bash", "-c", command[0]], check=True, cwd=tmp_path)
    assert texts(str(tmp_path / "lf-a.csv")) == ["one", "two"]


def test_quoted_line_breaks_stay_as_they_are_and_count_as_lines(write):
    assert texts(write("a.csv", 'id,text\r\n1,"one\r\ntwo\nthree\rfour"\r\n')) == ["one\r\ntwo\nthree\rfour"]
    with pytest.raises(UserError, match=r"a\.csv, line 5: 1 cell, but the header has 2"):
        texts(write("a.csv", 'id,text\n1,"one\ntwo\nthree"\nalone\n'))


def test_a_header_without_text_lists_its_names(write):
    with pytest.raises(UserError, match=r"a\.csv, line 1: none of the fields .*; the fields are: id, body"):
        texts(write("a.csv", "id,body\n1,x\n"))
