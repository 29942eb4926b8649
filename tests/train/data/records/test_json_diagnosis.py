"""Diagnosis of broken JSON: it names the cause, and its advice works when it is typed."""

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data.records import document_of, read_records
from adaptive_lm.train.data.sources.sources import resolve_source

RECORDS = [json.dumps({"text": f"the quick brown fox {n}"}) for n in range(4)]
TEXTS = [f"the quick brown fox {n}" for n in range(4)]
TRICKY = json.dumps([{"text": 'a "quoted" \\ {line}\n', "n": [-1.5e-7, 12, True, None, {}]}, "é👩"], indent=1)


def texts(spec):
    (item,) = resolve_source(spec, None, print).items
    return [document_of(record, None, where) for where, record in read_records(item)]


def message_of(spec):
    with pytest.raises(UserError) as caught:
        texts(spec)
    return str(caught.value)


def typed(message, folder):
    """Type the command at the end of a message."""
    command = re.search(r"(?:gzip -dc|jq|tr) .*$", message)
    assert command, message
    if "jq" in command[0] and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    subprocess.run(["bash", "-c", command[0]], check=True, cwd=folder)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_lines_that_end_in_a_carriage_return_alone_are_named_and_the_advice_converts_them(write, tmp_path, name):
    message = message_of(write(name, "\r".join(RECORDS) + "\r"))
    assert "line 1: lines end in a carriage return (CR) alone" in message
    typed(message, tmp_path)
    (tmp_path / f"lf-{name}").rename(tmp_path / "b.jsonl")
    assert texts(str(tmp_path / "b.jsonl")) == TEXTS


def test_two_records_on_a_line_are_named_and_the_advice_parts_them(write, tmp_path):
    message = message_of(write("a.jsonl", f"{RECORDS[0]}\n{RECORDS[1]} {RECORDS[2]}\n{RECORDS[3]}"))
    assert "line 2: two records on one line (the second begins at column" in message
    typed(message, tmp_path)
    assert texts(str(tmp_path / "lines-a.jsonl")) == TEXTS


@pytest.mark.parametrize("end", ["\n", ""])
def test_pretty_printed_records_are_named_and_the_advice_writes_them_on_lines(write, tmp_path, end):
    message = message_of(write("a.jsonl", "\n".join(json.dumps(json.loads(r), indent=2) for r in RECORDS) + end))
    assert "line 1: the record continues after the end of the line (pretty-printed JSON)" in message
    typed(message, tmp_path)
    assert texts(str(tmp_path / "lines-a.jsonl")) == TEXTS


def test_concatenated_records_in_json_are_named_and_the_advice_makes_a_list(write, tmp_path):
    message = message_of(write("a.json", "\n".join(json.dumps(json.loads(r), indent=2) for r in RECORDS)))
    assert "line 4: a second value begins at column 1; expected one list" in message
    typed(message, tmp_path)
    assert texts(str(tmp_path / "list-a.json")) == TEXTS


def test_the_advice_for_a_compressed_file_decompresses_it(write, tmp_path):
    message = message_of(write("a.jsonl.gz", gzip.compress(f"{RECORDS[0]} {RECORDS[1]}".encode())))
    typed(message, tmp_path)
    assert texts(str(tmp_path / "lines-a.jsonl")) == TEXTS[:2]
    message = message_of(write("b.jsonl.gz", gzip.compress("\r".join(RECORDS).encode())))
    typed(message, tmp_path)
    assert texts(str(tmp_path / "lf-b.jsonl")) == TEXTS
    message = message_of(write("c.jsonl.gz", gzip.compress(f"[{RECORDS[0]}]".encode())))
    assert message.endswith("rename the file to c.json.gz")


def test_the_advice_for_a_bare_conversation_on_each_line_gives_each_its_field(write, tmp_path):
    turns = [{"role": "user", "content": "How do rivers carve?"}, {"role": "assistant", "content": "Slowly."}]
    path = Path(write("a.jsonl", f"{json.dumps(turns)}\n" * 2))
    typed(message_of(str(path)), tmp_path)
    assert [json.loads(line) for line in (tmp_path / "messages-a.jsonl").read_text().splitlines()] == [
        {"messages": turns}
    ] * 2


