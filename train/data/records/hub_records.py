"""Records of data sets on the Hugging Face hub."""

from collections.abc import Iterator

from ....contract.errors import UserError
from ..sources.sources import hf_name
from .fields import Located, used_fields


def hub_records(spec: str, text_field: str | None) -> Iterator[Located]:
    """Read the rows of `hf:NAME:CONFIG:SPLIT`; only the columns that contain text, if the library knows them.

    Raises:
        UserError: the library is missing, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f'{spec} needs the datasets library, which is not installed: pip install "adaptive-lm[hf]"'
        ) from None
    name, config, split = hf_name(spec)
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train")
        names = getattr(rows, "column_names", None)
        if names:
            rows = rows.select_columns(list(used_fields(names, text_field, spec)))
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds, all about a name, a network or a disk
        raise UserError(
            f"cannot load {spec}: {_first_line(error)}; expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT of a "
            "data set on the hub"
        ) from None
    return _numbered(rows, spec)


def _numbered(rows: object, spec: str) -> Iterator[Located]:
    number = 0
    try:
        for row in rows:  # type: ignore[attr-defined]
            number += 1
            yield f"{spec}, row {number}", row
    except Exception as error:  # as above: a row that cannot be decoded, a file that is gone
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {spec}, row {number + 1}: {_first_line(error)}; load it again") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
