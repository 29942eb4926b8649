"""The fields of a record that contain its text, and records in which a field occurs twice."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ....contract.errors import UserError

Located = tuple[str, object]  # (where it stands, for messages; the record)
TEXT_FIELDS = (("messages",), ("prompt", "completion"), ("text",), ("conversations",))
"""Fields to look for where the user names none; the first that exists is taken."""


class RepeatedFields(dict[str, object]):
    """A record in which some fields occur more than once; only one value of each is kept."""

    def __init__(self, pairs: Iterable[tuple[str, object]], repeated: frozenset[str]) -> None:
        super().__init__(pairs)
        self.repeated = repeated


def record_of(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Make a record of its fields in order; fields that occur twice are remembered."""
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    return RepeatedFields(pairs, repeated_names([name for name, _ in pairs]))


def repeated_names(names: Iterable[str]) -> frozenset[str]:
    """Return the names that occur more than once."""
    return frozenset(name for name, count in Counter(names).items() if count > 1)


def used_fields(names: Iterable[str], text_field: str | None, where: str) -> tuple[str, ...]:
    """Choose the fields that hold the text of a record.

    Args:
        names: The fields of the record.
        text_field: The field that the user names, if any.
        where: The place of the record, for messages.

    Raises:
        UserError: the record has no field of that name, or none of the usual ones.
    """
    names = list(names)
    listed = ", ".join(map(str, names)) or "none"
    if text_field is not None:
        if text_field not in names:
            raise UserError(f"{where}: no field {text_field!r}; the fields are: {listed}. Choose one with --text-field")
        return (text_field,)
    for fields in TEXT_FIELDS:
        if all(field in names for field in fields):
            return fields
    raise UserError(
        f"{where}: none of the fields text, messages, prompt + completion, conversations; the fields are: {listed}. "
        "Name the one that holds the text with --text-field"
    )


def refuse_repeated(record: object, fields: Iterable[str], where: str) -> None:
    """Raise UserError where one of `fields` occurs twice in a record: half of the text would be left out."""
    if isinstance(record, RepeatedFields):
        for field in fields:
            if field in record.repeated:
                raise UserError(
                    f"{where}: the field {field!r} stands more than once; expected it once. Rename the others or leave "
                    "them out"
                )