@pytest.mark.parametrize("content", ["[{0}, {1}]", "[\n{0},\n{1}\n]\n"])
def test_a_list_under_the_name_of_lines_is_renamed_by_the_advice(write, content):
    path = Path(write("a.jsonl", content.format(*RECORDS)))
    assert "wants the extension .json: rename the file to a.json" in message_of(str(path))
    assert texts(str(path.rename(path.with_name("a.json")))) == TEXTS[:2]


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.json", "[\n" + ",\n".join(RECORDS) + ",\n]", r"line 6: not JSON \(a trailing comma"),
        ("a.jsonl", '{"text": "x",}\n', r"line 1: not JSON \(a trailing comma"),
        ("a.jsonl", RECORDS[0] + ",\n" + RECORDS[1] + ",\n", "line 1: a comma after the record"),
        ("a.jsonl", "{'text': 'x'}\n", r"line 1: not JSON \(a Python literal"),
        ("a.json", "[{'text': 'it\\'s', 'n': None}]", r"line 1: not JSON \(a Python literal"),
        ("a.jsonl", '{"text": "x", "n": None}\n', r"a Python literal"),
        ("a.jsonl", '{"text": "x", "n": nan}\n', r"'nan' is no JSON value, column 20"),
        ("a.jsonl", '{"text": "x", "n": undefined}\n', r"'undefined' is no JSON value"),
        ("a.jsonl", '{text: "x"}\n', r"'text' is no name in double quotes"),
        (
            "a.jsonl",
            '{"text": "tab\there"}\n',
            r"character 0x09 inside a string, which JSON spells \\u0009",
        ),
        ("a.jsonl", '{"text": "C:\\dir"}\n', "a backslash that begins no escape"),
        ("a.json", '[ // texts\n"x"]', "a comment"),
        ("a.jsonl", '"fine"\nI', r"line 2: not JSON \('I' is no JSON value"),
        ("a.json", "<!DOCTYPE html><html>", "a web page"),
        ("a.json", '["x"] trailing', r"'trailing' after the value"),
        ("a.jsonl", '"x" trailing\n', r"'trailing' after the record"),
        ("a.jsonl", "plain text, and no JSON\n" * 3, r"line 1: not JSON \('plain' is no JSON value"),
        ("a.jsonl", '{"text": "one"}}\n', r"'}' after the record"),
        ("a.json", '[{"text": "one"]', r"line 1: not JSON"),
        ("a.jsonl", '{"text": "one" "two"}', r"line 1: not JSON"),
    ],
)
def test_the_cause_is_named_and_the_file_not_called_cut_short(write, name, content, cause):
    message = message_of(write(name, content))
    assert re.search(cause, message), message
    assert "cut short" not in message
    assert "fetch it again" not in message


def test_a_line_break_inside_a_string_is_named(write):
    message = message_of(write("a.jsonl", '{"text": "one\ntwo"}\n' + RECORDS[0]))
    assert "the record continues after the end of the line" in message or "a line break inside a string" in message


@pytest.mark.parametrize("cut", range(1, len(TRICKY)))
def test_a_json_file_cut_anywhere_is_called_cut_short(write, cut):
    assert re.search(r"a\.json, line \d+: the file ends inside a value", message_of(write("a.json", TRICKY[:cut])))


@pytest.mark.parametrize("cut", range(1, len(RECORDS[1])))
def test_a_last_line_cut_anywhere_is_called_cut_short(write, cut):
    message = message_of(write("a.jsonl", f"{RECORDS[0]}\n{RECORDS[1][:cut]}"))
    assert re.search(r"a\.jsonl, line 2: the file ends inside a record .*, or delete this line$", message), message


def test_a_file_that_is_one_cut_line_is_not_to_be_deleted(write):
    assert message_of(write("a.jsonl", RECORDS[0][:-3])).endswith("cut short; fetch it again")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_deep_nesting_is_named_with_its_place(write, name):
    deep = '{"text": "x", "n": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(UserError, match=rf"{name}(, line 2)?: nested too deeply"):
        texts(write(name, f'"fine"\n{deep}\n' if name == "a.jsonl" else f"[{deep}]"))


def test_a_huge_number_in_a_field_that_is_not_used_is_no_hindrance(write):
    huge = "1" * 5000
    assert texts(write("a.jsonl", f'{{"text": "x", "n": {huge}, "m": -{huge}, "e": 1e999999}}')) == ["x"]
    assert texts(write("a.json", f'[{{"text": "x", "n": {huge}}}]')) == ["x"]
    with pytest.raises(UserError, match=r"a\.jsonl, line 1, field 'text': a number"):
        texts(write("a.jsonl", f'{{"text": {huge}}}'))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_field_that_stands_twice_is_refused_where_it_is_used(write, name):
    twice = '{"text": "one", "text": "two"}'
    with pytest.raises(UserError, match=r"a\.json.*, (line|record) 1: the field 'text' stands more than once"):
        texts(write(name, twice if name == "a.jsonl" else f"[{twice}]"))
    other = '{"id": 1, "text": "one", "id": 2}'
    assert texts(write(name, other if name == "a.jsonl" else f"[{other}]")) == ["one"]


def test_a_list_that_stands_twice_in_an_object_is_refused(write):
    with pytest.raises(UserError, match=r"a\.json: the field 'data' stands more than once"):
        texts(write("a.json", '{"data": ["one"], "data": ["two"]}'))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "A.NDJSON", "a.json"])
def test_json_of_every_encoding_is_read(write, name, encoding):
    content = "\r\n".join(RECORDS) if name != "a.json" else f"[{','.join(RECORDS)}]"
    assert texts(write(name, content.encode(encoding))) == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_file_of_white_space_has_no_records(write, name):
    assert texts(write(name, b"\xef\xbb\xbf \n\n")) == []
