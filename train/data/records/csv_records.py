"""Records of CSV and TSV: one a row, under the names of the header."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from ....contract.errors import UserError
from ....contract.text.diagnosis import output_name, shell_command
from .fields import TEXT_FIELDS, Located, repeated_names, used_fields
from .lines import numbered_lines

FIELD_LIMIT = 2**30  # the csv module stops at 128 KiB, which one long document passes
DELIMITERS = (",", ";", "\t", "|")


def csv_records(path: Path, text_field: str | None, *, tabs: bool = False) -> Iterator[Located]:
    """Read the rows of a CSV file.

    Args:
        path: The file.
        text_field: The field that holds the text, if the user names one; helps to find the delimiter.
        tabs: Whether tabs separate the cells, regardless of the header.

    Raises:
        UserError: the file is no CSV, or a row has another number of cells than the header.
    """
    csv.field_size_limit(FIELD_LIMIT)
    lines = (line for _, line in numbered_lines(path))
    first = next(lines, "")
    skipped, delimiter = 0, "\t" if tabs else ""
    declared = re.fullmatch(r"sep=(.)\r?\n", first)  # Excel's own line for the delimiter
    if declared:
        skipped, delimiter, first = 1, declared[1], next(lines, "")
    delimiter = delimiter or _delimiter(first, text_field)
    reader = csv.reader(chain([first] if first else [], lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        place = f"{path}, line {1 + skipped}"
        twice = repeated_names(header) & set(used_fields(header, text_field, place))
        if twice:
            raise UserError(
                f"{place}: the header names {sorted(twice)[0]!r} more than once; expected it once. Rename the others "
                "or leave them out"
            )
        for row in reader:
            if not row:
                continue
            where = f"{path}, line {reader.line_num + skipped}"
            if len(row) != len(header):
                raise UserError(
                    f"{where}: {_cells(len(row))}, but the header has {len(header)} ({', '.join(header)}); quote cells "
                    f"that hold {_NAMES.get(delimiter, repr(delimiter))} or line breaks"
                )
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        if "new-line character" in str(error):
            raise carriage_returns(path, reader.line_num + skipped) from None
        raise UserError(
            f"{path}, line {reader.line_num + skipped}: not CSV ({error}); expected cells between "
            f"{_NAMES.get(delimiter, repr(delimiter))}, in double quotes where they hold one"
        ) from None


_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def _cells(count: int) -> str:
    return f"{count} cell" + ("s" if count != 1 else "")


def _delimiter(header: str, text_field: str | None) -> str:
    """Choose the delimiter under which the header names a field that holds text; else the first that splits it."""
    wanted = [(text_field,)] if text_field is not None else TEXT_FIELDS
    cells = {delimiter: _split([header], delimiter) for delimiter in DELIMITERS}
    for delimiter in DELIMITERS:
        if any(set(fields) <= set(cells[delimiter]) for fields in wanted):
            return delimiter
    return next((delimiter for delimiter in DELIMITERS if len(cells[delimiter]) > 1), ",")


def _split(lines: Iterable[str], delimiter: str) -> list[str]:
    try:
        return next(csv.reader(lines, delimiter=delimiter), [])
    except csv.Error:
        return []


def carriage_returns(path: Path, line: int) -> UserError:
    """Explain a file whose lines end in a carriage return alone."""
    command = shell_command(str(path), r"tr '\r' '\n'")
    return UserError(
        f"{path}, line {line}: lines end in a carriage return (CR) alone; expected LF or CR LF. Convert them: "
        f"{command} > {output_name('lf', path.name)}"
    )
