"""What a text must match, as a request says it."""

from dataclasses import dataclass
from typing import Literal

GrammarKind = Literal["json_object", "json_schema", "regex", "grammar"]


@dataclass(frozen=True)
class GrammarSpec:
    """The grammar of a request, not compiled yet."""

    kind: GrammarKind
    text: str = ""
    """The schema as JSON, the regular expression, or a grammar in Lark's notation; "" for any JSON object."""
