"""Records of Parquet: one a row, only the columns that hold text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....contract.errors import UserError
from ....contract.text.compression import refuse_pointer
from .fields import Located, RepeatedFields, record_of, repeated_names, used_fields

BATCH_ROWS = 1024
# The fields of a column of conversations that are used; others are not converted.
_NESTED_FIELDS = frozenset({"role", "content", "from", "value", "type", "text"})


def parquet_records(path: Path, text_field: str | None) -> Iterator[Located]:
    """Read the rows of a Parquet file.

    Raises:
        UserError: pyarrow is missing, the file is damaged, or a column cannot be read; the message names it
            and the row.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            f'reading {path} needs pyarrow, which is not installed: pip install "adaptive-lm[train]"'
        ) from None
    refuse_pointer(path)
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if not file.metadata.num_rows:
                return
            columns = used_fields(names, text_field, str(path))
            repeated = repeated_names(names) & set(columns)
            if repeated:
                column = sorted(repeated)[0]
                raise UserError(
                    f"{path}: the column {column!r} stands more than once; expected it once. Rename the others or "
                    "leave them out"
                )
            for column in columns:
                _require_text(file.schema_arrow.field(column).type, column, path, names)
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns)):
                values = [_column(batch.column(column), f"{path}, column {column!r}", number) for column in columns]
                for row in zip(*values, strict=True):
                    number += 1
                    yield f"{path}, row {number}", dict(zip(columns, row, strict=True))
    except UserError:
        raise
    except pa.ArrowNotImplementedError as error:
        raise UserError(
            f"{path} uses what this pyarrow cannot read ({_first_line(error)}); install a newer pyarrow, or write the "
            "file again with plain settings"
        ) from None
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a whole Parquet file ({_first_line(error)}); fetch it again") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _require_text(kind: Any, column: str, path: Path, names: list[str]) -> None:
    import pyarrow.types as types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    if not (_is_text(inner) or _is_list(inner) or types.is_null(inner)):
        raise UserError(
            f"{path}: the column {column!r} holds {kind}; expected text or conversations. The columns are: "
            f"{', '.join(names)}; choose one with --text-field"
        )


def _is_string(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    checks = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view")
    return any(getattr(types, check, lambda _: False)(kind) for check in checks)


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    checks = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(types, check, lambda _: False)(kind) for check in checks)


def _column(array: Any, where: str, first: int) -> list[object]:
    """Convert a column; on failure find the row, where `first` rows came before."""
    try:
        if _is_string(array.type):
            return list(array.to_pylist())
        return [_value(entry) for entry in array]
    except UserError:
        raise
    except Exception:  # pyarrow raises many kinds: find the row, then name it
        for row, entry in enumerate(array, first + 1):
            try:
                _value(entry)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}, row {row}: not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start} "
                    "of the text); expected UTF-8 text. Decode the column from its own encoding, then write it again"
                ) from None
            except Exception as error:
                raise UserError(
                    f"{where}, row {row}: pyarrow cannot convert it ({_first_line(error)}); expected text"
                ) from None
        raise


def _value(scalar: Any) -> object:
    """Convert one value; of a struct only the fields that a conversation has."""
    import pyarrow.types as types

    kind = scalar.type
    if not scalar.is_valid:
        return None
    if types.is_dictionary(kind):
        return _value(scalar.value)
    if _is_text(kind):
        value = scalar.as_py()
        return value.decode() if isinstance(value, bytes) else value
    if _is_list(kind):
        return [_value(entry) for entry in scalar.values]
    if types.is_struct(kind):
        pairs = [(kind.field(n).name, n) for n in range(kind.num_fields)]
        wanted = [(name, n) for name, n in pairs if name in _NESTED_FIELDS]
        if len({name for name, _ in wanted}) < len(wanted):
            return RepeatedFields([(name, None) for name, _ in wanted], repeated_names([name for name, _ in wanted]))
        return record_of([(name, _value(scalar[n])) for name, n in wanted])
    return scalar.as_py()
