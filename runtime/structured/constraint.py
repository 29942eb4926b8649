"""A rule that a text must match, as a person writes it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from ...contract.errors import UserError

Kind = Literal["json_schema", "regex", "grammar"]
NAMES: dict[Kind, str] = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
MAX_SOURCE = 65_536
"""Characters of a rule."""


@dataclass(frozen=True)
class Constraint:
    """A rule that a text must match; made by the functions below."""

    kind: Kind
    source: str
    """A schema as JSON, a regular expression, or a grammar in the dialect of Lark that llguidance reads."""

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE:
            raise UserError(
                f"found a {self.name} of {len(self.source)} characters, expected at most {MAX_SOURCE}; shorten it"
            )
        try:
            self.source.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"found {self.source[error.start]!r} in the {self.name}, expected text that UTF-8 can hold; remove it"
            ) from error

    @property
    def name(self) -> str:
        """The kind, for messages."""
        return NAMES[self.kind]

    @classmethod
    def json_schema(cls, schema: str | bool | dict[str, Any]) -> Self:
        """Require JSON that is valid by a schema.

        Args:
            schema: As JSON text, or parsed.

        Raises:
            UserError: It is no schema, or too large.
        """
        try:
            if isinstance(schema, str):
                schema = json.loads(schema)
            source = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except RecursionError as error:
            raise UserError(
                "found a JSON schema that is nested too deeply, expected fewer levels; flatten it"
            ) from error
        except (ValueError, TypeError) as error:
            raise UserError(f"found a JSON schema that is no JSON: {error}; correct it") from error
        if not isinstance(schema, dict | bool):
            shown = source if len(source) <= 60 else source[:57] + "..."
            raise UserError(f'found the JSON schema {shown}, expected an object; such as {{"type": "object"}}')
        return cls("json_schema", source)

    @classmethod
    def json_object(cls) -> Self:
        """Require a JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Require a text that the regular expression matches from its beginning to its end.

        Raises:
            UserError: It is too large.
        """
        return cls("regex", pattern)

    @classmethod
    def grammar(cls, lark: str) -> Self:
        """Require a text that follows a grammar in Lark.

        Raises:
            UserError: It is too large.
        """
        return cls("grammar", lark)

    @classmethod
    def choice(cls, texts: Sequence[Any]) -> Self:
        """Require one of these texts.

        Raises:
            UserError: There is no text, or they are too large.
        """
        if not texts or any(not isinstance(text, str) or not text for text in texts):
            raise UserError("found a choice without a text, expected one text or more that are not empty; add one")
        return cls("grammar", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))
