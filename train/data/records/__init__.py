"""Records, one document each: JSON, JSON lines, CSV, Parquet, Hugging Face data sets and the built-in texts."""

from collections.abc import Iterator
from pathlib import Path

from ..builtin import builtin_records
from ..sources.sources import Item
from .csv_records import csv_records
from .document import document_of
from .fields import Located
from .hub_records import hub_records
from .json_records import json_lines, json_list
from .parquet_records import parquet_records

__all__ = ["document_of", "read_records"]


def read_records(item: Item) -> Iterator[Located]:
    """Read the records of `item` in order, each with its place for messages.

    Raises:
        UserError: something cannot be read; the message names file and line.
    """
    match item.kind:
        case "builtin":
            name = item.name.removeprefix("builtin:")
            return ((f"{item.name}, record {n}", r) for n, r in enumerate(builtin_records(name), 1))
        case "hf":
            return hub_records(item.name, item.text_field)
        case "jsonl":
            return json_lines(_path(item))
        case "json":
            return json_list(_path(item))
        case "csv" | "tsv":
            return csv_records(_path(item), item.text_field, tabs=item.kind == "tsv")
        case "parquet":
            return parquet_records(_path(item), item.text_field)
        case _:
            raise ValueError(f"{item.kind} holds no records")


def _path(item: Item) -> Path:
    assert item.path is not None
    return item.path
