"""Bodies of requests: JSON that is exactly what a model of pydantic says, or a refusal that names the field."""

import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ..errors import BadRequestError

Kind = TypeVar("Kind", bound="Body")
TAGS = {"str", "int", "float", "bool", "none"}
"""How pydantic names simple members of a union in the place of an error; they are no fields."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _no_tools(value: list[Any] | None) -> list[Any] | None:
    if value:
        raise ValueError("found tools, this endpoint takes none; send them as `tools` to POST /v1/chat/completions")
    return value


NoTools = Annotated[list[Any] | None, AfterValidator(_no_tools)]
"""A list of tools or functions, which is refused unless it is empty."""


class Body(BaseModel):
    """Base of every body and of its parts.

    Types are not converted (`"0.5"` is no number), numbers are finite, a field that stands twice has its last value.
    Unknown fields are ignored, because clients send what other servers know; the answer's header names them.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        strict=True, extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    @property
    def ignored(self) -> list[str]:
        """Names of fields that the server does not know; only what looks like a name."""
        return [name for name in self.model_extra or {} if name.isidentifier() and name.isascii() and len(name) <= 40]


def parse(kind: type[Kind], raw: bytes) -> Kind:
    """Read a body.

    Raises:
        BadRequestError: It is no JSON object, or a field is not what it should be.
    """
    if not raw.strip():
        raise BadRequestError("found an empty body, expected a JSON object; send one as application/json")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise refusal(error.errors(include_url=False, include_context=False)) from None


def validated(kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """Return a body of fields that another body had.

    Raises:
        BadRequestError: A field is not what it should be.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise refusal(error.errors(include_url=False, include_context=False)) from None


def refusal(errors: Sequence[Any]) -> BadRequestError:
    """Return the error for the first field at fault."""
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return BadRequestError(f"the body is no valid JSON: {reason}; send a JSON object in UTF-8")
    place = field_path(first["loc"])
    if first["type"] == "value_error":  # a whole sentence of ours
        return BadRequestError(first["msg"].removeprefix("Value error, "), param=place or None)
    if not place:
        return BadRequestError(f"found {_SHORT.repr(first['input'])} as the body, expected a JSON object")
    if first["type"] == "missing":
        return BadRequestError(f"the field {place} is missing; add it", param=place)
    same = dict.fromkeys(one["msg"] for one in errors if field_path(one["loc"]) == place)
    expected = " or ".join(message[:1].lower() + message[1:] for message in same)
    return BadRequestError(f"found {_SHORT.repr(first['input'])} in the field {place}: {expected}", param=place)


def field_path(place: Sequence[Any]) -> str:
    """Return the dotted path of a field; what pydantic adds for a union is left out."""
    parts: list[str] = []
    for part in place:
        text = str(part)
        if parts and isinstance(part, str) and (text in TAGS or not text.isidentifier() or text[0].isupper()):
            break
        parts.append(text[:60])
    return ".".join(parts)
