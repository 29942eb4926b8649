"""Records, one document each: JSON, JSON lines, CSV, Parquet, Hugging Face data sets and the built-in texts."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from ...contract.errors import UserError
from ...contract.text_compression import open_file
from .builtin import builtin_records
from .sources import Item, hf_name

Located = tuple[str, object]  # (where it stands, for messages; the record)

CSV_FIELD_LIMIT = 2**30  # the csv module stops at 128 KiB, which one long document passes


def read_records(item: Item) -> Iterator[Located]:
    """The records of `item` in order. Raises UserError naming file and line for what cannot be read."""
    match item.kind:
        case "builtin":
            name = item.name.removeprefix("builtin:")
            return ((f"{item.name}, record {n}", r) for n, r in enumerate(builtin_records(name), 1))
        case "hf":
            return _hf(item.name)
        case "jsonl":
            return _jsonl(_path(item))
        case "json":
            return _json(_path(item))
        case "csv":
            return _csv(_path(item))
        case "parquet":
            return _parquet(_path(item))
        case _:
            raise ValueError(f"{item.kind} holds no records")


def _path(item: Item) -> Path:
    assert item.path is not None
    return item.path


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, numbered from 1, ends kept; only "\\n" ends a line, as JSON lines and CSV want it."""
    offset = 0
    with open_file(path) as file:
        for number, raw in enumerate(file, 1):
            if b"\0" in raw:
                raise UserError(
                    f"{path}, line {number}: a zero byte, so this is not text; expected UTF-8. Convert the file to "
                    "UTF-8 text"
                )
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{raw[error.start]:02x} at offset "
                    f"{offset + error.start}); "
                    f"expected UTF-8 text. If it is Latin-1: iconv -f LATIN1 -t UTF-8 {path.name} > utf8-{path.name}"
                ) from None
            offset += len(raw)
            yield number, text


def _jsonl(path: Path) -> Iterator[Located]:
    for number, line in _decoded_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if not line.endswith("\n"):
                raise UserError(
                    f"{where}: the file ends inside a record ({error.msg}, column {error.colno}), so it was probably "
                    "cut short; "
                    "fetch it again or delete this line"
                ) from None
            raise UserError(
                f"{where}: not JSON ({error.msg}, column {error.colno}); expected one JSON record or string per line"
            ) from None
        except RecursionError:
            raise UserError(f"{where}: nested too deeply; expected a record of text") from None
        yield where, record


def _json(path: Path) -> Iterator[Located]:
    # One value has to be read whole; for data larger than memory there is .jsonl.
    text = "".join(line for _, line in _decoded_lines(path))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) - 1 or "Unterminated" in error.msg:
            raise UserError(
                f"{path}, line {error.lineno}: the file ends inside a value ({error.msg}), so it was probably cut "
                "short; fetch it again"
            ) from None
        hint = "; one record per line wants the extension .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}){hint}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; expected a list of strings or records") from None
    if isinstance(value, dict):
        lists = [key for key, entry in value.items() if isinstance(entry, list)]
        if len(lists) != 1:
            found = ", ".join(map(str, lists)) if lists else "no list"
            raise UserError(
                f"{path} is an object with {found}; expected a list, or an object that holds exactly one list"
            )
        value = value[lists[0]]
    if not isinstance(value, list):
        raise UserError(f"{path} holds a {type(value).__name__}; expected a list of strings or of records")
    for number, record in enumerate(value, 1):
        yield f"{path}, record {number}", record


def _csv(path: Path) -> Iterator[Located]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    reader = csv.reader((line for _, line in _decoded_lines(path)), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)} "
                    f"({', '.join(header)}); quote cells that hold commas or line breaks"
                )
            yield f"{path}, line {reader.line_num}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: not CSV ({error}); expected comma-separated cells in double quotes"
        ) from None


def _parquet(path: Path) -> Iterator[Located]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            f'reading {path} needs pyarrow, which is not installed: pip install "adaptive-lm[train]"'
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", record
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is not a whole Parquet file ({first}); fetch it again") from None


def _hf(spec: str) -> Iterator[Located]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f'{spec} needs the datasets library, which is not installed: pip install "adaptive-lm[hf]"'
        ) from None
    name, config, split = hf_name(spec)
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library raises many kinds, all about a name, a network or a disk
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"cannot load {spec}: {first}; expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT of a data set on "
            "the hub"
        ) from None
    return ((f"{spec}, row {number}", row) for number, row in enumerate(rows, 1))
