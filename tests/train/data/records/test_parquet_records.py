"""Parquet: only the columns that hold text are read, and what cannot be read is named with column and row."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.data.records import document_of, read_records
from adaptive_lm.train.data.sources.sources import resolve_source

N = 3000  # more than one batch
TEXTS = [f"text {n} é" for n in range(N)]
BAD = pa.array([b"caf\xe9"] * N, pa.binary()).view(pa.string())


def texts(path, field=None):
    (item,) = resolve_source(str(path), field, print).items
    return [document_of(record, item.text_field, where) for where, record in read_records(item)]


def write_table(tmp_path, table, **options):
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, **options)
    return path


OTHERS = {
    "nanoseconds": pa.array([10**18 + 1] * N, pa.timestamp("ns")),
    "far": pa.array([2**62] * N, pa.timestamp("us")),
    "zone": pa.array([0] * N, pa.timestamp("us", tz="Europe/Nowhere")),
    "not-utf8": BAD,
    "struct-of-two": pa.StructArray.from_arrays([pa.array(TEXTS)] * 2, names=["a", "a"]),
    "map": pa.array([[("k", 1)]] * N, pa.map_(pa.string(), pa.int64())),
    "decimal": pa.array([1] * N, pa.decimal128(30, 2)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_column_that_is_not_used_is_no_hindrance(tmp_path, other):
    assert texts(write_table(tmp_path, pa.table({"x": OTHERS[other], "text": TEXTS, "y": OTHERS[other]}))) == TEXTS


def test_a_damaged_column_that_is_not_used_is_no_hindrance(tmp_path):
    path = write_table(tmp_path, pa.table({"x": [f"other {n}" for n in range(N)], "text": TEXTS}), use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    assert texts(path) == TEXTS
    with pytest.raises(UserError, match="is not a whole Parquet file"):
        texts(path, "x")


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_text_of_every_arrow_type_is_read_and_null_is_no_text(tmp_path, kind):
    column = (
        pa.array([*TEXTS, None]).cast(kind) if "dict" not in str(kind) else pa.array([*TEXTS, None]).dictionary_encode()
    )
    try:
        path = write_table(tmp_path, pa.table({"text": column}))
    except pa.ArrowNotImplementedError:
        pytest.skip(f"this pyarrow writes no {kind}")
    assert texts(path) == [*TEXTS, ""]


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_string()], ids=str)
def test_text_that_is_not_utf8_is_named_with_column_and_row(tmp_path, kind):
    data = [text.encode() for text in TEXTS]
    data[2000] = b"caf\xe9"
    column = pa.array(data, pa.large_binary() if "large" in str(kind) else pa.binary())
    path = write_table(tmp_path, pa.table({"text": column if kind == pa.binary() else column.view(kind)}))
    with pytest.raises(UserError, match=r"a\.parquet, column 'text', row 2001: not UTF-8 \(byte 0xe9 at offset 3 of"):
        texts(path)


def test_conversations_are_read_whatever_stands_beside_their_text(tmp_path):
    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("at", pa.timestamp("ns"))])
    turns = [[{"role": "user", "content": "Hi", "at": 1}, {"role": "assistant", "content": "Ho", "at": 10**18 + 1}]] * 3
    path = write_table(tmp_path, pa.table({"messages": pa.array(turns, pa.list_(turn))}))
    assert texts(path) == [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]] * 3
    path = write_table(tmp_path, pa.table({"conversations": [[{"from": "human", "value": "Hi"}]] * 2}))
    assert texts(path) == [[{"role": "user", "content": "Hi"}]] * 2
    path = write_table(tmp_path, pa.table({"prompt": ["a"], "completion": ["b"], "x": OTHERS["far"][:1]}))
    assert texts(path) == [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]


def test_a_conversation_whose_field_stands_twice_is_refused(tmp_path):
    turn = pa.StructArray.from_arrays(
        [pa.array(["user"]), pa.array(["x"]), pa.array(["y"])], names=["role", "content", "content"]
    )
    path = write_table(tmp_path, pa.table({"messages": pa.ListArray.from_arrays([0, 1], turn)}))
    with pytest.raises(UserError, match=r"message 1: the field 'content' stands more than once"):
        texts(path)


def test_a_column_that_stands_twice_is_refused_where_it_is_used(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "id", "id"])
    assert texts(write_table(tmp_path, table)) == ["a"]
    with pytest.raises(UserError, match=r"a\.parquet: the column 'id' stands more than once"):
        texts(write_table(tmp_path, table), "id")


@pytest.mark.parametrize("other", ["nanoseconds", "decimal", "map", "struct-of-two"])
def test_a_column_that_holds_no_text_is_named_with_its_type_and_the_others(tmp_path, other):
    path = write_table(tmp_path, pa.table({"x": OTHERS[other], "text": TEXTS}))
    kind = re.escape(str(OTHERS[other].type).rstrip(">"))  # pyarrow writes more into a map than was asked
    with pytest.raises(UserError, match=rf"the column 'x' holds {kind}.*; .*columns are: x, text; choose"):
        texts(path, "x")


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    path = write_table(tmp_path, pa.table({"body": TEXTS, "id": range(N)}))
    with pytest.raises(UserError, match=r"a\.parquet: none of the fields .*; the fields are: body, id"):
        texts(path)
    assert texts(path, "body") == TEXTS


def test_no_rows_are_no_records(tmp_path):
    assert texts(write_table(tmp_path, pa.table({"text": pa.array([], pa.string())}))) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_what_is_no_parquet_is_named(write, content):
    with pytest.raises(UserError, match=r"a\.parquet is not a whole Parquet file \(.*\); fetch it again"):
        texts(write("a.parquet", content))
