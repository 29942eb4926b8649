"""Files of records: the same three texts from every format, and errors that name the file and the line."""

import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.texts import train_text

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data import SourceConfig
from adaptive_lm.train.data.records import document_of, read_records
from adaptive_lm.train.data.sources import scan
from adaptive_lm.train.data.sources.sources import resolve_source

TEXTS = ['one, "quoted"\nline', "zwei 👩‍👩‍👧", "three"]


def documents(spec, field=None, end_marker=None):
    """Read the documents of one --data."""
    (item,) = resolve_source(spec, field, print, end_marker=end_marker).items
    return [document_of(record, item.text_field, where, item.end_marker) for where, record in read_records(item)]


def parquet(tmp_path, **columns):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_json_lines_of_strings_or_of_records(write):
    assert documents(write("a.jsonl", "\n".join(map(json.dumps, TEXTS)))) == TEXTS
    assert documents(write("b.jsonl", "\n\n".join(json.dumps({"text": t}) for t in TEXTS))) == TEXTS


@pytest.mark.parametrize(
    "wrap", [lambda r: r, lambda r: {"version": 1, "data": r}], ids=["list", "object-with-one-list"]
)
def test_json_of_strings_or_of_records(write, wrap):
    assert documents(write("a.json", json.dumps(wrap(TEXTS)))) == TEXTS
    assert documents(write("b.json", json.dumps(wrap([{"body": t} for t in TEXTS]))), "body") == TEXTS


def test_csv_with_commas_quotes_and_line_breaks_in_cells(write):
    assert (
        documents(write("a.csv", 'id,text\r\n1,"one, ""quoted""\nline"\r\n2,zwei 👩‍👩‍👧\r\n\r\n3,three\r\n')) == TEXTS
    )


def test_parquet(tmp_path):
    assert documents(str(parquet(tmp_path, id=[1, 2, 3], text=TEXTS))) == TEXTS


def test_a_source_may_name_its_own_field(write):
    path = write("a.jsonl", '{"a": "x", "b": "y"}')
    assert documents(SourceConfig(path=path, text_field="b"), "a") == ["y"]
    assert documents(path, "a") == ["x"]


def test_a_hugging_face_data_set_is_read_by_name_config_and_split(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return [{"text": t} for t in TEXTS]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert documents("hf:org/name") == TEXTS
    assert documents("hf:org/name:en:test[:3]") == TEXTS
    assert asked == [("org/name", None, "train"), ("org/name", "en", "test[:3]")]


def test_without_the_datasets_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'pip install "adaptive-lm\[hf\]"'):
        documents("hf:org/name")


def test_a_hugging_face_name_that_does_not_load_keeps_the_reason(monkeypatch):
    def load_dataset(name, config, *, split):
        raise FileNotFoundError("Dataset 'org/nme' doesn't exist on the Hub\nmore")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match="cannot load hf:org/nme: Dataset 'org/nme' doesn't exist on the Hub; expected"):
        documents("hf:org/nme")


def test_without_pyarrow_the_extra_is_named(monkeypatch, tmp_path):
    path = parquet(tmp_path, text=TEXTS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'pip install "adaptive-lm\[train\]"'):
        documents(str(path))


def test_a_wrong_field_lists_the_fields_found(write):
    path = write("a.jsonl", '{"text": "x", "title": "y"}\n{"title": "z"}')
    with pytest.raises(
        UserError, match=r"line 1: no field 'body'; the fields are: text, title. Choose one with --text-field"
    ):
        documents(path, "body")
    with pytest.raises(UserError, match=r"line 2: no field 'text'; the fields are: title"):
        documents(path, "text")
    with pytest.raises(
        UserError,
        match=r"line 2: none of the fields text, messages, prompt \+ completion, conversations; the fields are: title",
    ):
        documents(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"text": 5}', r"line 1, field 'text': a number \(5\); expected text"),
        ("7", "line 1: a number; expected a string or a record"),
        ('{"messages": "hi"}', "field 'messages': a str; expected a list of messages"),
        ('{"messages": [{"role": "user"}]}', "message 1: found role; expected the fields role and content"),
        ('{"messages": ["hi"]}', "message 1: found str; expected the fields role and content"),
    ],
)
def test_a_field_of_another_kind_is_named(write, record, message):
    with pytest.raises(UserError, match=message):
        documents(write("a.jsonl", record))


def test_a_broken_line_of_json_is_named(write):
    with pytest.raises(
        UserError, match=r"a\.jsonl, line 2: not JSON .*column 9\); expected one JSON record or string per line"
    ):
        documents(write("a.jsonl", '"fine"\n{"text" "x"}\n"fine"\n'))


@pytest.mark.parametrize("whole", ['"fine"\n{"text": "and then it st', '"fine"\n{"text": "x"'])
def test_truncated_json_lines_say_that_they_end_inside_a_record(write, whole):
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: the file ends inside a record .*cut short"):
        documents(write("a.jsonl", whole))


@pytest.mark.parametrize("cut", range(1, 40))
def test_truncated_json_says_that_it_ends_inside_a_value(write, cut):
    whole = json.dumps([{"text": "x"}, {"text": "y"}, "z", {"text": "w"}], indent=1)
    with pytest.raises(UserError, match=r"a\.json, line \d+: the file ends inside a value .*cut short"):
        documents(write("a.json", whole[:-cut]))


def test_json_lines_under_the_name_json_bring_up_the_right_extension(write):
    with pytest.raises(UserError, match=r"a\.json, line 2: not JSON .*wants the extension \.jsonl"):
        documents(write("a.json", '{"text": "x"}\n{"text": "y"}\n'))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"just a string"', "holds a str; expected a list"),
        ('{"a": 1}', "is an object with no list; expected"),
        ('{"a": [], "b": []}', "is an object with a, b; expected a list, or an object that holds exactly one list"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_is_no_list_says_what_it_is(write, content, message):
    with pytest.raises(UserError, match=message):
        documents(write("a.json", content))


def test_a_csv_row_of_another_length_is_named(write):
    with pytest.raises(UserError, match=r"a\.csv, line 3: 3 cells, but the header has 2 \(id, text\)"):
        documents(write("a.csv", "id,text\n1,fine\n2,one,too many\n"))


def test_a_csv_that_ends_inside_quotes_is_named(write):
    with pytest.raises(UserError, match=r"a\.csv, line 3: not CSV \(unexpected end of data\)"):
        documents(write("a.csv", 'id,text\n1,fine\n2,"cut sho'))


def test_a_cell_longer_than_the_csv_module_likes_is_read(write):
    assert documents(write("a.csv", f"text\n{'x' * 200_000}\n")) == ["x" * 200_000]


def test_truncated_parquet_is_named(tmp_path):
    path = parquet(tmp_path, text=TEXTS * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.parquet is not a whole Parquet file .*fetch it again"):
        documents(str(path))


def test_a_damaged_page_of_parquet_is_named(tmp_path):
    path = parquet(tmp_path, text=[f"{n} some text" for n in range(1000)])
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not a whole Parquet file"):
        documents(str(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_bad_utf8_in_records_names_line_and_offset(write, name):
    with pytest.raises(UserError, match=rf"{name}, line 2: not UTF-8 \(byte 0xe9 at offset 11\)"):
        documents(write(name, b'"fine"\n"caf\xe9"\n'))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_binary_records_are_refused(write, name):
    with pytest.raises(UserError, match=rf"{name} is a binary file \(a zero byte at offset 4\): a PNG image"):
        documents(write(name, b"\x89PNG\0\0\n"))


def test_python_docs_are_the_language_reference_in_order():
    texts = documents("builtin:python-docs")
    assert texts == documents("builtin:python-docs")
    assert len(texts) > 50
    assert any("assert_stmt" in text for text in texts)


def test_facts_are_prompts_and_completions():
    facts = documents("builtin:facts")
    assert len(facts) >= 400
    assert all([m["role"] for m in fact] == ["user", "assistant"] for fact in facts)
    assert any("mountains form" in fact[0]["content"] for fact in facts)


def test_the_marker_of_an_end_is_left_out_where_it_ends_a_record_and_nowhere_else(write):
    path = write(
        "a.json",
        json.dumps(["Water flows </s>", "no marker", "</s> in the middle", "Two </s></s>", {"text": "x</s>\n"}]),
    )
    assert documents(path, end_marker="</s>") == ["Water flows", "no marker", "</s> in the middle", "Two </s>", "x"]
    assert documents(path)[0] == "Water flows </s>"


def test_a_corpus_ends_its_documents_itself_and_knows_other_markers_by_another_digest(write, corpus_of, monkeypatch):
    monkeypatch.setattr(scan, "SETTLED_SECONDS", -1)  # what was just written is remembered all the same
    path = write("a.json", json.dumps([f"number {n} </s>" for n in range(40)]))
    (marked, plain) = (corpus_of(path, end_marker=marker) for marker in ("</s>", None))
    assert train_text(marked).startswith("<|endoftext|>number 0<|endoftext|>number 1<|endoftext|>")
    assert train_text(plain).startswith("<|endoftext|>number 0 </s><|endoftext|>")
    assert marked.digest != plain.digest
    again = corpus_of(path, end_marker="</s>")  # what was found before is remembered under its own marker
    assert train_text(again) == train_text(marked)
